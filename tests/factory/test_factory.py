"""The DAGs of a catalog: what is wrong in one place harms no other."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG, TaskGroup
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms, task_runner

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.factory.factory import service_dags
from airflow_multideploy.factory.names import CATALOG_DAG, RECONCILE_DAG
from airflow_multideploy.factory.wiring import finish
from airflow_multideploy.operators import queue
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.plugin.timetables import CronTimetable

SHOP = {"artifact": {"image": "registry.test/shop"}, "targets": {"dc1": {"platform": "http", "conn_id": "dc1"}}}


@pytest.fixture(autouse=True)
def catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": SHOP}))
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", "{}")


def reconciler(monkeypatch: pytest.MonkeyPatch, **options: str) -> str | None:
    """What the reconciler's DAG says of itself; None when there is none."""
    for name, value in options.items():
        monkeypatch.setenv(f"AIRFLOW__MULTIDEPLOY__{name.upper()}", value)
    dags = service_dags()
    assert not dags["shop"].description.startswith("BROKEN")
    return dags[RECONCILE_DAG].description if RECONCILE_DAG in dags else None


@pytest.mark.parametrize("off", ["off", ""])
def test_there_is_no_reconciler_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    assert reconciler(monkeypatch) is None
    assert reconciler(monkeypatch, reconcile=off) is None


def test_the_reconciler_reports_or_sends_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reconciler(monkeypatch, reconcile="report") == "Reports what dead runs left in doubt"
    assert reconciler(monkeypatch, reconcile="rollback") == "Sends back what dead runs left in doubt"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reconcile": "yes"}, "reconcile: is 'yes'; set off, report or rollback"),
        ({"reconcile": "report", "reconcile_schedule": "every ten"}, "reconcile_schedule: "),
    ],
)
def test_wrong_options_break_the_reconciler_alone(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], said: str
) -> None:
    shown = reconciler(monkeypatch, **options)
    assert shown is not None
    assert shown.startswith("BROKEN: [multideploy] ")
    assert said in shown


def wide(**more: object) -> dict[str, object]:
    """A service of five targets, of which the last waits for the first."""
    targets: dict[str, dict[str, object]] = {f"t{n}": {"platform": "http", "conn_id": "dc1"} for n in range(5)}
    targets["t4"]["depends_on"] = ["t0"]
    return {**SHOP, "targets": targets, **more}


def test_no_more_rollouts_at_once_than_the_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": wide(max_parallel=2)}))
    dag = service_dags()["shop"]
    waits = {name: dag.get_task(f"t{name}.deploy").upstream_task_ids - {"plan"} for name in range(5)}
    assert waits == {0: set(), 1: set(), 2: {"t0.deploy"}, 3: {"t1.deploy"}, 4: {"t0.deploy", "t2.deploy"}}
    assert all(dag.get_task(f"t{name}.deploy").trigger_rule == "all_done" for name in (2, 3, 4))


@pytest.mark.parametrize("strategy", ["all", "manual"])
def test_finalize_is_the_only_leaf_and_nothing_waits_a_second_for_the_mark(
    monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    service = wide(rollback={"strategy": strategy})
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": service}))
    dag = service_dags()["shop"]
    assert [task.task_id for task in dag.tasks if not task.downstream_task_ids] == ["finalize"]
    deploys = {f"t{n}.deploy" for n in range(5)}
    assert dag.get_task("aggregate_status").upstream_task_ids == deploys
    assert dag.get_task("deploys_ended").upstream_task_ids == deploys
    assert dag.get_task("deploys_ended").downstream_task_ids == {"finalize"}


def test_a_services_own_params_are_in_the_trigger_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"region": {"default": "eu", "enum": ["eu", "us"]}, "count": {"type": "integer"}}
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": wide(params=asked)}))
    params = service_dags()["shop"].params
    assert params.get_param("region").schema["enum"] == ["eu", "us"]
    assert params["region"] == "eu"
    assert params.get_param("count").schema["type"] == "integer"


def test_a_release_whenever_a_window_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {"zone": "Europe/Berlin", "open": [{"days": ["tue"], "from": "22:00", "to": "02:00"}]}
    monkeypatch.setenv(
        "AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": wide(schedule={"windows": windows}, version="1.0")})
    )
    dag = service_dags()["shop"]
    assert dag.timetable.summary == "tue 22:00 Europe/Berlin", dag.doc_md


def by_hand(dag_id: str, **default_args: Any) -> tuple[DAG, DeployOperator]:
    with DAG(dag_id, schedule=None, default_args=default_args) as dag:
        config = {"platform": "http", "conn_id": "dc1"}
        return dag, DeployOperator(task_id="dc1", config=config, image="registry.test/shop:1", version="1")


