"""What people do to runs that are over, told one by one: an earlier run is cleared after a later one, a run id is used
again, a verdict is left from before a clear, aggregate_status ends without one. Nothing may be green that is not there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_multideploy.catalog.service import Service
from airflow_multideploy.factory.reconcile import reconcile_dag
from airflow_multideploy.factory.service import service_dag
from airflow_multideploy.testing.fake import FakeWorld, Fault
from tests.simulation import play as play_
from tests.simulation.play import CLOCK, IMAGE, SERVICE, SimStore, Story
from tests.simulation.runs import Run
from tests.simulation.scheduler import SimAirflow
from tests.simulation.schedules import DEPLOYS, ROLLBACKS, Schedule, Trouble


class Stage:
    """A story that is told step by step."""

    def __init__(self, graph: str, strategy: str = "all", policy: str = "all", **how: Any) -> None:
        self.schedule = schedule = Schedule(graph, strategy, policy, retries=0, **how)
        random.seed(0)
        self.airflow = SimAirflow(store=lambda _: SimStore(), rng=random.Random(0))
        self.world = FakeWorld(seconds=4.0, clock=CLOCK)
        self.story = play_._story = Story(schedule, self.airflow, self.world)
        self.airflow.point, self.airflow.over = self.story.point, self.story.over
        for target in schedule.targets:
            self.world.seed(f"{SERVICE}/{target}", f"{IMAGE}:1")
            for name, known in (
                (schedule.of(schedule.deploys, target, "ok"), DEPLOYS),
                (schedule.of(schedule.rollbacks, target, "ok"), ROLLBACKS),
            ):
                for fault in known[name]:
                    self.world.faults.append(Fault(target=f"{SERVICE}/{target}", **fault))
        self.service: Service = play_.service_of(schedule)
        self._manual = None if strategy != "manual" else play_.ready(service_dag(SERVICE, self.service))

    def run(self, run_id: str, version: str, **conf: Any) -> Run:
        """Trigger it and wait for its end."""
        targets = list(self.schedule.targets)
        run = self.airflow.trigger(self.dag(), run_id, {"version": version, "targets": targets, **conf})
        self.airflow.drain()
        return run

    def dag(self) -> DAG:
        """The service's, with what the catalog now says; with strategy ``manual`` one with the task that asks."""
        return self._manual or play_.dag_of(self.schedule, self.service)

    def clear(self, run: Run, *names: str) -> None:
        """With everything downstream, as Airflow's UI has it."""
        self.airflow.clear(*(run.tasks[name] for name in names))
        self.airflow.drain()

    def live(self) -> dict[str, str | None]:
        """Version by target."""
        places = {target: self.world.places[f"{SERVICE}/{target}"].current for target in self.schedule.targets}
        return {target: place and place.image.rpartition(":")[2] for target, place in places.items()}

    def journal(self, target: str) -> dict[str, Any]:
        """The target's entry."""
        found: dict[str, Any] = self.airflow.store(f"{SERVICE}/journal").get(f"{target}.journal")
        return found


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with play_.installed():
        yield


def said(run: Run) -> tuple[str, str, dict[str, str]]:
    """Colour, status, and the reasons by target."""
    document = run.value("finalize")
    return run.state, document["status"], {each["target"]: each["reason"] for each in document["results"]}


# --- an earlier run, after a later one --------------------------------------------------------------------------------


def test_a_deploy_of_an_earlier_run_that_is_cleared_does_not_count_what_a_later_run_replaced() -> None:
    stage = Stage("two", deploys=("ok", "no_snapshot"))
    first = stage.run("run1", "2")
    stage.world.faults.clear()
    stage.run("run2", "3")
    stage.clear(first, "t2.deploy")
    state, status, reasons = said(first)
    assert (state, status, reasons["t1"]) == ("failed", "unknown", "run 'run2' came after it")
    assert stage.live() == {"t1": "3", "t2": "3"}, "what it wrote itself, it took back"


def test_an_earlier_run_that_is_cleared_whole_and_refused_is_not_green() -> None:
    stage = Stage("two")
    stage.run("run0", "1b")
    first = stage.run("run1", "2")
    stage.run("run2", "1b", rollback=True, reason="INC-1")
    stage.clear(first, "plan")
    assert said(first)[:2] == ("failed", "not_started")
    assert stage.live() == {"t1": "1b", "t2": "1b"}


