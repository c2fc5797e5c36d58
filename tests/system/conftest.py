"""One real Airflow and one sandbox for all system tests of a session."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.release.contract import State  # noqa: F401 - core loads before Airflow
from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.airflow import LocalAirflow, free_port

IMAGE = "registry.example.com/shop"
KINDS = {"aws": "aws_ecs", "azure": "azure_web_app", "gcp": "gcp_cloud_run", "onprem": "http"}
SMOKE = f"http://127.0.0.1:{free_port()}"
"""What the smoke checks of the service ``checked`` ask: a server that its test starts."""
REGISTRY = f"127.0.0.1:{free_port()}"
"""Where the images of the service ``ship`` are: a stand-in that its test starts."""
CANARIES = {kind: f"canary-{kind.replace('_', '-')}-5f1e9c" for kind in KINDS.values()}
DAGS = Path(__file__).parents[2] / "dags"


@dataclass
class Stage:
    """What a system test works with."""

    airflow: LocalAirflow
    sandbox: Sandbox

    def live(self, resource: str) -> dict[str, str | None]:
        """Tag that each platform serves for a resource, from the platforms' own state."""
        return {
            name: (self.sandbox.stand_ins[kind].live(resource).image or "").rpartition(":")[2]
            for name, kind in KINDS.items()
        }

    def writes(self) -> int:
        """How many writing calls all platforms have seen."""
        return sum(len(self.sandbox.world.calls_of(kind, writes=True)) for kind in KINDS.values())

    def release(
        self, service: str, conf: Mapping[str, Any], *, timeout: float = 180
    ) -> tuple[str, dict[str, Any], str]:
        """Trigger over REST and wait: (run's state, result document, run id)."""
        self.airflow.wait_for_dag(service)
        run_id = self.airflow.trigger(service, conf)
        state = self.airflow.finish(service, run_id, timeout=timeout)
        return state, self.airflow.xcom(service, run_id, "finalize"), run_id

    def wait_until(self, what: str, check: Any, timeout: float = 60) -> None:
        """Wait until ``check()`` is true."""
        until = time.monotonic() + timeout
        while not check():
            assert time.monotonic() < until, f"not within {timeout:g} s: {what}"
            time.sleep(0.3)


def targets(sandbox: Sandbox, resource: str, **changes: Any) -> dict[str, Any]:
    """Catalog entries of the four targets on one resource."""
    return {
        name: {**sandbox.stand_ins[kind].target(resource), "conn_id": CONN_IDS[kind], "poll_interval": 1, **changes}
        for name, kind in KINDS.items()
    }


def everywhere(version: str) -> dict[str, str]:
    """What `Stage.live` says when all four serve this version."""
    return dict.fromkeys(KINDS, version)


def secrets_found(stage: Stage) -> list[tuple[str, str]]:
    """Where a platform's secret shows, and whose: in every file of Airflow's home, byte by byte, and in REST pages."""
    time.sleep(1)
    found = []
    for path in stage.airflow.home.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [(path.name, kind) for kind, secret in CANARIES.items() if secret.encode() in content]
    places = ("/variables", "/assets/events", "/dags/~/dagRuns/~/taskInstances", "/dags", "/connections")
    pages = {page: json.dumps(stage.airflow.api("GET", page, params={"limit": 100})) for page in places}
    assert any(IMAGE in text for text in pages.values()), "the pages say nothing at all"
    return found + [(page, kind) for page, text in pages.items() for kind, s in CANARIES.items() if s in text]


def told(sandbox: Sandbox) -> dict[str, Any]:
    """A notifier that writes what happened to a service into a file."""
    arguments = {"path": str(sandbox.folder / "told"), "line": "{{ release.service }} {{ release.event }}"}
    return {"notifier": "tests.system.notifier.FileNotifier", "arguments": arguments}


def in_trouble(sandbox: Sandbox) -> list[dict[str, Any]]:
    """A notifier that raises, one that hangs, one that points nowhere; and one that works."""
    troubled = {"notifier": "tests.system.notifier.Troubled", "events": ["started", "rolled_back"]}
    works = told(sandbox)
    works["arguments"] = {**works["arguments"], "path": str(sandbox.folder / "told-in-trouble")}
    return [
        {**troubled, "arguments": {}},
        {**troubled, "arguments": {"seconds": 30}},
        {**troubled, "notifier": "no.such.Notifier", "arguments": {}},
        works,
    ]


ASKING = ("gated", "overdue", "guided", "unattended")


def asking(sandbox: Sandbox) -> dict[str, Any]:
    """Services that wait for people, each on two targets."""
    arguments = {"path": str(sandbox.folder / "asked"), "line": "{{ release.message }} {{ release.link }}"}
    asked = {"notifier": "tests.system.notifier.FileNotifier", "arguments": arguments, "events": ["approval_needed"]}

    def service(resource: str, **more: Any) -> dict[str, Any]:
        both = {name: target for name, target in targets(sandbox, resource).items() if name in ("aws", "onprem")}
        return {"artifact": {"image": IMAGE}, "targets": both, "notify": [asked], **more}

    services = {
        "gated": service("gated", approval={"users": ["admin"]}),
        "overdue": service("overdue", approval={"timeout": 6, "default": "approve"}),
        "guided": service("guided", rollback={"strategy": "manual"}),
        "unattended": service(
            "unattended", rollback={"strategy": "manual", "timeout": 6, "default": "roll_back_failed"}
        ),
    }
    services["overdue"]["targets"]["onprem"]["approval"] = {"timeout": 6}
    services["guided"]["targets"]["onprem"]["depends_on"] = ["aws"]
    return services


