"""What the stand-ins for Google's REST APIs share: routing and judging by the discovery documents that Google publishes
and its client library carries, credentials, and error bodies.

Every request is judged by the contract before it is served and every answer before it is sent: methods, parameters,
schemas, enum values, formats, no unknown key. A request that breaks it is refused as there, with 400, and whatever
breaks it is kept in ``violations``. A contract checks shape, not behaviour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from airflow_multideploy.sandbox.gcp_cloud_run import ACCOUNT, PROJECT, UNIVERSE, _key
from airflow_multideploy.sandbox.server import Faults, Message, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import World

Json = dict[str, Any]
HTTP = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
}
TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "number": (int, float), "integer": int}


class Violation(AssertionError):
    """Something that the contract does not allow."""


class ApiError(Exception):
    """What an API refuses with."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> bytes:
        error = {"code": HTTP[self.status], "message": str(self), "status": self.status}
        return json.dumps({"error": error}).encode()


def stamp(seconds: float) -> str:
    """Epoch seconds as Google writes a moment."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _methods(resource: Json) -> Iterator[Json]:
    yield from resource.get("methods", {}).values()
    for child in resource.get("resources", {}).values():
        yield from _methods(child)


class Discovery:
    """One of Google's discovery documents, as a judge."""

    def __init__(self, name: str) -> None:
        import googleapiclient.discovery_cache

        path = Path(googleapiclient.discovery_cache.__file__).parent / "documents" / f"{name}.json"
        self.document: Json = json.loads(path.read_text())
        self.schemas: Json = self.document["schemas"]
        self.routes = []
        for method in _methods({"resources": self.document["resources"]}):
            place = "/" + self.document["servicePath"] + method.get("flatPath", method["path"])
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/:]+)", place)
            self.routes.append((method["httpMethod"], re.compile(pattern), method))

    def route(self, verb: str, raw_path: str) -> tuple[Json, dict[str, str]] | None:
        """The method of a request, and its path parameters."""
        for method_verb, pattern, method in self.routes:
            if method_verb == verb and (found := pattern.fullmatch(raw_path)):
                return method, {name: unquote(value) for name, value in found.groupdict().items()}
        return None

    def request(self, method: Json, query: dict[str, str], body: Any) -> None:
        """Judge a request's query and body."""
        known = {n: p for n, p in method["parameters"].items() if p["location"] == "query"}
        for name, value in query.items():
            if name not in known and name not in self.document["parameters"]:
                raise Violation(f"{method['id']}: unknown query parameter {name}")
            self.scalar(known.get(name, {"type": "string"}), value, name, text=True)
        if (body is not None) != ("request" in method):
            raise Violation(f"{method['id']}: body {'without' if body is not None else 'missing for'} a schema")
        if body is not None:
            self.value(method["request"], body, method["id"], request=True)

    def answer(self, method: Json, query: dict[str, str], document: Json) -> None:
        """Judge an answer."""
        self.value(method["response"], document, method["id"])
        if "fields" in query and set(document) - set(query["fields"].split(",")):
            raise Violation(f"{method['id']}: more than the fields {query['fields']}")

    def value(self, schema: Json, value: Any, at: str, *, request: bool = False) -> None:
        """Judge a value by its schema."""
        schema = self.schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema.get("type")
        if kind == "any":
            return
        if not isinstance(value, TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
            raise Violation(f"{at}: expected {kind}, got {value!r}")
        if kind == "array":
            for index, item in enumerate(value):
                self.value(schema["items"], item, f"{at}[{index}]", request=request)
        elif kind == "object":
            self.object(schema, value, at, request=request)
        else:
            self.scalar(schema, value, at)

    def object(self, schema: Json, value: Json, at: str, *, request: bool) -> None:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        if "@type" in value:  # google.protobuf.Any: judged by what it says it is
            name = value["@type"].rsplit(".", 1)[-1]
            typed = next(s for s in self.schemas if s == name or re.fullmatch(rf"Google\w*V\d{name}", s))
            self.value({"$ref": typed}, {k: v for k, v in value.items() if k != "@type"}, f"{at}<{name}>")
            return
        for key, item in value.items():
            if key in properties:
                if request and (
                    properties[key].get("readOnly") or "@OutputOnly" in properties[key].get("description", "")
                ):
                    raise Violation(f"{at}.{key}: read-only, in a request")
                self.value(properties[key], item, f"{at}.{key}", request=request)
            elif more is not None:
                self.value(more, item, f"{at}.{key}", request=request)
            else:
                raise Violation(f"{at}.{key}: unknown")

    def scalar(self, schema: Json, value: Any, at: str, *, text: bool = False) -> None:
        if "enum" in schema and value not in schema["enum"]:
            raise Violation(f"{at}: {value!r} is none of {schema['enum']}")
        form = schema.get("format", "")
        if form in ("int64", "uint64", "int32") and not re.fullmatch(r"-?\d+", str(value)):
            raise Violation(f"{at}: {value!r} is no {form}")
        if form in ("google-datetime", "date-time"):
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise Violation(f"{at}: {value!r} is no moment") from None
        if form == "google-duration" and not re.fullmatch(r"\d+(\.\d+)?s", value):
            raise Violation(f"{at}: {value!r} is no duration")
        if form == "google-fieldmask" and not re.fullmatch(r"[a-zA-Z.]+(,[a-zA-Z.]+)*", value):
            raise Violation(f"{at}: {value!r} is no field mask in JSON form")
        if text and schema["type"] == "boolean" and value not in ("true", "false"):
            raise Violation(f"{at}: {value!r} is no boolean")


@cache
def discovery(name: str) -> Discovery:
    """Read once: it takes a while."""
    return Discovery(name)


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    name = next((n for n, code in HTTP.items() if code == status), "UNKNOWN")
    return ApiError(name, f"{name.replace('_', ' ').capitalize()}.").body(), {}


class GoogleStandIn:
    """Some of Google's REST APIs on a loopback port. A subclass gives the methods that it serves, by their id.

    Credentials are a service account's self-signed JWT, as a partner's cloud takes them (AIP-4111); the key's id,
    which is the secret, its signature and its expiry are checked.
    """

    kind: str
    documents: tuple[str, ...]

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret = world, secret
        self._server = Server(Faults(self._app, world, self.kind, error_body=_error_body), port=port)
        self.url, self.port = self._server.url, self._server.port
        self.seen: set[str] = set()
        self.refusals: set[str] = set()
        self.violations: list[Exception] = []

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def connection(self) -> Json:
        key = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": self.secret,
            "private_key": _key()[0],
            "client_email": ACCOUNT,
            "client_id": "100000000000000000001",
            "token_uri": f"{self.url}/token",
            "universe_domain": UNIVERSE,
        }
        extra = {"project": PROJECT, "api_endpoint": self.url, "keyfile_dict": key}
        return {"conn_type": "google_cloud_platform", "extra": extra}

    def methods(self) -> dict[str, Callable[[dict[str, str], dict[str, str], Json], Json]]:
        """What is served: by method id, a function of path parameters, query and body."""
        raise NotImplementedError

    def _allowed(self, authorization: str) -> bool:
        from google.auth import jwt
        from google.auth.exceptions import GoogleAuthError

        scheme, _, token = authorization.partition(" ")
        try:
            claims: Json = jwt.decode(token, certs={self.secret: _key()[1]})  # type: ignore[no-untyped-call]
        except (ValueError, GoogleAuthError):
            return False
        return scheme == "Bearer" and claims["iss"] == ACCOUNT

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        try:
            status, body = 200, json.dumps(self._served(scope, message.get("body", b""))).encode()
        except ApiError as error:
            self.refusals.add(error.status)
            status, body = HTTP[error.status], error.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _served(self, scope: Scope, raw: bytes) -> Json:
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        if not self._allowed(headers.get("authorization", "")):
            raise ApiError("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        for judge in map(discovery, self.documents):
            found = judge.route(scope["method"], scope["raw_path"].decode())
            if found is not None:
                method, params = found
                break
        else:
            self.violations.append(Violation(f"no method {scope['method']} {scope['path']}"))
            raise ApiError("NOT_FOUND", f"no method {scope['method']} {scope['path']}")
        try:
            body = json.loads(raw) if raw else None
            judge.request(method, query, body)
        except (Violation, ValueError) as error:
            self.violations.append(error)
            raise ApiError("INVALID_ARGUMENT", str(error)) from error
        answer = self.methods()[method["id"]](params, query, body or {})
        try:
            judge.answer(method, query, answer)
        except Violation as error:
            self.violations.append(error)
            raise ApiError("INTERNAL", str(error)) from error
        self.seen.add(method["id"])
        return answer
