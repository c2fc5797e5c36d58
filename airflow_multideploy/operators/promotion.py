"""Between services: what a release waits for before it begins, and what it tells the others at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseOperator, Context

from airflow_multideploy.catalog.promotion import Promote, Required
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.clock import TaskClock
from airflow_multideploy.operators.queue import rollback_behind
from airflow_multideploy.operators.run import journal
from airflow_multideploy.operators.windows import pause
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.plan import Plan, release_id
from airflow_multideploy.release.promotion import Released
from airflow_multideploy.release.verdict import Verdict
from airflow_multideploy.store.assets import service_asset, target_asset

SHORTEST, LONGEST = 10.0, 60.0
"""Seconds between two looks at another service; a shorter wait is not worth a deferral (docs/measured.md)."""
TargetsOf = Callable[[str], Iterable[str]]
"""Gives the targets of another service of the catalog, or raises `SpecError`."""


def no_catalog(service: str) -> Iterable[str]:
    """For a DAG that no catalog stands behind.

    :raises SpecError: always.
    """
    raise SpecError(f"requires.{service}: there is no catalog that knows its targets; use service_dags")


def promoted(context: Context, promote: Promote | None) -> Released | None:
    """The release whose event started this run: the newest, where there were several; None when none did.

    :raises SpecError: it is not one that is promoted, or the event is not ours.
    """
    triggered: Any = context.get("triggering_asset_events")
    if promote is None or not triggered:
        return None
    try:
        *_, event = sorted(triggered[service_asset(promote.source)], key=lambda each: each.timestamp)
    except (KeyError, ValueError):
        return None
    what = f"{promote.source}: the event of its asset (run {event.source_run_id!r:.100})"
    found = Released.load(
        {**(event.extra or {}), "at": event.timestamp.timestamp()},
        what=what,
        remedy=f"release {promote.source} again, or this service by hand",
    )
    if why := found.unfit(degraded=promote.degraded):
        raise SpecError(f"promote: {what}: {why}")
    return found


def others(service: Service) -> list[str]:
    """Services whose journals are looked at before this one is released."""
    return [*([service.promote.source] if service.promote else []), *service.requires]


def hold(
    operator: BaseOperator, context: Context, plan: Plan, service: Service, clock: TaskClock, *, targets_of: TargetsOf
) -> None:
    """Wait until everything is live on which this release builds; the deferred task goes on with ``resume``.

    :raises SpecError: it is not, and is not to be waited for.
    """
    while not plan.rollback and (found := _pending(context, plan, service, clock.time(), targets_of)) is not None:
        until, why = found
        until = min(until, clock.time() + pause(clock.time() - _since(context, clock.time())))
        moment = datetime.fromtimestamp(until, UTC)
        operator.log.info("%s: waits until %s: %s", plan.name, moment.isoformat(timespec="seconds"), why)
        if plan.dry_run:
            return
        if way := rollback_behind(context):
            raise SpecError(way, service=plan.name)
        if service.deferrable and until - clock.time() >= SHORTEST:
            operator.defer(trigger=DateTimeTrigger(moment=moment), method_name="resume")
        clock.sleep(max(until - clock.time(), 0.0))


def _pending(
    context: Context, plan: Plan, service: Service, now: float, targets_of: TargetsOf
) -> tuple[float, str] | None:
    """Until when to wait, in epoch seconds, and why; None when there is nothing to wait for."""
    since = _since(context, now)
    if plan.source is not None and service.promote is not None:
        journals = {t: journal(context, plan.source.service, t) for t in plan.source.targets}
        if gone := plan.source.gone(journals):
            why = f"{plan.source.version} is no longer what {plan.source.service} runs: {'; '.join(gone)}"
            raise SpecError(f"promote: {why}; its next release is promoted again", service=plan.name)
        ripe = plan.source.at + (service.promote.bake or 0.0)
        if ripe > now:
            return ripe, f"{plan.source.version} bakes in {plan.source.service}"
        since = max(since, ripe)
    for name, required in service.requires.items():
        if missing := _missing(context, name, required, targets_of):
            why = f"requires.{name}: {required.version} is not live there: {'; '.join(missing)}"
            end = since + (required.wait or 0.0)
            if now >= end:
                raise SpecError(f"{why}; release it first", service=plan.name)
            return min(now + min(max((now - since) / 8, SHORTEST), LONGEST), end), why
    return None


def _since(context: Context, now: float) -> float:
    began = getattr(context["dag_run"], "start_date", None)
    return began.timestamp() if began is not None else now


def _missing(context: Context, name: str, required: Required, targets_of: TargetsOf) -> list[str]:
    found = []
    for target in targets_of(name):
        live = journal(context, name, target).live()
        if live is None or not required.met_by(live.version):
            found.append(f"{target} runs {live.version if live else 'nothing that we know of'}")
    return found


def tell(
    operator: BaseOperator, context: Context, verdict: Verdict, release: Release | None, plan: Plan | None
) -> None:
    """Events for a service's asset, and for those of its targets on which the release is live.

    :param operator: a task whose outlets these are; the others are taken from it, because each one that a task has at
        its end gets an event.
    """
    asked = {result.target for result in verdict.results} if plan is None else {*plan.selected, *plan.skipped}
    said = Released(
        service=verdict.service,
        environment=plan.environment if plan else None,
        status=verdict.status,
        version=verdict.version,
        dag_id=operator.dag_id,
        run_id=context["run_id"],
        release_id=release_id(operator.dag_id, context["run_id"]),
        targets={result.target: result.phase for result in verdict.results},
        left_out=tuple(result.target for result in verdict.results if result.target not in asked),
        rollback=plan is not None and plan.rollback,
        **(release.model_dump(include={"image", "digest", "reason"}) if release else {"image": ""}),
    )
    events = context["outlet_events"]
    events[service_asset(said.service)].extra = said.dump()
    for target in said.verified():
        events[target_asset(said.service, target)].extra = said.of(target)
    untold = {target_asset(said.service, target).name for target in said.targets.keys() - set(said.verified())}
    operator.outlets = [each for each in operator.outlets if getattr(each, "name", None) not in untold]
