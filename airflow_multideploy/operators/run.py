"""Where a release's records live in Airflow: the journals of its targets, in the state store of one asset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseOperator, Context

from airflow_multideploy.errors import (
    SpecError,
)
from airflow_multideploy.release.contract import Observation, Release
from airflow_multideploy.release.decisions import Decisions
from airflow_multideploy.release.journal import GOOD, Entry, Journal, Phase, Run
from airflow_multideploy.release.ledger import Ledger, Record
from airflow_multideploy.release.plan import Plan, release_id
from airflow_multideploy.release.status import TargetResult, result_of
from airflow_multideploy.store.assets import journal_asset
from airflow_multideploy.store.variables import OVER, supervised

_STARTED_BY = {"scheduled": "schedule", "asset_triggered": "asset", "asset_materialization": "asset"}
_log = logging.getLogger(__name__)


def journal(context: Context, service: str, target: str) -> Journal:
    """The journal of one target, out of a running task."""
    store = context["asset_state_store"][journal_asset(service)]
    return Journal(store, f"{service}/{target}", prefix=f"{target}.")


def this_run(context: Context, dag_id: str, clear: float | None = None) -> Run:
    """The run of a running task.

    :param clear: see `Run`; None: Airflow's count.
    """
    run: Any = context["dag_run"]
    # Under `dags test` a run begins on the date that it is given.
    began, due = getattr(run, "start_date", None) if supervised() else None, getattr(run, "run_after", None)
    return Run(
        dag_id=dag_id,
        run_id=context["run_id"],
        clear=clear or getattr(run, "clear_number", None) or 0,
        since=began.timestamp() if began is not None else 0.0,
        due=due.timestamp() if due is not None else 0.0,
    )


def own_entry(context: Context, dag_id: str, service: str, target: str) -> Entry | None:
    """The target's journal entry when it is this run's; not that of a deleted run of the same name."""
    entry, run = journal(context, service, target).read(), this_run(context, dag_id)
    return entry if entry is not None and entry.is_of(run) and not entry.is_of_namesake(run) else None


def ledger(context: Context, service: str) -> Ledger:
    """The ledger of a service, out of a running task."""
    return Ledger(context["asset_state_store"][journal_asset(service)], service)


@contextmanager
def recording() -> Iterator[None]:
    """What goes wrong in the block is logged, and no more: the ledger tells of releases, and decides nothing."""
    try:
        yield
    except Exception:  # noqa: BLE001 - a spoilt document, a store that does not answer, a bug: the release goes on
        _log.exception("the ledger could not be kept; the release goes on")


def new_record(context: Context, dag_id: str, release: Release, *, now: float) -> Record:
    """The record of this run, before anything is known but who asked for what.

    :param now: epoch seconds, for a run of which Airflow does not tell when it began.
    """
    run: Any = context["dag_run"]
    began, kind = getattr(run, "start_date", None), getattr(run, "run_type", "manual")
    kind = str(getattr(kind, "value", kind))
    return Record(
        release_id=release_id(dag_id, context["run_id"]),
        service=release.service,
        dag_id=dag_id,
        run_id=context["run_id"],
        version=release.version,
        image=release.image,
        digest=release.digest,
        actor=getattr(run, "triggering_user_name", None) or _STARTED_BY.get(kind, kind),
        reason=release.reason,
        force=release.force,
        started_at=began.timestamp() if began is not None else now,
    )


def decisions(context: Context, service: str, run: tuple[str, str] | None = None) -> Decisions:
    """What decides this run, out of a running task.

    :param run: ids of another run's DAG, and of that run.
    """
    dag_id, run_id = run or (context["ti"].dag_id, context["run_id"])
    return Decisions(context["asset_state_store"][journal_asset(service)], service, release_id(dag_id, run_id))


def pull_plan(context: Context, service: str, task_id: str, *, strict: bool = False) -> Plan | None:
    """The plan of this run as the record has it, or None when the plan task did not get that far.

    A dry run's, which nothing follows from, is in XCom alone.

    :param strict: refuse where XCom shows another one, or none can be read; else only the log tells, and what is spoilt
        counts as none.
    :raises SpecError: see ``strict``.
    """
    shown = context["ti"].xcom_pull(task_ids=task_id, key="return_value")
    if shown is None:
        return None
    try:
        plan = decisions(context, service).plan()
    except SpecError as error:
        if strict:
            raise
        _log.error("%s", error)
        return None
    if plan is None and isinstance(shown, dict) and shown.get("dry_run") is True:
        return Plan.load(shown, what=f"the plan that task {task_id} left in XCom", remedy="clear that task")
    if shown != (None if plan is None else plan.dump()):
        why = f"the plan in XCom of task {task_id!r} is not the one that it froze: somebody changed it"
        if strict:
            raise SpecError(f"{why}; nothing is deployed by it, release again", service=service)
        _log.error("%s: %s; going by the record", service, why)
    return plan


def seen_by_trigger(event: object, name: str) -> Observation:
    """What the triggerer saw of ``service/target``.

    :raises SpecError: the event is no observation; another try of the task looks again.
    """
    return Observation.load(event, what=f"{name}: the triggerer's event", remedy="clear the task: it looks again")


APPROVAL = "approval"
"""XCom key under which a gate shows what was chosen there."""


def not_approved(context: Context, service: str, gates: Iterable[str]) -> str:
    """Why one of these gates lets nothing past, or an empty text. A gate that says nothing says no.

    :param gates: ids of the tasks.
    """
    for gate in gates:
        shown: Any = context["ti"].xcom_pull(task_ids=gate, key=APPROVAL)
        if not shown:
            return f"the {gate} task did not end well; its log says why"
        kept = decisions(context, service).answers(gate)
        if shown != [each.dump() for each in kept]:
            return (
                f"the answer in XCom of task {gate!r} is not what Airflow's question was answered: somebody changed it"
            )
        said = kept[-1]
        if said.choice != "approve":
            return f"rejected by {said.by}: {said.reason}".rstrip(": ") if said.by else f"not approved: {said.reason}"
    return ""


def keep_record(context: Context, record: Record) -> None:
    """Keep a release's record in the ledger, and forget what decided those that are dropped for it."""
    book = ledger(context, record.service)
    for old in book.keep(record):
        kept = decisions(context, record.service, (record.dag_id, old.run_id))
        kept.forget([task.task_id for task in context["dag"].tasks if getattr(task, "decides", False)])


