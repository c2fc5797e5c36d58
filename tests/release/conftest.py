"""A bench: one world, a journal per target, and what workers do on them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import UnknownPlatform
from airflow_multideploy.release.contract import Observation, Release
from airflow_multideploy.release.journal import Entry, Journal, Phase, Run
from airflow_multideploy.release.plan import release_id
from airflow_multideploy.release.rollback import WayBack
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.wait import Watch, follow
from airflow_multideploy.testing.fake import FakeConfig, FakePlatform, FakeWorld, Fault, MemoryStore

settings.register_profile("core", deadline=None, max_examples=50)  # two busy cores: time says nothing
settings.load_profile("core")

IMAGE = "registry.test/shop"
OLD = f"{IMAGE}:1"


def config_type(kind: str) -> type[TargetConfig]:
    """The fake platform is the only one that there is."""
    if kind != "fake":
        raise UnknownPlatform(f"platform {kind!r} is not installed; installed: fake")
    return FakeConfig


def targets(graph: Mapping[str, list[Any]], **common: Any) -> dict[str, TargetConfig]:
    """Target configs from name → depends_on."""
    return {
        name: FakeConfig.model_validate({"platform": "fake", "conn_id": "c", "depends_on": after, **common})
        for name, after in graph.items()
    }


class Bench:
    """One service; every method is a new process: nothing is kept but the world and the journals."""

    def __init__(self) -> None:
        random.seed(7)
        self.world = FakeWorld()
        self.world.seed("shop/t1", OLD)
        self.stores: dict[str, MemoryStore] = {}
        self.config: dict[str, Any] = {}
        self.clear = 0
        self.since = 0.0
        self.due = 0.0

    def store(self, target: str = "t1") -> MemoryStore:
        return self.stores.setdefault(target, MemoryStore())

    def journal(self, target: str = "t1") -> Journal:
        return Journal(self.store(target))

    def entry(self, target: str = "t1") -> Entry:
        entry = self.journal(target).read()
        assert entry is not None
        return entry

    def platform(self, target: str = "t1") -> FakePlatform:
        return self.world.platform("shop", target, **self.config)

    def live(self, target: str = "t1") -> str | None:
        now = self.world.places[f"shop/{target}"].current
        return now and now.image

    def fault(self, call: Any, kind: Any, **more: Any) -> None:
        self.world.faults.append(Fault(call, kind, **more))

    def release(self, version: str = "2", run: str = "run1", *, force: bool = False) -> Release:
        rid = release_id("shop", run)
        return Release(service="shop", version=version, image=f"{IMAGE}:{version}", release_id=rid, force=force)

    def rollout(self, run: str = "run1", target: str = "t1") -> Rollout:
        return Rollout(
            self.platform(target),
            self.journal(target),
            self.world.clock,
            Run(dag_id="shop", run_id=run, clear=self.clear, since=self.since, due=self.due),
        )

    def begin(self, version: str = "2", run: str = "run1", target: str = "t1", *, force: bool = False) -> Entry:
        return self.rollout(run, target).begin(self.release(version, run, force=force))

    def look(self, entry: Entry, target: str = "t1") -> Observation:
        back = entry.phase is Phase.ROLLING_BACK
        handle, deadline = (entry.back, entry.rollback_deadline) if back else (entry.handle, entry.deadline)
        assert handle is not None
        assert deadline is not None
        watch = Watch(deadline=deadline, interval=5, rng=random.Random(7))
        return follow(lambda: self.platform(target).observe(handle), watch=watch, clock=self.world.clock)

    def deploy(self, version: str = "2", run: str = "run1", target: str = "t1", *, force: bool = False) -> Entry:
        entry = self.begin(version, run, target, force=force)
        if entry.phase is not Phase.VERIFYING:
            return entry
        return self.rollout(run, target).conclude(entry, self.look(entry, target))

    def way(self, target: str = "t1") -> WayBack:
        return WayBack(self.platform(target), self.journal(target), self.world.clock)

    def back(self, target: str = "t1") -> Entry:
        entry = self.way(target).begin(self.entry(target))
        while entry.phase is Phase.ROLLING_BACK:
            if entry.back is None:
                entry = self.way(target).begin(entry)
            entry = self.way(target).conclude(entry, self.look(entry, target))
        return entry


@pytest.fixture
def bench() -> Bench:
    return Bench()
