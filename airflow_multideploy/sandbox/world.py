"""What all stand-ins share: durations, the fault script and the call log."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Outcome = Literal["fails", "hangs", "slow"]
Answer = Literal["400", "500", "429", "reset", "lost", "hang", "malformed", "held", "held_after"]
PLATFORMS = ("aws_ecs", "azure_web_app", "gcp_cloud_run", "http")


@dataclass
class RolloutFault:
    """The next rollout(s) of a platform go wrong.

    :param outcome: ``fails`` half-way, with the platform's own way of saying so; ``hangs``: never finishes;
        ``slow``: takes ``seconds``.
    :param resource: only this resource (ECS service, site, Cloud Run service, application); None: any.
    :param times: how many rollouts.
    """

    platform: str
    outcome: Outcome
    resource: str | None = None
    times: int = 1
    seconds: float = 30.0
    reason: str = "container exited with code 1"


@dataclass
class CallFault:
    """The n-th matching call from now goes wrong.

    :param operation: regular expression searched in the operation (``PUT /path`` or the AWS action).
    :param nth: 1 = the next matching call.
    :param answer: ``400``; ``500``; ``429`` with Retry-After; ``reset``: the connection dies before any effect;
        ``lost``: the call takes effect, then the connection dies; ``hang``: no answer for ``seconds``; ``malformed``: a
        body that is no document of the API; ``held``: waits before its effect, for ``seconds`` or until
        `World.release`, then goes on, whether or not its client still lives; ``held_after``: the same between its
        effect and its answer.
    :param times: how many calls from the n-th on.
    """

    platform: str
    answer: Answer
    operation: str = ""
    nth: int = 1
    times: int = 1
    seconds: float = 30.0
    retry_after: float = 1.0

    def __post_init__(self) -> None:
        self.held = False
        self.dropped = False
        self.released = threading.Event()

    def hold(self) -> Iterator[float]:
        """Pauses, in seconds, until the call is released; it goes on then unless it was ``dropped``."""
        self.held = True
        until = time.monotonic() + self.seconds
        while not self.released.is_set() and time.monotonic() < until:
            yield 0.02
        self.held = False


@dataclass
class RandomFaults:
    """Each call of any platform goes wrong with a probability, beside the scripted faults.

    :param rate: 0.0 to 1.0.
    :param seed: the same seed and the same order of calls give the same faults.
    :param answers: what is drawn from, evenly; as ``seconds`` and ``retry_after`` in `CallFault`.
    """

    rate: float
    seed: int = 0
    answers: tuple[Answer, ...] = ("500", "429", "reset", "lost", "hang", "malformed")
    seconds: float = 30.0
    retry_after: float = 1.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)  # noqa: S311 - a script, not a secret

    def draw(self, platform: str) -> CallFault | None:
        """The fault of the next call, if it has one."""
        if self._rng.random() >= self.rate:
            return None
        answer = self._rng.choice(self.answers)
        return CallFault(platform, answer, seconds=self.seconds, retry_after=self.retry_after)


@dataclass
class Call:
    """One call that a stand-in received."""

    at: float
    platform: str
    operation: str
    writes: bool
    status: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Course:
    """How one rollout will go: decided when it starts."""

    outcome: Literal["succeeds", "fails", "hangs"]
    seconds: float
    reason: str = ""

    def done(self, elapsed: float) -> bool:
        """Whether it has ended, well or badly, after so many seconds."""
        return self.outcome != "hangs" and elapsed >= self.seconds

    def failed(self, elapsed: float) -> bool:
        """Whether it has ended badly."""
        return self.outcome == "fails" and elapsed >= self.seconds

    def progress(self, elapsed: float) -> float:
        """0.0 to 1.0."""
        if self.outcome == "hangs":
            return min(0.5, elapsed / max(self.seconds, 0.001))
        return min(1.0, elapsed / max(self.seconds, 0.001))


@dataclass
class World:
    """One sandbox's shared state. Thread-safe.

    :param seconds: how long a rollout takes, per platform or for all.
    """

    seconds: float = 8.0
    per_platform: dict[str, float] = field(default_factory=dict)
    rollout_faults: list[RolloutFault] = field(default_factory=list)
    call_faults: list[CallFault] = field(default_factory=list)
    random_faults: RandomFaults | None = None
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    @staticmethod
    def now() -> float:
        """Seconds since the epoch."""
        return time.time()

    def course(self, platform: str, resource: str) -> Course:
        """How the rollout that starts now on this resource will go; uses up a scripted fault."""
        seconds = self.per_platform.get(platform, self.seconds)
        with self._lock:
            for fault in self.rollout_faults:
                if fault.platform == platform and fault.resource in (None, resource) and fault.times > 0:
                    fault.times -= 1
                    if fault.outcome == "slow":
                        return Course("succeeds", fault.seconds)
                    if fault.outcome == "hangs":
                        return Course("hangs", seconds)
                    return Course("fails", seconds / 2, fault.reason)
        return Course("succeeds", seconds)

    def call_fault(self, platform: str, operation: str) -> CallFault | None:
        """The fault that this call runs into, if any; counts the call."""
        with self._lock:
            for fault in self.call_faults:
                if fault.platform != platform or fault.times <= 0 or not re.search(fault.operation, operation):
                    continue
                fault.nth -= 1
                if fault.nth <= 0:
                    fault.times -= 1
                    return fault
            return self.random_faults.draw(platform) if self.random_faults else None

    def record(self, call: Call) -> Call:
        """Keep a call in the log (the last 100,000)."""
        with self._lock:
            self.calls.append(call)
            del self.calls[:-100_000]
        return call

    def add_fault(self, document: dict[str, Any]) -> None:
        """Add a fault from its JSON form: one with ``outcome`` is a `RolloutFault`, one with ``answer`` a `CallFault`,
        and one with ``rate`` the `RandomFaults` from now on.

        :raises ValueError: it is neither, or names an unknown platform.
        """
        if "rate" in document:
            self.random_faults = RandomFaults(**document)
            return
        if document.get("platform") not in PLATFORMS:
            raise ValueError(f"platform: expected one of {', '.join(PLATFORMS)}, got {document.get('platform')!r}")
        try:
            fault = RolloutFault(**document) if "outcome" in document else CallFault(**document)
        except TypeError as error:
            raise ValueError(f"fault: {error}; give 'outcome' (a rollout's) or 'answer' (a call's)") from None
        with self._lock:
            (self.rollout_faults if isinstance(fault, RolloutFault) else self.call_faults).append(fault)  # type: ignore[arg-type]

    def held(self) -> list[str]:
        """The operations, as their faults name them, of the calls that are held now."""
        with self._lock:
            return [fault.operation for fault in self.call_faults if fault.held]

    def release(self, operation: str = "", *, drop: bool = False) -> int:
        """Let the held calls of faults with this ``operation`` (empty: all) go on; returns how many were held.

        :param drop: one held before its effect never has it: its connection dies.
        """
        with self._lock:
            faults = [f for f in self.call_faults if f.held and operation in ("", f.operation)]
            for fault in faults:
                fault.dropped = drop
                fault.released.set()
        return len(faults)

    def clear(self) -> None:
        """Forget faults and call log; what is held goes on."""
        self.release()
        with self._lock:
            self.rollout_faults.clear()
            self.call_faults.clear()
            self.random_faults = None
            self.calls.clear()

    def document(self) -> dict[str, Any]:
        """Faults still to come, and how many calls were seen."""
        with self._lock:
            return {
                "rollout_faults": [asdict(f) for f in self.rollout_faults if f.times > 0],
                "call_faults": [asdict(f) for f in self.call_faults if f.times > 0],
                "random_faults": self.random_faults and asdict(self.random_faults),
                "calls": len(self.calls),
            }

    def calls_of(self, platform: str, *, writes: bool | None = None) -> list[Call]:
        """The calls a platform received, oldest first; only writing or reading ones on request."""
        with self._lock:
            return [c for c in self.calls if c.platform == platform and writes in (None, c.writes)]


@dataclass(frozen=True)
class Live:
    """What a resource really serves now.

    :param image: the image that answers requests, None when nothing does.
    :param revision: the platform's id of it.
    :param settled: no rollout is under way.
    """

    image: str | None
    revision: str | None
    settled: bool


class StandIn(Protocol):
    """A stand-in for one platform. Resources are named by the field that names them in a target's config."""

    kind: str
    url: str

    def start(self) -> None:
        """Serve on loopback."""

    def stop(self) -> None:
        """Stop serving."""

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection that leads here, as a JSON document (``conn_type``, ``host``, ``extra``, …)."""

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a target on this resource, without ``conn_id``."""

    def seed(self, resource: str, image: str | None) -> None:
        """Create the resource, at once, serving this image; None: as it is before anything was ever deployed."""

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else deploys this image by hand, at once."""

    def live(self, resource: str) -> Live:
        """What it serves, read from the stand-in's own state, not through its API."""

    def revisions(self, resource: str) -> list[str]:
        """Every revision ever created for it by API calls (not by ``seed`` and ``meddle``), oldest first."""
