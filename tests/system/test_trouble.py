"""Releases that are stopped, get stuck, lose their catalog or are left in doubt, on a real Airflow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system.conftest import KINDS, Stage, catalog, everywhere, secrets_found

pytestmark = pytest.mark.system


def result_of_stopped(stage: Stage, service: str, run_id: str) -> dict[str, Any]:
    """Mark the run failed, wait until that is undone, and give the result document."""

    def ended() -> bool:
        return stage.airflow.task_instances(service, run_id)["finalize"]["state"] in ("failed", "success")

    stage.airflow.api("PATCH", f"/dags/{service}/dagRuns/{run_id}", json={"state": "failed"})
    stage.wait_until("finalize ends", ended, timeout=120)
    assert stage.airflow.finish(service, run_id) == "failed"
    result: dict[str, Any] = stage.airflow.xcom(service, run_id, "finalize")
    return result


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
    result = result_of_stopped(stage, "cancel", run_id)
    assert (result["status"], result["cancelled"]) == ("rolled_back", True), result
    assert stage.live("cancel") == everywhere("1.0.0")
    assert all(stand_in.live("cancel").settled for stand_in in stage.sandbox.stand_ins.values())


def test_a_run_marked_failed_with_one_rollout_under_way_is_undone_though_its_policy_is_met(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "azure_web_app", "outcome": "hangs", "resource": "quorum"})
    stage.airflow.wait_for_dag("quorum")
    run_id = stage.airflow.trigger("quorum", {"version": "5.0.0"})

    def states() -> list[str]:
        return sorted(str(stage.airflow.task_instances("quorum", run_id)[f"{name}.deploy"]["state"]) for name in KINDS)

    stage.wait_until("all but one are done", lambda: states() == ["deferred", "success", "success", "success"])
    result = result_of_stopped(stage, "quorum", run_id)
    assert (result["status"], result["cancelled"]) == ("rolled_back", True), result
    assert stage.live("quorum") == everywhere("1.0.0")


def test_a_deploy_that_never_finishes_hits_its_deadline(stage: Stage) -> None:
    stage.sandbox.world.add_fault({"platform": "gcp_cloud_run", "outcome": "hangs", "resource": "stuck"})
    state, result, _ = stage.release("stuck", {"version": "6.0.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert "deadline passed" in result["reason"]
    assert stage.live("stuck") == everywhere("1.0.0")


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


def test_no_secret_anywhere(stage: Stage) -> None:
    """Runs last: everything the tests above left behind is searched."""
    assert not secrets_found(stage)
