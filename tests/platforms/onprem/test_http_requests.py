"""What goes out and what is read: against a server that keeps what it got, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from airflow_multideploy.catalog.parse import parse_catalog
from airflow_multideploy.catalog.schema import json_schema
from airflow_multideploy.errors import PlatformError, SpecError
from airflow_multideploy.operators.onprem import HttpDeployOperator
from airflow_multideploy.platforms.kinds import adapter, config_type
from airflow_multideploy.platforms.onprem.http import Http
from airflow_multideploy.platforms.onprem.http_config import HttpConfig
from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State
from airflow_multideploy.sandbox.http import HttpStandIn
from airflow_multideploy.sandbox.server import Server
from airflow_multideploy.sandbox.world import CallFault, World
from airflow_multideploy.testing.contract import NEW, OLD

RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4", reason="Tuesday's release")
BEFORE = Release(service="shop", version="1.0.0", image=OLD, release_id="r00000000")
LEAST = """
shop:
  artifact: {image: registry.example.com/shop}
  targets:
    onprem: {platform: http, conn_id: dc1}
"""


class Echo:
    """An API that keeps what it got, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, dict[str, str], str]] = []
        self.status, self.headers, self.body = 200, dict[str, str](), b"{}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        self.got.append((scope["method"], path, headers, body.decode()))
        raw = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": self.body})


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Echo]:
    echo = Echo()
    server = Server(echo).start()
    connection = {"conn_type": "http", "host": server.url, "password": "t0k3n-canary", "extra": {"X-Team": "shop-team"}}
    monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(connection))
    yield echo
    server.stop()


def http(**config: Any) -> Http:
    platform = adapter({"platform": "http", "conn_id": "dc1", **config}, service="shop", target="onprem")
    assert isinstance(platform, Http)
    return platform


def both(platform: Http, handle: Handle) -> list[Observation]:
    return [platform.observe(handle), asyncio.run(platform.aobserve(handle))]


def errors(platform: Http, handle: Handle) -> list[PlatformError]:
    caught = []
    for look in (platform.observe, lambda h: asyncio.run(platform.aobserve(h))):
        with pytest.raises(PlatformError) as info:
            look(handle)
        caught.append(info.value)
    return caught


NOTHING = Snapshot(exists=False, data={"known": False, "etag": None, "told": {}, "serving": None, "values": {}})
VERSION = {"version": {"path": "/version"}}


class TestSignedAddresses:
    """An operation's address may be signed: who has it may use it."""

    SIGNED = "/ops/1?X-Amz-Signature=canary-7d1f&se=2026"
    CONFIG: dict[str, Any] = {"operation": "at", "status": {"path": "${operation}", "state": "state"}}

    def test_it_is_asked_as_it_is_and_told_without_what_signs_it(self, echo: Echo) -> None:
        echo.body = json.dumps({"at": self.SIGNED, "state": "running"}).encode()
        platform = http(**self.CONFIG)
        handle = platform.deploy(RELEASE, NOTHING)
        said = [seen.reason for seen in both(platform, handle)]
        assert {got[1] for got in echo.got[1:]} == {self.SIGNED}
        for echo.status, echo.body in ((500, b"no"), (404, b"{}"), (302, b""), (200, b"{}"), (200, b"<p>")):
            for look in (platform.observe, lambda h: asyncio.run(platform.aobserve(h))):
                try:
                    said.append(look(handle).reason)
                except PlatformError as error:
                    said.append(str(error))
        assert all("/ops/1" in words for words in said)
        assert not any("canary" in words or "se=2026" in words for words in said)

    def test_nor_is_it_told_by_the_library_that_cannot_reach_it(self, echo: Echo, monkeypatch: Any) -> None:
        echo.body = json.dumps({"at": self.SIGNED}).encode()
        platform = http(**self.CONFIG)
        handle = platform.deploy(RELEASE, NOTHING)
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps({"conn_type": "http", "host": "http://127.0.0.1:1"}))
        for error in errors(platform, handle):
            assert "/ops/1" in str(error)
            assert "canary" not in str(error)


