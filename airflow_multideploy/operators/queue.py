"""Whether it is a run's turn: what becomes of a release that was asked for while another one ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from airflow.sdk import Context

from airflow_multideploy.catalog.parse import UNTIMED
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.run import ledger
from airflow_multideploy.release.plan import Plan, make_plan
from airflow_multideploy.release.status import Status

MISSED = 300.0
"""Seconds after which a scheduled run that Airflow makes only then was missed."""


def missed(context: Context, service: Service) -> str:
    """Why a run by cron does not release: Airflow made it long after it was due, because it did not run then; an empty
    text when it was made in time, also where it had to wait its turn since."""
    run: Any = context["dag_run"]
    ti: Any = context["ti"]
    kind = getattr(run, "run_type", "")
    by_cron = isinstance(service.schedule, str) and service.schedule not in UNTIMED
    if not by_cron or getattr(kind, "value", kind) != "scheduled":
        return ""
    made = _made_at(ti.id)
    if made is None or ti.try_number > 1 or run.clear_number or made <= run.run_after.timestamp() + MISSED:
        return ""
    due, came = (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (run.run_after.timestamp(), made)
    )
    return (
        f"missed: it was due at {due}, and Airflow came to it at {came}; release it by hand, or wait for the next tick"
    )


def _made_at(id_: UUID) -> float | None:
    """Epoch seconds at which a task instance was made, by its id; None where that does not say."""
    return (id_.int >> 80) / 1000 if id_.version == 7 else None


def passed_over(context: Context, plan: Plan, service: Service) -> str:
    """Why this run does not release, by the service's ``when_busy``; an empty text when it does.

    To be asked before anything is written. A run that a person has cleared was asked for just now: it releases. And so
    does a rollback, always.
    """
    run: Any = context["dag_run"]
    if plan.dry_run or plan.rollback or getattr(run, "clear_number", None):
        return ""
    if service.when_busy == "supersede":
        return _superseded(context, plan, service)
    return _rejected(context, plan, run) if service.when_busy == "reject" else ""


def rollback_behind(context: Context) -> str:
    """Why a run that only waits ends: a rollback is queued behind it. Empty: there is none."""
    for run in _waiting(context):
        conf = run["conf"] or {}
        if conf.get("rollback") is True and not conf.get("dry_run"):
            return f"gives way to the rollback in run {run['run_id']!r}, which waits behind it"
    return ""


def skip(task_ids: Iterable[str]) -> None:
    """Skip these tasks now, from a task that is about to fail: one that goes by "all done" would be started."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import SkipDownstreamTasks

    if tasks := list(task_ids):
        task_runner.SUPERVISOR_COMMS.send(SkipDownstreamTasks(tasks=tasks))


def _superseded(context: Context, plan: Plan, service: Service) -> str:
    for run in _waiting(context):
        newer = covering(plan, service, run)
        if newer is not None and run["run_after"] > context["dag_run"].run_after:
            return f"superseded by run {run['run_id']!r}, which releases {newer.release.version} and waits behind it"
    return ""


def covering(plan: Plan, service: Service, run: Mapping[str, Any]) -> Plan | None:
    """The plan of another run, when it is to release at least to all targets of this one; else None.

    One that would be refused, or writes nothing, covers nothing; nor does one whose version its conf does not say.

    :param run: with ``run_id``, ``dag_id`` and ``conf``.
    """
    try:
        other = make_plan(plan.name, service, run["conf"] or {}, dag_id=run["dag_id"], run_id=run["run_id"])
    except SpecError:
        return None
    return None if other.dry_run or not set(plan.selected) <= set(other.selected) else other


def _waiting(context: Context) -> Iterator[dict[str, Any]]:
    """The queued runs of this DAG."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetDagRun

    ti, dag_id, task_id = context["ti"], context["ti"].dag_id, context["ti"].task_id
    if not ti.get_dr_count(dag_id=dag_id, states=["queued"]):
        return
    # The one way for a task to list runs: each has an instance of this task, which in a queued one has no state yet.
    for run_id, states in ti.get_task_states(dag_id=dag_id, task_ids=[task_id]).items():
        if states.get(task_id) is None:
            run: Any = task_runner.SUPERVISOR_COMMS.send(GetDagRun(dag_id=dag_id, run_id=run_id))
            if getattr(run, "state", None) == "queued":
                yield run.model_dump()


def _rejected(context: Context, plan: Plan, run: Any) -> str:
    """By the ledger: runs that were refused at once held nobody up."""
    asked = run.run_after.timestamp()
    for record in ledger(context, plan.name).records(until=asked):
        ended = record.ended_at
        idle = record.status is Status.NOT_STARTED and not record.targets
        if record.run_id != run.run_id and not idle and ended is not None and record.started_at <= asked < ended:
            return f"rejected: run {record.run_id!r} was releasing {record.version} when this one was asked for"
    return ""
