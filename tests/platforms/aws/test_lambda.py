"""The Lambda adapter: the shared contract, and what only Lambda does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.aws import lambda_ as aws_lambda
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.aws_lambda import AwsLambdaStandIn
from tests.stand_ins.aws_wire import Exchange, models_read_once, problems

PINNED = "registry.example.com/shop@sha256:" + "0a" * 32


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with models_read_once():
        yield


class LambdaContract(PlatformContract):
    rollout_seconds = 0.1
    waiting = 20  # 200 do the same through the same base class in the tests of ECS

    def make_stand_in(self, world: World) -> StandIn:
        return AwsLambdaStandIn(world)

    def writing_operation(self) -> str:
        return "^(Update|Publish|Create)"

    def test_a_rollout_that_never_ends_can_be_rolled_back(
        self, stand_in: StandIn, world: World, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Code, version and alias are three writes: while the first is not done there is no handle to wait with, and
        ``deploy`` says so with a retryable error. What the suite asks for otherwise holds: it can be rolled back."""
        monkeypatch.setattr(aws_lambda, "PATIENCE", 0.3)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot, release = self.platform(stand_in).snapshot(), self.release()
        for _ in range(2):
            with pytest.raises(PlatformError, match="still being prepared") as caught:
                self.platform(stand_in).deploy(release, snapshot)
            assert (caught.value.retryable, caught.value.retry_after) == (True, aws_lambda.AGAIN)
        assert len(world.calls_of(stand_in.kind, writes=True)) == 1
        self.undo(stand_in, release, snapshot, None, mode)
        assert stand_in.live(RESOURCE).image == OLD


