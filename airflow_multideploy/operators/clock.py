"""A task's clock, and how a task ends."""

from __future__ import annotations

import threading

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_multideploy.errors import MultideployError
from airflow_multideploy.release.wait import SystemClock


class Final(MultideployError, AirflowFailException):
    """An error that another try cannot heal: Airflow does not retry it."""


class Stopped(MultideployError, AirflowException):
    """The task was told to stop; the journal says how far it came."""


class TaskClock(SystemClock):
    """The machine's clock, whose ``sleep`` ends with `Stopped` when the task is killed."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def __deepcopy__(self, memo: object) -> TaskClock:
        """Another one: a copy of a task is killed for itself."""
        return TaskClock()

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
