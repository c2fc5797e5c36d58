"""Stand-in for AWS App Runner: services that run an image, whose updates take time and can fail.

Held to botocore's models of App Runner and CloudWatch Logs. What is ours, because a model says nothing about behaviour:

- while an operation is under way the service is ``OPERATION_IN_PROGRESS``, shows what is being applied, and refuses
  every other with ``InvalidStateException``; the old image serves until the new one is up;
- an update that fails is ``ROLLBACK_IN_PROGRESS`` for as long again, during which the service shows what it had before,
  and then ``ROLLBACK_SUCCEEDED``, and the service is ``RUNNING``, as if nothing had been;
- a service that never ran is ``CREATE_FAILED``, and stays so when its update fails.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.aws_wire import ACCOUNT, REGION, AwsError, AwsStandIn, Json

KIND = "aws_app_runner"
PLACEHOLDER = "public.ecr.aws/aws-containers/hello-app-runner:latest"


@dataclass
class Operation:
    """One operation of a service."""

    kind: str
    began: float
    course: Course
    before: Json
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "IN_PROGRESS"


@dataclass
class Service:
    """One service."""

    name: str
    source: Json
    status: str
    serving: str | None
    made: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    operations: list[Operation] = field(default_factory=list)

    @property
    def arn(self) -> str:
        return f"arn:aws:apprunner:{REGION}:{ACCOUNT}:service/{self.name}/{self.id}"

    @property
    def current(self) -> Operation | None:
        newest = self.operations[-1:]
        return newest[0] if newest and newest[0].status.endswith("IN_PROGRESS") else None


class AwsAppRunnerStandIn(AwsStandIn):
    """App Runner on loopback, with the logs that it writes."""

    kind = KIND
    services = ("apprunner", "logs")
    injected = {400: "InvalidRequestException", 429: "ThrottlingException"}

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self._known: dict[str, Service] = {}
        self.readable = True
        self.operations = {
            "ListServices": self._list_services,
            "DescribeService": lambda p: {"Service": self._shown(self._service(p))},
            "UpdateService": self._update_service,
            "PauseService": self._pause_service,
            "ListOperations": self._list_operations,
            "GetLogEvents": self._get_log_events,
        }

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this service, without ``conn_id``."""
        return {"platform": KIND, "service": resource}

    def seed(self, resource: str, image: str | None) -> None:
        """The service, running this image; None: one whose creation failed."""
        source = {
            "ImageRepository": {
                "ImageIdentifier": image or PLACEHOLDER,
                "ImageRepositoryType": "ECR",
                "ImageConfiguration": {"Port": "8080", "RuntimeEnvironmentVariables": {"PASSWORD": "hunter2"}},
            },
            "AutoDeploymentsEnabled": False,
            "AuthenticationConfiguration": {"AccessRoleArn": f"arn:aws:iam::{ACCOUNT}:role/ecr"},
        }
        with self._lock:
            status = "RUNNING" if image else "CREATE_FAILED"
            self._known[resource] = Service(resource, source, status, image, self.world.now())

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else changes the image in the console, at once."""
        with self._lock:
            service = self._known[resource]
            if service.current is not None:
                service.current.status = "SUCCEEDED"
            service.source["ImageRepository"]["ImageIdentifier"] = service.serving = image
            service.status = "RUNNING"

    def live(self, resource: str) -> Live:
        """What it serves, read from the state."""
        with self._lock:
            service = self._known[resource]
            self._advance(service)
            image = service.serving if service.status != "PAUSED" else None
            return Live(image=image, revision=image, settled=service.current is None)

    def revisions(self, resource: str) -> list[str]:
        """Ids of the updates that API calls started, oldest first."""
        return [o.id for o in self._known[resource].operations if o.kind == "UPDATE_SERVICE"]

    # --- state -------------------------------------------------------------------------------------------------------

    def _service(self, params: Json) -> Service:
        for service in self._known.values():
            if service.arn == params["ServiceArn"]:
                self._advance(service)
                return service
        raise AwsError("ResourceNotFoundException", f"Service with the provided arn not found: {params['ServiceArn']}")

    def _advance(self, service: Service) -> None:
        operation = service.current
        if operation is None:
            return
        elapsed = self.world.now() - operation.began
        if not operation.course.done(elapsed):
            return
        if not operation.course.failed(elapsed):
            operation.status = "SUCCEEDED"
            service.status = "PAUSED" if operation.kind == "PAUSE_SERVICE" else "RUNNING"
            service.serving = service.source["ImageRepository"]["ImageIdentifier"]
            return
        operation.status, service.source = "ROLLBACK_IN_PROGRESS", operation.before
        if elapsed >= 2 * operation.course.seconds:
            operation.status = "ROLLBACK_SUCCEEDED"
            service.status = "RUNNING" if service.serving else "CREATE_FAILED"

    def _begin(self, service: Service, kind: str, source: Json) -> Json:
        if service.current is not None:
            raise AwsError(
                "InvalidStateException", "Service cannot be updated in the current state: OPERATION_IN_PROGRESS"
            )
        operation = Operation(kind, self.world.now(), self.world.course(KIND, service.name), service.source)
        service.operations.append(operation)
        service.source, service.status = copy.deepcopy(source), "OPERATION_IN_PROGRESS"
        return {"Service": self._shown(service), "OperationId": operation.id}

    # --- operations --------------------------------------------------------------------------------------------------

    def _list_services(self, params: Json) -> Json:
        """Two to a page, so that somebody has to turn it."""
        others = [Service(f"other-{n}", {}, "RUNNING", None, 0.0) for n in range(3)]
        known, start = [*others, *self._known.values()], int(params.get("NextToken", 0))
        page = [{"ServiceName": s.name, "ServiceId": s.id, "ServiceArn": s.arn} for s in known[start : start + 2]]
        more = {"NextToken": str(start + 2)} if start + 2 < len(known) else {}
        return {"ServiceSummaryList": page, **more}

    def _update_service(self, params: Json) -> Json:
        service = self._service(params)
        return self._begin(service, "UPDATE_SERVICE", params.get("SourceConfiguration", service.source))

    def _pause_service(self, params: Json) -> Json:
        service = self._service(params)
        return self._begin(service, "PAUSE_SERVICE", service.source)

    def _list_operations(self, params: Json) -> Json:
        service = self._service(params)
        newest = list(reversed(service.operations))[: params.get("MaxResults", 100)]
        told = [
            {"Id": o.id, "Type": o.kind, "Status": o.status, "TargetArn": service.arn, "StartedAt": _moment(o.began)}
            for o in newest
        ]
        return {"OperationSummaryList": told}

    def _get_log_events(self, params: Json) -> Json:
        if not self.readable:
            raise AwsError("AccessDeniedException", "not authorized to perform: logs:GetLogEvents")
        stream = params["logStreamName"].removeprefix("deployment/")
        for service in self._known.values():
            if params["logGroupName"] == f"/aws/apprunner/{service.name}/{service.id}/service":
                for operation in service.operations:
                    if operation.id == stream:
                        told = [f"[AppRunner] {operation.course.reason}", "[AppRunner] Deployment failed."]
                        return {"events": [{"timestamp": 0, "message": words} for words in told]}
        raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")

    def _shown(self, service: Service) -> Json:
        scaling: Any = {"AutoScalingConfigurationName": "DefaultConfiguration", "AutoScalingConfigurationRevision": 1}
        return {
            "ServiceName": service.name,
            "ServiceId": service.id,
            "ServiceArn": service.arn,
            "ServiceUrl": f"{service.id}.{REGION}.awsapprunner.com",
            "CreatedAt": _moment(service.made),
            "UpdatedAt": _moment(service.made),
            "Status": service.status,
            "SourceConfiguration": copy.deepcopy(service.source),
            "InstanceConfiguration": {"Cpu": "1024", "Memory": "2048"},
            "AutoScalingConfigurationSummary": scaling,
            "NetworkConfiguration": {"EgressConfiguration": {"EgressType": "DEFAULT"}},
        }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
