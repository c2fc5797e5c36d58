"""The on-prem stand-in's contract, written by hand: served as ``/openapi.json``, and what its traffic is held to."""

from __future__ import annotations

from typing import Any


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: str | None = None, **headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": description}
    if schema:
        answer["content"] = {"application/json": {"schema": _ref(schema)}}
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"required": True, "schema": {"type": "string", "pattern": pattern}}
            for name, pattern in headers.items()
        }
    return answer


def _text(description: str, pattern: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"text/plain": {"schema": {"type": "string", "pattern": pattern}}},
    }


def _problems(*statuses: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {status: {"description": "refused", "content": content} for status in (*statuses, "401", "429", "500")}


def _header(name: str, pattern: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string", "pattern": pattern}}


def _in_path(name: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,39}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


_ETAG = r'^(W/)?"[^"]*"$'
_CONDITIONS = [_header("If-Match", rf"{_ETAG}|^\*$"), _header("If-None-Match", r"^\*$")]
_IMAGE = {"type": "string", "minLength": 1, "pattern": r"^[^\s]+[:@][^\s]+$"}
_VERSION = {"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}$"}
_RELEASE_ID = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}$"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    properties = {**required, **optional}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


_APP = {
    "parameters": [_in_path("app")],
    "get": {
        "operationId": "getApp",
        "responses": {"200": _answer("what it was told to run", "App", ETag=_ETAG), **_problems("404")},
    },
    "put": {
        "operationId": "deployApp",
        "parameters": [*_CONDITIONS, _header("Idempotency-Key", r"^[\x21-\x7e]{1,255}$")],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Deployment")}}},
        "responses": {
            "202": _answer("under way", "App", ETag=_ETAG, Location="^/operations/[a-z0-9-]+$"),
            **_problems("400", "412", "422", "428"),
        },
    },
    "delete": {
        "operationId": "removeApp",
        "parameters": [*_CONDITIONS, _header("Idempotency-Key", r"^[\x21-\x7e]{1,255}$")],
        "responses": {"204": _answer("removed"), **_problems("404", "412", "428")},
    },
}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "On-prem deploy API (stand-in)", "version": "1.0.0"},
    "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
    "security": [{"bearer": []}],
    "paths": {
        "/apps/{app}": _APP,
        "/apps/{app}/version": {
            "parameters": [_in_path("app")],
            "get": {
                "operationId": "getVersion",
                "responses": {"200": _answer("what serves now", "Serving"), **_problems("404")},
            },
        },
        "/apps/{app}/health": {
            "parameters": [_in_path("app")],
            "get": {
                "operationId": "getHealth",
                "responses": {
                    **_problems("404"),
                    "200": _answer("it answers", "Health"),
                    "503": _answer("nothing serves", "Health"),
                },
            },
        },
        "/operations/{operation}": {
            "parameters": [_in_path("operation")],
            "get": {
                "operationId": "getOperation",
                "responses": {"200": _answer("how far it is", "Operation"), **_problems("404")},
            },
        },
        "/deploy": {
            "post": {
                "operationId": "poorDeploy",
                "requestBody": {
                    "required": True,
                    "content": {"application/x-www-form-urlencoded": {"schema": _ref("PoorDeployment")}},
                },
                "responses": {"202": _text("accepted", r"^accepted\n$"), **_problems("400")},
            },
        },
        "/{app}/version.txt": {
            "parameters": [_in_path("app")],
            "get": {
                "operationId": "poorVersion",
                "security": [],
                "responses": {"200": _text("what serves now", r"^[^\s]+\n$"), **_problems("404")},
            },
        },
        "/openapi.json": {
            "get": {
                "operationId": "openapi",
                "security": [],
                "responses": {"200": {"description": "this", "content": {"application/json": {"schema": {}}}}},
            },
        },
    },
    "components": {
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Deployment": _object(
                {"image": _IMAGE, "version": _VERSION, "release_id": _RELEASE_ID}, reason={"type": "string"}
            ),
            "PoorDeployment": _object({"image": _IMAGE}),
            "App": _object(
                {
                    "name": {"type": "string"},
                    "image": _IMAGE,
                    "version": _VERSION,
                    "release_id": _or_null(_RELEASE_ID),
                    "revision": {"type": "string"},
                    "operation": _or_null({"type": "string"}),
                }
            ),
            "Serving": _object({"image": _IMAGE, "version": _VERSION, "revision": {"type": "string"}}),
            "Health": _object({"status": {"enum": ["up", "down"]}}),
            "Operation": _object(
                {
                    "id": {"type": "string"},
                    "state": {"enum": ["running", "succeeded", "failed", "canceled"]},
                    "progress": {"type": "number", "minimum": 0, "maximum": 1},
                },
                reason={"type": "string", "minLength": 1},
            ),
            "Problem": _object(
                {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer", "minimum": 400, "maximum": 599},
                    "detail": {"type": "string"},
                }
            ),
        },
    },
}
