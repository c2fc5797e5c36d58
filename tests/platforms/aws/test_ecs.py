"""The ECS adapter: the shared contract, and what only ECS does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.aws.ecs_judge import AGAIN
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.sandbox.aws_ecs import AwsEcsStandIn
from airflow_multideploy.sandbox.aws_ecs_api import CLUSTER, REGION
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract

DIGEST = "sha256:" + "0a" * 32
PINNED = f"registry.example.com/shop@{DIGEST}"


def client_of(stand_in: StandIn) -> Any:
    """What an administrator of the account would use."""
    known = stand_in.connection()
    return boto3.client(
        "ecs",
        region_name=REGION,
        endpoint_url=stand_in.url,
        aws_access_key_id=known["login"],
        aws_secret_access_key=known["password"],
    )


@pytest.fixture
def ecs(stand_in: StandIn) -> Iterator[Any]:
    client = client_of(stand_in)
    yield client
    client.close()


def breaker(ecs: Any, *, enable: bool, rollback: bool) -> None:
    configuration = {"deploymentCircuitBreaker": {"enable": enable, "rollback": rollback}}
    ecs.update_service(cluster=CLUSTER, service=RESOURCE, deploymentConfiguration=configuration)


def operations(world: World) -> list[str]:
    return [call.operation for call in world.calls]


class TestAwsEcs(PlatformContract):
    rollout_seconds = 0.2

    def make_stand_in(self, world: World) -> StandIn:
        return AwsEcsStandIn(world)

    # --- what ECS does by itself -------------------------------------------------------------------------------------

    def test_a_service_that_ecs_put_back_is_a_failed_release(
        self, stand_in: StandIn, world: World, ecs: Any, mode: str
    ) -> None:
        breaker(ecs, enable=True, rollback=True)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="CannotPullContainerError"))
        snapshot, handle, release = self.start(stand_in)
        time.sleep(0.5)
        ecs.get_waiter("services_stable").wait(cluster=CLUSTER, services=[RESOURCE])  # the waiter that lies
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "went back" in seen.reason
        assert "CannotPullContainerError" in seen.reason
        writes = len(world.calls_of(stand_in.kind, writes=True))
        self.undo(stand_in, release, snapshot, handle, mode)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_lost_answer_of_a_deploy_that_ecs_undid_is_its_failure(
        self, stand_in: StandIn, world: World, ecs: Any
    ) -> None:
        breaker(ecs, enable=True, rollback=True)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = self.start(stand_in)
        world.seconds = 400.0
        time.sleep(0.2)  # the breaker trips, and the way back stays under way
        again = self.platform(stand_in).deploy(release, snapshot)
        assert again.revision == handle.revision
        assert self.platform(stand_in).observe(again).state is State.FAILED
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_without_a_breaker_repeated_failures_end_it(
        self, stand_in: StandIn, world: World, ecs: Any, mode: str
    ) -> None:
        breaker(ecs, enable=False, rollback=False)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails", reason="OutOfMemoryError"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "failed" in seen.reason
        assert "OutOfMemoryError" in seen.reason
        self.undo(stand_in, release, snapshot, handle, mode)
        assert "StopServiceDeployment" in operations(world)
        assert stand_in.live(RESOURCE).image == OLD

    # --- rollback ----------------------------------------------------------------------------------------------------

    def test_a_rollout_under_way_is_stopped_once(self, stand_in: StandIn, world: World) -> None:
        world.seconds = 60.0
        snapshot, handle, release = self.start(stand_in)
        world.seconds = self.rollout_seconds
        first = self.platform(stand_in).rollback(release, snapshot, handle)
        second = self.platform(stand_in).rollback(release, snapshot, None)
        assert first.data["serviceDeployment"]
        assert operations(world).count("StopServiceDeployment") == 1
        assert operations(world).count("UpdateService") == 1
        assert {self.wait(self.platform(stand_in), back, "sync").state for back in (first, second)} == {State.HEALTHY}

    def test_without_permission_to_stop_it_updates(self, stand_in: StandIn, world: World, ecs: Any) -> None:
        world.seconds = 60.0
        snapshot, handle, release = self.start(stand_in)
        world.seconds = self.rollout_seconds
        platform = self.platform(stand_in)
        steps = platform._rollback(release, snapshot, handle)
        asked = []
        call = next(steps)
        while True:
            asked.append(call[0])
            try:
                if call[0] == "list_service_deployments":
                    call = steps.throw(platform.error("AccessDeniedException"))
                else:
                    call = steps.send(getattr(ecs, call[0])(**call[1]))
            except StopIteration as end:
                back = end.value
                break
        assert asked[-1] == "update_service"
        assert self.wait(platform, back, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_way_back_that_failed_is_tried_again(self, stand_in: StandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        assert self.wait(self.platform(stand_in), back, "sync").state is State.FAILED
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_deregistered_revision_is_restored_by_a_copy(self, stand_in: StandIn, ecs: Any, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        ecs.deregister_task_definition(taskDefinition=snapshot.revision)
        first = self.platform(stand_in).rollback(release, snapshot, handle)
        second = self.platform(stand_in).rollback(release, snapshot, handle)
        assert first.revision == second.revision != snapshot.revision
        assert self.wait(self.platform(stand_in), second, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == OLD
        assert len(stand_in.revisions(RESOURCE)) == 2

    def test_somebody_elses_work_is_not_overwritten_by_a_deploy(self, stand_in: StandIn, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert world.calls_of(stand_in.kind, writes=True) == []

    def test_a_rollout_of_somebody_else_is_waited_for(self, stand_in: StandIn, world: World, ecs: Any) -> None:
        world.seconds = 60.0
        ecs.update_service(cluster=CLUSTER, service=RESOURCE, forceNewDeployment=True)
        with pytest.raises(PlatformError, match="in progress") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, AGAIN)

    def test_a_fix_can_be_released_over_a_crash_loop(self, stand_in: StandIn, world: World, ecs: Any) -> None:
        breaker(ecs, enable=False, rollback=False)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        snapshot, fixed, release = self.start(stand_in, self.release(OTHER, "r1fix"))
        assert snapshot.image == OLD, "what serves, not what fails"
        assert self.wait(self.platform(stand_in), fixed, "sync").state is State.HEALTHY
        self.undo(stand_in, release, snapshot, fixed, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    # --- what is written ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("image", "force", "revisions"), [(PINNED, False, 0), (PINNED, True, 1), (OLD, False, 1)])
    def test_only_a_pinned_image_that_is_live_is_left_alone(
        self, stand_in: StandIn, world: World, image: str, force: bool, revisions: int
    ) -> None:
        stand_in.seed(RESOURCE, image)
        _, handle, _ = self.start(stand_in, self.release(image, force=force))
        assert handle.changed is bool(revisions)
        assert len(stand_in.revisions(RESOURCE)) == revisions
        assert bool(world.calls_of(stand_in.kind, writes=True)) is bool(revisions)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY

    def test_the_copy_differs_in_the_image_alone(self, stand_in: StandIn, ecs: Any) -> None:
        rich = rich_definition()
        live = ecs.register_task_definition(**rich, tags=[{"key": "team", "value": "shop"}])["taskDefinition"]
        ecs.update_service(cluster=CLUSTER, service=RESOURCE, taskDefinition=live["taskDefinitionArn"])
        time.sleep(0.3)
        _, handle, release = self.start(stand_in)
        answer = ecs.describe_task_definition(taskDefinition=handle.revision, include=["TAGS"])
        copy, tags = answer["taskDefinition"], {tag["key"]: tag["value"] for tag in answer["tags"]}
        assert tags == {"team": "shop", "multideploy:release": release.release_id, "multideploy:version": "1.1.0"}
        assert copy["containerDefinitions"][0].pop("image") == NEW
        assert live["containerDefinitions"][0].pop("image") == OLD
        for assigned in ("taskDefinitionArn", "revision"):
            assert live.pop(assigned) != copy.pop(assigned)
        assert copy == live

    def test_environment_values_stay_out_of_the_documents(self, stand_in: StandIn, ecs: Any) -> None:
        live = ecs.register_task_definition(**rich_definition())["taskDefinition"]["taskDefinitionArn"]
        ecs.update_service(cluster=CLUSTER, service=RESOURCE, taskDefinition=live)
        time.sleep(0.3)
        snapshot, handle, _ = self.start(stand_in)
        assert "hunter2" not in snapshot.model_dump_json() + handle.model_dump_json()

    @pytest.mark.parametrize(
        ("container", "image", "fits"),
        [
            (None, NEW, True),
            ("proxy", "registry.example.com/other:2", True),
            (None, "registry.example.com/other:2", False),
            ("nobody", NEW, False),
        ],
    )
    def test_which_container_gets_the_image(
        self, stand_in: StandIn, ecs: Any, container: str | None, image: str, fits: bool
    ) -> None:
        two = rich_definition()
        two["containerDefinitions"][1]["essential"] = True
        live = ecs.register_task_definition(**two)["taskDefinition"]["taskDefinitionArn"]
        ecs.update_service(cluster=CLUSTER, service=RESOURCE, taskDefinition=live)
        time.sleep(0.3)
        platform = self.platform(stand_in, container=container)
        snapshot = platform.snapshot()
        if not fits:
            with pytest.raises(PlatformError, match="it has app, proxy: name one in the target's 'container'"):
                platform.deploy(self.release(image), snapshot)
            return
        revision = platform.deploy(self.release(image), snapshot).revision
        written = ecs.describe_task_definition(taskDefinition=revision)["taskDefinition"]["containerDefinitions"]
        assert [c["name"] for c in written if c["image"] == image] == [container or "app"]

    # --- first-ever releases -----------------------------------------------------------------------------------------

    def test_a_service_at_zero_stays_there_unless_asked(self, stand_in: StandIn) -> None:
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, desired_count=None)
        handle = platform.deploy(self.release(), platform.snapshot())
        seen = self.wait(platform, handle, "sync")
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert "desired count is 0" in seen.reason

    def test_first_ever_release_is_taken_back_to_zero_tasks(self, stand_in: StandIn, ecs: Any) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        assert snapshot.revision is None
        self.undo(stand_in, release, snapshot, handle, "sync")
        service = ecs.describe_services(cluster=CLUSTER, services=[RESOURCE])["services"][0]
        assert (service["desiredCount"], service["runningCount"]) == (0, 0)
        assert service["taskDefinition"] == snapshot.data["taskDefinition"]

    # --- errors ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"service": "nobody"}, "create the service once"), ({"cluster": "nowhere"}, "ClusterNotFoundException")],
    )
    def test_what_is_missing_is_named(self, stand_in: StandIn, changes: dict[str, str], words: str) -> None:
        with pytest.raises(PlatformError, match=words) as caught:
            self.platform(stand_in, **changes).snapshot()
        assert not caught.value.retryable

    def test_a_service_of_code_deploy_is_refused(self, stand_in: StandIn, ecs: Any) -> None:
        ecs.create_service(
            cluster=CLUSTER,
            serviceName="foreign",
            taskDefinition=RESOURCE,
            desiredCount=1,
            launchType="FARGATE",
            deploymentController={"type": "CODE_DEPLOY"},
        )
        with pytest.raises(PlatformError, match="deployed by CODE_DEPLOY"):
            self.platform(stand_in, service="foreign").snapshot()

    def test_an_unknown_key_is_not_retryable(
        self, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps({**stand_in.connection(), "login": "nobody"}))
        platform = self.platform(stand_in)
        handle = Handle(action="deploy", revision="x")
        with pytest.raises(PlatformError, match="UnrecognizedClientException") as caught:
            asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        assert not caught.value.retryable

    def test_values_that_botocore_refuses_are_not_repeated(self, stand_in: StandIn) -> None:
        """What AWS said of a task definition is handed back to it, with whatever stands in its environment."""
        variable = {"name": "KEY", "value": {"k": "s3cret-canary"}}
        given = {"family": "f", "containerDefinitions": [{"name": "a", "image": "b", "environment": [variable]}]}

        def steps() -> Any:
            yield "register_task_definition", given

        with pytest.raises(PlatformError, match=r"environment\[0\].value") as raised:
            self.platform(stand_in)._run(steps())
        assert "s3cret" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__

    @pytest.mark.parametrize("connection", [None, {"extra": {}}, {"extra": {"endpoint_url": "http://192.0.2.1"}}])
    def test_a_connection_that_does_not_do_is_refused_before_any_call(
        self,
        stand_in: StandIn,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
        mode: str,
        connection: dict[str, Any] | None,
    ) -> None:
        for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AIRFLOW_CONN_CONTRACT"):
            monkeypatch.delenv(name, raising=False)
        if connection is not None:
            known = {**stand_in.connection(), **connection}
            if "endpoint_url" in known["extra"]:
                known["extra"]["region_name"] = REGION
            monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(known))
        platform = self.platform(stand_in)
        handle = Handle(action="deploy", revision="x")
        words = "no Airflow Connection|specify a region|plain http"
        with pytest.raises((PlatformError, SpecError), match=words) as caught:
            asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        assert not getattr(caught.value, "retryable", False)
        assert "sandbox-secret" not in repr(caught.value) + str(caught.value)
        assert world.calls == []

    @pytest.mark.parametrize(
        ("code", "status", "retryable"),
        [
            ("ThrottlingException", 400, True),
            ("ServerException", 500, True),
            ("ServiceUnavailable", 503, True),
            ("InvalidParameterException", 400, False),
            ("AccessDeniedException", 400, False),
            ("ExpiredTokenException", 403, False),
        ],
    )
    def test_error_codes(self, stand_in: StandIn, code: str, status: int, retryable: bool) -> None:
        answer: Any = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        with (
            pytest.raises(PlatformError, match=f"ECS UpdateService refused: {code}: words") as caught,
            self.platform(stand_in)._errors("update_service"),  # type: ignore[attr-defined]
        ):
            raise ClientError(answer, "UpdateService")
        assert caught.value.retryable is retryable

    def test_a_hanging_answer_does_not_confirm_anything(self, stand_in: StandIn, world: World) -> None:
        world.call_faults.append(CallFault(stand_in.kind, "hang", operation="DescribeServices", seconds=0.3))
        with pytest.raises(PlatformError, match="no usable answer") as caught:
            self.platform(stand_in).snapshot()
        assert caught.value.retryable


def rich_definition() -> dict[str, Any]:
    """A definition with much of what people use."""
    return {
        "family": RESOURCE,
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "512",
        "memory": "1024",
        "taskRoleArn": "arn:aws:iam::123456789012:role/app",
        "executionRoleArn": "arn:aws:iam::123456789012:role/execution",
        "runtimePlatform": {"cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX"},
        "ephemeralStorage": {"sizeInGiB": 30},
        "volumes": [{"name": "data", "efsVolumeConfiguration": {"fileSystemId": "fs-1", "rootDirectory": "/shop"}}],
        "containerDefinitions": [
            {
                "name": "app",
                "image": OLD,
                "essential": True,
                "command": ["serve"],
                "portMappings": [{"containerPort": 8080, "protocol": "tcp"}],
                "environment": [{"name": "PASSWORD", "value": "hunter2"}],
                "secrets": [{"name": "KEY", "valueFrom": "arn:aws:ssm:eu-central-1:123456789012:parameter/key"}],
                "healthCheck": {"command": ["CMD", "true"], "interval": 5},
                "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"}],
                "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "shop"}},
                "stopTimeout": 5,
            },
            {"name": "proxy", "image": "registry.example.com/proxy:1", "essential": False},
        ],
    }
