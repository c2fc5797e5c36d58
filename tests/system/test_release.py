"""Releases on a real scheduler, dag-processor, triggerer and api-server, against the sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import KINDS, Stage, catalog, everywhere, secrets_found

pytestmark = pytest.mark.system


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
    """Runs last: everything the tests above left behind is searched."""
    assert not secrets_found(stage)
