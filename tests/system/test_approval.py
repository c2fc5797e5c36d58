"""People who approve, refuse, pick, or do not answer: over REST, as the UI does."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.sandbox.airflow import LocalAirflow
from tests.system.conftest import DAGS, Stage, catalog

pytestmark = [pytest.mark.system, pytest.mark.long]


def ask(stage: Stage, service: str, version: str) -> str:
    stage.airflow.wait_for_dag(service)
    return stage.airflow.trigger(service, {"version": version, "reason": "system test"})


def question(stage: Stage, service: str, run_id: str, task_id: str, number: int = 1) -> dict[str, Any]:
    """What a person is shown, once the task waits for them."""
    found: dict[str, Any] = {}

    def waits() -> bool:
        found.update(stage.airflow.task_instances(service, run_id)[task_id])
        return found["state"] == "awaiting_input" and found["try_number"] == number

    stage.wait_until(f"{task_id} waits", waits, timeout=90)
    return dict(stage.airflow.api("GET", path(service, run_id, task_id)))


def path(service: str, run_id: str, task_id: str) -> str:
    return f"/dags/{service}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"


def answer(stage: Stage, service: str, run_id: str, **chosen: str) -> None:
    """Answer a question: task=choice, and why."""
    parked = time.time() + 2
    # Airflow takes a task for dead that goes on before the scheduler has seen that it parked, and asks anew.
    stage.wait_until("the scheduler has looked", lambda: heartbeat(stage) > parked)
    why = chosen.pop("why", "")
    ((task_id, choice),) = chosen.items()
    body = {"chosen_options": [choice], "params_input": {"comment": why}}
    stage.airflow.api("PATCH", path(service, run_id, task_id), json=body)


def heartbeat(stage: Stage) -> float:
    health = stage.airflow.api("GET", "/monitor/health")
    return datetime.fromisoformat(health["scheduler"]["latest_scheduler_heartbeat"]).timestamp()


def end(stage: Stage, service: str, run_id: str) -> tuple[str, dict[str, Any]]:
    return stage.airflow.finish(service, run_id, timeout=120), stage.airflow.xcom(service, run_id, "finalize")


def test_rejected_nothing_is_written(stage: Stage) -> None:
    writes = stage.writes()
    run_id = ask(stage, "gated", "2.0.0")
    shown = question(stage, "gated", run_id, "approve")
    assert shown["subject"] == "gated 2.0.0: release to aws, onprem?"
    assert "asked for by admin: system test" in shown["body"]
    assert [user["id"] for user in shown["assigned_users"]] == ["admin"]
    answer(stage, "gated", run_id, approve="reject", why="not on a Friday")
    state, result = end(stage, "gated", run_id)
    assert (state, result["status"]) == ("failed", "not_started"), result
    assert result["reason"] == "rejected by admin: not on a Friday"
    assert not result["cancelled"]
    assert stage.writes() == writes
    states = {name: task["state"] for name, task in stage.airflow.task_instances("gated", run_id).items()}
    assert (states["approve"], states["aws.deploy"], states["onprem.deploy"]) == ("success", "skipped", "skipped")
    told = (stage.sandbox.folder / "asked").read_text()
    assert f"gated 2.0.0: release to aws, onprem? {stage.airflow.url}/dags/gated/runs/" in told


def test_approved_it_is_released(stage: Stage) -> None:
    run_id = ask(stage, "gated", "2.1.0")
    question(stage, "gated", run_id, "approve")
    assert stage.live("gated")["aws"] == "1.0.0"
    answer(stage, "gated", run_id, approve="approve")
    state, result = end(stage, "gated", run_id)
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("gated")["onprem"] == "2.1.0"


def test_stopped_while_it_waits_nothing_is_written(stage: Stage) -> None:
    writes = stage.writes()
    run_id = ask(stage, "gated", "2.2.0")
    question(stage, "gated", run_id, "approve")
    stage.airflow.api("PATCH", f"/dags/gated/dagRuns/{run_id}", json={"state": "failed"})
    state, result = end(stage, "gated", run_id)
    assert (state, result["status"], result["cancelled"]) == ("failed", "not_started", True), result
    assert stage.writes() == writes


def test_a_dry_run_asks_nobody(stage: Stage) -> None:
    state, result, _ = stage.release("gated", {"version": "2.3.0", "dry_run": True})
    assert (state, result["dry_run"], result["met"]) == ("success", True, True)


def test_no_answer_in_time_means_the_default(stage: Stage) -> None:
    """The release is approved by default, one of its targets refused: what was released goes back."""
    state, result, _ = stage.release("overdue", {"version": "2.0.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert "onprem: pending (not approved: no answer within 6 s)" in result["reason"]
    assert stage.live("overdue")["aws"] == "1.0.0"


def test_a_person_retries_until_the_fault_is_gone(stage: Stage) -> None:
    """The retry brings aws up, and onprem, which waits for it, to its first rollout; that fails, so it asks again."""
    for kind in ("aws_ecs", "http"):
        stage.sandbox.world.add_fault(
            {"platform": kind, "outcome": "fails", "resource": "guided", "reason": "exit code 137"}
        )
    run_id = ask(stage, "guided", "2.0.0")
    shown = question(stage, "guided", run_id, "decide")
    assert shown["subject"] == "guided 2.0.0: the policy is not met; what now?"
    assert "exit code 137" in shown["body"]
    assert shown["options"] == ["retry", "roll_back_failed", "roll_back_all", "accept"]
    answer(stage, "guided", run_id, decide="retry")
    question(stage, "guided", run_id, "decide", number=2)
    now = stage.airflow.xcom("guided", run_id, "decide", key="verdict")
    assert {row["target"]: row["deploy"] for row in now} == {"aws": "succeeded", "onprem": "failed"}
    told = (stage.sandbox.folder / "asked").read_text()
    assert "guided 2.0.0: failed on aws, onprem; what now?" in told
    assert "guided 2.0.0: failed on onprem; what now?" in told
    answer(stage, "guided", run_id, decide="retry", why="once more")
    state, result = end(stage, "guided", run_id)
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert {stage.live("guided")[name] for name in ("aws", "onprem")} == {"2.0.0"}
    picked = stage.airflow.xcom("guided", run_id, "decide", key="approval")
    assert [each["choice"] for each in picked] == ["retry", "retry"]


def test_nobody_picks_and_the_default_is_done(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "aws_ecs", "outcome": "fails", "resource": "unattended"})
    state, result, run_id = stage.release("unattended", {"version": "2.0.0"})
    assert (state, result["status"]) == ("failed", "partially_rolled_back"), result
    assert result["choice"] == "roll_back_failed"
    assert stage.live("unattended")["aws"] == "1.0.0"
    assert stage.live("unattended")["onprem"] == "2.0.0"
    states = {name: task["state"] for name, task in stage.airflow.task_instances("unattended", run_id).items()}
    assert (states["decide"], states["rollback.aws"], states["rollback.onprem"]) == ("success", "success", "skipped")


def test_where_nothing_failed_nobody_is_asked(stage: Stage) -> None:
    state, result, run_id = stage.release("unattended", {"version": "3.0.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.airflow.task_instances("unattended", run_id)["decide"]["state"] == "skipped"


def test_under_dags_test_an_option_answers_or_else_the_default_does(stage: Stage, tmp_path: Path) -> None:
    laptop = LocalAirflow(
        tmp_path,
        DAGS,
        connections=stage.sandbox.connections(),
        variables={"multideploy_services": catalog(stage.sandbox)},
        settings={"PYTHONPATH": str(DAGS.parent)},
    )
    laptop.prepare()

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", "dags", "test", "gated", "-c", '{"version": "8.0.0"}']
        env = {**laptop.environment, **settings}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)

    writes = stage.writes()
    refused = run()
    assert refused.returncode == 1
    assert "not approved: dags test asks nobody" in refused.stdout
    assert stage.writes() == writes
    approved = run(AIRFLOW__MULTIDEPLOY__ANSWER="approve")
    assert approved.returncode == 0, approved.stdout[-3000:]
    assert stage.live("gated")["aws"] == "8.0.0"
