"""A whole platform in memory, on a clock that nobody waits for: for tests and simulations of releases.

`FakePlatform` keeps the contract of `Platform` as a poor but honest platform does: it has revisions and a live one, it
recognises its own release ids, it has no fence of its own against an attempt that was thought dead. Everything is
deterministic: the same calls and the same `Fault` script give the same world (core's retry pauses use the ``random``
module: seed it).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.release.contract import Capabilities, Handle, Observation, Platform, Release, Snapshot, State

CallName = Literal["snapshot", "deploy", "observe", "rollback"]
FaultKind = Literal[
    "error", "refused", "lost", "drift", "crash_before", "crash_after", "meanwhile", "fails", "hangs", "unknown"
]


class Crash(BaseException):
    """The worker died here: nothing that catches ``Exception`` sees it."""


class FakeClock:
    """A clock that jumps: ``sleep`` returns at once and it is later."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Be that much later."""
        self.now += seconds


class MemoryStore:
    """A journal's `Store` in memory; values pass through JSON text, as in a real one.

    :param crash_after: raise `Crash` right after that many further ``set`` calls have been kept; None: never.
    """

    def __init__(self, crash_after: int | None = None) -> None:
        self.crash_after = crash_after
        self.writes: list[str] = []
        self._kept: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default."""
        return json.loads(self._kept[key]) if key in self._kept else default

    def set(self, key: str, value: Any) -> None:
        """Keep a value.

        :raises Crash: as scripted; the value is kept.
        """
        self._kept[key] = json.dumps(value, allow_nan=False)
        self.writes.append(key)
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crash_after = None
                raise Crash(f"after the journal's {key!r}")

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._kept.pop(key, None)


@dataclass
class Fault:
    """One thing that goes wrong, at the first matching calls.

    - ``error`` / ``refused``: a retryable / final error; the call had no effect. ``lost``: it had, its answer is lost.
    - ``crash_before`` / ``crash_after``: `Crash` before / after the call's effect.
    - ``drift``: somebody else deploys just before the call. ``meanwhile``: ``action`` runs just before the call.
    - ``fails`` / ``hangs``: what the call (a deploy or a rollback) starts ends so. ``unknown``: an ``observe`` says so.

    :param target: ``service/target``; None: any.
    :param of: only an ``observe`` of what that did; None: of either.
    :param times: for that many calls.
    :param skip: not for that many matching calls before.
    """

    call: CallName
    kind: FaultKind
    target: str | None = None
    of: Literal["deploy", "rollback"] | None = None
    times: int = 1
    skip: int = 0
    retry_after: float | None = None
    action: Callable[[], object] | None = None


@dataclass(frozen=True)
class Revision:
    """What can be live on a place; ``release_id`` is None for one that is nobody's release."""

    id: str
    image: str
    release_id: str | None = None


@dataclass
class Place:
    """One target: its revisions in the order of their creation, and what is live and how it is doing."""

    revisions: dict[str, Revision] = field(default_factory=dict)
    live: str | None = None
    ready_at: float = 0.0
    fate: Literal["healthy", "fails", "hangs"] = "healthy"
    reason: str = "exit code 1"

    def add(self, image: str, release_id: str | None = None) -> Revision:
        """A new revision, not yet live."""
        made = Revision(f"rev-{len(self.revisions) + 1}", image, release_id)
        self.revisions[made.id] = made
        return made

    @property
    def current(self) -> Revision | None:
        """The live revision."""
        return self.revisions[self.live] if self.live is not None else None


@dataclass(frozen=True)
class Call:
    """One call that reached the platform; ``wrote`` the revision that became live (``-`` for a removal)."""

    at: float
    target: str
    name: CallName
    release_id: str | None = None
    wrote: str | None = None


class FakeWorld:
    """What all `FakePlatform` instances of one ``conn_id`` share; the newest world of a name wins.

    :param seconds: how long a write takes until it is healthy or failed, on the world's clock.
    """

    by_name: ClassVar[dict[str, FakeWorld]] = {}

    def __init__(self, *, seconds: float = 10.0, name: str = "fake", clock: FakeClock | None = None) -> None:
        self.seconds, self.name, self.clock = seconds, name, clock or FakeClock()
        self.places: dict[str, Place] = {}
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.by_name[name] = self

    def platform(self, service: str = "shop", target: str = "t1", **config: Any) -> FakePlatform:
        """A fresh adapter, as another process would make it."""
        settings = FakeConfig.model_validate({"platform": "fake", "conn_id": self.name, **config})
        return FakePlatform(settings, service=service, target=target)

    def seed(self, target: str, image: str | None) -> Place:
        """``service/target`` anew, with that image live (None: nothing was ever deployed there)."""
        place = self.places[target] = Place()
        if image is not None:
            place.live = place.add(image).id
        return place

    def meddle(self, target: str, image: str = "registry.test/other:1") -> Revision:
        """Somebody else deploys, and it is healthy at once."""
        place = self.places.setdefault(target, Place())
        made = place.add(image)
        place.live, place.ready_at, place.fate = made.id, self.clock.time(), "healthy"
        return made

    def writes(self, target: str | None = None) -> list[Call]:
        """The calls that changed something, in order."""
        return [call for call in self.calls if call.wrote is not None and target in (None, call.target)]

    def take(self, target: str, name: CallName, of: str | None = None) -> Fault | None:
        """The scripted fault of this call; uses it up."""
        for fault in self.faults:
            fits = fault.call == name and fault.target in (None, target) and fault.of in (None, of)
            if fits and fault.times > 0:
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class FakeConfig(TargetConfig):
    """A target of the fake platform; ``conn_id`` names its `FakeWorld`."""

    platform: Literal["fake"]


