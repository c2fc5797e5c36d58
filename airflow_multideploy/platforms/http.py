"""A deploy API of one's own, over HTTP: anything from ``POST /deploy`` alone to ETags, operations and health.

What the API cannot tell is said, not assumed: an observation that nothing could be read for is ``verified=False``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, TypeAlias

from airflow_multideploy.core.contract import Capabilities, Handle, Observation, Platform, Release, Snapshot, State
from airflow_multideploy.core.errors import Drift
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.platforms._http_client import Client, Send
from airflow_multideploy.platforms._http_config import HttpConfig, Status
from airflow_multideploy.platforms._http_messages import Answer, Reader, Request, Sent, fill, fill_path

Look: TypeAlias = Generator[Sent, Answer, Observation]
Values: TypeAlias = dict[str, str]


@dataclass(frozen=True)
class _Live:
    """What the API says now. ``exists`` is None when it cannot be asked."""

    exists: bool | None = None
    etag: str | None = None
    told: Values = field(default_factory=dict)
    serving: str | None = None

    def same(self, snapshot: Snapshot) -> bool:
        """Whether it is what the snapshot saw."""
        data: dict[str, Any] = dict(snapshot.data)
        before = {name: value for name, value in data["told"].items() if name != "operation"}
        now = {name: value for name, value in self.told.items() if name != "operation"}
        if self.exists != snapshot.exists:
            return False
        if before or now:
            return before == now
        if self.etag or data["etag"]:
            return bool(self.etag == data["etag"])
        return bool(self.serving == data["serving"])

    def __str__(self) -> str:
        words = [self.serving and f"serves {self.serving}", *(f"{name} {value}" for name, value in self.told.items())]
        return ", ".join(word for word in words if word) or "nothing"


class _Changed(Exception):
    """The API refused the ETag: somebody wrote since we read."""


class Http(Platform[HttpConfig]):
    """One application behind a deploy API of one's own."""

    kind = "http"
    config_type = HttpConfig
    capabilities = Capabilities(
        snapshot="image and version as the API tells them, else the release that the journal last saw live",
        early_failure="the operation's state, where the API has one",
        restores="the earlier image by the API's own request; nothing that the request does not carry",
        tested_against="stand-in held to its hand-written OpenAPI 3.1 document, in a rich and a poor manner",
    )

    # --- the contract ----------------------------------------------------------------------------------------------

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`. With neither ``current`` nor ``version``, it is what the journal says."""
        with self._client().open() as send:
            live = self._live(send)
        values = self._restorable(live, previous)
        exists = previous is not None if live.exists is None else live.exists
        revision = live.serving if self.config.version else live.told.get("release_id") or live.told.get("image")
        known = bool(values) or live.exists is not None
        return Snapshot(
            exists=exists,
            revision=revision,
            image=values.get("image"),
            data={
                "known": known,
                "etag": live.etag,
                "told": {**live.told},
                "serving": live.serving,
                "values": {**values},
            },
        )

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. An API that tells nothing gets the request again on a retry, under the same key."""
        values = self._values(release)
        with self._client().open() as send:
            for again in (False, True):
                live = self._live(send)
                done = self._already(release, values, live, snapshot, send)
                if done is not None:
                    return done
                if not release.force:
                    self._check_drift(release, values, live, snapshot)
                try:
                    return self._write(send, self.config.deploy, values, live, "deploy")
                except _Changed as error:
                    if again:
                        raise self.error(str(error), retryable=True) from error
        raise AssertionError("unreachable")

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        look = self._look(handle)
        with self._client().open() as send:
            try:
                sent = next(look)
                while True:
                    sent = look.send(send(sent))
            except StopIteration as end:
                seen: Observation = end.value
                return seen

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`."""
        look = self._look(handle)
        async with self._client().aopen() as send:
            try:
                sent = next(look)
                while True:
                    sent = look.send(await send(sent))
            except StopIteration as end:
                seen: Observation = end.value
                return seen

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`. Without ``current`` it cannot see a rollout under way, and posts the way back."""
        with self._client().open() as send:
            for again in (False, True):
                live = self._live(send)
                try:
                    return self._back(send, release, snapshot, handle, live)
                except _Changed as error:
                    if again:
                        raise self.error(str(error), retryable=True) from error
        raise AssertionError("unreachable")

    def console_url(self, handle: Handle | None = None) -> str | None:
        """The configured ``console`` address."""
        return fill_path(self.config.console, self._names()) if self.config.console else None

    # --- writing ---------------------------------------------------------------------------------------------------

    def _already(self, release: Release, values: Values, live: _Live, snapshot: Snapshot, send: Send) -> Handle | None:
        """The handle when nothing has to be written: our own earlier write, or live and healthy."""
        before: dict[str, Any] = {"from": snapshot.data["serving"], "operation": live.told.get("operation")}
        told_id, current, version = live.told.get("release_id"), self.config.current, self.config.version
        ours = told_id == release.release_id
        if current and not current.release_id:
            ours = self._mine(release, values, live, snapshot) is True
        if ours and current:
            return Handle(action="deploy", revision=self._revision(values), data=before)
        if release.force or version is None or live.serving != self._revision(values):
            return None
        if live.told.get("image", release.image) != release.image:
            return None
        if self.config.health and not send(self._get(self.config.health.path)).ok:
            return None
        # With a version address alone, what changed since the snapshot to our version is taken for our own write.
        changed = current is None and snapshot.data["serving"] != live.serving
        return Handle(action="deploy", revision=live.serving, changed=changed, data={"from": snapshot.data["serving"]})

    def _check_drift(self, release: Release, values: Values, live: _Live, snapshot: Snapshot) -> None:
        if live.exists is None or live.same(snapshot) or self._mine(release, values, live, snapshot) is not False:
            return
        raise Drift(
            f"live is {live}, which is neither the snapshot ({_seen(snapshot)}) nor this release; nothing was written; "
            "look who deploys here besides, and release again",
            target=self.name,
        )

    def _mine(self, release: Release, values: Values, live: _Live, snapshot: Snapshot) -> bool | None:
        """Whether this run wrote what is live; None when that cannot be known."""
        if self.config.current and self.config.current.release_id:
            return _run_of(live.told.get("release_id", "")) == _run_of(release.release_id)
        if told := {name: live.told[name] for name in ("image", "version") if name in live.told}:
            return not live.same(snapshot) and all(values[name] == value for name, value in told.items())
        if self.config.version and live.serving is not None:
            return live.serving == self._revision(values) and not live.same(snapshot)
        return None

    def _back(self, send: Send, release: Release, snapshot: Snapshot, handle: Handle | None, live: _Live) -> Handle:
        values = self._values_back(release, snapshot)
        told_id, data = live.told.get("release_id"), {"from": live.serving}
        if told_id == values["release_id"]:
            under_way: dict[str, Any] = {**data, "operation": live.told.get("operation")}
            return Handle(action="rollback", revision=self._revision(values), data=under_way)
        mine = self._mine(release, self._values(release), live, snapshot)
        wrote = handle is None or handle.changed
        if not mine and live.exists is not None and live.same(snapshot) and (self.config.current or not wrote):
            gone: dict[str, Any] = {**data, "gone": not snapshot.exists}
            return Handle(action="rollback", revision=snapshot.revision, changed=False, data=gone)
        if mine is False and not live.same(snapshot):
            raise Drift(
                f"live is {live}: neither this release nor the snapshot ({_seen(snapshot)}), so somebody else changed "
                "it; nothing was touched; decide by hand what is to run",
                target=self.name,
            )
        if not snapshot.data["known"]:
            raise self.error(
                "cannot roll back: the API does not tell what ran before, and the journal knows of no earlier release "
                "here; configure version: (or current:), and for now deploy the version that is wanted"
            )
        if not snapshot.exists:
            return self._take_down(send, values, live)
        if snapshot.revision is None and snapshot.image is None:
            left = "nothing served before, and the application was there: left as it is"
            return Handle(action="rollback", changed=False, data={"left": left})
        return self._write(send, self.config.rollback or self.config.deploy, values, live, "rollback")

    def _take_down(self, send: Send, values: Values, live: _Live) -> Handle:
        """Undo a first-ever deploy, as the config says."""
        if self.config.first_deploy == "leave":
            left = "the first-ever deploy is left as it is (first_deploy: leave)"
            return Handle(action="rollback", changed=False, data={"left": left})
        if self.config.remove is None:
            raise self.error(
                "cannot roll back a first-ever deploy: there is nothing to go back to, and no request that removes it; "
                "configure remove:, or first_deploy: leave"
            )
        sent = self._conditional(self._filled(self.config.remove, values, "remove"), values, live)
        answer = send(sent)
        self._accepted(answer, also=(404, 410))
        return Handle(action="rollback", data={"gone": True, "from": live.serving})

    def _write(self, send: Send, request: Request, values: Values, live: _Live, action: Any) -> Handle:
        """Send the request. See the class's `deploy` about retries."""
        revision = self._revision(values)
        answer = send(self._conditional(self._filled(request, values, action), values, live))
        self._accepted(answer)
        operation = self._read(self.config.operation, answer)
        if self.config.operation and operation is None and self.config.version is None:
            raise self.error(f"{_called(answer)}: accepted, but the answer has no operation where operation: says")
        data: dict[str, Any] = {"operation": operation, "from": live.serving, "status": answer.status}
        return Handle(action=action, revision=revision, data=data)

    def _filled(self, request: Request, values: Values, action: str) -> Sent:
        try:
            return request.filled(values)
        except ValueError as error:
            raise self.error(f"the {action} request: {error}") from error

    def _conditional(self, sent: Sent, values: Values, live: _Live) -> Sent:
        """The request with its ETag condition and the key that makes a repeat of it recognisable."""
        headers = dict(sent.headers)
        if self.config.etag is not False and self.config.current:
            if live.etag:
                headers["If-Match"] = live.etag
            elif live.exists is False:
                headers["If-None-Match"] = "*"
        if self.config.idempotency_header:
            # One id may rightly be written twice, from different states (cleared, after its rollback): other key.
            state = f"-{hashlib.sha256(live.etag.encode()).hexdigest()[:8]}" if live.etag else ""
            headers[self.config.idempotency_header] = values["release_id"] + state
        return replace(sent, headers=headers)

    def _accepted(self, answer: Answer, also: tuple[int, ...] = ()) -> None:
        if answer.status == 412:
            raise _Changed(f"{_called(answer)}: HTTP 412: {answer.words}")
        if not answer.ok and answer.status not in also:
            raise self._client().refused(answer)

    # --- looking ---------------------------------------------------------------------------------------------------

    def _look(self, handle: Handle) -> Look:
        """One look, without I/O: yields what to ask, is sent the answers, returns the judgement."""
        if left := handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(left))
        confirmed, said = False, "accepted"
        if self.config.status and handle.changed and not handle.data.get("gone"):
            judged = yield from self._look_at_operation(self.config.status, handle)
            if isinstance(judged, Observation):
                return judged
            confirmed, said = judged
        if self.config.version:
            return (yield from self._look_at_version(handle, confirmed, said))
        if handle.data.get("gone") and self.config.current:
            answer = yield self._get(self.config.current.path)
            if answer.status == 404:
                return Observation(state=State.HEALTHY, reason="removed")
            self._accepted(answer)
            return Observation(state=State.PROGRESSING, reason=f"{_called(answer)} still answers")
        if (ill := (yield from self._look_at_health(handle))) is not None:
            return ill
        if confirmed:
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
            return False, f"the API no longer knows operation {operation}"
        self._accepted(answer)
        state = self._read(status.state, answer)
        reason = answer.clean(self._read(status.reason, answer) or "")
        if state is None:
            raise self.error(f"{_called(answer)}: its answer has no state where status.state says", retryable=True)
        what = f"operation {operation} {state}" if not status.fixed else f"state {state}"
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
        answer = yield self._get(version.path)
        if answer.status != 404:
            self._accepted(answer)
        serving = None if answer.status == 404 else self._read(version, answer)
        if serving != handle.revision:
            reason = (
                f"{said}; {_called(answer)} says {serving or 'that nothing serves'}, not {handle.revision or 'that'}"
            )
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
        answer = yield self._get(self.config.health.path)
        if answer.ok:
            return None
        if answer.status in (401, 403, 429) or 300 <= answer.status < 400:
            raise self._client().refused(answer)
        said = f"{_called(answer)}: HTTP {answer.status}: {answer.words}"
        return Observation(state=State.PROGRESSING, reason=said, revision=handle.revision)

    def _live(self, send: Send) -> _Live:
        """What the API says now; reads only."""
        exists: bool | None = None
        etag, told, serving = None, dict[str, str](), None
        if current := self.config.current:
            answer = send(self._get(current.path))
            exists = answer.status != 404
            if exists:
                self._accepted(answer)
                readers = {name: getattr(current, name) for name in ("image", "version", "release_id", "operation")}
                found = {name: self._read(reader, answer) for name, reader in readers.items()}
                told = {name: value for name, value in found.items() if value is not None}
                etag = answer.headers.get("etag") if self.config.etag is not False else None
                if etag is None and self.config.etag is True:
                    raise self.error(f"{_called(answer)}: its answer has no ETag, and etag: true insists on one")
        if version := self.config.version:
            answer = send(self._get(version.path))
            if answer.status != 404:
                self._accepted(answer)
                serving = self._read(version, answer)
            exists = serving is not None if exists is None else exists
        return _Live(exists, etag, told, serving)

    def _get(self, path: str) -> Sent:
        return Sent("GET", fill_path(path, self._names()), own_host=False)

    def _get_status(self, status: Status, operation: str) -> Sent:
        if status.path in ("${operation}", "$operation"):
            return Sent("GET", operation if "://" in operation else f"/{operation.lstrip('/')}")
        try:
            return Sent("GET", fill_path(status.path, {**self._names(), "operation": operation}))
        except ValueError as error:
            raise self.error(f"status.path: operation {error}") from error

    def _read(self, reader: Reader | None, answer: Answer) -> str | None:
        try:
            return reader.read(answer) if reader else None
        except ValueError as error:
            raise self.error(f"{_called(answer)}: HTTP {answer.status}, but {error}", retryable=True) from error

    def _progress(self, status: Status, answer: Answer) -> float | None:
        try:
            return min(1.0, max(0.0, float(self._read(status.progress, answer) or "")))
        except ValueError:
            return None  # not a number: then it tells no progress

    # --- values ----------------------------------------------------------------------------------------------------

    def _client(self) -> Client:
        config = self.config
        return Client(
            config.conn_id,
            target=self.name,
            auth_header=config.auth_header,
            timeout=config.call_timeout,
            fail=self.error,
        )

    def _names(self) -> Values:
        return {"service": self.service, "target": self.target}

    def _values(self, release: Release) -> Values:
        values = {"image": release.image, "version": release.version, "digest": release.digest or ""}
        values |= {"release_id": release.release_id, "reason": release.reason, **self._names()}
        return _completed({name: value for name, value in values.items() if value or name == "reason"})

    def _values_back(self, release: Release, snapshot: Snapshot) -> Values:
        saved: dict[str, Any] = dict(snapshot.data)
        values = _completed(saved["values"], _repository(release.image))
        reason = f"roll back from {release.version}"
        return {**values, "release_id": f"{release.release_id}-back", "reason": reason, **self._names()}

    def _restorable(self, live: _Live, previous: Release | None) -> Values:
        """Image, version and digest of what runs, as far as API and journal tell."""
        journal = self._values(previous) if previous else {}
        repository = _repository(live.told.get("image") or journal.get("image", ""))
        told = _completed(live.told, repository)
        values = told if self.config.current else journal
        if version := self.config.version:
            read = _completed(_inverted(version.equals, live.serving or ""), repository)
            fits = (known for known in (told, journal) if known and self._expected(known) == live.serving)
            values = next(fits, read) if live.serving is not None else {}
        elif live.exists and not {"image", "version"} & told.keys():
            values = journal
        return {name: values[name] for name in ("image", "version", "digest") if name in values}

    def _expected(self, values: Values) -> str | None:
        """What the version address has to say for these values; None when they do not tell."""
        try:
            return fill(self.config.version.equals, values) if self.config.version else None
        except ValueError:
            return None

    def _revision(self, values: Values) -> str | None:
        if self.config.version is None:
            return values["release_id"] if self.config.current and self.config.current.release_id else None
        expected = self._expected(values)
        if expected is None and values.keys() & {"image", "version"}:
            raise self.error(f"version.equals {self.config.version.equals!r}: this release has no such value")
        return expected


