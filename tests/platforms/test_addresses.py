"""Addresses that others wrote: no request, and no token, goes where one of them leads astray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_multideploy import addresses
from airflow_multideploy.clients.connections import refuse_plain_http
from airflow_multideploy.errors import MultideployError, PlatformError, SpecError
from airflow_multideploy.platforms.kinds import adapter, kinds, platform_type
from airflow_multideploy.release.contract import Release, Snapshot
from airflow_multideploy.sandbox.azure_web_app import AzureWebAppStandIn
from airflow_multideploy.sandbox.server import Server
from airflow_multideploy.sandbox.world import World
from airflow_multideploy.testing.contract import NEW
from airflow_multideploy.testing.driver import Driver

TWISTED = (
    r"{canary}\@{api}/ops/1",
    r"{canary}\.{api}/ops/1",
    "{canary}\t@{api}/ops/1",
    "{canary} @{api}/ops/1",
    "user@{canary}/ops/1",
    "user:{api}@{canary}/ops/1",
)
"""``host:port`` of a stranger, and of the API that the Connection names, in an address after its scheme."""
ASTRAY = (*TWISTED, "{canary}/ops/1", "{canary}#@{api}/ops/1")
RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4")
NOTHING = Snapshot(exists=False, data={"known": False, "etag": None, "told": {}, "serving": None, "values": {}})


class Canary:
    """A server that answers everything, and keeps what it was asked, and with which token."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str | None]] = []
        self.host, self.body = "", b'{"state": "succeeded", "value": []}'
        self.headers: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.got.append((scope["path"], dict(scope["headers"]).get(b"authorization", b"").decode()))
        raw = [(k.encode(), v.encode()) for k, v in {"content-type": "application/json", **self.headers}.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": self.body})


def serving(canary: Canary, tls: tuple[str, str] | None = None) -> Iterator[Canary]:
    server = Server(canary, tls=tls).start()
    canary.host = f"127.0.0.1:{server.port}"
    yield canary
    server.stop()


@pytest.fixture
def canary() -> Iterator[Canary]:
    yield from serving(Canary())


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    for api in serving(Canary()):
        known = {"conn_type": "http", "host": f"http://{api.host}", "password": "t0k3n-canary"}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(known))
        yield api


@pytest.mark.parametrize("where", ["body", "header"])
@pytest.mark.parametrize("astray", ASTRAY)
def test_an_operation_that_leads_astray_is_not_asked(api: Canary, canary: Canary, astray: str, where: str) -> None:
    """`Location`, or an address in the body of an API's own answer, with the Connection's token."""
    address = "http://" + astray.format(canary=canary.host, api=api.host)
    if where == "body":
        api.body = json.dumps({"at": address}).encode()
    elif address.isprintable():
        api.headers["location"] = address
    else:
        pytest.skip("no server can say that in a header")
    source = {"json": "at"} if where == "body" else {"header": "location"}
    config = {"operation": source, "status": {"path": "${operation}", "state": "state"}}
    platform = adapter({"platform": "http", "conn_id": "contract", **config}, service="shop", target="t1")
    handle = platform.deploy(RELEASE, NOTHING)
    for look in (platform.observe, lambda given: asyncio.run(platform.aobserve(given))):
        with pytest.raises(PlatformError, match="refused") as caught:
            look(handle)
        assert not caught.value.retryable
    assert canary.got == []
    assert {token for _, token in api.got} == {"Bearer t0k3n-canary"}, "and the API itself got it"


class TestAzure(Driver):
    """The SDK follows any ``nextLink`` with the token that is for Resource Manager."""

    def make_stand_in(self, world: World) -> AzureWebAppStandIn:
        return AzureWebAppStandIn(world)

    @pytest.mark.parametrize("astray", ASTRAY)
    def test_a_next_page_that_leads_astray_is_not_asked(
        self, stand_in: AzureWebAppStandIn, monkeypatch: pytest.MonkeyPatch, astray: str, mode: str
    ) -> None:
        _, handle, _ = self.start(stand_in)
        chain = str(Path(stand_in._folder.name) / "server.pem")
        for canary in serving(Canary(), (chain, chain)):
            link = "https://" + astray.format(canary=canary.host, api=stand_in.url.removeprefix("https://"))
            monkeypatch.setattr(stand_in, "_instances", lambda *_, link=link: {"value": [], "nextLink": link})
            with pytest.raises(PlatformError, match=r"another server|refused|no document"):
                self.look(self.platform(stand_in), handle, mode)
            with pytest.raises(PlatformError):
                self.platform(stand_in).snapshot()
            assert canary.got == []


