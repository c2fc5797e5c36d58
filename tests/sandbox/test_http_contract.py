"""Every request and answer of a deploy, a failing deploy and a rollback, held to the stand-in's OpenAPI document."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import validate

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Observation, Platform, Release, State
from airflow_multideploy.sandbox.http import HttpStandIn
from airflow_multideploy.sandbox.http_openapi import DOCUMENT
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World

OLD, NEW = "registry.example.com/shop:1.0.0", "registry.example.com/shop:1.1.0"
RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4")


@dataclass
class Exchange:
    """One request with its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""


class Recorder:
    """Keeps what passes through an application."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        kept = Exchange(scope["method"], scope["path"], headers, message.get("body", b""))
        self.exchanges.append(kept)

        async def watch(answer: Any) -> None:
            if answer["type"] == "http.response.start":
                kept.status = answer["status"]
                kept.answer_headers = {name.decode().lower(): value.decode() for name, value in answer["headers"]}
            else:
                kept.answer += answer.get("body", b"")
            await send(answer)

        async def again() -> Any:
            return message

        await self.app(scope, again, watch)


def fits(value: Any, schema: dict[str, Any], where: str) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def held(kind: str, body: bytes, content: dict[str, Any], where: str) -> None:
    kind = kind.partition(";")[0]
    if kind not in content:
        raise ValidationError(f"{where}: content type {kind!r}, expected {', '.join(content)}")
    text = body.decode()
    value = json.loads(text) if "json" in kind else dict(parse_qsl(text)) if "form" in kind else text
    fits(value, content[kind]["schema"], where)


def check(exchange: Exchange) -> str:
    """The operation's id; raises ValidationError when request or answer is not what the document says."""
    where = f"{exchange.method} {exchange.path} -> {exchange.status}"
    for template, item in DOCUMENT["paths"].items():
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template.replace(".", r"\."))
        if (match := re.fullmatch(pattern, exchange.path)) and exchange.method.lower() in item:
            operation = item[exchange.method.lower()]
            check_request(exchange, operation, item.get("parameters", []), match.groupdict(), where)
            check_answer(exchange, operation, where)
            return str(operation["operationId"])
    raise ValidationError(f"{where}: no such operation")


def check_request(exchange: Exchange, operation: Any, shared: list[Any], in_path: dict[str, str], where: str) -> None:
    for parameter in [*shared, *operation.get("parameters", [])]:
        name = parameter["name"]
        value = in_path.get(name) if parameter["in"] == "path" else exchange.headers.get(name.lower())
        if value is not None:
            fits(value, parameter["schema"], where)
        elif parameter["required"]:
            raise ValidationError(f"{where}: {name} is missing")
    if operation.get("security", DOCUMENT["security"]):
        fits(exchange.headers.get("authorization"), {"type": "string", "pattern": "^Bearer .+$"}, where)
    if "requestBody" in operation:
        held(exchange.headers.get("content-type", ""), exchange.body, operation["requestBody"]["content"], where)
    elif exchange.body:
        raise ValidationError(f"{where}: has a body")


def check_answer(exchange: Exchange, operation: Any, where: str) -> None:
    answer = operation["responses"].get(str(exchange.status))
    if answer is None:
        raise ValidationError(f"{where}: no such answer")
    for name, header in answer.get("headers", {}).items():
        fits(exchange.answer_headers.get(name.lower()), header["schema"], where)
    if "content" in answer:
        held(exchange.answer_headers.get("content-type", ""), exchange.answer, answer["content"], where)
    elif exchange.answer:
        raise ValidationError(f"{where}: answers with a body")


rich = pytest.mark.parametrize("stand_in", ["rich"], indirect=True)


@pytest.fixture
def world() -> World:
    return World(seconds=0.2)


@pytest.fixture(params=["rich", "poor"])
def stand_in(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpStandIn]:
    stand_in = HttpStandIn(world, manner=request.param)
    stand_in.app = Recorder(stand_in.app)
    stand_in.start()
    monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(stand_in.connection()))
    stand_in.seed("shop", OLD)
    yield stand_in
    stand_in.stop()


def platform(stand_in: HttpStandIn) -> Platform[Any]:
    return adapter({**stand_in.target("shop"), "conn_id": "dc1"}, service="shop", target="onprem")


def end(target: Platform[Any], handle: Handle) -> Observation:
    until = time.monotonic() + 5
    while True:
        seen = target.observe(handle)
        other = asyncio.run(target.aobserve(handle))
        if other.ended or time.monotonic() > until:
            return other
        assert not seen.ended
        time.sleep(0.05)


def operations(stand_in: HttpStandIn) -> set[str]:
    assert isinstance(stand_in.app, Recorder)
    return {check(exchange) for exchange in stand_in.app.exchanges}