class TestAwsLambda(LambdaContract):
    @pytest.fixture
    def lambdas(self, stand_in: Any) -> Iterator[Any]:
        client = stand_in.client()
        yield client
        client.close()

    # --- several writes, each at most once ---------------------------------------------------------------------------

    @pytest.mark.parametrize("answer", ["lost", "reset", "500", "malformed"])
    def test_a_lost_answer_of_the_last_write(self, stand_in: Any, world: World, answer: Any) -> None:
        world.call_faults.append(CallFault(stand_in.kind, answer, operation="UpdateAlias"))
        _, handle, _ = self.start(stand_in)
        assert (handle.changed, handle.revision) == (True, stand_in.live(RESOURCE).revision)
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_the_next_call_goes_on_where_lambda_was_busy(
        self, stand_in: Any, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(aws_lambda, "PATIENCE", 0.01)
        stand_in.prepare, world.seconds = True, 60.0
        snapshot = self.platform(stand_in).snapshot()
        for what in ("LATEST", "2"):
            for _ in range(2):
                with pytest.raises(PlatformError, match=f"{what} is still being prepared") as caught:
                    self.platform(stand_in).deploy(self.release(), snapshot)
                assert caught.value.retryable
                assert stand_in.live(RESOURCE).image == OLD, "callers were led to a version that is not ready"
            stand_in.hurry(RESOURCE)
        handle = self.platform(stand_in).deploy(self.release(), snapshot)
        assert self.platform(stand_in).observe(handle).state is State.HEALTHY
        written = [call.operation for call in world.calls_of(stand_in.kind, writes=True)]
        assert set(written) == {"UpdateFunctionCode", "PublishVersion", "UpdateAlias"}
        assert written.count("UpdateFunctionCode") == written.count("UpdateAlias") == 1
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_the_version_is_described_by_the_release(self, stand_in: Any, lambdas: Any) -> None:
        _, handle, release = self.start(stand_in)
        found = lambdas.get_function_configuration(FunctionName=RESOURCE, Qualifier=handle.revision)
        assert found["Description"] == release.release_id

    def test_code_that_was_published_before_makes_no_second_version(self, stand_in: Any, mode: str) -> None:
        """Rolled back and released again: the version carries the first release's id, and is known as ours all the
        same."""
        first = self.start(stand_in)
        self.undo(stand_in, first[2], first[0], first[1], mode)
        snapshot, handle, release = self.start(stand_in, self.release(release_id="r2again"))
        assert handle.revision == first[1].revision
        assert len(stand_in.revisions(RESOURCE)) == 1
        self.undo(stand_in, release, snapshot, None, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize(("image", "force", "writes"), [(PINNED, False, 0), (PINNED, True, 2), (OLD, False, 3)])
    def test_only_a_pinned_image_that_is_live_is_left_alone(
        self, stand_in: Any, world: World, image: str, force: bool, writes: int
    ) -> None:
        stand_in.seed(RESOURCE, image)
        _, handle, _ = self.start(stand_in, self.release(image, force=force))
        assert handle.changed is bool(writes)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY

    # --- the alias ---------------------------------------------------------------------------------------------------

    def test_the_alias_is_restored_bit_for_bit(self, stand_in: Any, lambdas: Any, mode: str) -> None:
        place = {"FunctionName": RESOURCE, "Name": "live"}
        stand_in.meddle(RESOURCE, OTHER)
        lambdas.update_alias(**place, Description="half", RoutingConfig={"AdditionalVersionWeights": {"1": 0.5}})
        before = lambdas.get_alias(**place)
        snapshot, handle, release = self.start(stand_in)
        assert "RoutingConfig" not in lambdas.get_alias(**place)
        self.undo(stand_in, release, snapshot, handle, mode)
        after = lambdas.get_alias(**place)
        for answer in (before, after):
            del answer["ResponseMetadata"], answer["RevisionId"]
        assert after == before

    def test_somebody_elses_canary_is_not_healthy(self, stand_in: Any, lambdas: Any, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        change = {"RoutingConfig": {"AdditionalVersionWeights": {"1": 0.5}}}
        lambdas.update_alias(FunctionName=RESOURCE, Name="live", **change)
        assert self.look(self.platform(stand_in), handle, mode).state is State.SUPERSEDED

    def test_an_alias_on_latest_is_refused(self, stand_in: Any) -> None:
        stand_in._functions[RESOURCE].alias["FunctionVersion"] = "$LATEST"
        with pytest.raises(PlatformError, match=r"points at \$LATEST") as caught:
            self.platform(stand_in).snapshot()
        assert not caught.value.retryable

    def test_the_way_back_of_a_first_ever_release_removes_the_alias(self, stand_in: Any) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, _, release = self.start(stand_in)
        assert stand_in.live(RESOURCE).image == NEW
        back = self.platform(stand_in).rollback(release, snapshot, None)
        assert self.platform(stand_in).observe(back).state is State.HEALTHY
        assert stand_in._functions[RESOURCE].alias is None

    # --- what others do ----------------------------------------------------------------------------------------------

    def test_somebody_elses_work_is_not_overwritten_by_a_deploy(self, stand_in: Any, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert world.calls_of(stand_in.kind, writes=True) == []

    def test_somebody_elses_unpublished_code_is_refused(self, stand_in: Any, lambdas: Any, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        lambdas.update_function_code(FunctionName=RESOURCE, ImageUri=OTHER)
        with pytest.raises(Drift, match="somebody else changed 'shop'"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert len(world.calls_of(stand_in.kind, writes=True)) == 1

    def test_a_write_that_came_in_between_is_seen(self, stand_in: Any, world: World, lambdas: Any) -> None:
        """The concurrency token: what changed after our look is looked at again before anything is written."""
        snapshot = self.platform(stand_in).snapshot()
        steps = self.platform(stand_in)._deploy(self.release(), snapshot)
        call = next(steps)
        while call[0] != "update_function_code":
            call = steps.send(getattr(lambdas, call[0])(**call[1]))
        lambdas.update_function_code(FunctionName=RESOURCE, ImageUri=OTHER)
        time.sleep(0.3)
        with pytest.raises(lambdas.exceptions.PreconditionFailedException) as refused:
            lambdas.update_function_code(**call[1])
        with pytest.raises(PlatformError) as told, self.platform(stand_in)._errors("update_function_code"):  # type: ignore[attr-defined]
            raise refused.value
        with pytest.raises(PlatformError, match="looking again") as caught:
            steps.throw(told.value)
        assert caught.value.retryable

    def test_an_update_under_way_is_waited_for(self, stand_in: Any, world: World, lambdas: Any) -> None:
        world.seconds = 60.0
        lambdas.update_function_code(FunctionName=RESOURCE, ImageUri=OTHER)
        with pytest.raises(PlatformError, match="being updated") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, aws_lambda.AGAIN)

    # --- failures ----------------------------------------------------------------------------------------------------

    def test_a_failing_test_event_keeps_callers_away(self, stand_in: Any, mode: str) -> None:
        stand_in.invocation = "cannot import name 'app'"
        platform = self.platform(stand_in, test_event={"ping": True})
        handle = platform.deploy(self.release(), platform.snapshot())
        seen = self.wait(platform, handle, mode)
        assert seen.state is State.FAILED
        assert "Unhandled" in seen.reason
        assert "cannot import name" in seen.reason
        assert stand_in.live(RESOURCE).image == OLD
        assert stand_in.invoked == [("2", b'{"ping": true}')]

    def test_a_good_test_event_lets_callers_in(self, stand_in: Any) -> None:
        platform = self.platform(stand_in, test_event={})
        handle = platform.deploy(self.release(), platform.snapshot())
        assert platform.observe(handle).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_the_next_release_mends_a_failed_update(self, stand_in: Any, world: World) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        self.start(stand_in)
        _, handle, _ = self.start(stand_in, self.release(release_id="r2fix"))
        assert self.platform(stand_in).observe(handle).state is State.HEALTHY

    @pytest.mark.parametrize("changes", [{"function": "nobody"}])
    def test_what_is_missing_is_named(self, stand_in: Any, changes: dict[str, str]) -> None:
        with pytest.raises(PlatformError, match="no Lambda function 'nobody'; create the function once") as caught:
            self.platform(stand_in, **changes).snapshot()
        assert not caught.value.retryable

    @pytest.mark.parametrize("package", ["releases/shop.zip", "s3://releases", "s3://releases/${wrong}.zip"])
    def test_a_package_has_a_place(self, stand_in: Any, package: str) -> None:
        with pytest.raises(SpecError, match="package"):
            self.platform(stand_in, package=package)

    def test_environment_values_stay_out_of_the_documents(self, stand_in: Any) -> None:
        snapshot, handle, _ = self.start(stand_in)
        assert "hunter2" not in snapshot.model_dump_json() + handle.model_dump_json()


class TestZip(LambdaContract):
    """The same contract for a function whose code is a zip in a bucket."""

    def make_stand_in(self, world: World) -> StandIn:
        return AwsLambdaStandIn(world, package="Zip")

    def test_a_zip_that_is_live_is_left_alone(self, stand_in: Any, world: World) -> None:
        _, handle, _ = self.start(stand_in, self.release(OLD))
        assert not handle.changed
        assert world.calls_of(stand_in.kind, writes=True) == []


class TestModel(LambdaContract):
    """Every exchange of a release fits botocore's model."""

    @pytest.mark.parametrize(
        ("story", "package"),
        [("deploy", "Image"), ("deploy", "Zip"), ("fails", "Image"), ("never deployed", "Zip"), ("faults", "Zip")],
    )
    def test_every_exchange_fits_the_model(
        self, stand_in: Any, world: World, story: str, package: str, mode: str
    ) -> None:
        stand_in.package = package
        if story == "never deployed":
            stand_in.seed(RESOURCE, None)
        if story == "fails":
            world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        if story == "faults":
            world.call_faults.append(CallFault(stand_in.kind, "lost", operation="UpdateFunctionCode"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in, test_event={}), handle, mode)
        assert seen.state is (State.FAILED if story == "fails" else State.HEALTHY)
        self.undo(stand_in, release, snapshot, handle, mode)
        called = {exchange.operation for exchange in stand_in.exchanges}
        assert {"GetAlias", "GetFunction", "UpdateFunctionCode"} <= called
        assert ("DeleteAlias" in called) is (story == "never deployed")
        assert [line for exchange in stand_in.exchanges for line in problems(exchange)] == []


ZIP = ("deploy_then", "second_deploy", "makes_one_revision", "force", "never_ends", "in_mid_rollout", "failure_is_seen")
for _name in [name for name in vars(PlatformContract) if name.startswith("test_")]:
    setattr(TestModel, _name, None)  # not once more
    if not any(word in _name for word in ZIP):
        setattr(TestZip, _name, None)  # the same for both


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (Exchange("lambda", "UpdateAlias", {"Name": "live"}), "Missing required parameter"),
        (Exchange("lambda", "GetAlias", {"FunctionName": "f", "Name": "l", "Version": "1"}), "unknown"),
        (Exchange("lambda", "GetAlias", {"FunctionName": "f", "Name": "l"}, {"FunctionVersion": 1}), "Invalid type"),
        (Exchange("lambda", "GetAlias", {"FunctionName": "f", "Name": "l"}, {"Weight": 1}), "unknown"),
        (Exchange("lambda", "GetFunctionConfiguration", {"FunctionName": "f"}, {"State": "Done"}), "none of"),
        (Exchange("lambda", "GetAlias", {"FunctionName": "f", "Name": "l"}, error="NoSuchError"), "is no error of"),
        (Exchange("lambda", "GetAliass", {}), "unknown operation"),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchange: Exchange, words: str) -> None:
    assert any(words in line for line in problems(exchange)), problems(exchange)
