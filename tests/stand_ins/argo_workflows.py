"""Stand-in for an Argo server: the part of its API that a release uses, held to `tests.stand_ins.argo_openapi`.

As the real one it tells times in whole seconds, lists ``items: null`` when there are none, knows a workflow's template
by a label, and does not end a terminated workflow before its next look at it. On its own initiative: a workflow starts
at once, as one pod of three steps; a failing one says the course's reason as that pod's message.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_multideploy.sandbox.server import App, Faults, Server
from airflow_multideploy.sandbox.world import Live, World
from tests.stand_ins.openapi import Recorder
from tests.stand_ins.pipelines import Pipelines, Run

_NAMESPACE = "ci"
_PHASES = {"running": "Running", "succeeded": "Succeeded", "failed": "Failed", "stopped": "Failed"}
_NAME = r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?"
"""What Argo takes as a workflow's name: it becomes a label of its pods."""
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13}
"""HTTP status to gRPC code."""


class ArgoWorkflowsStandIn:
    """An Argo server on 127.0.0.1.

    :param secret: the bearer token that it expects.
    """

    kind = "argo_workflows"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret, self.url = world, secret, ""
        self.pipelines = Pipelines(world, self.kind, separator="-")
        self.recorder = Recorder(self._application())
        self._port = port
        self._server: Server | None = None

    def start(self) -> None:
        """Serve on loopback."""
        app = Faults(self.recorder, self.world, self.kind, error_body=_error_body)
        self._server = Server(app, port=self._port).start()
        self.url = self._server.url

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection with the token as its password."""
        return {"conn_type": "http", "host": self.url, "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a template that deploys, with one that removes."""
        deploys, _, removes = self.pipelines.names(resource)
        return {"platform": self.kind, "namespace": _NAMESPACE, "template": deploys, "remove_template": removes}

    def seed(self, resource: str, image: str | None) -> None:
        """Its templates exist; with an image, one workflow of the first has deployed it."""
        self.pipelines.seed(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else's workflow, which is over at once."""
        self.pipelines.meddle(resource, image)

    def live(self, resource: str) -> Live:
        """What the last workflow that ended well deployed."""
        return self.pipelines.live(resource)

    def revisions(self, resource: str) -> list[str]:
        """Names of the workflows that were submitted."""
        return self.pipelines.asked(resource)

    # --- the API -----------------------------------------------------------------------------------------------------

    def _application(self) -> App:
        path = "/api/v1/workflows/{namespace}"
        app = Starlette(
            routes=[
                Route("/api/v1/workflow-templates/{namespace}/{name}", self._template),
                Route(path, self._list),
                Route(f"{path}/submit", self._submit, methods=["POST"]),
                Route(f"{path}/{{name}}", self._get),
                Route(f"{path}/{{name}}/{{verb}}", self._shut_down, methods=["PUT"]),
            ],
            exception_handlers={HTTPException: _refusal},
        )

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if Request(scope).headers.get("authorization") != f"Bearer {self.secret}":
                await _refused(401, "token not valid")(scope, receive, send)
            elif scope["path"].split("/")[4] != _NAMESPACE:
                await _refused(403, "Permission denied in this namespace")(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guarded

    async def _template(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.pipelines.known:
            raise HTTPException(404, f'workflowtemplates.argoproj.io "{name}" not found')
        about = {"name": name, "namespace": _NAMESPACE, "uid": _uid(name), "creationTimestamp": _time(0)}
        return JSONResponse({"metadata": about, "spec": {}})

    async def _list(self, request: Request) -> Response:
        label, _, template = request.query_params["listOptions.labelSelector"].partition("=")
        named = label == "workflows.argoproj.io/workflow-template"
        found = [run for run in self.pipelines.all() if named and run.pipeline == template]
        documents = [self._seen(run, request, "items.") for run in found]
        return JSONResponse({"metadata": {}, "items": documents or None})

    async def _submit(self, request: Request) -> Response:
        body = await request.json()
        template, options = body["resourceName"], body["submitOptions"]
        if body["resourceKind"] != "WorkflowTemplate" or template not in self.pipelines.known:
            raise HTTPException(404, f'workflowtemplates.argoproj.io "{template}" not found')
        if not re.fullmatch(_NAME, options["name"]):  # as Kubernetes answers to the controller
            raise HTTPException(
                400, f'Workflow.argoproj.io "{options["name"]}" is invalid: metadata.name: Invalid value'
            )
        if any(run.key == options["name"] for run in self.pipelines.all()):
            raise HTTPException(409, f'workflows.argoproj.io "{options["name"]}" already exists')
        given = dict(text.split("=", 1) for text in options["parameters"])
        run = self.pipelines.start(template, options["name"], given)
        run.extra["labels"] = dict(text.split("=", 1) for text in options["labels"].split(","))
        return JSONResponse(_document(run))

    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._seen(self._known(request), request, ""))

    async def _shut_down(self, request: Request) -> Response:
        run, verb = self._known(request), request.path_params["verb"]
        if run.state == "running":
            run.extra["shutdown"] = {"terminate": "Terminate", "stop": "Stop"}[verb]
        return JSONResponse(_document(run))

    def _known(self, request: Request) -> Run:
        name = request.path_params["name"]
        for run in self.pipelines.all():
            if run.key == name:
                return run
        raise HTTPException(404, f'workflows.argoproj.io "{name}" not found')

    def _seen(self, run: Run, request: Request, prefix: str) -> dict[str, Any]:
        """The fields that were asked for; what was told to stop has stopped for the one who looks next."""
        wanted = [name.removeprefix(prefix) for name in request.query_params["fields"].split(",")]
        document = _document(run)
        if "shutdown" in run.extra:
            self.pipelines.stop(run)
        kept: dict[str, Any] = {}
        for name in wanted:
            part, _, key = name.partition(".")
            if key in document.get(part, {}):
                kept.setdefault(part, {})[key] = document[part][key]
        return kept


def _document(run: Run) -> dict[str, Any]:
    name, phase = "workflows.argoproj.io", _PHASES[run.state]
    labels = {f"{name}/workflow-template": run.pipeline, f"{name}/phase": phase, **run.extra.get("labels", {})}
    node = {"id": run.key, "name": f"{run.key}.deploy", "displayName": "deploy", "type": "Pod", "phase": phase}
    status: dict[str, Any] = {"phase": phase, "startedAt": _time(run.started), "finishedAt": _time(run.ended)}
    status |= {"progress": "3/3" if run.state == "succeeded" else "1/3"}
    if run.state == "failed":
        node["message"], status["message"] = run.course.reason, "child failed"
    elif run.state == "stopped":
        status["message"] = "Stopped with strategy 'Terminate'"
    given = [{"name": key, "value": value} for key, value in run.parameters.items()]
    shutdown = {"shutdown": run.extra["shutdown"]} if "shutdown" in run.extra else {}
    return {
        "metadata": {
            "name": run.key,
            "uid": _uid(run.key),
            "creationTimestamp": _time(run.started),
            "labels": labels,
        },
        "spec": {"arguments": {"parameters": given}, "workflowTemplateRef": {"name": run.pipeline}, **shutdown},
        "status": {**status, "nodes": {run.key: node}},
    }


def _uid(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refused(status: int, words: str) -> Response:
    return JSONResponse({"code": _CODES[status], "message": words}, status)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refused(error.status_code, error.detail)


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"code": _CODES[status], "message": "upstream says no"}).encode(), {}
