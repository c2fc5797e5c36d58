"""Serving a stand-in on loopback: uvicorn in a thread, with call log and call faults in front of the application."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_multideploy.sandbox.world import Call, CallFault, World

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Describe(Protocol):
    """Names a request for the log and the fault script: (operation, whether it writes)."""

    def __call__(self, scope: Scope, body: bytes) -> tuple[str, bool]: ...


def by_method(scope: Scope, body: bytes) -> tuple[str, bool]:
    """``PUT /path`` as the operation; everything but GET and HEAD writes."""
    return f"{scope['method']} {scope['path']}", scope["method"] not in ("GET", "HEAD")


class _Protocol(H11Protocol):
    """Hands the transport to the application, so that a fault can tear the connection down."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        app = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})["sandbox.transport"] = transport
            await app(scope, receive, send)

        self.app = with_transport

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            # Closing TLS waits for the peer's farewell, which a client that merely keeps its connection never says.
            self.transport.abort()


def _reset(scope: Scope) -> None:
    transport = scope["extensions"]["sandbox.transport"]
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Faults:
    """ASGI middleware: records every call in the world's log and plays the call faults.

    :param rate_limited: makes the platform's own 429 body and headers.
    """

    def __init__(
        self,
        app: App,
        world: World,
        platform: str,
        *,
        describe: Describe = by_method,
        error_body: Callable[[int], tuple[bytes, dict[str, str]]] | None = None,
    ) -> None:
        self.app, self.world, self.platform, self.describe = app, world, platform, describe
        self.error_body = error_body or (lambda status: (json.dumps({"error": status}).encode(), {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await _body(receive)
        operation, writes = self.describe(scope, body)
        fault = self.world.call_fault(self.platform, operation)
        call = self.world.record(
            Call(self.world.now(), self.platform, operation, writes, fault=None if fault is None else fault.answer)
        )
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        async def effect(to: Send) -> None:
            """The call itself."""

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.status = message["status"]
                await to(message)

            await self.app(scope, replay, watch)

        if fault is None:
            await effect(send)
        else:
            await self._play(fault, scope, effect, send, call)

    async def _play(
        self, fault: CallFault, scope: Scope, effect: Callable[[Send], Awaitable[None]], send: Send, call: Call
    ) -> None:
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        if fault.answer in ("lost", "held_after"):
            await effect(keep)
        if fault.answer in ("held", "held_after"):
            for pause in fault.hold():
                await asyncio.sleep(pause)
        if fault.answer == "hang":
            await asyncio.sleep(fault.seconds)
        if fault.answer in ("reset", "lost", "hang") or fault.dropped:
            _reset(scope)
        elif fault.answer == "held":
            await effect(send)
        elif fault.answer == "held_after":
            for message in answer:
                await send(message)
        elif fault.answer == "malformed":
            call.status = 200
            await _answer(send, 200, b"<html>Bad gateway</html>", {"content-type": "text/html"})
        else:
            call.status = int(fault.answer)
            error_body, headers = self.error_body(call.status)
            headers = {"content-type": "application/json", **headers}
            if call.status == 429:
                headers["retry-after"] = str(int(fault.retry_after))
            await _answer(send, call.status, error_body, headers)


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def listen(port: int = 0) -> socket.socket:
    """A bound loopback socket; port 0 takes a free one.

    It names TCP, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for an acknowledgement.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


class Server:
    """An ASGI application served from a thread on 127.0.0.1.

    :param port: 0 takes a free one; read it from ``port``.
    :param tls: (certificate chain file, key file) in PEM, or None for plain http.
    """

    def __init__(self, app: App, *, port: int = 0, tls: tuple[str, str] | None = None) -> None:
        self._sock = listen(port)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            app,
            http=_Protocol,
            loop="asyncio",
            lifespan="off",
            log_level="critical",
            access_log=False,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), daemon=True, name=f"sandbox:{self.port}"
        )

    async def _serve(self) -> None:
        await self._server.serve(sockets=[self._sock])
        # Whoever is connected still, or has just been: a transport that outlives its loop is never closed.
        for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
            transport.abort()
        await asyncio.sleep(0.01)

    def start(self) -> Server:
        """Serve; returns when the socket accepts."""
        self._thread.start()
        until = time.monotonic() + 10
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                raise RuntimeError(f"sandbox server on {self.url} did not start")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Stop serving and close the socket."""
        self._server.should_exit = True
        self._thread.join(10)
        self._sock.close()
