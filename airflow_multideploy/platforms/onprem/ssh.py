"""An SSH host with systemd: release folders, a symlink ``current`` that is switched, and a restart of the unit.

The host does the long steps (fetch, verify, unpack, switch, restart) on its own after `deploy` returned, and keeps how
far it came under ``ROOT/.multideploy``: `observe` reads that, ``current`` and systemd. The concurrency token is a lock
on the host (flock) under which ``current`` is compared before it is switched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, model_validator

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.ssh import GO, LOOK, NO_LINK, RECEIVE, Host, Seen, seen
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.artifact import Located, fetchable, located
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
from airflow_multideploy.strict import Seconds

Run = Callable[..., dict[str, str]]
_PLACE = re.compile(r"[A-Za-z0-9._~:/?&=%@+,-]+")
"""What a package's place may look like: no space, quote, dollar, or anything else that means something to a shell."""
_PATH = r"^/[A-Za-z0-9_][A-Za-z0-9._/-]*[A-Za-z0-9_]$"


class SshConfig(TargetConfig):
    """One application on one host.

    :param root: folder of the application on the host, which the login may write; it gets ``releases/``, the link
        ``current`` and ``.multideploy/``. The unit runs what ``current`` leads to (``WorkingDirectory=ROOT/current``).
    :param unit: the systemd unit that is restarted; made once, by you.
    :param package: a tar archive: an ``https://`` address that the host fetches without credentials (it needs
        ``curl``), or an absolute path on the worker, from where it is copied. Plain ``http://`` needs a checksum.
    :param checksum: the package's SHA-256: 64 hexadecimal digits (``sha256:`` before them may stand), or the https
        address of a file that begins with it. A copy from the worker is checked without it.
    :param strip: leading folders of the archive's paths that are left away.
    :param keep: how many release folders of ours stay; never fewer than the live one and the one before.
    :param systemctl: how systemd is told to restart: through ``sudo -n``, ``direct`` (the login is root), or as the
        login's own ``user`` manager.
    :param check: a command on the host, as a list of words, run in ``current`` without a shell, that prints what
        version serves: such as ``[curl, -fsS, "http://127.0.0.1:8080/version"]``.
    :param expect: first line that ``check`` has to print for a release to be healthy.
    :param settle: seconds that the unit has to be active without a restart.
    :param restarts: automatic restarts after which the rollout counts as failed.
    """

    platform: Literal["ssh"] = "ssh"
    root: Annotated[str, Field(pattern=_PATH)]
    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9@:._-]*$")]
    package: Located
    checksum: Located | None = None
    strip: Annotated[int, Field(ge=0, le=9)] = 0
    keep: Annotated[int, Field(ge=2)] = 5
    systemctl: Literal["sudo", "direct", "user"] = "sudo"
    check: Annotated[tuple[str, ...], Field(strict=False)] = ()
    expect: Located = "${version}"
    settle: Seconds = 3.0
    restarts: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _has_a_place(self) -> SshConfig:
        if not self.package.startswith(("https://", "http://", "/", "$")):
            raise ValueError("package: it is neither an https address nor an absolute path on the worker")
        if self.package.startswith("http://") and self.checksum is None:
            raise ValueError("package: over plain http anybody could change it; use https, or give its checksum")
        fetchable(self.package, self.checksum)
        return self


