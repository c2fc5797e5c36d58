"""Tags become digests. What a real registry cannot be made to show; `images/test_build` has a real one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
from airflow.sdk import DAG
from hypothesis import given
from hypothesis import strategies as st

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import BuildFailed, PlatformError, SpecError
from airflow_multideploy.images import registry
from airflow_multideploy.operators.clock import Final
from airflow_multideploy.operators.plan import PlanOperator
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.sandbox.server import Server
from airflow_multideploy.store.assets import journal_asset
from airflow_multideploy.testing.fake import MemoryStore

MANIFEST = json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:" + "0" * 64}}).encode()
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
OCI = "application/vnd.oci.image.manifest.v1+json"
PASSWORD = "correct-horse-battery"
BASIC = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()


@dataclass
class Conn:
    """As an Airflow Connection looks."""

    conn_id: str = "registry"
    host: str | None = None
    schema: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Registry:
    """Answers by a script; remembers what it was asked."""

    port: int = 0
    scheme: str = "http"
    seen: list[Request] = field(default_factory=list)
    answer: Callable[[Request], Answer] = lambda request: (404, {}, b"{}")

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.port}/team/shop"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(
            scope["method"],
            scope["path"],
            parse_qs(scope["query_string"].decode()),
            {k.decode(): v.decode() for k, v in scope["headers"]},
        )
        self.seen.append(request)
        status, headers, body = self.answer(request)
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})


@pytest.fixture(scope="module")
def served() -> Iterator[Registry]:
    served = Registry()
    server = Server(served).start()
    served.port = server.port
    yield served
    server.stop()


@pytest.fixture
def fake(served: Registry) -> Registry:
    served.seen.clear()
    served.answer = lambda request: (404, {}, b"{}")
    return served


def manifest(request: Request) -> Answer:
    """What a tag that exists is answered with."""
    return 200, {"content-type": OCI, "docker-content-digest": DIGEST}, MANIFEST


@pytest.mark.parametrize(
    ("image", "host", "path"),
    [
        ("shop", "default.example:5000", "shop"),
        ("team/shop", "default.example:5000", "team/shop"),
        ("localhost/shop", "localhost", "shop"),
        ("localhost:5000/team/shop", "localhost:5000", "team/shop"),
        ("registry.example.com/shop", "registry.example.com", "shop"),
        ("registry.example.com:8443/a/b/c-d__e.f", "registry.example.com:8443", "a/b/c-d__e.f"),
        ("[::1]:5000/shop", "[::1]:5000", "shop"),
    ],
)
def test_the_image_names_its_registry_or_lives_in_the_given_one(image: str, host: str, path: str) -> None:
    found = registry.parse_image(image, "default.example:5000")
    assert found == registry.Repository(host, path)
    assert registry.parse_image(found.name) == found


@pytest.mark.parametrize("conn", [None, Conn(), Conn(host="", login="robot", password=PASSWORD), Conn(port=5000)])
@pytest.mark.parametrize("image", ["shop", "team/shop"])
def test_an_image_that_nothing_names_a_registry_for_is_refused(image: str, conn: Conn | None) -> None:
    with pytest.raises(SpecError) as caught:
        registry.connect(image, conn)
    assert str(caught.value) == (
        f"image {image!r} names no registry; write registry.example.com/{image}, or name the host in the Connection"
    )


def test_a_connections_host_that_reads_like_a_folder_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'registry' is no registry's host; it needs a dot or a port"):
        registry.connect("team/shop", Conn(host="registry"))
    assert registry.connect("team/shop", Conn(host="registry", port=5000)).repository.name == "registry:5000/team/shop"


def test_credentials_are_filed_under_the_registrys_host() -> None:
    target = registry.connect("shop", Conn(host="registry.example.com", login="robot", password=PASSWORD))
    assert target.auth_document() == {"auths": {"registry.example.com": {"auth": BASIC.removeprefix("Basic ")}}}


def test_an_image_without_host_is_asked_for_in_the_connections_registry(fake: Registry) -> None:
    conn = Conn(host=fake.url)
    with pytest.raises(registry.RegistryError, match=f"127.0.0.1:{fake.port}: has no shop:1.0"):
        registry.resolve("shop", "1.0", conn)
    fake.answer = manifest
    assert registry.resolve("shop", "1.0", conn) == DIGEST
    assert {r.path for r in fake.seen} == {"/v2/shop/manifests/1.0"}


@pytest.mark.parametrize(
    "image",
    [
        "",
        "/",
        "Shop",
        "shop:1",
        "shop@sha256:00",
        "h.example/",
        "h.example/../x",
        "a//b",
        "-x/y",
        "h.example/a b",
        "a\n",
    ],
)
def test_what_is_no_image_name_is_refused(image: str) -> None:
    with pytest.raises(SpecError, match=r"not an image name|holds a tag or digest"):
        registry.parse_image(image, "registry.example.com")


@given(st.text(max_size=60))
def test_any_text_is_an_image_name_or_refused(text: str) -> None:
    try:
        found = registry.parse_image(text, "registry.example.com")
    except SpecError:
        return
    assert registry.parse_image(found.name) == found


@pytest.mark.parametrize("version", ["1.0; rm -rf /", "", "-1", "../1", "1\n", "a" * 129, "$(id)", "1/2"])
def test_what_is_no_tag_is_refused_before_anything_is_asked(fake: Registry, version: str) -> None:
    with pytest.raises(SpecError, match="version"):
        registry.resolve(fake.image, version)
    assert fake.seen == []


def test_head_is_enough_and_asks_for_every_kind_of_manifest(fake: Registry) -> None:
    fake.answer = manifest
    assert registry.resolve(fake.image, "1.0") == DIGEST
    (asked,) = fake.seen
    assert (asked.method, asked.path) == ("HEAD", "/v2/team/shop/manifests/1.0")
    assert set(asked.headers["accept"].split(", ")) == set(registry.MANIFEST_TYPES)
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("head", [(405, {}, b""), (200, {"content-type": OCI}, b"")], ids=["no HEAD", "no digest"])
def test_without_a_digest_from_head_the_manifest_itself_is_hashed(fake: Registry, head: Answer) -> None:
    fake.answer = lambda r: head if r.method == "HEAD" else (200, {"content-type": OCI}, MANIFEST)
    assert registry.resolve(fake.image, "1.0") == DIGEST


def test_a_digest_that_does_not_fit_the_manifest_is_an_error(fake: Registry) -> None:
    lie = {"content-type": OCI, "docker-content-digest": "sha256:" + "1" * 64}
    fake.answer = lambda r: (405, {}, b"") if r.method == "HEAD" else (200, lie, MANIFEST)
    with pytest.raises(registry.RegistryError, match="alters answers") as caught:
        registry.resolve(fake.image, "1.0")
    assert not caught.value.retryable


def test_a_missing_tag_is_none_to_find_and_an_error_to_resolve(fake: Registry) -> None:
    assert registry.find(fake.image, "1.0") is None
    with pytest.raises(BuildFailed, match=r"has no .*shop:1.0; push it first"):
        registry.resolve(fake.image, "1.0")


def test_basic_challenge_gets_the_credentials(fake: Registry) -> None:
    def answer(request: Request) -> Answer:
        if request.headers.get("authorization") == BASIC:
            return manifest(request)
        return 401, {"www-authenticate": 'Basic realm="Registry"'}, b"{}"

    fake.answer = answer
    conn = Conn(host=f"127.0.0.1:{fake.port}", login="robot", password=PASSWORD)
    assert registry.resolve(fake.image, "1.0", conn) == DIGEST
    assert [r.headers.get("authorization") for r in fake.seen] == [None, BASIC]


@pytest.mark.parametrize("key", ["token", "access_token"])
@pytest.mark.parametrize("login", [None, "robot"])
def test_bearer_challenge_is_answered_at_its_realm(fake: Registry, key: str, login: str | None) -> None:
    def answer(request: Request) -> Answer:
        if request.path == "/token":
            return 200, {"content-type": "application/json"}, json.dumps({key: "t0ken"}).encode()
        if request.headers.get("authorization") == "Bearer t0ken":
            return manifest(request)
        challenge = f'Bearer realm="{fake.url}/token",service="reg",scope="repository:team/shop:pull,push"'
        return 401, {"www-authenticate": challenge}, b"{}"

    fake.answer = answer
    conn = Conn(login=login, password=PASSWORD if login else None)
    assert registry.resolve(fake.image, "1.0", conn) == DIGEST
    token = fake.seen[1]
    assert token.query == {"service": ["reg"], "scope": ["repository:team/shop:pull,push"]}
    assert token.headers.get("authorization") == (BASIC if login else None)
    assert fake.seen[2].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("realm", [r"{stranger}\@{own}/token", "user@{stranger}/token", "{stranger} /token"])
@pytest.mark.parametrize("login", [None, "robot"])
def test_a_realm_that_leads_astray_is_not_asked(fake: Registry, realm: str, login: str | None) -> None:
    stranger = Registry()
    server = Server(stranger).start()
    stranger.port = server.port
    own, where = f"127.0.0.1:{fake.port}", f"127.0.0.1:{server.port}"
    challenge = f'Bearer realm="http://{realm.format(stranger=where, own=own)}?sig=canary-7d1f",service="reg"'
    fake.answer = lambda r: (401, {"www-authenticate": challenge}, b"")
    try:
        with pytest.raises(registry.RegistryError, match="which is no address") as caught:
            registry.resolve(fake.image, "1.0", Conn(login=login, password=PASSWORD if login else None))
    finally:
        server.stop()
    assert stranger.seen == []
    assert "canary-7d1f" not in str(caught.value)


def test_a_redirect_is_told_without_what_signs_it(fake: Registry) -> None:
    there = "https://bucket.example.com/blob?X-Amz-Signature=canary-7d1f"
    fake.answer = lambda r: (307, {"location": there}, b"")
    with pytest.raises(registry.RegistryError, match=r"a redirect to https://bucket\.example\.com/blob;") as caught:
        registry.resolve(fake.image, "1.0")
    assert "canary-7d1f" not in str(caught.value)


def test_credentials_are_not_sent_to_a_realm_over_plain_http(fake: Registry) -> None:
    fake.answer = lambda r: (401, {"www-authenticate": 'Bearer realm="http://192.0.2.1/token"'}, b"")
    with pytest.raises(SpecError, match="plain http"):
        registry.resolve(fake.image, "1.0", Conn(login="robot", password=PASSWORD))
    assert len(fake.seen) == 1


def test_refused_credentials_are_not_retryable_and_not_shown(fake: Registry) -> None:
    denied = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).encode()
    fake.answer = lambda r: (401, {"www-authenticate": 'Basic realm="Registry"'}, denied)
    conn = Conn(login="robot", password=PASSWORD)
    with pytest.raises(registry.RegistryError) as caught:
        registry.resolve(fake.image, "1.0", conn)
    assert not caught.value.retryable
    assert isinstance(caught.value, PlatformError)
    assert "'robot'" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(registry.connect(fake.image, conn))
    assert len(fake.seen) == 2


def test_too_many_requests_tells_when_to_come_back(fake: Registry) -> None:
    limited = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "pull rate limit"}]}).encode()
    fake.answer = lambda r: (429, {"retry-after": "7"}, limited)
    with pytest.raises(registry.RegistryError, match="429") as caught:
        registry.resolve(fake.image, "1.0")
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7.0)


def test_a_server_error_and_a_proxy_page_are_retryable(fake: Registry) -> None:
    for answer in ((503, {}, b"busy"), (200, {"content-type": "text/html"}, b"<html>sign in</html>")):
        fake.answer = lambda r, answer=answer: answer
        with pytest.raises(registry.RegistryError) as caught:
            registry.resolve(fake.image, "1.0")
        assert caught.value.retryable


def test_a_registry_that_does_not_answer_is_retryable() -> None:
    with pytest.raises(registry.RegistryError, match="does not answer") as caught:
        registry.resolve("127.0.0.1:1/shop", "1.0")
    assert caught.value.retryable


def test_a_redirect_is_not_followed(fake: Registry) -> None:
    fake.answer = lambda r: (307, {"location": "http://192.0.2.1/v2/"}, b"")
    with pytest.raises(registry.RegistryError, match="redirect"):
        registry.resolve(fake.image, "1.0")


def test_an_endless_manifest_is_cut_off(fake: Registry) -> None:
    fake.answer = lambda r: (405, {}, b"") if r.method == "HEAD" else (200, {"content-type": OCI}, b"x" * 5_000_000)
    with pytest.raises(registry.RegistryError, match="4 MiB"):
        registry.resolve(fake.image, "1.0")


def test_credentials_of_one_registry_are_not_sent_to_another(fake: Registry) -> None:
    fake.answer = manifest
    with pytest.raises(SpecError, match="is for the registry registry\\.example\\.com"):
        registry.resolve(fake.image, "1.0", Conn(host="https://registry.example.com", login="robot", password=PASSWORD))
    assert fake.seen == []


@pytest.mark.parametrize(
    ("image", "conn", "url"),
    [
        ("registry.example.com/shop", None, "https://registry.example.com"),
        ("shop", Conn(host="registry.example.com", login="a", password="b"), "https://registry.example.com"),
        ("team/shop", Conn(host="localhost", port=5000), "http://localhost:5000"),
        ("localhost:5000/shop", None, "http://localhost:5000"),
        ("localhost:5000/shop", Conn(schema="https"), "https://localhost:5000"),
        (
            "registry.example.com:5000/shop",
            Conn(host="registry.example.com", port=5000),
            "https://registry.example.com:5000",
        ),
        ("registry.example.com/shop", Conn(host="http://registry.example.com"), "http://registry.example.com"),
    ],
)
def test_https_unless_told_or_on_this_machine(image: str, conn: Conn | None, url: str) -> None:
    assert registry.connect(image, conn).url == url


def test_credentials_never_go_over_plain_http_to_another_machine() -> None:
    with pytest.raises(SpecError, match="plain http"):
        registry.connect("registry.example.com/shop", Conn(schema="http", login="robot", password=PASSWORD))


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, ca = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    fake = Registry(scheme="https", answer=manifest)
    server = Server(fake, tls=(str(chain), str(key))).start()
    fake.port = server.port
    try:
        with pytest.raises(registry.RegistryError, match="does not answer"):
            registry.resolve(fake.image, "1.0", Conn(schema="https"))
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        assert registry.resolve(fake.image, "1.0", Conn(schema="https")) == DIGEST
    finally:
        server.stop()


def test_a_busy_registry_is_asked_again_by_the_plans_next_try_before_it_refuses(
    fake: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answer = lambda request: (503, {"retry-after": "0"}, b"busy")
    monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", json.dumps({"conn_type": "docker", "host": fake.url}))
    document = {
        "artifact": {"image": fake.image, "registry_conn_id": "registry"},
        "targets": {"dc1": {"platform": "http", "conn_id": "dc1"}},
    }
    service = parse_service("shop", document, config_type=config_type)
    pushed: list[str] = []
    ti = SimpleNamespace(dag_id="shop", try_number=2, xcom_push=lambda key, value: pushed.append(value))
    context: Any = {
        "ti": ti,
        "params": {},
        "dag_run": SimpleNamespace(conf={"version": "1.0"}, clear_number=0),
        "run_id": "run1",
        "asset_state_store": {journal_asset("shop"): MemoryStore()},
    }
    with DAG("shop", schedule=None):
        plan = PlanOperator(task_id="plan", name="shop", service=service, retries=2)
    with pytest.raises(PlatformError, match="503") as caught:
        plan.resume(context)
    assert caught.value.retryable
    assert pushed == []
    ti.try_number = 3
    ti.try_number = 3  # the last one
    with pytest.raises(Final, match="503"):
        plan.resume(context)
    assert "503" in pushed[0]
