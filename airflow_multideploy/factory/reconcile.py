"""The DAG that looks after what dead runs left in doubt."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.configuration import conf

from airflow_multideploy.catalog.parse import is_schedule, parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.factory.broken import error_dag
from airflow_multideploy.factory.names import CATALOG_DAG, RECONCILE_DAG, START
from airflow_multideploy.operators.reconcile import ReconcileOperator
from airflow_multideploy.platforms.kinds import config_type


def reconcile_dag(services: Mapping[str, Service], *, schedule: str, settle: bool) -> DAG:
    """The DAG that looks after targets whose run is over and which nobody answered for.

    :param settle: send them back to their snapshots; False only reports them.
    """
    with DAG(
        dag_id=RECONCILE_DAG,
        description=f"{'Sends back' if settle else 'Reports'} what dead runs left in doubt",
        schedule=schedule,
        start_date=START,
        catchup=False,
        max_active_runs=1,
        tags=["multideploy"],
        doc_md="Finds unsettled journals whose run is over. Fails while a target stays in doubt, and says why.",
    ) as dag:
        ReconcileOperator(task_id="reconcile", services=services, settle=settle, retries=0)
    return dag


def _reconcile_mode() -> str:
    return str(conf.get("multideploy", "reconcile", fallback="") or "off")


def _reconcile_dag(mode: str, entries: Mapping[str, Any], defaults: Any) -> DAG:
    if mode not in ("report", "rollback"):
        return error_dag(RECONCILE_DAG, SpecError(f"[multideploy] reconcile: is {mode!r}; set off, report or rollback"))
    schedule = str(conf.get("multideploy", "reconcile_schedule", fallback="*/10 * * * *"))
    if not is_schedule(schedule):
        return error_dag(
            RECONCILE_DAG,
            SpecError(
                f"[multideploy] reconcile_schedule: is {schedule!r}; set a cron expression, such as */10 * * * *"
            ),
        )
    if isinstance(unreadable := entries.get(CATALOG_DAG), Exception):
        return error_dag(RECONCILE_DAG, unreadable)  # of no service it could say that nothing is in doubt
    services = {}
    for name, entry in entries.items():
        with suppress(Exception):  # a broken service has a DAG of its own that shows its error
            services[name] = parse_service(name, entry, defaults=defaults, config_type=config_type)
    return reconcile_dag(services, schedule=schedule, settle=mode == "rollback")
