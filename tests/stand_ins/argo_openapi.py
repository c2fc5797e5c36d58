"""The part of the Argo server's API that a release uses, as an OpenAPI 3 document in our own words.

After ``api/openapi-spec/swagger.json`` of argoproj/argo-workflows (v3.7 to v4.0): paths, parameters, bodies and the
fields that are read or written, with their types. Requests may hold nothing else; answers may.
"""

from __future__ import annotations

from typing import Any


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def _query(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": _text()} for name in names]


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _ref(name)}}}


def _operation(name: str, answer: str, *, body: str = "", query: tuple[str, ...] = ()) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"WorkflowService_{name}",
        "parameters": _query(*query),
        "responses": {
            "200": {"description": "done", **_json(answer)},
            "default": {"description": "refused", **_json("Error")},
        },
    }
    return {**operation, "requestBody": {"required": True, **_json(body)}} if body else operation


def _in_path(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": _text()} for name in names]


_TIME = _text(format="date-time")
_PHASE = {"enum": ["", "Pending", "Running", "Succeeded", "Failed", "Error"]}
_NAMED = {"namespace": _text(), "name": _text()}
_OPTIONS = ("labels", "annotations", "name", "generateName", "entryPoint", "serviceAccount", "podPriorityClassName")
_LIST = tuple(f"listOptions.{name}" for name in ("labelSelector", "fieldSelector", "limit", "continue"))

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Argo Workflows, as far as a release uses it", "version": "4"},
    "paths": {
        "/api/v1/workflow-templates/{namespace}/{name}": {
            "parameters": _in_path("namespace", "name"),
            "get": {
                **_operation("", "Template", query=("getOptions.resourceVersion",)),
                "operationId": "WorkflowTemplateService_GetWorkflowTemplate",
            },
        },
        "/api/v1/workflows/{namespace}": {
            "parameters": _in_path("namespace"),
            "get": _operation("ListWorkflows", "WorkflowList", query=(*_LIST, "fields", "nameFilter")),
        },
        "/api/v1/workflows/{namespace}/submit": {
            "parameters": _in_path("namespace"),
            "post": _operation("SubmitWorkflow", "Workflow", body="SubmitRequest"),
        },
        "/api/v1/workflows/{namespace}/{name}": {
            "parameters": _in_path("namespace", "name"),
            "get": _operation("GetWorkflow", "Workflow", query=("getOptions.resourceVersion", "fields", "uid")),
        },
        "/api/v1/workflows/{namespace}/{name}/terminate": {
            "parameters": _in_path("namespace", "name"),
            "put": _operation("TerminateWorkflow", "Workflow", body="TerminateRequest"),
        },
        "/api/v1/workflows/{namespace}/{name}/stop": {
            "parameters": _in_path("namespace", "name"),
            "put": _operation("StopWorkflow", "Workflow", body="StopRequest"),
        },
    },
    "components": {
        "schemas": {
            "SubmitRequest": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "namespace": _text(),
                    "resourceKind": _text(),
                    "resourceName": _text(),
                    "submitOptions": _ref("SubmitOptions"),
                },
            },
            "SubmitOptions": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    **{name: _text() for name in _OPTIONS},
                    "parameters": {"type": "array", "items": _text(pattern="^[^=]+=")},
                    "artifacts": {"type": "array", "items": _text()},
                    "dryRun": {"type": "boolean"},
                    "serverDryRun": {"type": "boolean"},
                    "priority": {"type": "integer"},
                },
            },
            "TerminateRequest": {"type": "object", "additionalProperties": False, "properties": _NAMED},
            "StopRequest": {
                "type": "object",
                "additionalProperties": False,
                "properties": {**_NAMED, "message": _text(), "nodeFieldSelector": _text()},
            },
            "Workflow": {
                "type": "object",
                "properties": {
                    "metadata": _ref("Metadata"),
                    "spec": _ref("Spec"),
                    "status": _ref("Status"),
                },
            },
            "Template": {
                "type": "object",
                "required": ["metadata", "spec"],
                "properties": {"metadata": _ref("Metadata"), "spec": {"type": "object"}},
            },
            "WorkflowList": {
                "type": "object",
                "required": ["metadata", "items"],
                "properties": {
                    "metadata": {"type": "object"},
                    "items": {"type": ["array", "null"], "items": _ref("Workflow")},
                },
            },
            "Metadata": {
                "type": "object",
                "required": ["name", "uid", "creationTimestamp"],
                "properties": {
                    "name": _text(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", maxLength=63),
                    "uid": _text(),
                    "creationTimestamp": _TIME,
                    "labels": {"type": "object", "additionalProperties": _text(maxLength=63)},
                },
            },
            "Spec": {
                "type": "object",
                "properties": {
                    "arguments": {
                        "type": "object",
                        "properties": {"parameters": {"type": "array", "items": _ref("Parameter")}},
                    },
                    "workflowTemplateRef": {"type": "object", "properties": {"name": _text()}},
                    "shutdown": {"enum": ["Terminate", "Stop"]},
                },
            },
            "Parameter": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _text(), "value": _text()},
            },
            "Status": {
                "type": "object",
                "properties": {
                    "phase": _PHASE,
                    "startedAt": {"anyOf": [_TIME, {"type": "null"}]},
                    "finishedAt": {"anyOf": [_TIME, {"type": "null"}]},
                    "message": _text(),
                    "progress": _text(pattern=r"^\d+/\d+$"),
                    "nodes": {"type": "object", "additionalProperties": _ref("Node")},
                },
            },
            "Node": {
                "type": "object",
                "required": ["id", "name", "type"],
                "properties": {name: _text() for name in ("id", "name", "type", "displayName", "phase", "message")},
            },
            "Error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": {"type": "integer"}, "message": _text(), "error": _text()},
            },
        }
    },
}