ENVIRONMENTS = ("ship-dev", "ship-staging", "ship-prod")


def promoted(sandbox: Sandbox) -> dict[str, Any]:
    """A service on its way through three environments, and one that waits until it has arrived."""

    def two(resource: str) -> dict[str, Any]:
        return {name: target for name, target in targets(sandbox, resource).items() if name in ("aws", "onprem")}

    environments = {
        "dev": {"targets": two("ship-dev")},
        "staging": {"targets": two("ship-staging"), "promote": {"from": "dev", "bake": 2}},
        "prod": {"targets": two("ship-prod"), "promote": {"from": "staging", "bake": 12}},
    }
    image = {"image": f"{REGISTRY}/ship", "registry_conn_id": "registry"}
    needs = {"ship-prod": {"version": ">=2", "wait": 300}}
    return {
        "ship": {"artifact": image, "environments": environments},
        "after": {"artifact": {"image": IMAGE}, "targets": two("shop"), "requires": needs},
    }


def catalog(sandbox: Sandbox) -> dict[str, Any]:
    """Fifty services: the ones the tests release, many idle ones, and a broken one."""

    def service(resource: str, changes: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {"artifact": {"image": IMAGE}, "targets": targets(sandbox, resource, **(changes or {})), **more}

    services = {
        "shop": service("shop"),
        "cancel": service("cancel"),
        "quorum": service("quorum", success={"policy": {"at_least": 1}}),
        "stuck": service("stuck", {"timeout": 8}),
        "vanish": service("vanish"),
        "sync": service("sync", deferrable=False),
        "timed": service("timed", schedule="@once", version="2.0.0"),
        "dry": service("dry"),
        "chain": service("chain"),
        "doubt": service("doubt", notify=[told(sandbox)]),
        "settler": service("settler", rollback={"in_doubt": "reconcile"}),
        "fast": service("fast", fail_fast=True, notify=in_trouble(sandbox)),
        "back": service("back"),
        "cleared": service("cleared"),
        "checked": service("checked"),
        "lanes": service("lanes", max_parallel=2, params={"region": {"default": "eu", "enum": ["eu", "us"]}}),
    }
    services["chain"]["targets"]["gcp"]["depends_on"] = ["aws"]
    services["chain"]["targets"]["azure"]["depends_on"] = [{"target": "gcp", "when": "failed"}]
    services["lanes"]["targets"]["gcp"]["when"] = 'params.region == "us"'
    for name, target in services["checked"]["targets"].items():
        check = {"http": f"{SMOKE}/{name}/{{version}}", "json": {"path": "status", "equals": "ok"}}
        target["verify"] = {"checks": [check], "within": 3}
    services["checked"]["targets"]["onprem"]["verify"]["bake"] = 6
    services["preview"] = service("preview", {"lock": "cluster-main"})
    services["preview"]["targets"]["azure"]["depends_on"] = ["aws"]
    one = {
        "left": {"lock": {"name": "narrow", "slots": 1}, "deferrable": False, "retries": 0},
        "right": {"lock": "narrow"},
        "newer": {"when_busy": "supersede"},
        "busy": {"when_busy": "reject"},
    }
    for name, more in one.items():
        services[name] = service(name, **more)
        services[name]["targets"] = {"aws": services[name]["targets"]["aws"]}
    later = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(datetime.now(UTC).weekday() + 3) % 7]
    services["patient"] = service("patient", windows={"open": [{"days": [later], "from": "09:00", "to": "10:00"}]})
    services |= asking(sandbox) | promoted(sandbox)
    broken = service("broken")
    broken["targets"]["aws"]["clutser"] = broken["targets"]["aws"].pop("cluster")
    services["broken"] = broken
    for number in range(50 - len(services)):
        services[f"idle{number}"] = service("shop")
    return services


RESOURCES = (
    "shop",
    "cancel",
    "quorum",
    "stuck",
    "vanish",
    "sync",
    "timed",
    "dry",
    "chain",
    "doubt",
    "settler",
    "fast",
    "back",
    "cleared",
    "checked",
    "lanes",
    "patient",
    "preview",
    "left",
    "right",
    "newer",
    "busy",
)


@pytest.fixture(scope="package")  # not for a session: an Airflow that nobody needs any more takes a fifth of a core
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("airflow")
    with Sandbox(seconds=4, folder=home / "sandbox", secrets=CANARIES) as sandbox:
        for stand_in in sandbox.stand_ins.values():
            for resource in (*RESOURCES, *ASKING, *ENVIRONMENTS):
                stand_in.seed(resource, f"{IMAGE}:1.0.0")
        assert all(secret in json.dumps(sandbox.connections()) for secret in CANARIES.values())
        airflow = LocalAirflow(
            home / "home",
            DAGS,
            connections={**sandbox.connections(), "registry": {"conn_type": "http", "host": f"http://{REGISTRY}"}},
            variables={"multideploy_services": catalog(sandbox)},
            settings={
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
                "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",  # of questions to people too
                "PYTHONPATH": str(DAGS.parent),  # for tests.system.notifier
                "AIRFLOW__MULTIDEPLOY__RECONCILE": "rollback",
                "AIRFLOW__MULTIDEPLOY__RECONCILE_SCHEDULE": "0 0 1 1 *",
            },
        )
        with airflow:
            yield Stage(airflow, sandbox)
