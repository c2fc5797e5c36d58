"""The airflow platform against a real Airflow: a run that ends well, one that fails and one that hangs, and back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.platforms.pipelines.airflow import Airflow
from airflow_multideploy.release.contract import Handle, Observation, Release, State
from airflow_multideploy.release.wait import SystemClock, Watch, follow, persist
from airflow_multideploy.sandbox.airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.long]

DAG = """
import time
from airflow.sdk import dag, get_current_context, task

@dag(schedule=None, max_active_runs=2)
def deploy_shop():
    @task
    def deploy():
        image = get_current_context()["dag_run"].conf["image"]
        if image.endswith(":bad"):
            raise RuntimeError("exec /app: exit code 137")
        if image.endswith(":hangs"):
            time.sleep(600)

    deploy()

deploy_shop()
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[LocalAirflow]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "deploy_shop.py").write_text(DAG)
    with LocalAirflow(tmp_path / "home", dags) as airflow:
        airflow.wait_for_dag("deploy_shop")
        yield airflow


def test_a_run_follows_and_goes_back(there: LocalAirflow, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "http", "host": there.url, "login": there.user, "password": there.password}
    monkeypatch.setenv("AIRFLOW_CONN_THERE", json.dumps(connection))
    config = {"platform": "airflow", "conn_id": "there", "dag_id": "deploy_shop"}
    platform, clock = adapter(config, service="shop", target="t1"), SystemClock()
    assert isinstance(platform, Airflow)

    def end(handle: Handle) -> Observation:
        watch = Watch(deadline=time.time() + 90, interval=0.3)
        return follow(lambda: asyncio.run(platform.aobserve(handle)), watch=watch, clock=clock)

    def release(version: str) -> Release:
        return Release(service="shop", version=version, image=f"shop:{version}", release_id=f"r{version}")

    nothing = platform.snapshot()
    assert nothing.exists is False
    first = platform.deploy(release("1"), nothing)
    assert platform.deploy(release("1"), nothing).revision == first.revision
    again = platform._submit("deploy_shop", "r1.t1", {"image": "shop:1"}, release("1"))
    assert platform._run(again).id == first.revision, "409 is our own earlier write"
    assert end(first).state is State.HEALTHY
    for version in ("bad", "hangs"):
        snapshot = platform.snapshot()
        assert snapshot.image == "shop:1"
        handle = platform.deploy(release(version), snapshot)
        if version == "bad":
            assert (
                end(handle).reason
                == "run rbad.t1 of deploy_shop failed: task deploy: RuntimeError: exec /app: exit code 137"
            )
        undo = partial(platform.rollback, release(version), snapshot, handle)
        back = persist(undo, clock=clock, until=time.time() + 60)
        assert there.run_state("deploy_shop", str(handle.revision)) == "failed"
        assert end(back).state is State.HEALTHY
