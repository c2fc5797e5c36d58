"""The ECS stand-in speaks what botocore's service model says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape
from botocore.session import Session
from botocore.validate import ParamValidator

from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.aws_ecs import AwsEcsStandIn, _error_body
from airflow_multideploy.sandbox.aws_ecs_api import CLUSTER
from airflow_multideploy.sandbox.server import Receive, Scope, Send
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import RESOURCE, PlatformContract

COMMON_ERRORS = {
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "ThrottlingException",
}
"""https://docs.aws.amazon.com/AmazonECS/latest/APIReference/CommonErrors.html"""


class Recorder(AwsEcsStandIn):
    """Keeps each request and response as they pass on the wire."""

    def __init__(self, world: World) -> None:
        self.exchanges: list[tuple[str, bytes, int, bytes]] = []
        super().__init__(world)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await receive()
        action = dict(scope["headers"])[b"x-amz-target"].decode().rpartition(".")[2]
        status, answer = 0, b""

        async def once() -> Any:
            return request

        async def keep(message: Any) -> None:
            nonlocal status, answer
            status = message.get("status", status)
            answer += message.get("body", b"")
            await send(message)

        await super()._app(scope, once, keep)
        self.exchanges.append((action, request["body"], status, answer))


def enums(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """Values that the model's enumerations do not know; botocore's validator does not look at them."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for name, member in value.items():
            if name in shape.members:
                yield from enums(shape.members[name], member, f"{path}.{name}")
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for item in value:
            yield from enums(shape.member, item, f"{path}[]")
    elif isinstance(shape, MapShape) and isinstance(value, dict):
        for item in value.values():
            yield from enums(shape.value, item, f"{path}{{}}")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value!r} is none of {shape.enum}"


def problems(model: ServiceModel, exchange: tuple[str, bytes, int, bytes]) -> list[str]:
    """What in one exchange does not fit the model: unknown or missing members, types, values, errors."""
    action, request, status, answer = exchange
    if action not in model.operation_names:
        return [f"unknown operation {action}"]
    operation, document = model.operation_model(action), json.loads(answer)
    found = _misfits(operation.input_shape, json.loads(request), f"{action} request")
    if status == 200:
        return found + _misfits(operation.output_shape, document, f"{action} answer")
    declared = {shape.name for shape in operation.error_shapes} | COMMON_ERRORS
    if document.get("__type") not in declared or set(document) != {"__type", "message"}:
        found.append(f"{action}: {status} {document} is no error of this operation")
    return found


def _misfits(shape: Shape, document: Any, where: str) -> list[str]:
    report = ParamValidator().validate(document, shape)
    return [f"{where}: {line}" for line in report.generate_report().splitlines()] + [
        f"{where}{line}" for line in enums(shape, document)
    ]


@pytest.fixture(scope="module")
def model() -> ServiceModel:
    return Session().get_service_model("ecs")


class TestContract(PlatformContract):
    """Runs releases as the conformance suite does, and looks at the wire. The suite itself runs elsewhere."""

    rollout_seconds = 0.2

    def make_stand_in(self, world: World) -> Recorder:
        return Recorder(world)

    @pytest.mark.parametrize("mode", ["sync", "async"])
    @pytest.mark.parametrize(
        "story", ["deploy", "fails", "ecs goes back", "never deployed", "stopped", "faults", "wrong calls"]
    )
    def test_every_exchange_fits_the_model(
        self, stand_in: Recorder, world: World, model: ServiceModel, story: str, mode: str
    ) -> None:
        getattr(self, story.replace(" ", "_"))(stand_in, world, mode)
        actions = {exchange[0] for exchange in stand_in.exchanges}
        assert {"DescribeServices"} <= actions
        if story == "stopped":
            assert {"StopServiceDeployment", "DescribeServiceDeployments", "DescribeServiceRevisions"} <= actions
        if story == "fails":
            assert {"ListTasks", "DescribeTasks", "RegisterTaskDefinition", "UpdateService"} <= actions
        assert [line for exchange in stand_in.exchanges for line in problems(model, exchange)] == []

    def deploy(self, stand_in: Recorder, world: World, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.undo(stand_in, release, snapshot, handle, mode)

    def fails(self, stand_in: Recorder, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, mode)

    def ecs_goes_back(self, stand_in: Recorder, world: World, mode: str) -> None:
        stand_in._api.services[RESOURCE].breaker = {"enable": True, "rollback": True}
        self.fails(stand_in, world, mode)

    def never_deployed(self, stand_in: Recorder, world: World, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        self.deploy(stand_in, world, mode)

    def stopped(self, stand_in: Recorder, world: World, mode: str) -> None:
        world.seconds = 60.0
        snapshot, handle, release = self.start(stand_in)
        self.platform(stand_in).observe(handle)
        world.seconds = self.rollout_seconds
        self.undo(stand_in, release, snapshot, handle, mode)

    def faults(self, stand_in: Recorder, world: World, mode: str) -> None:
        for answer in ("500", "429"):
            world.call_faults.append(CallFault(stand_in.kind, answer, operation="UpdateService", nth=1, retry_after=0))  # type: ignore[arg-type]
        self.deploy(stand_in, world, mode)
        # The injected answers are given in front of the recorder.
        stand_in.exchanges += [("UpdateService", b'{"service": "s"}', s, _error_body(s)[0]) for s in (500, 429)]

    def wrong_calls(self, stand_in: Recorder, world: World, mode: str) -> None:
        """The stand-in's own refusals are errors that the model knows."""
        import boto3
        from botocore.exceptions import ClientError

        stand_in_account = stand_in.connection()
        ecs = boto3.client(
            "ecs",
            region_name="eu-central-1",
            endpoint_url=stand_in.url,
            aws_access_key_id=stand_in_account["login"],
            aws_secret_access_key=stand_in_account["password"],
        )
        ecs.describe_services(cluster=CLUSTER, services=[RESOURCE, "nobody"])
        revision = ecs.list_service_deployments(service=RESOURCE, cluster=CLUSTER)["serviceDeployments"][0]
        place = {"cluster": CLUSTER, "service": RESOURCE}
        wrong: list[tuple[str, dict[str, Any], str]] = [
            ("update_service", {"cluster": "nowhere", "service": RESOURCE}, "ClusterNotFoundException"),
            ("update_service", {"cluster": CLUSTER, "service": "nobody"}, "ServiceNotFoundException"),
            ("update_service", {**place, "taskDefinition": "nothing:1"}, "ClientException"),
            ("describe_task_definition", {"taskDefinition": "nothing:1"}, "ClientException"),
            (
                "stop_service_deployment",
                {"serviceDeploymentArn": revision["serviceDeploymentArn"], "stopType": "ROLLBACK"},
                "ConflictException",
            ),
            ("stop_service_deployment", {"serviceDeploymentArn": "x"}, "ServiceDeploymentNotFoundException"),
        ]
        for operation, parameters, code in wrong:
            with pytest.raises(ClientError) as caught:
                getattr(ecs, operation)(**parameters)
            assert caught.value.response["Error"]["Code"] == code
        ecs.close()


for _name in [name for name in vars(PlatformContract) if name.startswith("test_")]:
    setattr(TestContract, _name, None)  # not a second time: tests/platforms runs them


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (("UpdateService", b'{"cluster": "c"}', 200, b"{}"), "Missing required parameter"),
        (("UpdateService", b'{"service": "s", "image": "x"}', 200, b"{}"), "Unknown parameter"),
        (("UpdateService", b'{"service": "s"}', 200, b'{"service": {"desiredCount": "two"}}'), "Invalid type"),
        (("DescribeServices", b'{"services": ["s"]}', 200, b'{"services": [{"state": "x"}]}'), "Unknown parameter"),
        (
            (
                "DescribeServices",
                b'{"services": []}',
                200,
                b'{"services": [{"deployments": [{"rolloutState": "DONE"}]}]}',
            ),
            "none of",
        ),
        (("UpdateService", b'{"service": "s"}', 400, b'{"__type": "NoSuchError", "message": "x"}'), "no error of"),
        (("UpdateService", b'{"service": "s"}', 500, b'{"error": "x"}'), "no error of"),
        (("DeployService", b"{}", 200, b"{}"), "unknown operation"),
    ],
)
def test_the_checker_refuses_what_does_not_fit(
    model: ServiceModel, exchange: tuple[str, bytes, int, bytes], words: str
) -> None:
    found = problems(model, exchange)
    assert any(words in line for line in found), found


def test_parameters_are_checked_by_the_server_too() -> None:
    """The SDK checks before it sends; the stand-in does not rely on that."""
    import httpx
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    stand_in = AwsEcsStandIn(World())
    stand_in.start()
    try:
        known = stand_in.connection()
        headers = {
            "X-Amz-Target": "AmazonEC2ContainerServiceV20141113.UpdateService",
            "Content-Type": "application/x-amz-json-1.1",
        }
        request = AWSRequest("POST", stand_in.url + "/", headers=headers, data=b'{"cluster": "c"}')
        SigV4Auth(Credentials(known["login"], known["password"]), "ecs", "eu-central-1").add_auth(request)
        answer = httpx.post(request.url, headers=dict(request.headers.items()), content=request.data)
        assert answer.status_code == 400
        assert answer.json()["__type"] == "InvalidParameterException"
        tampered = httpx.post(request.url, headers=dict(request.headers.items()), content=b'{"service": "s"}')
        assert tampered.json()["__type"] == "InvalidSignatureException"
        assert httpx.post(request.url, headers=headers, content=b"{}").json()["__type"] == (
            "MissingAuthenticationTokenException"
        )
    finally:
        stand_in.stop()
