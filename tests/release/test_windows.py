from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.problems import lines
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.windows import Freeze, Windows
from airflow_multideploy.errors import MissingExtra, SpecError
from airflow_multideploy.release.windows import (
    Allowed,
    Blocked,
    Closed,
    Open,
    freezes_at,
    gate,
    next_opening,
    parse_freezes,
    windows_at,
)
from tests.release.calendar_cases import OPENINGS, WINDOWS
from tests.release.conftest import config_type
from tests.release.freeze_cases import FREEZES, GATES

SHOP: dict[str, Any] = {"service": "shop", "platforms": ["aws_ecs", "helm"]}


def at(written: str) -> dt.datetime | None:
    return None if written == "never" else dt.datetime.fromisoformat(written)


def moment(written: str) -> dt.datetime:
    instant = at(written)
    assert instant is not None
    return instant


def cases(table: str) -> list[Any]:
    """What applies, an instant, what is to be seen."""
    found = []
    for line in table.strip().splitlines():
        if not line.startswith(" "):
            head = line
            continue
        now, _, seen = line.strip().partition(" ")
        found.append(pytest.param(head, now, seen.strip(), id=f"{head} @ {now}"))
    return found


def window(text: str) -> dict[str, Any]:
    """Of ``mon,tue 09:00-17:00``."""
    days, _, hours = text.strip().partition(" ")
    start, _, end = hours.partition("-")
    return {"days": days.split(","), "from": start, "to": end}


def windows(zone: str, text: str, **more: Any) -> Windows:
    return Windows.model_validate({"zone": zone.strip(), "open": [window(one) for one in text.split(";")], **more})


def frozen(zone: str, text: str, **more: Any) -> dict[str, Any]:
    """Of ``once <from> <to>``, ``weekly <window>`` or ``yearly <from> <to>``."""
    kind, _, rest = text.strip().partition(" ")
    ends = dict(zip(("from", "to"), rest.split(" "), strict=False))
    form = {"once": ends, "weekly": {"weekly": window(rest)}, "yearly": {"yearly": ends}}[kind]
    return {"name": "f", "zone": zone.strip(), **form, **more}


def freezes(*documents: dict[str, Any]) -> tuple[Freeze, ...]:
    return parse_freezes([{**one, "name": f"f{index}"} for index, one in enumerate(documents)])


@pytest.mark.parametrize(("head", "now", "seen"), cases(WINDOWS))
def test_windows_are_open_or_closed_until(head: str, now: str, seen: str) -> None:
    state, _, until = seen.partition(" ")
    found = windows_at(windows(*head.split("|")), moment(now))
    assert found == (Open(at(until)) if state == "open" else Closed(at(until)))


@pytest.mark.parametrize(("head", "now", "seen"), cases(OPENINGS))
def test_every_window_that_opens_is_an_opening(head: str, now: str, seen: str) -> None:
    assert next_opening(windows(*head.split("|")), moment(now)) == at(seen)


@pytest.mark.parametrize(("head", "now", "seen"), cases(FREEZES))
def test_a_freeze_is_on_until_or_off(head: str, now: str, seen: str) -> None:
    hits = freezes_at(freezes(frozen(*head.split("|"))), moment(now), **SHOP)
    assert [hit.until for hit in hits] == ([] if seen == "off" else [at(seen.removeprefix("on "))])


@pytest.mark.parametrize(("head", "now", "seen"), cases(GATES))
def test_the_gate_is_open_where_windows_and_freezes_both_let_it(head: str, now: str, seen: str) -> None:
    *opening, frost = head.split(" | ")
    allowed = None if opening == ["always"] else windows(*opening)
    found = gate(
        allowed, freezes(*(frozen(*one.strip().split(" ", 1)) for one in frost.split(";"))), moment(now), **SHOP
    )
    assert (found if isinstance(found, Allowed) else found.opens) == (Allowed() if seen == "allowed" else at(seen))


def test_without_windows_and_freezes_it_is_always_allowed() -> None:
    assert gate(None, (), moment("2026-01-01T00:00+00:00"), **SHOP) == Allowed()


# --- what a freeze is about


