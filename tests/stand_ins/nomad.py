"""A stand-in for HashiCorp Nomad's HTTP API: jobs of type service, their versions, deployments and allocations.

``FIELDS`` says, in our own words, the part of Nomad's API schema (its OpenAPI document v1) that passes here; every
request and answer is held to it. What it does on its own initiative, as Nomad's source and documentation describe it:

- Registering makes a new version, unless the specification is the live one's; then nothing happens. With
  ``EnforceIndex`` the ``JobModifyIndex`` has to be the live one (0: there must be no job), else 500 and plain text.
- A version's deployment runs as `World.course` says. It ends ``successful``, or ``failed`` "due to unhealthy
  allocations", whose tasks' events hold the reason; with ``auto_revert`` Nomad then registers the version that was
  stable before. A newer version cancels it. Until it succeeds, the version before goes on serving.
- ``revert`` registers an older version anew, with its labels; a version that was forgotten is 500 "at version N not
  found", one that is live already is 500.
- Errors are plain text: 403 "Permission denied", 404 "job not found", 500 for nearly all else.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from airflow_multideploy.sandbox.server import Faults, Message, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Course, Live, World

Json = dict[str, Any]
KIND = "nomad"
_FILLED_IN = (
    "Status",
    "StatusDescription",
    "SubmitTime",
    "Version",
    "CreateIndex",
    "ModifyIndex",
    "JobModifyIndex",
    "Stable",
)

FIELDS: dict[str, dict[str, Any]] = {
    "JobRegisterRequest": {"Job": "Job", "EnforceIndex": bool, "JobModifyIndex": int},
    "JobRegisterResponse": {
        "EvalID": str,
        "EvalCreateIndex": int,
        "JobModifyIndex": int,
        "Index": int,
        "Warnings": str,
    },
    "JobRevertRequest": {"JobID": str, "JobVersion": int, "EnforcePriorVersion": int},
    "JobDeregisterResponse": {"EvalID": str, "EvalCreateIndex": int, "JobModifyIndex": int, "Index": int},
    "Job": {
        **dict.fromkeys(("ID", "Name", "Namespace", "Region", "Type", "Status", "StatusDescription"), str),
        **dict.fromkeys(("Priority", "SubmitTime", "Version", "CreateIndex", "ModifyIndex", "JobModifyIndex"), int),
        **{"Stable": bool, "Stop": bool, "Datacenters": [str], "Meta": {str}, "TaskGroups": ["TaskGroup"]},
        "Update": "UpdateStrategy",
    },
    "UpdateStrategy": {"MaxParallel": int, "AutoRevert": bool, "Canary": int},
    "TaskGroup": {"Name": str, "Count": int, "Tasks": ["Task"], "Update": "UpdateStrategy", "Meta": {str}},
    "Task": {"Name": str, "Driver": str, "Config": {object}, "Env": {str}, "Meta": {str}},
    "Deployment": {
        **dict.fromkeys(("ID", "JobID", "Namespace", "Status", "StatusDescription"), str),
        **dict.fromkeys(("JobVersion", "JobModifyIndex", "JobCreateIndex", "CreateIndex", "ModifyIndex"), int),
        "TaskGroups": {"DeploymentState"},
    },
    "DeploymentState": {
        **dict.fromkeys(("DesiredTotal", "PlacedAllocs", "HealthyAllocs", "UnhealthyAllocs", "DesiredCanaries"), int),
        **{"AutoRevert": bool, "Promoted": bool},
    },
    "AllocationListStub": {
        **dict.fromkeys(("ID", "JobID", "Namespace", "TaskGroup", "DesiredStatus", "ClientStatus", "NodeName"), str),
        **{"JobVersion": int, "ModifyTime": int, "CreateTime": int, "TaskStates": {"TaskState"}},
    },
    "TaskState": {"State": str, "Failed": bool, "Restarts": int, "Events": ["TaskEvent"]},
    "TaskEvent": {"Type": str, "Time": int, "DisplayMessage": str, "Message": str, "Details": {str}, "FailsTask": bool},
}
STATUSES = {
    ("Deployment", "Status"): {"running", "successful", "failed", "cancelled", "paused", "pending"},
    ("Job", "Status"): {"pending", "running", "dead"},
    ("Job", "Type"): {"service", "batch", "system", "sysbatch"},
    ("AllocationListStub", "ClientStatus"): {"pending", "running", "complete", "failed", "lost"},
    ("AllocationListStub", "DesiredStatus"): {"run", "stop", "evict"},
}
NULL = ("Meta", "Datacenters", "Events", "Env", "Update")
"""Fields that may be null: Go's nil."""
_JOB = r"/v1/job/(?P<id>[^/]+)"
ROUTES: tuple[tuple[str, str, str, str | None, Any, set[str]], ...] = (
    ("POST", "/v1/jobs", "register", "JobRegisterRequest", "JobRegisterResponse", set()),
    ("GET", _JOB, "read", None, "Job", set()),
    ("DELETE", _JOB, "stop", None, "JobDeregisterResponse", {"purge"}),
    ("POST", _JOB + "/revert", "revert", "JobRevertRequest", "JobRegisterResponse", set()),
    ("GET", _JOB + "/deployments", "deployments", None, ["Deployment"], set()),
    ("GET", _JOB + "/allocations", "allocations", None, ["AllocationListStub"], set()),
)


