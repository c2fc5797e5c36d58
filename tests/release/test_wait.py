from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.release.contract import Observation, State
from airflow_multideploy.release.wait import CALL_ATTEMPTS, SystemClock, Watch, follow, persist
from airflow_multideploy.testing.fake import FakeClock


class Calls:
    """Fails as scripted, then answers."""

    def __init__(self, clock: FakeClock, *errors: Exception) -> None:
        self.clock, self.errors, self.at = clock, list(errors), list[float]()

    def __call__(self) -> str:
        self.at.append(self.clock.time())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def error(*, retryable: bool = True, retry_after: float | None = None) -> PlatformError:
    return PlatformError("throttled", target="shop/t1", retryable=retryable, retry_after=retry_after)


def test_a_call_is_made_again_until_it_answers_with_growing_pauses() -> None:
    clock = FakeClock()
    calls = Calls(clock, *[error() for _ in range(CALL_ATTEMPTS - 1)])
    assert persist(calls, clock=clock, until=clock.now + 600) == "answer"
    pauses = [later - earlier for earlier, later in zip(calls.at, calls.at[1:], strict=False)]
    assert len(pauses) == CALL_ATTEMPTS - 1
    assert pauses == sorted(pauses)


def test_a_call_is_made_no_more_often_than_that() -> None:
    clock = FakeClock()
    calls = Calls(clock, *[error() for _ in range(50)])
    with pytest.raises(PlatformError, match="throttled"):
        persist(calls, clock=clock, until=clock.now + 1e6)
    assert len(calls.at) == CALL_ATTEMPTS


@pytest.mark.parametrize("final", [error(retryable=False), KeyError("a bug")])
def test_an_error_that_cannot_heal_is_not_retried(final: Exception) -> None:
    clock = FakeClock()
    calls = Calls(clock, final)
    with pytest.raises(type(final)):
        persist(calls, clock=clock, until=clock.now + 600)
    assert len(calls.at) == 1
    assert clock.now == calls.at[0]


def test_the_pause_that_the_platform_asks_for_is_kept() -> None:
    clock = FakeClock()
    calls = Calls(clock, error(retry_after=42))
    persist(calls, clock=clock, until=clock.now + 600)
    assert calls.at[1] - calls.at[0] >= 42


@given(st.floats(0, 30), st.integers(0, 2**32), st.lists(st.none() | st.floats(0, 30), max_size=8))
def test_no_attempt_after_the_first_starts_later_than_allowed(
    budget: float, seed: int, asked: list[float | None]
) -> None:
    random.seed(seed)
    clock = FakeClock()
    calls = Calls(clock, *[error(retry_after=seconds) for seconds in asked])
    until = clock.now + budget
    try:
        persist(calls, clock=clock, until=until)
    except PlatformError:
        assert asked
    assert all(at <= until for at in calls.at[1:])


def watch(**more: object) -> Watch:
    return Watch(**{"deadline": 100.0, "interval": 4.0, "rng": random.Random(1), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [State.HEALTHY, State.FAILED, State.SUPERSEDED])
def test_a_look_that_has_ended_is_the_verdict_even_after_the_deadline(state: State) -> None:
    seen = Observation(state=state, reason="x")
    assert watch().judge(seen, now=1) == seen
    assert watch().judge(seen, now=101) == seen


def test_a_progress_that_never_ends_fails_at_its_deadline_with_the_platforms_words() -> None:
    seen = Observation(state=State.PROGRESSING, reason="0 of 1 ready", revision="r", progress=0.5)
    judged = watch().judge(seen, now=100)
    assert judged == Observation(
        state=State.FAILED, reason="deadline passed while progressing: 0 of 1 ready", revision="r", progress=0.5
    )
    bare = watch().judge(Observation(state=State.PROGRESSING), now=100)
    assert isinstance(bare, Observation)
    assert bare.reason == "deadline passed while progressing"


def test_what_cannot_be_read_until_the_deadline_is_unknown_and_not_failed() -> None:
    for seen in (Observation(state=State.UNKNOWN), error()):
        judged = watch().judge(seen, now=100)
        assert isinstance(judged, Observation)
        assert judged.state is State.UNKNOWN
        assert isinstance(watch().judge(seen, now=1), float)


def test_an_error_that_cannot_heal_ends_the_waiting_at_once() -> None:
    judged = watch().judge(error(retryable=False), now=1)
    assert judged == Observation(state=State.UNKNOWN, reason="shop/t1: throttled")


def test_early_looks_come_sooner_and_none_is_further_apart_than_the_interval() -> None:
    look, seen = watch(deadline=1e9), Observation(state=State.PROGRESSING, reason="a")
    pauses = {now: look.judge(seen, now=now) for now in (1000, 1016, 1048, 1500)}
    for now, pause in {1000: 0.5, 1016: 1.0, 1048: 3.0, 1500: 4.0}.items():
        assert 0.8 * pause <= pauses[now] <= 1.2 * pause  # type: ignore[operator]
    short = watch(deadline=1e9, interval=0.1)
    assert short.judge(seen, now=1) <= 0.12  # type: ignore[operator]


def test_a_look_is_not_repeated_earlier_than_the_platform_asks_nor_later_than_the_deadline() -> None:
    for seed in range(50):
        assert watch(rng=random.Random(seed)).judge(error(retry_after=30), now=1) >= 30  # type: ignore[operator]
    assert watch().judge(error(retry_after=500), now=90) == 10
    assert watch().judge(Observation(state=State.PROGRESSING), now=99.99) == 0.05


def test_following_looks_until_the_end_and_passes_over_lost_answers() -> None:
    clock, looks = FakeClock(0), iter([error(), Observation(state=State.PROGRESSING), Observation(state=State.HEALTHY)])

    def look() -> Observation:
        seen = next(looks)
        if isinstance(seen, PlatformError):
            raise seen
        return seen

    assert follow(look, watch=Watch(deadline=100, interval=4), clock=clock).state is State.HEALTHY
    assert 0.8 <= clock.now <= 1.2


def test_the_machines_clock_runs() -> None:
    clock = SystemClock()
    before = clock.time()
    clock.sleep(0.01)
    assert before + 0.01 <= clock.time() + 1e-3
    assert abs(clock.time() - time.time()) < 5