class TestRequests:
    def test_the_least_request(self, echo: Echo) -> None:
        http().deploy(RELEASE, NOTHING)
        ((method, path, headers, body),) = echo.got
        assert (method, path) == ("POST", "/deploy")
        assert body == "image=registry.example.com%2Fshop%3A1.1.0"
        assert headers["content-type"] == "application/x-www-form-urlencoded"
        assert headers["authorization"] == "Bearer t0k3n-canary"
        assert headers["idempotency-key"].startswith(f"{RELEASE.release_id}-")
        assert headers["x-team"] == "shop-team"

    def test_two_targets_of_one_api_are_two_writes_and_a_repeat_is_none(self, echo: Echo) -> None:
        other = http()
        other.target = "other"
        for platform in (http(), other, http()):
            platform.deploy(RELEASE, NOTHING)
        first, second, again = (headers["idempotency-key"] for _, _, headers, _ in echo.got)
        assert first == again != second

    def test_values_cannot_leave_their_place(self, echo: Echo) -> None:
        evil = RELEASE.model_copy(update={"reason": 'a", "admin": true, "b": "\r\nX-Evil: 1 & é'})
        deploy = {
            "method": "PUT",
            "path": "/apps/${service}?why=${reason}",
            "json": {"why": ["for ${reason}", 1, None], "$${literal}": "$${image}"},
            "headers": {"X-Why": "${reason}"},
        }
        http(deploy=deploy).deploy(evil, NOTHING)
        ((_, path, headers, body),) = echo.got
        assert json.loads(body) == {"why": [f"for {evil.reason}", 1, None], "$${literal}": "${image}"}
        assert "x-evil" not in headers
        assert headers["x-why"] == 'a", "admin": true, "b": " X-Evil: 1 & %C3%A9'
        assert path.startswith("/apps/shop?why=a%22%2C")
        assert "&" not in path

    def test_an_api_key_goes_into_its_header(self, echo: Echo) -> None:
        platform = http(auth_header="X-Api-Key", **VERSION)
        echo.body = b"1.1.0"
        both(platform, Handle(action="deploy", revision="1.1.0"))
        assert [got[2].get("x-api-key") for got in echo.got] == ["t0k3n-canary"] * 2
        assert not any("authorization" in got[2] for got in echo.got)

    def test_sync_and_async_send_the_same(self, echo: Echo) -> None:
        echo.body = b"1.1.0"
        both(http(**VERSION), Handle(action="deploy", revision="1.1.0"))
        sync, native = [{name: got[2].get(name) for name in ("authorization", "x-team")} for got in echo.got]
        assert sync == native == {"authorization": "Bearer t0k3n-canary", "x-team": "shop-team"}

    def test_an_address_elsewhere_gets_no_credentials(self, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
        stranger = Echo()
        stranger.body = b"1.1.0"
        server = Server(stranger).start()
        try:
            seen = both(http(version={"path": f"{server.url}/v"}), Handle(action="deploy", revision="1.1.0"))
        finally:
            server.stop()
        assert [s.state for s in seen] == [State.HEALTHY] * 2
        for _, _, headers, _ in stranger.got:
            assert "t0k3n-canary" not in str(headers)
            assert "shop-team" not in str(headers)

    def test_an_operation_elsewhere_is_refused(self, echo: Echo) -> None:
        platform = http(operation={"header": "Location"}, status={"path": "${operation}", "state": "state"})
        handle = Handle(action="deploy", data={"operation": "http://192.0.2.1/op"})
        for error in errors(platform, handle):
            assert "not on the host of connection 'dc1'" in str(error)
            assert not error.retryable

    def test_an_operation_by_location(self, echo: Echo) -> None:
        platform = http(operation={"header": "Location"}, status={"path": "${operation}", "state": "data.state"})
        echo.status, echo.headers = 202, {"Location": "/operations/7"}
        handle = platform.deploy(RELEASE, NOTHING)
        echo.status, echo.body = 200, b'{"data": {"state": "succeeded"}}'
        assert [s.verified for s in both(platform, handle)] == [True, True]
        assert echo.got[-1][1] == "/operations/7"

    def test_redirects_are_not_followed(self, echo: Echo) -> None:
        echo.status, echo.headers = 302, {"Location": "http://192.0.2.1/steal"}
        for error in errors(http(**VERSION), Handle(action="deploy", revision="1")):
            assert "redirect" in str(error)
            assert not error.retryable
        assert len(echo.got) == 2

    def test_a_huge_answer_is_cut_off(self, echo: Echo) -> None:
        echo.body = b"x" * (1024 * 1024 + 1)
        for error in errors(http(**VERSION), Handle(action="deploy", revision="1")):
            assert "larger than 1048576 bytes" in str(error)

    def test_a_silent_api_times_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World()
        stand_in = HttpStandIn(world)
        stand_in.start()
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(stand_in.connection()))
        world.call_faults.append(CallFault("http", "hang", times=2, seconds=1.0))
        try:
            for error in errors(http(call_timeout=0.3, **VERSION), Handle(action="deploy", revision="1")):
                assert error.retryable
                assert "GET /version: " in str(error)
        finally:
            stand_in.stop()

    def test_an_error_that_echoes_the_token_is_cleaned(self, echo: Echo) -> None:
        echo.status, echo.body = 403, b'{"error": {"message": "token t0k3n-canary of shop-team has no rights"}}'
        for error in errors(http(**VERSION), Handle(action="deploy", revision="1")):
            assert "token *** of *** has no rights" in str(error)
            assert "check login, password and rights of connection 'dc1'" in str(error)

    @pytest.mark.parametrize(
        ("status", "headers", "retryable", "after"),
        [
            (400, {}, False, None),
            (409, {}, False, None),
            (409, {"Retry-After": "7"}, True, 7.0),
            (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, True, 0.0),
            (503, {}, True, None),
        ],
    )
    def test_classification(self, echo: Echo, status: int, headers: Any, retryable: bool, after: Any) -> None:
        echo.status, echo.headers = status, headers
        for error in errors(http(**VERSION), Handle(action="deploy", revision="1")):
            assert (error.retryable, error.retry_after) == (retryable, after)

    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps({"conn_type": "http", "host": "http://127.0.0.1:1"}))
        for error in errors(http(**VERSION), Handle(action="deploy", revision="1")):
            assert error.retryable

    def test_no_such_connection(self) -> None:
        for error in errors(http(conn_id="nowhere", **VERSION), Handle(action="deploy")):
            assert "no Airflow Connection 'nowhere'; create it" in str(error)
            assert not error.retryable

    def test_credentials_do_not_go_over_plain_http(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps({"conn_type": "http", "host": "192.0.2.1", "password": "x"}))
        with pytest.raises(SpecError, match="plain http"):
            http().deploy(RELEASE, NOTHING)
        with pytest.raises(SpecError, match="plain http"):
            asyncio.run(http(**VERSION).aobserve(Handle(action="deploy")))

    def test_the_private_ca_of_the_connection_counts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        import trustme

        ca, echo = trustme.CA(), Echo()
        echo.body = b"1.1.0"
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        issued = ca.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        server = Server(echo, tls=(str(tmp_path / "server.pem"), str(tmp_path / "server.pem"))).start()
        connection = {"conn_type": "http", "host": server.url, "password": "t0k3n-canary"}
        handle = Handle(action="deploy", revision="1.1.0")
        try:
            monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(connection))
            for error in errors(http(**VERSION), handle):
                assert "certificate" in str(error)
                assert not error.retryable
            connection["extra"] = json.dumps({"verify": str(tmp_path / "ca.pem")})
            monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(connection))
            assert [seen.state for seen in both(http(**VERSION), handle)] == [State.HEALTHY] * 2
        finally:
            server.stop()


