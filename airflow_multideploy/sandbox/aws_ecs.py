"""Stand-in for Amazon ECS: moto's task definitions, clusters and tags, with rollouts that take time and can fail.

From moto: RegisterTaskDefinition, DescribeTaskDefinition, ListTaskDefinitions, tags, clusters, STS, and the static part
of a service. Ours, on our own initiative where botocore's model (shape only) does not tell: UpdateService, the
``deployments`` of a service, its stopped tasks, service deployments and revisions, and

- a rolling deployment replaces tasks evenly over the scripted time; the old revision serves until the new one is done;
- a failing rollout loses three tasks in half that time; then the circuit breaker (seeded as enabled, without rollback;
  change it with UpdateService) ends it as FAILED, and with ``rollback`` ECS goes back in a quarter of the time;
- StopServiceDeployment starts the way back at once, as a deployment like any other;
- request signatures (SigV4) are verified; a wrong key id or secret is answered with status 400, as by AWS's JSON APIs;
- parameters are checked against the model's required members and types;
- an injected 429 has the status 429, where the real ECS throttles with 400 and the same ``ThrottlingException``.

Each instance has an account of its own in moto, so that instances in one process share nothing.
"""

from __future__ import annotations

import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

from airflow_multideploy.sandbox.aws_ecs_api import CLUSTER, REGION, ApiError, EcsApi
from airflow_multideploy.sandbox.aws_ecs_rollouts import KIND, Json, Service
from airflow_multideploy.sandbox.server import Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Live, World

if TYPE_CHECKING:
    import trustme

ACCESS_KEY, DESIRED = "sandbox-key", 2
PLACEHOLDER = "public.ecr.aws/docker/library/busybox:stable"
JSON = "application/x-amz-json-1.1"
_WRITES = (
    "Create",
    "Update",
    "Delete",
    "Register",
    "Deregister",
    "Stop",
    "Run",
    "Start",
    "Put",
    "Tag",
    "Untag",
    "Submit",
)
_accounts = itertools.count(100_000_000_000)


