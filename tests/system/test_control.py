"""Release control on a real Airflow: fail fast, a few at once, conditions, freezes, and going back on demand."""

from __future__ import annotations

import json

import pytest

from tests.system.conftest import KINDS, Stage, everywhere
from tests.system.test_ledger import history
from tests.system.test_plan import multideploy

pytestmark = [pytest.mark.system, pytest.mark.long]


def test_fail_fast_stops_the_siblings_in_flight_and_takes_them_back(stage: Stage) -> None:
    for kind in KINDS.values():
        outcome = {"outcome": "fails"} if kind == "azure_web_app" else {"outcome": "slow", "seconds": 120}
        stage.sandbox.world.add_fault({"platform": kind, "resource": "fast", **outcome})
    state, result, run_id = stage.release("fast", {"version": "2.0.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    assert stage.live("fast") == everywhere("1.0.0")
    stopped = {r["target"] for r in result["results"] if "stopped (fail_fast): azure failed" in r["reason"]}
    assert stopped == {"aws", "gcp", "onprem"}
    assert result["figures"]["deployment_seconds"] < 60, "nobody waited for the slow ones"
    assert not result["cancelled"]
    # Its notifiers are in trouble: one raises, one hangs for 30 s, one points nowhere. Only the log tells.
    assert (stage.sandbox.folder / "told-in-trouble").read_text() == "fast rolled_back\n"
    for task in ("plan", "finalize"):
        log = "".join(
            path.read_text() for path in (stage.airflow.home / "logs").glob(f"*/run_id={run_id}/task_id={task}/*")
        )
        for why in ("no network", "no answer within 10 s", "No module named 'no'"):
            assert why in log, (task, why)


def test_a_few_at_once_and_a_condition_over_params(stage: Stage) -> None:
    state, result, run_id = stage.release("lanes", {"version": "2.0.0"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("lanes") == {**everywhere("2.0.0"), "gcp": "1.0.0"}
    assert stage.airflow.task_instances("lanes", run_id)["gcp.deploy"]["state"] == "skipped"
    skipped = next(r for r in result["results"] if r["target"] == "gcp")
    assert skipped["reason"] == 'not when params.region == "us"'
    state, result, _ = stage.release("lanes", {"version": "3.0.0", "region": "us"})
    assert (state, stage.live("lanes")) == ("success", everywhere("3.0.0"))
    spans = [(r["started_at"], r["ended_at"]) for r in result["results"]]
    most = max(sum(start <= at < end for start, end in spans) for at, _ in spans)
    assert most == 2, spans
    with pytest.raises(RuntimeError, match=r": 400 "):
        stage.airflow.trigger("lanes", {"version": "4.0.0", "region": "mars"})


def test_three_versions_back_on_all_platforms_though_the_service_is_frozen(stage: Stage) -> None:
    for version in ("1.1.0", "1.2.0", "1.3.0", "1.4.0"):
        assert stage.release("back", {"version": version})[0] == "success"
    freeze = [{"name": "year end", "from": "2020-01-01T00:00", "to": "2999-01-01T00:00", "services": ["back"]}]
    stage.airflow.api("POST", "/variables", json={"key": "multideploy_freezes", "value": json.dumps(freeze)})
    writes = stage.writes()
    state, result, _ = stage.release("back", {"version": "1.5.0"})
    assert (state, result["status"]) == ("failed", "not_started")
    assert "frozen by 'year end'" in result["reason"]
    assert stage.writes() == writes
    state, result, _ = stage.release("back", {"version": "1.1.0", "rollback": True, "reason": "INC-7"})
    assert (state, result["status"]) == ("success", "succeeded"), result
    assert stage.live("back") == everywhere("1.1.0")
    assert all(r["verified"] for r in result["results"])
    state, result, _ = stage.release("back", {"version": "1.5.0", "override": "INC-8"})
    assert (state, stage.live("back")) == ("success", everywhere("1.5.0")), result
    # And by the command: to what was there before, on two of them.
    said = multideploy(stage, "rollback", "back", "--targets", "aws,onprem", "--reason", "INC-9", "-o", "json")
    run_id = json.loads(said)["run_id"]
    assert stage.airflow.finish("back", run_id, timeout=180) == "success"
    assert stage.live("back") == {**everywhere("1.5.0"), "aws": "1.1.0", "onprem": "1.1.0"}
    last, *kept = history(stage, "back")
    assert (last["run_id"], last["kind"], last["reason"]) == (run_id, "rollback", "INC-9")
    multideploy(stage, "rollback", "bakc", code=2)
    assert [(r["kind"], r["version"], r["status"]) for r in kept[:3]] == [
        ("release", "1.5.0", "succeeded"),
        ("rollback", "1.1.0", "succeeded"),
        ("release", "1.5.0", "not_started"),
    ]
    assert kept[1]["reason"] == "INC-7"
    assert [(o["reason"], "year end" in o["what"]) for o in kept[0]["overrides"]] == [("INC-8", True)]


def test_a_release_that_waits_for_its_window_gives_way_to_a_rollback(stage: Stage) -> None:
    for version in ("2.0.0", "3.0.0"):
        state, result, _ = stage.release("patient", {"version": version, "override": "INC-1"})
        assert (state, result["status"]) == ("success", "succeeded"), result
    waiting = stage.airflow.trigger("patient", {"version": "4.0.0"})
    deploys = [f"{name}.deploy" for name in KINDS]
    stage.wait_until(
        "all deploys wait for the window",
        lambda: all(stage.airflow.task_instances("patient", waiting)[t]["state"] == "deferred" for t in deploys),
    )
    started = json.loads(multideploy(stage, "rollback", "patient", "--reason", "INC-2", "-o", "json"))
    assert started["after"] == [waiting]
    assert stage.airflow.finish("patient", waiting, timeout=180) == "failed"
    result = stage.airflow.xcom("patient", waiting, "finalize")
    assert result["status"] == "not_started", result
    assert f"gives way to the rollback in run {started['run_id']!r}" in result["reason"]
    assert stage.airflow.finish("patient", started["run_id"], timeout=180) == "success"
    assert stage.live("patient") == everywhere("2.0.0")


def test_clearing_without_what_follows_is_refused_and_what_had_gone_back_is_not_counted_as_released(
    stage: Stage,
) -> None:
    stage.sandbox.world.add_fault({"platform": "http", "answer": "400", "operation": "PUT .*cleared"})
    state, result, run_id = stage.release("cleared", {"version": "2.0.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    writes, run = stage.writes(), f"/dags/cleared/dagRuns/{run_id}"
    # "Clear only failed": the deploy and finalize, but neither the verdict nor the rollback between them.
    stage.airflow.api("POST", f"{run}/clear", json={"dry_run": False, "only_failed": True})
    assert stage.airflow.finish("cleared", run_id, timeout=180) == "failed"
    assert stage.airflow.xcom("cleared", run_id, "finalize")["status"] == "rolled_back"
    assert (stage.writes(), stage.live("cleared")) == (writes, everywhere("1.0.0"))
    logs = (stage.airflow.home / "logs").glob(f"*/run_id={run_id}/task_id=onprem.deploy/*")
    assert any("cleared; clear it with everything downstream" in path.read_text() for path in logs)
    # That deploy with all that follows: it comes up now, but the other three had gone back, so it goes back too.
    clear = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, "reset_dag_runs": True}
    deploys = {**clear, "include_downstream": True, "task_ids": ["onprem.deploy"]}
    stage.airflow.api("POST", "/dags/cleared/clearTaskInstances", json=deploys)
    assert stage.airflow.finish("cleared", run_id, timeout=180) == "failed"
    result = stage.airflow.xcom("cleared", run_id, "finalize")
    assert (result["status"], stage.live("cleared")) == ("rolled_back", everywhere("1.0.0")), result
    assert "aws: rolled_back (had gone back before this was decided; clear its deploy too)" in (result["reason"])
    # All of them: the release, once more.
    deploys["task_ids"] = [f"{name}.deploy" for name in KINDS]
    stage.airflow.api("POST", "/dags/cleared/clearTaskInstances", json=deploys)
    state = stage.airflow.finish("cleared", run_id, timeout=180)
    result = stage.airflow.xcom("cleared", run_id, "finalize")
    assert (state, result["status"], stage.live("cleared")) == ("success", "succeeded", everywhere("2.0.0")), result
    # A later run comes. What has become of the earlier one's targets since, clearing it does not tell.
    state, result, _ = stage.release("cleared", {"version": "3.0.0"})
    assert (state, stage.live("cleared")) == ("success", everywhere("3.0.0")), result
    stage.airflow.api("POST", "/dags/cleared/clearTaskInstances", json={**clear, "task_ids": ["finalize"]})
    assert stage.airflow.finish("cleared", run_id, timeout=180) == "failed"
    result = stage.airflow.xcom("cleared", run_id, "finalize")
    assert result["status"] == "unknown"
    assert "aws: unknown (run " in result["reason"]


def test_a_deleted_runs_id_is_refused_and_nothing_of_that_run_is_undone(stage: Stage) -> None:
    """Also after a clear, which changes when a run began."""
    state, result, run_id = stage.release("cleared", {"version": "4.0.0"})
    assert (state, stage.live("cleared")) == ("success", everywhere("4.0.0")), result
    writes, runs = stage.writes(), "/dags/cleared/dagRuns"
    stage.airflow.api("DELETE", f"{runs}/{run_id}")
    conf = {"version": "5.0.0"}
    stage.airflow.api("POST", runs, json={"dag_run_id": run_id, "logical_date": None, "conf": conf})
    for cleared in (False, True):
        if cleared:
            stage.airflow.api("POST", f"{runs}/{run_id}/clear", json={"dry_run": False, "only_failed": False})
        assert stage.airflow.finish("cleared", run_id, timeout=180) == "failed"
        result = stage.airflow.xcom("cleared", run_id, "finalize")
        assert (result["status"], stage.writes()) == ("not_started", writes)
        assert f"another run was called {run_id!r}, and was deleted since" in result["reason"]
    assert stage.live("cleared") == everywhere("4.0.0")