class TestReading:
    @pytest.mark.parametrize(
        ("version", "headers", "body"),
        [
            ({}, {}, b" 1.1.0\n"),
            ({"json": "$.build.tags[1]"}, {}, b'{"build": {"tags": ["x", "1.1.0"]}}'),
            ({"json": "image", "equals": "${image}"}, {}, json.dumps({"image": NEW}).encode()),
            ({"regex": r"version: (\S+)"}, {}, b"name: shop\nversion: 1.1.0\n"),
            ({"header": "X-Version", "regex": "^v(.*)$"}, {"x-version": "v1.1.0"}, b""),
            ({"equals": "v${version}"}, {}, b"v1.1.0"),
        ],
    )
    def test_the_live_version_is_found(self, echo: Echo, version: Any, headers: Any, body: bytes) -> None:
        echo.headers, echo.body = headers, body
        platform = http(version={"path": "/version", **version})
        snapshot = platform.snapshot(BEFORE)
        assert snapshot.image == NEW
        handle = platform.deploy(RELEASE, snapshot)
        assert handle.changed is False
        assert [seen.state for seen in both(platform, handle)] == [State.HEALTHY] * 2

    @pytest.mark.parametrize(
        ("version", "body"),
        [
            ({}, b"<html>Bad gateway</html>"),
            ({"json": "version"}, b"<html>Bad gateway</html>"),
            ({"regex": "version: (.*)"}, b"starting"),
        ],
    )
    def test_an_error_page_is_no_version(self, echo: Echo, version: Any, body: bytes) -> None:
        echo.body = body
        for error in errors(http(version={"path": "/version", **version}), Handle(action="deploy", revision="1")):
            assert error.retryable

    def test_a_state_for_the_whole_target_is_no_proof(self, echo: Echo) -> None:
        platform = http(status={"path": "/status", "state": "state"})
        echo.body = b'{"state": "succeeded"}'
        seen = platform.observe(platform.deploy(RELEASE, NOTHING))
        assert (seen.state, seen.verified) == (State.HEALTHY, False)

    def test_a_lost_operation_is_unknown(self, echo: Echo) -> None:
        platform = http(operation="id", status={"path": "/op/${operation}", "state": "state"})
        assert platform.observe(Handle(action="deploy", data={"operation": None})).state is State.UNKNOWN


