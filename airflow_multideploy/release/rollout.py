"""One release on one target: the steps between the journal and the platform, free of Airflow.

A deploy task runs `begin`, waits (in the triggerer or in place), and runs `advance`; once more where there is a bake.
Each step may die at any point and be called again on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from airflow_multideploy.catalog.checks import Check
from airflow_multideploy.errors import Drift, InDoubt, KnownBad, PlatformError, RolloutFailed
from airflow_multideploy.release.contract import Handle, Observation, Platform, Release, Snapshot, State
from airflow_multideploy.release.journal import GOOD, Entry, Journal, Phase, Run
from airflow_multideploy.release.reconcile import facts
from airflow_multideploy.release.rollback import WayBack
from airflow_multideploy.release.wait import Clock, Watch, follow, persist

CONTINUABLE = frozenset({Phase.PENDING, Phase.SNAPSHOTTED, Phase.DEPLOYING, Phase.VERIFYING})
"""Phases from which the same run's next attempt goes on."""

Ask = Callable[[Check], str]
"""Asks a smoke check: why it is not good now; empty: it is good."""


@dataclass
class Rollout:
    """The release logic of one target.

    :param run: whose rollout this is. One that has ended starts again only after a person cleared tasks of the run,
        never by a retry: Airflow also retries a task that its scheduler mistakes for a dead one.
    """

    platform: Platform[Any]
    journal: Journal
    clock: Clock
    run: Run

    def refuse(self, release: Release) -> str | None:
        """Why this release must not start here, from the journal alone; None when it may. Asked before the run's first
        rollout, unless its tasks were cleared."""
        entry = self.journal.read()
        if entry is not None and entry.is_of(self.run) and (not self.run.clear or entry.is_of_namesake(self.run)):
            return self._namesake()
        try:
            self._check(entry, release)
        except (InDoubt, KnownBad) as error:
            return str(error)
        return None

    def begin(self, release: Release) -> Entry:
        """Snapshot, journal the intent, write to the platform, journal the revision; returns without waiting.

        The entry's phase is ``verifying``: next is the final observation of its handle, then `advance`. Any other
        phase is how an earlier attempt ended.

        :param release: with the release id of the run; a repeat within the same run gets an id of its own.
        :raises InDoubt: another run's rollout is unsettled here, and the release does not force.
        :raises KnownBad: it was rolled back here before, and the release does not force.
        :raises PlatformError: refused, or no answer after retries; the journal says whether anything was touched.
        """
        opened = self.journal.read()
        entry = self._open(opened, release)
        if entry.phase not in CONTINUABLE:
            return entry
        deadline = entry.deadline or self.clock.time() + self.platform.config.timeout
        before, calls = entry.touched, 0
        # An earlier try died at its write, which may be on its way still.
        adrift = self.clock.time() if entry.phase is Phase.DEPLOYING else entry.adrift
        started = entry.started_at or self.clock.time()
        entry = entry.to(entry.phase, started_at=started, deadline=deadline, adrift=adrift)
        if entry.phase is Phase.VERIFYING:
            return entry
        try:
            if entry.snapshot is None:
                previous = self.journal.live()
                taken = persist(lambda: self.platform.snapshot(previous), clock=self.clock, until=deadline)
                entry = entry.to(Phase.SNAPSHOTTED, snapshot=taken, previous=previous)
            snapshot = entry.snapshot
            if snapshot is None:  # pragma: no cover - set just above; tells the type checker
                raise AssertionError("no snapshot")

            def deploy() -> Handle:
                nonlocal calls, adrift
                calls += 1
                try:
                    return self._deploy(entry, snapshot, again=calls > 1)
                except PlatformError as error:
                    adrift = adrift if error.no_effect else self.clock.time()
                    raise

            self._still_mine(entry, opened)
            entry = self.journal.write(entry.to(Phase.DEPLOYING, touched=True, settled=False))
            handle = persist(deploy, clock=self.clock, until=deadline)
        except PlatformError as error:
            if calls:
                self._give_way(entry, None)
            if error.no_effect and calls == 1 and entry.attempt == 1:
                entry = entry.to(entry.phase, touched=before)
            self._refused(entry, error, opened)
            raise
        self._give_way(entry, handle)
        self._still_mine(entry, entry)
        touched = handle.changed or before
        return self.journal.write(entry.to(Phase.VERIFYING, handle=handle, touched=touched, adrift=adrift))

    def _deploy(self, entry: Entry, snapshot: Snapshot, *, again: bool) -> Handle:
        """One call; between two of them there is room for a whole rollback, so each looks at the journal first."""
        if again:
            self._give_way(entry, None)
        self._still_mine(entry, entry)
        return self.platform.deploy(entry.release, snapshot)

    def waits(self, entry: Entry) -> tuple[float, float]:
        """Until when the platform has to be seen healthy, and from when on that counts; both in epoch seconds."""
        verify = self.platform.config.verify
        if verify is None or entry.healthy_at is None:
            return entry.deadline or 0.0, 0.0
        if entry.checked_at is None:
            return entry.healthy_at + verify.within, 0.0
        baked = entry.checked_at + verify.bake
        return baked + verify.within, baked

    def wait(self, entry: Entry, look: Callable[[], Observation], ask: Ask) -> Entry:
        """Wait here for what the rollout waits for, then `advance`.

        :raises RolloutFailed: somebody else took over since.
        """
        deadline, earliest = self.waits(entry)
        watch = Watch(deadline=deadline, interval=self.platform.config.poll_interval, earliest=earliest)
        return self.advance(entry, follow(look, watch=watch, clock=self.clock), ask)

    def advance(self, entry: Entry, seen: Observation, ask: Ask) -> Entry:
        """What comes after the platform's final word: smoke checks, the bake and the checks again, then `conclude`.

        An entry that is still ``verifying`` is to be waited for again: until its bake is over.

        :raises RolloutFailed: somebody else took over since; nothing was journalled.
        """
        verify = self.platform.config.verify
        if verify is None or seen.state is not State.HEALTHY:
            return self.conclude(entry, seen)
        self._still_mine(entry, entry)
        if entry.healthy_at is None:
            entry = self.journal.write(entry.to(entry.phase, healthy_at=self.clock.time()))
        until, baked = self.waits(entry)
        if self.clock.time() < baked:
            return entry  # healthy, as somebody saw it before the bake was over
        if why := self._flaw(verify.checks, ask, until):
            return self.conclude(entry, Observation(state=State.FAILED, reason=why, revision=seen.revision))
        if entry.checked_at is None and verify.bake and entry.touched:
            self._still_mine(entry, entry)
            return self.journal.write(entry.to(entry.phase, checked_at=self.clock.time()))
        said = (
            seen.reason,
            "smoke checks good" if verify.checks else "",
            f"baked for {verify.bake:g} s" if entry.checked_at is not None else "",
        )
        return self.conclude(entry, seen.model_copy(update={"reason": "; ".join(filter(None, said))}))

    def _flaw(self, checks: Iterable[Check], ask: Ask, until: float) -> str:
        """Why the checks are not good, asked again until then, and once at least; empty: they are."""
        why = ""

        def look() -> Observation:
            nonlocal why
            why = next(filter(None, map(ask, checks)), "")
            return Observation(state=State.PROGRESSING if why else State.HEALTHY)

        follow(look, watch=Watch(deadline=until, interval=self.platform.config.poll_interval), clock=self.clock)
        return why

    def conclude(self, entry: Entry, seen: Observation) -> Entry:
        """Journal what the waiting ended with; returns the settled entry, or one that asks for a rollback.

        :raises RolloutFailed: somebody else took over since; nothing was journalled.
        """
        self._still_mine(entry, entry)
        if seen.state is State.HEALTHY:
            phase = Phase.SUCCEEDED if entry.touched else Phase.UNCHANGED
            self.journal.remember_live(entry.release)
            self.journal.forgive(entry.release.image)
            if entry.release.rollback and entry.previous is not None and not _same_bits(entry.previous, entry.release):
                why = f"on demand, by run {entry.run_id!r}: {entry.release.reason}".removesuffix(": ")
                self.journal.remember_bad(entry.previous.image, why)
        else:
            phase = Phase.UNKNOWN if seen.state is State.UNKNOWN else Phase.FAILED
        self._still_mine(entry, entry)
        return self.journal.write(
            entry.to(
                phase,
                deployed=phase,
                settled=seen.state is State.HEALTHY or not entry.touched,
                reason=seen.reason,
                verified=seen.verified,
                ended_at=self.clock.time(),
            )
        )

    def _check(self, entry: Entry | None, release: Release) -> None:
        if release.force:
            return
        if entry is not None and entry.unsettled and not entry.is_of(self.run):
            raise InDoubt(
                f"{self.platform.name}: in doubt: {facts(entry)}; clear that run's rollback task, or look at the "
                "target and release with force (rollback.in_doubt: reconcile settles such targets where it can)"
            )
        if (why := self.journal.bad().get(release.image)) is not None:
            raise KnownBad(
                f"{self.platform.name}: version {release.version} was rolled back here before ({why}); "
                "release another version, or this one with force"
            )

    def _namesake(self) -> str:
        return (
            f"{self.platform.name}: another run was called {self.run.run_id!r}, and was deleted since; its journal is "
            "not this one's: release again with a run id that was never used"
        )

    def _open(self, entry: Entry | None, release: Release) -> Entry:
        """This rollout's entry: the one an earlier attempt left, or a new one."""
        if entry is not None and entry.is_of(self.run):
            if entry.is_of_namesake(self.run):
                raise RolloutFailed(self._namesake())
            again = entry.clear != self.run.clear
            if entry.phase in CONTINUABLE:
                times = dict.fromkeys(("deadline", "healthy_at", "checked_at")) if again else {}
                return entry.to(entry.phase, attempt=entry.attempt + 1, clear=self.run.clear, **times)
            if not entry.settled and entry.phase in (Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED):
                raise InDoubt(
                    f"{self.platform.name}: this run's rollback is {entry.phase}; clear its rollback task first, so "
                    "that the target is in a known state"
                )
            if not again:
                return entry
            self._check(entry, release)
            return self._again(entry, release)
        if entry is not None and (entry.started_at or 0.0) > self.run.since > 0.0:
            raise RolloutFailed(
                f"{self.platform.name}: stopped: run {entry.run_id!r} came after run {self.run.run_id!r}"
            )
        self._check(entry, release)
        # Forced over another run's unsettled rollout: what was there before *it* is the last state known to be good.
        return self._new(release, rollout=1, over=entry if entry is not None and entry.unsettled else None)

    def _still_mine(self, entry: Entry, opened: Entry | None) -> None:
        """An attempt that was thought dead must not write after the rollback of its run began.

        :param opened: what the journal held when this attempt began.
        :raises RolloutFailed: the journal says that somebody else took over, or that the run's deploys are over.
        """
        if self.journal.closed(self.run.dag_id, self.run.run_id, self.run.clear):
            raise RolloutFailed(f"{self.platform.name}: stopped: the deploys of run {self.run.run_id!r} are over")
        if (now := self._taken_over(entry, opened)) is not None:
            raise RolloutFailed(
                f"{self.platform.name}: stopped: since this attempt began, the journal says {now.phase} "
                f"(run {now.run_id!r})"
            )

    def _give_way(self, entry: Entry, handle: Handle | None) -> None:
        """Take back a write that came through after somebody else had taken over: nobody else would.

        :param handle: what the write answered, if it did.
        """
        now = self.journal.read()
        if now is None or entry.snapshot is None or entry.stays:
            return
        later = now.is_of(self.run) and now.rollout != entry.rollout
        if later and now.phase is not Phase.ROLLED_BACK:
            return  # a later rollout of this run answers for what is there
        if handle is not None and not handle.changed:
            return  # it wrote nothing: what is live, and like ours, is the work of whoever took over
        mine, going_back = now.is_of(self.run), now.phase in (Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED)
        if mine and now.phase is Phase.ROLLED_BACK:
            back = now.back is not None and self.platform.observe(now.back).state is State.HEALTHY
            if self.journal.read() != now:  # meanwhile another run began here
                self._give_way(entry, handle)
            elif not back:
                # What is to go back is ours, also where a later rollout had come, and gone back.
                lost = now.to(now.phase, release=entry.release, handle=handle) if later else now
                WayBack(self.platform, self.journal, self.clock).go(lost)
        elif (mine and going_back) or (not mine and _expects(now, entry.snapshot)):
            with suppress(Drift):  # what is live is not ours
                self.platform.rollback(entry.release, entry.snapshot, handle)

    def _taken_over(self, entry: Entry, opened: Entry | None) -> Entry | None:
        """What the journal says, when that is neither what it said before nor a state of this rollout's own."""
        now = self.journal.read()
        if now is None or now == opened:
            return None
        ours = now.is_of(self.run) and now.rollout == entry.rollout and now.phase in CONTINUABLE
        return None if ours else now

    def _again(self, entry: Entry, release: Release) -> Entry:
        """A repeat within one run (a cleared task): a rollout of its own.

        While something of this run is live, the snapshot stays what ran before the run: that is what it goes back to.
        """
        back = entry.phase is Phase.ROLLED_BACK and entry.snapshot is not None and entry.snapshot.exists
        keep = entry.touched and not (entry.settled and back)
        return self._new(release, rollout=entry.rollout + 1, over=entry if keep else None)

    def _new(self, release: Release, *, rollout: int, over: Entry | None) -> Entry:
        """A new entry; ``over`` one that left its mark on the target, which this one then answers for."""
        if rollout > 1:
            release = release.model_copy(update={"release_id": f"{release.release_id}-{rollout}"})
        return Entry(
            service=self.platform.service,
            target=self.platform.target,
            config=self.platform.config.model_dump(mode="json"),
            release=release,
            dag_id=self.run.dag_id,
            run_id=self.run.run_id,
            touched=over is not None,
            snapshot=over.snapshot if over else None,
            previous=over.previous if over else None,
            adrift=over.adrift or (over.ended_at if over.handle is None else None) if over else None,
            rollout=rollout,
            clear=self.run.clear,
            due=self.run.due,
        )

    def _refused(self, entry: Entry, error: PlatformError, opened: Entry | None) -> None:
        """Journal why an attempt ended, unless somebody else took over; the caller raises it.

        A retryable error leaves the phase as it is: Airflow's next try continues from there.
        """
        if self._taken_over(entry, opened) is not None:
            return
        phase = entry.phase if error.retryable else Phase.FAILED
        failed = phase is Phase.FAILED
        self.journal.write(
            entry.to(
                phase,
                deployed=phase if failed else None,
                settled=not entry.touched,
                reason=str(error),
                deadline=entry.deadline if entry.touched else None,
                ended_at=self.clock.time() if failed else None,
            )
        )


def _expects(entry: Entry, snapshot: Snapshot) -> bool:
    """Whether by another run's entry that is live which we found too, so that a late write of ours is in its way."""
    if entry.phase in GOOD:
        return entry.handle is not None and entry.handle.revision == snapshot.revision is not None
    return entry.snapshot is not None and entry.snapshot == snapshot


def _same_bits(one: Release, other: Release) -> bool:
    if one.digest and other.digest:
        return one.digest == other.digest
    return one.image == other.image
