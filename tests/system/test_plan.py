"""What a release would do, told without a write; locks, and what becomes of a release that comes while another runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from airflow_multideploy.sandbox import CONN_IDS
from tests.system.conftest import KINDS, Stage, everywhere

pytestmark = [pytest.mark.system, pytest.mark.long]


def multideploy(stage: Stage, *argv: str, code: int = 0, **environment: str) -> str:
    command = [sys.executable, "-m", "airflow", "multideploy", *argv]
    environment = {**stage.airflow.environment, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


def plan(stage: Stage, version: str, *more: str, code: int = 0, **environment: str) -> Any:
    argv = ("plan", "preview", "--version", version, "-o", "json", *more)
    return json.loads(multideploy(stage, *argv, code=code, **environment))


def row(document: Any, target: str) -> Any:
    return next(each for each in document["targets"] if each["target"] == target)


def started(stage: Stage, service: str, run_id: str, *states: str) -> dict[str, Any]:
    """The deploy to AWS, once it is in one of these states."""
    stage.wait_until(
        f"aws.deploy of {service} is {' or '.join(states)}",
        lambda: stage.airflow.task_instances(service, run_id)["aws.deploy"]["state"] in states,
    )
    return stage.airflow.task_instances(service, run_id)["aws.deploy"]


def test_a_missing_pool_is_found_before_anything_waits_for_it(stage: Stage) -> None:
    stage.airflow.wait_for_dag("preview")
    writes = stage.writes()
    (why, *_) = plan(stage, "2.0.0", code=1)["refusals"]
    assert "'multideploy_cluster-main'" in why
    assert "`airflow multideploy init`" in why
    state, result, _ = stage.release("preview", {"version": "2.0.0"})
    assert (state, result["status"]) == ("failed", "not_started")
    assert "`airflow multideploy init`" in result["reason"]
    assert stage.writes() == writes
    findings = json.loads(multideploy(stage, "doctor", "-o", "json", code=1))
    pools = {each["place"]: each["remedy"] for each in findings if each["place"].startswith("pool ")}
    assert pools == dict.fromkeys(
        ("pool multideploy_cluster-main", "pool multideploy_narrow"), "run `airflow multideploy init`"
    )
    places = {each["place"] for each in findings if each["severity"] == "error"}
    assert "service broken" in places
    assert not {"scheduler", "triggerer"} & places, "both are alive"
    assert not {place for place in places if place.startswith("Connection")}


def test_init_makes_the_pools_once(stage: Stage) -> None:
    multideploy(stage, "init", "--check", code=1)
    made = json.loads(multideploy(stage, "init", "--yes", "-o", "json"))
    assert {step["pool"]: step["action"] for step in made} == dict.fromkeys(
        ("multideploy_cluster-main", "multideploy_narrow"), "create"
    )
    path = "/pools/multideploy_narrow"
    assert stage.airflow.api("GET", path)["include_deferred"] is False
    wrong = {"pool": "multideploy_narrow", "slots": 7, "include_deferred": True}
    stage.airflow.api("PATCH", path, json=wrong)
    assert "7 slots, held by tasks that are deferred" in multideploy(stage, "init", "--yes", "-o", "json")
    assert stage.airflow.api("GET", path).items() >= {"slots": 1, "include_deferred": False}.items()
    multideploy(stage, "init", "--check")


def test_a_dry_run_tells_what_would_happen_and_writes_nothing(stage: Stage) -> None:
    writes = stage.writes()
    told = plan(stage, "2.0.0")
    assert (told["refusals"], told["waves"]) == ([], [["aws", "gcp", "onprem"], ["azure"]])
    assert {each["target"]: each["platform"] for each in told["targets"]} == KINDS
    assert {each["live"]["version"] for each in told["targets"]} == {"1.0.0"}
    assert {each["change"] for each in told["targets"]} == {"release"}
    assert {each["lock"] for each in told["targets"]} == {"cluster-main"}
    assert row(told, "azure")["after"] == ["aws succeeded"]
    assert row(told, "aws")["live"]["revision"] in row(told, "aws")["way_back"]
    assert told["expected"] is None, "nothing was released yet"
    state, result, run_id = stage.release("preview", {"version": "2.0.0", "dry_run": True})
    assert (state, result["dry_run"]) == ("success", True)
    assert stage.airflow.xcom("preview", run_id, "plan", "preview") == told
    text = stage.airflow.xcom("preview", run_id, "plan", "preview_markdown")
    assert text == multideploy(stage, "plan", "preview", "--version", "2.0.0", "-o", "markdown")
    assert "aws succeeded" in text
    for kind in KINDS.values():
        assert stage.sandbox.world.calls_of(kind), "each platform was asked"
    assert stage.writes() == writes


def test_after_a_release_the_plan_knows_how_long_it_takes_and_where_back_would_be(stage: Stage) -> None:
    state, _, run_id = stage.release("preview", {"version": "2.0.0"})
    assert (state, stage.live("preview")) == ("success", everywhere("2.0.0"))
    writes = stage.writes()
    instances = stage.airflow.task_instances("preview", run_id)
    assert {instances[f"{name}.deploy"]["pool"] for name in KINDS} == {"multideploy_cluster-main"}
    assert {instances[f"rollback.{name}"]["pool"] for name in KINDS} == {"multideploy_cluster-main"}
    told = plan(stage, "2.0.0", "--targets", "aws,azure")
    assert row(told, "aws")["change"] == "same tag"
    assert row(told, "gcp")["why"] == "not selected"
    parts = [row(told, name)["expected"] for name in ("aws", "azure")]
    assert told["expected"]["p50"] == pytest.approx(sum(part["p50"] for part in parts)), "azure waits for aws"
    assert told["expected"]["releases"] == 1
    told = plan(stage, "1.0.0", "--param", "rollback=true", code=1)
    assert "1.0.0" in told["refusals"][0]
    away = json.dumps({**stage.sandbox.connections()[CONN_IDS["http"]], "port": 1})
    told = plan(stage, "3.0.0", code=2, **{f"AIRFLOW_CONN_{CONN_IDS['http'].upper()}": away})
    assert (row(told, "onprem")["change"], row(told, "aws")["change"]) == ("unknown", "release")
    assert "preview/onprem" in row(told, "onprem")["why"]
    assert stage.writes() == writes


def test_a_lock_is_free_again_after_a_run_that_was_marked_failed_and_after_a_process_that_was_killed(
    stage: Stage,
) -> None:
    """They share one slot, which left (`deferrable: false`) and right hold in the same way."""
    for resource in ("left", "right"):
        stage.sandbox.world.add_fault(
            {"platform": "aws_ecs", "outcome": "slow", "seconds": 90, "resource": resource, "times": 1}
        )
        stage.airflow.wait_for_dag(resource)
    right = stage.airflow.trigger("right", {"version": "2.0.0"})
    started(stage, "right", right, "running")
    stage.wait_until("right writes", lambda: stage.sandbox.stand_ins["aws_ecs"].live("right").settled is False)
    left = stage.airflow.trigger("left", {"version": "2.0.0"})
    started(stage, "left", left, "scheduled")
    assert stage.airflow.task_instances("right", right)["aws.deploy"]["state"] == "running", "it holds the slot"
    stage.airflow.api("PATCH", f"/dags/right/dagRuns/{right}", json={"state": "failed"})
    process = started(stage, "left", left, "running")
    stage.wait_until(
        "left writes, and right's way back waits for the slot",
        lambda: (
            (stage.sandbox.stand_ins["aws_ecs"].live("left").settled is False)
            and stage.airflow.task_instances("right", right)["rollback.aws"]["state"] == "scheduled"
        ),
    )
    os.kill(process["pid"], signal.SIGKILL)
    assert stage.airflow.finish("right", right, timeout=120) == "failed"
    assert stage.airflow.finish("left", left, timeout=120) == "failed"
    stopped, killed = (stage.airflow.xcom(name, run, "finalize") for name, run in (("right", right), ("left", left)))
    assert (stopped["status"], killed["status"]) == ("rolled_back", "rolled_back")
    spans = [
        (result["rollback_started_at"], result["rollback_ended_at"])
        for result in (stopped["results"][0], killed["results"][0])
    ]
    assert min(end for _, end in spans) <= max(start for start, _ in spans), "one after the other"
    state, _, _ = stage.release("right", {"version": "3.0.0"})
    assert (state, stage.live("right")["aws"], stage.live("left")["aws"]) == ("success", "3.0.0", "1.0.0")


def test_a_newer_release_that_waits_supersedes_an_older_one_that_waits(stage: Stage) -> None:
    stage.airflow.wait_for_dag("newer")
    stage.sandbox.world.add_fault({"platform": "aws_ecs", "outcome": "slow", "seconds": 15, "resource": "newer"})
    runs = [stage.airflow.trigger("newer", {"version": "2.0.0"})]
    started(stage, "newer", runs[0], "deferred")
    runs += [stage.airflow.trigger("newer", {"version": version}) for version in ("3.0.0", "4.0.0")]
    states = [stage.airflow.finish("newer", run_id, timeout=120) for run_id in runs]
    results = [stage.airflow.xcom("newer", run_id, "finalize") for run_id in runs]
    assert [result["status"] for result in results] == ["succeeded", "not_started", "succeeded"]
    assert f"superseded by run {runs[2]!r}, which releases 4.0.0" in results[1]["reason"]
    assert states == ["success", "failed", "success"], "the one that was releasing went on"
    assert stage.live("newer")["aws"] == "4.0.0"
    history = json.loads(multideploy(stage, "history", "newer", "-o", "json"))
    assert [each["status"] for each in history] == ["succeeded", "not_started", "succeeded"]


def test_a_release_that_was_asked_for_while_another_one_ran_is_rejected(stage: Stage) -> None:
    stage.airflow.wait_for_dag("busy")
    first = stage.airflow.trigger("busy", {"version": "2.0.0"})
    started(stage, "busy", first, "deferred", "running")
    second = stage.airflow.trigger("busy", {"version": "3.0.0"})
    assert stage.airflow.finish("busy", first) == "success"
    assert stage.airflow.finish("busy", second) == "failed"
    result = stage.airflow.xcom("busy", second, "finalize")
    assert result["status"] == "not_started"
    assert result["reason"].endswith(f"rejected: run {first!r} was releasing 2.0.0 when this one was asked for")
    state, _, _ = stage.release("busy", {"version": "4.0.0"})
    assert (state, stage.live("busy")["aws"]) == ("success", "4.0.0")