class TestConfig:
    def test_the_least_catalog(self) -> None:
        assert len(LEAST.strip().splitlines()) <= 6
        service = parse_catalog(yaml.safe_load(LEAST), config_type=config_type).services["shop"]
        config = service.targets["onprem"]
        assert isinstance(config, HttpConfig)
        assert (config.deploy.method, config.deploy.path) == ("POST", "/deploy")

    def test_it_has_a_json_schema(self) -> None:
        assert "Idempotency-Key" in json.dumps(json_schema({"http": HttpConfig}))

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ({"deploy": {"path": "/deploy", "form": {"image": "${imgae}"}}}, "unknown name imgae"),
            ({"deploy": {"path": "/deploy", "json": {"a": [{"b": "${nope}"}]}}}, "unknown name nope"),
            ({"deploy": {"path": "/deploy", "form": {"image": "$"}}}, "stands alone"),
            ({"deploy": {"path": "https://elsewhere.example.com/deploy"}}, "own host"),
            ({"deploy": {"path": "//elsewhere.example.com/deploy"}}, "own host"),
            ({"deploy": {"path": "/d", "headers": {"Authorization": "x"}}}, "credentials belong there"),
            ({"deploy": {"path": "/d", "headers": {"X-A": "a\r\nB: c"}}}, "no line breaks"),
            ({"deploy": {"path": "/d", "form": {}, "json": {}}}, "one of them"),
            ({"version": {"path": "/v", "json": "a..b"}}, "JSON path"),
            ({"version": {"path": "/v", "regex": "("}}, "regular expression"),
            ({"version": {"path": "https://u:p@h/v"}}, "without login"),
            ({"version": {"path": "/v", "json": "a", "header": "b"}}, "one of them"),
            ({"status": {"path": "/op/${operation}", "state": "state"}}, "say in operation:"),
            ({"etag": True}, "needs current:"),
            ({"depoly": {}}, "Extra inputs"),
        ],
    )
    def test_mistakes_are_named(self, config: Any, problem: str) -> None:
        with pytest.raises(ValidationError, match=problem):
            HttpConfig.model_validate({"platform": "http", "conn_id": "dc1", **config})

    def test_it_survives_json(self) -> None:
        config = HttpConfig.model_validate({**HttpStandIn(World()).target("shop"), "conn_id": "dc1"})
        assert HttpConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config

    def test_a_template_that_needs_a_digest_says_so(self, echo: Echo) -> None:
        platform = http(deploy={"path": "/deploy", "json": {"digest": "${digest}"}})
        with pytest.raises(PlatformError, match=r"the deploy request: \$\{digest\} has no value here"):
            platform.deploy(RELEASE, NOTHING)
        assert echo.got == []


def test_operator_packs_its_config() -> None:
    operator = HttpDeployOperator(
        task_id="onprem",
        conn_id="dc1",
        image=NEW,
        live_version={"path": "/version"},
        auth_header="X-Api-Key",
        idempotency_header=False,
        timeout=60.0,
    )
    config = HttpConfig.model_validate(operator.config)
    assert config.version is not None
    assert (config.version.path, config.auth_header, config.timeout) == ("/version", "X-Api-Key", 60.0)
    assert config.idempotency_header is False
    assert config.deploy.form == {"image": "${image}"}


def test_console_url() -> None:
    assert http(console="https://deploy.example.com/${service}").console_url() == "https://deploy.example.com/shop"
    assert http().console_url() is None