@pytest.mark.parametrize(
    ("scope", "service", "environment", "about"),
    [
        ({}, "shop", None, ["aws_ecs", "helm"]),
        ({}, "shop", "prod", ["aws_ecs", "helm"]),
        ({"services": ["shop"]}, "shop", None, ["aws_ecs", "helm"]),
        ({"services": ["shop"]}, "shop-api", None, []),
        ({"services": ["shop*"]}, "shop-api", None, ["aws_ecs", "helm"]),
        ({"services": ["pay", "sh[aio]p"]}, "shop", None, ["aws_ecs", "helm"]),
        ({"services": ["SHOP"]}, "shop", None, []),
        ({"services": ["pay"]}, "shop", None, []),
        ({"environments": ["prod"]}, "shop", "prod", ["aws_ecs", "helm"]),
        ({"environments": ["prod*"]}, "shop", "prod-eu", ["aws_ecs", "helm"]),
        ({"environments": ["prod"]}, "shop", "staging", []),
        ({"environments": ["prod"]}, "shop", None, []),
        ({"environments": ["*"]}, "shop", None, ["aws_ecs", "helm"]),
        ({"platforms": ["aws_*"]}, "shop", None, ["aws_ecs"]),
        ({"platforms": ["helm", "gcp_*"]}, "shop", None, ["helm"]),
        ({"platforms": ["gcp_*"]}, "shop", None, []),
        ({"services": ["shop"], "platforms": ["gcp_*"]}, "shop", None, []),
        ({"services": ["pay"], "platforms": ["*"]}, "shop", None, []),
        ({"services": ["shop"], "environments": ["prod"], "platforms": ["helm"]}, "shop", "prod", ["helm"]),
    ],
)
def test_a_freeze_stops_what_it_is_about_and_nothing_else(
    scope: dict[str, Any], service: str, environment: str | None, about: list[str]
) -> None:
    (freeze,) = freezes(frozen("UTC", "once 2026-01-01T00:00 2026-02-01T00:00", reason="audit", **scope))
    now, platforms = moment("2026-01-15T00:00+00:00"), ["aws_ecs", "helm"]
    hits = freezes_at([freeze], now, service=service, environment=environment, platforms=platforms)
    assert [(hit.name, hit.reason, list(hit.platforms)) for hit in hits] == ([("f0", "audit", about)] if about else [])
    found = gate(None, [freeze], now, service=service, environment=environment, platforms=platforms)
    assert isinstance(found, Blocked if about else Allowed)


def test_the_reason_says_what_stops_it_and_until_when() -> None:
    allowed = windows("Europe/Berlin", "mon 09:00-17:00")
    first = frozen("Europe/Berlin", "once 2026-01-05T08:00 2026-01-05T12:00", reason="audit", platforms=["aws_*"])
    second = frozen("UTC", "weekly mon 00:00-12:00")
    both = freezes(first, second)

    def reason(now: str, *, of: tuple[Freeze, ...] = both) -> str:
        found = gate(allowed, of, moment(now), **SHOP)
        assert isinstance(found, Blocked)
        return found.reason

    assert reason("2026-01-05T10:00+01:00") == (
        "frozen by 'f0' on aws_ecs (audit) until 2026-01-05 12:00 Europe/Berlin; "
        "frozen by 'f1' on aws_ecs, helm until 2026-01-05 12:00 UTC"
    )
    assert reason("2026-01-04T12:00+01:00") == (
        "outside its windows until 2026-01-05 09:00 Europe/Berlin; allowed again from 2026-01-05 13:00 Europe/Berlin"
    )
    assert reason("2026-01-04T12:00+01:00", of=()) == "outside its windows until 2026-01-05 09:00 Europe/Berlin"
    endless = freezes(frozen("UTC", "once 2026-01-05T08:00 2040-01-01T00:00"))
    assert reason("2026-01-04T12:00+01:00", of=endless).endswith("Europe/Berlin; not allowed within two years")
    assert "frozen by 'f0' on aws_ecs, helm for the next two years" in reason("2026-01-05T10:00+01:00", of=endless)


def test_a_time_without_a_zone_is_no_instant() -> None:
    with pytest.raises(ValueError, match="give an aware datetime"):
        windows_at(windows("UTC", "mon 09:00-17:00"), dt.datetime(2026, 1, 1))  # noqa: DTZ001


# --- iCalendar


