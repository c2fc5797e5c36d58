"""A stand-in for App Engine (Admin API v1) and the corner of Cloud Storage that holds its packages.

Held to the discovery documents appengine.v1 and storage.v1. What it does on its own initiative:

- Creating a version takes half of a rollout's time, and goes as `World.course` says; moving the traffic the other half.
- A version is there, and SERVING, when its creation has ended well; with ``early`` it can be read before. A failed one
  leaves nothing behind: its operation ends with code 9 and the build's words.
- The first version of a service brings the service into being, with all traffic.
- A second operation on a version or service while one is under way is 409 ABORTED "Cannot operate on …".
- An existing version that is created again is replaced. A version in the split cannot be deleted, nor can ``default``.
"""

from __future__ import annotations

import copy
import re
import threading
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_multideploy.sandbox.gcp_cloud_run import PROJECT
from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.google_api import ApiError, GoogleStandIn, Json, stamp

BUCKET = "releases"
APP = f"apps/{PROJECT}"
_URL = f"https://storage.googleapis.com/{BUCKET}/"


@dataclass
class Operation:
    """A change under way, or its end."""

    name: str
    method: str
    target: str
    wanted: Any
    began: float
    course: Course
    ended: float | None = None
    error: str = ""

    def document(self) -> Json:
        metadata: Json = {
            "@type": "type.googleapis.com/google.appengine.v1.OperationMetadataV1",
            "method": f"google.appengine.v1.{self.method}",
            "insertTime": stamp(self.began),
            "target": self.target,
            "user": "sandbox@example.com",
        }
        document: Json = {"name": self.name, "metadata": metadata}
        if self.ended is None:
            return document
        metadata["endTime"] = stamp(self.ended)
        end = {"error": {"code": 9, "message": self.error}} if self.error else {"response": {}}
        return document | {"done": True} | end


@dataclass
class Service:
    """One service and its versions."""

    versions: dict[str, Json] = field(default_factory=dict)
    split: Json = field(default_factory=dict)


