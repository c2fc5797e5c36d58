"""The conformance suite that every platform's test inherits.

    class TestAwsEcs(PlatformContract):
        def make_stand_in(self, world: World) -> StandIn:
            return AwsEcsStandIn(world)

That is all: the suite starts the stand-in, leads an Airflow Connection to it, and holds the adapter to the contract,
once with ``observe`` and once with ``aobserve``. A platform without a server sets ``server = False``, see `Driver`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.release.contract import Handle, Observation, Platform, State
from airflow_multideploy.release.journal import Journal, Phase, Run
from airflow_multideploy.release.rollback import WayBack
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.status import Status
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.driver import (
    NEW,
    OLD,
    OTHER,
    RESOURCE,
    SECRET,
    Driver,
    QuickClock,
    judged,
    kept,
    passed_on,
    stood_still,
)
from airflow_multideploy.testing.fake import MemoryStore

__all__ = ["NEW", "OLD", "OTHER", "RESOURCE", "SECRET", "PlatformContract", "QuickClock"]


class PlatformContract(Driver):
    """Inherit it, and say how the stand-in is made."""

    waiting: int = 200
    """How many rollouts wait at once in the test of that."""
    at_once: float = 10.0
    """How many seconds a snapshot and a deploy may take together."""
    verifies: bool = True
    """False for a target that offers no way to look at what is live."""

    def test_deploy_then_rollback_restores(self, stand_in: StandIn, world: World, mode: str) -> None:
        before, known = self.platform(stand_in).snapshot(), kept(type(self.platform(stand_in)))
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
        assert kept(type(self.platform(stand_in))) == known, "the class keeps what another process does not see"
        if self.server:
            assert world.calls_of(stand_in.kind, writes=True), "the stand-in records no call that writes"

    def test_service_and_target_may_be_called_like_tasks(self, stand_in: StandIn, mode: str) -> None:
        """In a hand-written DAG they are: large letters, dots, as long as you like."""
        self.service_name, self.target_name = "Release_shop.EU", "EU.aws_1." + "x" * 120
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_not_healthy_before_the_new_revision_serves(self, stand_in: StandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        platform = self.platform(stand_in)
        while not (seen := self.look(platform, handle, mode)).ended:
            time.sleep(0.03)
        assert seen.state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW, "said healthy while the old revision served"

    def test_deploying_what_is_live_writes_nothing(self, stand_in: StandIn, world: World, mode: str) -> None:
        """A second attempt of the same release. Another release of it may make a new revision, where the image is a tag
        that can hold other bits than yesterday; ``changed`` says which."""
        _, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        with self.unwritten(stand_in, world):
            _, again, _ = self.start(stand_in, release)
            assert self.wait(self.platform(stand_in), again, mode).state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1
        writes = len(world.calls_of(stand_in.kind, writes=True))
        _, other, _ = self.start(stand_in, self.release(release_id="r1b2c3d4e5"))
        made = len(stand_in.revisions(RESOURCE)) > 1
        wrote = made or len(world.calls_of(stand_in.kind, writes=True)) > writes
        assert wrote if other.changed else not made, f"not what was done: {other}"

    def test_a_second_deploy_of_one_release_makes_no_second_revision(self, stand_in: StandIn, mode: str) -> None:
        snapshot, _, release = self.start(stand_in)
        handle = self.deployed(stand_in, release, snapshot)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1

    @pytest.mark.parametrize("answer", ["lost", "reset", "500", "429", "malformed"])
    @pytest.mark.parametrize("nth", [1, 2])
    def test_a_retry_makes_one_revision(self, stand_in: StandIn, world: World, answer: Any, nth: int) -> None:
        writing = self.writing_operation()
        with self.going_wrong(world, CallFault(stand_in.kind, answer, operation=writing, nth=nth, retry_after=1)):
            _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1
        assert stand_in.live(RESOURCE).image == NEW

    def test_observe_writes_nothing(self, stand_in: StandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        with self.unwritten(stand_in, world):
            self.wait(self.platform(stand_in), handle, mode)
            self.platform(stand_in).snapshot()

    def test_failure_is_seen_early_with_the_platforms_reason(self, stand_in: StandIn, world: World, mode: str) -> None:
        with self.going_wrong(world, RolloutFault(stand_in.kind, "fails", reason="exec /app: exit code 137")):
            snapshot, handle, release = self.start(stand_in)
            started = time.monotonic()
            with self.unwritten(stand_in, world):
                seen = self.wait(self.platform(stand_in), handle, mode, seconds=30)
        assert seen.state is State.FAILED
        assert time.monotonic() - started < 10
        assert "exit code 137" in seen.reason
        self.agreed(stand_in, handle)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_rollout_that_never_ends_can_be_rolled_back(self, stand_in: StandIn, world: World, mode: str) -> None:
        began = time.monotonic()
        with self.going_wrong(world, RolloutFault(stand_in.kind, "hangs")):
            snapshot, handle, release = self.start(stand_in)
            took, asked = time.monotonic() - began, Counter(call.operation for call in world.calls_of(stand_in.kind))
            seen = self.wait(self.platform(stand_in), handle, mode, seconds=1)
        assert took < self.at_once, "deploy waits"
        assert max(asked.values(), default=0) < 10, f"deploy polls: {asked}"
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
        assert self.platform(stand_in).rollback(self.release(), snapshot, None).changed is False
        self.undo(stand_in, self.release(), snapshot, None, mode)
        assert world.calls_of(stand_in.kind, writes=True) == []

    def test_rollback_twice(self, stand_in: StandIn, mode: str) -> None:
        """The second time makes no second revision. A suite that leaves out the same for ``deploy`` has a platform that
        does not recognise what it wrote."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        self.back(stand_in, release, snapshot, handle)
        made = stand_in.revisions(RESOURCE)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD
        if self.test_a_second_deploy_of_one_release_makes_no_second_revision is not None:
            assert stand_in.revisions(RESOURCE) == made

    def test_a_way_back_that_failed_can_be_gone_again(self, stand_in: StandIn, world: World, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        world.rollout_faults.append(fault := RolloutFault(stand_in.kind, "fails"))
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        seen = self.wait(self.platform(stand_in), back, mode)
        if fault.times:
            assert seen.state is State.HEALTHY, seen
            pytest.skip(f"{stand_in.kind}: a way back starts no rollout that could fail")
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("answer", ["lost", "500"])
    def test_rollback_survives_faults(self, stand_in: StandIn, world: World, answer: Any) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        with self.going_wrong(world, CallFault(stand_in.kind, answer, operation=self.writing_operation())):
            self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_drift_before_the_deploy_is_refused(self, stand_in: StandIn, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with self.unwritten(stand_in, world), pytest.raises(Drift, match="shop/t1"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.live(RESOURCE).image == OTHER

    def test_drift_is_refused(self, stand_in: StandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.meddle(RESOURCE, OTHER)
        with self.unwritten(stand_in, world), pytest.raises(Drift, match="shop/t1"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert stand_in.live(RESOURCE).image == OTHER

    def test_force_releases_over_drift(self, stand_in: StandIn) -> None:
        """What a person does about a target in doubt, after a look at it."""
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        handle = self.platform(stand_in).deploy(self.release(force=True), snapshot)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_superseded_is_not_healthy(self, stand_in: StandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.meddle(RESOURCE, OTHER)
        with self.unwritten(stand_in, world):
            seen = self.wait(self.platform(stand_in), handle, mode, seconds=2)
        assert seen.state is not State.HEALTHY
        self.agreed(stand_in, handle)

    def test_first_ever_deploy_and_its_rollback(self, stand_in: StandIn, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists or snapshot.image != OLD
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image != NEW

    def test_a_failing_first_ever_deploy_and_its_rollback(self, stand_in: StandIn, world: World, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        with self.going_wrong(world, RolloutFault(stand_in.kind, "fails")):
            snapshot, handle, release = self.start(stand_in)
            assert self.wait(self.platform(stand_in), handle, mode).state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, mode)

    def test_a_failing_first_ever_deploy_can_be_left(self, stand_in: StandIn, world: World) -> None:
        """With ``first_deploy: leave`` the release ends in the same status on every platform, and nothing is written on
        the way back: whoever asks for it, and as often as it is asked for."""
        stand_in.seed(RESOURCE, None)
        platform, journal, clock = self.platform(stand_in, first_deploy="leave"), Journal(MemoryStore()), QuickClock()
        rollout = Rollout(platform, journal, clock, Run("shop", "run1"))
        with self.going_wrong(world, RolloutFault(stand_in.kind, "fails")):
            entry = rollout.begin(self.release())
            assert entry.snapshot is not None
            assert entry.handle is not None
            if entry.snapshot.exists:
                pytest.skip(f"{stand_in.kind}: the resource is there before the first release, so nothing is removed")
            entry = rollout.conclude(entry, self.wait(platform, entry.handle, "sync"))
        assert entry.phase is Phase.FAILED
        there = (stand_in.live(RESOURCE), stand_in.revisions(RESOURCE))
        with self.unwritten(stand_in, world):
            for _ in range(2):
                verdict = judged(entry, platform)
                assert (verdict.status, verdict.restore) == (Status.FAILED, ())
                assert "left in place, as configured (first_deploy: leave)" in verdict.reason
                entry = WayBack(platform, journal, clock).go(entry)
                assert (entry.phase, entry.settled, journal.read()) == (Phase.FAILED, True, entry)
        assert (stand_in.live(RESOURCE), stand_in.revisions(RESOURCE)) == there

    def test_documents_survive_json_and_hold_no_secret(self, stand_in: StandIn) -> None:
        """As in every other test, where `passed_on` sees to it for what each step returns."""
        snapshot, handle, release = self.start(stand_in)
        back = self.back(stand_in, release, snapshot, handle)
        for document in (snapshot, handle, back, self.platform(stand_in).observe(back)):
            passed_on(document)

    @pytest.mark.parametrize(
        ("answer", "retryable"), [("500", True), ("429", True), ("reset", True), ("malformed", True)]
    )
    def test_errors_are_classified_and_name_the_target(
        self, stand_in: StandIn, world: World, answer: Any, retryable: bool, mode: str
    ) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        platform, fault = self.platform(stand_in), CallFault(stand_in.kind, answer, times=50, retry_after=3)
        with self.going_wrong(world, fault), pytest.raises(PlatformError, match="shop/t1") as caught:
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
        platform, fault = self.platform(stand_in), CallFault(stand_in.kind, "400", times=50)
        with self.going_wrong(world, fault), pytest.raises(PlatformError, match="shop/t1") as caught:
            self.look(platform, handle, mode)
        assert not caught.value.retryable

    def test_each_step_ends_with_what_the_platform_refuses(self, stand_in: StandIn, world: World) -> None:
        """A snapshot whose reads are refused, a deploy and a rollback whose write is."""
        writing, platform = self.writing_operation(), self.platform(stand_in)

        def refused(step: Callable[[], object], operation: str = "") -> None:
            fault = CallFault(stand_in.kind, "400", operation=operation, times=50)
            with self.going_wrong(world, fault), pytest.raises(PlatformError, match="shop/t1") as caught:
                step()
            world.call_faults.clear()
            assert not caught.value.retryable, caught.value
            assert SECRET not in str(caught.value) + repr(caught.value)

        refused(platform.snapshot)
        snapshot = platform.snapshot()
        refused(lambda: platform.deploy(self.release(), snapshot), writing)
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        refused(lambda: platform.rollback(release, snapshot, handle), writing)

    def test_many_rollouts_that_wait_at_once_share_few_clients(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one triggerer no more than `LOOKS_AT_ONCE` look, each with a client of its own, at the same moment.

        And no look stops the triggerer's event loop, which all other triggers need: one of twenty is allowed to be
        undisturbed by whatever else this machine does.
        """
        from airflow_multideploy.operators.trigger import LOOKS_AT_ONCE, RolloutTrigger

        _, handle, _ = self.start(stand_in)
        platform = self.platform(stand_in)
        self.wait(platform, handle, "sync")
        pauses = (asyncio.run(stood_still(platform.aobserve(handle))) for _ in range(20))
        assert any(pause < 0.03 for pause in pauses), "aobserve blocks the event loop"
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
