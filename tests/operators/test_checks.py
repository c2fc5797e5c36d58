"""Smoke checks against a real server and real programs."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.catalog.checks import CommandCheck, HttpCheck
from airflow_multideploy.operators.checks import ask
from airflow_multideploy.release.contract import Release
from airflow_multideploy.testing.fake import FakePlatform, FakeWorld

RELEASE = Release(service="shop", version="2.1", image="registry.test/shop:2.1", release_id="r1")
PASSWORD = "hunter2-4f1e"


class Shop(BaseHTTPRequestHandler):
    """Answers as the test says, and keeps what it was asked."""

    answers: dict[str, tuple[int, str]] = {}
    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/silent":
            time.sleep(8)
        status, body = self.answers.get(self.path, (404, "no such page"))
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/up")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in body.split("|"):
                self.wfile.write(piece.encode())
                time.sleep(0.2 if "|" in body else 0)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the terminal."""


@pytest.fixture
def shop() -> Iterator[str]:
    Shop.answers, Shop.asked = {"/up": (200, '{"status": "ok", "build": [{"version": "2.1"}]}')}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def platform() -> FakePlatform:
    return FakeWorld().platform()


def http(url: str, **more: Any) -> HttpCheck:
    return HttpCheck.model_validate({"http": url, **more})


def command(*words: str, **more: Any) -> CommandCheck:
    return CommandCheck.model_validate({"command": [sys.executable, "-c", *words], **more})


def test_a_server_that_answers_as_expected_is_good(shop: str, platform: FakePlatform) -> None:
    assert ask(http(f"{shop}/up"), RELEASE, platform) == ""
    version = {"path": "build[0].version", "equals": "{version}"}
    assert ask(http(f"{shop}/up", status=200, json=version), RELEASE, platform) == ""


def test_what_is_wrong_is_said_in_the_servers_words(shop: str, platform: FakePlatform) -> None:
    Shop.answers |= {"/down": (503, json.dumps({"error": "no database"})), "/old": (200, '{"version": "2.0"}')}
    assert ask(http(f"{shop}/down"), RELEASE, platform) == f"GET {shop}/down: HTTP 503, not 200 to 299: no database"
    check = http(f"{shop}/old", json={"path": "version", "equals": "{version}"})
    assert ask(check, RELEASE, platform) == f'GET {shop}/old: version is "2.0", not "2.1"'


def test_the_releases_values_stand_in_the_address(shop: str, platform: FakePlatform) -> None:
    ask(http(f"{shop}/v/{{version}}?i={{image}}&r=${{release_id}}"), RELEASE, platform)
    assert Shop.asked == [("/v/2.1?i=registry.test%2Fshop%3A2.1&r=r1", None)]
    said = ask(http(f"{shop}/{{digest}}"), RELEASE, platform)
    assert "the release has no digest" in said
    assert len(Shop.asked) == 1


def test_a_redirect_is_no_good_answer(shop: str, platform: FakePlatform) -> None:
    Shop.answers["/login"] = (302, "")
    assert ask(http(f"{shop}/login"), RELEASE, platform) == f"GET {shop}/login: HTTP 302, not 200 to 299"
    assert [path for path, _ in Shop.asked] == ["/login"]


@pytest.mark.parametrize("path", ["/silent", "/drips"])
def test_an_answer_that_takes_too_long_is_no_good_one(shop: str, platform: FakePlatform, path: str) -> None:
    Shop.answers |= {"/silent": (200, ""), "/drips": (200, "|".join("." * 80))}
    began = time.monotonic()
    assert re.search("Timeout|no whole answer", ask(http(shop + path, timeout=0.5), RELEASE, platform))
    assert time.monotonic() - began < 6


def test_nobody_there_is_said_and_no_error(platform: FakePlatform) -> None:
    assert "ConnectionError" in ask(http("http://127.0.0.1:1/up"), RELEASE, platform)


