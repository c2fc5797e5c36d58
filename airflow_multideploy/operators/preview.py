"""What a release would do: reads platforms, journals and ledger, and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow.sdk import BaseHook

from airflow_multideploy.catalog.locks import locks
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.clients.connections import existing
from airflow_multideploy.errors import MultideployError, PlatformError, SpecError
from airflow_multideploy.operators.windows import closed, platforms_of, refusal, waits
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Platform
from airflow_multideploy.release.journal import Journal, Run, Store
from airflow_multideploy.release.ledger import Ledger
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.release.preview import Look, Preview, make_preview
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.wait import SystemClock
from airflow_multideploy.release.windows import Blocked
from airflow_multideploy.store import pools

NOTHING: Mapping[str, str] = {}
NOBODY = Run(dag_id="", run_id="")
AT_ONCE = 16
"""So many platforms are asked side by side."""


def preview(
    plan: Plan,
    service: Service,
    store: Store,
    *,
    made: Collection[str],
    run: Run = NOBODY,
    lacking: Mapping[str, str] = NOTHING,
) -> Preview:
    """What the plan would do now. A platform that does not answer is told of in it.

    :param store: of the service's journals and ledger.
    :param made: the pools that exist.
    :param run: the one that asks, if one does.
    :param lacking: by name, what is live of a service that this one requires, where that is not what it requires.
    :raises SpecError: the freezes, or what is kept in the store, cannot be read.
    """
    now = time.time()
    found = refusals(plan, service, store, made=made, run=run)
    held = closed(plan, now, platforms=platforms_of(plan))
    if held is not None and not waits(plan):
        held = Blocked(held.reason, None)  # what is not refused for it goes without those targets
    past = closed(plan.model_copy(update={"override": ""}), now, platforms=platforms_of(plan))
    found += filter(None, [refusal(plan, now)])
    said = {name: f"{name} {service.requires[name].version}, and {live}" for name, live in lacking.items()}
    waited = [why for name, why in said.items() if service.requires[name].wait is not None]
    found += [f"requires {why}; release it first" for why in said.values() if why not in waited]
    return make_preview(plan, service, _looks(plan, store), refusals=found, held=held, past=past, requires=waited)


def lacking(
    service: Service, targets_of: Callable[[str], Iterable[str]], store_of: Callable[[str], Store]
) -> dict[str, str]:
    """By name, what is live of the services that this one requires, where that is not what it requires.

    :param targets_of: gives the targets of another service.
    :param store_of: gives the store of another service's journals.
    :raises SpecError: one of them is not known.
    """
    found = {}
    for name, required in service.requires.items():
        live = {target: journal(store_of(name), name, target).live() for target in targets_of(name)}
        wrong = [
            f"{target} runs {release.version if release else 'nothing that we know of'}"
            for target, release in live.items()
            if release is None or not required.met_by(release.version)
        ]
        if wrong:
            found[name] = ", ".join(wrong)
    return found


def _looks(plan: Plan, store: Store) -> dict[str, Look]:
    ledger = Ledger(store, plan.name)
    known = {}
    for target in plan.selected:  # here, and not in the threads: a store need not bear several
        known[target] = (journal(store, plan.name, target).live(), ledger.durations(target))

    def look(target: str) -> Look:
        previous, durations = known[target]
        try:
            platform = adapter(plan.config(target), service=plan.name, target=target)
            snapshot = platform.snapshot(previous)
        except MultideployError as error:
            return Look(error=str(error), durations=durations)
        except Exception as error:  # noqa: BLE001 - an SDK raises anything; its words may hold a secret
            return Look(error=f"{type(error).__name__} while it was asked what runs there", durations=durations)
        restores = platform.capabilities.restores
        return Look(snapshot=snapshot, previous=previous, restores=restores, durations=durations)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(plan.selected, pool.map(look, plan.selected), strict=True))


def journal(store: Store, service: str, target: str) -> Journal:
    """The journal of one target in its service's store."""
    return Journal(store, f"{service}/{target}", prefix=f"{target}.")


def refusals(
    plan: Plan,
    service: Service,
    store: Store,
    *,
    made: Collection[str],
    run: Run = NOBODY,
) -> list[str]:
    """Why this plan must not start: all reasons at once; none when it may.

    :param store: of the service's journals.
    :param made: the pools that exist.
    :param run: the run that wants to start.
    """
    found, held = [], locks(service)
    for target in plan.selected:
        platform = adapter(plan.config(target), service=plan.name, target=target)
        found += _unconnected(platform)
        lock = held.get(target)
        if lock is not None and lock.pool not in made:
            found.append(
                f"{platform.name}: lock {lock.name!r}: there is no Airflow pool {lock.pool!r}, and its tasks would "
                "wait for ever; run `airflow multideploy init`"
            )
        kept, clock = journal(store, plan.name, target), SystemClock()
        rollout = Rollout(platform, kept, clock, run)
        if (why := rollout.refuse(plan.release)) is not None:
            found.append(why)
    return found


def poolless(service: Service | None) -> list[str]:
    """The targets whose tasks would wait for ever, because nobody made the pool of their lock."""
    held = {} if service is None else locks(service)
    try:
        known = pools.known() if held else {}
    except SpecError:
        known = {}
    return [target for target, lock in held.items() if lock.pool not in known]


def _unconnected(platform: Platform[Any]) -> list[str]:
    try:
        with existing(platform.config.conn_id, platform.error):
            BaseHook.get_connection(platform.config.conn_id)
    except PlatformError as error:
        return [str(error)]
    return []


def resolved(plan: Plan, service: Service, store: Store) -> Plan:
    """The plan with the very bits: those of the release that it goes back to, or the digest that the tag stands for.

    The same one where nobody says how to reach the registry, or where the image is yet to be built.

    :param store: of the service's journals and ledger.
    :raises MultideployError: there is no such release to go back to; or the registry refuses, or has no such tag.
    """
    if plan.rollback:
        live = {target: journal(store, plan.name, target).live() for target in plan.selected}
        artifacts = {target: (found.digest or found.image) if found else None for target, found in live.items()}
        record = Ledger(store, plan.name).earlier(plan.release.version, artifacts, force=plan.release.force)
        bits: dict[str, str | None] = {"version": record.version, "image": record.image, "digest": record.digest}
    elif service.artifact.registry_conn_id is None or service.build is not None:
        return plan
    else:
        from airflow_multideploy.images.registry import connect, resolve

        connection = BaseHook.get_connection(service.artifact.registry_conn_id)
        image = connect(service.artifact.image, connection).repository.name
        digest = resolve(image, plan.release.version, connection)
        bits = {"image": f"{image}@{digest}", "digest": digest}
    return plan.model_copy(update={"release": plan.release.model_copy(update=bits)})