@pytest.mark.parametrize("astray", TWISTED)
def test_credentials_go_to_no_such_address(astray: str) -> None:
    """Whatever a Connection, or an answer of a cloud, names as an API's address comes past here."""
    for scheme in ("http", "https"):
        with pytest.raises(SpecError, match="shop/t1: refusing to send credentials"):
            refuse_plain_http(f"{scheme}://{astray.format(canary='127.0.0.1:1', api='127.0.0.1')}", target="shop/t1")


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "http current": ({"platform": "http", "current": {"path": "!"}}, "http"),
    "http version": ({"platform": "http", "version": {"path": "!"}}, "http"),
    "http health": ({"platform": "http", "health": {"path": "!"}}, "http"),
    "http console": ({"platform": "http", "console": "!"}, "http"),
    "airflow console": ({"platform": "airflow", "dag_id": "d", "console": "!"}, "http"),
    "azure health": (
        {"platform": "azure_web_app", "resource_group": "g", "site": "s", "health_url": "!"},
        "https",
    ),
    "azure slot health": (
        {"platform": "azure_web_app_slot", "resource_group": "g", "site": "s", "slot_health_url": "!"},
        "https",
    ),
    "azure package": (
        {"platform": "azure_web_app_package", "resource_group": "g", "site": "s", "package": "!/${version}.zip"},
        "https",
    ),
    "azure functions": (
        {"platform": "azure_functions", "resource_group": "g", "site": "s", "package": "!/${version}.zip"},
        "https",
    ),
    "s3 site": ({"platform": "aws_s3_site", "distribution": "D", "path": "/${version}", "url": "!"}, "https"),
    "ssh package": (
        {"platform": "ssh", "root": "/srv/shop", "unit": "shop.service", "package": "!/${version}"},
        "https",
    ),
    "ssh checksum": (
        {"platform": "ssh", "root": "/srv/x", "unit": "x.service", "package": "/x", "checksum": "!/${version}"},
        "https",
    ),
    "docker engine": ({"platform": "docker", "container": "shop", "url": "!", "tls_ca_cert": "/ca.pem"}, "tcp"),
    "helm chart": ({"platform": "helm", "release": "shop", "chart": "!/${version}.tgz"}, "https"),
    "helm oci chart": ({"platform": "helm", "release": "shop", "chart": "!/chart"}, "oci"),
    "check": (
        {"platform": "http", "verify": {"checks": [{"http": "!"}]}},
        "http",
    ),
}


def _put(document: Any, address: str) -> Any:
    if isinstance(document, dict):
        return {key: _put(value, address) for key, value in document.items()}
    if isinstance(document, list):
        return [_put(value, address) for value in document]
    return document.replace("!", address) if isinstance(document, str) else document


@pytest.mark.parametrize("field", FIELDS)
def test_an_address_in_a_catalog_that_leads_astray_is_refused_when_it_is_read(field: str) -> None:
    config, scheme = FIELDS[field]
    good = {"http": "http://localhost:8080", "tcp": "tcp://localhost:2376"}.get(scheme, f"{scheme}://api.example.com")
    adapter(_put({**config, "conn_id": "c"}, good), service="shop", target="t1")
    for astray in TWISTED:
        address = f"{scheme}://" + astray.format(canary="127.0.0.1:1", api="127.0.0.1:2").removesuffix("/ops/1")
        with pytest.raises(MultideployError):
            adapter(_put({**config, "conn_id": "c"}, address), service="shop", target="t1")


def test_every_field_of_a_catalog_that_is_an_address_is_in_the_list() -> None:
    """A new platform's addresses are checked as well: names that say so are looked for in the configs."""
    telling = ("url", "console", "package", "checksum", "chart")
    fields = {
        f"{kind} {name}"
        for kind in kinds()
        for name in platform_type(kind).config_type.model_fields
        if name.endswith(telling)
    }
    buckets = {"aws_lambda package", "aws_elastic_beanstalk package"}  # s3://BUCKET/KEY
    buckets |= {"gcp_cloud_functions package", "gcp_app_engine package"}  # gs://BUCKET/OBJECT
    asked = {f"{c['platform']} {name}" for c, _ in FIELDS.values() for name, value in c.items() if "!" in str(value)}
    inherited = {  # of AzureSiteConfig and DelegateConfig
        f"{kind} health_url" for kind in ("azure_web_app_slot", "azure_web_app_package", "azure_functions")
    } | {f"{kind} console" for kind in ("argo_workflows", "prefect")}
    assert fields - asked - buckets - inherited == set()


@given(st.text(st.sampled_from("ab.:/@\\#?[]% \t"), max_size=20))
@example("evil\\@api/")
@example("evil%40api/")
@example("[::1]:80/x")
def test_what_is_let_through_means_one_host_to_all_clients(text: str) -> None:
    """urllib3 (requests, botocore, kubernetes), httpx and yarl (aiohttp) agree with what is compared."""
    import httpx
    import yarl
    from urllib3.util import parse_url

    address = f"http://{text}"
    try:
        _, host, port = addresses.origin(address)
    except ValueError:
        return
    there = (host, port)
    assert (str(parse_url(address).host).strip("[]").lower(), parse_url(address).port or 80) == there
    assert (httpx.URL(address).host, httpx.URL(address).port or 80) == there
    assert (yarl.URL(address).host, yarl.URL(address).port) == there
