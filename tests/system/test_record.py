"""What keeps a release's record, and what may decide it, on a real Airflow with its own housekeeping, with people of
lesser roles, and with sources that do not answer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.airflow import LocalAirflow
from tests.system.conftest import DAGS, IMAGE
from tests.system.secrets_backend import FOLDER

pytestmark = [pytest.mark.system, pytest.mark.long]

PLUGIN = """
from typing import ClassVar, Literal
from airflow_multideploy.platforms.onprem.http import Http, HttpConfig

class EdgeConfig(HttpConfig):
    platform: Literal["edge"] = "edge"

class Edge(Http):
    kind: ClassVar[str] = "edge"
    config_type = EdgeConfig
"""
RELEASED = ("typo", "throttled", "plugged")
RESOURCES = (*RELEASED, "gated", "forged", "replayed", "built", "late", "grown", "shrunk", "outlived", "missed")
LAST_HOUR = (datetime.now(UTC) - timedelta(hours=1)).hour


@dataclass
class World:
    """An Airflow whose scheduler cleans up often, the sandbox, and what can go wrong around them."""

    airflow: LocalAirflow
    sandbox: Sandbox
    folder: Path

    @property
    def throttled(self) -> Path:
        return self.folder / "secrets" / "throttled"

    @property
    def plugin(self) -> Path:
        return self.folder / "plugin" / "edge_platform.py"

    def target(self, resource: str, **more: Any) -> dict[str, Any]:
        """A target on the sandbox's HTTP platform."""
        at = {**self.sandbox.stand_ins["http"].target(resource), "conn_id": CONN_IDS["http"], "poll_interval": 1}
        return {**at, **more}

    def put(self, name: str, service: Mapping[str, Any]) -> None:
        """Edit the catalog."""
        key, value = f"multideploy_service_{name}", json.dumps(service)
        self.airflow.api("PATCH", f"/variables/{key}", json={"key": key, "value": value})

    def live(self, resource: str) -> str:
        """Tag that the platform serves."""
        return (self.sandbox.stand_ins["http"].live(resource).image or "").rpartition(":")[2]

    def release(self, service: str, version: str, **conf: Any) -> tuple[str, dict[str, Any], str]:
        """Trigger and wait: (run's state, result document, run id)."""
        self.airflow.wait_for_dag(service)
        run_id = self.airflow.trigger(service, {"version": version, **conf})
        return self.ended(service, run_id)

    def ended(self, service: str, run_id: str) -> tuple[str, dict[str, Any], str]:
        state = self.airflow.finish(service, run_id, timeout=240)
        return state, self.airflow.xcom(service, run_id, "finalize"), run_id

    def state(self, service: str, run_id: str, task_id: str) -> Any:
        return self.airflow.task_instances(service, run_id).get(task_id, {}).get("state")

    def rows(self, service: str) -> dict[str, str]:
        """What Airflow's store keeps for the service."""
        query = "select key, value from asset_state_store s join asset a on a.id = s.asset_id where a.uri = ?"
        with sqlite3.connect(f"file:{self.airflow.home / 'airflow.db'}?mode=ro", uri=True) as database:
            return dict(database.execute(query, (f"multideploy://{service}/journal",)))

    def wait_until(self, what: str, check: Callable[[], object], timeout: float = 90) -> None:
        until = time.monotonic() + timeout
        while not check():
            assert time.monotonic() < until, f"not within {timeout:g} s: {what}"
            time.sleep(0.3)

    def broken(self, service: str) -> bool:
        """Whether the DAG shows the service's error."""
        tags = self.airflow.api("GET", f"/dags/{service}")["tags"]
        return "broken" in [tag["name"] for tag in tags]

    def cleaned_up(self) -> None:
        """Two passes of the scheduler's housekeeping."""
        time.sleep(2 * CLEANUP + 2)

    def as_bob(self, method: str, path: str, **how: Any) -> httpx.Response:
        """A REST call of somebody whose role is ``user``."""
        login = {"username": "bob", "password": json.loads((self.airflow.home / "passwords.json").read_text())["bob"]}
        with httpx.Client(base_url=self.airflow.url, timeout=30, trust_env=False) as client:
            token = client.post("/auth/token", json=login).json()["access_token"]
            return client.request(method, f"/api/v2{path}", headers={"Authorization": f"Bearer {token}"}, **how)