def _called(answer: Answer) -> str:
    return f"{answer.request.method} {answer.request.path}"


def _seen(snapshot: Snapshot) -> str:
    return snapshot.revision or snapshot.image or ("nothing deployed" if not snapshot.exists else "unknown")


def _run_of(release_id: str) -> str:
    """The part of a release id that all rollouts of one run, and their ways back, share."""
    return re.sub(r"(-\d+)?(-back)?$", "", release_id)


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    tail = name.rsplit("/", 1)[-1]
    return name.removesuffix(f":{tail.partition(':')[2]}") if ":" in tail else name


def _completed(values: Values, repository: str = "") -> Values:
    """The values with what follows from them: an image holds version and digest, and they make an image."""
    values = dict(values)
    if image := values.get("image"):
        tag, digest = (
            image.partition("@")[0].removeprefix(_repository(image)).removeprefix(":"),
            image.partition("@")[2],
        )
        values |= {
            name: value for name, value in (("version", tag), ("digest", digest)) if value and name not in values
        }
    elif repository and values.get("version"):
        values["image"] = f"{repository}:{values['version']}"
    elif repository and values.get("digest"):
        values["image"] = f"{repository}@{values['digest']}"
    return values


def _inverted(template: str, text: str) -> Values:
    """The values that make this template this text; none when it does not fit."""
    pattern, end, names = "", 0, set[str]()
    for match in Template.pattern.finditer(template):
        name = match["named"] or match["braced"]
        pattern += re.escape(template[end : match.start()])
        pattern += r"\$" if not name else f"(?P={name})" if name in names else f"(?P<{name}>.+)"
        end = match.end()
        names.add(name)
    found = re.fullmatch(pattern + re.escape(template[end:]), text)
    return found.groupdict() if found else {}


