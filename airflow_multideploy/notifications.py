"""Tells people how a release ended, through any notifier that Airflow's providers have: Slack, e-mail, Teams, …"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from airflow.sdk import Context
from airflow.sdk.bases.notifier import BaseNotifier

from airflow_multideploy.core.models import Event, Notify

_log = logging.getLogger(__name__)


class ReleaseNotifier(BaseNotifier):
    """Hands the events of a release to another notifier, whose templates see ``release``: ``service``, ``event``,
    ``message``, and ``version``, ``reason`` and ``results`` where there are any.

    :param notifier: import path of the other notifier, such as
        ``airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier``.
    :param arguments: what it is made with; its template fields may say ``{{ release.message }}``.
    :param events: which ones it is told; default: all that somebody should look at.
    """

    def __init__(self, *, notifier: str, arguments: Mapping[str, Any], events: Iterable[Event] | None = None) -> None:
        super().__init__()
        chosen = Notify(notifier=notifier, arguments=dict(arguments))
        self.settings = chosen if events is None else Notify(**{**chosen.model_dump(), "events": tuple(events)})

    def notify(self, context: Context) -> None:
        """Tell the other notifier, if this event is one of those it is told.

        :raises TypeError: it is no notifier; it was not called.
        :raises Exception: whatever the other one raises.
        """
        release = context.get("release")
        if not isinstance(release, Mapping) or release["event"] not in self.settings.events:
            return
        if (why := unfit(self.settings.notifier)) is not None:  # whatever else it is, it is not called
            raise TypeError(f"notify: {self.settings.notifier} {why}")
        other: Any = resolve_name(self.settings.notifier)
        arguments: dict[str, Any] = self.settings.arguments
        other(**arguments)(context)


def unfit(path: str) -> str | None:
    """Why what is at an import path cannot be a service's notifier; None when it can."""
    try:
        found = resolve_name(path)
    except Exception as error:  # noqa: BLE001 - importing it runs anybody's code
        return f"cannot be imported here ({type(error).__name__}: {error}); install its provider, or correct the path"
    if isinstance(found, type) and issubclass(found, BaseNotifier):
        return None
    return "is no Airflow notifier; name a class derived from BaseNotifier"


def notify(notifiers: Iterable[Mapping[str, Any]], context: Context, event: Event, **release: Any) -> None:
    """Tell every notifier of a service; none of them can change how the release ends.

    :param notifiers: a service's ``notify``, as JSON.
    :param release: what templates see beside ``event``.
    """
    told: Any = {**context, "release": {**release, "event": event}}
    for settings in notifiers:
        try:
            ReleaseNotifier(**settings)(told)
        except (Exception, SystemExit):  # noqa: BLE001 - whatever a notifier raises, the release has ended as it has ended
            _log.exception("%s was not told of %s", settings["notifier"], event)