class GcpAppEngineStandIn(GoogleStandIn):
    """App Engine and Cloud Storage on a loopback port."""

    kind = "gcp_app_engine"
    documents = ("appengine.v1", "storage.v1")

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.lock = threading.RLock()
        self.services: dict[str, Service] = {}
        self.operations: list[Operation] = []
        self.made: list[tuple[str, str]] = []
        self.missing: set[str] = set()
        self.early = False

    def methods(self) -> Any:
        calls = {
            "services.get": self._get,
            "services.patch": self._patch,
            "services.delete": self._delete,
            "services.versions.get": self._version,
            "services.versions.list": self._versions,
            "services.versions.create": self._create,
            "operations.get": self._operation,
            "operations.list": self._list,
        }
        named = {f"appengine.apps.{name}": self._locked(call) for name, call in calls.items()}
        return named | {"storage.objects.get": self._locked(self._object)}

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
            "service": resource,
            "package": f"gs://{BUCKET}/{resource}-${{version}}.zip",
            "settings": {"runtime": "python312"},
            "timeout": 10.0,
            "rollback_timeout": 10.0,
        }

    # --- the methods

    def _service(self, params: dict[str, str]) -> tuple[str, Service]:
        path = f"apps/{params['appsId']}/services/{params['servicesId']}"
        if path not in self.services:
            raise ApiError("NOT_FOUND", f"Could not find service '{params['servicesId']}'.")
        return path, self.services[path]

    def _get(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path, service = self._service(params)
        return {"name": path, "id": params["servicesId"], "split": copy.deepcopy(service.split)}

    def _patch(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path, service = self._service(params)
        if query.get("updateMask") != "split":
            raise ApiError("INVALID_ARGUMENT", "update_mask: only 'split' is implemented here")
        split = body.get("split", {})
        shares = split.get("allocations", {})
        if abs(sum(shares.values()) - 1) > 0.001:
            raise ApiError("INVALID_ARGUMENT", "Traffic split allocations must sum to 1.")
        if unknown := set(shares) - set(service.versions):
            raise ApiError("INVALID_ARGUMENT", f"Traffic split refers to versions that do not exist: {sorted(unknown)}")
        if len(shares) > 1 and split.get("shardBy", "UNSPECIFIED") == "UNSPECIFIED":
            raise ApiError("INVALID_ARGUMENT", "Traffic split with several versions needs shard_by.")
        return self._begin("Services.UpdateService", path, split)

    def _delete(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path, _ = self._service(params)
        if params["servicesId"] == "default":
            raise ApiError("INVALID_ARGUMENT", "The default service (module) may not be deleted.")
        return self._begin("Services.DeleteService", path, None, Course("succeeds", self.world.seconds / 4))

    def _version(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        _, service = self._service(params)
        if params["versionsId"] not in service.versions:
            raise ApiError("NOT_FOUND", f"Could not find version '{params['versionsId']}'.")
        version = service.versions[params["versionsId"]]
        if query.get("view") == "FULL":
            return dict(version)
        return {k: v for k, v in version.items() if k not in ("deployment", "envVariables", "handlers")}

    def _versions(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        _, service = self._service(params)
        return {"versions": [self._version({**params, "versionsId": name}, query, body) for name in service.versions]}

    def _create(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        path = f"apps/{params['appsId']}/services/{params['servicesId']}"
        made, name = body.get("deployment", {}), body.get("id", "")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) or not body.get("runtime"):
            raise ApiError("INVALID_ARGUMENT", "version.id and version.runtime are required.")
        if not made.get("zip", {}).get("sourceUrl", "").startswith(_URL) and not made.get("container"):
            raise ApiError("INVALID_ARGUMENT", "version.deployment must say where the code is.")
        if made.get("container") and body.get("env", "standard") == "standard":
            raise ApiError("INVALID_ARGUMENT", "version.deployment.container: only in the flexible environment.")
        place = f"{path}/versions/{name}"
        begun = self._begin("Versions.CreateVersion", place, body)
        self.made.append((path, name))
        if self.early and path in self.services:
            self.services[path].versions[name] = self._document(place, body)
        return begun

    def _begin(self, method: str, target: str, wanted: Any, course: Course | None = None) -> Json:
        if any(o.target == target and o.ended is None for o in self.operations):
            raise ApiError(
                "ABORTED", f"Cannot operate on {target} because an operation is already in progress for {target} by 1."
            )
        course = course or self.world.course(self.kind, target.split("/")[3])
        course = replace(course, seconds=course.seconds / 2)
        name = f"{APP}/operations/{len(self.operations) + 1}"
        operation = Operation(name, method, target, wanted, self.world.now(), course)
        self.operations.append(operation)
        return operation.document()

    def _operation(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        for operation in self.operations:
            if operation.name.endswith(f"/{params['operationsId']}"):
                return operation.document()
        raise ApiError("NOT_FOUND", "The operation could not be found.")

    def _list(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        return {"operations": [operation.document() for operation in self.operations]}

    def _object(self, params: dict[str, str], query: dict[str, str], body: Json) -> Json:
        if params["bucket"] != BUCKET or params["object"] in self.missing:
            raise ApiError("NOT_FOUND", f"No such object: {params['bucket']}/{params['object']}")
        return {"generation": "1700000000000000"}

    # --- time

    @staticmethod
    def _document(place: str, body: Json) -> Json:
        return {**body, "name": place, "servingStatus": "SERVING", "createdBy": "sandbox@example.com"}

    def _settle(self) -> None:
        now = self.world.now()
        for operation in self.operations:
            if operation.ended is None and operation.course.done(now - operation.began):
                self.end(operation)

    def end(self, operation: Operation) -> None:
        """It ends now, as its course says; a hanging one by the build's time-out."""
        operation.ended = self.world.now()
        path, _, name = operation.target.partition("/versions/")
        if operation.course.outcome != "succeeds":
            operation.error = f"Cloud build 4b26ccc6 status: FAILURE. {operation.course.reason or 'timed out'}"
        elif operation.method.endswith("CreateVersion"):
            service = self.services.setdefault(path, Service())
            service.versions[name] = self._document(operation.target, operation.wanted)
            service.split = service.split or {"allocations": {name: 1}}
        elif operation.method.endswith("UpdateService"):
            self.services[path].split = operation.wanted
        else:
            self.services.pop(path, None)

    # --- what tests do and see

    def seed(self, resource: str, image: str | None) -> None:
        path = f"{APP}/services/{resource}"
        with self.lock:
            self.services.pop(path, None)
            self.made = [one for one in self.made if one[0] != path]
            self.operations = [o for o in self.operations if not o.target.startswith(path)]
            if image is not None:
                self.services[path] = Service()
                self.meddle(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody deploys and promotes by hand; what was under way is over."""
        path = f"{APP}/services/{resource}"
        with self.lock:
            for operation in self.operations:
                if operation.target.startswith(path) and operation.ended is None:
                    self.end(operation)
            service = self.services[path]
            name = f"by-hand-{len(service.versions) + 1}"
            made = {"zip": {"sourceUrl": f"{_URL}{resource}-{image.rpartition(':')[2]}.zip"}}
            body = {"id": name, "runtime": "python312", "env": "standard", "deployment": made}
            body |= {"envVariables": {"MODE": "shop"}, "instanceClass": "F2", "createTime": stamp(self.world.now())}
            service.versions[name] = self._document(f"{path}/versions/{name}", body)
            service.split = {"allocations": {name: 1}}

    def live(self, resource: str) -> Live:
        with self.lock:
            self._settle()
            service = self.services.get(f"{APP}/services/{resource}")
            running = any(o.ended is None for o in self.operations)
            if service is None or not service.split:
                return Live(None, None, settled=not running)
            shares = service.split["allocations"]
            name = max(shares, key=lambda version: shares[version])
            made = service.versions[name]["deployment"]
            version = made["zip"]["sourceUrl"].removeprefix(f"{_URL}{resource}-").removesuffix(".zip")
            return Live(f"registry.example.com/{resource}:{version}", name, settled=not running)

    def revisions(self, resource: str) -> list[str]:
        return [name for path, name in self.made if path == f"{APP}/services/{resource}"]
