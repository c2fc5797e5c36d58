"""Stand-in for another Airflow: the part of its REST API that a release uses, held to Airflow's OpenAPI document.

On its own initiative, beyond that document: a run starts at once and its only task ``deploy`` takes all its time; a
failed run's task says the course's reason in its log, as a structured error; a run that is marked failed ends at once.
"""

from __future__ import annotations

import json
import secrets
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

_STATES = {"running": "running", "succeeded": "success", "failed": "failed", "stopped": "failed"}
_LOGIN = "releaser"


class AirflowStandIn:
    """Another Airflow on 127.0.0.1.

    :param secret: the password of its user.
    """

    kind = "airflow"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret, self.url = world, secret, ""
        self.pipelines = Pipelines(world, self.kind)
        self.recorder = Recorder(self._application())
        self.paused: set[str] = set()
        self.tokens: set[str] = set()
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
        """An Airflow Connection with login and password."""
        return {"conn_type": "http", "host": self.url, "login": _LOGIN, "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a DAG that deploys, with one that removes."""
        deploys, _, removes = self.pipelines.names(resource)
        return {"platform": self.kind, "dag_id": deploys, "remove_dag_id": removes}

    def seed(self, resource: str, image: str | None) -> None:
        """Its DAGs exist; with an image, one run of the first has deployed it."""
        self.pipelines.seed(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else's run, which is over at once."""
        self.pipelines.meddle(resource, image)

    def live(self, resource: str) -> Live:
        """What the last run that ended well deployed."""
        return self.pipelines.live(resource)

    def revisions(self, resource: str) -> list[str]:
        """Ids of the runs that were triggered."""
        return self.pipelines.asked(resource)

    # --- the API -----------------------------------------------------------------------------------------------------

    def _application(self) -> App:
        run = "/api/v2/dags/{dag}/dagRuns/{run}"
        app = Starlette(
            routes=[
                Route("/auth/token", self._token, methods=["POST"]),
                Route("/api/v2/dags/{dag}", self._dag),
                Route("/api/v2/dags/{dag}/dagRuns", self._runs, methods=["GET"]),
                Route("/api/v2/dags/{dag}/dagRuns", self._trigger, methods=["POST"]),
                Route(run, self._get, methods=["GET"]),
                Route(run, self._patch, methods=["PATCH"]),
                Route(f"{run}/taskInstances", self._tasks),
                Route(f"{run}/taskInstances/{{task}}/logs/{{number}}", self._log),
            ],
            exception_handlers={HTTPException: _refusal},
        )

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope)
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if scope["path"] != "/auth/token" and token not in self.tokens:
                await JSONResponse({"detail": "Not authenticated"}, 401)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guarded

    async def _token(self, request: Request) -> Response:
        given = await request.json()
        if (given.get("username"), given.get("password")) != (_LOGIN, self.secret):
            raise HTTPException(401, "Invalid credentials")
        token = secrets.token_hex(8)
        self.tokens.add(token)
        return JSONResponse({"access_token": token}, 201)

    async def _dag(self, request: Request) -> Response:
        name = self._known(request)
        document: dict[str, Any] = dict.fromkeys(_DAG.split())
        document |= {"dag_id": name, "dag_display_name": name, "is_paused": name in self.paused, "is_stale": False}
        document |= {"fileloc": "/dags/shop.py", "max_active_tasks": 16, "max_consecutive_failed_dag_runs": 0}
        document |= {"tags": [], "owners": ["airflow"], "file_token": "t", "has_import_errors": False}
        flags = ("has_task_concurrency_limits", "is_backfillable", "timetable_partitioned", "timetable_periodic")
        return JSONResponse(document | dict.fromkeys(flags, False))

    async def _runs(self, request: Request) -> Response:
        name, states = self._known(request), request.query_params.getlist("state")
        found = [run for run in self.pipelines.all() if run.pipeline == name and _STATES[run.state] in states]
        if request.query_params["order_by"] == "-start_date":
            found.reverse()
        limited = found[: int(request.query_params["limit"])]
        return JSONResponse({"dag_runs": [_document(run) for run in limited], "total_entries": len(found)})

    async def _trigger(self, request: Request) -> Response:
        name, body = self._known(request), await request.json()
        if any(run.key == body["dag_run_id"] for run in self.pipelines.all() if run.pipeline == name):
            detail = {"reason": "Unique constraint violation", "statement": "hidden", "orig_error": "hidden"}
            return JSONResponse({"detail": detail}, 409)
        run = self.pipelines.start(name, body["dag_run_id"], body.get("conf") or {})
        run.extra["note"] = body.get("note")
        return JSONResponse(_document(run))

    async def _get(self, request: Request) -> Response:
        return JSONResponse(_document(self._run(request)))

    async def _patch(self, request: Request) -> Response:
        run = self._run(request)
        if (await request.json())["state"] == "failed":
            self.pipelines.stop(run)
        return JSONResponse(_document(run))

    async def _tasks(self, request: Request) -> Response:
        run = self._run(request)
        wanted = request.query_params.getlist("state")
        tasks = [_task(run)] if _STATES[run.state] in wanted else []
        return JSONResponse({"task_instances": tasks, "total_entries": len(tasks)})

    async def _log(self, request: Request) -> Response:
        run = self._run(request)
        said = {"exc_type": "RuntimeError", "exc_value": run.course.reason, "is_cause": False, "frames": []}
        lines: list[dict[str, Any]] = [{"event": "Task started", "level": "info", "timestamp": _time(run.started)}]
        if run.state == "failed":
            lines.append({"event": "Task failed with exception", "level": "error", "error_detail": [said]})
        lines.append({"event": "Task finished", "level": "info"})
        return JSONResponse({"content": lines, "continuation_token": None})

    def _known(self, request: Request) -> str:
        name = str(request.path_params["dag"])
        if name not in self.pipelines.known:
            raise HTTPException(404, f"Dag with dag_id: '{name}' not found")
        return name

    def _run(self, request: Request) -> Run:
        name, key = self._known(request), request.path_params["run"]
        for run in self.pipelines.all():
            if (run.pipeline, run.key) == (name, key):
                return run
        raise HTTPException(404, f"The DagRun with dag_id: `{name}` and run_id: `{key}` was not found")


def _describe(scope: Scope, body: bytes) -> tuple[str, bool]:
    if scope["path"] == "/auth/token":
        return "login", False
    return f"{scope['method']} {scope['path']}", scope["method"] != "GET"


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"detail": "Internal Server Error" if status >= 500 else "Bad Request"}).encode(), {}


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code)


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _document(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = dict.fromkeys(_RUN.split())
    document |= {"dag_run_id": run.key, "dag_id": run.pipeline, "dag_display_name": run.pipeline, "run_type": "manual"}
    document |= {"queued_at": _time(run.started), "start_date": _time(run.started), "end_date": _time(run.ended)}
    document |= {"run_after": _time(run.started), "state": _STATES[run.state], "conf": run.parameters}
    return document | {"note": run.extra.get("note"), "dag_versions": [], "triggered_by": "rest_api"}


def _task(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = dict.fromkeys(_TASK.split())
    document |= {"id": str(uuid.UUID(int=1)), "task_id": "deploy", "task_display_name": "deploy", "map_index": -1}
    document |= {"dag_id": run.pipeline, "dag_display_name": run.pipeline, "dag_run_id": run.key, "max_tries": 0}
    document |= {"run_after": _time(run.started), "state": _STATES[run.state], "try_number": 1, "pool": "default_pool"}
    return document | {"pool_slots": 1, "executor_config": "{}"}


# What the document asks for in each of these answers.
_RUN = """dag_run_id dag_id logical_date queued_at start_date end_date duration data_interval_start data_interval_end
run_after last_scheduling_decision run_type state triggered_by triggering_user_name conf note dag_versions
bundle_version dag_display_name partition_key partition_date"""
_DAG = """dag_id dag_display_name is_paused is_stale last_parsed_time last_parse_duration last_expired bundle_name
bundle_version relative_fileloc fileloc description timetable_summary timetable_description timetable_partitioned
timetable_periodic tags max_active_tasks max_active_runs max_consecutive_failed_dag_runs has_task_concurrency_limits
has_import_errors next_dagrun_logical_date next_dagrun_data_interval_start next_dagrun_data_interval_end
next_dagrun_run_after allowed_run_types owners is_backfillable file_token"""
_TASK = """id task_id dag_id dag_run_id map_index logical_date run_after start_date end_date duration state try_number
max_tries task_display_name dag_display_name hostname unixname pool pool_slots queue priority_weight operator
operator_name queued_when scheduled_when pid executor executor_config note rendered_map_index trigger triggerer_job
dag_version"""