class Ssh(Platform[SshConfig]):
    """Releases a package to an SSH host: into a folder of its own, then the link ``current`` is switched and the
    systemd unit restarted.

    Healthy is said when ``current`` leads to the release, the unit was started since the switch, has been active for
    ``settle`` seconds, and ``check`` (where configured) prints what is expected.
    """

    kind = "ssh"
    config_type: ClassVar[type[TargetConfig]] = SshConfig
    capabilities = Capabilities(
        snapshot="where `current` leads, its image and package when we released it, and what `check` prints",
        early_failure="a step on the host that failed (fetch, checksum, unpack, restart), the unit's state failed, or "
        "repeated automatic restarts; with systemd's words",
        restores="the link `current` and the files behind it, by a restart of the unit",
        tested_against="a real OpenSSH server, with a stand-in for systemctl",
    )
    manual = Manual(
        connection="Type `ssh`: host, login, port; a private key in extra `private_key` (or `key_file`), or a password."
        " Set extra `host_key`, or a known_hosts file on workers and triggerers. The worker uses `SSHHook` (paramiko), "
        "the triggerer `SSHHookAsync` (asyncssh).",
        protocol="1. Read: `readlink current`, our steps in `.multideploy/`, `systemctl show`, `check`. What could not "
        "be brought back is refused: `current` is no link, or leads to no folder, or the unit runs without it.\n"
        "2. Start the steps on the host, and return: fetch, compare the SHA-256, unpack into `releases/ID`; then under "
        "`flock`: does `current` still lead where it did? `ln -sfn`, `mv -T`, `systemctl restart --no-block`.\n"
        "3. Look until it is healthy.\n"
        "4. Back: stop steps that still run, then under the same lock switch `current` to the folder before, and "
        "restart. After a first-ever release (there was no `current`, and the unit did not run): "
        "`systemctl stop`, if the release had switched `current`, and the link and folder are removed.\n\n"
        "The steps go on when the SSH session is over: `KillUserProcesses=yes` in logind.conf would end them (then the "
        "release fails with the step at which they ended). A copy from the worker is sent before `deploy` returns.",
        permissions="A login that may write `root`, with `flock`, `sha256sum`, `tar`, `timeout` (and `curl`) on its "
        "path. With `systemctl: sudo`, in sudoers:\n\n```\ndeploy ALL=(root) NOPASSWD: /usr/bin/systemctl restart "
        "--no-block shop.service, \\\n  /usr/bin/systemctl reset-failed shop.service, /usr/bin/systemctl stop "
        "shop.service\n```\n\nReading `systemctl status` lines of the journal needs the group `systemd-journal`.",
        not_undone="what the application wrote outside its folder (data, migrations), the unit file, and the release's "
        "folder, which `keep` removes later.",
        example="web1:\n  platform: ssh\n  conn_id: web1\n  root: /srv/shop\n  unit: shop.service\n"
        "  package: https://releases.example.com/shop-${version}.tar.gz\n"
        "  checksum: https://releases.example.com/shop-${version}.tar.gz.sha256\n"
        '  check: [curl, -fsS, "http://127.0.0.1:8080/version"]',
        extra="ssh",
    )

    def __init__(self, config: SshConfig, *, service: str, target: str) -> None:
        super().__init__(config, service=service, target=target)
        self._host = Host(self)

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`."""
        with self._host.open() as run:
            now = seen(run("look", LOOK, self._looking()))
        self._loaded(now)
        self._restorable(now)
        said = now.check[1] if now.check and now.check[0] == 0 else None
        active = now.unit["ActiveState"] == "active"
        data: dict[str, JsonValue] = {"said": said, "active": active}
        return Snapshot(exists=now.live is not None, revision=now.live, image=now.image, data=data)

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. A package that lies on the worker is copied before this returns."""
        package, checksum = self._package(release)
        id_, target = release.release_id, f"releases/{release.release_id}"
        expect = located(self.config.expect, release) if self.config.check else None
        data: dict[str, JsonValue] = {"id": id_, "expect": expect, "active": True}
        handle = Handle(action="deploy", revision=target, data=data)
        with self._host.open() as run:
            now = seen(run("look", LOOK, self._looking(id_)))
            self._loaded(now)
            mine = now.steps.get(id_)
            if mine and (mine.running or (mine.step == "started" and now.live == target)):
                return handle
            if not release.force:
                if (now.image, now.package) == (release.image, package) and checksum in (None, now.checksum):
                    there = handle.model_copy(update={"revision": now.live, "changed": False})
                    there = there.model_copy(update={"data": {**data, "id": None}})
                    if judge(there, now, self.config).state is State.HEALTHY:
                        return there
                if now.live != snapshot.revision and not _ours(now.live, release):
                    raise self._drift(now, snapshot)
            if package.startswith("/"):
                checksum = self._copy(run, id_, Path(package), checksum)
            fetched = {"package": package, "checksum": checksum or ""}
            known = (now.live, snapshot.revision)
            run("go", GO, self._going(release, id_=id_, mode="deploy", target=target, known=known, **fetched))
        return handle

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        with self._host.open() as run:
            return judge(handle, seen(run("look", LOOK, self._looking(handle.data.get("id")))), self.config)

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`."""
        told = await self._host.arun("look", LOOK, self._looking(handle.data.get("id")))
        with self.understanding():
            return judge(handle, seen(told), self.config)

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`."""
        id_, target = f"{release.release_id}-back", snapshot.revision
        data: dict[str, JsonValue] = {"id": id_, "expect": snapshot.data["said"], "active": snapshot.data["active"]}
        back = Handle(action="rollback", revision=target, data=data)
        there = back.model_copy(update={"changed": False, "data": {**data, "id": None}})
        with self._host.open() as run:
            now = seen(run("look", LOOK, self._looking(release.release_id, id_)))
            mine, way = now.steps.get(release.release_id), now.steps.get(id_)
            if now.live == target:
                if not (mine and (mine.running or mine.switched)):
                    return there
                under_way = way and (way.running or way.step == "started")
                if under_way and judge(back, now, self.config).state is not State.FAILED:
                    return back
            elif not _ours(now.live, release):
                raise self._drift(now, snapshot)
            mode, known = "remove" if target is None else "back", (now.live, target)
            run("go", GO, self._going(release, id_=id_, mode=mode, target=target or "", known=known))
        return back

    # --- words for the scripts, each of which is quoted --------------------------------------------------------------

    def _looking(self, *ids: Any) -> list[str]:
        known = " ".join(str(id_) for id_ in ids if id_)
        return [self.config.root, self.config.unit, self._ctl(), known, *self.config.check]

    def _going(
        self, release: Release, *, id_: str, mode: str, target: str, known: tuple[str | None, ...], **fetched: str
    ) -> list[str]:
        """Words of the steps.

        :param known: where ``current`` may lead before.
        :param fetched: the package and its checksum.
        """
        ctl = f"sudo {self._ctl()}" if self.config.systemctl == "sudo" else self._ctl()
        words = [self.config.root, self.config.unit, ctl, release.release_id, id_, mode, target, release.image]
        words += [
            fetched.get("package", ""),
            fetched.get("checksum", ""),
            str(self.config.strip),
            str(self.config.keep),
        ]
        return [*words, *(place or "" for place in known), f"releases/{release.release_id}"]

    def _ctl(self) -> str:
        return "systemctl --user" if self.config.systemctl == "user" else "systemctl"

    def _package(self, release: Release) -> tuple[str, str | None]:
        """Where it is, and its checksum or where that is."""
        package = located(self.config.package, release)
        checksum = None if self.config.checksum is None else located(self.config.checksum, release)
        try:
            checksum = fetchable(package, checksum)
        except ValueError as error:
            raise self.error(str(error)) from None
        for key, text in (("package", package), ("checksum", checksum), ("image", release.image)):
            if text is not None and not _PLACE.fullmatch(text):
                raise self.error(f"{key}: {addresses.shown(text)!r} holds characters that are refused here")
        scheme = urlsplit(package).scheme
        if not package.startswith("/") and scheme not in ("https", "http"):
            raise self.error(f"package: {package!r} is neither an https address nor an absolute path on the worker")
        if scheme == "http" and checksum is None:
            raise self.error("package: over plain http anybody could change it; use https, or give its checksum")
        return package, checksum

    def _copy(self, run: Run, id_: str, file: Path, wanted: str | None) -> str:
        """Send the package to the host; what its checksum has to be there: the one that is wanted, else its own."""
        try:
            with file.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
        except OSError as error:
            raise self.error(f"package {file}: {error.strerror or error} on the worker") from error
        if wanted not in (None, digest) and not str(wanted).startswith("https://"):
            raise self.error(f"checksum of {file} is {digest}, not {wanted}; nothing was sent")
        run("receive", RECEIVE, [self.config.root, id_, digest], file)
        return wanted or digest

    def _loaded(self, now: Seen) -> None:
        if (state := now.unit["LoadState"]) != "loaded":
            raise self.error(f"unit {self.config.unit} is {state}; create it on the host, then release again")

    def _restorable(self, now: Seen) -> None:
        """Refuse what a release could not bring back: only no ``current`` at all, and a unit that does not run, is a
        first-ever deploy."""
        place, unit = f"{self.config.root}/current", now.unit
        runs = unit["ActiveState"] not in ("inactive", "failed") and unit["SubState"] != "auto-restart"
        why = ""
        if now.live == NO_LINK:
            why = f"{place} is no link; make it one to a folder beside it"
        elif now.live is not None and not now.folder:
            why = f"{place} leads to {now.live}, which is no folder; lead it to the one that is to run"
        elif now.live is None and runs:
            words = f"{self.config.unit} is {unit['ActiveState']} ({unit['SubState']})"
            why = f"{words}, and there is no {place}; make it a link to the folder that the unit runs, or stop the unit"
        if why:
            raise self.error(f"{why}, then release again: what runs there could not be restored; nothing was written")

    def _drift(self, now: Seen, snapshot: Snapshot) -> Drift:
        return Drift(
            f"{self.config.root}/current leads to {_place(now.live)}, not to {snapshot.revision or 'nothing'} and "
            "not to this release: somebody else changed it; nothing was written; look at it, then release again",
            target=self.name,
        )


