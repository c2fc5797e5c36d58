"""The state of the Cloud Run stand-in: services, revisions, operations, and how they change with time.

Documents are in the API's JSON form (camel case, enums by name); REST and gRPC translate from and to it.
"""

from __future__ import annotations

import base64
import copy
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_multideploy.sandbox.world import Course

KIND = "gcp_cloud_run"
LATEST, BY_NAME = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"
SERVICE_TYPE = "type.googleapis.com/google.cloud.run.v2.Service"
Json = dict[str, Any]

MUTABLE = frozenset(
    {"annotations", "binaryAuthorization", "buildConfig", "client", "clientVersion", "customAudiences", "description"}
    | {"defaultUriDisabled", "iapEnabled", "ingress", "invokerIamDisabled", "labels", "launchStage", "scaling"}
    | {"multiRegionSettings", "template", "traffic"}
)


class ApiError(Exception):
    """Refused, with a canonical code of google.rpc.Code by name."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


def stamp(at: float) -> str:
    """RFC 3339, as the API writes times."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _condition(kind: str, state: str, at: float, message: str = "", *, revision: bool = False) -> Json:
    condition: Json = {"type": kind, "state": state, "lastTransitionTime": stamp(at)}
    if message:
        condition["message"] = message
    if state == "CONDITION_FAILED" and revision:
        condition["revisionReason"] = "HEALTH_CHECK_CONTAINER_ERROR"
    return condition


@dataclass
class Revision:
    """One immutable revision; it becomes ready, or fails, by its own course."""

    name: str
    template: Json
    started: float
    course: Course
    by_api: bool = True
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def state(self, now: float) -> str:
        """CONDITION_RECONCILING, CONDITION_SUCCEEDED or CONDITION_FAILED."""
        elapsed = now - self.started
        if self.course.failed(elapsed):
            return "CONDITION_FAILED"
        return "CONDITION_SUCCEEDED" if self.course.done(elapsed) else "CONDITION_RECONCILING"

    def document(self, parent: str, now: float) -> Json:
        """The revision resource."""
        state = self.state(now)
        message = self.course.reason if state == "CONDITION_FAILED" else ""
        spec = {k: v for k, v in self.template.items() if k not in ("revision", "healthCheckDisabled")}
        return spec | {
            "name": f"{parent}/revisions/{self.name}",
            "uid": self.uid,
            "generation": "1",
            "observedGeneration": "1",
            "createTime": stamp(self.started),
            "updateTime": stamp(self.started),
            "launchStage": "GA",
            "service": parent.rsplit("/", 1)[-1],
            "conditions": [_condition("Ready", state, self.started, message, revision=True)],
            "reconciling": state == "CONDITION_RECONCILING",
            "etag": f'"{self.uid[:8]}"',
        }

    @property
    def image(self) -> str:
        """The image of its first container."""
        return str(self.template["containers"][0]["image"])


