"""Locks: what only so many rollouts hold at once, whatever service they are of. Each is an Airflow pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.target import Lock


def locks(service: Service) -> dict[str, Lock]:
    """The lock of each target that has one."""
    named = {name: target.lock or service.lock for name, target in service.targets.items()}
    return {name: lock for name, lock in named.items() if lock is not None}


def pools(services: Iterable[Service]) -> dict[str, int]:
    """The pools that these services need, with their slots; where they contradict each other, the fewest."""
    said: dict[str, list[int]] = {}
    for lock in (lock for service in services for lock in locks(service).values()):
        said.setdefault(lock.pool, []).extend([] if lock.slots is None else [lock.slots])
    return {pool: min(slots, default=1) for pool, slots in sorted(said.items())}


def contradictions(services: Mapping[str, Service]) -> dict[str, list[str]]:
    """By service, the locks to which another target gives another number of slots, with the remedy."""
    given = [
        (name, target, lock)
        for name, service in services.items()
        for target, lock in locks(service).items()
        if lock.slots is not None
    ]
    found: dict[str, list[str]] = {}
    for name, target, lock in given:
        others = [(n, t, other.slots) for n, t, other in given if other.name == lock.name and other.slots != lock.slots]
        if others:
            where, which, slots = others[0]
            found.setdefault(name, []).append(
                f"targets.{target}.lock: {lock.name!r} has {lock.slots} slots here and {slots} in {where}/{which}; "
                "say it in one place, or the same in all"
            )
    return found