class AwsEcsStandIn:
    """ECS on loopback, over plain http.

    :param ca: not needed.
    :param secret: the secret access key of the only user.
    """

    kind = KIND

    def __init__(
        self, world: World, *, port: int = 0, ca: trustme.CA | None = None, secret: str = "sandbox-secret"
    ) -> None:
        from botocore.session import Session
        from botocore.validate import ParamValidator
        from moto.ecs.models import ecs_backends
        from moto.moto_server.werkzeug_app import create_backend_app
        from werkzeug.test import Client

        self.world, self._secret = world, secret
        self.account = str(next(_accounts))
        self._lock = threading.RLock()
        self._model, self._validator = Session().get_service_model("ecs"), ParamValidator()
        self._api = EcsApi(self.account, world, self._moto_json)
        self._by_hand: set[str] = set()
        self._moto = {name: Client(create_backend_app(name)) for name in ("ecs", "sts")}
        self._backend = ecs_backends[self.account][REGION]
        self._backend.create_cluster(CLUSTER)
        self._server = Server(Faults(self._app, world, KIND, describe=_describe, error_body=_error_body), port=port)
        self.url = self._server.url

    def start(self) -> None:
        """Serve on loopback."""
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection that leads here."""
        extra = {"region_name": REGION, "endpoint_url": self.url}
        return {"conn_type": "aws", "login": ACCESS_KEY, "password": self._secret, "extra": extra}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a target on this service, without ``conn_id``."""
        return {"platform": KIND, "cluster": CLUSTER, "service": resource, "desired_count": DESIRED}

    def seed(self, resource: str, image: str | None) -> None:
        """The service, running two tasks of this image; None: a placeholder with a desired count of zero."""
        desired = 0 if image is None else DESIRED
        with self._lock:
            definition = self._define(resource, image or PLACEHOLDER)
            self._backend.create_service(CLUSTER, resource, desired, definition, launch_type="FARGATE")
            service = self._api.services[resource] = Service(resource, self.world, desired)
            service.settle(definition)
            if image is None:
                service.serving = None

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else deploys this image by hand, at once."""
        with self._lock:
            service = self._api.services[resource]
            service.advance()
            service.settle(self._define(resource, image))

    def live(self, resource: str) -> Live:
        """What it serves, read from the state."""
        with self._lock:
            service = self._api.services[resource]
            service.advance()
            serving = service.serving if service.desired else None
            definition = self._backend.describe_task_definition(serving) if serving else None
            image = str(definition.container_definitions[0]["image"]) if definition else None
            return Live(image=image, revision=serving, settled=service.primary.state != "IN_PROGRESS")

    def revisions(self, resource: str) -> list[str]:
        """Task definitions that API calls registered in the family of this name, oldest first."""
        with self._lock:
            known = self._backend.task_definitions.get(resource, {})
            return [known[n].arn for n in sorted(known) if known[n].arn not in self._by_hand]

    def _define(self, family: str, image: str) -> str:
        container = {"name": "app", "image": image, "essential": True, "portMappings": [{"containerPort": 8080}]}
        definition = self._backend.register_task_definition(
            family, [container], network_mode="awsvpc", requires_compatibilities=["FARGATE"], cpu="256", memory="512"
        )
        self._by_hand.add(definition.arn)
        return str(definition.arn)

    # --- the wire ----------------------------------------------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        with self._lock:
            try:
                self._authenticate(scope, headers, body)
                status, answer, kind = self._dispatch(headers, body)
            except ApiError as error:
                status, answer, kind = 400, error.body, JSON
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": answer})

    def _authenticate(self, scope: Scope, headers: dict[str, str], body: bytes) -> None:
        """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-signing-elements.html"""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        parts = dict(
            p.strip().split("=", 1) for p in headers.get("authorization", "").partition(" ")[2].split(",") if p
        )
        scopes = parts.get("Credential", "").split("/")
        if len(scopes) != 5 or "x-amz-date" not in headers:
            raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token")
        if scopes[0] != ACCESS_KEY:
            raise ApiError("UnrecognizedClientException", "The security token included in the request is invalid.")
        signed = {name: headers.get(name, "") for name in parts["SignedHeaders"].split(";")}
        request = AWSRequest(scope["method"], self.url + scope["path"], headers=signed, data=body)
        request.context["timestamp"] = headers["x-amz-date"]
        auth = SigV4Auth(Credentials(ACCESS_KEY, self._secret), scopes[3], scopes[2])
        expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        if expected != parts.get("Signature"):
            raise ApiError(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. "
                "Check your AWS Secret Access Key and signing method.",
            )

    def _dispatch(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        if not action:
            return self._ask_moto(headers, body)
        try:
            params = json.loads(body)
        except ValueError:
            raise ApiError("SerializationException", "the body is no JSON document") from None
        if action not in self._model.operation_names:
            raise ApiError("UnknownOperationException", f"no operation {action}")
        report = self._validator.validate(params, self._model.operation_model(action).input_shape)
        if report.has_errors():
            raise ApiError("InvalidParameterException", report.generate_report())
        handler = self._api.operations.get(action)
        if handler is None:
            return self._ask_moto(headers, body)
        return 200, json.dumps(handler(params)).encode(), JSON

    def _ask_moto(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        kept = {
            k: v for k, v in headers.items() if k in ("x-amz-target", "content-type", "authorization", "x-amz-date")
        }
        service = "ecs" if "x-amz-target" in headers else "sts"
        answer = self._moto[service].post(
            "/",
            base_url=f"https://{service}.{REGION}.amazonaws.com",
            data=body,
            headers={**kept, "x-moto-account-id": self.account},
        )
        status, document, kind = answer.status_code, answer.get_data(), answer.headers.get("content-type", JSON)
        if status != 200 and service == "ecs":  # moto gives the message twice, in two spellings
            error = json.loads(document)
            document = ApiError(str(error.get("__type", "ClientException")), str(error.get("message", ""))).body
        return status, document, kind

    def _moto_json(self, action: str, params: Json) -> Json:
        scope = f"Credential={ACCESS_KEY}/20250101/{REGION}/ecs/aws4_request"
        headers = {
            "x-amz-target": f"AmazonEC2ContainerServiceV20141113.{action}",
            "content-type": JSON,
            "authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0",
        }
        status, body, _ = self._ask_moto(headers, json.dumps(params).encode())
        answer: Json = json.loads(body)
        if status != 200:
            raise ApiError(str(answer.get("__type", "ClientException")), str(answer.get("message", "")))
        return answer


def _describe(scope: Scope, body: bytes) -> tuple[str, bool]:
    """The action, as in ``UpdateService``."""
    target = next((v.decode() for k, v in scope["headers"] if k.lower() == b"x-amz-target"), "")
    action = target.rpartition(".")[2] or f"{scope['method']} {scope['path']}"
    return action, action.startswith(_WRITES)


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    """An injected fault in ECS's own words."""
    words = {400: ("ClientException", "Not now"), 429: ("ThrottlingException", "Rate exceeded")}
    return ApiError(*words.get(status, ("ServerException", "Service Unavailable"))).body, {"content-type": JSON}
