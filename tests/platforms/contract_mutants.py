"""The fake platform in the public conformance suite: whole, and broken in all the ways that the suite has to catch."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, ClassVar

import pytest

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms import kinds
from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State
from airflow_multideploy.release.wait import SystemClock
from airflow_multideploy.sandbox.world import Call, CallFault, Live, World
from airflow_multideploy.testing import PlatformContract
from airflow_multideploy.testing.contract import RESOURCE, SECRET
from airflow_multideploy.testing.fake import FakePlatform, FakeWorld, Fault

KIND, PLACE = "fake", "shop/t1"


class SandboxedWorld(FakeWorld):
    """A fake world on the machine's clock, in which a sandbox's faults happen."""

    sandbox: World


class Whole(FakePlatform):
    """The fake platform, whose calls a sandbox records and spoils."""

    _world: SandboxedWorld

    def __init__(self, config: Any, *, service: str, target: str) -> None:
        super().__init__(config, service="shop", target="t1")  # its place is called so, whoever asks

    def _begin(self, name: Any, of: Any = None) -> Any:
        sandbox = self._world.sandbox
        fault = sandbox.call_fault(KIND, name)
        self._call = sandbox.record(Call(sandbox.now(), KIND, name, False, fault=fault and fault.answer))
        if fault is not None:
            kinds: dict[str, Any] = {"400": "refused", "lost": "lost"}
            self._world.faults.append(Fault(name, kinds.get(fault.answer, "error"), retry_after=fault.retry_after))
        return super()._begin(name, of)

    def _activate(self, revision: str | None, fault: Any) -> str:
        self._call.writes = True
        course = self._world.sandbox.course(KIND, RESOURCE)
        super()._activate(revision, fault)
        self._place.ready_at = time.time() + course.seconds
        self._place.fate = "healthy" if course.outcome == "succeeds" else course.outcome
        self._place.reason = course.reason
        return revision or "-"

    async def aobserve(self, handle: Handle) -> Observation:
        await asyncio.sleep(0.01)
        return self.observe(handle)


class FakeStandIn:
    kind, url = KIND, ""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self) -> None:
        self.fake = SandboxedWorld(seconds=self.world.seconds, name="contract", clock=SystemClock())  # type: ignore[arg-type]
        self.fake.sandbox = self.world

    def stop(self) -> None:
        del FakeWorld.by_name["contract"]

    def connection(self) -> dict[str, Any]:
        return {"conn_type": "generic"}

    def target(self, resource: str) -> dict[str, Any]:
        return {"platform": KIND}

    def seed(self, resource: str, image: str | None) -> None:
        self.fake.seed(PLACE, image)

    def meddle(self, resource: str, image: str) -> None:
        self.fake.meddle(PLACE, image)

    def live(self, resource: str) -> Live:
        now = self.fake.places[PLACE].current
        return Live(now and now.image, now and now.id, True)

    def revisions(self, resource: str) -> list[str]:
        return [made.id for made in self.fake.places[PLACE].revisions.values() if made.release_id]


class FakeSuite(PlatformContract):
    rollout_seconds, waiting, at_once = 0.05, 20, 3.0
    adapter: ClassVar[type[FakePlatform]] = Whole
    stand_in_type: ClassVar[type[FakeStandIn]] = FakeStandIn
    world_type: ClassVar[type[World]] = World

    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kinds, "platform_type", lambda kind: self.adapter)

    @pytest.fixture
    def world(self) -> World:
        return self.world_type(seconds=self.rollout_seconds)

    def make_stand_in(self, world: World) -> FakeStandIn:
        return self.stand_in_type(world)

    def writing_operation(self) -> str:
        return "^(deploy|rollback)$"


# --- stand-ins that show nothing, or leave something open ------------------------------------------------------------


class Deaf(World):
    """Plays no call's fault."""

    def call_fault(self, platform: str, operation: str) -> CallFault | None:
        return None


class Mute(World):
    """Records nothing."""

    def record(self, call: Call) -> Call:
        return call


class Forgetful(Mute):
    """Plays faults and does not say so; that something was written it says."""

    def record(self, call: Call) -> Call:
        call.fault = None
        return World.record(self, call)


class Folder(Deaf, Mute):
    """What a platform without a server has."""


class Stubborn(FakeStandIn):
    stopped: ClassVar[list[str]] = []

    def stop(self) -> None:
        self.stopped.append(type(self).__name__)


class Skips(Stubborn):
    def start(self) -> None:
        pytest.skip("no server on this machine")


class SeedsNothing(Stubborn):
    def seed(self, resource: str, image: str | None) -> None:
        raise RuntimeError("no place")


# --- adapters that break the contract --------------------------------------------------------------------------------


class TakesLabelsOnly(Whole):
    def __init__(self, config: Any, *, service: str, target: str) -> None:
        if target != target.lower():
            raise ValueError(f"{service}/{target}: no label")
        super().__init__(config, service=service, target=target)


