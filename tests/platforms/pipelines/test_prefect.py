from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from jsonschema import ValidationError
from openapi_spec_validator import validate

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.pipelines import PrefectDeployOperator
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.platforms.pipelines.prefect import Prefect
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.airflow import free_port
from airflow_multideploy.sandbox.world import RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.openapi import Document, Exchange
from tests.stand_ins.prefect import PrefectStandIn
from tests.stand_ins.prefect_openapi import DOCUMENT


class TestPrefect(PlatformContract):
    rollout_seconds = 0.15

    def make_stand_in(self, world: World) -> StandIn:
        return PrefectStandIn(world)

    def test_a_run_holds_its_parameters_and_key(self, stand_in: PrefectStandIn) -> None:
        platform = self.platform(stand_in, parameters={"image": "${image}", "tags": ["${version}", 1]})
        handle = platform.deploy(self.release(), platform.snapshot())
        run = stand_in.pipelines.all()[-1]
        assert (run.key, run.extra["name"]) == ("r0a1b2c3d4.t1", "1.1.0 r0a1b2c3d4.t1")
        assert run.parameters == {"replicas": 2, "image": NEW, "tags": ["1.1.0", 1]}
        assert handle.revision is not None
        assert handle.revision.count("-") == 4

    def test_a_failure_is_told_with_message_and_task(self, stand_in: PrefectStandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault("prefect", "fails", reason="disk full"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.reason.endswith(
            "failed: Failed: Flow run encountered an exception: RuntimeError: disk full; task deploy"
        )

    def test_the_way_back_waits_until_the_run_is_cancelled(self, stand_in: PrefectStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("prefect", "hangs"))
        snapshot, handle, release = self.start(stand_in)
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError, match=r"has not ended yet \(Cancelling\)") as caught:
            platform.rollback(release, snapshot, handle)
        assert caught.value.retryable
        platform.rollback(release, snapshot, handle)
        assert [run.state for run in stand_in.pipelines.all()] == ["succeeded", "stopped", "running"]
        sent = [call.operation for call in world.calls_of("prefect", writes=True)]
        assert [name.rpartition("/")[2] for name in sent] == ["create_flow_run", "set_state", "create_flow_run"]

    def test_another_deployment_goes_back(self, stand_in: PrefectStandIn, mode: str) -> None:
        platform = self.platform(stand_in, rollback_deployment="rollback_shop/main")
        snapshot = platform.snapshot()
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, mode)
        back = platform.rollback(self.release(), snapshot, handle)
        assert self.wait(platform, back, mode).state is State.HEALTHY
        last = stand_in.pipelines.all()[-1]
        assert (last.pipeline, last.key, last.parameters["image"]) == ("rollback_shop", "r0a1b2c3d4-back.t1", OLD)

    @pytest.mark.parametrize("key", ["deployment", "rollback_deployment", "remove_deployment"])
    def test_a_deployment_that_does_not_exist_is_named_before_any_write(
        self, stand_in: PrefectStandIn, key: str
    ) -> None:
        with pytest.raises(PlatformError, match="/deploy_shop/nowhere: HTTP 404: Deployment not found") as caught:
            self.platform(stand_in, **{key: "deploy_shop/nowhere"}).snapshot()
        assert not caught.value.retryable

    def test_console(self, stand_in: PrefectStandIn) -> None:
        platform = self.platform(stand_in, console="https://prefect.example.com")
        assert platform.console_url() == "https://prefect.example.com/deployments"
        handle = platform.deploy(self.release(), platform.snapshot())
        assert platform.console_url(handle) == f"https://prefect.example.com/runs/flow-run/{handle.revision}"


def test_a_deployment_has_its_flow_before_it() -> None:
    config = {"platform": "prefect", "conn_id": "c", "deployment": "production"}
    with pytest.raises(SpecError, match=r"targets\.t1\.deployment"):
        adapter(config, service="shop", target="t1")


