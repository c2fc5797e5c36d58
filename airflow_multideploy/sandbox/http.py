"""Stand-in for an on-prem deploy API, in a rich and in a poor manner, on the same applications.

Rich, as ``/openapi.json`` says (written by hand in `http_openapi`): ``PUT /apps/{app}`` with ``If-Match`` and
``Idempotency-Key``, an operation to poll, the live version, health, ``DELETE``. Poor: ``POST /deploy`` with the form
field ``image``, and ``GET /{app}/version.txt``, which takes no credentials.

On its own initiative, beyond that document: a new ``PUT`` cancels the operation under way; while one runs, and after
it failed, the previous release keeps serving; a replayed ``Idempotency-Key`` gets the first answer again, and a
different request under a used key is refused with 422; the poor manner derives the application from the last part of
the image's repository.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from airflow_multideploy.sandbox.http_openapi import DOCUMENT
from airflow_multideploy.sandbox.server import App, Faults, Server
from airflow_multideploy.sandbox.world import Course, Live, World

if TYPE_CHECKING:
    import trustme

_PROBLEM = "application/problem+json"
_TITLES = {
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    412: "Precondition Failed",
    428: "Precondition Required",
}
_TITLES |= {400: "Bad Request", 422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error"}
_OPEN = ("/openapi.json", "/version.txt")


@dataclass(frozen=True)
class _Release:
    image: str
    version: str
    release_id: str | None
    revision: str


@dataclass
class _Operation:
    id: str
    release: _Release
    course: Course
    started: float
    ended: str | None = None


@dataclass
class _App:
    told: _Release
    serving: _Release | None
    generation: int
    operation: _Operation | None = None


@dataclass
class _State:
    apps: dict[str, _App] = field(default_factory=dict)
    operations: dict[str, _Operation] = field(default_factory=dict)
    revisions: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, tuple[str, Response]] = field(default_factory=dict)
    counter: int = 0

    def next(self) -> int:
        self.counter += 1
        return self.counter


class HttpStandIn:
    """An on-prem deploy API on 127.0.0.1.

    :param ca: not used; it speaks plain http on loopback.
    :param secret: the bearer token that it expects.
    :param manner: which catalog entry `target` gives: ``rich``; ``poor``: with a version URL; ``blind``: without.
    """

    kind = "http"

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        ca: trustme.CA | None = None,
        secret: str = "sandbox-secret",
        manner: Literal["rich", "poor", "blind"] = "rich",
    ) -> None:
        self.world, self.secret, self.manner, self.url = world, secret, manner, ""
        self.app = self._application()
        self._port = port
        self._server: Server | None = None
        self._lock = threading.RLock()
        self._state = _State()

    # --- StandIn ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve on loopback."""
        self._server = Server(Faults(self.app, self.world, self.kind, error_body=_fault_body), port=self._port).start()
        self.url = self._server.url

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection with the bearer token as its password."""
        return {"conn_type": "http", "host": self.url, "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of an application, in this stand-in's manner."""
        if self.manner == "blind":
            return {"platform": self.kind}
        if self.manner == "poor":
            return {"platform": self.kind, "version": {"path": f"/{resource}/version.txt"}}
        app = f"/apps/{resource}"
        return {
            "platform": self.kind,
            "deploy": {
                "method": "PUT",
                "path": app,
                "json": {
                    "image": "${image}",
                    "version": "${version}",
                    "release_id": "${release_id}",
                    "reason": "${reason}",
                },
            },
            "operation": "operation",
            "status": {
                "path": "/operations/${operation}",
                "state": "state",
                "succeeded": ["succeeded"],
                "failed": ["failed", "canceled"],
                "reason": "reason",
                "progress": "progress",
            },
            "current": {
                "path": app,
                "image": "image",
                "version": "version",
                "release_id": "release_id",
                "operation": "operation",
            },
            "version": {"path": f"{app}/version", "json": "image", "equals": "${image}"},
            "health": {"path": f"{app}/health"},
            "remove": {"method": "DELETE", "path": app},
        }

    def seed(self, resource: str, image: str | None) -> None:
        """Create the application, serving this image; None: it does not exist."""
        with self._lock:
            self._state.apps.pop(resource, None)
            self._state.revisions[resource] = []
            if image is not None:
                release = _Release(image, _tag(image), None, f"seed-{self._state.next()}")
                self._state.apps[resource] = _App(release, release, self._state.next())

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else deploys this image by hand, at once."""
        with self._lock:
            app = self._advanced(resource)
            release = _Release(image, _tag(image), None, f"hand-{self._state.next()}")
            if app is not None:
                self._cancel(app)
            self._state.apps[resource] = _App(release, release, self._state.next())

    def live(self, resource: str) -> Live:
        """What the application really serves."""
        with self._lock:
            app = self._advanced(resource)
            if app is None:
                return Live(image=None, revision=None, settled=True)
            settled = app.operation is None or app.operation.ended is not None
            return Live(
                image=app.serving.image if app.serving else None,
                revision=app.serving.revision if app.serving else None,
                settled=settled,
            )

    def revisions(self, resource: str) -> list[str]:
        """Every revision that calls to the API created, oldest first."""
        with self._lock:
            return list(self._state.revisions.get(resource, []))

    # --- the API ---------------------------------------------------------------------------------------------------

    def _application(self) -> App:
        routes = [
            Route("/openapi.json", self._openapi),
            Route("/apps/{app}", self._current, methods=["GET"]),
            Route("/apps/{app}", self._put, methods=["PUT"]),
            Route("/apps/{app}", self._delete, methods=["DELETE"]),
            Route("/apps/{app}/version", self._version),
            Route("/apps/{app}/health", self._health),
            Route("/operations/{operation}", self._operation),
            Route("/deploy", self._poor_deploy, methods=["POST"]),
            Route("/{app}/version.txt", self._poor_version),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _problem})

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope)
            if not scope["path"].endswith(_OPEN) and request.headers.get("authorization") != f"Bearer {self.secret}":
                answer = await _problem(request, HTTPException(401, "no valid bearer token"))
                answer.headers["www-authenticate"] = "Bearer"
                await answer(scope, receive, send)
            else:
                await app(scope, receive, send)

        return guarded

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(DOCUMENT)

    async def _current(self, request: Request) -> Response:
        with self._lock:
            return self._document(request.path_params["app"], self._known(request), 200)

    async def _version(self, request: Request) -> Response:
        with self._lock:
            serving = self._known(request).serving
            if serving is None:
                raise HTTPException(404, "nothing serves yet")
            return JSONResponse({"image": serving.image, "version": serving.version, "revision": serving.revision})

    async def _health(self, request: Request) -> Response:
        with self._lock:
            up = self._known(request).serving is not None
            return JSONResponse({"status": "up" if up else "down"}, 200 if up else 503)

    async def _operation(self, request: Request) -> Response:
        with self._lock:
            operation = self._state.operations.get(request.path_params["operation"])
            if operation is None:
                raise HTTPException(404, "no such operation")
            for name in self._state.apps:
                self._advanced(name)
            elapsed = self.world.now() - operation.started
            document: dict[str, Any] = {"id": operation.id, "state": operation.ended or "running"}
            document["progress"] = 1.0 if operation.ended == "succeeded" else operation.course.progress(elapsed)
            if operation.ended == "failed":
                document["reason"] = operation.course.reason
            elif operation.ended == "canceled":
                document["reason"] = "replaced by a later deployment"
            return JSONResponse(document)

    async def _put(self, request: Request) -> Response:
        body = await request.body()
        document = _parsed(body)
        name = request.path_params["app"]
        with self._lock:
            key = request.headers.get("idempotency-key")
            fingerprint = f"PUT {name} {body!r}"
            if key in self._state.answers:
                used, answer = self._state.answers[key]
                if used != fingerprint:
                    raise HTTPException(422, f"Idempotency-Key {key!r} was used for a different request")
                return answer
            app = self._advanced(name)
            self._check(request, app)
            app = self._roll_out(name, document["image"], document["version"], document["release_id"])
            answer = self._document(name, app, 202)
            answer.headers["location"] = f"/operations/{app.operation.id}" if app.operation else ""
            if key is not None:
                self._state.answers[key] = fingerprint, answer
            return answer

    async def _delete(self, request: Request) -> Response:
        with self._lock:
            app = self._known(request)
            self._check(request, app)
            self._cancel(app)
            del self._state.apps[request.path_params["app"]]
            return Response(status_code=204)

    async def _poor_deploy(self, request: Request) -> Response:
        image = parse_qs((await request.body()).decode("ascii", "replace")).get("image", [""])[0]
        if not image:
            raise HTTPException(400, "form field image is missing")
        with self._lock:
            self._roll_out(image.partition("@")[0].rsplit("/", 1)[-1].partition(":")[0], image, _tag(image), None)
        return PlainTextResponse("accepted\n", 202)

    async def _poor_version(self, request: Request) -> Response:
        with self._lock:
            serving = self._known(request).serving
            if serving is None:
                raise HTTPException(404, "nothing serves yet")
            return PlainTextResponse(f"{serving.version}\n")

    # --- state -----------------------------------------------------------------------------------------------------

    def _known(self, request: Request) -> _App:
        app = self._advanced(request.path_params["app"])
        if app is None:
            raise HTTPException(404, f"no application {request.path_params['app']!r}")
        return app

    def _document(self, name: str, app: _App, status: int) -> Response:
        told = app.told
        document = {"name": name, "image": told.image, "version": told.version, "release_id": told.release_id}
        document |= {"revision": told.revision, "operation": app.operation.id if app.operation else None}
        return JSONResponse(document, status, {"etag": f'"{app.generation}"'})

    def _check(self, request: Request, app: _App | None) -> None:
        match, none = request.headers.get("if-match"), request.headers.get("if-none-match")
        if match is None and none != "*":
            raise HTTPException(428, "send If-Match with the ETag, or If-None-Match: * to create")
        if match is not None and (app is None or match not in ("*", f'"{app.generation}"')):
            raise HTTPException(412, f"the application changed: If-Match {match} is not its ETag")
        if none == "*" and app is not None:
            raise HTTPException(412, "the application exists")

    def _roll_out(self, name: str, image: str, version: str, release_id: str | None) -> _App:
        app = self._advanced(name)
        number = self._state.next()
        release = _Release(image, version, release_id, f"rev-{number}")
        operation = _Operation(f"op-{number}", release, self.world.course(self.kind, name), self.world.now())
        if app is not None:
            self._cancel(app)
        self._state.operations[operation.id] = operation
        self._state.apps[name] = _App(release, app.serving if app else None, self._state.next(), operation)
        self._state.revisions.setdefault(name, []).append(release.revision)
        return self._state.apps[name]

    def _advanced(self, name: str) -> _App | None:
        app = self._state.apps.get(name)
        operation = app and app.operation
        if app and operation and operation.ended is None:
            elapsed = self.world.now() - operation.started
            if operation.course.failed(elapsed):
                operation.ended = "failed"
            elif operation.course.done(elapsed):
                operation.ended, app.serving = "succeeded", operation.release
        return app

    @staticmethod
    def _cancel(app: _App) -> None:
        if app.operation and app.operation.ended is None:
            app.operation.ended = "canceled"


def _tag(image: str) -> str:
    tail = image.partition("@")[0].rsplit("/", 1)[-1]
    return tail.partition(":")[2] or image.rpartition("@")[2]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise HTTPException(400, f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise HTTPException(422, "expected an object")
    for name in ("image", "version", "release_id"):
        if not isinstance(document.get(name), str) or not document[name]:
            raise HTTPException(422, f"{name}: a string is required")
    return document


def _problem_body(status: int, detail: str) -> bytes:
    return json.dumps(
        {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status, "detail": detail}
    ).encode()


async def _problem(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    return Response(_problem_body(error.status_code, error.detail), error.status_code, media_type=_PROBLEM)


def _fault_body(status: int) -> tuple[bytes, dict[str, str]]:
    detail = "too many requests, try later" if status == 429 else "the deploy service has a problem"
    return _problem_body(status, detail), {"content-type": _PROBLEM}