class Violation(AssertionError):
    """Something that the schema does not allow."""


class Refused(Exception):
    """What Nomad refuses with."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def check(kind: Any, value: Any, at: str) -> None:
    """Judge a value by ``FIELDS``.

    :param kind: a type, a name in ``FIELDS``, a list of one of them, or a set of one: a map with such values.
    """
    if isinstance(kind, list | set):
        (inner,) = kind
        if not isinstance(value, list if isinstance(kind, list) else dict):
            raise Violation(f"{at}: expected {kind}, got {value!r}")
        for key, item in enumerate(value) if isinstance(kind, list) else value.items():
            check(inner, item, f"{at}[{key}]")
    elif isinstance(kind, str):
        if not isinstance(value, dict):
            raise Violation(f"{at}: expected a {kind}, got {value!r}")
        for name, item in value.items():
            if name not in FIELDS[kind]:
                raise Violation(f"{at}.{name}: unknown")
            if not (item is None and name in NULL):
                check(FIELDS[kind][name], item, f"{at}.{name}")
            if (kind, name) in STATUSES and item not in STATUSES[kind, name]:
                raise Violation(f"{at}.{name}: {item!r} is none of its values")
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Violation(f"{at}: expected {kind}, got {value!r}")


@dataclass
class Rollout:
    """The deployment of one version."""

    version: int
    began: float
    course: Course
    index: int
    status: str = "running"
    words: str = "Deployment is running"


@dataclass
class Kept:
    """One job with its versions."""

    job: Json
    versions: dict[int, Json] = field(default_factory=dict)
    rollouts: list[Rollout] = field(default_factory=list)
    serving: int | None = None


class NomadStandIn:
    """Nomad on a loopback port.

    :param secret: the ACL token that every call needs.
    """

    kind = KIND

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret = world, secret
        self._server = Server(Faults(self._app, world, KIND, error_body=_error_body), port=port)
        self.url, self.port = self._server.url, self._server.port
        self.lock = threading.RLock()
        self.jobs: dict[str, Kept] = {}
        self.made: list[tuple[str, str]] = []
        self.index = 10
        self.seen: set[str] = set()
        self.violations: list[Exception] = []
        self.auto_revert = False

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def connection(self) -> Json:
        return {"conn_type": "http", "host": self.url, "password": self.secret}

    def specification(self, image: str) -> Json:
        """A job as a person writes it."""
        task = {
            "Name": "web",
            "Driver": "docker",
            "Config": {"image": image, "ports": ["http"]},
            "Env": {"MODE": "shop"},
        }
        sidecar = {"Name": "log", "Driver": "exec", "Config": {"command": "/bin/log"}}
        group = {"Name": "web", "Count": 2, "Tasks": [task, sidecar]}
        return {"Name": "shop", "Type": "service", "Datacenters": ["dc1"], "TaskGroups": [group]}

    def target(self, resource: str) -> Json:
        return {"platform": KIND, "job": resource, "specification": self.specification("registry.example.com/shop:0")}

    # --- HTTP

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        kind = b"application/json"
        try:
            with self.lock:
                self._settle()
                status, body = 200, json.dumps(self._served(scope, message.get("body", b""))).encode()
        except Refused as error:
            status, body, kind = error.status, str(error).encode(), b"text/plain; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _served(self, scope: Scope, raw: bytes) -> Any:
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        if headers.get("x-nomad-token") != self.secret:
            raise Refused(403, "Permission denied")
        path, query = scope["raw_path"].decode(), dict(parse_qsl(scope["query_string"].decode()))
        try:
            matching = ((route, re.fullmatch(route[1], path)) for route in ROUTES if route[0] == scope["method"])
            route, found = next((both for both in matching if both[1]), (None, None))
            if route is None or found is None:
                raise Violation(f"no route {scope['method']} {path}")
            _, _, name, wants, gives, params = route
            if unknown := set(query) - params - {"namespace", "region"}:
                raise Violation(f"{name}: unknown parameters {unknown}")
            if bool(raw) != bool(wants):
                raise Violation(f"{name}: a body is {'missing' if wants else 'not expected'}")
            body = json.loads(raw) if raw else {}
            if wants:
                check(wants, body, wants)
        except (Violation, ValueError) as error:
            self.violations.append(error)
            raise Refused(400, str(error)) from error
        job_id = unquote(found.groupdict().get("id", "")) or body.get("Job", {}).get("ID", "")
        answer = getattr(self, f"_{name}")(job_id, query, body)
        try:
            check(gives, answer, name)
        except Violation as error:
            self.violations.append(error)
            raise
        self.seen.add(name)
        return answer

    # --- the calls

    def _kept(self, job_id: str) -> Kept:
        if job_id not in self.jobs:
            raise Refused(404, "job not found")
        return self.jobs[job_id]

    def _read(self, job_id: str, query: Json, body: Json) -> Json:
        return copy.deepcopy(self._kept(job_id).job)

    def _register(self, job_id: str, query: Json, body: Json) -> Json:
        kept, job = self.jobs.get(job_id), body["Job"]
        if body.get("EnforceIndex"):
            asked, now = body.get("JobModifyIndex", 0), kept.job["JobModifyIndex"] if kept else 0
            if asked != now:
                why = "job already exists" if asked == 0 else "job does not exist" if kept is None else ""
                why = why or f"job exists with conflicting job modify index: {now}"
                raise Refused(500, f"Enforcing job modify index {asked}: {why}")
        if not job.get("TaskGroups"):
            raise Refused(500, "1 error occurred:\n\t* Missing job task groups")
        self.write(job_id, job, by_api=True)
        return self._answer(job_id) | {"Warnings": ""}

    def _answer(self, job_id: str) -> Json:
        modified = self.jobs[job_id].job["JobModifyIndex"] if job_id in self.jobs else self.index
        return {
            "EvalID": f"eval-{self.index}",
            "EvalCreateIndex": self.index,
            "JobModifyIndex": modified,
            "Index": self.index,
        }

    def _revert(self, job_id: str, query: Json, body: Json) -> Json:
        kept, version = self._kept(job_id), body["JobVersion"]
        now = kept.job["Version"]
        if version == now:
            raise Refused(500, "can't revert to current version")
        if version not in kept.versions:
            raise Refused(500, f'job "{job_id}" in namespace "default" at version {version} not found')
        if body.get("EnforcePriorVersion", now) != now:
            raise Refused(500, f"Current job has version {now}; enforcing version {body['EnforcePriorVersion']}")
        self.write(job_id, kept.versions[version], by_api=True)
        return self._answer(job_id) | {"Warnings": ""}

    def _stop(self, job_id: str, query: Json, body: Json) -> Json:
        kept = self._kept(job_id)
        self.index += 1
        if query.get("purge") == "true":
            del self.jobs[job_id]
        else:
            kept.job |= {"Stop": True, "Status": "dead", "JobModifyIndex": self.index}
            kept.serving = None
        return self._answer(job_id)

    def _deployments(self, job_id: str, query: Json, body: Json) -> list[Json]:
        kept = self._kept(job_id)
        return [self._deployment(job_id, kept, rollout) for rollout in kept.rollouts]

    def _deployment(self, job_id: str, kept: Kept, rollout: Rollout) -> Json:
        total = sum(group["Count"] for group in kept.versions[rollout.version]["TaskGroups"])
        healthy = total if rollout.status == "successful" else int(total * 0.5) if rollout.status == "running" else 0
        state = {"DesiredTotal": total, "PlacedAllocs": total, "HealthyAllocs": healthy, "DesiredCanaries": 0}
        state |= {"UnhealthyAllocs": int(rollout.status == "failed"), "AutoRevert": self.auto_revert, "Promoted": False}
        return {
            "ID": f"deployment-{rollout.index}",
            "JobID": job_id,
            "Namespace": "default",
            "JobVersion": rollout.version,
            "JobModifyIndex": rollout.index,
            "JobCreateIndex": kept.job["CreateIndex"],
            "CreateIndex": rollout.index,
            "ModifyIndex": self.index,
            "Status": rollout.status,
            "StatusDescription": rollout.words,
            "TaskGroups": {"web": state},
        }

    def _allocations(self, job_id: str, query: Json, body: Json) -> list[Json]:
        found = []
        for rollout in self._kept(job_id).rollouts:
            failed = rollout.status == "failed"
            events: list[Json] = [{"Type": "Received", "Time": 1, "DisplayMessage": "Task received by client"}]
            if failed:
                events.append({"Type": "Terminated", "Time": 2, "DisplayMessage": rollout.course.reason})
                events.append({"Type": "Not Restarting", "Time": 3, "DisplayMessage": "Exceeded allowed attempts 2"})
            state = {"State": "dead" if failed else "running", "Failed": failed, "Restarts": 0, "Events": events}
            stub = {"ID": f"alloc-{rollout.index}", "JobID": job_id, "Namespace": "default", "TaskGroup": "web"}
            stub |= {"JobVersion": rollout.version, "DesiredStatus": "run", "NodeName": "node-1"}
            stub |= {"ClientStatus": "failed" if failed else "running", "CreateTime": rollout.index}
            found.append(stub | {"ModifyTime": rollout.index, "TaskStates": {"web": state}})
        return found

    # --- versions and time

    def write(self, job_id: str, job: Json, *, by_api: bool, course: Course | None = None) -> None:
        """Register a version, and start rolling it out."""
        made = {k: copy.deepcopy(v) for k, v in job.items() if k not in _FILLED_IN}
        made |= {"ID": job_id, "Namespace": "default", "Region": "global", "Stop": False}
        made = {"Priority": 50, "Meta": None, "Update": {"MaxParallel": 1, "AutoRevert": self.auto_revert}} | made
        kept = self.jobs.get(job_id)
        self.index += 1
        if kept is not None and made == kept.versions[kept.job["Version"]] and not kept.job["Stop"]:
            return
        version = kept.job["Version"] + 1 if kept else 0
        kept = self.jobs.setdefault(job_id, Kept({"CreateIndex": self.index}))
        kept.versions[version] = made
        kept.job = {
            **copy.deepcopy(made),
            "Version": version,
            "CreateIndex": kept.job["CreateIndex"],
            "ModifyIndex": self.index,
            "JobModifyIndex": self.index,
            "SubmitTime": int(self.world.now() * 1e9),
            "Status": "running",
            "StatusDescription": "",
            "Stable": False,
        }
        for rollout in kept.rollouts:
            if rollout.status == "running":
                rollout.status, rollout.words = "cancelled", "Cancelled due to newer version of job"
        course = course or self.world.course(KIND, job_id)
        kept.rollouts.append(Rollout(version, self.world.now(), course, self.index))
        if by_api:
            self.made.append((job_id, str(version)))
        self._settle()

    def _settle(self) -> None:
        now = self.world.now()
        for job_id, kept in list(self.jobs.items()):
            for rollout in [r for r in kept.rollouts if r.status == "running" and r.course.done(now - r.began)]:
                self._end(job_id, kept, rollout)

    def _end(self, job_id: str, kept: Kept, rollout: Rollout) -> None:
        self.index += 1
        if rollout.course.outcome == "succeeds":
            rollout.status, rollout.words = "successful", "Deployment completed successfully"
            kept.serving, kept.job["Stable"] = rollout.version, True
            return
        rollout.status, rollout.words = "failed", "Failed due to unhealthy allocations"
        if self.auto_revert and kept.serving is not None and kept.serving != rollout.version:
            rollout.words += f" - rolling back to job version {kept.serving}"
            self.write(job_id, kept.versions[kept.serving], by_api=False, course=Course("succeeds", self.world.seconds))

    # --- what tests do and see

    def seed(self, resource: str, image: str | None) -> None:
        with self.lock:
            self.jobs.pop(resource, None)
            self.made = [one for one in self.made if one[0] != resource]
            if image is not None:
                self.write(resource, self.specification(image), by_api=False, course=Course("succeeds", 0))

    def meddle(self, resource: str, image: str) -> None:
        """Somebody edits the live job by hand, and keeps its Meta."""
        with self.lock:
            self._settle()
            job = copy.deepcopy(self.jobs[resource].job)
            job["TaskGroups"][0]["Tasks"][0]["Config"]["image"] = image
            self.write(resource, job, by_api=False, course=Course("succeeds", 0))

    def live(self, resource: str) -> Live:
        with self.lock:
            self._settle()
            kept = self.jobs.get(resource)
            if kept is None or kept.serving is None:
                return Live(None, None, settled=kept is None)
            image = kept.versions[kept.serving]["TaskGroups"][0]["Tasks"][0]["Config"]["image"]
            return Live(image, str(kept.serving), settled=all(r.status != "running" for r in kept.rollouts))

    def revisions(self, resource: str) -> list[str]:
        return [version for job_id, version in self.made if job_id == resource]


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    words = {400: "Bad request", 429: "Too Many Requests", 500: "No cluster leader"}.get(status, "error")
    return words.encode(), {"content-type": "text/plain; charset=utf-8"}
