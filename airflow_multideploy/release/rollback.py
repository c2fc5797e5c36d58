"""What goes back, in which order, and the way back of one target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_multideploy.catalog.order import dependents
from airflow_multideploy.catalog.service import Strategy
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import PlatformError, RollbackFailed
from airflow_multideploy.release.contract import Handle, Observation, Platform, State
from airflow_multideploy.release.journal import GOOD, Entry, Journal, Phase
from airflow_multideploy.release.status import TargetResult
from airflow_multideploy.release.wait import Clock, Watch, follow, persist

ATTEMPTS = 3
"""How often a platform is asked to go back when it fails on the way."""

LEFT = "first-ever release: left in place, as configured (first_deploy: leave)"

LANDING = 35.0
"""Seconds after which a write that was on the way has landed, or never will: a little more than a call's time-out."""


def select(
    results: Iterable[TargetResult],
    targets: Mapping[str, TargetConfig],
    *,
    met: bool,
    strategy: Strategy,
    cancelled: bool = False,
) -> frozenset[str]:
    """The targets that go back: only ones that this run touched, and none that stays.

    :param met: the policy was reached; then only the failed ones go back.
    :param cancelled: somebody stopped the run and wants it undone: everything goes back.
    """
    touched = {r.target for r in results if r.touched and not r.stays}
    failed = {r.target for r in results if r.deployed not in GOOD and r.deployed is not Phase.SKIPPED}
    if cancelled:
        return frozenset(touched)
    if strategy in ("none", "manual"):
        return frozenset()
    if met or strategy == "failed":
        return frozenset(failed & touched)
    if strategy == "dependents":
        return frozenset(dependents(targets, failed) & touched)
    return frozenset(touched)


def blockers(target: str, targets: Mapping[str, TargetConfig], selected: frozenset[str]) -> frozenset[str]:
    """Selected targets that depend on this one, directly or through others, and so have to be back before it."""
    return frozenset((dependents(targets, {target}) - {target}) & selected)


def left(entry: Entry, now: float) -> Entry:
    """The entry of one that stays, settled: nobody looks at it any more."""
    phase = entry.phase if entry.phase in GOOD | {Phase.UNKNOWN} else Phase.FAILED
    deployed, ended = entry.deployed or phase, entry.ended_at or now
    return entry.to(
        phase, settled=True, deployed=deployed, back=None, ended_at=ended, reason=joined(entry.reason, LEFT)
    )


def quiet_from(entry: Entry) -> float:
    """Epoch seconds from which no write of the deploy can land any more; until then, being back is not believed.

    A deploy without a handle may have died with its write on the way, and so may an earlier try of one that has a
    handle: a platform that answers nobody still acts on it.
    """
    gone = [entry.adrift, entry.rollback_started_at or 0.0 if entry.handle is None else None]
    return max((at + LANDING for at in gone if at is not None), default=0.0)


