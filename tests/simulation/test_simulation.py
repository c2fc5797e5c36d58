"""The short form of the simulation; ``python -m tests.simulation`` is the full one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.check import check, history
from tests.simulation.invariants import breaches
from tests.simulation.mutants import misfits
from tests.simulation.play import installed, play
from tests.simulation.schedules import Schedule, draw

SCHEDULES, PARTS, SEED = 5200, 8, 2026


@pytest.fixture(scope="module")
def fake() -> Iterator[None]:
    """The platform kind ``fake`` is installed."""
    with installed():
        yield


def explain(broken: list[tuple[str, str, Schedule]]) -> str:
    """What was broken, and the history of the first story that did."""
    said = "\n".join(f"{name}: {how}\n  --replay {schedule!r}" for name, how, schedule in broken[:5])
    with installed():
        return f"{said}\n{history(play(broken[0][2]))}"


@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds_after_every_schedule(part: int) -> None:
    played, broken = check(SCHEDULES, SEED, part, PARTS)
    assert played == SCHEDULES // PARTS
    assert not broken, explain(broken)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_invariant_holds_after_whatever_else_comes_to_mind(fake: None, data: st.DataObject) -> None:
    schedule = draw(lambda some: data.draw(st.sampled_from(some)))
    story = play(schedule)
    broken = breaches(story)
    assert not broken, f"{broken}\n--replay {schedule!r}\n{history(story)}"


@pytest.mark.usefixtures("fake")
def test_a_connection_that_does_not_exist_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_FAKE")
    story = play(Schedule("chain2"))
    said = story.airflow.runs[0].value("finalize")
    assert said["status"] == "not_started"
    assert "shop/t1: there is no Airflow Connection 'fake'; create it" in said["reason"]
    assert not [step for step in story.steps if step.what == "wrote"]


def test_the_mutants_fit_the_code() -> None:
    assert misfits() == []
