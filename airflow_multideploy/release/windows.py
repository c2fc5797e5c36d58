"""When a release may write: its windows, the freezes, and the next instant at which both let it.

What people write is wall-clock time in a zone. It becomes spans of UTC instants here, in `_instant`, and everything
else goes by those: no change of the clocks can confuse it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from calendar import isleap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, date, datetime, time, timedelta
from fnmatch import fnmatchcase
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, get_args
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from airflow_multideploy.catalog.problems import lines
from airflow_multideploy.catalog.windows import Day, Freeze, Window, Windows, Yearly
from airflow_multideploy.errors import MissingExtra, SpecError
from airflow_multideploy.secrets import secret_paths

HORIZON = timedelta(days=731)
"""How far ahead is looked; what is not found until then counts as never."""
_WEEK: tuple[str, ...] = get_args(Day)
_DAY = timedelta(days=1)


class Span(NamedTuple):
    """From one instant (included) to another (not included)."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Open:
    """The windows are open.

    :param until: when they close; None: not within two years.
    """

    until: datetime | None


@dataclass(frozen=True)
class Closed:
    """The windows are closed.

    :param opens: when they open next; None: not within two years.
    """

    opens: datetime | None


@dataclass(frozen=True)
class Hit:
    """A freeze that is on, for this service in this environment.

    :param until: when it ends; None: not within two years.
    :param zone: the one that the freeze goes by.
    :param platforms: those of the release that it is about.
    """

    name: str
    reason: str
    until: datetime | None
    zone: str
    platforms: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name!r} on {', '.join(self.platforms)}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Allowed:
    """A release may write now."""


@dataclass(frozen=True)
class Blocked:
    """A release may not write now.

    :param reason: why, and until when, in words.
    :param opens: the next instant at which windows and freezes both let it; None: not within two years.
    """

    reason: str
    opens: datetime | None


def parse_freezes(document: object) -> tuple[Freeze, ...]:
    """The freezes of a list, as JSON or YAML gives it; None is none.

    :raises SpecError: with every problem found, each naming its path.
    """
    if document is None:
        return ()
    if not isinstance(document, list):
        raise SpecError(f"freezes: expected a list of freezes, got {type(document).__name__}; write one")
    problems: list[str] = []
    found: list[Freeze] = []
    for index, entry in enumerate(document):
        path = f"freezes[{index}]"
        problems += [f"{path}.{each}: looks like a secret (not shown); remove it" for each in secret_paths(entry)]
        try:
            freeze = Freeze.model_validate(entry)
        except ValidationError as error:
            problems += lines(error, Freeze, prefix=path)
            continue
        if any(freeze.name == other.name for other in found):
            problems.append(f"{path}.name: is another freeze's too; give it one of its own")
        found.append(freeze)
    if problems:
        raise SpecError(problems)
    return tuple(found)


def next_opening(windows: Windows, after: datetime) -> datetime:
    """When the next of the windows opens, later than the given instant.

    Each window counts, also one that opens while another is open still.
    """
    after = _utc(after)
    return next(span.start for span in _openings(windows, after) if after < span.start < span.end)


def windows_at(windows: Windows, now: datetime) -> Open | Closed:
    """Whether the windows are open or closed, and until when. Windows that overlap or adjoin count as one."""
    now = _utc(now)
    span = next(_merged(_openings(windows, now), now), None)
    if span is None or span.start > now:
        return Closed(span and span.start)
    return Open(_known(span.end, now))


def freezes_at(
    freezes: Iterable[Freeze], now: datetime, *, service: str, environment: str | None = None, platforms: Sequence[str]
) -> tuple[Hit, ...]:
    """The freezes that are on now and about any of this.

    :param environment: None: of no environment; only freezes about all environments are about it.
    :param platforms: kinds of the platforms that the release would write to.
    :raises SpecError: an iCalendar file cannot be read.
    :raises MissingExtra: there is an iCalendar file, and the extra ``calendar`` is not installed.
    """
    now = _utc(now)
    hits = []
    for freeze, about in _about(freezes, service, environment, platforms):
        span = next(_merged(_frozen(freeze, now), now), None)
        if span is not None and span.start <= now:
            hits.append(Hit(freeze.name, freeze.reason, _known(span.end, now), freeze.zone, about))
    return tuple(hits)