@dataclass
class WayBack:
    """The rollback of one target: `begin`, wait, `conclude`; until the entry is settled or its time is over.

    One that stays is settled by `begin`, and its platform is not asked.
    """

    platform: Platform[Any]
    journal: Journal
    clock: Clock

    def go(self, entry: Entry) -> Entry:
        """The whole way, waited for in this process; returns the entry as it ended.

        :raises RollbackFailed: as `begin`.
        """
        while True:
            entry = self.begin(entry)
            back = entry.back
            if back is None:
                return entry
            deadline, pause = entry.rollback_deadline or 0.0, self.platform.config.poll_interval
            watch = Watch(deadline=deadline, interval=pause, earliest=quiet_from(entry))
            entry = self.conclude(entry, follow(partial(self.platform.observe, back), watch=watch, clock=self.clock))
            if entry.phase is not Phase.ROLLING_BACK:
                return entry

    def begin(self, entry: Entry) -> Entry:
        """Journal that we go back, write to the platform, journal what was written; returns without waiting.

        :raises RollbackFailed: refused, drift, or no answer after retries; journalled. Or somebody else took over.
        """
        now = self.clock.time()
        if entry.stays:
            return self.journal.write(left(entry, now))
        running = entry.phase is Phase.ROLLING_BACK and (entry.rollback_deadline or 0) > now
        deadline = entry.rollback_deadline if running else now + self.platform.config.rollback_timeout
        if deadline is None:  # pragma: no cover - a running one has a deadline; tells the type checker
            raise AssertionError("no deadline")
        entry = self.journal.write(
            entry.to(
                Phase.ROLLING_BACK,
                settled=False,
                deployed=entry.deployed or Phase.FAILED,
                back=None,
                rollback_deadline=deadline,
                rollback_attempt=entry.rollback_attempt + 1 if running else 1,
                rollback_started_at=entry.rollback_started_at or now,
                ended_at=entry.ended_at or now,
            )
        )
        snapshot = entry.snapshot
        if snapshot is None:
            return self._failed(entry, f"{self.platform.name}: no snapshot was taken, so nothing can be restored")

        def write() -> Handle:
            self._still_mine(entry)  # one that was thought dead may wake up here, long after
            self.journal.remember_live(None)
            return self.platform.rollback(entry.release, snapshot, entry.handle)

        try:
            back = persist(write, clock=self.clock, until=deadline)
        except PlatformError as error:
            self._still_mine(entry)
            self._failed(entry, str(error))
            raise RollbackFailed(str(error)) from error
        self._still_mine(entry)
        return self.journal.write(entry.to(Phase.ROLLING_BACK, back=back))

    def conclude(self, entry: Entry, seen: Observation) -> Entry:
        """Journal what the waiting ended with.

        An entry that is still ``rolling_back`` asks for another `begin`, while there is time: somebody (an orphan of
        ours, perhaps) wrote after us, or the platform failed on the way, which it is asked for `ATTEMPTS` times.

        :raises RollbackFailed: somebody else took over since; nothing was journalled.
        """
        self._still_mine(entry)
        now = self.clock.time()
        if seen.state is State.HEALTHY:
            previous = entry.snapshot.image if entry.snapshot else None
            wrote = entry.handle is not None or (entry.back is not None and entry.back.changed)
            if wrote and entry.deployed not in GOOD and entry.reason:  # without one, it was stopped: no fault of its
                self.journal.remember_bad(entry.release.image, entry.reason)
            known = entry.previous is not None and previous in (None, entry.previous.image)
            if known and entry.snapshot is not None and entry.snapshot.exists:
                self.journal.remember_live(entry.previous)
            self._still_mine(entry)
            if not seen.verified:
                reason = f"sent back to {previous or 'its snapshot'}, which cannot be verified: {seen.reason}"
                return self.journal.write(
                    entry.to(Phase.UNKNOWN, settled=True, reason=reason, verified=False, rollback_ended_at=now)
                )
            return self.journal.write(entry.to(Phase.ROLLED_BACK, settled=True, verified=True, rollback_ended_at=now))
        failed = seen.state is State.FAILED and entry.rollback_attempt < ATTEMPTS
        if (failed or seen.state is State.SUPERSEDED) and now < (entry.rollback_deadline or 0):
            return self.journal.write(entry.to(Phase.ROLLING_BACK, back=None))
        return self._failed(entry, f"{self.platform.name}: the way back ended {seen.state}: {seen.reason}")

    def _still_mine(self, entry: Entry) -> None:
        """An attempt that was thought dead must not write over what came after it."""
        if (now := self.journal.read()) != entry:
            raise RollbackFailed(f"{self.platform.name}: stopped: the journal now says {now and now.phase}")

    def _failed(self, entry: Entry, reason: str) -> Entry:
        return self.journal.write(
            entry.to(Phase.ROLLBACK_FAILED, reason=joined(entry.reason, reason), rollback_ended_at=self.clock.time())
        )


def joined(first: str, second: str) -> str:
    """Both reasons, the earlier one first."""
    if second in first:
        return first
    return second if first in second else f"{first}; then {second}"
