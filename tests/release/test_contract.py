from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State
from tests.release.conftest import OLD, Bench


def test_documents_are_strict_frozen_and_equal_after_json() -> None:
    release = Release(service="s", version="1", image="i:1", release_id="r1", reason="because")
    assert Release.model_validate_json(release.model_dump_json()) == release
    assert Release.model_validate(release.dump()) == release
    with pytest.raises(ValidationError):
        release.force = True  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Snapshot.model_validate({"exists": True, "extra": 1})


@pytest.mark.parametrize("state", list(State))
def test_an_observation_that_cannot_change_any_more_has_ended(state: State) -> None:
    assert Observation(state=state).ended == (state in ("healthy", "failed", "superseded"))


def test_errors_of_a_platform_name_service_and_target(bench: Bench) -> None:
    platform = bench.platform()
    error = platform.error("no", retryable=True, retry_after=2)
    assert (str(error), error.target, error.retryable, error.retry_after) == ("shop/t1: no", "shop/t1", True, 2)
    assert isinstance(error, PlatformError)
    assert platform.console_url() is None


def test_the_fake_keeps_the_contract_that_real_platforms_keep(bench: Bench) -> None:
    platform, release = bench.platform(), bench.release()
    snapshot = platform.snapshot()
    assert (snapshot.exists, snapshot.image) == (True, OLD)
    handle = platform.deploy(release, snapshot)
    assert platform.observe(handle).state is State.PROGRESSING
    bench.world.clock.sleep(bench.world.seconds)
    assert asyncio.run(platform.aobserve(handle)).state is State.HEALTHY
    assert bench.platform().deploy(release, snapshot) == handle
    other = release.model_copy(update={"release_id": "rffffffffff"})
    assert not platform.deploy(other, platform.snapshot()).changed
    assert len(bench.world.writes()) == 1
    back = platform.rollback(release, snapshot, None)
    assert platform.observe(handle).state is State.SUPERSEDED
    assert (back.action, back.revision, back.changed) == ("rollback", snapshot.revision, True)
    assert not platform.rollback(release, snapshot, handle).changed
    bench.world.meddle("shop/t1")
    with pytest.raises(Drift, match="shop/t1"):
        platform.rollback(release, snapshot, None)
    with pytest.raises(Drift, match="shop/t1"):
        platform.deploy(release, snapshot)
    assert platform.deploy(release.model_copy(update={"force": True}), snapshot) == Handle(
        action="deploy", revision=handle.revision
    )
