"""When a release may make its first write: its windows, and the freezes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseOperator

from airflow_multideploy.catalog.windows import Scheduled, Windows
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.clock import TaskClock
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.release.windows import Blocked, gate, parse_freezes
from airflow_multideploy.store import variables

FREEZES = "multideploy_freezes"
"""Variable: a JSON list of freezes."""
SHORTEST, LONGEST = 10.0, 300.0
"""Seconds of one wait: Airflow takes a task for dead that is deferred and back too soon (docs/measured.md); and what
ends a wait early, such as a rollback that somebody asks for, is not to wait for longer."""


def closed(plan: Plan, now: float, *, platforms: Sequence[str], begun: bool = False) -> Blocked | None:
    """Why a release may not write now, and from when on it may; None when it may. A rollback always may.

    :param now: epoch seconds.
    :param platforms: kinds that it would write to.
    :param begun: it has written elsewhere: it goes on, but for freezes of these platforms in particular.
    :raises SpecError: the Variable, or a calendar that it names, cannot be read.
    """
    if plan.rollback or plan.override:
        return None
    try:
        freezes = parse_freezes(variables.read_json(FREEZES))
    except SpecError as error:
        place = f"Variable {FREEZES}: "
        problems = [place + problem.removeprefix(place) for problem in error.problems]
        raise type(error)(problems, service=plan.name) from None
    if begun:
        freezes = tuple(freeze for freeze in freezes if "*" not in freeze.platforms)
    found = gate(
        None if begun else windows_of(plan),
        freezes,
        datetime.fromtimestamp(now, UTC),
        service=plan.name,
        environment=plan.environment,
        platforms=platforms,
    )
    return found if isinstance(found, Blocked) else None


def refusal(plan: Plan, now: float) -> str:
    """Why the whole release is refused now: it does not wait, and what it may write to is not enough for its policy;
    else empty.

    Parameters and errors are those of `closed`.
    """
    found = closed(plan, now, platforms=platforms_of(plan))
    if found is None or (waits(plan) and found.opens is not None):
        return ""
    shut = {platform for platform in platforms_of(plan) if closed(plan, now, platforms=[platform])}
    held = [target for target in plan.selected if plan.config(target)["platform"] in shut]
    return found.reason if len(held) == len(plan.selected) or plan.fail_fast().why(held) else ""


def platforms_of(plan: Plan) -> list[str]:
    """The kinds of platform that a release writes to, in alphabetical order."""
    return sorted({str(plan.config(target)["platform"]) for target in plan.selected})


def hold(
    operator: BaseOperator,
    plan: Plan,
    platform: str,
    clock: TaskClock,
    *,
    begun: bool,
    since: float,
    again: str,
    useless: Callable[[], str],
) -> str:
    """Wait until this release may write to this platform; an empty text then, or why it may not and does not wait.

    One that waits begins only when all of its platforms are free: it is not to stand half done through a freeze.

    :param clock: the task's; a worker that waits itself sleeps on it.
    :param begun: see `closed`.
    :param since: epoch seconds at which the run began; it looks again ever more seldom.
    :param again: method that the deferred task goes on with; empty: the worker waits.
    :param useless: says why there is no use in waiting any more; empty while there is.
    """
    platforms = [platform] if begun or not waits(plan) else platforms_of(plan)
    while (found := closed(plan, clock.time(), platforms=platforms, begun=begun)) is not None:
        if found.opens is None or not waits(plan):
            return found.reason
        if why := useless():
            return why
        operator.log.info("%s: waits: %s", plan.name, found.reason)
        # Looked at again from time to time: a freeze may be lifted, or another one set.
        now = clock.time()
        until = min(max(found.opens.timestamp(), now + SHORTEST), now + pause(now - since))
        if again:
            moment = datetime.fromtimestamp(until, UTC)
            operator.defer(trigger=DateTimeTrigger(moment=moment), method_name=again)
        clock.sleep(until - clock.time())
    return ""


def pause(waited: float) -> float:
    """Seconds until it is looked again, by those that were waited."""
    return min(max(waited / 8, SHORTEST), LONGEST)


def windows_of(plan: Plan) -> Windows | None:
    """The windows that the run's frozen service has, if any."""
    service: Any = plan.service
    own, schedule = service.get("windows"), service.get("schedule")
    if own is None and isinstance(schedule, dict):
        return Scheduled.model_validate(schedule).windows
    return None if own is None else Windows.model_validate(own)


def waits(plan: Plan) -> bool:
    """Whether the service waits for its next window, and for the end of a freeze, or refuses."""
    windows = windows_of(plan)
    return windows is not None and windows.when_closed == "wait"
