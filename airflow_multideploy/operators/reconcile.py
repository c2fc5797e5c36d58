"""The task of ``multideploy_reconcile``, and the same for a release that reconciles before it starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow.sdk import BaseOperator, Context

from airflow_multideploy.catalog.notify import Event
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import RollbackFailed
from airflow_multideploy.operators.clock import Final, TaskClock
from airflow_multideploy.operators.notify import notify
from airflow_multideploy.operators.run import journal, keep_record, ledger, recording
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Platform
from airflow_multideploy.release.journal import Entry
from airflow_multideploy.release.ledger import agreed
from airflow_multideploy.release.reconcile import came_to, facts, settle
from airflow_multideploy.release.wait import Clock
from airflow_multideploy.store.assets import journal_asset

SERVICES_AT_ONCE = 8


def doubts(context: Context, service: str, targets: Iterable[str]) -> dict[str, Entry]:
    """Unsettled entries of runs that are over, by target; those of a run that is still under way are its own affair."""
    found = {target: journal(context, service, target).read() for target in targets}
    return {
        target: entry
        for target, entry in found.items()
        if entry is not None and entry.unsettled and not _live(context, entry.dag_id, [entry.run_id])
    }


def reconcile(
    context: Context, service: str, targets: Mapping[str, TargetConfig], found: Mapping[str, Entry], clock: Clock
) -> dict[str, str]:
    """Send the targets back; see `airflow_multideploy.release.reconcile.settle`."""

    def platform(entry: Entry) -> Platform[Any]:
        return adapter(dict(entry.config), service=service, target=entry.target)

    return settle(found, targets, platform=platform, journal=lambda t: journal(context, service, t), clock=clock)


def agree(context: Context, service: str, targets: Iterable[str]) -> None:
    """Make the ledger say what the journals say, about runs that died before they had kept it, or were settled later.

    Looks at the runs that the journals name, and at the last one that the ledger has.
    """
    with recording():
        book = ledger(context, service)
        last = next(book.records(), None)
        names = {*targets, *(each.target for each in (last.targets if last else ()))}
        found = {target: journal(context, service, target).read() for target in names}
        entries = {target: entry for target, entry in found.items() if entry is not None}
        runs = {(entry.dag_id, entry.run_id) for entry in entries.values()}
        runs |= {(last.dag_id, last.run_id)} if last else set()
        for dag_id, run_id in runs - {(context["dag"].dag_id, context["run_id"])}:
            with recording():  # one that is spoilt stands in the way of no other
                record = book.find(dag_id, run_id)
                now = record and agreed(record, entries)
                if now is not None and now != record and not _live(context, dag_id, [run_id]):
                    keep_record(context, now)


def _live(context: Context, dag_id: str, run_ids: list[str] | None = None) -> bool:
    states = ["queued", "running"]
    return bool(context["ti"].get_dr_count(dag_id=dag_id, run_ids=run_ids, states=states))


class ReconcileOperator(BaseOperator):
    """Finds the targets that runs, now over, left in doubt, and settles them: back to the snapshots, verified,
    dependents first, services side by side; or only reports them.

    Fails when something stays in doubt, so that the colour, and whoever listens for failures, tells.

    :param services: the catalog.
    :param settle: False reports, and touches no target.
    """

    ui_color = "#fdeeea"

    def __init__(self, *, services: Mapping[str, Service], settle: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._services = dict(services)
        self.settle = settle
        self.inlets = [*self.inlets, *(journal_asset(name) for name in services)]
        self._clock = TaskClock()

    def execute(self, context: Context) -> dict[str, str]:
        """Settle or report; returns what became of each ``service/target``."""
        with ThreadPoolExecutor(SERVICES_AT_ONCE) as pool:
            results = pool.map(lambda name: self._service(context, name), self._services)
            found = {place: came for result in results for place, came in result.items()}
        for place, (why, entry) in found.items():
            self.log.log(logging.WARNING if why else logging.INFO, "%s: %s", place, why or came_to(entry))
        if left := "; ".join(f"{place}: in doubt: {why}" for place, (why, _) in found.items() if why):
            raise Final(left) from RollbackFailed(left)
        return {place: "left" if entry.stays else "rolled_back" for place, (_, entry) in found.items()}

    def on_kill(self) -> None:
        """Stop waiting; the next run goes on from the journal."""
        self._clock.stop()

    def _service(self, context: Context, name: str) -> dict[str, tuple[str, Entry]]:
        """By ``service/target``: why it is in doubt, or an empty text where it is settled; and its entry, as found."""
        if _live(context, name):
            return {}
        service = self._services[name]
        found = doubts(context, name, service.targets)
        if self.settle:
            left = reconcile(context, name, service.targets, found, self._clock)
        else:
            left = {target: facts(entry) for target, entry in found.items()}
        agree(context, name, service.targets)
        for target, why in left.items():
            message = f"{name}/{target}: " + (
                f"in doubt: {why}" if why else f"was in doubt, now {came_to(found[target])}"
            )
            told = [settings.model_dump(mode="json") for settings in service.notify]
            event: Event = "in_doubt" if why else "reconciled"
            notify(told, context, event, service=name, version=found[target].release.version, message=message)
        return {f"{name}/{target}": (why, found[target]) for target, why in left.items()}
