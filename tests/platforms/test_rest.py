"""The shared client of platforms that are spoken to in JSON over HTTP."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import PlatformError, SpecError
from airflow_multideploy.platforms import rest
from airflow_multideploy.platforms.rest import Call, Reply, RestPlatform, Steps, at
from airflow_multideploy.sandbox.server import Server

SECRET = "canary-3f9a7c"


class Api(RestPlatform[TargetConfig]):
    kind, api, config_type = "api", "API", TargetConfig
    snapshot = deploy = observe = aobserve = rollback = None  # not what is tested here

    def ask(self, mode: str, *calls: Call) -> Reply:
        def steps() -> Steps[Reply]:
            for call in calls:
                reply = yield call
            return reply

        return asyncio.run(self._arun(steps())) if mode == "async" else self._run(steps())


async def answer(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "echo":
        body = await request.body()
        sent = {key: request.headers.get(key) for key in ("authorization", "x-scope", "content-type")}
        query = request.query_params.multi_items()
        return JSONResponse({**sent, "query": query, "path": request.scope["raw_path"].decode(), "body": body.decode()})
    if name == "moved":
        return RedirectResponse("/echo")
    if name == "big":
        return Response(b'"' + b"x" * 4096 + b'"')
    if name == "nothing":
        return Response(status_code=204)
    if name == "page":
        return Response("<h1>Sign in</h1>", int(request.query_params.get("status", "200")))
    status = int(name)
    said = f"no entry with {request.headers.get('authorization')}"
    return JSONResponse({"message": said}, status, {"retry-after": "7"} if status in (429, 503) else {})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(Starlette(routes=[Route("/{name:path}", answer, methods=["GET", "POST"])])).start()
    yield server.url
    server.stop()


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    def api(**connection: Any) -> Api:
        document = {"conn_type": "http", "host": url, "password": SECRET, **connection}
        monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(document))
        return Api(TargetConfig(platform="api", conn_id="c"), service="shop", target="t1")

    return api


def test_what_is_sent(make: Any, mode: str) -> None:
    extra = {"headers": {"X-Scope": "prod"}}
    call = Call("POST", "/echo", {"state": ["a", "b"], "q": "c d"}, {"image": "ä"})
    sent = make(extra=extra).ask(mode, call).document
    assert sent["authorization"] == f"Bearer {SECRET}"
    assert (sent["x-scope"], sent["content-type"]) == ("prod", "application/json")
    assert sent["query"] == [["state", "a"], ["state", "b"], ["q", "c d"]]
    assert json.loads(sent["body"]) == {"image": "ä"}


def test_with_a_login_it_is_basic_and_without_a_password_nothing(make: Any, mode: str) -> None:
    assert make(login="me").ask(mode, Call("GET", "/echo")).document["authorization"].startswith("Basic ")
    assert make(password=None).ask(mode, Call("GET", "/echo")).document["authorization"] is None


def test_a_part_of_a_path_cannot_leave_its_place(make: Any, mode: str) -> None:
    assert at("a", "../b c?d#e", "..", ".", "x.y") == "/a/..%2Fb%20c%3Fd%23e/%2E%2E/%2E/x.y"
    reply = make().ask(mode, Call("GET", "/echo"), Call("GET", "/nothing"))
    assert (reply.status, reply.document) == (204, None)


@pytest.mark.parametrize(
    ("path", "retryable", "words"),
    [
        ("/400", False, "API GET /400: HTTP 400: no entry with Bearer ***"),
        ("/401", False, "check login, password and rights of connection 'c'"),
        ("/404", False, "HTTP 404"),
        ("/408", True, "HTTP 408"),
        ("/429", True, "HTTP 429"),
        ("/500", True, "HTTP 500"),
        ("/503", True, "HTTP 503"),
        ("/moved", False, "no redirect is followed"),
        ("/page", True, "no document of the API"),
        ("/page?status=404", False, "HTTP 404: Sign in"),
    ],
)
def test_refusals(make: Any, mode: str, path: str, retryable: bool, words: str) -> None:
    with pytest.raises(PlatformError) as caught:
        make().ask(mode, Call("GET", path))
    assert words in str(caught.value)
    assert str(caught.value).startswith("shop/t1: ")
    assert caught.value.retryable is retryable
    assert SECRET not in str(caught.value)
    assert caught.value.retry_after == (7 if path in ("/429", "/503") else None)


def test_a_status_that_is_an_answer(make: Any, mode: str) -> None:
    assert make().ask(mode, Call("GET", "/404", also=(404,))).status == 404
    with pytest.raises(PlatformError, match="HTTP 404: Sign in"):  # a proxy's, not the API's
        make().ask(mode, Call("GET", "/page?status=404", also=(404,)))


def test_a_refused_call_is_raised_where_it_was_made(make: Any, mode: str) -> None:
    def steps() -> Steps[str]:
        try:
            yield Call("GET", "/500")
        except PlatformError:
            reply = yield Call("GET", "/echo")
        return str(reply.status)

    api = make()
    assert (asyncio.run(api._arun(steps())) if mode == "async" else api._run(steps())) == "200"


def test_limits(make: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_ANSWER", 1024)
    with pytest.raises(PlatformError, match="larger than 1024 bytes") as caught:
        make().ask(mode, Call("GET", "/big"))
    assert not caught.value.retryable


def test_nobody_there(make: Any, mode: str) -> None:
    with pytest.raises(PlatformError, match="ConnectError") as caught:
        make(host="http://127.0.0.1:9").ask(mode, Call("GET", "/echo"))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ({"host": "ftp://example.com"}, "no http(s) address"),
        ({"host": ""}, "no http(s) address"),
        ({"host": "https://me:pass-word@example.com"}, "no http(s) address"),
        ({"host": "https://example.com:port"}, "no http(s) address"),
        ({"password": "line\nfeed-canary"}, "cannot stand in a header"),
        ({"password": "pässword-canary"}, "cannot stand in a header"),
        ({"extra": {"headers": {"X-A": 1}}}, "cannot stand in a header"),
        ({"extra": {"headers": ["X-A"]}}, "cannot stand in a header"),
        ({"extra": {"verify": "/no/such/file.pem"}}, "verify in its extra"),
    ],
)
def test_a_connection_that_cannot_work(make: Any, mode: str, connection: dict[str, Any], words: str) -> None:
    with pytest.raises(PlatformError) as caught:
        make(**connection).ask(mode, Call("GET", "/echo"))
    assert words in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not caught.value.retryable


def test_credentials_do_not_go_over_plain_http(make: Any, mode: str) -> None:
    with pytest.raises(SpecError, match=r"plain http to deploy\.example\.com"):
        make(host="http://deploy.example.com").ask(mode, Call("GET", "/echo"))
    with pytest.raises(SpecError, match="plain http"):
        make(host="deploy.example.com", schema="http", password="", extra={"headers": {"X-Key": "k"}}).ask(
            mode, Call("GET", "/echo")
        )


def test_a_missing_connection_is_named(mode: str) -> None:
    api = Api(TargetConfig(platform="api", conn_id="nowhere"), service="shop", target="t1")
    with pytest.raises(PlatformError, match="no Airflow Connection 'nowhere'"):
        api.ask(mode, Call("GET", "/echo"))


def test_tls_is_verified_with_the_bundle_of_the_connection(make: Any, mode: str, tmp_path: Path) -> None:
    ca = trustme.CA()
    chain, bundle = tmp_path / "chain.pem", tmp_path / "ca.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
    ca.cert_pem.write_to_path(bundle)
    routes = [Route("/{name:path}", answer)]
    server = Server(Starlette(routes=routes), tls=(str(chain), str(chain))).start()
    try:
        assert make(host=server.url, extra={"verify": str(bundle)}).ask(mode, Call("GET", "/echo")).status == 200
        assert make(host=server.url, extra={"verify": False}).ask(mode, Call("GET", "/echo")).status == 200
        with pytest.raises(PlatformError, match="certificate verify failed") as caught:
            make(host=server.url).ask(mode, Call("GET", "/echo"))
        assert not caught.value.retryable
    finally:
        server.stop()
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED


def test_a_refusal_after_a_write_does_not_say_that_nothing_was_changed(make: Any, mode: str) -> None:
    for before, untouched in ((Call("GET", "/echo"), True), (Call("POST", "/echo"), False)):
        with pytest.raises(PlatformError) as caught:
            make().ask(mode, before, Call("GET", "/404"))
        assert caught.value.no_effect is untouched
