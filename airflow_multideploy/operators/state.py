"""Where a release's records live in Airflow: the journals of its targets, in the state store of one asset."""

from __future__ import annotations

import threading
from functools import cache

from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_multideploy.core.contract import Observation
from airflow_multideploy.core.errors import MultideployError
from airflow_multideploy.core.journal import Journal
from airflow_multideploy.core.plan import Plan
from airflow_multideploy.core.wait import SystemClock

GROUP = "multideploy"


@cache
def journal_asset(service: str) -> Asset:
    """The asset whose state store holds the journals of a service; a task needs it as inlet to reach them.

    One for all targets: each asset of each task costs the DAG processor time, and a large catalog has many.
    """
    return _asset(f"{service}/journal")


@cache
def service_asset(service: str) -> Asset:
    """The asset of a service: gets an event for each release that ends well."""
    return _asset(service)


def _asset(name: str) -> Asset:
    """An asset whose URI is set past Airflow's normaliser, which would import every provider's assets and their SDKs:
    a second of CPU in every process that parses a DAG."""
    asset = Asset(name=name, group=GROUP)
    object.__setattr__(asset, "uri", f"multideploy://{name}")
    return asset


def journal(context: Context, service: str, target: str) -> Journal:
    """The journal of one target, out of a running task."""
    store = context["asset_state_store"][journal_asset(service)]
    return Journal(store, f"{service}/{target}", prefix=f"{target}.")


def pull_plan(context: Context, task_id: str) -> Plan | None:
    """The plan of this run, or None when the plan task did not get that far."""
    document = context["ti"].xcom_pull(task_ids=task_id, key="return_value")
    what = f"the plan that task {task_id} left in XCom"
    return None if document is None else Plan.load(document, what=what, remedy="clear that task")


def seen_by_trigger(event: object, name: str) -> Observation:
    """What the triggerer saw of ``service/target``.

    :raises SpecError: the event is no observation; another try of the task looks again.
    """
    return Observation.load(event, what=f"{name}: the triggerer's event", remedy="clear the task: it looks again")


class Final(MultideployError, AirflowFailException):
    """An error that another try cannot heal: Airflow does not retry it."""


class Stopped(MultideployError, AirflowException):
    """The task was told to stop; the journal says how far it came."""


class TaskClock(SystemClock):
    """The machine's clock, whose ``sleep`` ends with `Stopped` when the task is killed."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the current ``sleep``, and every later one."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Stopped` when the task was killed."""
        if self._stop.is_set():
            raise Stopped("the task was told to stop; the run's rollback continues from the journal")

    def sleep(self, seconds: float) -> None:
        """Wait.

        :raises Stopped: the task was killed.
        """
        self._stop.wait(seconds)
        self.check()
