"""The short form of the fuzz of answers, and the Connections that do not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.images import registry
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle
from airflow_multideploy.sandbox.world import PLATFORMS
from tests.bad_input.answers import STEPS, Recorded, Studio, Tape, platform_answers, registry_answers
from tests.bad_input.garbage import hold

PLACES: dict[str, dict[str, Any]] = {
    "aws_ecs": {"cluster": "main", "service": "shop"},
    "azure_web_app": {"resource_group": "rg", "site": "shop"},
    "gcp_cloud_run": {"project": "p1", "location": "europe-west1", "service": "shop"},
    "http": {"version": {"path": "/version"}},
}


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with Studio() as studio:
        yield studio


@pytest.mark.parametrize("kind", PLATFORMS)
def test_bent_answers_of_a_platform_meet_errors_of_ours_alone(studio: Studio, kind: str) -> None:
    tally = hold(platform_answers(studio, kind), documents=40, seed=7, shrink=False)
    assert tally.violation == ""
    assert 0 < tally.taken < tally.documents


@pytest.mark.parametrize("kind", PLATFORMS)
def test_the_tape_alone_is_a_release(studio: Studio, kind: str) -> None:
    """Or nothing that is bent would be what the platform says."""
    for step in set(STEPS) - ({"aobserve"} if kind == "gcp_cloud_run" else set()):
        studio.wires[kind].rewind({}, studio.tapes[kind][step])
        assert studio.step(kind, step, *studio.documents[kind])


def test_bent_answers_of_a_registry_meet_errors_of_ours_alone(studio: Studio) -> None:
    tally = hold(registry_answers(studio), documents=60, seed=7, shrink=False)
    assert tally.violation == ""
    assert 0 < tally.taken < tally.documents


def test_a_registry_may_send_a_header_that_is_not_ascii(studio: Studio) -> None:
    wire, tape = studio.wires["http"], Tape()
    answer = Recorded(404, [("x-served-by", "caf\xe9")], b"{}")
    tape.answers["HEAD /v2/shop/manifests/1.0 "] = [answer]
    wire.rewind({}, tape)
    assert registry.find(f"{wire.url.removeprefix('http://')}/shop", "1.0") is None


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_connection_that_does_not_exist_is_to_be_created(kind: str, mode: str) -> None:
    platform = adapter({"platform": kind, "conn_id": "nowhere", **PLACES[kind]}, service="shop", target="t1")
    handle = Handle(action="deploy", revision="x", data={"serves": {"x": 100}})
    with pytest.raises(PlatformError, match="shop/t1: there is no Airflow Connection 'nowhere'; create it") as caught:
        asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
    assert not caught.value.retryable