EVENTS = {
    "a day": "DTSTART;VALUE=DATE:20260405\nDTEND;VALUE=DATE:20260406",
    "a day without an end": "DTSTART;VALUE=DATE:20260405",
    "days": "DTSTART;VALUE=DATE:20261220\nDTEND;VALUE=DATE:20270104",
    "in UTC": "DTSTART:20260105T080000Z\nDTEND:20260105T110000Z",
    "in no zone": "DTSTART:20261025T023000\nDTEND:20261025T024500",
    "in a zone": "DTSTART;TZID=America/New_York:20260308T013000\nDTEND;TZID=America/New_York:20260308T043000",
    "with a duration": "DTSTART:20260105T080000Z\nDURATION:PT90M",
    "weekly": "DTSTART;TZID=Europe/Berlin:20260105T090000\nDTEND;TZID=Europe/Berlin:20260105T100000\nRRULE:FREQ=WEEKLY",
    "last Sunday of a month": "DTSTART;VALUE=DATE:20260125\nRRULE:FREQ=MONTHLY;BYDAY=-1SU",
    "with one left out": "DTSTART:20260105T080000Z\nDTEND:20260105T090000Z\nRRULE:FREQ=DAILY\nEXDATE:20260107T080000Z",
    "three times": "DTSTART;VALUE=DATE:20260105\nRRULE:FREQ=DAILY;COUNT=3",
    "cancelled": "DTSTART;VALUE=DATE:20260405\nSTATUS:CANCELLED",
    "of no length": "DTSTART:20260105T080000Z",
}


def ics(folder: Path, *events: str) -> dict[str, Any]:
    """A freeze of the events; its zone is Auckland's."""
    parts = (f"BEGIN:VEVENT\nUID:{index}\n{event}\nEND:VEVENT\n" for index, event in enumerate(events))
    file = folder / "freezes.ics"
    text = f"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//test//\n{''.join(parts)}END:VCALENDAR\n"
    file.write_bytes(text.replace("\n", "\r\n").encode())
    return {"name": "company", "icalendar": str(file), "zone": "Pacific/Auckland"}


@pytest.mark.parametrize(
    ("event", "now", "until"),
    [
        ("a day", "2026-04-04T23:59+13:00", "off"),
        ("a day", "2026-04-05T00:00+13:00", "2026-04-06T00:00+12:00"),
        ("a day", "2026-04-06T00:00+12:00", "off"),
        ("a day without an end", "2026-04-05T23:59+12:00", "2026-04-06T00:00+12:00"),
        ("days", "2027-01-03T23:59+13:00", "2027-01-04T00:00+13:00"),
        ("days", "2027-01-04T00:00+13:00", "off"),
        ("in UTC", "2026-01-05T07:59+00:00", "off"),
        ("in UTC", "2026-01-05T08:00+00:00", "2026-01-05T11:00+00:00"),
        ("in UTC", "2026-01-05T11:00+00:00", "off"),
        ("in no zone", "2026-10-25T02:30+13:00", "2026-10-25T02:45+13:00"),
        ("in a zone", "2026-03-08T03:00-04:00", "2026-03-08T04:30-04:00"),
        ("in a zone", "2026-03-08T04:30-04:00", "off"),
        ("with a duration", "2026-01-05T09:29+00:00", "2026-01-05T09:30+00:00"),
        ("weekly", "2026-03-23T09:30+01:00", "2026-03-23T10:00+01:00"),
        ("weekly", "2026-03-30T09:30+02:00", "2026-03-30T10:00+02:00"),
        ("weekly", "2026-03-30T10:00+02:00", "off"),
        ("weekly", "2036-01-07T09:30+01:00", "2036-01-07T10:00+01:00"),
        ("last Sunday of a month", "2028-02-27T12:00+13:00", "2028-02-28T00:00+13:00"),
        ("last Sunday of a month", "2028-02-20T12:00+13:00", "off"),
        ("with one left out", "2026-01-06T08:00+00:00", "2026-01-06T09:00+00:00"),
        ("with one left out", "2026-01-07T08:00+00:00", "off"),
        ("three times", "2026-01-05T00:00+13:00", "2026-01-08T00:00+13:00"),
        ("three times", "2026-01-08T00:00+13:00", "off"),
        ("cancelled", "2026-04-05T12:00+12:00", "off"),
        ("of no length", "2026-01-05T08:00+00:00", "off"),
    ],
)
def test_each_event_of_a_calendar_file_is_a_freeze(tmp_path: Path, event: str, now: str, until: str) -> None:
    hits = freezes_at(parse_freezes([ics(tmp_path, EVENTS[event])]), moment(now), **SHOP)
    assert [hit.until for hit in hits] == ([] if until == "off" else [at(until)])


