"""Ticks and scheduled windows: when the next release is due, whatever was missed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
import pytest
from airflow.timetables import trigger
from airflow.timetables.base import DataInterval, TimeRestriction, Timetable

from airflow_multideploy.plugin.timetables import CronTimetable, WindowTimetable

WINDOWS = {"zone": "Europe/Berlin", "open": [{"days": ["tue", "thu"], "from": "22:00", "to": "02:00"}]}
TUESDAY, THURSDAY = "2026-11-24T21:00:00Z", "2026-11-26T21:00:00Z"  # Berlin's winter clock is one hour ahead


def due(now: str, last: str | None = None, timetable: Timetable | None = None, **limits: Any) -> str | None:
    before = DataInterval.exact(pendulum.parse(last)) if last else None  # type: ignore[arg-type]
    restriction = TimeRestriction(limits.get("earliest"), limits.get("latest"), catchup=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pendulum, "now", lambda zone: pendulum.parse(now).in_timezone(zone))  # type: ignore[union-attr]
        patch.setattr(trigger, "utcnow", lambda: pendulum.parse(now))
        asked = timetable or WindowTimetable(WINDOWS)
        info = asked.next_dagrun_info(last_automated_data_interval=before, restriction=restriction)
    return None if info is None else info.run_after.in_timezone("UTC").format("YYYY-MM-DDTHH:mm:ss[Z]")


@pytest.mark.parametrize(
    ("now", "last", "expected"),
    [
        ("2026-11-23T12:00:00Z", None, TUESDAY),
        ("2026-11-24T22:30:00Z", None, THURSDAY),  # the first one is never made up for
        ("2026-11-24T21:00:01Z", TUESDAY, THURSDAY),
        ("2026-11-27T00:30:00Z", TUESDAY, THURSDAY),  # missed, and the window is open still
        ("2026-11-27T03:00:00Z", TUESDAY, "2026-12-01T21:00:00Z"),  # missed, and closed
        (
            "2027-03-30T21:10:00Z",
            TUESDAY,
            "2027-03-30T20:00:00Z",
        ),  # after months: the last one alone
    ],
)
def test_the_next_release_is_at_an_opening(now: str, last: str | None, expected: str) -> None:
    assert due(now, last) == expected


def test_the_dags_own_limits_count() -> None:
    start = pendulum.datetime(2026, 11, 26, 21)
    assert due("2026-11-23T12:00:00Z", earliest=start) == THURSDAY
    assert due("2026-11-23T12:00:00Z", earliest=start + timedelta(seconds=1)) == "2026-12-01T21:00:00Z"
    assert due("2026-11-23T12:00:00Z", latest=pendulum.datetime(2026, 11, 24)) is None


def test_it_survives_serialisation_and_says_what_it_is() -> None:
    made = WindowTimetable.deserialize(WindowTimetable(WINDOWS).serialize())
    assert made.summary == "tue, thu 22:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("now", "last", "expected"),
    [
        ("2026-11-24T18:00:00Z", None, "2026-11-25T10:00:00Z"),  # first seen, or unpaused, long after its tick
        ("2026-11-24T18:00:00Z", "2026-11-20T10:00:00Z", "2026-11-25T10:00:00Z"),  # missed since
        ("2026-11-24T10:00:20Z", None, "2026-11-24T10:00:00Z"),  # the scheduler comes to it just now
        ("2026-11-24T10:00:20Z", "2026-11-24T10:00:00Z", "2026-11-25T10:00:00Z"),
        ("2026-11-24T09:59:59Z", "2026-11-23T10:00:00Z", "2026-11-24T10:00:00Z"),
    ],
)
def test_a_missed_tick_is_not_made_up_for(now: str, last: str | None, expected: str) -> None:
    daily = CronTimetable("0 10 * * *", timezone="UTC")
    assert due(now, last, daily) == expected
    assert due(now, last, CronTimetable.deserialize(daily.serialize())) == expected
    assert due("2026-11-24T18:00:00Z", None, daily, latest=pendulum.datetime(2026, 11, 24, 20)) is None
