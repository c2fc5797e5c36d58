"""What the conformance suite drives a platform with: its fixtures, and the steps of a release in their order."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import pytest

from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Document, Handle, Observation, Platform, Release, Snapshot, State
from airflow_multideploy.release.journal import Entry
from airflow_multideploy.release.status import result_of
from airflow_multideploy.release.verdict import Rules, Verdict, judge
from airflow_multideploy.release.wait import SystemClock, Watch, follow, persist
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World

OLD, NEW, OTHER = (
    "registry.example.com/shop:1.0.0",
    "registry.example.com/shop:1.1.0",
    "registry.example.com/shop:9.9.9",
)
RESOURCE = "shop"
SECRET = "sandbox-secret"

D = TypeVar("D", bound=Document)


class QuickClock(SystemClock):
    """The machine's clock for one who waits a tenth as long between two tries."""

    def sleep(self, seconds: float) -> None:
        """Wait a tenth of it."""
        time.sleep(seconds / 10)


class Driver:
    """The means of the suite; its tests are in `PlatformContract`."""

    rollout_seconds: float = 0.3
    """How long a rollout takes in the stand-in."""
    service_name, target_name = "shop", "t1"
    server: bool = True
    """False for a platform without a server, such as one that writes to a folder: no call of it can go wrong in the
    stand-in, so the tests of that are skipped."""

    def make_stand_in(self, world: World) -> StandIn:
        """The stand-in, not started."""
        raise NotImplementedError

    def writing_operation(self) -> str:
        """Regular expression of the platform's writing operations, for call faults."""
        return r"^(PUT|POST|PATCH|UpdateService|RegisterTaskDefinition|Create|Update)"

    @pytest.fixture
    def world(self) -> World:
        return World(seconds=self.rollout_seconds)

    @pytest.fixture
    def stand_in(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
        stand_in = self.make_stand_in(world)
        try:
            stand_in.start()
        except BaseException:  # a skip too; what it opened until then is closed as far as it goes
            with suppress(Exception):
                stand_in.stop()
            raise
        try:
            monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
            stand_in.seed(RESOURCE, OLD)
            yield stand_in
        finally:
            stand_in.stop()

    @pytest.fixture(params=["sync", "async"])
    def mode(self, request: pytest.FixtureRequest) -> Literal["sync", "async"]:
        return request.param  # type: ignore[no-any-return]

    # --- what a release does, in the order in which it does it -----------------------------------------------------

    def platform(self, stand_in: StandIn, **changes: Any) -> Platform[Any]:
        """A fresh adapter, as another process would make it."""
        config = {**stand_in.target(RESOURCE), "conn_id": "contract", **changes}
        return adapter(json.loads(json.dumps(config)), service=self.service_name, target=self.target_name)

    def release(self, image: str = NEW, release_id: str = "r0a1b2c3d4", *, force: bool = False) -> Release:
        version = image.rpartition(":")[2]
        return Release(service=self.service_name, version=version, image=image, release_id=release_id, force=force)

    def look(self, platform: Platform[Any], handle: Handle, mode: str) -> Observation:
        """One look, as the worker or as the triggerer takes it."""
        seen = asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        return passed_on(seen)

    def wait(self, platform: Platform[Any], handle: Handle, mode: str, seconds: float = 15.0) -> Observation:
        """The final observation."""
        watch = Watch(deadline=time.time() + seconds, interval=0.05)
        return follow(lambda: self.look(platform, handle, mode), watch=watch, clock=SystemClock())

    def start(self, stand_in: StandIn, release: Release | None = None) -> tuple[Snapshot, Handle, Release]:
        """Snapshot and deploy, retried as a release retries them; documents pass through JSON."""
        release = release or self.release()
        clock = QuickClock()
        taken = persist(lambda: self.platform(stand_in).snapshot(), clock=clock, until=clock.time() + 20)
        snapshot = passed_on(taken)
        return snapshot, self.deployed(stand_in, release, snapshot), release

    def deployed(self, stand_in: StandIn, release: Release, snapshot: Snapshot) -> Handle:
        """Deploy, retried as a release retries it."""
        clock = QuickClock()
        until = clock.time() + 20
        return passed_on(persist(lambda: self.platform(stand_in).deploy(release, snapshot), clock=clock, until=until))

    def back(self, stand_in: StandIn, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """Roll back, retried as a release retries it."""
        clock = QuickClock()
        until = clock.time() + 20
        back = persist(lambda: self.platform(stand_in).rollback(release, snapshot, handle), clock=clock, until=until)
        assert back.action == "rollback"
        return passed_on(back)

    def undo(self, stand_in: StandIn, release: Release, snapshot: Snapshot, handle: Handle | None, mode: str) -> None:
        """Roll back and verify, as a release does."""
        back = self.back(stand_in, release, snapshot, handle)
        seen = self.wait(self.platform(stand_in), back, mode)
        assert seen.state is State.HEALTHY, seen

    # --- what must have happened, or not ---------------------------------------------------------------------------

    def agreed(self, stand_in: StandIn, handle: Handle) -> None:
        """The worker and the triggerer see the same; if the platform moved on between their looks, they look again."""
        for _ in range(20):
            one, other, again = (self.look(self.platform(stand_in), handle, mode) for mode in ("sync", "async", "sync"))
            if one == again:
                break
        assert one == other, f"observe: {one}; aobserve: {other}"

    @contextmanager
    def unwritten(self, stand_in: StandIn, world: World) -> Iterator[None]:
        """Nothing is written in the block."""
        before = len(world.calls_of(stand_in.kind, writes=True))
        yield
        written = world.calls_of(stand_in.kind, writes=True)[before:]
        assert written == [], f"written: {written}"

    @contextmanager
    def going_wrong(self, world: World, fault: CallFault | RolloutFault) -> Iterator[None]:
        """The fault lies in wait from here on, and the stand-in has played and recorded it by the end of the block."""
        times, nth = fault.times, getattr(fault, "nth", 0)
        if isinstance(fault, RolloutFault):
            world.rollout_faults.append(fault)
        elif self.server:
            world.call_faults.append(fault)
        else:
            pytest.skip(f"{fault.platform}: has no server, so no call of it can go wrong")
        yield
        if isinstance(fault, RolloutFault):
            assert fault.times < times, f"the stand-in did not ask the world for {fault}"
            return
        assert fault.nth < nth, f"the stand-in did not ask the world for {fault}"
        if fault.times < times:  # a platform that writes only once has no second write to go wrong
            assert fault.answer in [call.fault for call in world.calls_of(fault.platform)], (
                "the stand-in kept no record"
            )


def judged(entry: Entry, platform: Platform[Any]) -> Verdict:
    """What a release of this one target comes to, as its journal stands."""
    results = {entry.target: result_of(entry, critical=True)}
    targets = {entry.target: platform.config}
    return judge(results, targets, service=entry.service, version=entry.release.version, rules=Rules())


def passed_on(document: D) -> D:
    """The document as it comes out of the state store or XCom: equal, and without the secret in any spelling."""
    text = document.model_dump_json()
    assert [spelling for spelling in spellings(SECRET) if spelling in text] == []
    read = type(document).model_validate_json(text)
    assert read == document
    return read


def spellings(secret: str) -> set[str]:
    """A secret as it stands in a document: plain, quoted, in hexadecimal, or anywhere within base64."""
    raw = secret.encode()
    within = {base64.b64encode(bytes(n) + raw).decode()[-(-8 * n // 6) : 8 * (n + len(raw)) // 6] for n in range(3)}
    return {secret, quote(secret), raw.hex(), *within}


def kept(kind: type[Platform[Any]]) -> dict[str, str]:
    """What the class holds that another process would not see."""
    return {f"{base.__name__}.{name}": repr(value) for base in kind.__mro__ for name, value in vars(base).items()}


async def stood_still(look: Coroutine[Any, Any, object]) -> float:
    """The longest time, in seconds, for which the event loop stood still while that was awaited and nothing worked."""
    task, worst = asyncio.ensure_future(look), 0.0
    while not task.done():
        began, had = time.monotonic(), worked()
        await asyncio.sleep(0.002)
        worst = max(worst, time.monotonic() - began - (worked() - had))
    await task
    return worst


def worked() -> float:
    """Seconds for which this process's threads have run, or on Linux stood in line for a processor."""
    waited = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            waited += int(file.read_text().split()[1])
    return time.process_time() + waited / 1e9