@pytest.mark.parametrize("now", ["2026-11-01T01:45-07:00", "2026-11-01T01:45-08:00", "2026-11-03T23:59-08:00"])
def test_what_has_no_zone_goes_by_the_freezes_clock(tmp_path: Path, now: str) -> None:
    hour, day = "DTSTART:20261101T013000\nDTEND:20261101T020000", "DTSTART;VALUE=DATE:20261103"
    (found,) = freezes_at(
        parse_freezes([{**ics(tmp_path, hour, day), "zone": "America/Los_Angeles"}]), moment(now), **SHOP
    )
    assert found.until == at("2026-11-01T02:00-08:00" if "11-01" in now else "2026-11-04T00:00-08:00")


def test_the_events_of_a_file_count_together_and_shut_windows(tmp_path: Path) -> None:
    found = parse_freezes([ics(tmp_path, "DTSTART;VALUE=DATE:20260108", EVENTS["in UTC"], EVENTS["three times"])])
    assert gate(windows("Pacific/Auckland", "thu 09:00-17:00"), found, moment("2026-01-05T00:00+13:00"), **SHOP) == (
        Blocked(
            "frozen by 'company' on aws_ecs, helm until 2026-01-09 00:00 Pacific/Auckland; "
            "outside its windows until 2026-01-08 09:00 Pacific/Auckland; "
            "allowed again from 2026-01-15 09:00 Pacific/Auckland",
            at("2026-01-15T09:00+13:00"),
        )
    )


def test_a_zone_that_nobody_knows_lets_nothing_pass(tmp_path: Path) -> None:
    event = "DTSTART;TZID=Foo Time:20260105T080000\nDTEND;TZID=Foo Time:20260105T110000"
    with pytest.raises(SpecError, match="nobody knows the time zone 'Foo Time'"):
        freezes_at(parse_freezes([ics(tmp_path, event)]), moment("2026-01-05T00:00+00:00"), **SHOP)


@pytest.mark.parametrize("text", [None, "", "nonsense", "BEGIN:VCALENDAR", "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:x"])
def test_a_calendar_file_that_cannot_be_read_lets_nothing_pass(tmp_path: Path, text: str | None) -> None:
    freeze = ics(tmp_path, EVENTS["a day"])
    file = Path(freeze["icalendar"])
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SpecError, match=r"freeze 'company': icalendar: .*freezes\.ics cannot be read \(.+\); mend it"):
        gate(None, parse_freezes([freeze]), moment("2026-01-01T00:00+00:00"), **SHOP)


def test_a_calendar_file_asks_for_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse_freezes([ics(tmp_path, EVENTS["a day"])])
    monkeypatch.setitem(sys.modules, "recurring_ical_events", None)
    with pytest.raises(MissingExtra, match=r"freeze 'company': recurring_ical_events is not .*\[calendar\]"):
        freezes_at(found, moment("2026-01-01T00:00+00:00"), **SHOP)


# --- what people write