@dataclass
class Service:
    """One service; `settle` brings it up to a moment."""

    path: str
    spec: Json
    created: float
    uri: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    generation: int = 0
    observed: int = 0
    updated: float = 0.0
    deleted: float | None = None
    revisions: dict[str, Revision] = field(default_factory=dict)
    latest_created: str = ""
    latest_ready: str = ""
    serving: list[Json] = field(default_factory=list)
    rollout: tuple[float, Course] | None = None
    error: str = ""

    @property
    def etag(self) -> str:
        """Changes with every write and with every end of a reconciliation."""
        raw = f"{self.uid}/{self.generation}/{self.observed}/{bool(self.rollout)}/{self.deleted}"
        return f'"{base64.b64encode(raw.encode()).decode()}"'

    def resolve(self, target: Json) -> str:
        """The revision that a traffic target stands for."""
        return str(target.get("revision") or self.latest_ready)

    def settle(self, now: float) -> None:
        """End the reconciliation under way if its time has come."""
        if self.rollout is None:
            return
        started, course = self.rollout
        elapsed = now - started
        latest = self.revisions.get(self.latest_created)
        if latest is not None and latest.state(now) == "CONDITION_SUCCEEDED":
            self.latest_ready = latest.name
        if course.failed(elapsed):
            self.rollout, self.error = None, self._unready(now) or course.reason
        elif course.done(elapsed):
            states = {self.revisions[r].state(now) for t in self.spec["traffic"] if (r := self.resolve(t))}
            if "CONDITION_FAILED" in states:
                self.rollout, self.error = None, self._unready(now)
            elif "CONDITION_RECONCILING" not in states:
                self.rollout, self.error, self.observed = None, "", self.generation
                self.serving = [copy.deepcopy(t) for t in self.spec["traffic"]]

    def _unready(self, now: float) -> str:
        for target in self.spec["traffic"]:
            revision = self.revisions.get(self.resolve(target) or self.latest_created)
            if revision is not None and revision.state(now) == "CONDITION_FAILED":
                return f"Revision '{revision.name}' is not ready and cannot serve traffic. {revision.course.reason}"
        return ""

    def document(self, now: float) -> Json:
        """The service resource at this moment."""
        self.settle(now)
        latest = self.revisions.get(self.latest_created)
        configured = latest.state(now) if latest else "CONDITION_RECONCILING"
        routed = (
            "CONDITION_RECONCILING" if self.rollout else "CONDITION_FAILED" if self.error else "CONDITION_SUCCEEDED"
        )
        ready = "CONDITION_SUCCEEDED"
        for state in ("CONDITION_FAILED", "CONDITION_RECONCILING"):  # the later one wins
            ready = state if state in (configured, routed) else ready
        said = latest.course.reason if latest and configured == "CONDITION_FAILED" else ""
        document = self.spec | {
            "name": self.path,
            "uid": self.uid,
            "generation": str(self.generation),
            "observedGeneration": str(self.observed),
            "createTime": stamp(self.created),
            "updateTime": stamp(self.updated),
            "creator": "sandbox@example.com",
            "lastModifier": "sandbox@example.com",
            "launchStage": "GA",
            "ingress": self.spec.get("ingress", "INGRESS_TRAFFIC_ALL"),
            "terminalCondition": _condition(
                "Ready", ready, self.updated, (self.error or said) if ready == "CONDITION_FAILED" else "", revision=True
            ),
            "conditions": [
                _condition("RoutesReady", routed, self.updated, self.error, revision=bool(said)),
                _condition("ConfigurationsReady", configured, self.updated, said, revision=True),
            ],
            "trafficStatuses": [self._status(target) for target in self.serving],
            "uri": self.uri,
            "urls": [self.uri],
            "reconciling": ready == "CONDITION_RECONCILING",
            "etag": self.etag,
            "latestCreatedRevision": f"{self.path}/revisions/{self.latest_created}",
        }
        if self.latest_ready:
            document["latestReadyRevision"] = f"{self.path}/revisions/{self.latest_ready}"
        if self.deleted is not None:
            document["deleteTime"] = stamp(self.deleted)
        return copy.deepcopy(document)

    def _status(self, target: Json) -> Json:
        return target | ({"uri": f"{self.uri}/{target['tag']}"} if target.get("tag") else {})


def _path_of(mask: str) -> list[str]:
    camel = re.sub(r"_([a-z])", lambda m: m.group(1).upper(), mask.strip())
    return camel.split(".")


def apply_mask(spec: Json, change: Json, mask: str) -> Json:
    """A copy of the spec with the masked fields of the change; an empty mask replaces every mutable field."""
    if not mask:
        return {k: copy.deepcopy(v) for k, v in change.items() if k in MUTABLE}
    result = copy.deepcopy(spec)
    for path in map(_path_of, mask.split(",")):
        if path[0] not in MUTABLE:
            raise ApiError("INVALID_ARGUMENT", f"update_mask: {'.'.join(path)} is not a field that can be updated")
        source: Any = change
        target = result
        for key in path[:-1]:
            source, target = source.get(key, {}), target.setdefault(key, {})
        if path[-1] in source:
            target[path[-1]] = copy.deepcopy(source[path[-1]])
        else:
            target.pop(path[-1], None)
    return result


@dataclass
class Operation:
    """A long-running operation: done when its service reached, or left, the generation it asked for."""

    name: str
    service: Service
    generation: int

    def document(self, now: float) -> Json:
        """The operation resource."""
        service = self.service.document(now)
        document: Json = {"name": self.name, "metadata": {"@type": SERVICE_TYPE} | service}
        if self.service.generation == self.generation and self.service.rollout is not None:
            return document | {"done": False}
        if self.service.error and self.service.generation == self.generation:
            return document | {"done": True, "error": {"code": 9, "message": self.service.error}}
        return document | {"done": True, "response": {"@type": SERVICE_TYPE} | service}