def gate(
    windows: Windows | None,
    freezes: Sequence[Freeze],
    now: datetime,
    *,
    service: str,
    environment: str | None = None,
    platforms: Sequence[str],
) -> Allowed | Blocked:
    """Whether a release may write now. A freeze wins over an open window.

    Parameters and errors are those of `freezes_at`; without windows only the freezes count.
    """
    now = _utc(now)
    hits = freezes_at(freezes, now, service=service, environment=environment, platforms=platforms)
    causes = [(f"frozen by {hit}", hit.until, hit.zone) for hit in hits]
    if windows is not None and isinstance(state := windows_at(windows, now), Closed):
        causes.append(("outside its windows", state.opens, windows.zone))
    if not causes:
        return Allowed()
    frozen = (_frozen(freeze, now) for freeze, _ in _about(freezes, service, environment, platforms))
    opens = _first_common(windows, list(_merged(heapq.merge(*frozen), now)), now)
    words = [f"{cause} {_until(instant, zone)}" for cause, instant, zone in causes]
    if opens is None:
        words.append("not allowed within two years")
    elif all(opens != instant for _, instant, _ in causes):
        words.append(f"allowed again from {_local(opens, causes[-1][2])}")
    return Blocked("; ".join(words), opens)


def _first_common(windows: Windows | None, frozen: Sequence[Span], now: datetime) -> datetime | None:
    """The first instant that is in a window and in none of the frozen spans, which are in order and apart."""
    horizon = now + HORIZON
    for span in [Span(now, horizon)] if windows is None else _merged(_openings(windows, now), now):
        instant = max(span.start, now)
        for freeze in frozen:
            if freeze.start <= instant < freeze.end:
                instant = freeze.end
        if instant < min(span.end, horizon):
            return instant
    return None


def _about(
    freezes: Iterable[Freeze], service: str, environment: str | None, platforms: Sequence[str]
) -> Iterator[tuple[Freeze, tuple[str, ...]]]:
    """The freezes that are about this, each with the platforms that it is about.

    In an environment a service goes by its own name as well: ``shop`` is ``shop-prod`` in ``prod``.
    """
    names = {service, service.removesuffix(f"-{environment}")} if environment else {service}
    for freeze in freezes:
        about = tuple(platform for platform in platforms if _matches(platform, freeze.platforms))
        named = any(_matches(name, freeze.services) for name in names)
        if about and named and _matches(environment or "", freeze.environments):
            yield freeze, about


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# --- spans: each generator gives all that end after an instant (and some before), in the order of their starts


def _openings(windows: Windows, after: datetime) -> Iterator[Span]:
    zone = ZoneInfo(windows.zone)
    return heapq.merge(*(_weekly(window, zone, after) for window in windows.open))


def _weekly(window: Window, zone: ZoneInfo, after: datetime) -> Iterator[Span]:
    start, end = _minutes(window.start), _minutes(window.to)
    if end <= start:
        end += 24 * 60
    today = after.astimezone(zone).date()
    for days in count(-2):  # one that began the day before may last still; zones have skipped a whole day
        day = today + timedelta(days=days)
        if _WEEK[day.weekday()] in window.days:
            yield Span(_instant(_wall(day, start), zone), _instant(_wall(day, end), zone, last=True))


def _frozen(freeze: Freeze, after: datetime) -> Iterator[Span]:
    zone = ZoneInfo(freeze.zone)
    if freeze.weekly is not None:
        return _weekly(freeze.weekly, zone, after)
    if freeze.yearly is not None:
        return _yearly(freeze.yearly, zone, after)
    if freeze.icalendar is not None:
        return iter(_events(freeze, Path(freeze.icalendar), zone, after))
    start, end = (datetime.fromisoformat(written) for written in (freeze.start or "", freeze.to or ""))
    return iter([Span(_instant(start, zone), _instant(end, zone, last=True))])


