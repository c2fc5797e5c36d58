"""Tells people how a release ended, through any notifier that Airflow's providers have: Slack, e-mail, Teams, …"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from threading import Thread
from typing import Any

from airflow.sdk import Context
from airflow.sdk.bases.notifier import BaseNotifier

from airflow_multideploy.catalog.notify import SEVERITIES, Event, Notify, Severity

PATIENCE = 10.0
"""Seconds that the notifiers of one event have, all together."""
_log = logging.getLogger(__name__)


class ReleaseNotifier(BaseNotifier):
    """Hands the events of a release to another notifier, whose templates see ``release``: ``service``, ``event``,
    ``message``, and ``version``, ``reason`` and ``results`` where there are any.

    :param notifier: import path of the other notifier, such as
        ``airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier``.
    :param arguments: what it is made with; its template fields may say ``{{ release.message }}``.
    :param events: which ones it is told; default: all that somebody should look at.
    :param severity: of those, the ones that are at least so severe.
    """

    def __init__(
        self,
        *,
        notifier: str,
        arguments: Mapping[str, Any],
        events: Iterable[Event] | None = None,
        severity: Severity = "info",
    ) -> None:
        super().__init__()
        chosen: dict[str, Any] = {"notifier": notifier, "arguments": dict(arguments), "severity": severity}
        self.settings = Notify(**chosen if events is None else {**chosen, "events": tuple(events)})

    def notify(self, context: Context) -> None:
        """Tell the other notifier, if this event is one of those it is told.

        :raises TypeError: it is no notifier; it was not called.
        :raises Exception: whatever the other one raises.
        """
        release = context.get("release")
        if not isinstance(release, Mapping) or not self.settings.wants(release["event"]):
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
    """Tell every notifier of a service, side by side; none of them can change how the release ends, nor hold it up.

    :param notifiers: a service's ``notify``, as JSON.
    :param release: what templates see beside ``event`` and ``severity``.
    """
    told: Any = {**context, "release": {**release, "event": event, "severity": SEVERITIES[event]}}
    # As daemons, so that one that hangs does not keep the task's process from ending.
    threads = {
        Thread(target=_tell, args=(settings, told, event), daemon=True): settings["notifier"] for settings in notifiers
    }
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread, name in threads.items():
        thread.join(max(until - time.monotonic(), 0.0))
        if thread.is_alive():
            _log.error("%s was not told of %s: no answer within %g s; not waited for", name, event, PATIENCE)


def _tell(settings: Mapping[str, Any], told: Any, event: Event) -> None:
    try:
        ReleaseNotifier(**settings)(told)
    except (Exception, SystemExit):  # noqa: BLE001 - whatever a notifier raises, the release has ended as it has ended
        _log.exception("%s was not told of %s", settings["notifier"], event)
