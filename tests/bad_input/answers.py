"""Answers of platforms and registries, recorded from stand-ins and then bent, as the official SDKs bring them to us.

A recording proxy stands before each stand-in while a release goes its way; afterwards the same steps are made again
against the recorded answers alone, one or two of them bent: fields dropped, types changed, JSON cut off, a proxy's
page, statuses and headers that nobody sends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Self

import grpc
import httpx
import trustme
from google.cloud import run_v2
from google.protobuf.json_format import ParseDict, ParseError

from airflow_multideploy.images import registry
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Platform, Release, Snapshot
from airflow_multideploy.release.wait import SystemClock, Watch, follow
from airflow_multideploy.sandbox import Sandbox
from airflow_multideploy.sandbox.server import Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import PLATFORMS, RolloutFault
from tests.bad_input.documents import read
from tests.bad_input.garbage import CANARIES, HIDDEN, PASSWORD, bent, bent_text

IMAGE = "registry.example.com/shop"
OLD, NEW = f"{IMAGE}:1.0.0", f"{IMAGE}:1.1.0"
RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4")
STEPS = ("snapshot", "deploy", "observe", "aobserve", "rollback")
STATUSES = (
    *(100, 199, 201, 202, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 408, 409, 410, 412, 415, 418),
    *(422, 423, 429, 451, 500, 501, 502, 503, 504, 511, 599, 600, 999),
)
_NEVER = ("Wed, 21 Oct 2199 07:28:00 GMT", "Wed, 99 Oct 2199 99:28:00 +9999")
HEADERS = {
    "retry-after": ("soon", "-5", "1e9", "9" * 400, "\xb2", "0.5", "", *_NEVER),
    "date": ("yesterday", "", "\xb2", "0", *_NEVER),
    "content-type": ("text/html", "", "application/json; charset=nonsense", "application/json; charset=utf-16", "x"),
    "content-encoding": ("gzip", "br", "nonsense"),
    "etag": ("", "W/x", "\xe9", '"' * 3000),
    "location": ("http://127.0.0.1:1/x", "//x", "\x7f"),
    "www-authenticate": ('Bearer realm="http://127.0.0.1:1/t"', "Bearer", "Negotiate \xff"),
    "x-amzn-errortype": ("ThrottlingException", "\xe9", ""),
}
PAGES = (
    *(b"", b"<html><body>Bad gateway</body></html>", b"null", b"[]", b"{}", b'""', b"0", b"true", b"\xff\xfe\x00"),
    *(b"{" * 2000, b"[" * 100_000 + b"]" * 100_000, b"1e999", b'{"a":1}{"a":2}', b"x" * 2_000_000, b"NaN"),
    CANARIES[0].encode(),
)


@dataclass
class Recorded:
    """One answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Tape:
    """All answers of one step, by request, in order."""

    answers: dict[str, list[Recorded]] = field(default_factory=lambda: defaultdict(list))

    @property
    def length(self) -> int:
        return sum(map(len, self.answers.values()))


class Wire:
    """A server that records what an upstream answers, or plays a tape, some of its answers bent.

    :param plan: which answers, counted from 0, are bent, and how.
    """

    def __init__(self, upstream: str, chain: str | None) -> None:
        self.upstream, self.tape = upstream, Tape()
        self.plan: dict[int, Callable[[Recorded], Recorded]] = {}
        self.recording, self.count, self._played = True, 0, defaultdict[str, int](int)
        self._server = Server(self, tls=(chain, chain) if chain else None)
        self.url = self._server.url

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def rewind(self, plan: dict[int, Callable[[Recorded], Recorded]], tape: Tape) -> None:
        """Play this tape from its beginning."""
        self.plan, self.tape, self.recording, self.count = plan, tape, False, 0
        self._played.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        headers = {k.decode().lower(): v.decode("latin-1") for k, v in scope["headers"]}
        key = f"{scope['method']} {scope['path']} {headers.get('x-amz-target', '')}"
        answer = await self._asked(scope, headers, body, key) if self.recording else self._play(key)
        raw = [(k.encode(), v.encode("latin-1")) for k, v in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body})

    async def _asked(self, scope: Scope, headers: dict[str, str], body: bytes, key: str) -> Recorded:
        url = f"{self.upstream}{scope['path']}?{scope['query_string'].decode()}"
        async with httpx.AsyncClient(verify=False) as client:
            answer = await client.request(scope["method"], url, headers=headers, content=body)
        dropped = ("content-length", "transfer-encoding", "connection", "server")
        kept = [(k, v) for k, v in answer.headers.items() if k not in dropped]
        recorded = Recorded(answer.status_code, kept, answer.content.replace(self.upstream.encode(), self.url.encode()))
        self.tape.answers[key].append(recorded)
        return recorded

    def _play(self, key: str) -> Recorded:
        known = self.tape.answers.get(key) or [Recorded(404, [("content-type", "application/json")], b"{}")]
        answer = known[min(self._played[key], len(known) - 1)]
        self._played[key] += 1
        change = self.plan.get(self.count)
        self.count += 1
        return change(answer) if change else answer


