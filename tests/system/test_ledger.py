"""The ledger of real releases, read back by the command; and of one that never said how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.system.conftest import IMAGE, KINDS, Stage

pytestmark = [pytest.mark.system, pytest.mark.long]

SERVICE, LOST = "idle0", "idle1"
"""Two services on the same resource, which nobody else releases."""


def history(stage: Stage, service: str, *more: str) -> Any:
    command = [sys.executable, "-m", "airflow", "multideploy", "history", service, "-o", "json", *more]
    done = subprocess.run(command, env=stage.airflow.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_who_released_what_why_and_how_it_ended(stage: Stage) -> None:
    state, _, good = stage.release(SERVICE, {"version": "9.1.0", "reason": "sale"})
    assert state == "success"
    fault = {"platform": "azure_web_app", "outcome": "fails", "resource": "shop", "reason": "exit code 137"}
    stage.sandbox.world.add_fault(fault)
    state, _, bad = stage.release(SERVICE, {"version": "9.2.0", "reason": "hurry"})
    assert state == "failed"
    second, first = history(stage, SERVICE)
    assert [each["run_id"] for each in (first, second)] == [good, bad]
    for kept, version, reason, status in (
        (first, "9.1.0", "sale", "succeeded"),
        (second, "9.2.0", "hurry", "rolled_back"),
    ):
        assert (kept["version"], kept["reason"], kept["status"]) == (version, reason, status)
        assert (kept["actor"], kept["image"]) == (stage.airflow.user, f"{IMAGE}:{version}")
        assert {each["target"]: each["platform"] for each in kept["targets"]} == KINDS
        assert all(each["ended_at"] > each["started_at"] for each in kept["targets"])
        assert kept["ended_at"] > max(each["ended_at"] for each in kept["targets"])
        assert len(kept["config_hash"]) == 12
    assert first["config_hash"] == second["config_hash"]
    assert {each["phase"] for each in first["targets"]} == {"succeeded"}
    assert {each["phase"] for each in second["targets"]} == {"rolled_back"}
    assert all(each["rollback_ended_at"] > each["rollback_started_at"] for each in second["targets"])
    assert "exit code 137" in second["outcome"]
    assert history(stage, SERVICE, "--limit", "1") == [second]
    events = stage.airflow.api("GET", "/assets/events", params={"source_dag_id": SERVICE})["asset_events"]
    (extra,) = (event["extra"] for event in events if event["uri"] == f"multideploy://{SERVICE}")
    assert (extra["release_id"], extra["image"], extra["reason"]) == (first["release_id"], first["image"], "sale")


def test_a_run_that_never_said_how_it_ended_is_interrupted_and_the_next_one_keeps_that(stage: Stage) -> None:
    stage.airflow.wait_for_dag(LOST)
    stage.sandbox.world.add_fault({"platform": "aws_ecs", "outcome": "slow", "seconds": 30, "resource": "shop"})
    run_id = stage.airflow.trigger(LOST, {"version": "9.3.0"})
    stage.wait_until("a deploy waits", lambda: state_of(stage, run_id, "aws.deploy") == "deferred")
    (running,) = history(stage, LOST)
    assert (running["status"], running["ended_at"]) == ("running", None)
    finalize = f"/dags/{LOST}/dagRuns/{run_id}/taskInstances/finalize"
    stage.airflow.api("PATCH", finalize, json={"new_state": "failed"})
    assert stage.airflow.finish(LOST, run_id) == "failed"
    (lost,) = history(stage, LOST)
    assert lost["status"] == "interrupted"
    assert {each["target"]: each["phase"] for each in lost["targets"]} == dict.fromkeys(KINDS, "succeeded")
    state, result, _ = stage.release(LOST, {"version": "9.4.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    after, kept = history(stage, LOST)
    assert (after["status"], kept) == ("succeeded", lost), "what was shown is what was then kept"


def state_of(stage: Stage, run_id: str, task_id: str) -> Any:
    return stage.airflow.task_instances(LOST, run_id)[task_id]["state"]
