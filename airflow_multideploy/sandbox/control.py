"""The sandbox's control API: scripts faults, seeds resources, and tells what really runs. Loopback only, no login."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_multideploy.sandbox.server import App
from airflow_multideploy.sandbox.world import CallFault, RandomFaults, RolloutFault

if TYPE_CHECKING:
    from airflow_multideploy.sandbox import Sandbox

_FAULTS: dict[str, type[RolloutFault | CallFault | RandomFaults]] = {
    "outcome": RolloutFault,
    "answer": CallFault,
    "rate": RandomFaults,
}
"""Kind of fault by the key that only it has."""
_FLAGS = {None: None, "true": True, "1": True, "false": False, "0": False}


def control_app(sandbox: Sandbox) -> App:
    """The control API of one sandbox.

    ``POST /faults`` takes one fault or a list; ``GET`` shows those to come; ``DELETE`` forgets faults and call log.
    ``GET /held`` lists the held calls; ``POST`` lets them go on: ``{"operation": …, "drop": …}``, as `World.release`.
    ``GET /state`` tells what each seeded resource really serves. ``GET /calls?platform=&writes=`` is the call log.
    ``POST /seed`` and ``POST /meddle`` take ``{"platform", "resource", "image"}``. Errors are 400 with ``{"error"}``.
    """
    control = _Control(sandbox)
    routes = [
        Route("/healthz", control.healthz),
        Route("/faults", control.faults, methods=["GET", "POST", "DELETE"]),
        Route("/held", control.held, methods=["GET", "POST"]),
        Route("/state", control.state),
        Route("/calls", control.calls),
        Route("/seed", control.seed, methods=["POST"]),
        Route("/meddle", control.meddle, methods=["POST"]),
    ]
    return cast(App, Starlette(routes=routes, exception_handlers={ValueError: _refuse, HTTPException: _refuse}))


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)
    return JSONResponse({"error": str(error)}, 400)


class _Control:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.world = sandbox, sandbox.world

    async def healthz(self, request: Request) -> Response:
        stand_ins = {kind: stand_in.url for kind, stand_in in self.sandbox.stand_ins.items()}
        return JSONResponse({"status": "ok", "platforms": stand_ins})

    async def faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.world.clear()
        elif request.method == "POST":
            document = await _json(request)
            faults = document if isinstance(document, list) else [document]
            for fault in faults:  # all are checked before the first one counts
                self._check_fault(fault)
            for fault in faults:
                self.world.add_fault(fault)
        return JSONResponse(self.world.document(), 201 if request.method == "POST" else 200)

    async def held(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"held": self.world.held()})
        document = await _json(request)
        if not isinstance(document, dict) or set(document) - {"operation", "drop"}:
            raise ValueError('expected {"operation": …, "drop": …}')
        operation, drop = document.get("operation", ""), document.get("drop", False)
        if not isinstance(operation, str) or not isinstance(drop, bool):
            raise ValueError("expected operation as a text, and drop as true or false")
        return JSONResponse({"released": self.world.release(operation, drop=drop)})

    async def state(self, request: Request) -> Response:
        def read() -> dict[str, Any]:
            seeded = self.sandbox.seeded()
            return {k: {r: asdict(self.sandbox.stand_ins[k].live(r)) for r in names} for k, names in seeded.items()}

        return JSONResponse(await run_in_threadpool(read))

    async def calls(self, request: Request) -> Response:
        flag = request.query_params.get("writes")
        if flag not in _FLAGS:
            raise ValueError(f"writes: expected true or false, got {flag!r}")
        platform = request.query_params.get("platform")
        kinds = [self._platform(platform)] if platform else list(self.sandbox.stand_ins)
        calls = [call for kind in kinds for call in self.world.calls_of(kind, writes=_FLAGS[flag])]
        return JSONResponse([asdict(call) for call in sorted(calls, key=lambda call: call.at)])

    async def seed(self, request: Request) -> Response:
        return await self._change(request, self.sandbox.seed, empty=True)

    async def meddle(self, request: Request) -> Response:
        return await self._change(request, lambda kind, *args: self.sandbox.stand_ins[kind].meddle(*args), empty=False)

    async def _change(self, request: Request, change: Callable[..., None], *, empty: bool) -> Response:
        document = await _json(request)
        if not isinstance(document, dict) or set(document) - {"platform", "resource", "image"}:
            raise ValueError('expected {"platform": …, "resource": …, "image": …}')
        kind, resource, image = (
            self._platform(document.get("platform")),
            document.get("resource"),
            document.get("image"),
        )
        if not isinstance(resource, str) or not resource:
            raise ValueError(f"resource: expected a name, got {resource!r}")
        if not (isinstance(image, str) and image) and not (empty and image is None):
            raise ValueError(f"image: expected an image reference{' or null' if empty else ''}, got {image!r}")
        if not empty and resource not in self.sandbox.seeded().get(kind, []):
            raise ValueError(f"resource: {resource!r} was not seeded on {kind}")
        await run_in_threadpool(change, kind, resource, image)
        live = await run_in_threadpool(self.sandbox.stand_ins[kind].live, resource)
        return JSONResponse(asdict(live), 201)

    def _platform(self, kind: object) -> str:
        if isinstance(kind, str) and kind in self.sandbox.stand_ins:
            return kind
        raise ValueError(f"platform: expected one of {', '.join(self.sandbox.stand_ins)}, got {kind!r}")

    def _check_fault(self, document: object) -> None:
        kinds = [kind for key, kind in _FAULTS.items() if isinstance(document, dict) and key in document]
        if not isinstance(document, dict) or len(kinds) != 1:
            raise ValueError(
                "fault: expected an object with 'outcome' (a rollout's) or 'answer' (a call's) or 'rate' (of all calls)"
            )
        kind = kinds[0]
        if kind is not RandomFaults:
            self._platform(document.get("platform"))
        if unknown := sorted(map(str, document.keys() - kind.__dataclass_fields__.keys())):
            raise ValueError(f"fault: unknown {', '.join(unknown)}; there are {', '.join(kind.__dataclass_fields__)}")
        try:
            TypeAdapter(kind).validate_json(json.dumps(document), strict=True)
            re.compile(document.get("operation", ""))
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ValueError(f"fault: {'; '.join(lines)}") from None
        except re.error as error:
            raise ValueError(f"fault: operation: no regular expression: {error}") from None


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"body: expected JSON: {error}") from None
