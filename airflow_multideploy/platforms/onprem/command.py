"""Commands on the worker: for teams whose pipeline is a program, from ``deploy: [./deploy.sh, "${image}"]`` alone to
one that tells its state.

Every command is a list of words that no shell sees, and each word may hold the release's values. A command answers by
its exit code and, as its last line on standard output, a JSON document. What no command tells is said to be unknown.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.command import Call, arun, run
from airflow_multideploy.clients.connections import existing
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.onprem.http_judge import run_of
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
from airflow_multideploy.secrets import last_words
from airflow_multideploy.strict import Seconds

Words = Annotated[tuple[Located, ...], Field(strict=False)]
_TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class CommandConfig(TargetConfig):
    """Commands, each a list of words in which ``${version}``, ``${image}``, ``${digest}``, ``${release_id}``,
    ``${reason}`` and ``${service}`` are filled in.

    :param deploy: starts the release, or does it; the task waits for its end.
    :param snapshot: prints what is live: ``{"exists": true, "revision": "42", "image": "…", "release_id": "…", "state":
        "healthy"}``. ``revision`` has to be there, ``exists`` where it is false, ``image`` unless there is a
        ``rollback``. Print ``release_id`` if you can (``MULTIDEPLOY_RELEASE_ID`` of the last ``deploy`` or
        ``rollback``): without it, what changed to the release's image counts as this release's work. With
        ``snapshot``, ``deploy`` and ``rollback`` have to print ``{"revision": "…"}``.
    :param status: prints how the release is doing: ``{"state": "progressing", "reason": "2 of 3", "progress": 0.6}``;
        states are progressing, healthy, failed, superseded. Nothing printed, and exit code 0: healthy. It runs where
        the waiting is done: in the triggerer, or with ``deferrable: false`` in the worker.
    :param rollback: goes back; the values are those of what ran before. Empty: ``deploy`` with those values.
    :param remove: takes down a first-ever release.
    :param environment: more environment variables (never secrets), with the release's values.
    :param inherit: names of the worker's environment variables that the commands get, besides PATH, HOME, LANG,
        LC_ALL, TZ and TMPDIR.
    :param folder: the working directory; relative words such as ``./deploy.sh`` are looked up there.
    :param command_timeout: seconds that ``deploy``, ``rollback`` and ``remove`` may take.
    :param look_timeout: seconds that ``snapshot`` and ``status`` may take.
    """

    platform: Literal["command"] = "command"
    deploy: Annotated[Words, Field(min_length=1)]
    snapshot: Words = ()
    status: Words = ()
    rollback: Words = ()
    remove: Words = ()
    environment: dict[str, Located] = Field(default_factory=dict)
    inherit: Annotated[tuple[str, ...], Field(strict=False)] = ()
    folder: Annotated[str, Field(pattern="^/")] | None = None
    command_timeout: Seconds = 300.0
    look_timeout: Seconds = 30.0

    @model_validator(mode="after")
    def _whole_words(self) -> CommandConfig:
        for name in ("deploy", "snapshot", "status", "rollback", "remove"):
            words = getattr(self, name)
            if words and (not words[0] or "$" in words[0]):
                raise ValueError(f"{name}: its first word is the program, and holds no value of the release")
        return self


class Command(Platform[CommandConfig]):
    """Releases by commands of your own, on the worker.

    With ``deploy`` alone a release counts as live when the command ended well: it is reported as not verified, and the
    way back is ``deploy`` with the version that the journal last saw live. Each further command makes more known.
    """

    kind = "command"
    config_type: ClassVar[type[TargetConfig]] = CommandConfig
    capabilities = Capabilities(
        snapshot="what the snapshot command prints, else the release that the journal last saw live",
        early_failure="the exit code of deploy, and the state failed of the status command, where there is one",
        restores="what the rollback command, else deploy with the earlier version, brings back",
        tested_against="a script of its own with a scripted course, in a rich and a poor manner",
    )
    manual = Manual(
        connection="Of any type. The commands get it in their environment: `CONNECTION_HOST`, `CONNECTION_PORT`, "
        "`CONNECTION_LOGIN`, `CONNECTION_PASSWORD`, `CONNECTION_SCHEMA` and `CONNECTION_EXTRA`. Its password and "
        "the texts in its extra are replaced by `***` in everything that a command says.",
        protocol="Every command also gets `MULTIDEPLOY_ACTION` (deploy or rollback), `MULTIDEPLOY_SERVICE`, "
        "`…_TARGET`, `…_VERSION`, `…_IMAGE`, `…_DIGEST`, `…_RELEASE_ID`, `…_REASON`, `…_REVISION` (what has to serve, "
        "for `status`) and `…_SNAPSHOT` (what `snapshot` printed, as JSON).\n\n"
        "| exit code | means |\n|---|---|\n"
        "| 0 | done; the last line on standard output is a JSON document, or there is none |\n"
        '| 75 | try again later; `{"retry_after": 5, "reason": "…"}` may say when |\n'
        "| a signal, or the time-out | try again: the command has to recognise its own earlier write by "
        "`MULTIDEPLOY_RELEASE_ID` |\n"
        "| any other | refused; the last words of standard error are the reason |\n\n"
        "1. `snapshot`, when there is one.\n"
        "2. `deploy`; not when `snapshot` tells our release id, or the release's image in state healthy.\n"
        "3. `status`, until it says healthy or failed.\n"
        "4. Back: `rollback`, else `deploy`, with the values of what ran before; `status` again.",
        permissions="Whatever the commands need: they run as the worker's user.",
        not_undone="whatever the commands do besides.",
        example="legacy:\n  platform: command\n  conn_id: legacy_deployer\n"
        '  folder: /opt/deploy\n  deploy: [./deploy.sh, "${image}"]\n  status: [./status.sh, --json]',
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`. Without a command it is what the journal says; that nothing runs, nobody says."""
        journal = {} if previous is None else _values(previous)
        if not self.config.snapshot:
            data: dict[str, JsonValue] = {"known": previous is not None, "values": {**journal}}
            return Snapshot(exists=True, image=journal.get("image"), data=data)
        told = self._told()
        values = journal if told.get("image") in (None, journal.get("image")) else {}
        image = told.get("image")
        if image and not values:
            values = {"image": image, "version": str(told.get("version") or image.rpartition(":")[2])}
        return Snapshot(
            exists=told.get("exists", True),
            revision=told.get("revision"),
            image=image,
            data={"known": True, "told": told, "values": {**values}},
        )

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. Without ``snapshot`` a retry runs the command again, with the same release id."""
        values = _values(release)
        if self.config.snapshot:
            told = self._told()
            live = Handle(action="deploy", revision=told.get("revision"), data={"values": {**values}})
            if told.get("release_id") == release.release_id:
                return live
            if not release.force:
                if told.get("image") == release.image and told.get("state", "healthy") == "healthy":
                    return live.model_copy(update={"changed": _ours(told, release, snapshot)})
                if not _ours(told, release, snapshot) and told.get("revision") != snapshot.revision:
                    raise self._drift(told, snapshot)
        document = self._run("deploy", self.config.deploy, values, snapshot)
        return Handle(action="deploy", revision=self._revision("deploy", document), data={"values": {**values}})

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        if (known := self._unseen(handle)) is not None:
            return known
        call = self._looking(handle, self._connection())
        return self._seen(handle, self._answer(call, *run(call)))

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`."""
        from airflow.sdk import BaseHook

        if (known := self._unseen(handle)) is not None:
            return known
        with existing(self.config.conn_id, self.error):
            call = self._looking(handle, await BaseHook.aget_connection(self.config.conn_id))
        return self._seen(handle, self._answer(call, *await arun(call)))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`. Without ``snapshot`` the way back is run whatever is live."""
        id_, saved = f"{release.release_id}-back", snapshot.data.get("values")
        values = {
            **(saved if isinstance(saved, dict) else {}),
            "release_id": id_,
            "reason": f"roll back from {release.version}",
        }
        back = Handle(
            action="rollback", revision=snapshot.revision, data={"values": values, "gone": not snapshot.exists}
        )
        if self.config.snapshot:
            told = self._told()
            mark, same = told.get("release_id"), told.get("revision") == snapshot.revision
            if mark == id_ and told.get("state") != "failed":
                return back.model_copy(update={"revision": told.get("revision")})
            mine = _ours(told, release, snapshot, handle)
            if same and not mine:
                return back.model_copy(update={"changed": False})
            if not mine and not same:
                raise self._drift(told, snapshot)
        if not snapshot.data["known"]:
            raise self.error(
                "cannot roll back: no snapshot command tells what ran before, and the journal knows of no earlier "
                "release; deploy the version that is wanted"
            )
        if not snapshot.exists:
            if not self.config.remove:
                raise self.error("cannot roll back a first-ever release: configure remove:, or first_deploy: leave")
            self._run("remove", self.config.remove, values, snapshot)
            return back
        if not self.config.rollback and not values.get("image"):
            raise self.error("cannot roll back: the snapshot command told no image; configure rollback:")
        document = self._run("rollback", self.config.rollback or self.config.deploy, values, snapshot)
        return back.model_copy(update={"revision": self._revision("rollback", document) or snapshot.revision})

    # --- what the commands say ---------------------------------------------------------------------------------------

    def _told(self) -> dict[str, Any]:
        call = self._call("snapshot", self.config.snapshot, {}, self._connection())
        told = self._answer(call, *run(call))
        if not told:
            raise self.error("the snapshot command printed no JSON document", retryable=True)
        return told

    def _run(self, name: str, words: tuple[str, ...], values: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
        told = json.dumps(snapshot.data.get("told"))
        call = self._call(name, words, values, self._connection(), snapshot=told)
        return self._answer(call, *run(call))

    def _revision(self, name: str, document: dict[str, Any]) -> str | None:
        revision = document.get("revision")
        if self.config.snapshot and not isinstance(revision, str):
            raise self.error(f'the {name} command has to print {{"revision": "…"}} at the end', retryable=True)
        return revision if isinstance(revision, str) else None

    def _unseen(self, handle: Handle) -> Observation | None:
        """The judgement where no command can be asked."""
        if not self.config.status:
            reason = f"the {handle.action} command ended well; no status command tells what is live"
            return Observation(state=State.HEALTHY, reason=reason, revision=handle.revision, verified=False)
        return None

    def _looking(self, handle: Handle, connection: Any) -> Call:
        values: dict[str, Any] = dict(handle.data["values"])  # type: ignore[arg-type]
        said = {"action": handle.action, "revision": handle.revision}
        return self._call("status", self.config.status, values, connection, **said)

    def _seen(self, handle: Handle, told: dict[str, Any]) -> Observation:
        with self.understanding():
            revision = told.get("revision")
            state = State(told.get("state", "healthy"))
            if state is State.HEALTHY and handle.revision is not None and revision not in (None, handle.revision):
                state = State.SUPERSEDED
            reason = str(told.get("reason") or state)
            return Observation(state=state, reason=reason, revision=revision, progress=told.get("progress"))

    def _drift(self, told: dict[str, Any], snapshot: Snapshot) -> Drift:
        return Drift(
            f"live is revision {told.get('revision')!r} ({told.get('image') or 'image unknown'}), neither this release "
            f"nor the snapshot ({snapshot.revision!r}): somebody else deployed; nothing was written; look at it first",
            target=self.name,
        )

    # --- running them ------------------------------------------------------------------------------------------------

    def _connection(self) -> Any:
        from airflow.sdk import BaseHook

        with existing(self.config.conn_id, self.error):
            return BaseHook.get_connection(self.config.conn_id)

    def _call(
        self, name: str, words: tuple[str, ...], values: dict[str, Any], connection: Any, **more: str | None
    ) -> Call:
        """The command with its words and its environment.

        :param more: ``snapshot``, ``revision`` and ``action``, where they are known.
        """
        texts = {key: str(value) for key, value in values.items() if value is not None}
        filled = Release(service=self.service, **{**dict.fromkeys(("version", "image", "release_id"), ""), **texts})
        environment = {key: os.environ[key] for key in (*_INHERITED, *self.config.inherit) if key in os.environ}
        environment |= {key: located(text, filled) for key, text in self.config.environment.items()}
        action = name if name in ("deploy", "snapshot") else "rollback"
        said = {**texts, "service": self.service, "target": self.target, "action": action, **more}
        environment |= {f"MULTIDEPLOY_{key.upper()}": value for key, value in said.items() if value is not None}
        known = {"host": connection.host, "port": connection.port, "login": connection.login}
        known |= {"password": connection.password, "schema": connection.schema, "extra": connection.extra}
        environment |= {f"CONNECTION_{key.upper()}": str(value) for key, value in known.items() if value is not None}
        secrets = (connection.password, *(v for v in connection.extra_dejson.values() if isinstance(v, str)))
        long = name not in ("snapshot", "status")
        return Call(
            name,
            [located(word, filled) for word in words],
            environment,
            self.config.folder,
            self.config.command_timeout if long else self.config.look_timeout,
            tuple(secret for secret in secrets if secret and len(secret) >= 4),
        )

    def _answer(self, call: Call, code: int | None, out: str, err: str) -> dict[str, Any]:
        """The document that a command printed, or none.

        :param code: None: it did not end in time.
        """
        for secret in call.secrets:
            out, err = out.replace(secret, "***"), err.replace(secret, "***")
        last = out.strip().rpartition("\n")[2].strip()
        document: Any = None
        with suppress(ValueError):
            document = json.loads(last)
        told = document if isinstance(document, dict) else {}
        what, words = f"{call.name} command ({call.words[0]})", last_words(err.strip() or out.strip(), 500)
        if code is None or code < 0:
            ended = f"no end within {call.timeout:g} s" if code is None else f"ended by signal {-code}"
            raise self.error(f"{what}: {ended}: {words}", retryable=True)
        if code == _TEMPORARY:
            after = told.get("retry_after")
            asked = float(after) if isinstance(after, int | float) else None
            reason = told.get("reason") or words
            raise self.error(f"{what}: try again later: {reason}", retryable=True, retry_after=asked)
        if code != 0:
            raise self.error(f"{what}: exit code {code}: {words}")
        if call.name == "status" and last and not told:
            raise self.error(f"{what}: printed no JSON document: {words}", retryable=True)
        return told


def _values(release: Release) -> dict[str, str]:
    named = {"image": release.image, "version": release.version, "release_id": release.release_id}
    return {**named, "digest": release.digest or "", "reason": release.reason}


def _ours(told: dict[str, Any], release: Release, snapshot: Snapshot, handle: Handle | None = None) -> bool:
    """Whether this run wrote what is live. Without a release id, what changed to our image is taken for our own."""
    revision = told.get("revision")
    if handle is not None and handle.changed and revision is not None and handle.revision == revision:
        return True
    if "release_id" in told:
        return run_of(str(told["release_id"] or "")) == run_of(release.release_id)
    return told.get("image") == release.image and revision != snapshot.revision
