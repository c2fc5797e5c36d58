"""What the world around a release does to it, told one by one: people write into XCom, sources do not answer, the
catalog is edited in mid-run, somebody else's run is in flight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_multideploy.release.plan import release_id
from tests.simulation import play as play_
from tests.simulation.play import SERVICE
from tests.simulation.runs import Attempt, Run
from tests.simulation.schedules import Trouble
from tests.simulation.test_stories import Stage, said

FREEZES, FROZEN = "multideploy_freezes", f"multideploy_frozen_{SERVICE}"


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with play_.installed():
        yield


def when(stage: Stage, task: str, happens: Callable[[Run], object], point: str = "start") -> None:
    """Let it happen when the task comes there for the first time."""
    seen: list[str] = []

    def at(attempt: Attempt, name: str) -> None:
        if (attempt.task.name, name) == (task, point) and not seen:
            seen.append(name)
            happens(attempt.task.run)
        stage.story.point(attempt, name)

    stage.airflow.point = at


def left(run: Run, task: str, value: Any, key: str = "return_value") -> None:
    """Somebody writes into XCom."""
    run.tasks[task].xcom[key] = json.dumps(value)


def forged(run: Run) -> None:
    plan = run.value("plan")
    plan["service"]["targets"]["t1"]["conn_id"] = "somebody-elses"
    left(run, "plan", plan)


# --- what others write into XCom --------------------------------------------------------------------------------------


def test_a_plan_that_somebody_wrote_into_xcom_is_refused_by_name() -> None:
    stage = Stage("two")
    when(stage, "t1.deploy", forged)
    run = stage.run("run1", "2")
    state, status, reasons = said(run)
    assert (state, status, stage.live()) == ("failed", "not_started", {"t1": "1", "t2": "1"})
    assert "the plan in XCom of task 'plan' is not the one that it froze: somebody changed it" in reasons["t1"]


def test_a_plan_that_only_xcom_has_is_refused() -> None:
    """Such as one that was put there before ``plan`` was marked as success by hand."""
    stage = Stage("one")

    def unfrozen(run: Run) -> None:
        stage.airflow.store(f"{SERVICE}/journal").delete(f"plan.{release_id(SERVICE, 'run1')}")

    when(stage, "t1.deploy", unfrozen)
    run = stage.run("run1", "2")
    assert "somebody changed it" in said(run)[2]["t1"]
    assert stage.live() == {"t1": "1"}


def test_a_dry_run_stays_one_whatever_xcom_says() -> None:
    stage = Stage("one")

    def real(run: Run) -> None:
        left(run, "plan", {**run.value("plan"), "dry_run": False})

    when(stage, "t1.deploy", real)
    run = stage.run("run1", "2", dry_run=True)
    assert run.tasks["t1.deploy"].state == "failed"
    assert stage.live() == {"t1": "1"}


def test_the_tasks_after_the_deploys_go_by_the_record() -> None:
    """Forged to be met by one target, the release would be green."""
    stage = Stage("two", deploys=("ok", "fails"))

    def lenient(run: Run) -> None:
        plan = run.value("plan")
        plan["service"]["success"]["policy"] = {"at_least": 1}
        left(run, "plan", plan)

    when(stage, "aggregate_status", lenient)
    run = stage.run("run1", "2")
    assert said(run)[:2] == ("failed", "rolled_back")
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_a_result_that_only_xcom_has_is_not_believed() -> None:
    stage = Stage("two", troubles=(Trouble("t2.deploy", "start", nth=0),))
    good = {"target": "t2", "phase": "succeeded", "deployed": "succeeded", "touched": True}
    when(stage, "aggregate_status", lambda run: left(run, "t2.deploy", good, "rollout"))
    run = stage.run("run1", "2")
    state, status, reasons = said(run)
    assert (state, status) == ("failed", "unknown")
    assert reasons["t2"] == "t2.deploy says so, and the record does not"


@pytest.mark.parametrize("verdict", [{"met": True}, {"restore": []}])
def test_a_verdict_that_somebody_wrote_into_xcom_keeps_nothing_from_going_back(verdict: dict[str, Any]) -> None:
    stage = Stage("two", deploys=("ok", "fails"))

    def forge(run: Run) -> None:
        spoilt = len(verdict) == 1 and "met" in verdict
        left(run, "aggregate_status", verdict if spoilt else {**run.value("aggregate_status"), **verdict})

    when(stage, "rollback.t1", forge)
    run = stage.run("run1", "2")
    assert said(run)[:2] == ("failed", "rolled_back")
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_a_target_that_only_xcom_calls_skipped_counts() -> None:
    stage = Stage("chain2", deploys=("fails", "ok"), policy="critical", marks=(False, True))

    def skip(run: Run) -> None:
        result = {"target": "t2", "phase": "skipped", "deployed": "skipped"}
        left(run, "t2.deploy", result, "rollout")

    when(stage, "aggregate_status", skip)
    run = stage.run("run1", "2")
    state, _, reasons = said(run)
    assert state == "failed"
    assert reasons["t2"] == "waits for t1 succeeded, which is failed"


def test_a_run_that_is_cleared_and_refused_this_time_is_not_green_for_what_it_once_did() -> None:
    stage = Stage("two")
    run = stage.run("run1", "2")
    stage.story.unreadable.add(FREEZES)
    stage.clear(run, "plan")
    document = run.value("finalize")
    assert (run.state, document["status"], document["restore"]) == ("failed", "not_started", [])
    assert stage.live() == {"t1": "2", "t2": "2"}, "and nothing of it goes back"


# --- sources that do not answer ---------------------------------------------------------------------------------------


def test_freezes_that_cannot_be_read_hold_a_release_back() -> None:
    stage = Stage("two")
    stage.story.unreadable.add(FREEZES)
    run = stage.run("run1", "2")
    document = run.value("finalize")
    assert (run.state, document["status"]) == ("failed", "not_started")
    assert f"Variable {FREEZES}: cannot be read" in document["reason"]
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_freezes_that_can_no_longer_be_read_hold_the_first_write_back() -> None:
    stage = Stage("two")
    when(stage, "t1.deploy", lambda run: stage.story.unreadable.add(FREEZES))
    run = stage.run("run1", "2")
    assert run.state == "failed"
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_a_rollback_asks_no_freeze() -> None:
    stage = Stage("one")
    stage.run("run0", "1b")
    stage.run("run1", "2")
    stage.story.unreadable.add(FREEZES)
    run = stage.run("run2", "1b", rollback=True, reason="INC-1")
    assert said(run)[:2] == ("success", "succeeded")
    assert stage.live() == {"t1": "1b"}


# --- the catalog, and other runs --------------------------------------------------------------------------------------


def of_another_catalog(stage: Stage, *, parsed_after: float) -> Run:
    """A run without the tasks of ``t2``, which has just come into the catalog, until the DAG processor has read it."""
    run = stage.airflow.trigger(stage.dag(), "run1", {"version": "2", "targets": list(stage.schedule.targets)})
    missing = {name: run.tasks.pop(name) for name in ("t2.deploy", "rollback.t2")}
    stage.airflow.at(parsed_after, lambda: stage.airflow.parsed(run, missing))
    stage.airflow.drain()
    return run


def test_a_run_waits_for_the_tasks_of_the_catalog_that_it_is_planned_by() -> None:
    stage = Stage("two")
    run = of_another_catalog(stage, parsed_after=40)
    assert said(run)[:2] == ("success", "succeeded")
    assert stage.live() == {"t1": "2", "t2": "2"}


def test_a_run_whose_tasks_stay_those_of_another_catalog_is_refused() -> None:
    stage = Stage("two")
    run = of_another_catalog(stage, parsed_after=1000)
    document = run.value("finalize")
    assert document["status"] == "not_started"
    assert (
        "this run still has the tasks of the one before (they differ in rollback.t2, t2.deploy)" in document["reason"]
    )
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_a_deploy_that_airflow_starts_before_what_it_depends_on_waits_for_it() -> None:
    """By a catalog that had no such edge yet: the tasks are the same, so the plan sees no difference."""
    stage = Stage("chain2")

    def started(run: Run) -> None:
        run.tasks["t2.deploy"].state = "queued"
        stage.airflow.at(0.5, lambda: stage.airflow._start(run.tasks["t2.deploy"]))

    when(stage, "t1.deploy", started)
    run = stage.run("run1", "2")
    assert said(run)[:2] == ("success", "succeeded")
    writes = [step.target for step in stage.story.steps if step.what == "deploy:before"]
    assert writes == ["t1", "t2"]


def test_a_deploy_does_not_wait_for_ever_for_one_that_does_not_start() -> None:
    """It may wait for the slot of a lock that this one holds."""
    stage = Stage("chain2")

    def held(run: Run) -> None:
        first, second = run.tasks["t1.deploy"], run.tasks["t2.deploy"]
        first.state, second.state = "scheduled", "queued"
        stage.airflow.at(5, lambda: stage.airflow._start(second))
        stage.airflow.at(900, lambda: (stage.airflow._set(first, "failed"), stage.airflow._schedule(run)))

    when(stage, "plan", held)
    run = stage.run("run1", "2")
    assert said(run)[2]["t2"].startswith("waits for t1, which Airflow has not started")
    assert stage.live() == {"t1": "1", "t2": "1"}


def test_a_selected_target_whose_task_was_removed_is_unknown() -> None:
    stage = Stage("chain2")

    def removed(run: Run) -> None:
        run.tasks["t2.deploy"].state = run.tasks["rollback.t2"].state = "removed"

    when(stage, "t1.deploy", removed)
    run = stage.run("run1", "2")
    state, status, reasons = said(run)
    assert (state, status) == ("failed", "unknown")
    assert reasons["t2"].startswith("the run has no task for it any more")


def test_a_run_thaws_its_own_config_only() -> None:
    stage = Stage("one")
    other = json.dumps({"service": {}, "run_id": "run9"})
    when(stage, "finalize", lambda run: stage.story.variables.update({FROZEN: other}))
    stage.run("run1", "2")
    assert stage.story.variables[FROZEN] == other
    stage.run("run2", "3")
    assert FROZEN not in stage.story.variables, "it was a leftover: no run of that name is under way"


def test_a_release_in_which_every_target_is_skipped_did_not_start() -> None:
    stage = Stage("chain2")
    first = stage.service.targets["t1"].model_copy(update={"when": 'params.version == "9"'})
    stage.service = stage.service.model_copy(update={"targets": {**stage.service.targets, "t1": first}})
    state, status, reasons = said(stage.run("run1", "2"))
    assert (state, status) == ("failed", "not_started")
    assert reasons == {"t1": 'not when params.version == "9"', "t2": "waits for t1 succeeded, which is skipped"}