@pytest.mark.parametrize("task", ["finalize", "aggregate_status"])
@pytest.mark.parametrize("deploy", ["ok", "fails"])
def test_an_earlier_run_is_not_judged_by_a_later_ones_journals(task: str, deploy: str) -> None:
    stage = Stage("one", deploys=(deploy,))
    first = stage.run("run1", "2")
    stage.world.faults.clear()
    stage.run("run2", "3")
    stage.clear(first, task)
    assert said(first) == ("failed", "unknown", {"t1": "run 'run2' came after it"})
    assert (stage.live(), stage.journal("t1")["run_id"]) == ({"t1": "3"}, "run2")


# --- a run id that a deleted run had ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("died", [False, True])
def test_a_refused_namesake_neither_counts_nor_undoes_what_the_deleted_run_left(*, died: bool, cleared: bool) -> None:
    stage = Stage("one", deploys=("hangs" if died else "ok",))
    first = stage.airflow.trigger(stage.dag(), "run1", {"version": "2", "targets": ["t1"]})
    stage.airflow.at(30, lambda: stage.airflow.delete(first))
    stage.airflow.drain()
    assert stage.journal("t1")["phase"] == ("verifying" if died else "succeeded")
    stage.world.faults.clear()
    CLOCK.now += 600
    left = stage.live()
    again = stage.run("run1", "3")
    if cleared:
        stage.clear(again, "plan")
    assert said(again)[:2] == ("failed", "not_started")
    assert "another run was called 'run1'" in again.value("finalize")["reason"]
    assert stage.live() == left
    assert stage.journal("t1")["release"]["version"] == "2"


# --- without a verdict ------------------------------------------------------------------------------------------------


def test_what_a_rollback_took_back_by_itself_does_not_count() -> None:
    """aggregate_status dies, and a deploy that was thought dead comes to a good end between two rollbacks' looks."""
    died = Trouble("aggregate_status", "start", 0)
    ends = set()
    for tenths in range(250, 330, 5):
        awake = Trouble("t1.deploy", "start", 2, "orphan", tenths / 10)
        story = play_.play(Schedule("after2", deploys=("ok", "ok"), troubles=(awake, died), retries=0))
        (run,) = story.airflow.runs
        state, _, _ = said(run)
        back = [each["target"] for each in run.value("finalize")["results"] if each["phase"] == "rolled_back"]
        assert state == "failed" or not back, (tenths, run.value("finalize"))
        ends.add(bool(back))
    assert True in ends


# --- what a cleared run still holds -----------------------------------------------------------------------------------


def test_a_target_that_is_set_aside_after_a_clear_is_named_while_something_of_the_run_is_left_there() -> None:
    stage = Stage("two", deploys=("ok", "fails"), rollbacks=("ok", "fails"))
    first = stage.run("run1", "2")
    assert said(first)[:2] == ("failed", "rollback_failed")
    aside = stage.service.targets["t2"].model_copy(update={"when": "params.version == '9'"})
    stage.service = stage.service.model_copy(update={"targets": {**stage.service.targets, "t2": aside}})
    stage.dag()
    stage.clear(first, "plan")
    state, status, reasons = said(first)
    assert (state, status) == ("failed", "rollback_failed")
    assert reasons["t2"] == "shop/t2: the way back ended failed: exit code 1"


# --- what an earlier run left in doubt -------------------------------------------------------------------------------


def test_a_release_that_reconciles_touches_no_target_that_it_does_not_release() -> None:
    stage = Stage("two", deploys=("fails", "fails"), rollbacks=("fails", "fails"))
    stage.run("run1", "2")
    left = stage.journal("t2")
    assert (left["phase"], left["settled"]) == ("rollback_failed", False)
    stage.world.faults.clear()
    stage.service = play_.service_of(stage.schedule, in_doubt="reconcile")
    run = stage.run("run2", "3", targets=["t1"])
    assert said(run)[:2] == ("success", "succeeded")
    assert (stage.live()["t1"], stage.journal("t2")) == ("3", left)


# --- a first-ever release that is left -------------------------------------------------------------------------------


def first_left(**how: Any) -> Stage:
    """The first target is released already, the second one, which depends on it, is new, and left when it fails."""
    stage = Stage("chain2", deploys=("ok", "fails"), places=("old", "first_left"), **how)
    stage.world.seed(f"{SERVICE}/t2", None)
    return stage