class DeploysOverDrift(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        return super().deploy(release, self.snapshot())


class PollsInDeploy(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        handle = super().deploy(release, snapshot)
        for _ in range(12):
            self.observe(handle)
        return handle


class WaitsInDeploy(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        time.sleep(FakeSuite.at_once)
        return super().deploy(release, snapshot)


def raises_raw(step: str) -> type[Whole]:
    """Where that step is refused, its error is not ours."""

    def raw(self: Whole, *args: Any) -> Any:
        try:
            return getattr(Whole, step)(self, *args)
        except PlatformError as error:
            if error.retryable or isinstance(error, Drift):
                raise
            raise RuntimeError(str(error)) from None

    return type("RaisesRaw", (Whole,), {step: raw})


class HandsOutTheSecret(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        header = base64.b64encode(f"user:{SECRET}".encode()).decode()
        return super().deploy(release, snapshot).model_copy(update={"data": {"headers": [header]}})


class HandsOutTheSecretOnTheWayBack(Whole):
    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return super().rollback(release, snapshot, handle).model_copy(update={"data": {"token": SECRET}})


class TellsTheSecret(Whole):
    def observe(self, handle: Handle) -> Observation:
        seen = super().observe(handle)
        return seen.model_copy(update={"reason": f"{seen.reason} {SECRET}"}) if seen.state is State.FAILED else seen


def writes_when(state: State) -> type[Whole]:
    """A look that sees that state writes."""

    def observe(self: Whole, handle: Handle) -> Observation:
        seen = Whole.observe(self, handle)
        self._call.writes = seen.state is state
        return seen

    return type("Writes", (Whole,), {"observe": observe})


def disagrees_on(state: State) -> type[Whole]:
    """The triggerer's look does not tell that state as the worker's does."""

    async def aobserve(self: Whole, handle: Handle) -> Observation:
        seen = await Whole.aobserve(self, handle)
        changes = {"state": State.UNKNOWN} if state is State.SUPERSEDED else {"revision": None}
        return seen.model_copy(update=changes) if seen.state is state else seen

    return type("Disagrees", (Whole,), {"aobserve": aobserve})


class Blocks(Whole):
    async def aobserve(self, handle: Handle) -> Observation:
        time.sleep(0.05)  # noqa: ASYNC251 - that is the fault
        return await super().aobserve(handle)


class GoesBackTwice(Whole):
    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        if handle is None or self._place.live != snapshot.revision:
            return super().rollback(release, snapshot, handle)
        self._begin("rollback")
        made = self._place.add(str(snapshot.image), f"{release.release_id}-back")
        return Handle(action="rollback", revision=self._activate(made.id, None))


class SaysChanged(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        return super().deploy(release, snapshot).model_copy(update={"changed": True})


class SaysChangedBack(Whole):
    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return super().rollback(release, snapshot, handle).model_copy(update={"changed": True})


class KeptOnTheClass(Whole):
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        type(self).last = release.release_id  # type: ignore[attr-defined]
        return super().deploy(release, snapshot)


class KeptOnTheInstance(Whole):
    gone: Handle | None = None

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        self.gone = super().rollback(release, snapshot, handle)
        return self.gone

    def observe(self, handle: Handle) -> Observation:
        seen = super().observe(handle)
        lost = handle.action == "rollback" and self.gone is None
        return seen.model_copy(update={"state": State.FAILED}) if lost else seen


NEVER_ENDS, FAILS = "test_a_rollout_that_never_ends_can_be_rolled_back", "test_failure_is_seen_early"
REFUSED, SUPERSEDED = "test_each_step_ends_with_what_the_platform_refuses", "test_superseded_is_not_healthy"
BACK, LIVE = "test_deploy_then_rollback_restores", "test_deploying_what_is_live_writes_nothing"

MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deploys over drift": ("test_drift_before_the_deploy_is_refused", {"adapter": DeploysOverDrift}),
    "takes labels only": ("test_service_and_target_may_be_called_like_tasks", {"adapter": TakesLabelsOnly}),
    "polls in deploy": (NEVER_ENDS, {"adapter": PollsInDeploy}),
    "waits in deploy": (NEVER_ENDS, {"adapter": WaitsInDeploy}),
    "raw error of snapshot": (REFUSED, {"adapter": raises_raw("snapshot")}),
    "raw error of deploy": (REFUSED, {"adapter": raises_raw("deploy")}),
    "raw error of rollback": (REFUSED, {"adapter": raises_raw("rollback")}),
    "secret in base64": ("test_documents_survive_json", {"adapter": HandsOutTheSecret}),
    "secret in the handle back": ("test_documents_survive_json", {"adapter": HandsOutTheSecretOnTheWayBack}),
    "secret in a failure": (FAILS, {"adapter": TellsTheSecret}),
    "writes when it failed": (FAILS, {"adapter": writes_when(State.FAILED)}),
    "writes when superseded": (SUPERSEDED, {"adapter": writes_when(State.SUPERSEDED)}),
    "disagrees on a failure": (FAILS, {"adapter": disagrees_on(State.FAILED)}),
    "disagrees on superseded": (SUPERSEDED, {"adapter": disagrees_on(State.SUPERSEDED)}),
    "blocks the loop": ("test_many_rollouts_that_wait_at_once", {"adapter": Blocks}),
    "goes back twice": ("test_rollback_twice", {"adapter": GoesBackTwice}),
    "says changed": (LIVE, {"adapter": SaysChanged}),
    "says changed back": ("test_rollback_of_nothing", {"adapter": SaysChangedBack}),
    "kept on the class": (BACK, {"adapter": KeptOnTheClass}),
    "kept on the instance": (BACK, {"adapter": KeptOnTheInstance}),
    "no call recorded": (BACK, {"world_type": Mute}),
    "no fault played": ("test_rollback_survives_faults", {"world_type": Deaf}),
    "no fault recorded": ("test_rollback_survives_faults", {"world_type": Forgetful}),
}
"""Name → the test that has to fail, and what is broken in the suite's class."""
