"""Waiting, written once: how often to look, when to give up, and which calls to make again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.release.contract import Observation, State

T = TypeVar("T")

CALL_ATTEMPTS = 6
"""How often one call to a platform is made before its error counts."""


class Clock(Protocol):
    """Time as a release sees it; a simulation brings its own."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


_exponential = wait_exponential_jitter(initial=0.5, max=30, jitter=0.5)


def _delay(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, PlatformError) else None
    return max(_exponential(state), asked or 0.0)


def persist(call: Callable[[], T], *, clock: Clock, until: float) -> T:
    """The call's result, made again with growing, jittered pauses while its error is retryable.

    :param until: epoch seconds; no attempt starts after it.
    :raises PlatformError: not retryable, still failing after `CALL_ATTEMPTS`, or out of time: the last one.
    """

    def out_of_time(state: RetryCallState) -> bool:
        return state.attempt_number >= CALL_ATTEMPTS or clock.time() + state.upcoming_sleep > until

    retrying = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, PlatformError) and e.retryable),
        wait=_delay,
        stop=out_of_time,
        sleep=clock.sleep,
        reraise=True,
    )
    return retrying(call)


class Watch:
    """Decides after each look: wait how long, or the final observation.

    :param deadline: epoch seconds; absolute, so that a restart of whoever waits does not extend it.
    :param interval: most seconds between looks. Early ones come sooner, a sixteenth of the time waited so far, so that
        a rollout of seconds is not made longer by the waiting.
    :param earliest: epoch seconds; healthy counts only from then on.
    """

    def __init__(
        self, *, deadline: float, interval: float, earliest: float = 0.0, rng: random.Random | None = None
    ) -> None:
        self.deadline = deadline
        self.earliest = min(earliest, deadline)
        self.interval = interval
        self._began: float | None = None
        self._uniform = rng.uniform if rng else random.uniform

    def judge(self, seen: Observation | PlatformError, *, now: float) -> Observation | float:
        """The final observation, or seconds until the next look."""
        if self._began is None:
            self._began = now
        if isinstance(seen, PlatformError):
            if not seen.retryable:
                return Observation(state=State.UNKNOWN, reason=str(seen))
            if now >= self.deadline:
                return Observation(state=State.UNKNOWN, reason=f"no answer until the deadline; last error: {seen}")
            return max(self._wait(now), min(seen.retry_after or 0.0, self.deadline - now))
        if seen.ended and not (seen.state is State.HEALTHY and now < self.earliest):
            return seen
        if now >= self.deadline:
            return Observation(
                state=State.UNKNOWN if seen.state is State.UNKNOWN else State.FAILED,
                reason=f"deadline passed while {seen.state}: {seen.reason}".rstrip(": "),
                revision=seen.revision,
                progress=seen.progress,
            )
        return self._wait(now)

    def _wait(self, now: float) -> float:
        waited = now - (self._began or now)
        pause = min(self.interval, max(0.5, waited / 16))
        return max(0.05, min(pause * self._uniform(0.8, 1.2), self.deadline - now))


def follow(look: Callable[[], Observation], *, watch: Watch, clock: Clock) -> Observation:
    """The final observation of a rollout, waited for in this process.

    A clock whose ``sleep`` raises ends the waiting with that exception.
    """
    while True:
        seen: Observation | PlatformError
        try:
            seen = look()
        except PlatformError as error:
            seen = error
        judged = watch.judge(seen, now=clock.time())
        if isinstance(judged, Observation):
            return judged
        clock.sleep(judged)
