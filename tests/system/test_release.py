"""Releases on a real scheduler, dag-processor, triggerer and api-server, against the sandbox."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.conftest import CANARIES, IMAGE, KINDS, Stage, catalog

pytestmark = pytest.mark.system


def everywhere(version: str) -> dict[str, str]:
    return dict.fromkeys(KINDS, version)


def test_four_targets_of_20_seconds_overlap(stage: Stage) -> None:
    for kind in KINDS.values():
        stage.sandbox.world.add_fault({"platform": kind, "outcome": "slow", "seconds": 20, "resource": "shop"})
    state, result, _ = stage.release("shop", {"version": "1.1.0", "reason": "system test"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("shop") == everywhere("1.1.0")
    assert result["figures"]["parallel_rate"] > 0.9
    assert result["figures"]["success_rate"] == 1.0


def test_one_failing_target_takes_all_back(stage: Stage) -> None:
    before = stage.live("shop")
    stage.sandbox.world.add_fault(
        {"platform": "azure_web_app", "outcome": "fails", "resource": "shop", "reason": "exit code 137"}
    )
    state, result, _ = stage.release("shop", {"version": "1.2.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert stage.live("shop") == before
    assert "exit code 137" in result["reason"]
    # Known as bad from now on: the same version is refused before anything is written.
    writes = stage.writes()
    state, result, _ = stage.release("shop", {"version": "1.2.0"})
    assert (state, result["status"]) == ("failed", "not_started")
    assert "was rolled back here before" in result["reason"]
    assert stage.writes() == writes


def test_unknown_conf_key_is_refused_before_any_write(stage: Stage) -> None:
    writes = stage.writes()
    state, result, _ = stage.release("shop", {"version": "1.3.0", "verison": "1.3.1"})
    assert (state, result["status"]) == ("failed", "not_started")
    assert "conf.verison: unknown key" in result["reason"]
    assert stage.writes() == writes


@pytest.mark.parametrize("conf", [{"version": "1.0; rm -rf /"}, {"version": "1.3.0", "targets": ["mars"]}, {}])
def test_bad_conf_is_answered_with_400(stage: Stage, conf: dict[str, object]) -> None:
    stage.airflow.wait_for_dag("shop")
    writes = stage.writes()
    with pytest.raises(RuntimeError, match=r": 400 "):
        stage.airflow.trigger("shop", conf)
    assert stage.writes() == writes


def test_selected_targets_only(stage: Stage) -> None:
    before = stage.live("shop")
    state, result, _ = stage.release("shop", {"version": "1.4.0", "targets": ["onprem", "gcp"]})
    assert (state, result["status"]) == ("success", "succeeded")
    assert stage.live("shop") == {**before, "onprem": "1.4.0", "gcp": "1.4.0"}


def test_dry_run_writes_nothing(stage: Stage) -> None:
    writes = stage.writes()
    state, result, _ = stage.release("dry", {"version": "7.0.0", "dry_run": True})
    assert state == "success"
    assert result["dry_run"] is True
    assert stage.writes() == writes


def test_run_marked_failed_in_mid_deploy_goes_back(stage: Stage) -> None:
    for kind in KINDS.values():
        stage.sandbox.world.add_fault({"platform": kind, "outcome": "slow", "seconds": 60, "resource": "cancel"})
    stage.airflow.wait_for_dag("cancel")
    run_id = stage.airflow.trigger("cancel", {"version": "5.0.0"})
    deferred = [f"{name}.deploy" for name in KINDS]
    stage.wait_until(
        "all four deploys wait in the triggerer",
        lambda: all(stage.airflow.task_instances("cancel", run_id)[t]["state"] == "deferred" for t in deferred),
    )
    stage.airflow.api("PATCH", f"/dags/cancel/dagRuns/{run_id}", json={"state": "failed"})
    stage.wait_until(
        "finalize ends",
        lambda: stage.airflow.task_instances("cancel", run_id)["finalize"]["state"] in ("failed", "success"),
        timeout=120,
    )
    assert stage.airflow.finish("cancel", run_id) == "failed"
    result = stage.airflow.xcom("cancel", run_id, "finalize")
    assert (result["status"], result["cancelled"]) == ("rolled_back", True), result
    assert stage.live("cancel") == everywhere("1.0.0")
    assert all(stand_in.live("cancel").settled for stand_in in stage.sandbox.stand_ins.values())


def test_a_deploy_that_never_finishes_hits_its_deadline(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "gcp_cloud_run", "outcome": "hangs", "resource": "stuck"})
    state, result, _ = stage.release("stuck", {"version": "6.0.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert "deadline passed" in result["reason"]
    assert stage.live("stuck") == everywhere("1.0.0")


def test_the_synchronous_path_does_the_same(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "aws_ecs", "outcome": "fails", "resource": "sync", "reason": "OOM"})
    state, result, run_id = stage.release("sync", {"version": "6.1.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert stage.live("sync") == everywhere("1.0.0")
    assert all(t["trigger"] is None for t in stage.airflow.task_instances("sync", run_id).values())


def test_a_schedule_releases(stage: Stage) -> None:
    stage.airflow.wait_for_dag("timed")
    stage.wait_until("a scheduled run", lambda: stage.airflow.api("GET", "/dags/timed/dagRuns")["total_entries"] > 0)
    run = stage.airflow.api("GET", "/dags/timed/dagRuns")["dag_runs"][0]
    assert run["run_type"] == "scheduled"
    assert stage.airflow.finish("timed", run["dag_run_id"]) == "success"
    assert stage.live("timed") == everywhere("2.0.0")


def test_dependencies_and_conditional_edges(stage: Stage) -> None:
    """aws → gcp; azure only if gcp failed."""
    state, result, run_id = stage.release("chain", {"version": "3.0.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("chain") == {**everywhere("3.0.0"), "azure": "1.0.0"}
    assert stage.airflow.task_instances("chain", run_id)["azure.deploy"]["state"] == "skipped"
    started = {r["target"]: r["started_at"] for r in result["results"]}
    ended = {r["target"]: r["ended_at"] for r in result["results"]}
    assert started["gcp"] >= ended["aws"]


def test_catalog_vanishes_in_mid_run_and_the_rollback_still_runs(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "aws_ecs", "outcome": "slow", "seconds": 15, "resource": "vanish"})
    stage.sandbox.world.add_fault({"platform": "http", "outcome": "fails", "resource": "vanish"})
    stage.airflow.wait_for_dag("vanish")
    run_id = stage.airflow.trigger("vanish", {"version": "4.0.0"})
    stage.wait_until(
        "aws is being deployed",
        lambda: stage.airflow.task_instances("vanish", run_id)["aws.deploy"]["state"] == "deferred",
    )
    services = {name: entry for name, entry in catalog(stage.sandbox).items() if name != "vanish"}
    body = {"key": "multideploy_services", "value": json.dumps(services)}
    stage.airflow.api("PATCH", "/variables/multideploy_services", json=body)
    try:
        assert stage.airflow.finish("vanish", run_id, timeout=180) == "failed"
        result = stage.airflow.xcom("vanish", run_id, "finalize")
        assert result["status"] == "rolled_back", result
        assert stage.live("vanish") == everywhere("1.0.0")
        keys = stage.airflow.api("GET", "/variables", params={"limit": 100})["variables"]
        assert "multideploy_frozen_vanish" not in {variable["key"] for variable in keys}
    finally:
        body["value"] = json.dumps(catalog(stage.sandbox))
        stage.airflow.api("PATCH", "/variables/multideploy_services", json=body)


def leave_in_doubt(stage: Stage, service: str) -> None:
    """A release whose deploy fails on one target, and whose way back fails there too."""
    stage.sandbox.world.add_fault({"platform": "azure_web_app", "outcome": "fails", "resource": service, "times": 99})
    state, result, _ = stage.release(service, {"version": "2.0.0"})
    stage.sandbox.world.rollout_faults.clear()
    assert (state, result["status"]) == ("failed", "rollback_failed"), result
    assert stage.live(service)["aws"] == "1.0.0", "the others went back"


def test_a_target_in_doubt_is_refused_until_the_reconciler_has_settled_it(stage: Stage) -> None:
    leave_in_doubt(stage, "doubt")
    writes = stage.writes()
    state, result, _ = stage.release("doubt", {"version": "3.0.0"})
    assert (state, result["status"]) == ("failed", "not_started")
    assert "doubt/azure: in doubt: run " in result["reason"]
    assert stage.writes() == writes
    dag_id = "multideploy_reconcile"
    stage.airflow.wait_for_dag(dag_id)  # unpaused, it runs once for its schedule
    stage.wait_until("a run", lambda: stage.airflow.api("GET", f"/dags/{dag_id}/dagRuns")["total_entries"] > 0)
    run_id = stage.airflow.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"][0]["dag_run_id"]
    assert stage.airflow.finish(dag_id, run_id) == "success"
    assert stage.airflow.xcom(dag_id, run_id, "reconcile") == {"doubt/azure": "rolled_back"}
    assert stage.live("doubt") == everywhere("1.0.0")
    state, result, _ = stage.release("doubt", {"version": "3.0.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    told = (stage.sandbox.folder / "told").read_text().splitlines()
    assert told == ["doubt rollback_failed", "doubt not_started", "doubt reconciled"]


def test_a_service_may_reconcile_before_it_releases(stage: Stage) -> None:
    leave_in_doubt(stage, "settler")
    writes = stage.writes()
    stage.release("settler", {"version": "3.0.0", "dry_run": True})
    assert stage.writes() == writes, "a dry run settles nothing"
    state, result, _ = stage.release("settler", {"version": "3.0.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("settler") == everywhere("3.0.0")


def test_one_broken_service_of_fifty_harms_no_other(stage: Stage) -> None:
    dags = stage.airflow.api("GET", "/dags", params={"tags": "multideploy", "limit": 100})["dags"]
    assert len(dags) >= 50
    broken = [dag for dag in dags if any(tag["name"] == "broken" for tag in dag["tags"])]
    assert [dag["dag_id"] for dag in broken] == ["broken"]
    shown = stage.airflow.api("GET", "/dags/broken/details")["doc_md"]
    assert "targets.aws.clutser: unknown key; did you mean 'cluster'?" in shown
    assert stage.airflow.api("GET", "/importErrors")["total_entries"] == 0


def test_dags_test_on_a_laptop(stage: Stage, tmp_path: Path) -> None:
    from airflow_multideploy.sandbox.airflow import LocalAirflow
    from tests.system.conftest import DAGS

    laptop = LocalAirflow(
        tmp_path,
        DAGS,
        connections=stage.sandbox.connections(),
        variables={"multideploy_services": catalog(stage.sandbox)},
    )
    laptop.prepare()
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "test", "dry", "-c", '{"version": "8.0.0"}'],
        env=laptop.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert stage.live("dry") == everywhere("8.0.0")


def test_no_secret_anywhere(stage: Stage) -> None:
    """Runs last: everything the tests above left behind is searched, byte by byte."""
    time.sleep(1)
    home = stage.airflow.home
    found = []
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        found += [(path.name, kind) for kind, secret in CANARIES.items() if secret.encode() in content]
    assert not found
    pages = [
        json.dumps(stage.airflow.api("GET", path, params={"limit": 100}))
        for path in ("/variables", "/assets/events", "/dags/~/dagRuns/~/taskInstances", "/dags", "/connections")
    ]
    assert not [kind for kind, secret in CANARIES.items() if any(secret in page for page in pages)]
    assert re.search(IMAGE, "".join(pages))
