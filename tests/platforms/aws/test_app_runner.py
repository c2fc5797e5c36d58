"""The App Runner adapter: the shared contract, and what only App Runner does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.aws import app_runner as aws_app_runner
from airflow_multideploy.platforms.aws.app_runner import MARK
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.aws_app_runner import AwsAppRunnerStandIn
from tests.stand_ins.aws_wire import Exchange, models_read_once, problems

PINNED = "registry.example.com/shop@sha256:" + "0a" * 32


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with models_read_once():
        yield


class TestAwsAppRunner(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20  # 200 do the same through the same base class in the tests of ECS

    def make_stand_in(self, world: World) -> StandIn:
        return AwsAppRunnerStandIn(world)

    def test_a_rollout_that_never_ends_can_be_rolled_back(
        self, stand_in: Any, world: World, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """App Runner takes no other operation while one is under way, and cannot stop one: the way back says that it
        waits, and goes as soon as App Runner lets it."""
        monkeypatch.setattr(aws_app_runner, "PATIENCE", 0.2)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=1)
        assert seen.state is State.FAILED
        with pytest.raises(PlatformError, match="in progress, and none can begin") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert (caught.value.retryable, caught.value.retry_after) == (True, aws_app_runner.AGAIN)
        stand_in.meddle(RESOURCE, NEW)  # it ends after all
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.fixture
    def runner(self, stand_in: Any) -> Iterator[Any]:
        client = stand_in.client()
        yield client
        client.close()

    def source(self, stand_in: Any) -> Any:
        return stand_in._known[RESOURCE].source

    # --- what App Runner does by itself ------------------------------------------------------------------------------

    def test_a_service_that_app_runner_put_back_is_a_failed_release(
        self, stand_in: Any, world: World, mode: str
    ) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="Health check failed on port '8080'"))
        snapshot, handle, release = self.start(stand_in)
        time.sleep(0.4)
        assert stand_in._known[RESOURCE].status == "OPERATION_IN_PROGRESS"
        assert stand_in.live(RESOURCE).settled
        assert stand_in._known[RESOURCE].status == "RUNNING"
        seen = self.look(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "ROLLBACK_SUCCEEDED" in seen.reason
        assert "Health check failed" in seen.reason
        writes = len(world.calls_of(stand_in.kind, writes=True))
        self.undo(stand_in, release, snapshot, handle, mode)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    def test_without_permission_for_the_log_the_failure_is_told(self, stand_in: Any, world: World) -> None:
        stand_in.readable = False
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, "sync")
        assert seen.state is State.FAILED
        assert "cannot be read (AccessDeniedException)" in seen.reason

    def test_somebody_elses_operation_is_waited_for(
        self, stand_in: Any, world: World, runner: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(aws_app_runner, "PATIENCE", 0.0)
        world.seconds = 60.0
        runner.update_service(ServiceArn=stand_in._known[RESOURCE].arn)
        with pytest.raises(PlatformError, match="waiting for it") as caught:
            self.platform(stand_in).snapshot()
        assert caught.value.retryable

    def test_an_operation_that_begins_in_between_is_waited_for(self, stand_in: Any, world: World, runner: Any) -> None:
        snapshot = self.platform(stand_in).snapshot()
        steps = self.platform(stand_in)._deploy(self.release(), snapshot)  # type: ignore[attr-defined]
        call = next(steps)
        while call[0] != "update_service":
            call = steps.send(getattr(runner, call[0])(**call[1]))
        world.seconds = 60.0
        runner.update_service(ServiceArn=stand_in._known[RESOURCE].arn)
        with pytest.raises(runner.exceptions.InvalidStateException) as refused:
            runner.update_service(**call[1])
        with pytest.raises(PlatformError) as told, self.platform(stand_in)._errors("update_service"):  # type: ignore[attr-defined]
            raise refused.value
        with pytest.raises(PlatformError, match="waiting for it") as caught:
            steps.throw(told.value)
        assert caught.value.retryable

    # --- what is written ---------------------------------------------------------------------------------------------

    def test_the_copy_differs_in_image_and_release_alone(self, stand_in: Any, mode: str) -> None:
        before = self.source(stand_in)
        snapshot, handle, release = self.start(stand_in)
        after = self.source(stand_in)
        variables = after["ImageRepository"]["ImageConfiguration"]["RuntimeEnvironmentVariables"]
        assert variables == {"PASSWORD": "hunter2", MARK: release.release_id}
        assert "hunter2" not in snapshot.model_dump_json() + handle.model_dump_json()
        assert aws_app_runner.changed_to(after, OLD, None) == before
        self.wait(self.platform(stand_in), handle, mode)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.source(stand_in) == before

    @pytest.mark.parametrize(("image", "force", "writes"), [(PINNED, False, 0), (PINNED, True, 1), (OLD, False, 1)])
    def test_only_a_pinned_image_that_is_live_is_left_alone(
        self, stand_in: Any, world: World, image: str, force: bool, writes: int
    ) -> None:
        stand_in.seed(RESOURCE, image)
        _, handle, _ = self.start(stand_in, self.release(image, force=force))
        assert handle.changed is bool(writes)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY

    def test_an_arn_is_not_looked_up(self, stand_in: Any, world: World) -> None:
        arn = stand_in._known[RESOURCE].arn
        assert self.platform(stand_in, service=arn).snapshot().image == OLD
        assert [call.operation for call in world.calls] == ["DescribeService"]
        assert arn in str(self.platform(stand_in, service=arn).console_url())

    # --- first-ever releases -----------------------------------------------------------------------------------------

    def test_first_ever_release_is_paused(self, stand_in: Any, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        self.wait(self.platform(stand_in), handle, mode)
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, None, mode)
        assert stand_in._known[RESOURCE].status == "PAUSED"
        self.undo(stand_in, release, snapshot, None, mode)

    # --- what others do ----------------------------------------------------------------------------------------------

    def test_somebody_elses_work_is_not_overwritten_by_a_deploy(self, stand_in: Any, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert world.calls_of(stand_in.kind, writes=True) == []

    def test_a_changed_environment_is_drift(self, stand_in: Any) -> None:
        snapshot = self.platform(stand_in).snapshot()
        self.source(stand_in)["ImageRepository"]["ImageConfiguration"]["Port"] = "9090"
        with pytest.raises(Drift, match="another configuration"):
            self.platform(stand_in).deploy(self.release(), snapshot)

    @pytest.mark.parametrize(
        ("service", "words"),
        [
            ("nobody", "no service 'nobody'; create the service once"),
            ("arn:aws:apprunner:eu-central-1:123456789012:service/x/y", "not found.*create the service once"),
        ],
    )
    def test_what_is_missing_is_named(self, stand_in: Any, service: str, words: str) -> None:
        with pytest.raises(PlatformError, match=words) as caught:
            self.platform(stand_in, service=service).snapshot()
        assert not caught.value.retryable

    def test_services_that_cannot_be_released_into(self, stand_in: Any) -> None:
        service = stand_in._known[RESOURCE]
        service.status = "PAUSED"
        with pytest.raises(PlatformError, match="resume it"):
            self.platform(stand_in).snapshot()
        service.status = "DELETED"
        with pytest.raises(PlatformError, match="is DELETED"):
            self.platform(stand_in).snapshot()
        branch = {"Type": "BRANCH", "Value": "main"}
        repository = {"RepositoryUrl": "https://example.com/shop", "SourceCodeVersion": branch}
        service.status, service.source = "RUNNING", {"CodeRepository": repository}
        with pytest.raises(PlatformError, match="built from a repository"):
            self.platform(stand_in).observe(Handle(action="deploy", data={"arn": service.arn}))

    # --- the contract of AWS -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("story", ["deploy", "fails", "never deployed", "faults"])
    def test_every_exchange_fits_the_model(self, stand_in: Any, world: World, story: str, mode: str) -> None:
        if story == "never deployed":
            stand_in.seed(RESOURCE, None)
        if story == "fails":
            world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        if story == "faults":
            world.call_faults.append(CallFault(stand_in.kind, "lost", operation="UpdateService"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is (State.FAILED if story == "fails" else State.HEALTHY)
        self.undo(stand_in, release, snapshot, handle, mode)
        called = {exchange.operation for exchange in stand_in.exchanges}
        assert {"ListServices", "DescribeService", "UpdateService", "ListOperations"} <= called
        assert ("GetLogEvents" in called, "PauseService" in called) == (story == "fails", story == "never deployed")
        assert [line for exchange in stand_in.exchanges for line in problems(exchange)] == []


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (Exchange("apprunner", "UpdateService", {}), "Missing required parameter"),
        (Exchange("apprunner", "PauseService", {"ServiceArn": "a"}, {"Service": {}}), "Missing required parameter"),
        (
            Exchange(
                "apprunner",
                "ListOperations",
                {"ServiceArn": "a"},
                {"OperationSummaryList": [{"Status": "ROLLED_BACK"}]},
            ),
            "none of",
        ),
        (Exchange("apprunner", "UpdateService", {"ServiceArn": "a"}, error="ConflictException"), "is no error of"),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchange: Exchange, words: str) -> None:
    assert any(words in line for line in problems(exchange)), problems(exchange)
