"""From the catalog to DAGs: one per service."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, get_parsing_context
from airflow.sdk.configuration import conf

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.factory.broken import error_dag
from airflow_multideploy.factory.entries import _entries, _entry
from airflow_multideploy.factory.names import CATALOG_DAG, PLAN, RECONCILE_DAG
from airflow_multideploy.factory.reconcile import _reconcile_dag, _reconcile_mode
from airflow_multideploy.factory.service import service_dag
from airflow_multideploy.operators.plan import PlanOperator
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.store import variables

_log = logging.getLogger(__name__)


def service_dags(catalog: str | Path | None = None) -> dict[str, DAG]:
    """One DAG per service; ``globals().update(service_dags())`` in a DAG file is all it takes.

    A service that is broken becomes a DAG that shows its error, and harms no other. In a task's process only that
    task's DAG is built, from the config that its run has frozen.

    :param catalog: a YAML or JSON file; default: the file that ``[multideploy] catalog_file`` names, else the Variables
        ``multideploy_services`` and ``multideploy_defaults``.
    """
    catalog = catalog or conf.get("multideploy", "catalog_file", fallback="") or None
    context = get_parsing_context()
    if context.dag_id is not None:
        return _only(context.dag_id, planning=context.task_id == PLAN, catalog=catalog)
    with _uncollected():
        return _all(catalog)


def _all(catalog: str | Path | None) -> dict[str, DAG]:
    try:
        in_flight = _in_flight()
    except SpecError as error:
        return {CATALOG_DAG: error_dag(CATALOG_DAG, error)}  # what was parsed before stands
    try:
        entries, defaults = _entries(catalog)
    except (SpecError, OSError) as error:
        entries, defaults = {CATALOG_DAG: error}, None
    # One DAG for each name: of two that are made, Airflow would take either.
    dags = {name: _dag(name, entry, defaults, catalog) for name, entry in entries.items() if name not in in_flight}
    dags |= {name: _dag(name, service, None) for name, service in in_flight.items() if service is not None}
    if (mode := _reconcile_mode()) != "off":
        dags[RECONCILE_DAG] = _reconcile_dag(mode, entries, defaults)
    return dags


def _in_flight() -> dict[str, Any]:
    """By service the frozen config of its run in flight, which keeps its DAG as it was when it began: the scheduler
    drops the runs of a DAG that vanished. None where it cannot be read: what was parsed before stands, and the run goes
    on.

    :raises Unreadable: which there are is not known.
    """
    found: dict[str, Any] = {}
    for key in variables.keys(variables.FROZEN):
        name = key.removeprefix(variables.FROZEN)
        try:
            kept = variables.frozen(name)
        except SpecError as error:
            _log.error("%s; the DAG of %s is not read this time", error, name)
            found[name] = None
            continue
        if kept is not None and variables.under_way(name, kept.run_id):
            found[name] = kept.service
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: all that is made here stays, and looking at it again and again would take a
    third of the time that a large catalog takes. In the DAG processor it stays off: that process serialises the DAGs of
    this one file, and ends."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on and not variables.supervised():
            gc.enable()


def _only(name: str, *, planning: bool, catalog: str | Path | None) -> dict[str, DAG]:
    if name == RECONCILE_DAG:
        return {name: _reconcile_dag(_reconcile_mode(), *_entries(catalog))}
    if not planning and (kept := variables.frozen(name)) is not None:
        return {name: _dag(name, kept.service, None)}
    entry, defaults = _entry(name, catalog)
    if entry is None and planning:  # a run that waited while its service was taken out: its plan says so
        with DAG(name, schedule=None) as dag:
            PlanOperator(task_id=PLAN, name=name, service=None)
        return {name: dag}
    return {} if entry is None else {name: _dag(name, entry, defaults, catalog)}


def _dag(name: str, entry: Any, defaults: Any, catalog: str | Path | None = None) -> DAG:
    try:
        if isinstance(entry, Exception):
            raise entry
        service = parse_service(name, entry, defaults=defaults, config_type=config_type)
        return service_dag(name, service, catalog)
    except (SpecError, OSError) as error:
        return error_dag(name, error)
    except Exception as error:  # noqa: BLE001 - any error in a DAG file makes every DAG in it stale
        return error_dag(name, error)