class FakePlatform(Platform[FakeConfig]):
    """The platform of kind ``fake``. Recognises a rollout by its release id, and waits for nothing."""

    kind = "fake"
    config_type = FakeConfig
    capabilities = Capabilities(
        snapshot="the live revision", early_failure="yes", restores="the live revision", tested_against="itself"
    )

    def __init__(self, config: FakeConfig, *, service: str, target: str) -> None:
        super().__init__(config, service=service, target=target)
        self._world = FakeWorld.by_name[config.conn_id]
        self._place = self._world.places.setdefault(self.name, Place())

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """The live revision."""
        fault = self._begin("snapshot")
        now = self._place.current
        self._end("snapshot", fault)
        if now is None:
            return Snapshot(exists=False)
        return Snapshot(exists=True, revision=now.id, image=now.image)

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """Make a revision of the release live, unless it is."""
        fault = self._begin("deploy")
        now, place = self._place.current, self._place
        wrote = None
        if now is not None and now.release_id == release.release_id:
            revision, changed = now, True
        elif now is not None and now.image == release.image and self._well() and not release.force:
            revision, changed = now, False
        else:
            if not release.force and place.live != snapshot.revision and not self._ours(now, release):
                raise self._drift(snapshot)
            made = (r for r in place.revisions.values() if r.release_id == release.release_id)
            revision = next(made, None) or place.add(release.image, release.release_id)
            changed, wrote = True, self._activate(revision.id, fault)
        self._end("deploy", fault, release, wrote)
        return Handle(action="deploy", revision=revision.id, changed=changed)

    def observe(self, handle: Handle) -> Observation:
        """How the live revision does, when it is the handle's."""
        fault = self._begin("observe", handle.action)
        self._end("observe", fault)
        place, late = self._place, self._world.clock.time() >= self._place.ready_at
        if fault is not None and fault.kind == "unknown":
            return Observation(state=State.UNKNOWN, reason="cannot tell")
        if place.live != handle.revision:
            return Observation(state=State.SUPERSEDED, reason=f"{place.live} is live", revision=place.live)
        if place.fate == "fails" and late:
            return Observation(state=State.FAILED, reason=place.reason, revision=place.live)
        if place.fate == "healthy" and late:
            return Observation(state=State.HEALTHY, revision=place.live)
        return Observation(state=State.PROGRESSING, reason="0 of 1 ready", revision=place.live)

    async def aobserve(self, handle: Handle) -> Observation:
        """As `observe`."""
        return self.observe(handle)

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """Make the snapshot's revision live; a first-ever one is removed."""
        fault = self._begin("rollback")
        now, wrote, goal = self._place.current, None, snapshot.revision
        if self._place.live == snapshot.revision:
            if self._place.fate == "fails" and self._world.clock.time() >= self._place.ready_at:
                wrote = self._activate(goal, fault)  # the way back itself failed: started anew
        else:
            if not self._ours(now, release) and not (handle and handle.revision == self._place.live):
                raise self._drift(snapshot)
            wrote = self._activate(goal, fault)
        self._end("rollback", fault, release, wrote)
        return Handle(action="rollback", revision=goal, changed=wrote is not None)

    def _begin(self, name: CallName, of: str | None = None) -> Fault | None:
        fault = self._world.take(self.name, name, of)
        if fault is not None:
            if fault.kind == "crash_before":
                raise Crash(f"{self.name}: before {name}")
            if fault.kind in ("error", "refused"):
                self._world.calls.append(Call(self._world.clock.time(), self.name, name))
                retryable = fault.kind == "error"
                raise self.error(f"{name}: scripted {fault.kind}", retryable=retryable, retry_after=fault.retry_after)
            if fault.kind == "drift":
                self._world.meddle(self.name)
            elif fault.kind == "meanwhile" and fault.action is not None:
                fault.action()
        return fault

    def _end(
        self, name: CallName, fault: Fault | None, release: Release | None = None, wrote: str | None = None
    ) -> None:
        release_id = release.release_id if release else None
        self._world.calls.append(Call(self._world.clock.time(), self.name, name, release_id, wrote))
        if fault is not None and fault.kind == "crash_after":
            raise Crash(f"{self.name}: after {name}")
        if fault is not None and fault.kind == "lost":
            raise self.error(f"{name}: the answer was lost", retryable=True)

    def _activate(self, revision: str | None, fault: Fault | None) -> str:
        place = self._place
        place.live, place.ready_at = revision, self._world.clock.time() + self._world.seconds
        place.fate = fault.kind if fault is not None and fault.kind in ("fails", "hangs") else "healthy"
        return revision or "-"

    def _well(self) -> bool:
        return self._place.fate == "healthy" and self._world.clock.time() >= self._place.ready_at

    def _ours(self, now: Revision | None, release: Release) -> bool:
        """Whether it is this run's: of this rollout, or of another one of the same run (``-2`` and so on)."""
        return bool(now and now.release_id and now.release_id.split("-")[0] == release.release_id.split("-")[0])

    def _drift(self, snapshot: Snapshot) -> Drift:
        return Drift(
            f"{self._place.live} is live, neither ours nor {snapshot.revision}; nothing was touched", target=self.name
        )