def _yearly(days: Yearly, zone: ZoneInfo, after: datetime) -> Iterator[Span]:
    for year in range(after.year - 2, MAXYEAR):
        start, end = _midnight(year, days.start), _midnight(year + (days.to < days.start), days.to, last=True)
        yield Span(_instant(start, zone), _instant(end, zone, last=True))


def _midnight(year: int, day: str, *, last: bool = False) -> datetime:
    """Where a day begins, or where it ends. Where there is no 02-29, both are the beginning of March."""
    if day == "02-29" and not isleap(year):
        return datetime(year, 3, 1)  # noqa: DTZ001 - wall-clock time
    return datetime.fromisoformat(f"{year}-{day}") + (_DAY if last else timedelta())


def _events(freeze: Freeze, path: Path, zone: ZoneInfo, after: datetime) -> list[Span]:
    try:
        from icalendar import Calendar
        from recurring_ical_events import of
    except ImportError as error:
        raise MissingExtra(
            f"freeze {freeze.name!r}: {error.name or error} is not installed: "
            "pip install 'airflow-provider-multideploy[calendar]'"
        ) from error
    try:
        file = Calendar.from_ical(path.read_bytes())
        _zones_known(file)
        events = of(file).between(after - 2 * _DAY, after + HORIZON)
        return sorted(
            Span(_moment(event.start, zone), _moment(event.end, zone, last=True))
            for event in events
            if event.get("STATUS") != "CANCELLED"
        )
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SpecError(f"freeze {freeze.name!r}: icalendar: {path} cannot be read ({said}); mend it") from error


def _zones_known(file: Any) -> None:
    """
    :raises ValueError: an event has a time in a zone that nobody knows, which would be read as one without a zone.
    """
    for event in file.walk("VEVENT"):
        for key in ("DTSTART", "DTEND"):
            value = event.get(key)
            if value is not None and "TZID" in value.params and getattr(value.dt, "tzinfo", UTC) is None:
                raise ValueError(f"{key}: nobody knows the time zone {value.params['TZID']!r}")


def _moment(value: date, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """The instant of an event's start or end: a day (the end is not included), a time without a zone, or an instant."""
    if not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return _instant(value, zone, last=last) if value.tzinfo is None else value.astimezone(UTC)


def _merged(spans: Iterable[Span], now: datetime) -> Iterator[Span]:
    """What ends after now and starts within the horizon; spans that overlap or adjoin become one."""
    current: Span | None = None
    for span in takewhile(lambda span: span.start < now + HORIZON, spans):
        if span.end <= max(span.start, now):  # a window within an hour that the clock skips is none
            continue
        if current is None or span.start > current.end:
            if current is not None:
                yield current
            current = span
        else:
            current = Span(current.start, max(current.end, span.end))
    if current is not None:
        yield current


# --- time


def _instant(wall: datetime, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """The instant at which a zone's clock shows a time: the first of two, or the last of them.

    A time that the clock skips is the instant at which it does.
    """
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first <= second:
        return second if last else first
    # In a gap, fold 0 goes by the offset before it, and so lands after it; fold 1 the other way round.
    before = second.astimezone(zone).utcoffset()

    def changed(seconds: int) -> bool:
        return (second + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != before

    gap = range(int((first - second).total_seconds()))
    return second + timedelta(seconds=bisect_left(gap, x=True, key=changed))


def _minutes(written: str) -> int:
    hours, minutes = written.split(":")
    return int(hours) * 60 + int(minutes)


def _wall(day: date, minutes: int) -> datetime:
    return datetime.combine(day, time()) + timedelta(minutes=minutes)


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("a time without a zone is no instant; give an aware datetime")
    moved = instant.astimezone(UTC)  # of a subclass still, such as pendulum's, which adds and compares otherwise
    return datetime.combine(moved.date(), moved.time(), UTC)


def _known(end: datetime, now: datetime) -> datetime | None:
    return end if end < now + HORIZON else None


def _local(instant: datetime, zone: str) -> str:
    return f"{instant.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"


def _until(instant: datetime | None, zone: str) -> str:
    return "for the next two years" if instant is None else f"until {_local(instant, zone)}"
