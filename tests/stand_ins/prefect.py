"""Stand-in for a Prefect 3 server: the part of its API that a release uses, held to `tests.stand_ins.prefect_openapi`.

As the real one it answers a repeated idempotency key with the first run, and adds the deployment's own parameters to a
run's. On its own initiative: a run starts at once; a failing one says the course's reason in its state's message, and
has a failed task ``deploy``; one that is told to cancel is cancelled for the one who looks next.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_multideploy.sandbox.server import App, Faults, Scope, Server
from airflow_multideploy.sandbox.world import Live, World
from tests.stand_ins.openapi import Recorder
from tests.stand_ins.pipelines import Pipelines, Run

_DEPLOYMENT = "main"
_STATES = {"running": "RUNNING", "succeeded": "COMPLETED", "failed": "FAILED", "stopped": "CANCELLED"}
_WORDS = {"RUNNING": "Running", "COMPLETED": "Completed", "FAILED": "Failed", "CANCELLED": "Cancelled"}


class PrefectStandIn:
    """A Prefect server on 127.0.0.1, as Prefect Cloud asks for a key.

    :param secret: the API key that it expects.
    """

    kind = "prefect"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret, self.url = world, secret, ""
        self.pipelines = Pipelines(world, self.kind)
        self.recorder = Recorder(self._application())
        self._port = port
        self._server: Server | None = None

    def start(self) -> None:
        """Serve on loopback."""
        app = Faults(self.recorder, self.world, self.kind, describe=_describe, error_body=_error_body)
        self._server = Server(app, port=self._port).start()
        self.url = self._server.url

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection with the key as its password."""
        return {"conn_type": "http", "host": f"{self.url}/api", "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a deployment that deploys, with one that removes."""
        deploys, _, removes = (f"{flow}/{_DEPLOYMENT}" for flow in self.pipelines.names(resource))
        return {"platform": self.kind, "deployment": deploys, "remove_deployment": removes}

    def seed(self, resource: str, image: str | None) -> None:
        """Its deployments exist; with an image, one run of the first has deployed it."""
        self.pipelines.seed(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else's run, which is over at once."""
        self.pipelines.meddle(resource, image)

    def live(self, resource: str) -> Live:
        """What the last run that ended well deployed."""
        return self.pipelines.live(resource)

    def revisions(self, resource: str) -> list[str]:
        """Keys of the runs that were asked for."""
        return self.pipelines.asked(resource)

    # --- the API -----------------------------------------------------------------------------------------------------

    def _application(self) -> App:
        app = Starlette(
            routes=[
                Route("/api/deployments/name/{flow}/{name}", self._deployment),
                Route("/api/deployments/{id}/create_flow_run", self._create, methods=["POST"]),
                Route("/api/flow_runs/filter", self._filter, methods=["POST"]),
                Route("/api/flow_runs/{id}", self._get),
                Route("/api/flow_runs/{id}/set_state", self._set_state, methods=["POST"]),
                Route("/api/task_runs/filter", self._tasks, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refusal},
        )

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if Request(scope).headers.get("authorization") != f"Bearer {self.secret}":
                await JSONResponse({"exception_message": "Unauthorized"}, 401)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guarded

    async def _deployment(self, request: Request) -> Response:
        flow, name = request.path_params["flow"], request.path_params["name"]
        if flow not in self.pipelines.known or name != _DEPLOYMENT:
            raise HTTPException(404, "Deployment not found")
        document = {"id": _id(f"deployment {flow}"), "name": name, "flow_id": _id(flow), "paused": False}
        return JSONResponse({**document, "created": None, "updated": None})

    async def _create(self, request: Request) -> Response:
        flow = next((name for name in self.pipelines.known if _deployment_id(name) == request.path_params["id"]), None)
        if flow is None:
            raise HTTPException(404, "Deployment not found")
        body = await request.json()
        for run in self.pipelines.all():
            if (run.pipeline, run.key) == (flow, body["idempotency_key"]):
                return JSONResponse(_document(run))
        run = self.pipelines.start(flow, body["idempotency_key"], {"replicas": 2, **body["parameters"]})
        run.extra["name"] = body["name"]
        return JSONResponse(_document(run), 201)

    async def _filter(self, request: Request) -> Response:
        body = await request.json()
        flows, wanted = body["flows"]["name"]["any_"], body["flow_runs"]
        keys = wanted.get("idempotency_key", {}).get("any_")
        types = wanted.get("state", {}).get("type", {}).get("any_")
        found = []
        for run in self._runs():
            fits = run.pipeline in flows and body["deployments"]["name"]["any_"] == [_DEPLOYMENT]
            if fits and (keys is None or (run.asked and run.key in keys)) and (types is None or _state(run) in types):
                found.append(_document(run))
        found.sort(key=lambda document: str(document["start_time"]), reverse=body["sort"].endswith("_DESC"))
        return JSONResponse(found[: body["limit"]])

    async def _get(self, request: Request) -> Response:
        return JSONResponse(_document(self._known(request)))

    async def _set_state(self, request: Request) -> Response:
        run, state = self._known(request), (await request.json())["state"]
        if run.state != "running":
            details = {"type": "abort_details", "reason": "This run has already terminated."}
            return JSONResponse({"state": None, "status": "ABORT", "details": details})
        run.extra["cancelling"] = state["type"] == "CANCELLING"
        details = {"type": "accept_details"}
        return JSONResponse({"state": _document(run)["state"], "status": "ACCEPT", "details": details}, 201)

    async def _tasks(self, request: Request) -> Response:
        body = await request.json()
        failed = [run for run in self._runs() if _id(run.key) in body["flow_runs"]["id"]["any_"]]
        keys = {"task_key": "deploy", "dynamic_key": "0", "name": "deploy", "created": None, "updated": None}
        return JSONResponse([{"id": _id(f"task {run.key}"), **keys} for run in failed if run.state == "failed"])

    def _known(self, request: Request) -> Run:
        for run in self._runs():
            if _id(run.key) == request.path_params["id"]:
                return run
        raise HTTPException(404, "Flow run not found")

    def _runs(self) -> list[Run]:
        """All runs; what was told to cancel is cancelled from its second look on."""
        runs = self.pipelines.all()
        for run in runs:
            if run.extra.get("cancelling") and run.extra.setdefault("looks", 0) > 0:
                self.pipelines.stop(run)
            elif run.extra.get("cancelling"):
                run.extra["looks"] += 1
        return runs


def _describe(scope: Scope, body: bytes) -> tuple[str, bool]:
    if scope["path"].endswith("/filter"):
        return f"filter {scope['path']}", False
    return f"{scope['method']} {scope['path']}", scope["method"] != "GET"


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"exception_message": "Internal Server Error" if status >= 500 else "Bad request"}).encode(), {}


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code)


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _deployment_id(flow: str) -> str:
    return _id(f"deployment {flow}")


def _state(run: Run) -> str:
    return "CANCELLING" if run.state == "running" and run.extra.get("cancelling") else _STATES[run.state]


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _document(run: Run) -> dict[str, Any]:
    kind = _state(run)
    reason = f"Flow run encountered an exception: RuntimeError: {run.course.reason}" if kind == "FAILED" else None
    state = {"id": _id(f"state {run.key} {kind}"), "type": kind, "name": _WORDS.get(kind, "Cancelling")}
    return {
        "id": _id(run.key),
        "created": _time(run.started),
        "updated": _time(run.started),
        "name": run.extra.get("name", "by-hand"),
        "flow_id": _id(run.pipeline),
        "deployment_id": _deployment_id(run.pipeline),
        "parameters": run.parameters,
        "idempotency_key": run.key if run.asked else None,
        "state": {**state, "message": reason, "timestamp": _time(run.ended or run.started)},
        "state_type": kind,
        "start_time": _time(run.started),
        "expected_start_time": _time(run.started),
        "end_time": _time(run.ended),
    }