def bend(rng: random.Random) -> Callable[[Recorded], Recorded]:
    """One way to spoil an answer; drawn now, applied when the answer comes."""
    seed, kind = (
        rng.getrandbits(32),
        rng.choice(("document", "document", "document", "text", "page", "status", "header", "mixed")),
    )

    def change(answer: Recorded) -> Recorded:
        mine = random.Random(seed)
        status, headers, body = answer.status, dict(answer.headers), answer.body
        if kind in ("document", "mixed"):
            try:
                body = json.dumps(bent(mine, json.loads(body), json_only=True)).encode()
            except ValueError:
                body = bent_text(mine, body, PAGES[:6])
        if kind == "text":
            body = bent_text(mine, body, PAGES)
        if kind == "page":
            body = mine.choice(PAGES)
        if kind in ("status", "mixed"):
            status = mine.choice(STATUSES)
        if kind in ("header", "mixed"):
            name = mine.choice(list(HEADERS))
            headers[name] = mine.choice(HEADERS[name])
        return Recorded(status, list(headers.items()), b"" if status in (100, 199, 204, 304) else body)

    return change


class GrpcWire:
    """The same for the gRPC side of Cloud Run, which only the triggerer speaks: one service document, bent or not."""

    def __init__(self, chain: bytes) -> None:
        self.answer = b""
        wire = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(lambda request, context: wire.answer)

        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((Handler(),))
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(chain, chain)]))
        self.url = f"https://127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait(10)

    def spoil(self, rng: random.Random, recorded: Recorded) -> None:
        """Answer with this service, bent as JSON as far as a message can hold it, or as bytes."""
        document = json.loads(recorded.body)
        if rng.random() < 0.7:
            document = bent(rng, document, json_only=True)
        try:
            message = ParseDict(document, run_v2.Service.pb()(), ignore_unknown_fields=True)
        except (ParseError, TypeError, ValueError, RecursionError):  # no message can hold that: as bytes, then
            self.answer = bent_text(rng, json.dumps(document).encode()[:5000], PAGES[:6])
            return
        self.answer = message.SerializeToString()
        if rng.random() < 0.3:
            self.answer = bent_text(rng, self.answer, PAGES[:6])


class Studio:
    """The four platforms' wires with their tapes: recorded once, played as often as wanted."""

    def __enter__(self) -> Self:
        self._exits, self._loop = ExitStack(), asyncio.new_event_loop()
        self.tapes: dict[str, dict[str, Tape]] = {}
        self.documents: dict[str, tuple[Snapshot, Handle]] = {}
        self.wires: dict[str, Wire] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self._folder = Path(self._exits.enter_context(TemporaryDirectory()))
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(self._folder / "ca.pem"))
        issued.private_key_and_cert_chain_pem.write_to_path(str(self._folder / "chain.pem"))
        sandbox = self._exits.enter_context(Sandbox(seconds=0.2))
        self._exits.callback(self._loop.close)
        self._exits.callback(lambda: self._loop.run_until_complete(asyncio.sleep(0.2)))  # what was closed ends there
        self.grpc = GrpcWire((self._folder / "chain.pem").read_bytes())
        self._exits.callback(self.grpc.stop)
        for kind in PLATFORMS:
            self._record(sandbox, kind)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def platform(self, kind: str) -> Platform[Any]:
        """A fresh adapter on the wire of this kind."""
        return adapter(self.configs[kind], service="shop", target="t1")

    def step(self, kind: str, step: str, snapshot: Snapshot, handle: Handle) -> object:
        """Make one step with a fresh adapter."""
        platform = self.platform(kind)
        if step == "snapshot":
            return platform.snapshot()
        if step == "deploy":
            return platform.deploy(RELEASE, snapshot)
        if step == "rollback":
            return platform.rollback(RELEASE, snapshot, handle)
        return (
            self._loop.run_until_complete(platform.aobserve(handle)) if step == "aobserve" else platform.observe(handle)
        )

    def _record(self, sandbox: Sandbox, kind: str) -> None:
        stand_in = sandbox.stand_ins[kind]
        wire = Wire(stand_in.url, str(self._folder / "chain.pem") if stand_in.url.startswith("https:") else None)
        wire.start()
        self._exits.callback(wire.stop)
        sandbox.seed(kind, "shop", OLD)
        _plant(stand_in)
        connection = json.loads(json.dumps(stand_in.connection()).replace(stand_in.url, wire.url))
        extra = connection.get("extra", {})
        if "ca_file" in extra:
            extra["ca_file"] = str(self._folder / "ca.pem")
        if "grpc_ca" in extra:
            extra |= {"grpc_endpoint": self.grpc.url, "grpc_ca": (self._folder / "ca.pem").read_text()}
        os.environ[f"AIRFLOW_CONN_BAD_{kind.upper()}"] = json.dumps(connection)
        target = json.dumps(stand_in.target("shop")).replace(stand_in.url, wire.url)
        self.configs[kind] = {**json.loads(target), "conn_id": f"bad_{kind}"}
        self.wires[kind], tapes = wire, {}
        wire.tape = tapes["snapshot"] = Tape()
        snapshot = self.platform(kind).snapshot()
        wire.tape = tapes["deploy"] = Tape()
        sandbox.world.rollout_faults.append(RolloutFault(kind, "slow", seconds=1.0))
        handle = self.platform(kind).deploy(RELEASE, snapshot)
        self.documents[kind] = snapshot, handle
        wire.tape = tapes["observe"] = Tape()
        self.platform(kind).observe(handle)
        wire.tape = Tape()
        watch = Watch(deadline=SystemClock().time() + 30, interval=0.2)
        follow(lambda: self.platform(kind).observe(handle), watch=watch, clock=SystemClock())
        wire.tape = tapes["healthy"] = Tape()
        self.platform(kind).observe(handle)
        tapes["aobserve"] = tapes["healthy"]
        wire.tape = tapes["rollback"] = Tape()
        self.platform(kind).rollback(RELEASE, snapshot, handle)
        self.tapes[kind] = tapes