CLEANUP, PARSED = 5, 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("record")
    (home / "secrets").mkdir()
    (home / "secrets" / "throttled").write_text("")
    info = home / "plugin" / "edge_platform-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-platform\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[airflow_multideploy.platforms]\nedge = edge_platform:Edge\n")
    (home / "plugin" / "edge_platform.py").write_text(PLUGIN)
    with Sandbox(seconds=1, folder=home / "sandbox") as sandbox:
        for resource in RESOURCES:
            sandbox.stand_ins["http"].seed(resource, f"{IMAGE}:1.0.0")
        airflow = LocalAirflow(
            home / "home",
            DAGS,
            connections=sandbox.connections(),
            settings={
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": str(PARSED),
                "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": str(CLEANUP),
                "AIRFLOW__SECRETS__BACKEND": "tests.system.secrets_backend.Throttled",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,bob:user",
                "PYTHONPATH": f"{DAGS.parent}:{home / 'plugin'}",
                FOLDER: str(home / "secrets"),
            },
        )
        made = World(airflow, sandbox, home)
        services = catalog(made)
        secret = {"multideploy_services": list(services), "multideploy_defaults": {}}
        secret["multideploy_service_throttled"] = services["throttled"]
        for key, value in secret.items():
            (home / "secrets" / key).write_text(json.dumps(value))
        airflow.variables |= {f"multideploy_service_{name}": each for name, each in services.items()}
        del airflow.variables["multideploy_service_throttled"]
        with airflow:
            yield made


def catalog(world: World) -> dict[str, Any]:
    def service(resource: str, *targets: str, **more: Any) -> dict[str, Any]:
        on = {name: world.target(resource) for name in targets or ("dc1",)}
        return {"artifact": {"image": IMAGE}, "targets": on, **more}

    services = {name: service(name) for name in ("typo", "throttled", "late", "grown", "shrunk", "outlived")}
    services["plugged"] = service("plugged")
    services["plugged"]["targets"]["dc1"]["platform"] = "edge"
    gate = {"users": ["admin"], "timeout": 600}
    services["gated"] = service("gated", approval=gate)
    services["forged"] = service("forged", approval=gate)
    services["replayed"] = service("replayed", approval=gate)
    for name in ("shrunk", "outlived"):
        services[name]["targets"]["dc2"] = {**world.target("typo"), "depends_on": ["dc1"]}
    services["missed"] = service("missed", schedule=f"0 {LAST_HOUR} * * *", version="9.0.0")
    return services


# --- what is kept outlives what people and sources do -----------------------------------------------------------------


def test_the_record_of_a_service_outlives_a_typo_a_throttled_read_and_a_broken_plugin(world: World) -> None:
    for name in RELEASED:
        assert world.release(name, "2.0.0")[0] == "success"
        world.sandbox.world.add_fault({"platform": "http", "outcome": "fails", "resource": name})
        assert world.release(name, "3.0.0")[1]["status"] == "rolled_back"
    kept = {name: world.rows(name) for name in RELEASED}
    assert all({"dc1.journal", "dc1.bad", "ledger"} <= rows.keys() for rows in kept.values())
    right = {"artifact": {"image": IMAGE}, "targets": {"dc1": world.target("typo")}}
    world.put("typo", {**right, "sucess": {"policy": "all"}})
    world.throttled.write_text("multideploy_service_throttled")
    world.plugin.write_text("raise ImportError('no edge today')\n")
    for name in RELEASED:
        world.wait_until(f"{name} is broken", lambda name=name: world.broken(name))
    world.cleaned_up()
    assert {name: world.rows(name) for name in RELEASED} == kept
    world.put("typo", right)
    world.throttled.write_text("")
    world.plugin.write_text(PLUGIN)
    for name in RELEASED:
        world.wait_until(f"{name} is mended", lambda name=name: not world.broken(name))
    world.cleaned_up()
    assert {name: world.rows(name) for name in RELEASED} == kept
    for name in RELEASED:
        _, result, _ = world.release(name, "3.0.0")
        assert result["status"] == "not_started"
        assert "version 3.0.0 was rolled back here before" in result["reason"], "known as bad still"


# --- what cannot be read is not absent --------------------------------------------------------------------------------


def test_a_freeze_list_that_cannot_be_read_freezes(world: World) -> None:
    world.throttled.write_text("multideploy_freezes")
    try:
        state, result, _ = world.release("late", "2.0.0")
    finally:
        world.throttled.write_text("")
    assert (state, result["status"], world.live("late")) == ("failed", "not_started", "1.0.0")
    assert "Variable multideploy_freezes: cannot be read" in result["reason"]
    assert world.release("late", "2.0.0")[0] == "success"


