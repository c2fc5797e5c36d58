"""A stand-in for Cloud Functions (API v2) and the corner of Cloud Storage that holds its packages.

Held to the discovery documents cloudfunctions.v2 and storage.v1. What it does on its own initiative:

- A deployment takes the time, and the outcome, that `World.course` says: a build, then a service, then all traffic.
- While it is under way the function is DEPLOYING and shows what was asked for; a second change is refused with 409
  ABORTED "unable to queue the operation", as the platform does, and there is no way to cancel it.
- A failed one ends its operation with code 3 and the build's words. The function is then FAILED, shows the source that
  failed and keeps its old revision; with ``forgets`` it is ACTIVE again and shows what it showed before.
- An operation's metadata holds the request merged into the function, as the platform's does.
- There is an object for each package whose name fits, until it is put into ``missing``; its generation is made up.
"""

from __future__ import annotations

import copy
import re
import threading
from dataclasses import dataclass, field
from typing import Any

from airflow_multideploy.sandbox.gcp_cloud_run import LOCATION, PROJECT
from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.google_api import ApiError, GoogleStandIn, Json, stamp

BUCKET = "releases"
_FUNCTION = "type.googleapis.com/google.cloud.functions.v2.Function"
_PARENT = f"projects/{PROJECT}/locations/{LOCATION}"


def object_of(resource: str, image: str) -> str:
    """The package that stands for an image."""
    return f"{resource}-{image.rpartition(':')[2]}.zip"


@dataclass
class Operation:
    """A change under way, or its end."""

    name: str
    verb: str
    target: str
    asked: Json
    began: float
    course: Course
    ended: float | None = None
    error: str = ""

    def document(self, now: float, function: Json | None) -> Json:
        share = self.course.progress(now - self.began) if self.ended is None else 1.0
        steps = ["COMPLETE" if share >= edge else "IN_PROGRESS" for edge in (0.5, 1.0)]
        if steps[0] == "IN_PROGRESS":
            steps[1] = "NOT_STARTED"
        stages: list[Json] = [{"name": n, "state": s} for n, s in zip(("BUILD", "SERVICE"), steps, strict=True)]
        if self.error:
            said = {
                "severity": "ERROR",
                "type": "CloudRunServiceNotFound",
                "message": "Cloud Run service was not found.",
            }
            stages[1]["stateMessages"] = [said]
        metadata: Json = {
            "@type": "type.googleapis.com/google.cloud.functions.v2.OperationMetadata",
            "createTime": stamp(self.began),
            "target": self.target,
            "verb": self.verb,
            "apiVersion": "v2",
            "cancelRequested": False,
            "stages": stages,
        }
        if self.asked:
            metadata["requestResource"] = {"@type": _FUNCTION, **self.asked}
        document: Json = {"name": self.name, "metadata": metadata, "done": self.ended is not None}
        if self.ended is not None:
            metadata["endTime"] = stamp(self.ended)
            if self.error:
                return document | {"error": {"code": 3, "message": self.error, "details": []}}
            if function is not None:
                document["response"] = {"@type": _FUNCTION, **function}
        return document


@dataclass
class Function:
    """One function."""

    shown: Json
    created: float
    state: str = "ACTIVE"
    messages: list[Json] = field(default_factory=list)
    revisions: list[tuple[str, str, bool]] = field(default_factory=list)  # name, object, by the API
    serving: str | None = None
    before: Json = field(default_factory=dict)
    pending: tuple[str, str] | None = None

    def document(self, now: float) -> Json:
        service = dict(self.shown.get("serviceConfig", {}))
        if self.serving:
            service["revision"] = self.serving
        else:
            service.pop("allTrafficOnLatestRevision", None)
        document = {**self.shown, "serviceConfig": service, "state": self.state, "environment": "GEN_2"}
        document |= {"createTime": stamp(self.created), "updateTime": stamp(now)}
        return document | ({"stateMessages": self.messages} if self.messages else {})