def judge(handle: Handle, now: Seen, config: SshConfig) -> Observation:  # noqa: PLR0911 - one for each state
    """What one look means for a deploy or a way back."""

    def seen_as(state: State, reason: str, progress: float | None = None) -> Observation:
        return Observation(state=state, reason=reason, revision=now.live, progress=progress)

    id_ = handle.data.get("id")
    mine = now.steps.get(str(id_)) if id_ else None
    if id_ and mine is None:
        return seen_as(State.FAILED, f"{config.root}/.multideploy/{id_} is gone from the host")
    if mine is not None and mine.step != "started":
        if mine.step == "superseded":
            return seen_as(State.SUPERSEDED, mine.reason)
        if mine.step == "failed":
            return seen_as(State.FAILED, mine.reason)
        if not mine.running:
            return seen_as(State.FAILED, f"the steps on the host were interrupted while {mine.step}")
        return seen_as(State.PROGRESSING, mine.step)
    if now.live != handle.revision:
        return seen_as(State.SUPERSEDED, f"current leads to {_place(now.live)}")
    if handle.revision is None:
        return seen_as(State.HEALTHY, "nothing is deployed, as before the first release")
    if not handle.data.get("active"):
        return seen_as(State.HEALTHY, f"current leads where it did; {config.unit} was not active before either")
    before = mine.before if mine is not None and mine.switched else None
    return _unit(now, config, before, handle.data.get("expect"), seen_as)