@pytest.mark.parametrize("source", ["multideploy_services", "multideploy_defaults"])
def test_a_catalog_that_cannot_be_read_is_said_and_not_taken_for_an_empty_one(world: World, source: str) -> None:
    world.throttled.write_text(source)
    try:

        def said() -> str:
            found = world.airflow.api("GET", "/dags/multideploy_catalog", ok=(200, 404))
            return str(found.get("description") or "")

        world.wait_until("the catalog's error shows", lambda: f"Variable {source}: cannot be read" in said())
    finally:
        world.throttled.write_text("")
    world.wait_until("the services are there", lambda: not world.broken("late"))
    assert world.release("late", "2.0.1")[0] == "success"


# --- a catalog that is edited at the wrong moment ---------------------------------------------------------------------


def test_a_run_that_starts_right_after_an_edit_has_the_tasks_of_the_edited_catalog(world: World) -> None:
    assert world.release("grown", "2.0.0")[0] == "success"
    both = {name: world.target(resource) for name, resource in (("dc1", "grown"), ("dc2", "typo"))}
    world.put("grown", {"artifact": {"image": IMAGE}, "targets": both})
    state, result, run_id = world.release("grown", "2.1.0")
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert {each["target"]: each["phase"] for each in result["results"]} == dict.fromkeys(both, "succeeded")
    assert world.state("grown", run_id, "dc2.deploy") == "success"


def under_way(world: World, service: str, version: str) -> str:
    """A run whose first target is being deployed."""
    world.sandbox.world.add_fault({"platform": "http", "outcome": "slow", "seconds": 35, "resource": service})
    world.airflow.wait_for_dag(service)
    run_id = world.airflow.trigger(service, {"version": version})
    world.wait_until("it deploys", lambda: world.state(service, run_id, "dc1.deploy") in ("running", "deferred"))
    return run_id


def without_dc2(world: World, service: str) -> None:
    world.put(service, {"artifact": {"image": IMAGE}, "targets": {"dc1": world.target(service)}})
    world.wait_until(
        "the edit is parsed",
        lambda: "dc2.deploy" not in [t["task_id"] for t in world.airflow.api("GET", f"/dags/{service}/tasks")["tasks"]],
    )


def test_the_frozen_config_lives_as_long_as_its_run(world: World) -> None:
    run_id = under_way(world, "outlived", "2.0.0")
    key = "multideploy_frozen_outlived"
    frozen = json.loads(world.airflow.api("GET", f"/variables/{key}")["value"])
    frozen["at"] = time.time() - 8 * 86_400  # a freeze of two weeks, or an approval that took its time
    world.airflow.api("PATCH", f"/variables/{key}", json={"key": key, "value": json.dumps(frozen)})
    one = {"artifact": {"image": IMAGE}, "targets": {"dc1": world.target("outlived")}}
    world.put("outlived", {**one, "sucess": {}})
    time.sleep(PARSED + 4)
    assert not world.broken("outlived"), "its run is in flight"
    world.put("outlived", one)
    state, result, _ = world.ended("outlived", run_id)
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert {each["target"]: each["phase"] for each in result["results"]} == {"dc1": "succeeded", "dc2": "succeeded"}
    assert world.airflow.api("GET", f"/variables/{key}", ok=(404,))["detail"], "thawed at its end"


def test_a_selected_target_that_lost_its_task_is_unknown(world: World) -> None:
    run_id = under_way(world, "shrunk", "2.0.0")
    world.airflow.api("DELETE", "/variables/multideploy_frozen_shrunk")
    without_dc2(world, "shrunk")
    state, result, _ = world.ended("shrunk", run_id)
    phases = {each["target"]: each["phase"] for each in result["results"]}
    assert (state, result["status"], phases["dc2"]) == ("failed", "unknown", "unknown"), result
    assert "dc2: unknown (the run has no task for it any more" in result["reason"]


def test_a_backfill_is_refused(world: World) -> None:
    world.airflow.wait_for_dag("missed")
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    body = {"dag_id": "missed", "from_date": (day - timedelta(days=4)).isoformat(), "to_date": day.isoformat()}
    with pytest.raises(RuntimeError, match="does not allow backfill runs"):
        world.airflow.api("POST", "/backfills", json=body)


def test_a_missed_tick_releases_nothing(world: World) -> None:
    world.airflow.wait_for_dag("missed")  # an hour or so after its tick
    time.sleep(20)
    assert world.airflow.api("GET", "/dags/missed/dagRuns")["dag_runs"] == []
    due = world.airflow.api("GET", "/dags/missed")["next_dagrun_run_after"]
    assert datetime.fromisoformat(due) > datetime.now(UTC)
    assert world.live("missed") == "1.0.0"


# --- what a lesser role writes decides nothing ------------------------------------------------------------------------