class HttpDeployOperator(DeployOperator):
    """Releases one image through a deploy API of one's own, and waits as far as the API lets it look.

    :param conn_id: HTTP Connection; with a login basic authentication, else the password is the bearer token.
    :param deploy: the request that deploys; default: ``POST /deploy`` with the form field ``image``.
    :param live_version: where the live version is read, the config's ``version``.

    The others are the fields of `HttpConfig`.
    """

    kind = "http"

    def __init__(
        self,
        *,
        conn_id: str,
        deploy: dict[str, Any] | None = None,
        operation: str | dict[str, Any] | None = None,
        status: dict[str, Any] | None = None,
        current: dict[str, Any] | None = None,
        live_version: dict[str, Any] | None = None,
        health: dict[str, Any] | None = None,
        rollback: dict[str, Any] | None = None,
        remove: dict[str, Any] | None = None,
        etag: bool | str | None = None,
        idempotency_header: str | bool | None = None,
        auth_header: str | None = None,
        call_timeout: float | None = None,
        console: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "deploy": deploy,
            "operation": operation,
            "status": status,
            "current": current,
            "version": live_version,
            "health": health,
            "rollback": rollback,
            "remove": remove,
            "etag": etag,
            "idempotency_header": idempotency_header,
            "auth_header": auth_header,
            "call_timeout": call_timeout,
            "console": console,
        }
        config = {"conn_id": conn_id, **{name: value for name, value in given.items() if value is not None}}
        super().__init__(config=config, **kwargs)