def test_the_document_is_openapi() -> None:
    validate(DOCUMENT)


def test_deploy_failing_deploy_and_rollback(stand_in: HttpStandIn, world: World) -> None:
    target = platform(stand_in)
    snapshot = target.snapshot()
    handle = target.deploy(RELEASE, snapshot)
    assert end(target, handle).state is State.HEALTHY
    assert end(target, target.rollback(RELEASE, snapshot, handle)).state is State.HEALTHY
    if stand_in.manner == "poor":
        assert operations(stand_in) == {"poorDeploy", "poorVersion"}
        return
    world.rollout_faults.append(RolloutFault("http", "fails"))
    second = RELEASE.model_copy(update={"release_id": "r2"})
    snapshot = target.snapshot()
    failing = target.deploy(second, snapshot)
    assert end(target, failing).state is State.FAILED
    assert end(target, target.rollback(second, snapshot, failing)).state is State.HEALTHY
    assert operations(stand_in) == {"getApp", "deployApp", "getOperation", "getVersion", "getHealth"}


@rich
def test_a_first_ever_deploy_and_refusals(world: World, stand_in: HttpStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.seed("shop", None)
    target = platform(stand_in)
    snapshot = target.snapshot()
    world.call_faults.append(CallFault("http", "lost", operation="PUT"))
    with pytest.raises(PlatformError):
        target.deploy(RELEASE, snapshot)
    handle = target.deploy(RELEASE, snapshot)
    assert end(target, handle).state is State.HEALTHY
    assert end(target, target.rollback(RELEASE, snapshot, handle)).state is State.HEALTHY
    monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps({**stand_in.connection(), "password": "wrong"}))
    with pytest.raises(PlatformError, match="401"):
        platform(stand_in).snapshot()
    assert operations(stand_in) >= {"getApp", "deployApp", "removeApp"}
    assert {exchange.status for exchange in stand_in.app.exchanges} >= {200, 202, 204, 401, 404}


@rich
def test_what_the_api_refuses(world: World, stand_in: HttpStandIn) -> None:
    body = {"image": NEW, "version": "1.1.0", "release_id": "r1", "reason": ""}
    steps: list[tuple[dict[str, Any], dict[str, str], int]] = [
        (body, {}, 428),
        (body, {"If-Match": '"stale"'}, 412),
        (body, {"If-None-Match": "*"}, 412),
        ({"image": NEW}, {"If-Match": "*"}, 422),
        (body, {"If-Match": "*", "Idempotency-Key": "k"}, 202),
        (body, {"If-Match": '"by now stale"', "Idempotency-Key": "k"}, 202),
        ({**body, "image": OLD}, {"If-Match": "*", "Idempotency-Key": "k"}, 422),
    ]
    for document, headers, status in steps:
        headers = {"Authorization": f"Bearer {stand_in.secret}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(
            f"{stand_in.url}/apps/shop", json.dumps(document).encode(), headers, method="PUT"
        )
        try:
            with urllib.request.urlopen(request) as answer:
                got, _ = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                got, _ = error.code, error.read()
        assert got == status, (document, headers)
    assert len(stand_in.revisions("shop")) == 1
    assert isinstance(stand_in.app, Recorder)
    for exchange in stand_in.app.exchanges:
        if exchange.body and set(json.loads(exchange.body)) == set(body):
            check(exchange)


def test_it_serves_its_document(stand_in: HttpStandIn) -> None:
    with urllib.request.urlopen(f"{stand_in.url}/openapi.json") as answer:
        assert json.load(answer) == DOCUMENT


@rich
@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: setattr(e, "path", "/apps/Shop!"),
        lambda e: setattr(e, "body", b'{"image": "no-tag", "version": "1", "release_id": "r1"}'),
        lambda e: setattr(e, "body", b'{"image": "a:1", "version": "1", "release_id": "r1", "more": 1}'),
        lambda e: e.headers.update({"if-match": "no-quotes"}),
        lambda e: e.headers.pop("authorization"),
        lambda e: e.headers.update({"content-type": "text/plain"}),
        lambda e: setattr(e, "status", 200),
        lambda e: e.answer_headers.pop("etag"),
        lambda e: setattr(e, "answer", e.answer.replace(b"revision", b"rev")),
    ],
)
def test_the_checker_refuses_what_does_not_fit(stand_in: HttpStandIn, spoil: Any) -> None:
    target = platform(stand_in)
    target.deploy(RELEASE, target.snapshot())
    assert isinstance(stand_in.app, Recorder)
    exchange = copy.deepcopy(next(e for e in stand_in.app.exchanges if e.method == "PUT"))
    assert check(exchange) == "deployApp"
    spoil(exchange)
    with pytest.raises(ValidationError):
        check(exchange)
