from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Release, State
from airflow_multideploy.sandbox import CONN_IDS, Sandbox

OLD, NEW, OTHER = (f"registry.example.com/shop:{tag}" for tag in ("1.0.0", "1.1.0", "9.9.9"))


@pytest.fixture(scope="module")
def served() -> Iterator[Sandbox]:
    with Sandbox(seconds=0.1, platforms=["http"]) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(served: Sandbox) -> Sandbox:
    served.world.clear()
    return served


def call(sandbox: Sandbox, method: str, path: str, document: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
    data = raw if raw is not None else json.dumps(document).encode() if document is not None else None
    request = urllib.request.Request(sandbox.control_url + path, data, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_release_runs_against_it_and_the_control_api_tells_the_truth(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    assert call(sandbox, "POST", "/seed", {"platform": "http", "resource": "shop", "image": OLD})[0] == 201
    assert call(sandbox, "GET", "/state")[1]["http"]["shop"]["image"] == OLD
    platform = adapter(sandbox.target("http", "shop"), service="shop", target="onprem")
    release = Release(service="shop", version="1.1.0", image=NEW, release_id="r1")
    assert call(sandbox, "POST", "/faults", {"platform": "http", "outcome": "fails", "reason": "no disk"})[0] == 201
    snapshot = platform.snapshot()
    handle = platform.deploy(release, snapshot)
    while not (seen := platform.observe(handle)).ended:
        pass
    assert seen.state is State.FAILED
    assert "no disk" in seen.reason
    writes = call(sandbox, "GET", "/calls?platform=http&writes=true")[1]
    assert [entry["operation"] for entry in writes] == ["PUT /apps/shop"]
    assert writes[0]["status"] == 202
    reads = call(sandbox, "GET", "/calls?platform=http&writes=false")[1]
    assert len(call(sandbox, "GET", "/calls")[1]) == len(reads) + 1
    status, live = call(sandbox, "POST", "/meddle", {"platform": "http", "resource": "shop", "image": OTHER})
    assert (status, live["image"], live["settled"]) == (201, OTHER, True)


def test_faults_are_listed_and_forgotten(sandbox: Sandbox) -> None:
    faults = [{"platform": "http", "outcome": "hangs"}, {"platform": "http", "answer": "500", "operation": "^PUT"}]
    assert call(sandbox, "POST", "/faults", [*faults, {"rate": 0.0, "answers": ["500"]}])[0] == 201
    document = call(sandbox, "GET", "/faults")[1]
    assert [len(document[kind]) for kind in ("rollout_faults", "call_faults")] == [1, 1]
    assert document["random_faults"]["answers"] == ["500"]
    status, document = call(sandbox, "DELETE", "/faults")
    assert status == 200
    assert not any(document.values())


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/faults", {"platform": "http"}, "'outcome' (a rollout's) or 'answer' (a call's)"),
        ("POST", "/faults", {"platform": "htpp", "outcome": "fails"}, "platform: expected one of http, got 'htpp'"),
        ("POST", "/faults", {"platform": "http", "outcome": "explodes"}, "outcome: Input should be"),
        ("POST", "/faults", {"platform": "http", "answer": "418"}, "answer: Input should be"),
        ("POST", "/faults", {"rate": "often"}, "rate: Input should be a valid number"),
        ("POST", "/faults", {"platform": "http", "answer": "500", "nth": "2"}, "nth: Input should be a valid integer"),
        ("POST", "/faults", {"platform": "http", "answer": "500", "ntth": 2}, "unknown ntth"),
        ("POST", "/faults", {"platform": "http", "answer": "500", "operation": "("}, "no regular expression"),
        ("POST", "/faults", [{"platform": "http", "outcome": "fails"}, 7], "expected an object"),
        ("POST", "/seed", {"platform": "http", "image": OLD}, "resource: expected a name"),
        ("POST", "/seed", {"platform": "http", "resource": "a", "image": 7}, "image: expected an image reference or"),
        ("POST", "/seed", {"platform": "http", "resource": "a", "tag": OLD}, 'expected {"platform"'),
        ("POST", "/meddle", {"platform": "http", "resource": "new", "image": OLD}, "was not seeded on http"),
        ("GET", "/calls?platform=azure", None, "platform: expected one of http, got 'azure'"),
        ("GET", "/calls?writes=maybe", None, "writes: expected true or false"),
    ],
)
def test_mistakes_are_named(sandbox: Sandbox, method: str, path: str, body: Any, says: str) -> None:
    status, answer = call(sandbox, method, path, body)
    assert status == 400
    assert says in answer["error"]
    assert sandbox.world.document()["rollout_faults"] == []


def test_no_json_and_unknown_addresses(sandbox: Sandbox) -> None:
    assert call(sandbox, "POST", "/faults", raw=b"{")[0] == 400
    assert call(sandbox, "GET", "/nowhere") == (404, {"error": "GET /nowhere: Not Found"})
    assert call(sandbox, "PUT", "/state")[0] == 405


def test_first_deploys_are_seeded_with_null(sandbox: Sandbox) -> None:
    status, live = call(sandbox, "POST", "/seed", {"platform": "http", "resource": "fresh", "image": None})
    assert (status, live["image"]) == (201, None)


def test_healthz(sandbox: Sandbox) -> None:
    assert call(sandbox, "GET", "/healthz")[1] == {"status": "ok", "platforms": {"http": sandbox.stand_ins["http"].url}}


def test_the_secret_is_what_it_is_told(tmp_path: Path) -> None:
    with Sandbox(platforms=["http"], secrets={"http": "canary-5c1e"}, folder=tmp_path) as sandbox:
        assert sandbox.connections()["dc1"]["password"] == "canary-5c1e"
        request = urllib.request.Request(f"{sandbox.stand_ins['http'].url}/apps/shop")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            assert error.code == 401


def test_fixed_ports_are_free_again_and_the_authority_stays(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with Sandbox(platforms=["http"], ports={"http": port}, folder=tmp_path) as sandbox:
            assert sandbox.stand_ins["http"].url.endswith(f":{port}")
            authority = (tmp_path / "ca.pem").read_bytes()
            assert sandbox.wait(0) is False
            sandbox.stop()
            assert sandbox.wait(0) is True
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # server.listen leaves its socket open
def test_what_does_not_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sandbox = Sandbox(platforms=["http"], ports={"control": taken.getsockname()[1]}, folder=tmp_path)
        with pytest.raises(OSError, match="in use"), sandbox:
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{sandbox.stand_ins['http'].url}/openapi.json")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"platforms": ["nomad"]}, "platforms: nomad unknown"),
        ({"secrets": {"nomad": "x"}}, "secrets: nomad unknown"),
        ({"platforms": ["http"], "ports": {"aws_ecs": 1}}, "ports: aws_ecs not served"),
    ],
)
def test_unknown_names_are_refused(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sandbox(**options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what the SDKs' test servers import
def test_all_four_platforms_are_served(tmp_path: Path) -> None:
    with Sandbox(seconds=0.1, folder=tmp_path) as sandbox:
        assert set(sandbox.connections()) == set(CONN_IDS.values())
        assert {f"AIRFLOW_CONN_{name.upper()}" for name in CONN_IDS.values()} == set(sandbox.environment())
        # What other processes read of it is in the folder that it was given.
        assert sandbox.connections()["azure_prod"]["extra"]["ca_file"] == str(tmp_path / "ca.pem")
        for kind in CONN_IDS:
            status, live = call(sandbox, "POST", "/seed", {"platform": kind, "resource": "shop", "image": OLD})
            assert (status, live["image"]) == (201, OLD), kind
        state = call(sandbox, "GET", "/state")[1]
        assert {kind: state[kind]["shop"]["image"] for kind in CONN_IDS} == dict.fromkeys(CONN_IDS, OLD)
