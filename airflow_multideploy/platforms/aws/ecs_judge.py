"""What the documents of the ECS API say about a rollout: pure functions, the same for boto3 and aiobotocore."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from airflow_multideploy.release.contract import Handle, Observation, Snapshot, State

Json = dict[str, Any]
AGAIN = 30.0
"""Seconds until the next look at a deployment of somebody else, whose end is waited for."""
UNDER_WAY = ("PENDING", "IN_PROGRESS")
"""States of a service deployment that can be stopped."""
GOING_BACK = ("ROLLBACK_REQUESTED", "ROLLBACK_IN_PROGRESS")
"""States of a service deployment that ECS is undoing."""
ANSWERS = {
    "describe_services": "services",
    "describe_task_definition": "taskDefinition",
    "list_task_definitions": "taskDefinitionArns",
    "register_task_definition": "taskDefinition",
    "update_service": "service",
    "list_tasks": "taskArns",
    "describe_tasks": "tasks",
    "list_service_deployments": "serviceDeployments",
    "describe_service_deployments": "serviceDeployments",
    "describe_service_revisions": "serviceRevisions",
    "stop_service_deployment": "serviceDeploymentArn",
}
"""Per operation the member that an answer has."""


def judge(handle: Handle, service: Json, tasks: Sequence[Json], stop: Json | None, failed_tasks: int) -> Observation:
    """How a rollout looks in these documents.

    Steady is not enough: a service is steady as well when ECS has gone back to the old revision. The handle's revision
    has to be the PRIMARY deployment's, and that deployment COMPLETED with its tasks running.

    :param tasks: stopped tasks of the handle's revision, the latest first; for the reason.
    :param stop: the service deployment that a rollback has stopped, while the service still shows the release.
    :param failed_tasks: see `AwsEcsConfig`.
    """
    primary, wanted = primary_of(service), wanted_by(handle)
    live = str(primary["taskDefinition"])
    if live != wanted:
        return _judge_elsewhere(handle, service, tasks, stop)
    if handle.data.get("removed"):
        return _judge_removed(service, live)
    return _judge_primary(service, primary, _reason(primary, tasks), failed_tasks)


def _judge_elsewhere(handle: Handle, service: Json, tasks: Sequence[Json], stop: Json | None) -> Observation:
    """Another revision than the handle's is the one that ECS goes for."""
    primary, wanted = primary_of(service), wanted_by(handle)
    live, mine = str(primary["taskDefinition"]), deployment_of(service, wanted)
    if handle.action == "rollback" and live == handle.data.get("from"):
        status = (stop or {}).get("status", "IN_PROGRESS")
        words = f"service deployment {status}: {(stop or {}).get('statusReason', '')}".rstrip(": ")
        going = status in (*UNDER_WAY, *GOING_BACK, "ROLLBACK_SUCCESSFUL")
        return Observation(state=State.PROGRESSING if going else State.FAILED, reason=words, revision=live)
    if mine is not None and mine.get("rolloutState") == "FAILED":
        return Observation(state=State.FAILED, reason=_reason(mine, tasks), revision=live)
    if handle.action == "deploy" and live == handle.data.get("previous"):
        if mine is None and not _went_back(service, handle):
            return Observation(state=State.PROGRESSING, reason="ECS does not show the deployment yet", revision=live)
        words = "; ".join(w for w in (f"ECS went back to {live}", _reason(primary, ()), _reason(mine, tasks)) if w)
        return Observation(state=State.FAILED, reason=words, revision=live)
    return Observation(state=State.SUPERSEDED, reason=f"{live} replaced {wanted}", revision=live)


def _judge_primary(service: Json, primary: Json, reason: str, failed_tasks: int) -> Observation:
    live, desired, running = str(primary["taskDefinition"]), primary["desiredCount"], primary["runningCount"]
    state = state_of(service)
    progress = min(1.0, running / desired) if desired else None
    configuration = service.get("deploymentConfiguration", {})
    if state == "FAILED":
        return Observation(state=State.FAILED, reason=reason, revision=live, progress=progress)
    if state == "COMPLETED":
        early = configuration.get("earlySuccessCriteria", {}).get("enable", False)
        if desired == 0:
            words = "the service's desired count is 0: no task runs, so nothing shows that the image starts"
            return Observation(state=State.HEALTHY, reason=words, revision=live, verified=False)
        if running >= desired or (early and running > 0):
            return Observation(state=State.HEALTHY, reason=reason, revision=live, progress=1.0)
    breaker = configuration.get("deploymentCircuitBreaker", {}).get("enable", False)
    failed = primary.get("failedTasks", 0)
    words = f"{running} of {desired} tasks run, {failed} failed; {reason}"
    gives_up = state == "IN_PROGRESS" and not breaker and failed >= failed_tasks
    state_now = State.FAILED if gives_up else State.PROGRESSING
    return Observation(state=state_now, reason=words, revision=live, progress=progress)