def waiting(world: World, service: str) -> tuple[str, str]:
    """A run that waits for approval, and the path of its tasks."""
    world.airflow.wait_for_dag(service)
    run_id = world.airflow.trigger(service, {"version": "2.0.0"})
    world.wait_until("it asks", lambda: world.state(service, run_id, "approve") == "awaiting_input")
    return run_id, f"/dags/{service}/dagRuns/{run_id}/taskInstances"


def test_a_plan_and_an_approval_that_somebody_wrote_into_xcom_run_nothing(world: World) -> None:
    run_id, tasks = waiting(world, "forged")
    proof = world.folder / "bob-was-here"
    plan = world.airflow.xcom("forged", run_id, "plan")
    command = ["touch", str(proof)]
    plan["service"]["targets"]["dc1"] = {"platform": "command", "conn_id": "dc1", "deploy": command, "status": command}
    assert world.as_bob("PATCH", f"{tasks}/plan/xcomEntries/return_value", json={"value": plan}).status_code == 200
    yes = [{"gate": "approve", "choice": "approve", "by": "alice", "at": time.time(), "reason": ""}]
    assert (
        world.as_bob("POST", f"{tasks}/approve/xcomEntries", json={"key": "approval", "value": yes}).status_code == 201
    )
    assert world.as_bob("PATCH", f"{tasks}/approve", json={"new_state": "success"}).status_code == 200
    state, result, _ = world.ended("forged", run_id)
    assert not proof.exists()
    assert (state, result["status"], world.live("forged")) == ("failed", "not_started", "1.0.0"), result
    log = "".join(
        path.read_text() for path in (world.airflow.home / "logs").glob(f"*/run_id={run_id}/task_id=dc1.deploy/*")
    )
    assert "the plan in XCom of task 'plan' is not the one that it froze: somebody changed it" in log
    assert "alice" not in world.rows("forged")["ledger." + release_id(world, "forged")]


def release_id(world: World, service: str) -> str:
    found: str = json.loads(world.rows(service)["ledger"])["releases"][-1]["release_id"]
    return found


def test_an_approval_in_the_task_state_store_is_none(world: World) -> None:
    world.airflow.wait_for_dag("gated")
    run_id = world.airflow.trigger("gated", {"version": "2.0.0"})
    tasks = f"/dags/gated/dagRuns/{run_id}/taskInstances"
    yes = [{"gate": "approve", "choice": "approve", "by": "admin", "at": time.time(), "reason": ""}]
    put = world.as_bob("PUT", f"{tasks}/approve/state-store/approval-0", json={"value": yes})
    assert put.status_code == 204, put.text
    world.wait_until("it asks all the same", lambda: world.state("gated", run_id, "approve") == "awaiting_input", 30)
    approve(world, tasks)
    state, result, _ = world.ended("gated", run_id)
    assert (state, result["status"], world.live("gated")) == ("success", "succeeded", "2.0.0"), result
    (approval,) = json.loads(world.rows("gated")["ledger." + release_id(world, "gated")])["approvals"]
    assert (approval["by"], approval["reason"]) == ("admin", "go")


def approve(world: World, tasks: str) -> None:
    """Airflow takes a task for dead that goes on before the scheduler has seen that it parked, and asks anew."""
    parked = time.time() + 2

    def looked() -> bool:
        beat = world.airflow.api("GET", "/monitor/health")["scheduler"]["latest_scheduler_heartbeat"]
        return datetime.fromisoformat(beat).timestamp() > parked

    world.wait_until("the scheduler has looked", looked)
    answer = {"chosen_options": ["approve"], "params_input": {"comment": "go"}}
    world.airflow.api("PATCH", f"{tasks}/approve/-1/hitlDetails", json=answer)


def test_an_approval_from_before_a_clear_is_none(world: World) -> None:
    run_id, tasks = waiting(world, "replayed")
    approve(world, tasks)
    assert world.ended("replayed", run_id)[0] == "success"
    old = world.airflow.xcom("replayed", run_id, "approve", key="approval")
    world.sandbox.stand_ins["http"].meddle("replayed", f"{IMAGE}:1.0.0")
    clear = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, "reset_dag_runs": True}
    cleared = {**clear, "include_downstream": True, "task_ids": ["plan"]}
    world.airflow.api("POST", "/dags/replayed/clearTaskInstances", json=cleared)
    world.wait_until("it asks again", lambda: world.state("replayed", run_id, "approve") == "awaiting_input")
    assert world.as_bob("POST", f"{tasks}/approve/xcomEntries", json={"key": "approval", "value": old}).is_success
    assert world.as_bob("PATCH", f"{tasks}/approve", json={"new_state": "success"}).is_success
    state, result, _ = world.ended("replayed", run_id)
    assert (state, result["status"], world.live("replayed")) == ("failed", "not_started", "1.0.0"), result
