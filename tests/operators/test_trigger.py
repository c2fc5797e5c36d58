"""The trigger: many targets wait in one event loop, and none of them for another platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from airflow_multideploy.operators.trigger import LOOKS_AT_ONCE, RolloutTrigger
from airflow_multideploy.platforms import kinds
from airflow_multideploy.release.contract import Handle, Observation
from airflow_multideploy.testing.fake import FakeClock, FakePlatform, FakeWorld


class DeafPlatform(FakePlatform):
    """What is behind the Connection ``deaf`` answers nobody."""

    async def aobserve(self, handle: Handle) -> Observation:
        if self.config.conn_id == "deaf":
            await asyncio.sleep(60)
        return await super().aobserve(handle)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    point = EntryPoint("fake", f"{__name__}:DeafPlatform", kinds.ENTRY_POINT_GROUP)
    monkeypatch.setitem(kinds.kinds(), "fake", point)
    yield
    kinds.platform_type.cache_clear()


def test_a_platform_that_does_not_answer_delays_nobody_elses_look() -> None:
    for name in ("deaf", "well"):
        FakeWorld(name=name, clock=FakeClock()).seed("shop/t1", "registry.test/shop:1")

    def trigger(conn_id: str) -> RolloutTrigger:
        config = {"platform": "fake", "conn_id": conn_id, "poll_interval": 0.05}
        handle = Handle(action="deploy", revision="rev-1").dump()
        return RolloutTrigger(service="shop", target="t1", config=config, handle=handle, deadline=time.time() + 60)

    async def fired(conn_id: str) -> str:
        async for event in trigger(conn_id).run():
            return str(event.payload["state"])
        raise AssertionError("no event")

    async def all_of_them() -> str:
        deaf = [asyncio.create_task(fired("deaf")) for _ in range(LOOKS_AT_ONCE + 4)]
        await asyncio.sleep(0.5)
        try:
            return await asyncio.wait_for(fired("well"), 5)
        finally:
            for task in deaf:
                task.cancel()
            await asyncio.gather(*deaf, return_exceptions=True)

    assert asyncio.run(all_of_them()) == "healthy"
