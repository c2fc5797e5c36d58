"""The conformance suite that every platform's test inherits.

    class TestAwsEcs(PlatformContract):
        def make_stand_in(self, world: World) -> StandIn:
            return AwsEcsStandIn(world)

That is all: the suite starts the stand-in, leads an Airflow Connection to it, and holds the adapter to the contract,
once with ``observe`` and once with ``aobserve``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil
import pytest

from airflow_multideploy.core.contract import Handle, Observation, Platform, Release, Snapshot, State
from airflow_multideploy.core.errors import Drift, PlatformError
from airflow_multideploy.core.wait import SystemClock, Watch, follow, persist
from airflow_multideploy.platforms import adapter
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World

OLD, NEW, OTHER = (
    "registry.example.com/shop:1.0.0",
    "registry.example.com/shop:1.1.0",
    "registry.example.com/shop:9.9.9",
)
RESOURCE = "shop"
SECRET = "sandbox-secret"


class QuickClock(SystemClock):
    """The machine's clock for one who waits a tenth as long between two tries."""

    def sleep(self, seconds: float) -> None:
        """Wait a tenth of it."""
        time.sleep(seconds / 10)


class PlatformContract:
    """Inherit it, and say how the stand-in is made."""

    rollout_seconds: float = 0.3
    """How long a rollout takes in the stand-in."""
    waiting: int = 200
    """How many rollouts wait at once in the test of that."""
    verifies: bool = True
    """False for a target that offers no way to look at what is live."""

    def make_stand_in(self, world: World) -> StandIn:
        """The stand-in, not started."""
        raise NotImplementedError

    @pytest.fixture
    def world(self) -> World:
        return World(seconds=self.rollout_seconds)

    @pytest.fixture
    def stand_in(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
        stand_in = self.make_stand_in(world)
        stand_in.start()
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
        stand_in.seed(RESOURCE, OLD)
        yield stand_in
        stand_in.stop()

    @pytest.fixture(params=["sync", "async"])
    def mode(self, request: pytest.FixtureRequest) -> Literal["sync", "async"]:
        return request.param  # type: ignore[no-any-return]

    # --- what a release does, in the order in which it does it -----------------------------------------------------

    def platform(self, stand_in: StandIn, **changes: Any) -> Platform[Any]:
        """A fresh adapter, as another process would make it."""
        config = {**stand_in.target(RESOURCE), "conn_id": "contract", **changes}
        return adapter(json.loads(json.dumps(config)), service="shop", target="t1")

    def release(self, image: str = NEW, release_id: str = "r0a1b2c3d4", *, force: bool = False) -> Release:
        version = image.rpartition(":")[2]
        return Release(service="shop", version=version, image=image, release_id=release_id, force=force)

    def look(self, platform: Platform[Any], handle: Handle, mode: str) -> Observation:
        """One look, as the worker or as the triggerer takes it."""
        return asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)

    def wait(self, platform: Platform[Any], handle: Handle, mode: str, seconds: float = 15.0) -> Observation:
        """The final observation."""
        watch = Watch(deadline=time.time() + seconds, interval=0.05)
        return follow(lambda: self.look(platform, handle, mode), watch=watch, clock=SystemClock())

    def start(self, stand_in: StandIn, release: Release | None = None) -> tuple[Snapshot, Handle, Release]:
        """Snapshot and deploy, retried as a release retries them; documents pass through JSON."""
        release = release or self.release()
        clock = QuickClock()
        until = clock.time() + 20
        snapshot = persist(lambda: self.platform(stand_in).snapshot(), clock=clock, until=until)
        snapshot = Snapshot.model_validate_json(snapshot.model_dump_json())
        handle = persist(lambda: self.platform(stand_in).deploy(release, snapshot), clock=clock, until=until)
        return snapshot, Handle.model_validate_json(handle.model_dump_json()), release

    def undo(self, stand_in: StandIn, release: Release, snapshot: Snapshot, handle: Handle | None, mode: str) -> None:
        """Roll back and verify, as a release does."""
        clock = QuickClock()
        platform = self.platform(stand_in)
        back = persist(lambda: platform.rollback(release, snapshot, handle), clock=clock, until=clock.time() + 20)
        assert back.action == "rollback"
        seen = self.wait(platform, Handle.model_validate_json(back.model_dump_json()), mode)
        assert seen.state is State.HEALTHY, seen

    # --- the contract ----------------------------------------------------------------------------------------------

    def test_deploy_then_rollback_restores(self, stand_in: StandIn, mode: str) -> None:
        before = self.platform(stand_in).snapshot()
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.HEALTHY, seen
        assert seen.verified is self.verifies
        assert stand_in.live(RESOURCE).image == NEW
        assert len(stand_in.revisions(RESOURCE)) == 1
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD
        after = self.platform(stand_in).snapshot()
        assert (after.exists, after.image) == (before.exists, before.image)

    def test_not_healthy_before_the_new_revision_serves(self, stand_in: StandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        platform = self.platform(stand_in)
        while not (seen := self.look(platform, handle, mode)).ended:
            time.sleep(0.03)
        assert seen.state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW, "said healthy while the old revision served"

    def test_deploying_what_is_live_writes_nothing(self, stand_in: StandIn, world: World, mode: str) -> None:
        _, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        writes = len(world.calls_of(stand_in.kind, writes=True))
        platform = self.platform(stand_in)
        again = platform.deploy(release, platform.snapshot())
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert self.wait(platform, again, mode).state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_a_second_deploy_of_one_release_makes_no_second_revision(self, stand_in: StandIn, mode: str) -> None:
        snapshot, _, release = self.start(stand_in)
        handle = self.platform(stand_in).deploy(release, snapshot)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1

    @pytest.mark.parametrize("answer", ["lost", "reset", "500", "429", "malformed"])
    @pytest.mark.parametrize("nth", [1, 2])
    def test_a_retry_makes_one_revision(self, stand_in: StandIn, world: World, answer: Any, nth: int) -> None:
        writing = self.writing_operation()
        world.call_faults.append(CallFault(stand_in.kind, answer, operation=writing, nth=nth, retry_after=1))
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1
        assert stand_in.live(RESOURCE).image == NEW

    def writing_operation(self) -> str:
        """Regular expression of the platform's writing operations, for call faults."""
        return r"^(PUT|POST|PATCH|UpdateService|RegisterTaskDefinition|Create|Update)"

    def test_observe_writes_nothing(self, stand_in: StandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        writes = len(world.calls_of(stand_in.kind, writes=True))
        self.wait(self.platform(stand_in), handle, mode)
        self.platform(stand_in).snapshot()
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    def test_failure_is_seen_early_with_the_platforms_reason(self, stand_in: StandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="exec /app: exit code 137"))
        snapshot, handle, release = self.start(stand_in)
        started = time.monotonic()
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=30)
        assert seen.state is State.FAILED
        assert time.monotonic() - started < 10
        assert "exit code 137" in seen.reason
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_rollout_that_never_ends_can_be_rolled_back(self, stand_in: StandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=1)
        assert seen.state in (State.FAILED, State.UNKNOWN)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_rollback_in_mid_rollout_without_handle(self, stand_in: StandIn, mode: str) -> None:
        snapshot, _, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, None, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_rollback_of_nothing_is_verified_and_writes_nothing(
        self, stand_in: StandIn, world: World, mode: str
    ) -> None:
        snapshot = self.platform(stand_in).snapshot()
        self.undo(stand_in, self.release(), snapshot, None, mode)
        assert world.calls_of(stand_in.kind, writes=True) == []

    def test_rollback_twice(self, stand_in: StandIn, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        self.platform(stand_in).rollback(release, snapshot, handle)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_way_back_that_failed_can_be_gone_again(self, stand_in: StandIn, world: World, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        self.wait(self.platform(stand_in), back, mode)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("answer", ["lost", "500"])
    def test_rollback_survives_faults(self, stand_in: StandIn, world: World, answer: Any) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault(stand_in.kind, answer, operation=self.writing_operation()))
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_drift_is_refused(self, stand_in: StandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.meddle(RESOURCE, OTHER)
        writes = len(world.calls_of(stand_in.kind, writes=True))
        with pytest.raises(Drift, match="shop/t1"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert stand_in.live(RESOURCE).image == OTHER

    def test_force_releases_over_drift(self, stand_in: StandIn) -> None:
        """What a person does about a target in doubt, after a look at it."""
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        handle = self.platform(stand_in).deploy(self.release(force=True), snapshot)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_superseded_is_not_healthy(self, stand_in: StandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.meddle(RESOURCE, OTHER)
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=2)
        assert seen.state is not State.HEALTHY

    def test_first_ever_deploy_and_its_rollback(self, stand_in: StandIn, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists or snapshot.image != OLD
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image != NEW

    def test_a_failing_first_ever_deploy_can_be_left(self, stand_in: StandIn, world: World, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, mode)

    def test_documents_survive_json_and_hold_no_secret(self, stand_in: StandIn) -> None:
        snapshot, handle, _ = self.start(stand_in)
        for document in (snapshot, handle, self.platform(stand_in).observe(handle)):
            text = document.model_dump_json()
            assert type(document).model_validate_json(text) == document
            assert SECRET not in text

    @pytest.mark.parametrize(
        ("answer", "retryable"), [("500", True), ("429", True), ("reset", True), ("malformed", True)]
    )
    def test_errors_are_classified_and_name_the_target(
        self, stand_in: StandIn, world: World, answer: Any, retryable: bool, mode: str
    ) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault(stand_in.kind, answer, times=50, retry_after=3))
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError, match="shop/t1") as caught:
            self.look(platform, handle, mode)
        assert caught.value.retryable is retryable
        assert SECRET not in str(caught.value) + repr(caught.value)
        if answer == "429":
            assert caught.value.retry_after == 3

    def test_wrong_credentials_are_not_retryable(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        _, handle, _ = self.start(stand_in)
        connection = stand_in.connection()
        if SECRET not in json.dumps(connection):
            pytest.skip(f"{stand_in.kind}: the stand-in takes no credentials")
        wrong = json.dumps(connection).replace(SECRET, "wrong-canary-7f3a")
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", wrong)
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError) as caught:
            self.look(platform, handle, mode)
        assert not caught.value.retryable
        assert "wrong-canary-7f3a" not in str(caught.value) + repr(caught.value)

    def test_what_the_platform_refuses_is_not_tried_again(self, stand_in: StandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault(stand_in.kind, "400", times=50))
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError, match="shop/t1") as caught:
            self.look(platform, handle, mode)
        assert not caught.value.retryable

    def test_many_rollouts_that_wait_at_once_share_few_clients(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one triggerer no more than `LOOKS_AT_ONCE` look, each with a client of its own, at the same moment."""
        from airflow_multideploy.triggers import LOOKS_AT_ONCE, RolloutTrigger

        _, handle, _ = self.start(stand_in)
        platform = self.platform(stand_in)
        self.wait(platform, handle, "sync")
        looking = most = 0
        look = type(platform).aobserve

        async def counted(self: Platform[Any], handle: Handle) -> Observation:
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            try:
                return await look(self, handle)
            finally:
                looking -= 1

        monkeypatch.setattr(type(platform), "aobserve", counted)
        config = {**platform.config.model_dump(mode="json"), "poll_interval": 0.05}
        document: dict[str, Any] = {"service": "shop", "target": "t1", "config": config, "handle": handle.dump()}

        async def one() -> str:
            async for event in RolloutTrigger(**document, deadline=time.time() + 60).run():
                return str(event.payload["state"])
            raise AssertionError("no event")

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(one() for _ in range(self.waiting)))

        assert asyncio.run(all_of_them()) == ["healthy"] * self.waiting
        assert 1 < most <= LOOKS_AT_ONCE
        own = psutil.Process().net_connections("tcp")
        port = urlsplit(stand_in.url).port
        left = [c for c in own if c.raddr and c.raddr.port == port and c.status == psutil.CONN_ESTABLISHED]
        assert len(left) <= LOOKS_AT_ONCE