def _unit(  # noqa: PLR0911 - one for each state
    now: Seen, config: SshConfig, before: str | None, expect: Any, say: Callable[..., Observation]
) -> Observation:
    """Whether systemd has started the unit since the switch, and it stays and answers.

    https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.systemd1.html
    """
    unit = now.unit
    state, restarts = unit["ActiveState"], int(unit.get("NRestarts") or 0)
    words = f"{config.unit} is {state} ({unit['SubState']})"
    if before and unit["InvocationID"] == before:
        return say(State.PROGRESSING, f"{words}, not yet restarted")
    if state == "failed" or restarts >= config.restarts:
        ended = f"result {unit['Result']}, status {unit['ExecMainStatus']}, {restarts} restarts"
        return say(State.FAILED, f"{words}: {ended}: {unit.get('status', '')}")
    if state == "inactive":
        return say(State.FAILED, f"{words}: it ended or was stopped")
    if state != "active":
        return say(State.PROGRESSING, words)
    age = now.uptime - int(unit["ActiveEnterTimestampMonotonic"]) / 1e6
    if age < config.settle:
        return say(State.PROGRESSING, f"{words} for {max(age, 0):.1f} of {config.settle:g} s", 0.9)
    if expect is not None and now.check is not None:
        code, said = now.check
        if code != 0 or said != expect:
            return say(State.PROGRESSING, f"{words}; check says {said!r} (exit code {code}), not {expect!r}", 0.9)
    return say(State.HEALTHY, words)


def _place(live: str | None) -> str:
    return {None: "nothing", NO_LINK: "nothing, as it is no link"}.get(live, str(live))


def _ours(live: str | None, release: Release) -> bool:
    return live is not None and run_of(live.removeprefix("releases/")) == run_of(release.release_id)