ONCE = {"name": "f", "from": "2026-01-01T00:00", "to": "2026-01-02T00:00"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "freezes: expected a list of freezes, got dict; write one"),
        ([5], "freezes[0].(whole): expected a mapping; write one"),
        ([{"name": "f"}], "freezes[0].(whole): does not say once when it is; give"),
        ([{**ONCE, "yearly": {"from": "12-20", "to": "01-03"}}], "freezes[0].(whole): does not say once when it is"),
        (
            [{"name": "f", "from": "2026-01-01T00:00"}],
            "freezes[0].(whole): gives one of 'from' and 'to'; add the other",
        ),
        ([{**ONCE, "to": "2026-01-01T00:00"}], "freezes[0].(whole): ends before it begins; give"),
        ([{**ONCE, "to": "2027-02-29T00:00"}], "freezes[0].to: is no day of the calendar; correct it"),
        ([{**ONCE, "to": dt.date(2026, 1, 2)}], "freezes[0].to: is no string"),
        ([{**ONCE, "to": "2026-01-02"}], "freezes[0].to: String should match pattern"),
        ([{**ONCE, "to": "9999-12-31T23:59"}], "freezes[0].to: String should match pattern"),
        ([{"name": "f", "yearly": {"from": "02-30", "to": "03-01"}}], "freezes[0].yearly.from: is no day of the cal"),
        ([{"name": "f", "weekly": window("mon 09:00-25:00")}], "freezes[0].weekly.to: String should match pattern"),
        ([{**ONCE, "platform": ["x"]}], "freezes[0].platform: unknown key; did you mean 'platforms'?"),
        ([{**ONCE, "platforms": []}], "freezes[0].platforms: is empty; name at least one"),
        ([{**ONCE, "services": "shop"}], "freezes[0].services: expected a list; write one"),
        ([ONCE, ONCE], "freezes[1].name: is another freeze's too; give it one of its own"),
        ([{**ONCE, "reason": "Bearer 0123456789abcdef"}], "freezes[0].reason: looks like a secret (not shown); remove"),
    ],
)
def test_each_problem_of_a_freeze_names_its_path_and_a_remedy(document: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_freezes(document)
    assert [problem for problem in caught.value.problems if problem.startswith(said)], caught.value.problems


def test_all_problems_of_all_freezes_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_freezes([{"name": "a"}, {**ONCE, "zone": "Berlin", "days": 1}, {**ONCE, "services": [""]}])
    assert len(caught.value.problems) == 4
    assert parse_freezes(None) == parse_freezes([]) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zone": "Berlin"}, "windows.zone: is no IANA time zone; write one such as 'Europe/Berlin' or 'UTC'"),
        ({"zone": "Europe"}, "windows.zone: is no IANA time zone"),
        ({"zone": ""}, "windows.zone: is no IANA time zone"),
        ({"open": []}, "windows.open: is empty; name at least one"),
        ({"open": [{"days": [], "from": "09:00", "to": "10:00"}]}, "windows.open.0.days: is empty; name at least one"),
        ({"open": [window("Mon 09:00-10:00")]}, "windows.open.0.days.0: Input should be 'mon', 'tue', "),
        ({"open": [window("mon 9:00-10:00")]}, "windows.open.0.from: String should match pattern"),
        ({"open": [window("mon 24:00-10:00")]}, "windows.open.0.from: String should match pattern"),
        (
            {"open": [{"days": ["mon"], "from": 1320, "to": "23:00"}]},
            "windows.open.0.from: is no string (without quote",
        ),
        ({"when_closed": "skip"}, "windows.when_closed: Input should be 'wait' or 'refuse'; take one of those"),
        ({"when_clsed": "wait"}, "windows.when_clsed: unknown key; did you mean 'when_closed'?"),
    ],
)
def test_each_problem_of_windows_is_one_line_with_its_path_and_a_remedy(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Windows.model_validate({"open": [window("mon 09:00-17:00")], **change})
    (line,) = lines(caught.value, Windows, prefix="windows")
    assert line.startswith(said)


HOURS = {"open": [window("mon 09:00-17:00")]}


def service(**changes: Any) -> Service:
    target = {"platform": "fake", "conn_id": "c"}
    document = {"artifact": {"image": "r.test/shop"}, "version": "1", "targets": {"t": target}, **changes}
    return parse_service("shop", document, config_type=config_type)


def test_a_service_with_windows_survives_json() -> None:
    night = {"zone": "Europe/Berlin", "open": [window("fri 22:00-02:00")], "when_closed": "refuse"}
    both = service(schedule={"windows": HOURS}, windows=night)
    again = both.model_dump(mode="json")
    assert again["windows"]["open"] == [window("fri 22:00-02:00")]
    assert service(**{**again, "targets": {"t": {"platform": "fake", "conn_id": "c"}}}) == both


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": 5}, ["schedule: Input should be a valid string; write a string (quote it)"]),
        ({"schedule": {}}, ["schedule.windows: Field required; add it"]),
        (
            {"schedule": {"windows": {**HOURS, "zone": "x"}}},
            ["schedule.windows.zone: is no IANA time zone; write one "],
        ),
        (
            {"schedule": {"windows": HOURS}, "version": None},
            ["version: missing; a scheduled release has nobody to ask"],
        ),
        (
            {"schedule": {"windows": {**HOURS, "when_closed": "refuse"}}, "windows": HOURS},
            ["schedule.windows.when_closed: says nothing beside 'windows'; set it there"],
        ),
    ],
)
def test_a_schedule_is_a_cron_expression_or_windows(changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        service(**changes)
    found = caught.value.problems
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True)), found