def cleared_alone(operator: BaseOperator, context: Context, after: Iterable[str]) -> str:
    """Why a task does not begin anew that a person has cleared without those that come after it; else empty.

    :param after: ids of the tasks that have to run after it.
    """
    run_id, wanted = context["run_id"], list(after)
    if not wanted or not getattr(context["dag_run"], "clear_number", None):
        return ""
    found = context["ti"].get_task_states(dag_id=operator.dag_id, task_ids=wanted, run_ids=[run_id]).get(run_id, {})
    ended = next((task_id for task_id in wanted if str(found.get(task_id)) in OVER), "")
    return ended and f"{ended} had ended before {operator.task_id} was cleared; clear it with everything downstream"


ROLLOUT = "rollout"
"""XCom key of a target's result document."""


def times_cleared(context: Context) -> float:
    """How often a person has cleared tasks of this run."""
    return getattr(context["dag_run"], "clear_number", None) or 0


def outcome_of(context: Context, dag_id: str, service: str, target: str, task_id: str) -> TargetResult:
    """What a target came to in this run: by its journal, else by what its deploy task pushed; else it is pending."""
    entry = own_entry(context, dag_id, service, target)
    pushed = context["ti"].xcom_pull(task_ids=task_id, key=ROLLOUT)
    what = f"{service}/{target}: the result that {task_id} left in XCom"
    said = TargetResult.load(pushed, what=what, remedy="clear that task") if pushed else TargetResult(target=target)
    if entry is None:
        if not (said.touched or said.phase in GOOD):
            return said
        later = journal(context, service, target).read()
        why = f"run {later.run_id!r} came after it" if later else f"{task_id} says so, and the record does not"
        lost = {"phase": Phase.UNKNOWN, "deployed": Phase.FAILED, "touched": False}
        return said.model_copy(update={**lost, "reason": why})
    # Cleared, and skipped this time: what it once came to no longer counts, unless something of it is left there.
    gone = entry.settled and (entry.phase is Phase.ROLLED_BACK or not entry.touched)
    now = result_of(entry, critical=True)
    if said.phase is Phase.PENDING and said.reason and entry.phase in GOOD and entry.clear < times_cleared(context):
        # Cleared, and held back this time: it was good once, and is not what was asked for now.
        return now.model_copy(update={"phase": said.phase, "deployed": said.deployed, "reason": said.reason})
    return said if gone and said.phase is Phase.SKIPPED else now
