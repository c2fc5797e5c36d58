"""A deploy API of one's own, over HTTP: anything from ``POST /deploy`` alone to ETags, operations and health.

What the API cannot tell is said, not assumed: an observation that nothing could be read for is ``verified=False``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from airflow_multideploy.clients.http import Client, Send
from airflow_multideploy.clients.http_messages import Request, Sent, fill, fill_path
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.image_names import completed, inverted, repository_of
from airflow_multideploy.platforms.onprem.http_config import HttpConfig
from airflow_multideploy.platforms.onprem.http_judge import Changed, Eyes, Live, Values, called, run_of
from airflow_multideploy.release.contract import (
    Capabilities,
    Handle,
    Manual,
    Observation,
    Platform,
    Release,
    Snapshot,
    State,
)


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
    manual = Manual(
        connection="Type `http`: host and schema; a password alone is sent as a bearer token, login and password as "
        "basic authentication.",
        protocol="The requests that the config describes. Templates are `${image}`, `${version}`, `${digest}`, "
        "`${release_id}`, `${service}`, `${target}`, `${reason}`. The poorest API needs no more than `platform` and "
        "`conn_id`: `POST /deploy` with the form field `image=…`. What cannot be known is said: without `status` and "
        "`version` a release is `succeeded` with `verified: false`, and one that was sent back is `unknown`.",
        permissions="What the API asks for to deploy and to read.",
        not_undone="whatever the API's own request does not carry.",
        example="onprem: {platform: http, conn_id: dc1}",
    )

    def __init__(self, config: HttpConfig, *, service: str, target: str) -> None:
        super().__init__(config, service=service, target=target)
        self._names: Values = {"service": service, "target": target}
        self._client = Client(self, auth_header=config.auth_header, timeout=config.call_timeout)
        self._eyes = Eyes(config, self._names, self._client)

    # --- the contract ----------------------------------------------------------------------------------------------

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`. With neither ``current`` nor ``version``, what runs is what the journal says; that
        nothing does, nobody says."""
        with self._client.open() as send:
            live = self._eyes.live(send)
            self._is_absent(live, send)
        values = self._restorable(live, previous)
        revision = live.serving if self.config.version else live.told.get("release_id") or live.told.get("image")
        known = bool(values) or live.exists is not None
        return Snapshot(
            exists=live.exists is not False,
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

    def _is_absent(self, live: Live, send: Send) -> None:
        """Refuse to take an application that is well, and tells no version, for none."""
        version, health = self.config.version, self.config.health
        if live.exists is not False or self.config.current or not (version and health):
            return
        try:
            answer = send(self._eyes.get(health.path))
        except PlatformError as error:
            if not error.retryable:
                raise
            return  # nobody answers there
        if answer.ok:
            raise self.error(
                f"{called(answer)}: HTTP {answer.status}, so an application runs, and GET {version.path} does not tell "
                "which; nobody could restore it; nothing was written: let it tell its version, configure current:, or "
                "take it away, then release again"
            )

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. An API that tells nothing gets the request again on a retry, under the same key."""
        values = self._values(release)
        with self._client.open() as send:
            for again in (False, True):
                live = self._eyes.live(send)
                done = self._already(release, values, live, snapshot, send)
                if done is not None:
                    return done
                if not release.force:
                    self._check_drift(release, values, live, snapshot)
                try:
                    return self._write(send, self.config.deploy, values, live, "deploy")
                except Changed as error:
                    if again:
                        raise self.error(str(error), retryable=True) from error
        raise AssertionError("unreachable")

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        with self._client.open() as send:
            return self._seen(send, handle)

    def _seen(self, send: Send, handle: Handle) -> Observation:
        look = self._eyes.look(handle)
        try:
            sent = next(look)
            while True:
                sent = look.send(send(sent))
        except StopIteration as end:
            seen: Observation = end.value
            return seen

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`."""
        look = self._eyes.look(handle)
        async with self._client.aopen() as send:
            try:
                sent = next(look)
                while True:
                    sent = look.send(await send(sent))
            except StopIteration as end:
                seen: Observation = end.value
                return seen

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`. Without ``current`` it cannot see a rollout under way, and posts the way back.

        A version address that does not answer (the new release may be why) does not keep it from restoring.
        """
        with self._client.open() as send:
            for again in (False, True):
                live = self._eyes.live(send, insist=False)
                try:
                    return self._back(send, release, snapshot, handle, live)
                except Changed as error:
                    if again:
                        raise self.error(str(error), retryable=True) from error
        raise AssertionError("unreachable")

    def console_url(self, handle: Handle | None = None) -> str | None:
        """The configured ``console`` address."""
        return fill_path(self.config.console, self._names) if self.config.console else None

    # --- writing ---------------------------------------------------------------------------------------------------

    def _already(self, release: Release, values: Values, live: Live, snapshot: Snapshot, send: Send) -> Handle | None:
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
        if any(live.told.get(name, values[name]) != values[name] for name in ("image", "version")):
            return None
        if self.config.health and not send(self._eyes.get(self.config.health.path)).ok:
            return None
        # With a version address alone, what changed since the snapshot to our version is taken for our own write.
        changed = current is None and snapshot.data["serving"] != live.serving
        return Handle(action="deploy", revision=live.serving, changed=changed, data={"from": snapshot.data["serving"]})

    def _check_drift(self, release: Release, values: Values, live: Live, snapshot: Snapshot) -> None:
        if live.exists is None or live.same(snapshot) or self._mine(release, values, live, snapshot) is not False:
            return
        raise Drift(
            f"live is {live}, which is neither the snapshot ({_seen(snapshot)}) nor this release; nothing was written; "
            "look who deploys here besides, and release again",
            target=self.name,
        )

    def _mine(self, release: Release, values: Values, live: Live, snapshot: Snapshot) -> bool | None:
        """Whether this run wrote what is live; None when that cannot be known."""
        if self.config.current and self.config.current.release_id:
            return run_of(live.told.get("release_id", "")) == run_of(release.release_id)
        if told := {name: live.told[name] for name in ("image", "version") if name in live.told}:
            return not live.same(snapshot) and all(values[name] == value for name, value in told.items())
        if self.config.version and live.serving is not None:
            return live.serving == self._revision(values) and not live.same(snapshot)
        return None

    def _back(self, send: Send, release: Release, snapshot: Snapshot, handle: Handle | None, live: Live) -> Handle:
        values = self._values_back(release, snapshot)
        if live.told.get("release_id") == values["release_id"]:
            data: dict[str, JsonValue] = {"from": live.serving, "operation": live.told.get("operation")}
            under_way = Handle(action="rollback", revision=self._revision(values), data=data)
            if self._seen(send, under_way).state is not State.FAILED:
                return under_way
        mine = self._mine(release, self._values(release), live, snapshot)
        # Without `current`, a lost answer may stand for a write that is not live yet: then the way back is sent too.
        wrote = handle.changed if handle else self.config.current is None
        if live.exists is not None and live.same(snapshot) and not wrote:
            gone: dict[str, Any] = {"from": live.serving, "gone": not snapshot.exists}
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
        if not snapshot.data["values"] and snapshot.data["serving"] is None:
            left = "nothing served before, and the application was there: left as it is"
            return Handle(action="rollback", changed=False, data={"left": left})
        back = self._write(send, self.config.rollback or self.config.deploy, values, live, "rollback")
        if live.serving is None:  # ours may come up yet, and is no stranger then
            return back.model_copy(update={"data": {**back.data, "from": self._expected(self._values(release))}})
        return back

    def _take_down(self, send: Send, values: Values, live: Live) -> Handle:
        """Undo a first-ever deploy, as the config says."""
        if self.config.remove is None:
            raise self.error(
                "cannot roll back a first-ever deploy: there is nothing to go back to, and no request that removes it; "
                "configure remove:, or first_deploy: leave"
            )
        sent = self._conditional(self._filled(self.config.remove, values, "remove"), values, live)
        answer = send(sent)
        self._eyes.accepted(answer, also=(404, 410))
        return Handle(action="rollback", data={"gone": True, "from": live.serving})

    def _write(self, send: Send, request: Request, values: Values, live: Live, action: Any) -> Handle:
        """Send the request. See the class's `deploy` about retries."""
        revision = self._revision(values)
        answer = send(self._conditional(self._filled(request, values, action), values, live))
        self._eyes.accepted(answer)
        operation = self._eyes.read(self.config.operation, answer)
        if self.config.operation and operation is None and self.config.version is None:
            raise self.error(f"{called(answer)}: accepted, but the answer has no operation where operation: says")
        data: dict[str, JsonValue] = {"operation": operation, "from": live.serving, "status": answer.status}
        return Handle(action=action, revision=revision, data=data)

    def _filled(self, request: Request, values: Values, action: str) -> Sent:
        try:
            return request.filled(values)
        except ValueError as error:
            raise self.error(f"the {action} request: {error}") from error

    def _conditional(self, sent: Sent, values: Values, live: Live) -> Sent:
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
            target = f"-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"  # another target's write is no repeat
            headers[self.config.idempotency_header] = values["release_id"] + target + state
        return replace(sent, headers=headers)

    # --- values ----------------------------------------------------------------------------------------------------

    def _values(self, release: Release) -> Values:
        values = {"image": release.image, "version": release.version, "digest": release.digest or ""}
        values |= {"release_id": release.release_id, "reason": release.reason, **self._names}
        return completed({name: value for name, value in values.items() if value or name == "reason"})

    def _values_back(self, release: Release, snapshot: Snapshot) -> Values:
        saved: dict[str, Any] = dict(snapshot.data)
        values = completed(saved["values"], repository_of(release.image))
        reason = f"roll back from {release.version}"
        return {**values, "release_id": f"{release.release_id}-back", "reason": reason, **self._names}

    def _restorable(self, live: Live, previous: Release | None) -> Values:
        """Image, version and digest of what runs, as far as API and journal tell."""
        journal = self._values(previous) if previous else {}
        repository = repository_of(live.told.get("image") or journal.get("image", ""))
        told = completed(live.told, repository)
        values = told if self.config.current else journal
        if version := self.config.version:
            read = completed(inverted(version.equals, live.serving or ""), repository)
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


def _seen(snapshot: Snapshot) -> str:
    return snapshot.revision or snapshot.image or ("nothing deployed" if not snapshot.exists else "unknown")
