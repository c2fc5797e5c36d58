"""The part of a Prefect 3 server's API that a release uses, as an OpenAPI 3 document in our own words.

After the server's own ``/openapi.json`` (3.8): paths, bodies and the fields that are read or written. Requests may hold
nothing else; answers may. The tests hold what passes to the server's own document too, where there is a server.
"""

from __future__ import annotations

from typing import Any

_ID: dict[str, Any] = {"type": "string", "format": "uuid"}
_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _only(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def _any_of(items: dict[str, Any]) -> dict[str, Any]:
    return _only(("any_",), any_={"type": "array", "items": items})


def _operation(name: str, answer: dict[str, Any], *statuses: str, body: str = "") -> dict[str, Any]:
    responses = {status: {"description": "done", **_json(answer)} for status in statuses}
    responses["default"] = {"description": "refused", **_json(_ref("Error"))}
    operation: dict[str, Any] = {"operationId": name, "responses": responses}
    return {**operation, "requestBody": {"required": True, **_json(_ref(body))}} if body else operation


def _in_path(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]


_TYPES = ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING"]
_BY_NAME = _only(name=_any_of(_TEXT))
_IN_STATE = _only(("type",), type=_any_of(_ref("StateType")))
_FIELDS = {"id": _ID, "name": _TEXT, "idempotency_key": _MAYBE, "parameters": {"type": "object"}}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Prefect, as far as a release uses it", "version": "3"},
    "paths": {
        "/api/deployments/name/{flow_name}/{deployment_name}": {
            "parameters": _in_path("flow_name", "deployment_name"),
            "get": _operation("read_deployment_by_name", _ref("Deployment"), "200"),
        },
        "/api/deployments/{id}/create_flow_run": {
            "parameters": _in_path("id"),
            "post": _operation("create_flow_run_from_deployment", _ref("FlowRun"), "200", "201", body="Create"),
        },
        "/api/flow_runs/filter": {
            "post": _operation(
                "read_flow_runs", {"type": "array", "items": _ref("FlowRun")}, "200", body="FlowRunsQuery"
            ),
        },
        "/api/flow_runs/{id}": {
            "parameters": _in_path("id"),
            "get": _operation("read_flow_run", _ref("FlowRun"), "200"),
        },
        "/api/flow_runs/{id}/set_state": {
            "parameters": _in_path("id"),
            "post": _operation("set_flow_run_state", _ref("Orchestration"), "200", "201", body="SetState"),
        },
        "/api/task_runs/filter": {
            "post": _operation(
                "read_task_runs", {"type": "array", "items": _ref("TaskRun")}, "200", body="TaskRunsQuery"
            ),
        },
    },
    "components": {
        "schemas": {
            "StateType": {"enum": _TYPES},
            "Create": _only(parameters={"type": "object"}, idempotency_key=_MAYBE, name=_TEXT),
            "FlowRunsQuery": _only(
                flows=_BY_NAME,
                deployments=_BY_NAME,
                flow_runs=_only(
                    idempotency_key=_any_of(_TEXT),
                    state=_IN_STATE,
                    expected_start_time=_only(("before_",), before_={"type": "string", "format": "date-time"}),
                ),
                sort={"enum": ["START_TIME_DESC", "START_TIME_ASC", "EXPECTED_START_TIME_DESC", "ID_DESC"]},
                limit={"type": "integer", "minimum": 0, "maximum": 200},
            ),
            "TaskRunsQuery": _only(
                flow_runs=_only(id=_any_of(_ID)),
                task_runs=_only(state=_IN_STATE),
                limit={"type": "integer", "minimum": 0, "maximum": 200},
            ),
            "SetState": _only(
                ("state",),
                state=_only(("type",), type=_ref("StateType"), name=_MAYBE, message=_MAYBE),
                force={"type": "boolean"},
            ),
            "Deployment": {
                "type": "object",
                "required": ["id", "name", "flow_id"],
                "properties": {"id": _ID, "name": _TEXT, "flow_id": _ID, "paused": {"type": "boolean"}},
            },
            "State": {
                "type": "object",
                "required": ["id", "type"],
                "properties": {
                    "id": _ID,
                    "type": _ref("StateType"),
                    "name": _MAYBE,
                    "message": _MAYBE,
                    "timestamp": _TIME,
                },
            },
            "FlowRun": {
                "type": "object",
                "required": ["id", "flow_id", "name", "parameters", "idempotency_key", "state", "start_time"],
                "properties": {
                    **_FIELDS,
                    "flow_id": _ID,
                    "deployment_id": {"anyOf": [_ID, {"type": "null"}]},
                    "state": {"anyOf": [_ref("State"), {"type": "null"}]},
                    "state_type": {"anyOf": [_ref("StateType"), {"type": "null"}]},
                    "start_time": _TIME,
                    "expected_start_time": _TIME,
                    "end_time": _TIME,
                },
            },
            "TaskRun": {
                "type": "object",
                "required": ["id", "task_key", "dynamic_key"],
                "properties": {"id": _ID, "name": _TEXT, "task_key": _TEXT, "dynamic_key": _TEXT},
            },
            "Orchestration": {
                "type": "object",
                "required": ["state", "status", "details"],
                "properties": {
                    "state": {"anyOf": [_ref("State"), {"type": "null"}]},
                    "status": {"enum": ["ACCEPT", "REJECT", "ABORT", "WAIT"]},
                    "details": {"type": "object"},
                },
            },
            "Error": {"type": "object", "properties": {"detail": {}, "exception_message": _TEXT}},
        }
    },
}