def connection(monkeypatch: pytest.MonkeyPatch, **fields: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SMOKE", json.dumps({"conn_type": "http", **fields}))


def test_credentials_are_sent_and_never_shown(
    shop: str, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
    connection(monkeypatch, login="robot", password=PASSWORD)
    Shop.answers["/echo"] = (500, f"you sent {pair}, which is {PASSWORD}")
    said = ask(http(f"{shop}/echo", conn_id="smoke"), RELEASE, platform)
    assert Shop.asked[-1] == ("/echo", f"Basic {pair}")
    assert "you sent ***" in said
    assert PASSWORD not in said
    assert pair not in said
    connection(monkeypatch, password=PASSWORD)
    ask(http(f"{shop}/up", conn_id="smoke"), RELEASE, platform)
    assert Shop.asked[-1] == ("/up", f"Bearer {PASSWORD}")


def test_credentials_go_to_their_own_host_only(
    shop: str, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, host="https://shop.test", password=PASSWORD)
    said = ask(http(f"{shop}/up", conn_id="smoke"), RELEASE, platform)
    assert "is for shop.test; its credentials go nowhere else" in said
    assert Shop.asked == []
    connection(monkeypatch, host="127.0.0.1", password=PASSWORD)
    assert ask(http(f"{shop}/up", conn_id="smoke"), RELEASE, platform) == ""


def test_a_secret_in_a_servers_words_is_not_shown(shop: str, platform: FakePlatform) -> None:
    Shop.answers["/down"] = (500, "refused: Bearer c2VjcmV0c2VjcmV0")
    said = ask(http(f"{shop}/down"), RELEASE, platform)
    assert "refused: (from here on it looks like a secret" in said
    assert "c2VjcmV0" not in said


def test_a_connection_that_does_not_exist_is_named(shop: str, platform: FakePlatform) -> None:
    assert "there is no Airflow Connection 'nowhere'" in ask(http(f"{shop}/up", conn_id="nowhere"), RELEASE, platform)


def test_a_netrc_is_not_used(
    shop: str, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert ask(http(f"{shop}/up"), RELEASE, platform) == ""
    assert Shop.asked == [("/up", None)]


def test_a_program_that_ends_well_is_good_and_sees_the_releases_values(platform: FakePlatform) -> None:
    good = command("import sys; assert sys.argv[1:] == ['2.1', '$HOME; rm']", "{version}", "$HOME; rm")
    assert ask(good, RELEASE, platform) == ""


def test_the_last_lines_of_a_program_are_the_reason(platform: FakePlatform) -> None:
    check = command("print('1 of 9 ok\\n\\ncart: empty'); raise SystemExit('checkout: no answer')")
    said = ask(check, RELEASE, platform)
    assert said.endswith(": exit code 1; 1 of 9 ok; cart: empty; checkout: no answer")


def test_a_secret_in_a_programs_output_is_not_shown(platform: FakePlatform) -> None:
    lines = ["-----BEGIN RSA PRIVATE KEY-----", "c2VjcmV0", "c2VjcmV0Mg"]
    said = ask(command(f"print({chr(10).join(lines)!r}); raise SystemExit(3)"), RELEASE, platform)
    assert "c2VjcmV0" not in said
    assert "not shown" in said


def test_a_program_does_not_get_the_workers_environment(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, password=PASSWORD)
    check = command("import os; raise SystemExit(','.join(sorted(os.environ)))")
    assert "AIRFLOW" not in ask(check, RELEASE, platform)


def test_a_program_that_does_not_end_is_ended(platform: FakePlatform) -> None:
    began = time.monotonic()
    assert "no end in 0.5 s" in ask(command("import time; time.sleep(30)", timeout=0.5), RELEASE, platform)
    assert time.monotonic() - began < 10


def test_a_program_that_is_not_there_is_said(platform: FakePlatform) -> None:
    check = CommandCheck.model_validate({"command": ["no-such-program"]})
    assert "No such file" in ask(check, RELEASE, platform)
