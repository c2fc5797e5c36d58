"""The write-ahead record per target: what was there, what is meant, what was written, how far it is.

Order of writes: journal (snapshot, intent) → platform → journal (revision) → wait → verify → journal (settled). Whoever
comes later, on any machine, continues from it; a rollback needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from pydantic import Field, JsonValue

from airflow_multideploy.release.contract import Document, Handle, Release, Snapshot


class Phase(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"
    SNAPSHOTTED = "snapshotted"
    DEPLOYING = "deploying"
    VERIFYING = "verifying"
    SUCCEEDED = "succeeded"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"


GOOD = frozenset({Phase.SUCCEEDED, Phase.UNCHANGED})
IN_FLIGHT = frozenset({Phase.SNAPSHOTTED, Phase.DEPLOYING, Phase.VERIFYING, Phase.ROLLING_BACK})
SKEW = 60.0
"""Seconds by which the clocks of scheduler and workers may differ."""


class Entry(Document):
    """One rollout's record.

    :param config: the target's resolved config as JSON, so that a rollback needs no catalog.
    :param touched: a write was sent, or may have been.
    :param settled: nothing is left to be done; an unsettled entry of another run is "in doubt".
    :param previous: the release that was live before, as far as the journal knew.
    :param deadline: epoch seconds by which the rollout has to be healthy.
    :param healthy_at: epoch seconds at which it first was, where that is not all that is asked of it.
    :param checked_at: epoch seconds at which its smoke checks were first good: its bake began.
    :param back: what the way back wrote.
    :param verified: False when "healthy" rests on the platform's acceptance alone.
    :param deployed: how the deploy ended (succeeded, unchanged, failed, unknown), whatever was rolled back later.
    :param adrift: epoch seconds at which a write of the deploy was given up without an answer; it may land after that.
    :param rollback_attempt: how often the platform was asked to go back, within the current time budget.
    :param attempt: how often a worker started on it.
    :param rollout: which rollout of its run on this target this is.
    :param clear: how often a person had cleared tasks of the run when it started; a fraction more for each retry that
        a person asked for in the run itself.
    :param due: epoch seconds from which its run was to start, which no clear changes; 0: not known.
    """

    service: str
    target: str
    config: dict[str, JsonValue]
    release: Release
    dag_id: str
    run_id: str
    phase: Phase = Phase.PENDING
    touched: bool = False
    settled: bool = False
    snapshot: Snapshot | None = None
    previous: Release | None = None
    handle: Handle | None = None
    back: Handle | None = None
    deadline: float | None = None
    healthy_at: float | None = None
    checked_at: float | None = None
    adrift: float | None = None
    rollback_deadline: float | None = None
    rollback_attempt: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    rollback_started_at: float | None = None
    rollback_ended_at: float | None = None
    reason: str = ""
    verified: bool = True
    deployed: Phase | None = None
    attempt: int = Field(default=1, ge=1)
    rollout: int = Field(default=1, ge=1)
    clear: float = 0
    due: float = 0.0

    @property
    def unsettled(self) -> bool:
        """Whether something was, or may have been, written that nobody answered for yet."""
        return self.touched and not self.settled

    @property
    def stays(self) -> bool:
        """Whether it never goes back: a first-ever release whose target says ``first_deploy: leave``."""
        return self.snapshot is not None and not self.snapshot.exists and self.config.get("first_deploy") == "leave"

    def to(self, phase: Phase, **changes: Any) -> Entry:
        """A copy in another phase."""
        return self.model_copy(update={"phase": phase, **changes})

    def is_of(self, run: Run) -> bool:
        """Whether it is this run's, or that of a deleted one of the same name (see `is_of_namesake`)."""
        return (self.dag_id, self.run_id) == (run.dag_id, run.run_id)

    def is_of_namesake(self, run: Run) -> bool:
        """Whether its run was called like this one, and deleted since."""
        if not self.is_of(run):
            return False
        other = bool(self.due and run.due) and abs(self.due - run.due) > 1
        return other or (not run.clear and (self.started_at or run.since) < run.since - SKEW)


