"""What could make a release fail or hang, found before there is one."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from airflow.sdk import BaseHook
from packaging.requirements import Requirement

from airflow_multideploy.catalog import locks
from airflow_multideploy.catalog.parse import is_schedule
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.windows import Freeze
from airflow_multideploy.cli.catalog import Checked
from airflow_multideploy.errors import MultideployError, SpecError, UnknownPlatform
from airflow_multideploy.operators.windows import FREEZES
from airflow_multideploy.platforms.kinds import kinds, platform_type
from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import Journal
from airflow_multideploy.release.ledger import Ledger, Spoilt
from airflow_multideploy.release.windows import freezes_at, parse_freezes
from airflow_multideploy.store import database as stored
from airflow_multideploy.store import pools, variables


class Finding(Document):
    """One thing that is wrong.

    :param severity: of an ``error`` a release would fail or hang.
    """

    severity: Literal["error", "warning"] = "error"
    place: str
    reason: str
    remedy: str


def examine(catalog: Checked) -> list[Finding]:
    """All that is wrong, errors first; in a process that can read Airflow's database."""
    found = [
        *(_told(f"service {name}", each) for name, problems in catalog.problems.items() for each in problems),
        *_connections(catalog.services),
        *_pools(catalog.services),
        *_platforms(catalog.services),
        *_reconciler(),
        *_jobs(catalog.services),
        *_paused(catalog.services),
        *_freezes(catalog.services),
        *_stores(catalog.services),
    ]
    return sorted(found, key=lambda each: each.severity)


def _told(place: str, problem: str, **more: Any) -> Finding:
    """A problem as our errors write it: the reason, and after a semicolon the remedy."""
    reason, _, remedy = problem.rpartition("; ")
    return Finding(place=place, reason=reason or problem, remedy=remedy if reason else "mend it", **more)


def _connections(services: dict[str, Service]) -> Iterator[Finding]:
    users: dict[str, str] = {}
    for name, service in services.items():
        for target, config in service.targets.items():
            users.setdefault(config.conn_id, f"{name}/{target}")
        if service.artifact.registry_conn_id is not None:
            users.setdefault(service.artifact.registry_conn_id, f"{name}: artifact.registry_conn_id")
    for conn_id, user in users.items():
        try:
            BaseHook.get_connection(conn_id)
        except Exception as error:  # noqa: BLE001 - a secrets backend raises anything
            why = "does not exist" if type(error).__name__ == "AirflowNotFoundException" else type(error).__name__
            remedy = "create it, or correct the conn_id"
            yield Finding(place=f"Connection {conn_id}", reason=f"{why}; {user} needs it", remedy=remedy)


def _pools(services: dict[str, Service]) -> Iterator[Finding]:
    wanted = locks.pools(services.values())
    remedy = "run `airflow multideploy init`"
    for step in pools.steps(wanted, pools.existing()):
        if step.action != "keep":
            reason = f"{step.was}; needs {step.slots} slots, held by running tasks alone" if step.was else "is missing"
            yield Finding(place=f"pool {step.pool}", reason=reason, remedy=remedy)
    try:
        untold = wanted.keys() - pools.known().keys()
    except SpecError as error:
        yield _told(f"Variable {pools.MADE}", str(error))
    else:
        for pool in sorted(untold):
            yield Finding(place=f"Variable {pools.MADE}", reason=f"does not name {pool}", remedy=remedy)


def _platforms(services: dict[str, Service]) -> Iterator[Finding]:
    """What the distribution of a platform's kind asks for under the extra that its manual names."""
    for kind in sorted({config.platform for service in services.values() for config in service.targets.values()}):
        try:
            manual = platform_type(kind).manual
        except UnknownPlatform as error:
            yield Finding(place=f"platform {kind}", reason=str(error), remedy="install it")
            continue
        dist = kinds()[kind].dist
        if dist is None or manual is None or not manual.extra:
            continue
        missing = sorted(_missing(dist.requires or [], manual.extra))
        if missing:
            remedy = f"pip install '{dist.name}[{manual.extra}]' wherever tasks and triggers run"
            yield Finding(place=f"platform {kind}", reason=f"not installed here: {', '.join(missing)}", remedy=remedy)


def _missing(requires: list[str], extra: str) -> Iterator[str]:
    for each in map(Requirement, requires):
        if each.marker is None or not each.marker.evaluate({"extra": extra}) or each.marker.evaluate({"extra": ""}):
            continue
        try:
            if not each.specifier.contains(version(each.name), prereleases=True):
                yield str(each.name)
        except PackageNotFoundError:
            yield str(each.name)


