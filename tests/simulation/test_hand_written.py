"""Hand-written DAGs on the simulated Airflow: what goes back, in which order, and what colour the run has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup

from airflow_multideploy import DeployOperator, finish
from airflow_multideploy.catalog.service import Strategy
from airflow_multideploy.platforms import kinds
from airflow_multideploy.release.ledger import Ledger
from airflow_multideploy.testing.fake import FakePlatform, FakeWorld, Fault, MemoryStore
from tests.simulation.play import CLOCK, IMAGE, installed
from tests.simulation.runs import Run
from tests.simulation.scheduler import SimAirflow, ready


class Stage:
    """One Airflow, one platform, and a DAG that a test wires."""

    def __init__(self) -> None:
        random.seed(0)
        self.airflow = SimAirflow(store=lambda _: MemoryStore(), rng=random.Random(0))
        self.world = FakeWorld(seconds=4.0, clock=CLOCK)
        self.dag = DAG("shop", schedule=None)

    def deploy(self, task_id: str, *, fails: bool = False, **arguments: Any) -> DeployOperator:
        """A target that runs version 1 so far."""
        config = {"platform": "fake", "conn_id": "fake", "timeout": 120, "rollback_timeout": 90, "poll_interval": 10}
        task = DeployOperator(task_id=task_id, config=config, image=IMAGE, version="2", retries=0, **arguments)
        name = f"{task.service_name}/{task.target}"
        self.world.seed(name, f"{IMAGE}:1")
        if fails:
            self.world.faults.append(Fault("deploy", "fails", target=name))
        return task

    def run(self, stop_after: float | None = None) -> Run:
        """Trigger the DAG and wait for its end; perhaps it is marked failed after so many seconds."""
        run = self.airflow.trigger(ready(self.dag), "run1", {})
        if stop_after is not None:
            self.airflow.at(stop_after, lambda: self.airflow.fail_run(run))
        self.airflow.drain()
        return run

    def live(self) -> dict[str, str]:
        """Version by service and target."""
        found = {name: place.current for name, place in self.world.places.items()}
        return {name: now.image.rpartition(":")[2] for name, now in found.items() if now}

    def went_back(self) -> list[str]:
        """Targets in the order in which they were sent back."""
        return [call.target for call in self.world.writes() if call.name == "rollback"]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with installed():
        kinds.kinds()["fake"] = EntryPoint("fake", f"{FakePlatform.__module__}:FakePlatform", kinds.ENTRY_POINT_GROUP)
        kinds.platform_type.cache_clear()
        made = Stage()
        with made.dag:
            yield made


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("dead", [False, True])
def test_deploys_in_task_groups_go_back_in_the_reverse_order_of_their_edges(
    stage: Stage, direct: bool, dead: bool
) -> None:
    """An edge may lead through other tasks; should aggregate_status die, the rollbacks find the order themselves."""
    with TaskGroup("eu"):
        first = stage.deploy("aws")
    with TaskGroup("us"):
        second = stage.deploy("aws")
    last = stage.deploy("Asia_Pacific.v2", fails=True)
    first >> second if direct else first >> EmptyOperator(task_id="look") >> EmptyOperator(task_id="tell") >> second
    second >> EmptyOperator(task_id="rest") >> last
    finish([first, second, last])
    if dead:
        stage.airflow.point = lambda attempt, name: 1 / 0 if attempt.task.name == "aggregate_status" else None
    run = stage.run()
    assert (run.state, run.value("finalize")["status"]) == ("failed", "rolled_back"), run.value("finalize")
    assert stage.went_back() == ["shop/Asia_Pacific.v2", "shop/us.aws", "shop/eu.aws"]
    assert set(stage.live().values()) == {"1"}


def test_a_target_behind_another_task_depends_on_what_is_before_it(stage: Stage) -> None:
    first, second, other = stage.deploy("a", fails=True), stage.deploy("b", trigger_rule="all_done"), stage.deploy("c")
    first >> EmptyOperator(task_id="look", trigger_rule="all_done") >> second
    finish([first, second, other], strategy="dependents")
    assert (stage.run().value("finalize")["status"], stage.went_back()) == (
        "partially_rolled_back",
        ["shop/b", "shop/a"],
    )
    assert stage.live() == {"shop/a": "1", "shop/b": "1", "shop/c": "2"}


@pytest.mark.parametrize("name", ["EU", "1st", "a" * 200])
def test_a_target_that_is_called_like_a_task_goes_back(stage: Stage, name: str) -> None:
    first, second = stage.deploy(name), stage.deploy(f"{name[:198]}.b", fails=True)
    first >> second
    finish([first, second])
    assert stage.run().value("finalize")["status"] == "rolled_back"
    assert stage.went_back() == [f"shop/{second.target}", f"shop/{name}"]


def two(stage: Stage, fails: str = "", strategy: Strategy = "all") -> None:
    """Two services with two targets each; of one, the second target fails."""
    for service in ("shop", "cart"):
        deploys = [
            stage.deploy(f"{service}_{n}", service_name=service, target=f"t{n}", fails=service == fails and n == 2)
            for n in (1, 2)
        ]
        deploys[0] >> deploys[1]
        finish(deploys, strategy=strategy)


@pytest.mark.parametrize(("fails", "state"), [("", "success"), ("shop", "failed"), ("cart", "failed")])
def test_of_two_releases_in_one_run_each_is_judged_for_itself_and_either_fails_the_run(
    stage: Stage, fails: str, state: str
) -> None:
    two(stage, fails)
    run = stage.run()
    ends = {"shop": run.value("finalize")["status"], "cart": run.value("cart.finalize")["status"]}
    assert ends == {service: "rolled_back" if service == fails else "succeeded" for service in ends}
    assert run.state == state
    assert stage.live() == {f"{s}/t{n}": "1" if s == fails else "2" for s in ends for n in (1, 2)}


def test_marking_the_run_failed_takes_both_releases_back(stage: Stage) -> None:
    two(stage, strategy="none")
    run = stage.run(stop_after=8)
    assert run.state == "failed"
    ends = [run.value("finalize"), run.value("cart.finalize")]
    assert [(end["status"], end["cancelled"]) for end in ends] == [("rolled_back", True)] * 2
    assert set(stage.live().values()) == {"1"}


def test_one_release_after_another_is_not_started_when_the_first_is_not_good(stage: Stage) -> None:
    first = finish([stage.deploy("a", service_name="shop", fails=True)])
    second = stage.deploy("b", service_name="cart")
    first >> second
    finish([second])
    run = stage.run()
    assert (run.state, run.value("cart.finalize")["status"]) == ("failed", "not_started")
    assert set(stage.live().values()) == {"1"}


def test_nothing_is_written_in_a_run_that_a_policy_of_the_cluster_may_cut_off(stage: Stage) -> None:
    finish([stage.deploy("a")])
    stage.dag.dagrun_timeout = timedelta(hours=1)
    run = stage.run()
    end = run.value("finalize")
    assert (run.state, end["status"], stage.world.calls) == ("failed", "not_started", [])
    assert "dagrun_timeout: a run that it ends skips its rollbacks" in end["reason"]


def test_two_releases_keep_two_records(stage: Stage) -> None:
    two(stage, "cart")
    stage.run()
    for service, status in (("shop", "succeeded"), ("cart", "rolled_back")):
        book = Ledger(stage.airflow.store(f"{service}/journal"), service)
        assert [record.status for record in book.records()] == [status]