def test_operator() -> None:
    operator = PrefectDeployOperator(task_id="p", conn_id="c", deployment="f/d", parameters={"tag": "${version}"})
    assert operator.config["parameters"] == {"tag": "${version}"}


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    """What passes in a deploy, a failing deploy, a stopped one and each one's rollback."""
    world = World(seconds=0.1)
    stand_in = PrefectStandIn(world)
    stand_in.start()
    stand_in.seed(RESOURCE, OLD)
    suite = TestPrefect()
    platform = adapter({**stand_in.target(RESOURCE), "conn_id": "contract"}, service="shop", target="t1")
    assert isinstance(platform, Prefect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
        assert platform.rollback(suite.release(release_id="rnothing"), platform.snapshot(), None).changed is False
        for outcome in (None, "fails", "hangs"):
            if outcome:
                world.rollout_faults.append(RolloutFault("prefect", outcome))  # type: ignore[arg-type]
            snapshot, handle, release = suite.start(stand_in, suite.release(release_id=f"r{outcome}".lower()))
            again = platform._submit("deploy_shop/main", str(handle.data["key"]), {}, release)
            assert platform._run(again).id == handle.revision
            if outcome != "hangs":
                suite.wait(platform, handle, "async")
            suite.undo(stand_in, release, snapshot, handle, "sync")
        assert platform._run(platform._find("deploy_shop/main", str(uuid4()))) is None
        seeded = platform._run(platform._find("deploy_shop/main", str(snapshot.data["key"])))
        assert seeded is not None
    stand_in.stop()
    return stand_in.recorder.exchanges


def test_the_document_is_openapi() -> None:
    validate(DOCUMENT)


def test_all_that_passes_is_what_prefect_documents(exchanges: list[Exchange]) -> None:
    document = Document(DOCUMENT)
    assert {document.check(exchange) for exchange in exchanges} == {
        "read_deployment_by_name", "create_flow_run_from_deployment", "read_flow_runs", "read_flow_run",
        "set_flow_run_state", "read_task_runs",
    }  # fmt: skip
    assert {exchange.status for exchange in exchanges} == {200, 201, 404}


@pytest.mark.parametrize(
    ("operation", "spoil"),
    [
        ("create_flow_run_from_deployment", lambda e: setattr(e, "body", e.body.replace(b"idempotency_", b""))),
        ("create_flow_run_from_deployment", lambda e: setattr(e, "answer", e.answer.replace(b'"id":', b'"uid":'))),
        ("read_flow_runs", lambda e: setattr(e, "body", e.body.replace(b"any_", b"any"))),
        ("read_flow_runs", lambda e: setattr(e, "answer", b'{"flow_runs": []}')),
        ("set_flow_run_state", lambda e: setattr(e, "body", e.body.replace(b"CANCELLING", b"CANCEL"))),
        ("set_flow_run_state", lambda e: setattr(e, "answer", e.answer.replace(b"ACCEPT", b"OK"))),
        ("read_deployment_by_name", lambda e: e.query.append(("limit", "1"))),
        ("read_task_runs", lambda e: setattr(e, "answer", e.answer.replace(b"dynamic_key", b"key"))),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchanges: list[Exchange], operation: str, spoil: Any) -> None:
    document = Document(DOCUMENT)
    found = [e for e in exchanges if e.status < 300 and document.check(e) == operation]
    exchange = copy.deepcopy(max(found, key=lambda e: len(e.answer)))
    spoil(exchange)
    with pytest.raises(ValidationError):
        document.check(exchange)


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API address of a real Prefect server: the one that is named, else one that is started where there is Prefect."""
    if given := os.environ.get("MULTIDEPLOY_TEST_PREFECT"):
        yield given.rstrip("/")
        return
    program = shutil.which("prefect")
    if program is None:
        pytest.skip("no Prefect here: set MULTIDEPLOY_TEST_PREFECT to an API address, or put prefect on the PATH")
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    off = dict.fromkeys(("PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_UI_ENABLED"), "false")
    command = [program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with Path(home, "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **off, "PREFECT_HOME": str(home)}, stdout=log, stderr=log
        )
    url, until = f"http://127.0.0.1:{port}/api", time.monotonic() + 180
    try:
        while not _answers(url):
            assert process.poll() is None, "the Prefect server ended"
            assert time.monotonic() < until, "the Prefect server did not start"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


class Hand:
    """What a worker, and people, do on a real server."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=60)
        self.flow = f"deploy-{uuid4().hex[:8]}"
        flow = self._post("/flows/", {"name": self.flow})
        body = {"name": "main", "flow_id": flow["id"], "parameters": {"replicas": 2}}
        self.deployment = self._post("/deployments/", body)["id"]

    def _post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def run(self, image: str) -> str:
        """Somebody's own run that ends well at once."""
        body = {"parameters": {"image": image}, "state": {"type": "PENDING"}}
        run: str = self._post(f"/deployments/{self.deployment}/create_flow_run", body)["id"]
        self.to(run, "RUNNING")
        self.to(run, "COMPLETED")
        return run

    def to(self, run: str | None, state: str, message: str | None = None) -> None:
        """The run gets this state."""
        answer = self._post(f"/flow_runs/{run}/set_state", {"state": {"type": state, "message": message}})
        assert answer["status"] == "ACCEPT", answer

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the deployment."""
        found: list[dict[str, Any]] = self._post("/flow_runs/filter", {"flows": {"name": {"any_": [self.flow]}}})
        return found


@pytest.fixture
def hand(server: str) -> Iterator[Hand]:
    hand = Hand(server)
    with closing(hand.client):
        yield hand


@pytest.fixture
def real(server: str, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> Prefect:
    monkeypatch.setenv("AIRFLOW_CONN_PREFECT", json.dumps({"conn_type": "http", "host": server}))
    config = {"platform": "prefect", "conn_id": "prefect", "deployment": f"{hand.flow}/main"}
    platform = adapter(config, service="shop", target="t1")
    assert isinstance(platform, Prefect)
    return platform


def test_real_deploy_failing_deploy_and_rollback(real: Prefect, hand: Hand) -> None:
    suite, before = TestPrefect(), hand.run(OLD)
    snapshot = real.snapshot()
    assert (snapshot.revision, snapshot.image) == (before, OLD)
    assert snapshot.data["parameters"] == {"replicas": 2, "image": OLD}
    handle = real.deploy(suite.release(), snapshot)
    assert real.deploy(suite.release(), snapshot) == handle.model_copy(update={"data": handle.data})
    assert len(hand.runs()) == 2
    assert real.observe(handle).state is State.PROGRESSING
    hand.to(handle.revision, "RUNNING")
    assert suite.look(real, handle, "async").state is State.PROGRESSING
    hand.to(handle.revision, "FAILED", "Flow run encountered an exception: RuntimeError: disk full")
    assert "RuntimeError: disk full" in real.observe(handle).reason
    back = real.rollback(suite.release(), snapshot, None)
    hand.to(back.revision, "RUNNING")
    hand.to(back.revision, "COMPLETED")
    assert suite.look(real, back, "async").state is State.HEALTHY
    assert real.rollback(suite.release(), snapshot, handle).revision == back.revision
    assert real.snapshot().image == OLD


def test_real_key_finds_the_first_write(real: Prefect, hand: Hand) -> None:
    hand.run(OLD)
    release, key = TestPrefect().release(), "r0a1b2c3d4.t1"
    first, second = (real._run(real._submit(f"{hand.flow}/main", key, {"image": NEW}, release)) for _ in range(2))
    assert first.id == second.id


@pytest.mark.parametrize("started", [False, True])
def test_real_run_under_way_is_cancelled_first(real: Prefect, hand: Hand, started: bool) -> None:
    hand.run(OLD)
    snapshot, release = real.snapshot(), TestPrefect().release()
    handle = real.deploy(release, snapshot)
    if started:
        hand.to(handle.revision, "RUNNING")
        with pytest.raises(PlatformError, match="has not ended yet") as caught:
            real.rollback(release, snapshot, handle)
        assert caught.value.retryable
        hand.to(handle.revision, "CANCELLED")
    back = real.rollback(release, snapshot, handle)
    states = {run["id"]: run["state_type"] for run in hand.runs()}
    assert (states[handle.revision], states[back.revision]) == ("CANCELLED", "SCHEDULED")


def test_real_run_of_somebody_else_is_drift_and_a_later_schedule_is_not(real: Prefect, hand: Hand) -> None:
    hand.run(OLD)
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2999-01-01T00:00:00Z"}}
    hand._post(f"/deployments/{hand.deployment}/create_flow_run", {"parameters": {}, "state": later})
    snapshot, release = real.snapshot(), TestPrefect().release()
    handle = real.deploy(release, snapshot)
    hand.to(handle.revision, "RUNNING")
    hand.to(handle.revision, "COMPLETED")
    assert real.observe(handle).state is State.HEALTHY
    other = hand.run(OTHER)
    seen = real.observe(handle)
    assert (seen.state, seen.revision) == (State.SUPERSEDED, other)
    with pytest.raises(Drift, match="shop/t1"):
        real.rollback(release, snapshot, handle)


def test_real_refusals(real: Prefect, hand: Hand) -> None:
    missing = adapter({**real.config.model_dump(), "deployment": f"{hand.flow}/x"}, service="shop", target="t1")
    with pytest.raises(PlatformError, match="HTTP 404: Deployment not found"):
        missing.snapshot()
    assert real._run(real._find(f"{hand.flow}/main", str(uuid4()))) is None


def test_what_passes_is_what_the_real_server_documents(server: str, exchanges: list[Exchange]) -> None:
    document = httpx.get(f"{server.removesuffix('/api')}/openapi.json", timeout=60).json()
    paths = {f"/api{path}": item for path, item in document["paths"].items()}
    whole = Document({"paths": paths, "components": document["components"]})
    for exchange in exchanges:
        if exchange.status < 300:  # it documents neither 201 nor 404
            whole.check(replace(exchange, status=200))
