"""The Elastic Beanstalk adapter: the shared contract, and what only Beanstalk does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.aws import elastic_beanstalk as aws_elastic_beanstalk
from airflow_multideploy.platforms.aws.elastic_beanstalk import judge
from airflow_multideploy.release.contract import Handle, Release, Snapshot, State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.aws_elastic_beanstalk import AwsElasticBeanstalkStandIn
from tests.stand_ins.aws_wire import Exchange, models_read_once, problems


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with models_read_once():
        yield


class TestAwsElasticBeanstalk(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20  # 200 do the same through the same base class in the tests of ECS

    def make_stand_in(self, world: World) -> StandIn:
        return AwsElasticBeanstalkStandIn(world)

    def test_first_ever_deploy_and_its_rollback(self, stand_in: Any, mode: str) -> None:
        """Beanstalk has no way back to its sample application: what was completed stays, and that is said, not
        verified. While the update is under way it can be aborted, and then nothing of the release is left."""
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        platform = self.platform(stand_in)
        seen = self.look(platform, platform.rollback(release, snapshot, handle), mode)
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert "terminate the environment" in seen.reason
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.under_way(stand_in)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image is None

    def under_way(self, stand_in: Any) -> tuple[Snapshot, Handle, Release]:
        """A rollout that is still under way when somebody looks, however slow this machine is."""
        stand_in.world.seconds = 60.0
        begun = self.start(stand_in)
        stand_in.world.seconds = self.rollout_seconds
        return begun

    @pytest.fixture
    def beanstalk(self, stand_in: Any) -> Iterator[Any]:
        client = stand_in.client()
        yield client
        client.close()

    # --- what Beanstalk does by itself -------------------------------------------------------------------------------

    def test_an_environment_that_went_back_is_a_failed_release(self, stand_in: Any, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="Command failed on instance"))
        snapshot, handle, release = self.start(stand_in)
        time.sleep(0.3)
        assert stand_in.live(RESOURCE).settled
        assert stand_in._known[RESOURCE].health == "Green"  # the waiter that lies
        seen = self.look(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "went back to infrastructure-1" in seen.reason
        assert "Command failed on instance" in seen.reason
        writes = len(world.calls_of(stand_in.kind, writes=True))
        self.undo(stand_in, release, snapshot, handle, mode)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    def test_an_environment_left_red_on_the_release_is_put_back(self, stand_in: Any, world: World, mode: str) -> None:
        stand_in.sticky = True
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="Command failed on instance"))
        snapshot, handle, release = self.start(stand_in)
        time.sleep(0.3)
        assert stand_in.live(RESOURCE).image == NEW
        seen = self.look(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "health Red" in seen.reason
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_an_update_under_way_is_aborted_once(self, stand_in: Any, world: World, mode: str) -> None:
        snapshot, _, release = self.under_way(stand_in)
        world.seconds = 60.0
        first = self.platform(stand_in).rollback(release, snapshot, None)
        second = self.platform(stand_in).rollback(release, snapshot, None)
        assert first.changed
        assert second.changed
        called = [call.operation for call in world.calls_of(stand_in.kind, writes=True)]
        assert called == ["CreateApplicationVersion", "UpdateEnvironment", "AbortEnvironmentUpdate"]
        assert self.look(self.platform(stand_in), first, mode).state is State.PROGRESSING
        world.seconds = self.rollout_seconds
        assert self.wait(self.platform(stand_in), second, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == OLD

    def test_an_update_that_cannot_be_aborted_is_waited_for(
        self, stand_in: Any, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(aws_elastic_beanstalk, "PATIENCE", 0.0)
        monkeypatch.setattr(stand_in, "_shown", _unabortable(stand_in._shown))
        world.seconds = 60.0
        snapshot, handle, release = self.start(stand_in)
        with pytest.raises(PlatformError, match="waiting for it") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert (caught.value.retryable, caught.value.retry_after) == (True, aws_elastic_beanstalk.AGAIN)

    def test_somebody_elses_change_is_waited_for(
        self, stand_in: Any, world: World, beanstalk: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(aws_elastic_beanstalk, "PATIENCE", 0.0)
        snapshot = self.platform(stand_in).snapshot()
        world.seconds = 60.0
        beanstalk.update_environment(EnvironmentName=RESOURCE, VersionLabel="infrastructure-1")
        for call in (lambda p: p.snapshot(), lambda p: p.deploy(self.release(), snapshot)):
            with pytest.raises(PlatformError, match="takes no other change") as caught:
                call(self.platform(stand_in))
            assert caught.value.retryable
        with pytest.raises(beanstalk.exceptions.ClientError) as refused:
            beanstalk.update_environment(EnvironmentName=RESOURCE, VersionLabel="infrastructure-1")
        steps = self.platform(stand_in)._update("x")  # type: ignore[attr-defined]
        next(steps)
        with pytest.raises(PlatformError) as told, self.platform(stand_in)._errors("update_environment"):  # type: ignore[attr-defined]
            raise refused.value
        with pytest.raises(PlatformError, match="looking again") as caught:
            steps.throw(told.value)
        assert caught.value.retryable

    @pytest.mark.parametrize(
        ("status", "health", "label", "events", "state"),
        [
            ("Ready", "Yellow", "r1", [], State.PROGRESSING),
            ("Ready", "Grey", "r1", [], State.PROGRESSING),
            ("Ready", "Red", "r1", [], State.PROGRESSING),
            ("Ready", "Red", "r1", ["Command failed"], State.FAILED),
            ("Ready", "Green", "r0", [], State.FAILED),
            ("Ready", "Green", "r9", [], State.SUPERSEDED),
            ("Updating", "Green", "r1", [], State.PROGRESSING),
            ("Updating", "Red", "r1", ["Command failed"], State.PROGRESSING),
            ("Updating", "Red", "r1", ["Failed to deploy application."], State.FAILED),
        ],
    )
    def test_judgement(self, status: str, health: str, label: str, events: list[str], state: State) -> None:
        found = {"Status": status, "Health": health, "VersionLabel": label}
        handle = Handle(action="deploy", revision="r1", data={"from": "r0"})
        assert judge(handle, found, [{"Message": words} for words in events]).state is state

    def test_an_environment_that_was_yellow_comes_back_yellow(self, stand_in: Any, mode: str) -> None:
        stand_in.at_rest = "Yellow"
        stand_in._known[RESOURCE].health = "Yellow"
        snapshot, handle, release = self.start(stand_in)
        time.sleep(0.3)
        assert self.look(self.platform(stand_in), handle, mode).state is State.PROGRESSING, "a release has to be Green"
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        seen = self.wait(self.platform(stand_in), back, mode)
        assert seen.state is State.HEALTHY
        assert "health Yellow" in seen.reason
        assert "no worse than before" in seen.reason

    @pytest.mark.parametrize(
        ("before", "health", "state"),
        [
            ("Green", "Yellow", State.PROGRESSING),
            ("Yellow", "Yellow", State.HEALTHY),
            ("Yellow", "Green", State.HEALTHY),
            ("Yellow", "Red", State.PROGRESSING),
            ("Red", "Red", State.HEALTHY),
            ("Grey", "Red", State.PROGRESSING),
            (None, "Yellow", State.PROGRESSING),
        ],
    )
    def test_a_way_back_is_as_good_as_it_was(self, before: str | None, health: str, state: State) -> None:
        found = {"Status": "Ready", "Health": health, "VersionLabel": "r0"}
        back = Handle(action="rollback", revision="r0", data={"from": "r1", "health": before})
        assert judge(back, found, []).state is state

    # --- what is written ---------------------------------------------------------------------------------------------

    def test_the_label_is_the_release(self, stand_in: Any) -> None:
        _, handle, release = self.start(stand_in)
        version = stand_in.versions[release.release_id]
        assert handle.revision == release.release_id
        assert version["SourceBundle"] == {"S3Bucket": "releases", "S3Key": "shop-1.1.0.zip"}
        assert version["Description"] == "shop 1.1.0"

    @pytest.mark.parametrize(("force", "writes"), [(False, 0), (True, 2)])
    def test_a_bundle_that_is_live_is_left_alone(self, stand_in: Any, world: World, force: bool, writes: int) -> None:
        _, handle, _ = self.start(stand_in, self.release(OLD, force=force))
        assert handle.changed is force
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    # --- what is refused ---------------------------------------------------------------------------------------------

    def test_somebody_elses_work_is_not_overwritten_by_a_deploy(self, stand_in: Any, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert world.calls_of(stand_in.kind, writes=True) == []

    @pytest.mark.parametrize("changes", [{"environment": "nobody"}, {"application": "nothing"}])
    def test_what_is_missing_is_named(self, stand_in: Any, changes: dict[str, str]) -> None:
        with pytest.raises(PlatformError, match=r"no environment .*create the environment once") as caught:
            self.platform(stand_in, **changes).snapshot()
        assert not caught.value.retryable

    @pytest.mark.parametrize("package", ["shop-${version}.zip", "s3://releases/shop.zip", "s3://releases/${wrong}"])
    def test_a_package_has_a_place_of_its_own(self, stand_in: Any, package: str) -> None:
        with pytest.raises(SpecError, match="package"):
            self.platform(stand_in, package=package)

    # --- the contract of AWS -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("story", ["deploy", "fails", "aborted", "faults"])
    def test_every_exchange_fits_the_model(self, stand_in: Any, world: World, story: str, mode: str) -> None:
        if story == "fails":
            world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        if story == "faults":
            world.call_faults.append(CallFault(stand_in.kind, "lost", operation="UpdateEnvironment"))
        snapshot, handle, release = (self.under_way if story == "aborted" else self.start)(stand_in)
        if story != "aborted":
            seen = self.wait(self.platform(stand_in), handle, mode)
            assert seen.state is (State.FAILED if story == "fails" else State.HEALTHY)
        self.undo(stand_in, release, snapshot, handle, mode)
        called = {exchange.operation for exchange in stand_in.exchanges}
        assert {"DescribeEnvironments", "CreateApplicationVersion", "UpdateEnvironment"} <= called
        assert ("DescribeEvents" in called) >= (story == "fails")
        assert ("AbortEnvironmentUpdate" in called) >= (story == "aborted")
        assert [line for exchange in stand_in.exchanges for line in problems(exchange)] == []


def _unabortable(shown: Any) -> Any:
    return lambda found: {**shown(found), "AbortableOperationInProgress": False}


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (Exchange("elasticbeanstalk", "CreateApplicationVersion", {"VersionLabel": "x"}), "Missing required parameter"),
        (Exchange("elasticbeanstalk", "DescribeEnvironments", {}, {"Environments": [{"Health": "Blue"}]}), "none of"),
        (Exchange("elasticbeanstalk", "UpdateEnvironment", {}, {"Label": "x"}), "unknown"),
        (Exchange("elasticbeanstalk", "UpdateEnvironment", {}, error="ConflictException"), "is no error of"),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchange: Exchange, words: str) -> None:
    assert any(words in line for line in problems(exchange)), problems(exchange)