def state_of(service: Json) -> str:
    """Rollout state of the PRIMARY deployment: COMPLETED, IN_PROGRESS or FAILED.

    ECS reports it for rolling deployments without a Classic Load Balancer only; for the others it is derived.
    """
    primary = primary_of(service)
    alone = len(service["deployments"]) == 1 and not primary.get("pendingCount")
    derived = "COMPLETED" if alone and primary["runningCount"] >= primary["desiredCount"] else "IN_PROGRESS"
    return str(primary.get("rolloutState") or derived)


def _judge_removed(service: Json, live: str) -> Observation:
    """The way back from a first-ever release is done when no task of the release runs any more."""
    ours = sum(d.get("runningCount", 0) for d in service["deployments"] if d["taskDefinition"] != live)
    if ours or (service["desiredCount"] == 0 and service.get("runningCount", 0)):
        return Observation(state=State.PROGRESSING, reason=f"{ours} tasks of the release still run", revision=live)
    return Observation(state=State.HEALTHY, reason="no task of the release runs", revision=live)


def _went_back(service: Json, handle: Handle) -> bool:
    """Whether ECS knew our deployment and dropped it; else it does not show it yet (it is eventually consistent)."""
    primary, ours, written = primary_of(service), handle.data.get("deployment"), handle.data.get("written")
    if primary["id"] != handle.data.get("before"):
        return True
    updated = _epoch(primary.get("updatedAt"))
    told = any(ours and str(ours) in event.get("message", "") for event in service.get("events", []))
    return told or (isinstance(written, float) and updated is not None and updated > written)


def started(deployment: Json, snapshot: Snapshot) -> Handle:
    written = _epoch(deployment.get("createdAt"))
    data: Json = {
        "deployment": deployment.get("id"),
        "written": written,
        "previous": snapshot.data["primary"],
        "before": snapshot.data["deployment"],
    }
    return Handle(action="deploy", revision=deployment["taskDefinition"], data=data)


def primary_of(service: Json) -> Json:
    deployments: list[Json] = service["deployments"]
    return next((d for d in deployments if d.get("status") == "PRIMARY"), deployments[0])


def deployment_of(service: Json, arn: str) -> Json | None:
    return next((d for d in service["deployments"] if d["taskDefinition"] == arn), None)


def wanted_by(handle: Handle) -> str:
    return str(handle.data.get("taskDefinition") or handle.revision)


def _reason(deployment: Json | None, tasks: Sequence[Json]) -> str:
    """ECS's own words: of the deployment, of the last stopped task and of its containers."""
    words = [deployment.get("rolloutStateReason", "")] if deployment else []
    for task in tasks[:1]:
        words.append(f"task stopped: {task.get('stoppedReason', 'no reason given')}")
        for container in task.get("containers", []):
            if container.get("reason") or container.get("exitCode"):
                code = f"exit code {container['exitCode']}" if "exitCode" in container else ""
                words.append(f"{container.get('name')}: {container.get('reason', '')} {code}".strip())
    return "; ".join(word for word in words if word)


def container_for(definition: Json, name: str | None, image: str | None) -> Json | None:
    """The container that gets the image, or None when it is not clear which."""
    containers: list[Json] = definition["containerDefinitions"]
    if name is not None:
        return next((c for c in containers if c["name"] == name), None)
    fits = [c for c in containers if c.get("essential", True)]
    if len(fits) != 1 and image is not None:
        fits = [c for c in containers if _repository(c["image"]) == _repository(image)]
    return fits[0] if len(fits) == 1 else None


def _repository(image: str) -> str:
    name, _, _ = image.partition("@")
    path, slash, last = name.rpartition("/")
    return path + slash + last.partition(":")[0]


def images_of(definition: Json) -> dict[str, str]:
    """Image per container."""
    return {container["name"]: container["image"] for container in definition["containerDefinitions"]}


def copy_of(definition: Json, images: dict[str, str], tags: dict[str, str]) -> Json:
    """What RegisterTaskDefinition takes for the same definition with other images."""
    containers = [{**c, "image": images.get(c["name"], c["image"])} for c in definition["containerDefinitions"]]
    return {
        **{name: value for name, value in definition.items() if name in _registrable()},
        "containerDefinitions": containers,
        # Tags that AWS sets itself are refused.
        "tags": [{"key": key, "value": value} for key, value in tags.items() if not key.startswith("aws:")],
    }


@cache
def _registrable() -> frozenset[str]:
    """What RegisterTaskDefinition takes, as the installed SDK knows it: nothing of a definition is lost in the copy."""
    from botocore.session import Session

    shape = Session().get_service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    return frozenset(shape.members)


def _epoch(moment: Any) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else None