class GcpCloudFunctionsStandIn(GoogleStandIn):
    """Cloud Functions and Cloud Storage on a loopback port."""

    kind = "gcp_cloud_functions"
    documents = ("cloudfunctions.v2", "storage.v1")

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.lock = threading.RLock()
        self.functions: dict[str, Function] = {}
        self.operations: list[Operation] = []
        self.generations: dict[str, int] = {}
        self.missing: set[str] = set()
        self.forgets = False
        self.page = 100

    def methods(self) -> Any:
        prefix, of = "cloudfunctions.projects.locations.", self._locked
        return {
            f"{prefix}functions.get": of(self._get),
            f"{prefix}functions.create": of(self._create),
            f"{prefix}functions.patch": of(self._patch),
            f"{prefix}functions.delete": of(self._delete),
            f"{prefix}operations.get": of(self._operation),
            f"{prefix}operations.list": of(self._list),
            "storage.objects.get": of(self._object),
        }

    def _locked(self, call: Any) -> Any:
        def locked(params: dict[str, str], query: dict[str, str], body: Json) -> Json:
            with self.lock:
                self._settle()
                answer: Json = call(params, query, body)
                return answer

        return locked

    def target(self, resource: str) -> Json:
        return {
            "platform": self.kind,
            "project": PROJECT,
            "location": LOCATION,
            "function": resource,
            "package": f"gs://{BUCKET}/{resource}-${{version}}.zip",
            "runtime": "python312",
            "entry_point": "main",
            "timeout": 60.0,
            "rollback_timeout": 6.0,
        }

    # --- the methods

    def _function(self, params: dict[str, str]) -> tuple[str, Function]:
        path = f"projects/{params['projectsId']}/locations/{params['locationsId']}/functions/{params['functionsId']}"
        if path not in self.functions:
            raise ApiError("NOT_FOUND", f"Resource '{path}' was not found")
        return path, self.functions[path]

    def _get(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        return self._function(params)[1].document(self.world.now())

    def _create(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path = f"projects/{params['projectsId']}/locations/{params['locationsId']}/functions/{query['functionId']}"
        if path in self.functions:
            raise ApiError("ALREADY_EXISTS", f"Could not create Cloud Run service {path}. It already exists.")
        if not body.get("buildConfig", {}).get("runtime"):
            raise ApiError("INVALID_ARGUMENT", "Validation failed: runtime is required.")
        shown = {"name": path, "buildConfig": body["buildConfig"], "labels": body.get("labels", {})}
        self.functions[path] = Function(shown | {"serviceConfig": body.get("serviceConfig", {})}, self.world.now())
        return self._begin(path, "create")

    def _patch(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path, function = self._function(params)
        self._free(path)
        before, shown = copy.deepcopy(function.shown), copy.deepcopy(function.shown)
        for mask in query.get("updateMask", "").split(","):
            *way, last = mask.split(".")
            source: Any = body
            target: Any = shown
            for key in way:
                source, target = source.get(key, {}), target.setdefault(key, {})
            if last in source:
                target[last] = source[last]
            else:
                target.pop(last, None)
        if not shown["buildConfig"].get("source", {}).get("storageSource", {}).get("object"):
            raise ApiError("FAILED_PRECONDITION", "Precondition failed: no source.")
        function.before, function.shown = before, shown
        return self._begin(path, "update")

    def _begin(self, path: str, verb: str) -> Json:
        function, now = self.functions[path], self.world.now()
        stored = function.shown["buildConfig"]["source"]["storageSource"]
        revision = f"{path.rsplit('/', 1)[-1]}-{len(function.revisions) + 1:05d}-abc"
        function.revisions.append((revision, stored["object"], True))
        function.pending, function.state, function.messages = (revision, stored["object"]), "DEPLOYING", []
        course = self.world.course(self.kind, path.rsplit("/", 1)[-1])
        return self._keep(Operation("", verb, path, copy.deepcopy(function.shown), now, course))

    def _keep(self, operation: Operation) -> Json:
        operation.name = f"{_PARENT}/operations/operation-{len(self.operations) + 1}"
        self.operations.append(operation)
        return operation.document(self.world.now(), None)

    def _delete(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path, function = self._function(params)
        self._free(path)
        function.state = "DELETING"
        course = Course("succeeds", self.world.seconds / 4)
        return self._keep(Operation("", "delete", path, {}, self.world.now(), course))

    def _free(self, path: str) -> None:
        if self._running(path):
            raise ApiError("ABORTED", "unable to queue the operation")

    def _operation(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        for operation in self.operations:
            if operation.name.endswith(f"/{params['operationsId']}"):
                return self._shown(operation)
        raise ApiError("NOT_FOUND", f"operation {params['operationsId']} was not found")

    def _shown(self, operation: Operation) -> Json:
        now, function = self.world.now(), self.functions.get(operation.target)
        return operation.document(now, function.document(now) if function else None)

    def _list(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        start, size = int(query.get("pageToken", "0")), min(int(query["pageSize"]), self.page)
        shown = [self._shown(operation) for operation in self.operations[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(self.operations) else {}
        return ({"operations": shown} if shown else {}) | more

    def _object(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        name = params["object"]
        if params["bucket"] != BUCKET or not re.fullmatch(r"\w+-[\w.]+\.zip", name) or name in self.missing:
            raise ApiError("NOT_FOUND", f"No such object: {params['bucket']}/{name}")
        return {"generation": str(self.generation(name))}

    # --- time

    def generation(self, name: str) -> int:
        """The object's generation: made up once, and changed by whoever overwrites it."""
        return self.generations.setdefault(name, 1700000000000000 + len(self.generations))

    def _running(self, path: str) -> Operation | None:
        return next((o for o in self.operations if o.target == path and o.ended is None), None)

    def _settle(self) -> None:
        now = self.world.now()
        for operation in self.operations:
            if operation.ended is None and operation.course.done(now - operation.began):
                self.end(operation)

    def end(self, operation: Operation) -> None:
        """It ends now, as its course says; a hanging one by the build's time-out."""
        operation.ended = self.world.now()
        function = self.functions[operation.target]
        if operation.verb == "delete":
            del self.functions[operation.target]
        elif operation.course.outcome == "succeeds":
            self._serve(function, *(function.pending or ("", "")))
        else:
            words = operation.course.reason or "build timed out"
            operation.error = f"Build failed with status: FAILURE and message: {words}."
            function.pending = None
            if self.forgets and function.before:
                function.shown, function.state = function.before, "ACTIVE"
            else:
                function.state = "FAILED"
                function.messages = [{"severity": "ERROR", "type": "BuildFailed", "message": operation.error}]

    def _serve(self, function: Function, revision: str, name: str) -> None:
        stored = function.shown["buildConfig"]["source"]["storageSource"]
        resolved = {"generation": str(self.generation(name)), **stored}
        function.shown["buildConfig"]["sourceProvenance"] = {"resolvedStorageSource": resolved}
        function.shown.setdefault("serviceConfig", {})["allTrafficOnLatestRevision"] = True
        function.serving, function.state, function.messages, function.pending = revision, "ACTIVE", [], None

    # --- what tests do and see

    def seed(self, resource: str, image: str | None) -> None:
        path = f"{_PARENT}/functions/{resource}"
        with self.lock:
            self.functions.pop(path, None)
            self.operations = [o for o in self.operations if o.target != path]
            if image is not None:
                build = {"runtime": "python312", "entryPoint": "main", "build": "projects/1/locations/l/builds/b"}
                shown = {"name": path, "buildConfig": build, "labels": {"team": "shop"}, "serviceConfig": {}}
                self.functions[path] = Function(shown, self.world.now())
                self.meddle(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody deploys by hand, without a generation; labels stay. What was under way is over."""
        path, name = f"{_PARENT}/functions/{resource}", object_of(resource, image)
        with self.lock:
            self._settle()
            if (operation := self._running(path)) is not None:
                operation.ended = self.world.now()
            function = self.functions[path]
            function.shown["buildConfig"]["source"] = {"storageSource": {"bucket": BUCKET, "object": name}}
            revision = f"{resource}-{len(function.revisions) + 1:05d}-xyz"
            function.revisions.append((revision, name, False))
            self._serve(function, revision, name)

    def live(self, resource: str) -> Live:
        path = f"{_PARENT}/functions/{resource}"
        with self.lock:
            self._settle()
            function = self.functions.get(path)
            if function is None or function.serving is None:
                return Live(None, None, settled=self._running(path) is None)
            name = next(name for revision, name, _ in function.revisions if revision == function.serving)
            version = name.removeprefix(f"{resource}-").removesuffix(".zip")
            return Live(f"registry.example.com/{resource}:{version}", function.serving, self._running(path) is None)

    def revisions(self, resource: str) -> list[str]:
        function = self.functions.get(f"{_PARENT}/functions/{resource}")
        return [revision for revision, _, by_api in function.revisions if by_api] if function else []
