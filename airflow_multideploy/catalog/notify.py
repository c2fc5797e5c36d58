"""Who is told, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import (
    Field,
    JsonValue,
)

from airflow_multideploy.strict import Model

Event = Literal[
    "started",
    "approval_needed",
    "succeeded",
    "degraded",
    "rolled_back",
    "partially_rolled_back",
    "failed",
    "rollback_failed",
    "unknown",
    "not_started",
    "in_doubt",
    "reconciled",
]
"""What people can be told about: a release's start, that it waits for them, how it ended, and what became of a target
that a dead run left in doubt."""


Severity = Literal["info", "warning", "error", "critical"]


SEVERITIES: Mapping[Event, Severity] = {
    **dict.fromkeys(("started", "succeeded", "reconciled"), "info"),
    **dict.fromkeys(("approval_needed", "degraded", "not_started"), "warning"),
    **dict.fromkeys(("rolled_back", "partially_rolled_back", "failed", "in_doubt"), "error"),
    **dict.fromkeys(("unknown", "rollback_failed"), "critical"),
}
"""How much each event asks of people."""


class Notify(Model):
    """Who is told about releases, and when.

    :param notifier: import path of an Airflow notifier.
    :param arguments: what it is made with (never secrets: those live in its Connection); templates see ``release``.
    :param events: which ones; default: all that somebody should look at.
    :param severity: of those, the ones that are at least so severe: ``info``, ``warning``, ``error``, ``critical``.
    """

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    events: Annotated[tuple[Event, ...], Field(strict=False, min_length=1)] = tuple(
        event for event in get_args(Event) if event not in ("started", "succeeded")
    )
    severity: Severity = "info"

    def wants(self, event: Event) -> bool:
        """Whether it is told of that."""
        order: tuple[Severity, ...] = get_args(Severity)
        return event in self.events and order.index(SEVERITIES[event]) >= order.index(self.severity)