def _plant(stand_in: Any) -> None:
    """Somebody else's secret where the platform keeps such things."""
    if stand_in.kind == "azure_web_app":
        stand_in.sites["shop"].metadata["OTHERS"] = HIDDEN
        stand_in._token = HIDDEN
    elif stand_in.kind == "aws_ecs":
        definition = stand_in._backend.describe_task_definition("shop")
        definition.container_definitions[0]["environment"] = [{"name": "DATABASE", "value": HIDDEN}]
    elif stand_in.kind == "gcp_cloud_run":
        (service,) = stand_in.run.services.values()
        service.spec["template"]["containers"][0]["env"] = [{"name": "DATABASE", "value": HIDDEN}]


def platform_answers(studio: Studio, kind: str) -> Callable[[random.Random], bool]:
    """Bent answers of one platform."""

    def one(rng: random.Random) -> bool:
        step = rng.choice(STEPS)
        tape = studio.tapes[kind][step if step != "observe" else rng.choice(("observe", "healthy"))]
        length = max(1, tape.length)
        plan = {rng.randrange(length): bend(rng) for _ in range(rng.choice((1, 1, 2)))}
        studio.wires[kind].rewind(plan, tape)
        if step == "aobserve" and kind == "gcp_cloud_run":
            studio.grpc.spoil(rng, next(iter(tape.answers.values()))[0])
        snapshot, handle = studio.documents[kind]
        if rng.random() < 0.15:  # what we kept of it ourselves is spoilt as well
            snapshot = snapshot.model_copy(update={"data": _bent_mapping(rng, snapshot.data)})
            handle = handle.model_copy(update={"data": _bent_mapping(rng, handle.data)})
        return read(lambda: studio.step(kind, step, snapshot, handle), "shop/t1")

    return one


def _bent_mapping(rng: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    found = bent(rng, document, json_only=True)
    return found if isinstance(found, dict) else {}


def registry_answers(studio: Studio) -> Callable[[random.Random], bool]:
    """Bent answers of an image registry: its challenge, its token, its manifest."""
    wire, tape = studio.wires["http"], Tape()
    media, digest = registry.MANIFEST_TYPES[0], "sha256:" + hashlib.sha256(b"{}").hexdigest()
    challenge = Recorded(401, [("www-authenticate", f'Bearer realm="{wire.url}/token",service="r"')], b"{}")
    manifest = Recorded(200, [("content-type", media), ("docker-content-digest", digest)], b"{}")
    plain = Recorded(200, [("content-type", media)], b"{}")
    tape.answers["HEAD /v2/shop/manifests/1.0 "] = [challenge, manifest]
    tape.answers["GET /token "] = [Recorded(200, [("content-type", "application/json")], b'{"token": "t"}')]
    tape.answers["GET /v2/shop/manifests/1.0 "] = [plain]
    host = wire.url.removeprefix("http://")
    known = SimpleNamespace(conn_id="r", host=host, schema="http", port=None, login="shop", password=PASSWORD)

    def one(rng: random.Random) -> bool:
        wire.rewind({rng.randrange(4): bend(rng) for _ in range(rng.choice((1, 1, 2, 3)))}, tape)
        return read(lambda: registry.resolve("shop", "1.0", known), f"registry {host}")

    return one
