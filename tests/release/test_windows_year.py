"""Windows and freezes against a scan of a whole year, minute by minute.

The scan knows nothing of offsets or changes of the clocks: it walks over the year's UTC minutes once and notes what a
clock on the wall shows. A span begins with the first minute at which the clock shows its start or later, and ends with
the last at which it shows the end, or behind the last at which it shows an earlier time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from airflow_multideploy.catalog.windows import Windows
from airflow_multideploy.release.windows import Allowed, Blocked, Closed, Open, gate, parse_freezes, windows_at

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kolkata")
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
"""To make a failing example smaller would take minutes, and three windows can be read as they are."""
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
YEAR = 525_600
DAY = 24 * 60
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONDAY = 739_257
"""Days from 1 January of the year 1, which is day 1, to a Monday: 5 January 2026."""


class Year:
    """What a zone's clock shows in each minute of 2026: minutes since the year 1."""

    def __init__(self, zone: str) -> None:
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.changes = []
        clock, before = ZoneInfo(zone), -1
        for minute in range(YEAR):
            shown = (BEGIN + dt.timedelta(minutes=minute)).astimezone(clock)
            wall = shown.toordinal() * DAY + shown.hour * 60 + shown.minute
            self.first.setdefault(wall, minute)
            self.last[wall] = minute
            if minute and wall != before + 1:
                self.changes.append(minute)
            before = wall
        self.days = range(min(self.first) // DAY, max(self.first) // DAY + 1)
        self.earliest, self.latest = min(self.first), max(self.first)

    def mark(self, minutes: bytearray, start: int, end: int) -> None:
        """Note the minutes of a span of wall-clock time."""
        while start <= self.latest and start not in self.first:
            start = start + 1 if start >= self.earliest else self.earliest
        after = end
        while end >= self.earliest and end not in self.last:
            end = end - 1 if end <= self.latest else self.latest
        if start > self.latest or end < self.earliest:
            return
        stop = self.last[end] + (end != after)
        if (begin := self.first[start]) < stop:
            minutes[begin:stop] = b"\1" * (stop - begin)

    def weekly(self, minutes: bytearray, days: list[str], start: int, end: int) -> None:
        for day in range(self.days.start - 1, self.days.stop):
            if DAYS[(day - MONDAY) % 7] in days:
                self.mark(minutes, day * DAY + start, day * DAY + end + (DAY if end <= start else 0))


@cache
def year(zone: str) -> Year:
    return Year(zone)


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def instant(minute: int) -> dt.datetime:
    return BEGIN + dt.timedelta(minutes=minute)


def minute(when: dt.datetime) -> int:
    return int((when - BEGIN).total_seconds()) // 60


NEAR = st.integers(0, 4 * 60) | st.integers(22 * 60, DAY - 1)
"""Times at which clocks change."""
HOURS = st.tuples(
    st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True), NEAR | st.integers(0, DAY - 1), NEAR
).flatmap(lambda w: st.tuples(st.just(w[0]), st.just(w[1]), st.just(w[2]) | st.integers(0, DAY)))


def document(hours: tuple[list[str], int, int]) -> dict[str, Any]:
    days, start, end = hours
    return {"days": days, "from": clock(start), "to": clock(end)}


def spans(windows: Windows) -> Iterator[tuple[int, int]]:
    """From one answer of `windows_at` to the next, until the year is over."""
    now: int | None = 0
    while now is not None and now < YEAR:
        state = windows_at(windows, instant(now))
        if isinstance(state, Closed):
            now = None if state.opens is None else minute(state.opens)
            continue
        until = YEAR if state.until is None else min(minute(state.until), YEAR)
        yield now, until
        now = until


@pytest.mark.parametrize("zone", ZONES)
@settings(max_examples=12, phases=UNSHRUNK, print_blob=True)
@given(hours=st.lists(HOURS, min_size=1, max_size=3), at=st.lists(st.integers(0, YEAR - 1), min_size=20, max_size=20))
def test_windows_are_open_in_the_minutes_of_the_year_that_a_scan_finds(
    zone: str, hours: list[tuple[list[str], int, int]], at: list[int]
) -> None:
    scan, expected, found = year(zone), bytearray(YEAR), bytearray(YEAR)
    for days, start, end in hours:
        scan.weekly(expected, days, start, end)
    windows = Windows.model_validate({"zone": zone, "open": [document(one) for one in hours]})
    for begin, end in spans(windows):
        found[begin:end] = b"\1" * (end - begin)
    wrong = [instant(m).isoformat() for m in range(YEAR) if expected[m] != found[m]] if expected != found else []
    note(f"{windows!r}: {len(wrong)} minutes, from {wrong[:1]}")
    assert not wrong
    for now in [*at, *(m + d for m in scan.changes for d in range(-90, 91, 5))]:  # asked for one by one
        assert isinstance(windows_at(windows, instant(now)), Open) == bool(expected[now])


@pytest.mark.parametrize("zone", ZONES)
@settings(max_examples=8, phases=UNSHRUNK, print_blob=True)
@given(
    hours=st.lists(HOURS, min_size=1, max_size=2),
    weekly=HOURS,
    days=st.tuples(st.dates(dt.date(2026, 1, 1), dt.date(2026, 12, 31)), st.integers(0, 40)),
    once=st.tuples(st.integers(0, YEAR - 1), st.integers(1, 30 * DAY)),
    at=st.lists(st.integers(0, YEAR // 2), min_size=8, max_size=8),
)
def test_the_gate_is_open_in_the_minutes_of_windows_less_those_of_freezes(
    *,
    zone: str,
    hours: list[tuple[list[str], int, int]],
    weekly: tuple[list[str], int, int],
    days: tuple[dt.date, int],
    once: tuple[int, int],
    at: list[int],
) -> None:
    scan, open_, frozen = year(zone), bytearray(YEAR), bytearray(YEAR)
    for one in hours:
        scan.weekly(open_, *one)
    scan.weekly(frozen, *weekly)
    first, last = days[0], min(days[0] + dt.timedelta(days=days[1]), dt.date(2026, 12, 31))
    for number in (2025, 2026, 2027):  # the year's first and last hours are in another one on the zone's clock
        begin, end = (day.replace(year=number).toordinal() for day in (first, last))
        scan.mark(frozen, begin * DAY, (end + 1) * DAY)
    start, end = once[0], min(once[0] + once[1], YEAR)
    frozen[start:end] = b"\1" * (end - start)
    windows = Windows.model_validate({"zone": zone, "open": [document(one) for one in hours]})
    freezes = parse_freezes(
        [
            {"name": "weekly", "zone": zone, "weekly": document(weekly)},
            {"name": "yearly", "zone": zone, "yearly": {"from": f"{first:%m-%d}", "to": f"{last:%m-%d}"}},
            {"name": "once", "from": f"{instant(start):%Y-%m-%dT%H:%M}", "to": f"{instant(end):%Y-%m-%dT%H:%M}"},
        ]
    )
    allowed = bytes(is_open and not is_frozen for is_open, is_frozen in zip(open_, frozen, strict=True))
    for now in [*at, *(m + d for m in scan.changes for d in (-61, -1, 0, 1, 29, 61))]:
        answer = gate(windows, freezes, instant(now), service="shop", platforms=["helm"])
        assert isinstance(answer, Allowed) == bool(allowed[now]), instant(now)
        following = allowed.find(1, now)
        if isinstance(answer, Blocked) and following >= 0:
            assert answer.opens == instant(following), instant(now)
        elif isinstance(answer, Blocked):
            assert answer.opens is None or answer.opens >= instant(YEAR)
