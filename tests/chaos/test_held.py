"""A held call: the instant at which the chaos strikes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from airflow_multideploy.sandbox import Sandbox

OLD, NEW = (f"registry.example.com/shop:{tag}" for tag in ("1.0.0", "2.0.0"))
PUT = "^PUT /apps/shop$"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seconds=0, platforms=["http"]) as sandbox:
        sandbox.seed("http", "shop", OLD)
        yield sandbox


def hold(sandbox: Sandbox, answer: str, seconds: float = 30) -> list[object]:
    """Hold a deploying call; the list gets its status, or its error."""
    ended: list[object] = []
    connection = sandbox.connections()["dc1"]

    def deploy() -> None:
        headers = {"authorization": f"Bearer {connection['password']}", "if-match": "*"}
        body = {"image": NEW, "version": "2.0.0", "release_id": "r1"}
        try:
            ended.append(
                httpx.put(f"{connection['host']}/apps/shop", json=body, headers=headers, trust_env=False).status_code
            )
        except httpx.TransportError as error:
            ended.append(error)

    fault = {"platform": "http", "answer": answer, "operation": PUT, "seconds": seconds}
    assert httpx.post(f"{sandbox.control_url}/faults", json=fault, trust_env=False).status_code == 201
    threading.Thread(target=deploy).start()
    wait_for(sandbox, [PUT])
    return ended


def wait_for(sandbox: Sandbox, held: list[str]) -> None:
    until = time.monotonic() + 10
    while httpx.get(f"{sandbox.control_url}/held", trust_env=False).json()["held"] != held:
        assert time.monotonic() < until
        time.sleep(0.01)


def let_go(sandbox: Sandbox, **how: object) -> int:
    answer = httpx.post(f"{sandbox.control_url}/held", json=how, trust_env=False).json()
    wait_for(sandbox, [])
    return int(answer["released"])


def image(sandbox: Sandbox) -> str | None:
    return sandbox.stand_ins["http"].live("shop").image


def ends(ended: list[object]) -> object:
    until = time.monotonic() + 10
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
    return ended[0]


def test_a_call_is_held_before_its_effect(sandbox: Sandbox) -> None:
    ended = hold(sandbox, "held")
    assert (image(sandbox), ended) == (OLD, [])
    assert let_go(sandbox, operation=PUT) == 1
    assert ends(ended) == 202
    assert image(sandbox) == NEW


def test_a_call_is_held_between_its_effect_and_its_answer(sandbox: Sandbox) -> None:
    ended = hold(sandbox, "held_after")
    assert (image(sandbox), ended) == (NEW, [])
    assert let_go(sandbox) == 1
    assert ends(ended) == 202


def test_a_dropped_call_never_has_its_effect(sandbox: Sandbox) -> None:
    ended = hold(sandbox, "held")
    assert let_go(sandbox, drop=True) == 1
    assert isinstance(ends(ended), httpx.TransportError)
    assert image(sandbox) == OLD


def test_a_held_call_goes_on_by_itself_when_its_time_is_over(sandbox: Sandbox) -> None:
    assert ends(hold(sandbox, "held", seconds=3)) == 202
    assert image(sandbox) == NEW
