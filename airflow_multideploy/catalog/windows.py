"""What people write about when a release may take place: windows and freezes. `calendar` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from airflow_multideploy.strict import Model

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, KeyError, OSError):
        raise ValueError("is no IANA time zone; write one such as 'Europe/Berlin' or 'UTC'") from None
    return value


def _unquoted(value: object) -> object:
    """What YAML made of a time or day without quotes is refused: to guess what it was would be worse."""
    if isinstance(value, str):
        return value
    raise ValueError('is no string (without quotes, YAML takes 22:00 for the number 1320); quote it, as in "22:00"')


def _real(value: str) -> str:
    try:
        datetime.fromisoformat(value if "T" in value else f"2024-{value}")  # a year that has all days
    except ValueError:
        raise ValueError("is no day of the calendar; correct it") from None
    return value


T = TypeVar("T")


def _some(value: tuple[T, ...]) -> tuple[T, ...]:
    if not value:
        raise ValueError("is empty; name at least one")
    return value


_Some = Annotated[tuple[T, ...], AfterValidator(_some), Field(strict=False, json_schema_extra={"minItems": 1})]
Zone = Annotated[str, AfterValidator(_zone), Field(description="IANA time zone")]
_Written = Annotated[str, BeforeValidator(_unquoted, json_schema_input_type=str)]
_CLOCK, _DATE = "([01][0-9]|2[0-3]):[0-5][0-9]", "[0-9]{2}-[0-9]{2}"
Time = Annotated[_Written, Field(pattern=f"^{_CLOCK}$", description="such as 09:00")]
EndTime = Annotated[_Written, Field(pattern=f"^({_CLOCK}|24:00)$", description="such as 17:00; 24:00 is midnight")]
MonthDay = Annotated[_Written, Field(pattern=f"^{_DATE}$", description="such as 12-20"), AfterValidator(_real)]
Moment = Annotated[
    _Written,
    Field(pattern=f"^2[0-9]{{3}}-{_DATE}T{_CLOCK}$", description="such as 2026-12-20T00:00"),
    AfterValidator(_real),
]


class Window(Model):
    """A time of the week, on the clock of its zone. It belongs to the days on which it starts.

    ``from``, ``to``: times of the day; ``to`` at or before ``from`` is on the next day.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    days: _Some[Day]
    start: Time = Field(alias="from")
    to: EndTime


class Windows(Model):
    """When a release may make its first write.

    :param zone: whose clock the windows go by.
    :param when_closed: a release that comes outside them is to ``wait`` for the next one, or is to be ``refuse``d.
    """

    zone: Zone = "UTC"
    open: _Some[Window]
    when_closed: Literal["wait", "refuse"] = "wait"


class Scheduled(Model):
    """A release whenever one of the windows opens. They are the service's windows too, unless it has its own."""

    windows: Windows


class Yearly(Model):
    """Days of every year: ``from`` and ``to`` are both among them; ``to`` before ``from`` is in the next year.

    In a year without 02-29, ``from: 02-29`` begins with 03-01 and ``to: 02-29`` ends with 02-28.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    start: MonthDay = Field(alias="from")
    to: MonthDay


Scope = _Some[Annotated[str, Field(min_length=1)]]


class Freeze(Model):
    """A time at which nothing is released: ``from`` and ``to`` (once), ``weekly``, ``yearly``, or ``icalendar``.

    :param icalendar: path of a file; each of its events is a freeze.
    :param zone: whose clock it goes by; in an iCalendar file, of all-day events and of times without a zone.
    :param reason: told to whoever is stopped by it.
    :param services: names, or shell patterns of them; likewise the environments and the platforms' kinds.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    start: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    weekly: Window | None = None
    yearly: Yearly | None = None
    icalendar: Annotated[str, Field(min_length=1)] | None = None
    zone: Zone = "UTC"
    reason: str = ""
    services: Scope = ("*",)
    environments: Scope = ("*",)
    platforms: Scope = ("*",)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.start is None) != (self.to is None):
            raise ValueError("gives one of 'from' and 'to'; add the other")
        forms = (self.start, self.weekly, self.yearly, self.icalendar)
        if sum(form is not None for form in forms) != 1:
            raise ValueError("does not say once when it is; give 'from' and 'to', or weekly, or yearly, or icalendar")
        if self.start and self.to and self.to <= self.start:
            raise ValueError("ends before it begins; give a 'to' after 'from'")
        return self


Schedule = Annotated[
    # The tags stand in an error's path, like pydantic's own names of a union's branches, and are left out likewise.
    Annotated[str, Field(min_length=1), Tag("function-cron")] | Annotated[Scheduled, Tag("function-windows")],
    Discriminator(lambda value: "function-windows" if isinstance(value, Mapping | Scheduled) else "function-cron"),
]
