"""Every invariant holds for rollouts with smoke checks and a bake too, whatever dies on the way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.catalog.checks import Verify
from airflow_multideploy.catalog.service import Service
from tests.simulation import play as stage
from tests.simulation.check import history
from tests.simulation.invariants import breaches
from tests.simulation.schedules import Schedule, schedules

SCHEDULES, EVERY, SEED = 5200, 13, 2027
BAKE = 90.0


@pytest.fixture(autouse=True)
def _verified(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every service of the simulation has its targets verified: by a bake, and every other one by a program too."""
    plain = stage.service_of

    def service_of(schedule: Schedule, **more: Any) -> Service:
        service = plain(schedule, **more)
        targets = {}
        for number, (name, target) in enumerate(service.targets.items()):
            checks = [{"command": ["true", "{version}"]}] if number % 2 else []
            verify = Verify.model_validate({"bake": BAKE, "checks": checks})
            targets[name] = target.model_copy(update={"verify": verify})
        return service.model_copy(update={"targets": targets})

    monkeypatch.setattr(stage, "service_of", service_of)
    with stage.installed():
        yield


def test_every_invariant_holds_with_checks_and_a_bake() -> None:
    ends: Counter[str] = Counter()
    for schedule in itertools.islice(schedules(SCHEDULES, SEED), 0, None, EVERY):
        story = stage.play(schedule)
        assert not (broken := breaches(story)), f"{broken}\n--replay {schedule!r}\n{history(story)}"
        for step in story.steps:
            if step.what == "journal" and step.value["phase"] == "succeeded" and step.value["settled"]:
                baked = step.value["ended_at"] - step.value["checked_at"]
                assert baked >= BAKE, f"{baked}\n{history(story)}"
                ends["baked"] += 1
    assert ends["baked"] > 100
