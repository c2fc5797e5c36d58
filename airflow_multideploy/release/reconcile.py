"""Settling what a run that is over has left in doubt: back to the snapshot, verified, dependents first; what stays is
settled without a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import RollbackFailed
from airflow_multideploy.release.contract import Platform
from airflow_multideploy.release.journal import Entry, Journal, Phase
from airflow_multideploy.release.rollback import LEFT, WayBack, blockers
from airflow_multideploy.release.wait import Clock


def facts(entry: Entry) -> str:
    """What is known about an entry that is in doubt, in one sentence."""
    return (
        f"run {entry.run_id!r} of {entry.dag_id!r} left version {entry.release.version} {entry.phase} here "
        f"({entry.reason or 'no reason kept'})"
    )


def came_to(entry: Entry) -> str:
    """How an entry that was in doubt is settled, once it is."""
    return LEFT if entry.stays else "verified back"


def settle(
    doubts: Mapping[str, Entry],
    targets: Mapping[str, TargetConfig],
    *,
    platform: Callable[[Entry], Platform[Any]],
    journal: Callable[[str], Journal],
    clock: Clock,
) -> dict[str, str]:
    """What each target in doubt came to: an empty text where it is verified back, or stays; else why it is not.

    :param doubts: unsettled entries by target; who wrote them must be over.
    :param targets: all targets of the service, for the order.
    """
    order = [name for wave in reversed(waves(targets)) for name in wave if name in doubts]
    found: dict[str, str] = {}
    for target in order:
        waiting = sorted(name for name in blockers(target, targets, frozenset(order)) if found.get(name))
        if waiting:
            found[target] = f"not sent back: {', '.join(waiting)} depends on it and is not back"
        else:
            found[target] = _settle_one(doubts[target], platform, journal(target), clock)
    return found


def _settle_one(entry: Entry, platform: Callable[[Entry], Platform[Any]], journal: Journal, clock: Clock) -> str:
    now = journal.read()
    if now != entry:
        return f"the journal changed meanwhile: {facts(now) if now else 'it is gone'}"
    try:
        entry = WayBack(platform(entry), journal, clock).go(entry)
    except RollbackFailed as error:
        return str(error)
    return "" if entry.phase is Phase.ROLLED_BACK or entry.stays else f"{entry.phase}: {entry.reason}"
