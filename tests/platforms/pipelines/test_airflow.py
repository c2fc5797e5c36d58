from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.pipelines import AirflowDeployOperator
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.platforms.pipelines.airflow import Airflow
from airflow_multideploy.release.contract import Release, State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, SECRET, PlatformContract
from tests.stand_ins.airflow import AirflowStandIn
from tests.stand_ins.openapi import Document, Exchange

BEFORE = Release(service="shop", version="1.0.0", image=OLD, release_id="r00000000")


class TestAirflow(PlatformContract):
    rollout_seconds = 0.15

    def make_stand_in(self, world: World) -> StandIn:
        return AirflowStandIn(world)

    def test_a_run_holds_what_the_conf_says(self, stand_in: AirflowStandIn) -> None:
        conf = {"image": "${image}", "ids": {"release": ["${release_id}", 3]}, "why": "${reason}", "price": "$$1"}
        platform = self.platform(stand_in, conf=conf)
        platform.deploy(self.release(), platform.snapshot())
        run = stand_in.pipelines.all()[-1]
        assert run.key == "r0a1b2c3d4.t1"
        assert run.parameters == {"image": NEW, "ids": {"release": ["r0a1b2c3d4", 3]}, "why": "", "price": "$1"}
        assert run.extra["note"] == "Release 1.1.0 of shop/t1"

    def test_a_failure_is_told_with_task_and_error(self, stand_in: AirflowStandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault("airflow", "fails", reason="disk full"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.reason.endswith("failed: task deploy: RuntimeError: disk full")

    @pytest.mark.parametrize("answer", ["400", "500", "malformed"])
    def test_a_log_that_cannot_be_read_does_not_hide_the_task(
        self, stand_in: AirflowStandIn, world: World, answer: Any
    ) -> None:
        world.rollout_faults.append(RolloutFault("airflow", "fails"))
        world.call_faults.append(CallFault("airflow", answer, operation="/logs/", times=9))
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").reason.endswith("failed: task deploy")

    def test_one_login_serves_many_calls(self, stand_in: AirflowStandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        assert [call.operation for call in world.calls].count("login") == 1
        stand_in.tokens.clear()  # it expired
        assert self.look(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert [call.operation for call in world.calls].count("login") == 2

    def test_a_password_alone_is_the_token(self, stand_in: AirflowStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in.tokens.add("made-by-hand-0001")
        connection = {"conn_type": "http", "host": stand_in.url, "password": "made-by-hand-0001"}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        assert self.platform(stand_in).snapshot().image == OLD

    @pytest.mark.parametrize("dag_id", ["deploy_shop", "remove_shop"])
    def test_a_paused_dag_is_refused_before_any_write(self, stand_in: AirflowStandIn, dag_id: str) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        stand_in.paused.add(dag_id)
        with pytest.raises(PlatformError, match=f"{dag_id!r} is paused") as caught:
            platform.snapshot()
        assert not caught.value.retryable
        if dag_id == "deploy_shop":
            with pytest.raises(PlatformError, match="is paused"):
                platform.deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    def test_a_dag_that_does_not_exist_is_named(self, stand_in: AirflowStandIn) -> None:
        with pytest.raises(PlatformError, match="Dag with dag_id: 'nowhere' not found") as caught:
            self.platform(stand_in, dag_id="nowhere").snapshot()
        assert not caught.value.retryable

    def test_another_dag_goes_back(self, stand_in: AirflowStandIn, mode: str) -> None:
        platform = self.platform(stand_in, rollback_dag_id="rollback_shop")
        snapshot = platform.snapshot()
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, mode)
        back = platform.rollback(self.release(), snapshot, handle)
        assert self.wait(platform, back, mode).state is State.HEALTHY
        last = stand_in.pipelines.all()[-1]
        assert (last.pipeline, last.key, last.parameters) == ("rollback_shop", "r0a1b2c3d4-back.t1", {"image": OLD})
        assert platform.snapshot().image == OLD, "what the rollback DAG did is what is live"

    def test_a_run_that_hangs_is_stopped_before_the_way_back(self, stand_in: AirflowStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("airflow", "hangs"))
        snapshot, handle, release = self.start(stand_in)
        self.platform(stand_in).rollback(release, snapshot, handle)
        writes = [call.operation for call in world.calls_of("airflow", writes=True)]
        assert writes == [
            "POST /api/v2/dags/deploy_shop/dagRuns",
            "PATCH /api/v2/dags/deploy_shop/dagRuns/r0a1b2c3d4.t1",
            "POST /api/v2/dags/deploy_shop/dagRuns",
        ]

    def test_a_snapshot_waits_for_a_run_that_is_under_way(self, stand_in: AirflowStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("airflow", "hangs"))
        stand_in.pipelines.start("deploy_shop", "scheduled-1", {"image": OTHER})
        with pytest.raises(PlatformError, match="scheduled-1 of deploy_shop is still under way") as caught:
            self.platform(stand_in).snapshot()
        assert caught.value.retryable

    def test_somebody_elses_run_under_way_is_drift(self, stand_in: AirflowStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.rollout_faults.append(RolloutFault("airflow", "hangs"))
        stand_in.pipelines.start("deploy_shop", "manual-9", {"image": OTHER})
        assert self.platform(stand_in).observe(handle).state is State.PROGRESSING
        with pytest.raises(Drift, match="manual-9"):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_a_way_back_that_keeps_failing_is_gone_anew_each_time(self, stand_in: AirflowStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.rollout_faults.append(RolloutFault("airflow", "fails", times=2))
        for _ in range(2):
            back = self.platform(stand_in).rollback(release, snapshot, handle)
            assert self.wait(self.platform(stand_in), back, "sync").state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, "sync")
        names = [f"r0a1b2c3d4{step}.t1" for step in ("", "-back", "-back2", "-back3")]
        assert stand_in.revisions(RESOURCE) == names

    def test_a_repeat_in_the_same_run_takes_over_from_the_first(self, stand_in: AirflowStandIn, world: World) -> None:
        """A cleared task: the snapshot stays, the release id gets a number, what hangs is stopped."""
        world.rollout_faults.append(RolloutFault("airflow", "hangs"))
        snapshot, _, _ = self.start(stand_in)
        again = self.release(release_id="r0a1b2c3d4-2")
        handle = self.platform(stand_in).deploy(again, snapshot)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert [run.state for run in stand_in.pipelines.all()] == ["succeeded", "stopped", "succeeded"]
        self.undo(stand_in, again, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_repeat_that_wrote_nothing_takes_the_first_one_back(self, stand_in: AirflowStandIn) -> None:
        snapshot, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, self.release(release_id="r0a1b2c3d4-2"), snapshot, None, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("outcome", [None, "fails"])
    def test_a_write_that_lands_after_the_way_back_is_undone_too(
        self, stand_in: AirflowStandIn, world: World, outcome: Any, mode: str
    ) -> None:
        """Also one that failed: who knows how far it came."""
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        nothing = platform.rollback(self.release(), snapshot, None)
        assert nothing.changed is False
        if outcome:
            world.rollout_faults.append(RolloutFault("airflow", outcome))
        late = platform.deploy(self.release(), snapshot)
        assert self.look(platform, nothing, mode).state is not State.HEALTHY
        self.wait(platform, late, mode)
        assert self.look(platform, nothing, mode).state is State.SUPERSEDED
        self.undo(stand_in, self.release(), snapshot, None, mode)
        assert stand_in.pipelines.all()[-1].parameters == {"image": OLD}

    def test_one_dag_for_several_things(self, stand_in: AirflowStandIn) -> None:
        conf = {"image": "${image}", "app": "shop"}
        stand_in.pipelines.start("deploy_shop", "till-1", {"image": "registry.example.com/till:7", "app": "till"})
        platform = self.platform(stand_in, conf=conf, scope={"app": "shop"})
        snapshot = platform.snapshot()
        assert (snapshot.exists, snapshot.image) == (False, None)
        handle = platform.deploy(self.release(), snapshot)
        assert self.wait(platform, handle, "sync").state is State.HEALTHY
        assert platform.snapshot().image == NEW

    def test_without_history_the_journal_tells(self, stand_in: AirflowStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, conf={"tag": "${version}"})
        snapshot = platform.snapshot(BEFORE)
        assert (snapshot.exists, snapshot.image, snapshot.data["parameters"]) == (True, OLD, {"tag": "1.0.0"})
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, "sync")
        self.wait(platform, platform.rollback(self.release(), snapshot, handle), "sync")
        assert stand_in.pipelines.all()[-1].parameters == {"tag": "1.0.0"}

    def test_conf_that_looks_secret_is_not_kept(self, stand_in: AirflowStandIn) -> None:
        run = stand_in.pipelines.all()[0]
        run.parameters["api_token"] = "hunter2hunter2"
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        assert "hunter2" not in snapshot.model_dump_json()
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, "sync")
        platform.rollback(self.release(), snapshot, handle)
        assert stand_in.pipelines.all()[-1].parameters == {"image": OLD, "api_token": "hunter2hunter2"}
        stand_in.pipelines.runs.remove(run)
        stand_in.pipelines.runs.pop()
        with pytest.raises(PlatformError, match="look like secrets"):
            platform.rollback(self.release(), snapshot, handle)

    def test_nothing_removes_a_first_ever_release_unless_configured(self, stand_in: AirflowStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, remove_dag_id=None)
        snapshot = platform.snapshot()
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, "sync")
        with pytest.raises(PlatformError, match="first_deploy: leave"):
            platform.rollback(self.release(), snapshot, handle)
        assert stand_in.live(RESOURCE).image == NEW

    def test_what_was_removed_counts_as_never_deployed(self, stand_in: AirflowStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert self.platform(stand_in).snapshot().exists is False
        snapshot, handle, _ = self.start(stand_in, self.release(release_id="r2222222222"))
        assert handle.changed, "the run that removed it was given the same image"
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY

    def test_console(self, stand_in: AirflowStandIn) -> None:
        platform = self.platform(stand_in, console="https://airflow.example.com/")
        assert platform.console_url() == "https://airflow.example.com/dags/deploy_shop"
        handle = platform.deploy(self.release(), platform.snapshot())
        assert platform.console_url(handle) == "https://airflow.example.com/dags/deploy_shop/runs/r0a1b2c3d4.t1"
        assert self.platform(stand_in).console_url() is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conf": {"image": "fixed"}}, "every release would be the same run"),
        ({"conf": {"image": "$(image)"}}, "lone \\$"),
        ({"conf": {"images": ["${imagge}"]}}, "unknown imagge"),
        ({"remove_dag_id": "deploy_shop"}, "cannot remove"),
        ({"console": "airflow.example.com"}, "console"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, Any], words: str) -> None:
    config = {"platform": "airflow", "conn_id": "c", "dag_id": "deploy_shop", **change}
    with pytest.raises(SpecError, match=words):
        adapter(config, service="shop", target="t1")


def test_operator() -> None:
    operator = AirflowDeployOperator(task_id="legacy", conn_id="c", dag_id="deploy_shop", scope={"app": "shop"})
    assert operator.config == {
        "platform": "airflow", "conn_id": "c", "dag_id": "deploy_shop", "scope": {"app": "shop"}
    }  # fmt: skip


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> Document:
    """Airflow's own OpenAPI documents, of the API and of its login."""
    import airflow.api_fastapi

    folder = Path(airflow.api_fastapi.__file__).parent
    names = (
        "core_api/openapi/v2-rest-api-generated.yaml",
        "auth/managers/simple/openapi/v2-simple-auth-manager-generated.yaml",
    )
    api, login = (yaml.load((folder / name).read_text(), Loader=yaml.CSafeLoader) for name in names)
    # As the server's own validation has it: a DAG's name in a path is a text.
    paths = {**api["paths"], "/auth/token": login["paths"]["/auth/token"]}
    schemas = {**login["components"]["schemas"], **api["components"]["schemas"]}
    return Document({"paths": paths, "components": {"schemas": schemas}})


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    """What passes in a deploy, a failing deploy, a stopped one and each one's rollback."""
    world = World(seconds=0.1)
    stand_in = AirflowStandIn(world, secret=SECRET)
    stand_in.start()
    stand_in.seed(RESOURCE, OLD)
    suite, platform = TestAirflow(), adapter({**stand_in.target(RESOURCE), "conn_id": "c"}, service="shop", target="t1")
    assert isinstance(platform, Airflow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_C", json.dumps(stand_in.connection()))
        for outcome in (None, "fails", "hangs"):
            if outcome:
                world.rollout_faults.append(RolloutFault("airflow", outcome))  # type: ignore[arg-type]
            release = suite.release(release_id=f"r{outcome}".lower())
            snapshot = platform.snapshot()
            handle = platform.deploy(release, snapshot)
            again = platform._submit("deploy_shop", str(handle.data["key"]), {}, release)
            assert platform._run(again).id == handle.revision
            if outcome != "hangs":
                suite.wait(platform, handle, "sync")
            back = platform.rollback(release, snapshot, handle)
            assert suite.wait(platform, back, "async").state is State.HEALTHY
    stand_in.stop()
    return stand_in.recorder.exchanges


def test_all_that_passes_is_what_airflow_documents(document: Document, exchanges: list[Exchange]) -> None:
    assert {document.check(exchange) for exchange in exchanges} == {
        "create_token", "get_dag", "get_dag_runs", "trigger_dag_run", "get_dag_run", "patch_dag_run",
        "get_task_instances", "get_log",
    }  # fmt: skip
    assert {exchange.status for exchange in exchanges} >= {200, 201, 404, 409}


@pytest.mark.parametrize(
    ("operation", "spoil"),
    [
        ("trigger_dag_run", lambda e: setattr(e, "body", e.body.replace(b"dag_run_id", b"run_id"))),
        ("trigger_dag_run", lambda e: setattr(e, "body", b'{"dag_run_id": "r1"}')),
        ("trigger_dag_run", lambda e: setattr(e, "status", 202)),
        ("get_dag_run", lambda e: setattr(e, "answer", e.answer.replace(b'"state":"', b'"state":"un'))),
        ("get_dag_run", lambda e: setattr(e, "answer", e.answer.replace(b"queued_at", b"at"))),
        ("get_dag_runs", lambda e: e.query.append(("order", "id"))),
        ("get_dag_runs", lambda e: e.query.append(("limit", "many"))),
        ("patch_dag_run", lambda e: setattr(e, "body", b'{"state": "stopped"}')),
        ("create_token", lambda e: setattr(e, "answer", b'{"token": "t"}')),
    ],
)
def test_the_checker_refuses_what_does_not_fit(
    document: Document, exchanges: list[Exchange], operation: str, spoil: Any
) -> None:
    found = next(e for e in exchanges if e.status < 300 and document.check(e) == operation)
    exchange = copy.deepcopy(found)
    spoil(exchange)
    with pytest.raises(ValidationError):
        document.check(exchange)
