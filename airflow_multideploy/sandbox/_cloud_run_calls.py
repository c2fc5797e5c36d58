"""The calls of the Cloud Run stand-in, once for REST and gRPC."""

from __future__ import annotations

import copy
import threading
import uuid
from typing import Any

from airflow_multideploy.sandbox._cloud_run_state import (
    BY_NAME,
    KIND,
    LATEST,
    ApiError,
    Json,
    Operation,
    Revision,
    Service,
    apply_mask,
)
from airflow_multideploy.sandbox.world import Course, World

WRITES = frozenset({"services.create", "services.patch", "services.delete", "revisions.delete"})


def last(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


class CloudRun:
    """All services of one sandbox. Thread-safe.

    :param tagged_url: base of the URLs at which tagged revisions answer.
    """

    def __init__(self, world: World, tagged_url: str) -> None:
        self.world, self.tagged_url = world, tagged_url
        self.lock = threading.RLock()
        self.services: dict[str, Service] = {}
        self.operations: dict[str, Operation] = {}

    def call(self, method: str, params: Json) -> Json:
        """The answer to one call.

        :param method: as the discovery document names it, without the leading resources (``services.patch``).
        :param params: path and query parameters; a request body under ``service``.
        :raises ApiError: refused.
        """
        handler = getattr(self, f"_{method.replace('.', '_')}")
        if params.get("validateOnly") in (True, "true"):
            raise ApiError("UNIMPLEMENTED", "the stand-in does not validate only")
        with self.lock:
            self._expire()
            answer: Json = handler(params)
        return answer

    def _expire(self) -> None:
        now, seconds = self.world.now(), self.world.per_platform.get(KIND, self.world.seconds) / 4
        for path, service in list(self.services.items()):
            if service.deleted is not None and now - service.deleted >= seconds:
                del self.services[path]

    def _service(self, path: str) -> Service:
        if path not in self.services:
            raise ApiError("NOT_FOUND", f"Resource '{last(path)}' of kind 'SERVICE' in region does not exist.")
        return self.services[path]

    def _operation(self, service: Service) -> Json:
        location = service.path.rsplit("/", 2)[0]
        operation = Operation(f"{location}/operations/{uuid.uuid4()}", service, service.generation)
        self.operations[operation.name] = operation
        return operation.document(self.world.now())

    # --- services

    def _services_get(self, params: Json) -> Json:
        return self._service(params["name"]).document(self.world.now())

    def _services_list(self, params: Json) -> Json:
        prefix = f"{params['parent']}/services/"
        found = [s.document(self.world.now()) for path, s in self.services.items() if path.startswith(prefix)]
        return {"services": found} if found else {}

    def _services_create(self, params: Json) -> Json:
        path = f"{params['parent']}/services/{params.get('serviceId', '')}"
        if path in self.services:
            raise ApiError("ALREADY_EXISTS", f"Resource '{last(path)}' already exists.")
        now = self.world.now()
        service = Service(path, {}, created=now, uri=f"{self.tagged_url}/{last(path)}")
        self.write(service, apply_mask({}, params.get("service", {}), ""))
        self.services[path] = service
        return self._operation(service)

    def _services_patch(self, params: Json) -> Json:
        body = params.get("service", {})
        path = params.get("name") or body.get("name", "")
        service = self._service(path)
        service.settle(self.world.now())
        self._fresh(service, body.get("etag"))
        self.write(service, apply_mask(service.spec, body, params.get("updateMask", "")))
        return self._operation(service)

    def _services_delete(self, params: Json) -> Json:
        service = self._service(params["name"])
        service.settle(self.world.now())
        self._fresh(service, params.get("etag"))
        service.deleted = service.deleted or self.world.now()
        return self._operation(service)

    @staticmethod
    def _fresh(service: Service, etag: str | None) -> None:
        if service.deleted is not None:
            raise ApiError("FAILED_PRECONDITION", f"Resource '{last(service.path)}' is being deleted.")
        if etag and etag != service.etag:
            message = (
                f"Conflict for resource '{last(service.path)}': version '{etag}' was specified but current version "
            )
            raise ApiError("ABORTED", f"{message}is '{service.etag}'.")

    def write(self, service: Service, spec: Json, *, course: Course | None = None, by_api: bool = True) -> None:
        """Give a service its new desired state, and start on the way there.

        :param course: how that will go; None: as the world says.
        """
        spec.setdefault("traffic", [{"type": LATEST, "percent": 100}])
        containers = spec.get("template", {}).get("containers") or []
        if not containers or not all(c.get("image") for c in containers):
            raise ApiError("INVALID_ARGUMENT", "service.template.containers: at least one with an image is required.")
        if sum(t.get("percent", 0) for t in spec["traffic"]) != 100:
            raise ApiError("INVALID_ARGUMENT", "service.traffic: percentages must add up to 100.")
        if service.generation and spec == service.spec:
            return
        revision = self._new_revision(service, spec["template"])
        known = {*service.revisions, revision}
        for target in spec["traffic"]:
            if (target.get("type") == BY_NAME) != bool(target.get("revision")) or target.get("revision") not in (
                None,
                *known,
            ):
                name = target.get("revision")
                raise ApiError(
                    "FAILED_PRECONDITION",
                    f"Revision '{name}' does not exist or is deleted. "
                    "Update all traffic to route to currently available revisions.",
                )
        now = self.world.now()
        course = course or self.world.course(KIND, last(service.path))
        if revision and revision not in service.revisions:
            service.revisions[revision] = Revision(revision, copy.deepcopy(spec["template"]), now, course, by_api)
            service.latest_created = revision
        service.spec, service.updated, service.error = spec, now, ""
        service.generation += 1
        service.rollout = (now, course)
        service.settle(now)

    def _new_revision(self, service: Service, template: Json) -> str | None:
        """Name of the revision that this template asks for; None: it is the one there is."""
        if template == service.spec.get("template"):
            return None
        name = template.get("revision")
        if not name:
            return f"{last(service.path)}-{len(service.revisions) + 1:05d}-{uuid.uuid4().hex[:3]}"
        if not name.startswith(f"{last(service.path)}-") or len(name) > 63:
            raise ApiError("INVALID_ARGUMENT", f"service.template.revision: '{name}' must start with the service name.")
        if name in service.revisions and service.revisions[name].template != template:
            raise ApiError("ALREADY_EXISTS", f"Revision named '{name}' with different configuration already exists.")
        return str(name)

    # --- revisions and operations

    def _revision(self, name: str) -> tuple[Service, Revision]:
        parent, _, short = name.partition("/revisions/")
        service = self._service(parent)
        if short not in service.revisions:
            raise ApiError("NOT_FOUND", f"Resource '{short}' of kind 'REVISION' does not exist.")
        service.settle(self.world.now())
        return service, service.revisions[short]

    def _revisions_get(self, params: Json) -> Json:
        service, revision = self._revision(params["name"])
        return revision.document(service.path, self.world.now())

    def _revisions_list(self, params: Json) -> Json:
        service = self._service(params["parent"])
        return {"revisions": [r.document(service.path, self.world.now()) for r in reversed(service.revisions.values())]}

    def _revisions_delete(self, params: Json) -> Json:
        service, revision = self._revision(params["name"])
        used = {service.resolve(t) for t in [*service.serving, *service.spec["traffic"]]} | {service.latest_created}
        if revision.name in used:
            raise ApiError("FAILED_PRECONDITION", f"Revision '{revision.name}' is in use and cannot be deleted.")
        document = revision.document(service.path, self.world.now())
        del service.revisions[revision.name]
        name = f"{service.path.rsplit('/', 2)[0]}/operations/{uuid.uuid4()}"
        typed: Json = {"@type": "type.googleapis.com/google.cloud.run.v2.Revision"} | document
        return {"name": name, "metadata": typed, "done": True, "response": typed}

    def _operations_get(self, params: Json) -> Json:
        if params["name"] not in self.operations:
            raise ApiError("NOT_FOUND", f"Operation '{last(params['name'])}' does not exist.")
        return self.operations[params["name"]].document(self.world.now())

    _operations_wait = _operations_get

    def _operations_list(self, params: Json) -> Json:
        found: list[Any] = [o.document(self.world.now()) for o in self.operations.values()]
        return {"operations": found} if found else {}