@dataclass(frozen=True)
class Run:
    """An Airflow run.

    :param clear: how often a person has cleared tasks of it; see `Entry`.
    :param since: epoch seconds at which it began, which a clear changes; 0: not known.
    :param due: epoch seconds from which it was to start; 0: not known.
    """

    dag_id: str
    run_id: str
    clear: float = 0
    since: float = 0.0
    due: float = 0.0


D = TypeVar("D", bound=Document)


class Store(Protocol):
    """A key-value store of one target; Airflow's asset state store fits."""

    def get(self, key: str, default: Any = None) -> Any:
        """The JSON value, or the default."""
        ...

    def set(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        ...

    def delete(self, key: str) -> None:
        """Forget a value, if there is one."""
        ...


class _Live(Document):
    release: Release | None = None


class _Bad(Document):
    images: dict[str, str]


class _Closed(Document):
    dag_id: str
    run_id: str
    clear: float


class Journal:
    """One target's journal over a `Store`. One writer at a time: there is no compare-and-set.

    :param name: ``service/target``, as errors name it.
    :param prefix: what this target's keys begin with, where several share a store.
    """

    ENTRY, LIVE, BAD, CLOSED = "journal", "live", "bad", "closed"
    KEPT_BAD = 50

    def __init__(self, store: Store, name: str = "this target", prefix: str = "") -> None:
        self._store, self._name, self._prefix = store, name, prefix

    def read(self) -> Entry | None:
        """The current entry, or None when nothing was ever released here.

        :raises SpecError: what is kept is no entry.
        """
        document = self._get(self.ENTRY)
        return None if document is None else self._load(Entry, self.ENTRY, document)

    def write(self, entry: Entry) -> Entry:
        """Keep the entry; returns it."""
        self._set(self.ENTRY, entry.dump())
        return entry

    def live(self) -> Release | None:
        """The release that was last verified here and not rolled back."""
        document = self._get(self.LIVE)
        return None if document is None else self._load(_Live, self.LIVE, document).release

    def remember_live(self, release: Release | None) -> None:
        """Keep what is live now; None: we do not know."""
        self._set(self.LIVE, {"release": release.dump() if release else None})

    def bad(self) -> dict[str, str]:
        """Releases that were rolled back here: image → why."""
        document = self._get(self.BAD)
        return {} if document is None else dict(self._load(_Bad, self.BAD, {"images": document}).images)

    def remember_bad(self, image: str, reason: str) -> None:
        """This image was rolled back."""
        known = self.bad()
        known.pop(image, None)
        self._set(self.BAD, dict([*known.items(), (image, reason)][-self.KEPT_BAD :]))

    def forgive(self, image: str) -> None:
        """It was released after all."""
        known = self.bad()
        if known.pop(image, None) is not None:
            self._set(self.BAD, known)

    def close(self, dag_id: str, run_id: str, clear: float) -> None:
        """The run's deploys are over: no rollout of it starts or goes on here until a person clears its tasks again."""
        self._set(self.CLOSED, _Closed(dag_id=dag_id, run_id=run_id, clear=clear).dump())

    def closed(self, dag_id: str, run_id: str, clear: float) -> bool:
        """Whether a rollout of that run, started when its tasks had been cleared so often, comes too late."""
        document = self._get(self.CLOSED)
        if document is None:
            return False
        mark = self._load(_Closed, self.CLOSED, document)
        return (mark.dag_id, mark.run_id) == (dag_id, run_id) and clear <= mark.clear

    def _get(self, key: str) -> Any:
        return self._store.get(self._prefix + key)

    def _set(self, key: str, value: Any) -> None:
        self._store.set(self._prefix + key, value)

    def _load(self, kind: type[D], key: str, document: object) -> D:
        key, service = self._prefix + key, self._name.partition("/")[0]
        remedy = (
            f"look at what the target runs, then delete that key of the asset multideploy://{service}/journal "
            f"(DELETE /api/v2/assets/…/state-store/{key}) and release again"
        )
        return kind.load(document, what=f"{self._name}: the journal (key {key!r})", remedy=remedy)
