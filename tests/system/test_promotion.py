"""From dev over staging to prod by asset events alone, with the same bits everywhere."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.system.conftest import ENVIRONMENTS, REGISTRY, Stage

pytestmark = [pytest.mark.system, pytest.mark.long]


class Registry(BaseHTTPRequestHandler):
    """An image registry in which every tag exists, and moves with every question."""

    given: list[str] = []

    def do_HEAD(self) -> None:
        digest = f"sha256:{hashlib.sha256(f'{self.path} {len(self.given)}'.encode()).hexdigest()}"
        self.given.append(digest)
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def registry() -> Iterator[type[Registry]]:
    host, port = REGISTRY.split(":")
    with ThreadingHTTPServer((host, int(port)), Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Registry
        server.shutdown()
        thread.join()


def runs(stage: Stage, service: str) -> list[dict[str, Any]]:
    found = stage.airflow.api("GET", f"/dags/{service}/dagRuns", params={"order_by": "id"})["dag_runs"]
    return list(found)


def events(stage: Stage, uri: str) -> list[dict[str, Any]]:
    assets = stage.airflow.api("GET", "/assets", params={"uri_pattern": uri})["assets"]
    (asset,) = (each for each in assets if each["uri"] == uri)
    found = stage.airflow.api("GET", "/assets/events", params={"asset_id": asset["id"]})["asset_events"]
    return [event["extra"] for event in found]


def images(stage: Stage, resource: str) -> set[str | None]:
    return {stage.sandbox.stand_ins[kind].live(resource).image for kind in ("aws_ecs", "http")}


def ended(stage: Stage, service: str, number: int) -> dict[str, Any]:
    """The service's run of that number, once it is over."""

    def over() -> bool:
        found = runs(stage, service)
        return len(found) >= number and found[number - 1]["state"] in ("success", "failed")

    stage.wait_until(f"run {number} of {service} is over", over, timeout=120)
    return runs(stage, service)[number - 1]


def test_what_dev_released_reaches_prod_by_events_alone(stage: Stage, registry: type[Registry]) -> None:
    for service in (*ENVIRONMENTS, "after"):
        stage.airflow.wait_for_dag(service)
    later = stage.airflow.trigger("after", {"version": "1.1.0"})
    state, _, first = stage.release("ship-dev", {"version": "2.0.0", "reason": "sale"})
    assert state == "success"
    staging, prod = ended(stage, "ship-staging", 1), ended(stage, "ship-prod", 1)
    for run in (staging, prod):
        assert (run["run_type"], run["state"]) == ("asset_triggered", "success"), run
    (digest,) = registry.given
    for service in ENVIRONMENTS:
        assert images(stage, service) == {f"{REGISTRY}/ship@{digest}"}, "nobody resolved the tag again"
        (said,) = events(stage, f"multideploy://{service}")
        assert (said["version"], said["digest"], said["environment"]) == (
            "2.0.0",
            digest,
            service.removeprefix("ship-"),
        )
    assert said["reason"] == (
        f"promoted from ship-staging, run {staging['dag_run_id']}: promoted from ship-dev, run {first}: sale"
    )
    (there,) = events(stage, "multideploy://ship-prod/aws")
    assert (there["target"], there["digest"], there["status"]) == ("aws", digest, "succeeded")
    assert stage.airflow.finish("after", later) == "success", "it waited for prod"
    waited = stage.airflow.api("GET", f"/dags/after/dagRuns/{later}")["end_date"]
    assert waited > prod["end_date"]


def test_a_release_that_staging_took_back_goes_no_further(stage: Stage, registry: type[Registry]) -> None:
    fault = {"platform": "http", "outcome": "fails", "resource": "ship-staging", "reason": "exit code 137"}
    before = {service: len(runs(stage, service)) for service in ENVIRONMENTS}
    stage.sandbox.world.add_fault(fault)
    state, _, _ = stage.release("ship-dev", {"version": "3.0.0"})
    assert state == "success"
    run = ended(stage, "ship-staging", before["ship-staging"] + 1)
    assert run["state"] == "failed"
    result = stage.airflow.xcom("ship-staging", run["dag_run_id"], "finalize")
    assert (result["status"], result["version"]) == ("rolled_back", "3.0.0")
    assert len(runs(stage, "ship-prod")) == before["ship-prod"]
    assert images(stage, "ship-staging") == images(stage, "ship-prod")
    assert {said["version"] for said in events(stage, "multideploy://ship-staging/aws")} == {"2.0.0"}
