"""The short form of ``python -m tests.faults``, and the pauses between two tries of a call."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Release
from airflow_multideploy.sandbox import Sandbox
from airflow_multideploy.sandbox.world import PLATFORMS, CallFault
from tests.faults.scale import NEW, OLD, Driver, Job, connect, run


def test_five_percent_of_all_calls_failing_spoil_no_rollout() -> None:
    report = run(rollouts=64, seed=5, hang=3.0, delay=1.0)
    assert report.violations() == []
    assert report.good == len(report.made) == 64
    faults = {call.fault for call in report.calls} - {None}
    assert faults == {"500", "429", "reset", "lost", "hang", "malformed"}
    assert set(report.refused) == set(PLATFORMS)


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Sandbox(seconds=0.2) as sandbox:
        connect(sandbox)
        driver = Driver(sandbox, retry_delay=1, poll_interval=0.5)
        yield driver
        driver.triggerer.stop()


def test_pauses_grow_and_honour_retry_after(driver: Driver) -> None:
    """The first call of a rollout fails thrice; then the call log shows when it was made again."""
    world = driver.sandbox.world
    for kind in PLATFORMS:
        driver.sandbox.seed(kind, "shop", OLD)
        world.call_faults += [CallFault(kind, "429", retry_after=3), CallFault(kind, "500", times=2)]
    with ThreadPoolExecutor(len(PLATFORMS)) as pool:
        assert all(result.good for result in pool.map(driver.run, [Job(kind, "shop") for kind in PLATFORMS]))
    for kind in PLATFORMS:
        at = [call.at for call in world.calls_of(kind)[:4]]
        first, second, third = (after - before for before, after in pairwise(at))
        assert first >= 3.0, "Retry-After says 3; without it the first pause is 0.5 to 1 s"
        # Azure's reads are made again in place first, so that nine of them in a row do not begin anew.
        least = (0.2, 0.3) if kind == "azure_web_app" else (1.0, 2.0)
        assert second >= least[0]
        assert third >= least[1]


def test_pauses_are_spread(driver: Driver) -> None:
    """Or all rollouts that one outage met would come back in the same instant."""
    world, jobs = driver.sandbox.world, [Job("http", f"shop{n}") for n in range(12)]
    for job in jobs:
        driver.sandbox.seed(job.kind, job.resource, OLD)
        world.call_faults.append(CallFault("http", "500", operation=f"GET /apps/{job.resource}$"))
    with ThreadPoolExecutor(len(jobs)) as pool:
        assert all(result.good for result in pool.map(driver.run, jobs))
    pauses = []
    for job in jobs:
        first, again = [c.at for c in world.calls_of("http") if c.operation == f"GET /apps/{job.resource}"][:2]
        pauses.append(again - first)
    assert min(pauses) >= 0.5
    assert max(pauses) - min(pauses) >= 0.15


@pytest.mark.parametrize(("asked", "looks"), [(2.0, 2), (60.0, 1)])
def test_a_way_back_waits_for_a_version_only_as_long_as_is_cheap(driver: Driver, asked: float, looks: int) -> None:
    """The version address may be down because of the release that goes back, and is not asked before its time."""
    world = driver.sandbox.world
    driver.sandbox.seed("http", "shop", OLD)
    platform = adapter(driver.sandbox.target("http", "shop"), service="shop", target="http")
    snapshot = platform.snapshot()
    release = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4")
    handle = platform.deploy(release, snapshot)
    began = len(world.calls)
    world.call_faults.append(CallFault("http", "429", operation="/version$", retry_after=asked))
    assert platform.rollback(release, snapshot, handle).changed
    at = [call.at for call in world.calls[began:] if call.operation.endswith("/version")]
    assert len(at) == looks
    assert all(after - before >= asked for before, after in pairwise(at))
