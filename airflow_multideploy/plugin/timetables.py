"""When a release starts by itself: at each tick of a cron expression, or whenever a window opens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_multideploy.catalog.windows import Windows
from airflow_multideploy.release.windows import Open, next_opening, windows_at

LATE = timedelta(seconds=60)
"""A tick to which the scheduler comes within this time is late; after that it was missed."""


class CronTimetable(CronTriggerTimetable):
    """A run at each tick of a cron expression.

    One that was missed, because the service was not there yet, was paused, or no scheduler ran, is never made up for:
    nobody expects a release then.
    """

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next tick; None after the DAG's end date."""
        found = super().next_dagrun_info(
            last_automated_data_interval=last_automated_data_interval, restriction=restriction
        )
        now = pendulum.now("UTC")
        if found is None or found.run_after >= now - LATE:
            return found
        upcoming = self._get_next(now)
        return None if restriction.latest is not None and restriction.latest < upcoming else DagRunInfo.exact(upcoming)


class WindowTimetable(Timetable):
    """A run at the instant at which each window opens.

    One that was missed, because nothing ran then, is made up for while its window is open, and only the last one. The
    first run is at the first opening after the DAG appeared.

    :param windows: as the catalog has them, JSON.
    """

    description = "when a release window opens"

    def __init__(self, windows: dict[str, Any]) -> None:
        self._windows = Windows.model_validate(windows)

    @property
    def summary(self) -> str:
        """What the UI shows: days, times and zone."""
        said = (f"{', '.join(window.days)} {window.start}" for window in self._windows.open)
        return f"{'; '.join(said)} {self._windows.zone}"

    def serialize(self) -> dict[str, Any]:
        """The windows, as JSON."""
        return {"windows": self._windows.model_dump(mode="json")}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        """From what `serialize` gave."""
        return cls(data["windows"])

    def infer_manual_data_interval(self, *, run_after: pendulum.DateTime) -> DataInterval:
        """A run that somebody asks for is about its own instant."""
        return DataInterval.exact(run_after)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next opening; None after the DAG's end date."""
        now = pendulum.now("UTC")
        after = now
        if last_automated_data_interval is not None:
            after = max(pendulum.instance(last_automated_data_interval.end), now - timedelta(days=8))
        opens = next_opening(self._windows, after)
        while opens <= now:
            later = next_opening(self._windows, opens)
            if later > now and isinstance(windows_at(self._windows, now), Open):
                break
            opens = later
        found = pendulum.instance(opens)
        if restriction.earliest is not None and found < restriction.earliest:
            found = pendulum.instance(next_opening(self._windows, restriction.earliest - timedelta(seconds=1)))
        if restriction.latest is not None and found > restriction.latest:
            return None
        return DagRunInfo.exact(found)