def _reconciler() -> Iterator[Finding]:
    from airflow.configuration import conf

    mode = conf.get("multideploy", "reconcile", fallback="") or "off"
    place = "[multideploy] reconcile"
    if mode not in ("off", "report", "rollback"):
        yield Finding(place=place, reason=f"is {mode!r}", remedy="set off, report or rollback")
    elif mode == "off":
        reason = "is off: nobody looks after targets that a dead run leaves in doubt"
        yield Finding(severity="warning", place=place, reason=reason, remedy="set report or rollback")
    elif not is_schedule(schedule := conf.get("multideploy", "reconcile_schedule", fallback="*/10 * * * *")):
        place = "[multideploy] reconcile_schedule"
        yield Finding(place=place, reason=f"is {schedule!r}", remedy="set a cron expression, such as */10 * * * *")


def _jobs(services: dict[str, Service]) -> Iterator[Finding]:
    from airflow.jobs.job import Job
    from sqlalchemy import select

    needed = {"SchedulerJob": "scheduler"}
    if any(service.deferrable for service in services.values()):
        needed["TriggererJob"] = "triggerer"
    with stored.database() as session:
        for kind, command in needed.items():
            jobs = session.scalars(select(Job).where(Job.job_type == kind, Job.state == "running")).all()
            if not any(job.is_alive() for job in jobs):
                reason = "none is alive: a release would wait for ever"
                yield Finding(place=command, reason=reason, remedy=f"start `airflow {command}`, and look at its log")


def _paused(services: dict[str, Service]) -> Iterator[Finding]:
    for name in stored.paused(services):
        reason = "its DAG is paused: a run of it, a rollback too, stays queued"
        remedy = f"type `airflow dags unpause {name}`"
        yield Finding(severity="warning", place=f"service {name}", reason=reason, remedy=remedy)


def _freezes(services: dict[str, Service]) -> Iterator[Finding]:
    try:
        freezes = parse_freezes(variables.read_json(FREEZES))
        anywhere = {"services": ("*",), "environments": ("*",), "platforms": ("*",)}
        everything = [freeze.model_copy(update=anywhere) for freeze in freezes]
        freezes_at(everything, datetime.now(UTC), service="", platforms=[""])  # reads their calendars, too
        yield from _unmatched(freezes, services)
    except SpecError as error:
        for problem in error.problems:
            yield _told(f"Variable {FREEZES}", problem)
    except MultideployError as error:
        yield _told(f"Variable {FREEZES}", str(error))


def _unmatched(freezes: Iterable[Freeze], services: dict[str, Service]) -> Iterator[Finding]:
    """A freeze that is about nothing is a slip of the pen, and freezes nothing."""
    about: dict[str, set[str]] = {"services": set(), "environments": set(), "platforms": set()}
    for name, service in services.items():
        about["services"] |= {name, name.removesuffix(f"-{service.environment}")}
        about["environments"].add(service.environment or "")
        about["platforms"] |= {config.platform for config in service.targets.values()}
    for freeze in freezes:
        for field, names in about.items():
            for pattern in getattr(freeze, field):
                if not fnmatch.filter(names, pattern):
                    reason = f"freeze {freeze.name!r}: {field}: {pattern!r} fits nothing in the catalog"
                    remedy = "correct or remove it"
                    yield Finding(severity="warning", place=f"Variable {FREEZES}", reason=reason, remedy=remedy)


def _stores(services: dict[str, Service]) -> Iterator[Finding]:
    for name, service in services.items():
        try:
            store = stored.StoredState(name)
        except SpecError as error:
            reason, _, _ = str(error).rpartition("; ")
            remedy = "put dags/multideploy_services.py into the DAGs folder, and look at the DAG processor's log"
            yield Finding(severity="warning", place=f"service {name}", reason=reason, remedy=remedy)
            continue
        for target in service.targets:
            try:
                Journal(store, f"{name}/{target}", f"{target}.").read()
            except SpecError as error:
                yield _told(f"service {name}", str(error))
        try:
            spoilt = [each for each in Ledger(store, name).read() if isinstance(each, Spoilt)]
        except SpecError as error:
            yield _told(f"service {name}", str(error), severity="warning")
        else:
            for each in spoilt:
                yield _told(f"service {name}", each.outcome, severity="warning")
