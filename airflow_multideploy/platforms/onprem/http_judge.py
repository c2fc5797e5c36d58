"""Looking through the http platform's eyes: what the API says now, and what that means for a rollout."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from airflow_multideploy import addresses
from airflow_multideploy.clients.http import Client, Send
from airflow_multideploy.clients.http_messages import Answer, Reader, Sent, fill_path
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.onprem.http_config import Current, HttpConfig, Status, Version
from airflow_multideploy.release.contract import Handle, Observation, Snapshot, State

Look: TypeAlias = Generator[Sent, Answer, Observation]
Values: TypeAlias = dict[str, str]

ABSENT = (404, 410)
PATIENCE = 5.0
"""Seconds that an address may ask to wait (Retry-After) when we can do without its answer."""


@dataclass(frozen=True)
class Live:
    """What the API says now. ``exists`` is None when it cannot be asked."""

    exists: bool | None = None
    etag: str | None = None
    told: Values = field(default_factory=dict)
    serving: str | None = None
    down: bool = False

    def same(self, snapshot: Snapshot) -> bool:
        """Whether it is what the snapshot saw."""
        data: dict[str, Any] = dict(snapshot.data)
        before = {name: value for name, value in data["told"].items() if name != "operation"}
        now = {name: value for name, value in self.told.items() if name != "operation"}
        if self.exists != snapshot.exists or self.down:
            return False
        if before or now:
            return before == now
        if self.etag or data["etag"]:
            return bool(self.etag == data["etag"])
        return bool(self.serving == data["serving"])

    def __str__(self) -> str:
        words = [self.serving, *(f"{name} {addresses.shown(value)}" for name, value in self.told.items())]
        return ", ".join(word for word in words if word) or "nothing"


class Changed(Exception):
    """The API refused the ETag: somebody wrote since we read."""


class Eyes:
    """Reads one target. A look does no I/O itself, so that thread and event loop share it.

    :param names: what the paths of looks may name.
    """

    def __init__(self, config: HttpConfig, names: Values, client: Client) -> None:
        self.config, self.names, self.client = config, names, client

    def look(self, handle: Handle) -> Look:
        """One look, without I/O: yields what to ask, is sent the answers, returns the judgement."""
        if left := handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(left))
        confirmed, said = False, "accepted"
        if self.config.status and handle.changed and not handle.data.get("gone"):
            judged = yield from self._look_at_operation(self.config.status, handle)
            if isinstance(judged, Observation):
                return judged
            confirmed, said = judged
        if handle.data.get("gone") and self.config.current:
            answer = yield self.get(self.config.current.path)
            if answer.status not in ABSENT:
                self.accepted(answer)
                return Observation(state=State.PROGRESSING, reason=f"{called(answer)} still answers")
            confirmed, said = True, "removed"
        if self.config.version:
            return (yield from self._look_at_version(handle, confirmed, said))
        if (ill := (yield from self._look_at_health(handle))) is not None:
            return ill
        return self._unseen(handle, confirmed, said)

    def _unseen(self, handle: Handle, confirmed: bool, said: str) -> Observation:
        """The judgement when no version can be read."""
        if confirmed or (not handle.changed and self.config.current):
            return Observation(state=State.HEALTHY, reason=said, revision=handle.revision)
        if self.config.status and handle.changed and not self.config.status.fixed:
            return Observation(state=State.UNKNOWN, reason=f"{said}; configure version: to see what is live")
        return Observation(
            state=State.HEALTHY,
            reason=f"{said}; not verified: the API tells neither this operation's state nor the live version; "
            "configure version: or status:",
            verified=False,
        )

    def _look_at_operation(
        self, status: Status, handle: Handle
    ) -> Generator[Sent, Answer, Observation | tuple[bool, str]]:
        """An observation when that settles it, else whether my operation is known to have succeeded, and in words."""
        operation = handle.data.get("operation")
        if not status.fixed and not isinstance(operation, str):
            return False, "the operation's id was lost with an answer"
        answer = yield self._get_status(status, str(operation))
        if answer.status in (404, 410) and not status.fixed:
            return False, f"the API no longer knows operation {addresses.shown(str(operation))}"
        self.accepted(answer)
        state = self.read(status.state, answer)
        reason = answer.clean(self.read(status.reason, answer) or "")
        if state is None:
            raise self.client.fail(f"{called(answer)}: its answer has no state where status.state says", retryable=True)
        what = f"operation {addresses.shown(str(operation))} {state}" if not status.fixed else f"state {state}"
        said = f"{what}: {reason}" if reason else what
        if state in status.failed:
            return Observation(state=State.FAILED, reason=said)
        if state not in status.succeeded:
            return Observation(state=State.PROGRESSING, reason=said, progress=self._progress(status, answer))
        return not status.fixed, said

    def _look_at_version(self, handle: Handle, confirmed: bool, said: str) -> Look:
        version = self.config.version
        if version is None:
            raise AssertionError("asked only when configured")
        answer = yield self.get(version.path)
        serving = self._serving(version, answer)
        if serving != handle.revision:
            expected = handle.revision or "nothing"
            reason = f"{said}; {called(answer)} says {serving or 'nothing'}, expected {expected}"
            other = serving is not None and serving != handle.data.get("from")
            return Observation(state=State.SUPERSEDED if other else State.PROGRESSING, reason=reason, revision=serving)
        if serving is not None and (ill := (yield from self._look_at_health(handle))) is not None:
            return ill
        if handle.changed and not confirmed and handle.data.get("from") == serving:
            reason = f"{said}; {serving} served before the write too, so this cannot tell an end from a start"
            return Observation(state=State.HEALTHY, reason=reason, revision=serving, verified=False)
        return Observation(state=State.HEALTHY, reason=f"{serving or 'nothing'} serves", revision=serving)

    def _look_at_health(self, handle: Handle) -> Generator[Sent, Answer, Observation | None]:
        if self.config.health is None:
            return None
        answer = yield self.get(self.config.health.path)
        if answer.ok:
            return None
        if answer.status in (401, 403, 429) or 300 <= answer.status < 400:
            raise self.client.refused(answer)
        said = f"{called(answer)}: HTTP {answer.status}: {answer.words}"
        return Observation(state=State.PROGRESSING, reason=said, revision=handle.revision)

    def live(self, send: Send, *, insist: bool = True) -> Live:
        """What the API says now; reads only.

        :param insist: False: a version address that does not answer in three tries, or asks for more patience than
            `PATIENCE`, is ``down``, and no error.
        """
        live = self._told(send, self.config.current) if self.config.current else Live()
        version = self.config.version
        if version is None:
            return live
        for pause in (0.5, 1.0, None):
            try:
                serving = self._serving(version, send(self.get(version.path)))
            except PlatformError as error:
                if insist or not error.retryable:
                    raise
                asked = error.retry_after or 0.0
                if pause is None or asked > PATIENCE:
                    break
                time.sleep(max(pause, asked))
            else:
                return replace(
                    live, serving=serving, exists=serving is not None if live.exists is None else live.exists
                )
        return replace(live, down=True)

    def _told(self, send: Send, current: Current) -> Live:
        answer = send(self.get(current.path))
        if answer.status in ABSENT:
            return Live(exists=False)
        self.accepted(answer)
        readers = {name: getattr(current, name) for name in ("image", "version", "release_id", "operation")}
        found = {name: self.read(reader, answer) for name, reader in readers.items()}
        etag = answer.headers.get("etag") if self.config.etag is not False else None
        if not etag and self.config.etag is True:
            raise self.client.fail(f"{called(answer)}: its answer has no ETag, and etag: true insists on one")
        return Live(True, etag, {name: value for name, value in found.items() if value is not None})

    def _serving(self, version: Version, answer: Answer) -> str | None:
        if answer.status in version.absent:
            return None
        self.accepted(answer)
        return self.read(version, answer)

    def get(self, path: str) -> Sent:
        return Sent("GET", fill_path(path, self.names), own_host=False)

    def _get_status(self, status: Status, operation: str) -> Sent:
        if status.path in ("${operation}", "$operation"):
            return Sent("GET", operation if "://" in operation else f"/{operation.lstrip('/')}")
        try:
            return Sent("GET", fill_path(status.path, {**self.names, "operation": operation}))
        except ValueError as error:
            raise self.client.fail(f"status.path: operation {error}") from error

    def read(self, reader: Reader | None, answer: Answer) -> str | None:
        try:
            return reader.read(answer) if reader else None
        except ValueError as error:
            raise self.client.fail(f"{called(answer)}: HTTP {answer.status}, but {error}", retryable=True) from error

    def _progress(self, status: Status, answer: Answer) -> float | None:
        try:
            return min(1.0, max(0.0, float(self.read(status.progress, answer) or "")))
        except ValueError:
            return None  # not a number: then it tells no progress

    def accepted(self, answer: Answer, also: tuple[int, ...] = ()) -> None:
        if answer.status == 412 and answer.request.method != "GET":
            raise Changed(f"{called(answer)}: HTTP 412: {answer.words}")
        if not answer.ok and answer.status not in also:
            raise self.client.refused(answer)


def called(answer: Answer) -> str:
    return answer.request.called


def run_of(release_id: str) -> str:
    """The part of a release id that all rollouts of one run, and their ways back, share."""
    return re.sub(r"(-\d+)?(-back)?$", "", release_id)