def test_the_tail_of_a_release_made_inside_a_task_group_is_refused() -> None:
    dag, deploy = by_hand("grouped")
    said = "finish: makes 'rollback' inside another TaskGroup; call it outside"
    with pytest.raises(ValueError, match=said), dag, TaskGroup("shop"):
        finish([deploy])


def test_the_mark_that_the_deploys_have_ended_stays_without_a_process_whatever_the_dags_defaults_are() -> None:
    dag, deploy = by_hand("told", on_success_callback=print, on_execute_callback=print)
    with dag:
        finish([deploy])
    mark = dag.get_task("deploys_ended")
    assert not mark.on_success_callback
    assert not mark.on_execute_callback
    assert dag.get_task("finalize").on_success_callback


def test_a_copy_of_a_task_is_killed_for_itself() -> None:
    _, deploy = by_hand("copied")
    copy.deepcopy(deploy).on_kill()
    deploy._clock.check()


# --- what stands in for what cannot be read


def test_a_broken_service_goes_on_naming_its_journals_which_airflow_would_delete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = {**SHOP, "sucess": {"policy": "all"}}
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": broken, "cart": 7}))
    dags = service_dags()
    for name in ("shop", "cart"):
        assert dags[name].description.startswith("BROKEN: ")
        assert [asset.name for task in dags[name].tasks for asset in task.inlets] == [f"{name}/journal"]


def test_a_catalog_that_cannot_be_read_is_no_reason_to_say_that_nothing_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", "{")
    monkeypatch.setenv("AIRFLOW__MULTIDEPLOY__RECONCILE", "report")
    dags = service_dags()
    assert set(dags) == {CATALOG_DAG, RECONCILE_DAG}
    for dag in dags.values():
        assert dag.description.startswith("BROKEN: Variable multideploy_services: is no JSON")


def test_no_backfill_and_no_tick_that_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    daily = {**SHOP, "schedule": "0 10 * * *", "version": "1"}
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": daily}))
    dag = service_dags()["shop"]
    assert dag.allowed_run_types is not None
    assert "backfill" not in {kind.value for kind in dag.allowed_run_types}
    assert {"manual", "scheduled", "asset_triggered"} <= {kind.value for kind in dag.allowed_run_types}
    assert isinstance(dag.timetable, CronTimetable)


@pytest.mark.parametrize(("late", "missed"), [(10, False), (3600, True)])
def test_a_run_that_airflow_makes_long_after_it_was_due_releases_nothing(late: float, missed: bool) -> None:
    due = datetime(2026, 11, 24, 10, tzinfo=UTC)
    made = UUID(int=int((due.timestamp() + late) * 1000) << 80 | 7 << 76 | 2 << 62)
    run = SimpleNamespace(run_type="scheduled", run_after=due, clear_number=0)
    context: Any = {"dag_run": run, "ti": SimpleNamespace(id=made, try_number=1)}
    daily = parse_service("shop", {**SHOP, "schedule": "0 10 * * *", "version": "1"}, config_type=config_type)
    said = "missed: it was due at 2026-11-24T10:00:00+00:00, and Airflow came to it at 2026-11-24T11:00:00+00:00"
    assert queue.missed(context, daily).startswith(said) is missed
    run.run_type = "manual"
    assert queue.missed(context, daily) == ""


class InFlight:
    """What the DAG processor's supervisor answers while a run of ``shop`` is in flight."""

    def send(self, message: Any) -> Any:
        if isinstance(message, comms.GetVariableKeys):
            return comms.VariableKeysResult(keys=["multideploy_frozen_shop"], total_entries=1)
        if isinstance(message, comms.GetTaskStates):
            return comms.TaskStatesResult(task_states={"run1": {"dc1.deploy": "deferred"}})
        return comms.ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)


def test_a_run_in_flight_has_one_dag_that_of_its_frozen_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow collects the DAGs that a file makes, not those that it keeps: of two with one id it would take either."""
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": {**SHOP, "sucess": {}}, "cart": SHOP}))
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_FROZEN_SHOP", json.dumps({"service": SHOP, "run_id": "run1"}))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", InFlight(), raising=False)
    made: list[str] = []
    leave = DAG.__exit__
    monkeypatch.setattr(DAG, "__exit__", lambda dag, *how: (made.append(dag.dag_id), leave(dag, *how))[1])
    dags = service_dags()
    assert made.count("shop") == made.count("cart"), "none for the entry that is broken meanwhile"
    assert "dc1.deploy" in dags["shop"].task_ids


def test_a_run_that_waited_while_its_service_was_taken_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"cart": SHOP}))
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "shop")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "plan")
    assert service_dags()["shop"].task_ids == ["plan"]