def test_the_others_go_back_and_it_stays_and_the_next_release_starts_from_it() -> None:
    stage = first_left()
    state, status, reasons = said(stage.run("run1", "2"))
    assert (state, status, stage.live()) == ("failed", "partially_rolled_back", {"t1": "1", "t2": "2"})
    assert reasons["t2"] == "exit code 1; then first-ever release: left in place, as configured (first_deploy: leave)"
    assert (stage.journal("t2")["phase"], stage.journal("t2")["settled"]) == ("failed", True)
    stage.world.faults.clear()
    assert said(stage.run("run2", "3"))[:2] == ("success", "succeeded")


def test_a_run_that_is_stopped_leaves_it_too() -> None:
    stage = first_left(troubles=(Trouble("t2.deploy", "deploy:after", 1, "fail_run"),))
    state, status, reasons = said(stage.run("run1", "2"))
    assert (state, status, stage.live()) == ("failed", "partially_rolled_back", {"t1": "1", "t2": "2"})
    assert "left in place, as configured" in reasons["t2"]
    assert stage.journal("t2")["settled"]


def test_the_reconciler_settles_it_without_a_word_to_the_platform() -> None:
    stage = first_left(troubles=(Trouble("finalize", "start", 0),))
    stage.run("run1", "2")
    assert not stage.journal("t2")["settled"]
    calls = len(stage.world.calls)
    dag = play_.ready(reconcile_dag({SERVICE: stage.service}, schedule="@hourly", settle=True))
    run = stage.airflow.trigger(dag, "reconcile", {})
    stage.airflow.drain()
    assert (run.state, run.value("reconcile")) == ("success", {f"{SERVICE}/t2": "left"})
    assert (stage.journal("t2")["settled"], len(stage.world.calls)) == (True, calls)


# --- what a person picked before a clear ------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The task that asks reads its answer as under ``dags test``, from the environment."""
    monkeypatch.setattr("airflow_multideploy.operators.approval._alone", lambda: True)
    return monkeypatch


def test_a_choice_from_before_a_clear_does_not_stand_for_what_was_healed(answers: pytest.MonkeyPatch) -> None:
    answers.setenv("AIRFLOW__MULTIDEPLOY__ANSWER", "roll_back_all")
    stage = Stage("two", "manual", deploys=("ok", "no_snapshot"))
    run = stage.run("run1", "2")
    assert said(run)[:2] == ("failed", "rolled_back")
    stage.world.faults.clear()
    stage.clear(run, "t1.deploy", "t2.deploy")
    assert run.tasks["decide"].state == "skipped"
    assert said(run)[:2] == ("success", "succeeded")
    assert [stage.journal(target)["phase"] for target in ("t1", "t2")] == ["succeeded", "succeeded"]
    assert stage.live() == {"t1": "2", "t2": "2"}


def test_a_retry_of_a_first_ever_release_that_is_left_rolls_it_out_over_what_is_there(
    answers: pytest.MonkeyPatch,
) -> None:
    answers.setenv("AIRFLOW__MULTIDEPLOY__ANSWER", "retry")
    stage = first_left(strategy="manual")
    stage.world.faults[:] = [Fault(target=f"{SERVICE}/t2", call="deploy", kind="fails")]
    assert said(stage.run("run1", "2"))[:2] == ("success", "succeeded")
    assert [call.name for call in stage.world.calls if call.name == "rollback"] == []
    assert stage.live() == {"t1": "2", "t2": "2"}


def test_a_choice_from_before_a_clear_does_not_keep_what_is_stopped(answers: pytest.MonkeyPatch) -> None:
    answers.setenv("AIRFLOW__MULTIDEPLOY__ANSWER", "accept")
    stage = Stage("two", "manual", deploys=("ok", "fails"))
    run = stage.run("run1", "2")
    assert said(run)[:2] == ("failed", "failed")
    stage.world.faults[:] = [Fault(target="shop/t2", call="deploy", kind="hangs", times=9)]
    stage.airflow.at(20, lambda: stage.airflow.fail_run(run))
    stage.clear(run, "t2.deploy")
    assert said(run)[:2] == ("failed", "rolled_back")
    assert run.value("finalize")["cancelled"] is True
    assert stage.live() == {"t1": "1", "t2": "1"}
