"""The history of a service: who released what where, when and why, and how it ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import GOOD, Entry, Journal, Phase, Store
from airflow_multideploy.release.plan import PREVIOUS, release_id
from airflow_multideploy.release.status import Status, TargetResult, overall, result_of
from airflow_multideploy.secrets import redact

Running = Literal["running", "interrupted"]
RUNNING: Running = "running"
INTERRUPTED: Running = "interrupted"
"""The run is over, and nobody said how the release ended."""


Words = Annotated[str, AfterValidator(redact)]
"""What people and platforms say, as far as it is no secret and no novel: it is kept for long."""


class Approval(Document):
    """What somebody chose where a release waited for a person.

    :param gate: what was asked.
    :param by: who chose; empty: nobody did, and the time-out's default was taken.
    :param at: epoch seconds.
    """

    gate: str
    choice: str
    by: str = ""
    at: float
    reason: Words = ""


class Override(Document):
    """A rule that a release was let past.

    :param what: which rule.
    :param by: who did.
    :param at: epoch seconds.
    """

    what: Words
    by: str
    at: float
    reason: Words = ""


class TargetRecord(Document):
    """What is kept of one target's part in a release.

    :param deployed: the phase at which the deploy ended, before any rollback.
    """

    target: str
    platform: str = ""
    phase: Phase = Phase.PENDING
    deployed: Phase = Phase.PENDING
    revision: str | None = None
    previous: str | None = None
    touched: bool = False
    reason: Words = ""
    started_at: float | None = None
    ended_at: float | None = None
    rollback_started_at: float | None = None
    rollback_ended_at: float | None = None

    @classmethod
    def of(cls, result: TargetResult, *, platform: str = "") -> TargetRecord:
        """A target's record from its result.

        :param platform: where the result does not know it.
        """
        kept = {name: value for name, value in result.dump().items() if name in cls.model_fields}
        return cls.model_validate({**kept, "platform": result.platform or platform})

    def result(self) -> TargetResult:
        """As the rules of the overall status read it."""
        return TargetResult.model_validate(self.dump())


class Record(Document):
    """One release: who released what where, when and why, and how it ended.

    :param release_id: of the run; its rollouts' ids are this one, or begin with it.
    :param kind: ``rollback`` where an earlier release was asked for again.
    :param actor: the user who started it, else what did: ``schedule``, ``asset``, ``backfill``, ….
    :param reason: why it was asked for.
    :param outcome: why it ended so, the worst first.
    :param config_hash: of the resolved service, see `Plan.config_hash`; empty without a plan.
    :param met: whether the policy was reached and nobody stopped the run; None: nobody said.
    :param restore: targets that should have gone back.
    :param started_at: epoch seconds.
    :param ended_at: epoch seconds; None while it runs, or where nobody knows.
    """

    release_id: str
    service: str
    dag_id: str
    run_id: str
    version: str
    image: str = ""
    digest: str | None = None
    kind: Literal["release", "rollback"] = "release"
    actor: str
    reason: Words = ""
    force: bool = False
    config_hash: str = ""
    status: Status | Running = RUNNING
    outcome: Words = ""
    met: bool | None = None
    restore: tuple[str, ...] = ()
    started_at: float
    ended_at: float | None = None
    targets: tuple[TargetRecord, ...] = ()
    approvals: tuple[Approval, ...] = ()
    overrides: tuple[Override, ...] = ()

    @property
    def good(self) -> bool:
        """Whether it reached its policy and stayed."""
        return isinstance(self.status, Status) and self.status.good

    @property
    def artifact(self) -> str:
        """What tells two releases of the same bits from two of others: the digest, or else the image's reference."""
        return self.digest or self.image

    def to(self, **changes: Any) -> Record:
        """A copy with these changes, checked as if it were read."""
        return Record.model_validate({**self.model_dump(), **changes})

    def of(self, target: str) -> TargetRecord | None:
        """That target's part, or None when it had none."""
        return next((each for each in self.targets if each.target == target), None)


def agreed(record: Record, entries: Mapping[str, Entry]) -> Record:
    """The record of a run that is over, in agreement with the journals; the same one where they do agree.

    What the run itself said about its end stands, but for targets that were settled later: then the overall status
    follows by the same rules. A run that said nothing was ``interrupted``, unless all of it is verified back.

    :param entries: journal entries by target, whosever they are.
    """
    found = tuple(_agreed(each, record, entries.get(each.target)) for each in record.targets)
    if found == record.targets and record.status != RUNNING:
        return record
    results = [each.result() for each in found]
    status: Status | Running = overall(results, met=bool(record.met), restore=record.restore)
    if record.met is None and status is not Status.ROLLED_BACK:
        status = INTERRUPTED
    ends = [at for each in found for at in (each.ended_at, each.rollback_ended_at) if at is not None]
    ended = record.ended_at if record.met is not None else max(ends, default=None)
    outcome = "the run is over, and did not say how the release ended"
    if record.status != RUNNING:
        later = (f"{now.target}: {now.phase}" for was, now in zip(record.targets, found, strict=True) if was != now)
        outcome = f"{record.outcome}; later {', '.join(later)}"
    return record.to(targets=found, status=status, ended_at=ended, outcome=outcome)


def _agreed(kept: TargetRecord, record: Record, entry: Entry | None) -> TargetRecord:
    if entry is None:
        return kept
    if (entry.dag_id, entry.run_id) != (record.dag_id, record.run_id):
        later = (entry.started_at or 0.0) > record.started_at
        if record.met is None and kept.phase is Phase.PENDING and later:
            reason = f"run {entry.run_id!r} came after it here, before anybody had kept what became of this one"
            return kept.model_copy(update={"phase": Phase.UNKNOWN, "deployed": Phase.UNKNOWN, "reason": reason})
        return kept
    now = TargetRecord.of(result_of(entry, critical=True))
    if record.met is None:
        return now
    if now.phase is kept.phase:
        return kept
    # How the deploy went was judged at the run's end, with more in sight than the journal shows.
    return now.model_copy(update={"deployed": kept.deployed})


def _always_skipped(records: Iterable[Record], target: str) -> bool:
    """Whether a target had a part in releases, and never more than being skipped."""
    phases = {part.phase for record in records if (part := record.of(target)) is not None}
    return phases == {Phase.SKIPPED}


class Listed(Document):
    """A line of the ledger's index.

    :param idle: it was refused before it had a plan.
    """

    release_id: str
    run_id: str
    at: float
    idle: bool = False


class Spoilt(Listed):
    """A record that cannot be read.

    :param outcome: what is wrong with it, and the remedy.
    """

    status: Literal["spoilt"] = "spoilt"
    outcome: str


class _Index(Document):
    releases: tuple[Listed, ...] = ()


class Ledger:
    """The records of one service over a `Store`, beside its journals. One writer at a time, as with a `Journal`."""

    KEY, KEPT, IDLE = "ledger", 200, 50

    def __init__(self, store: Store, service: str) -> None:
        self._store, self._service = store, service

    def keep(self, record: Record) -> tuple[Listed, ...]:
        """Keep a record, in the place of an earlier one of the same release; the oldest beyond `KEPT` are dropped, and
        first those that were refused, beyond `IDLE`: a cron in a freeze must not push out what one can go back to.
        Returns those that were dropped.

        A process that dies in between leaves no line of the index without its record.
        """
        self._store.set(self._key(record.release_id), record.dump())
        index = self._index()
        idle = record.status is Status.NOT_STARTED and not record.targets
        line = Listed(release_id=record.release_id, run_id=record.run_id, at=record.started_at, idle=idle)
        if line in index:
            return ()
        others = [each for each in index if each.release_id != line.release_id]
        lines = sorted([*others, line], key=lambda each: each.at)
        refused = [each for each in lines if each.idle]
        first = refused[: -self.IDLE] + [each for each in lines if not each.idle] + refused[-self.IDLE :]
        dropped = first[: max(len(lines) - self.KEPT, 0)]
        self._store.set(self.KEY, _Index(releases=tuple(each for each in lines if each not in dropped)).dump())
        for old in dropped:
            self._store.delete(self._key(old.release_id))
        return tuple(dropped)

    def find(self, dag_id: str, run_id: str) -> Record | None:
        """A run's record, or None.

        :raises SpecError: what is kept is no record.
        """
        return self._read(release_id(dag_id, run_id))

    def read(self, since: float | None = None, until: float | None = None) -> Iterator[Record | Spoilt]:
        """What was released, newest first; each is read when it is asked for.

        :param since: epoch seconds at which the first one began, at the earliest.
        :param until: epoch seconds before which the last one began.
        :raises SpecError: the index cannot be read.
        """
        for line in reversed(self._index()):
            if (since is not None and line.at < since) or (until is not None and line.at >= until):
                continue
            try:
                record = self._read(line.release_id)
            except SpecError as error:
                yield Spoilt(**line.dump(), outcome=str(error))
            else:
                if record is not None:  # dropped since the index was read
                    yield record

    def records(
        self, target: str | None = None, since: float | None = None, until: float | None = None
    ) -> Iterator[Record]:
        """As `read`, without those that cannot be read.

        :param target: only releases in which this target had a part.
        """
        for record in self.read(since, until):
            if isinstance(record, Record) and (target is None or record.of(target) is not None):
                yield record

    def last_good(self, target: str | None = None, before: float | None = None) -> Record | None:
        """The last release that ended well: as a whole, or on one target.

        :param before: epoch seconds before which it began.
        """
        for record in self.records(target, until=before):
            part = None if target is None else record.of(target)
            if record.good if part is None else part.phase in GOOD:
                return record
        return None

    def good_releases(self, target: str, *, force: bool = False) -> tuple[Record, ...]:
        """What a rollback of this target can go to, newest first: each artifact whose last word here is a good one.

        One that was rolled back here, or is known as bad by the target's journal, is not among them.

        :param force: they are, if they were ever written here.
        :raises SpecError: the journal cannot be read.
        """
        found: dict[str, Record] = {}
        for record in self.records(target):
            part = record.of(target)
            if part is not None and (part.touched or part.phase in GOOD):
                found.setdefault(record.artifact, record)
        if force:
            return tuple(found.values())
        bad = Journal(self._store, f"{self._service}/{target}", f"{target}.").bad()
        return tuple(r for r in found.values() if r.image not in bad and (part := r.of(target)) and part.phase in GOOD)

    def earlier(self, wanted: str, live: Mapping[str, str | None], *, force: bool = False) -> Record:
        """The release that a rollback goes to: one that was good on every one of these targets.

        A target that every release has skipped so far, such as one that only stands in for another, has no say.

        :param wanted: its version, its digest, or ``previous``: of those that were good here before what is live now
            ever was, the one that was released last; so going back twice goes back further.
        :param live: by target what is live there: a digest or an image, None where nobody knows.
        :param force: a named release that was not good there will do as well.
        :raises SpecError: there is none; names those that there are.
        """
        kept = tuple(self.records())
        asked = [target for target in live if not _always_skipped(kept, target)]
        sets = [self.good_releases(target, force=force and wanted != PREVIOUS) for target in asked]
        found = {record.artifact: record for record in sets[0]} if sets else {}
        for others in sets[1:]:
            known = {record.artifact for record in others}
            found = {artifact: record for artifact, record in found.items() if artifact in known}
        first: dict[str, float] = {}  # newest first: the oldest stays
        for record in kept:
            if any(part.target in asked and part.phase in GOOD for part in record.targets):
                first[record.artifact] = record.started_at
        now = max((first[artifact] for artifact in live.values() if artifact in first), default=math.inf)
        newest = sorted(found.values(), key=lambda record: record.started_at, reverse=True)
        for record in newest:
            named = wanted in (record.version, record.digest)
            if named or (wanted == PREVIOUS and first[record.artifact] < now):
                return record
        there = ", ".join(dict.fromkeys(record.version for record in newest)) or "none"
        what = "earlier release" if wanted == PREVIOUS else f"release {wanted!r}"
        raise SpecError(
            f"conf.version: no {what} that was good on {', '.join(asked or live)}; the ledger knows of: {there}; "
            "name one of those, or release it without 'rollback'",
            service=self._service,
        )

    def durations(self, target: str) -> tuple[float, ...]:
        """Seconds that each good deploy to a target took, newest first; where nothing had to be written, none."""
        parts = (record.of(target) for record in self.records(target))
        return tuple(
            part.ended_at - part.started_at
            for part in parts
            if part is not None
            and part.deployed is Phase.SUCCEEDED
            and part.started_at is not None
            and part.ended_at is not None
        )

    def _key(self, of: str) -> str:
        return f"{self.KEY}.{of}"

    def _read(self, of: str) -> Record | None:
        document = self._store.get(self._key(of))
        return None if document is None else Record.load(document, **self._about(self._key(of)))

    def _index(self) -> tuple[Listed, ...]:
        document = self._store.get(self.KEY)
        return () if document is None else _Index.load(document, **self._about(self.KEY)).releases

    def _about(self, key: str) -> dict[str, str]:
        remedy = f"delete that key of the asset multideploy://{self._service}/journal: it decides nothing"
        return {"what": f"{self._service}: the ledger (key {key!r})", "remedy": remedy}


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The value that so many per cent of them do not exceed, between two of them where it falls so; None without any.

    :param percent: 1 to 99.
    """
    if len(values) < 2:
        return next(iter(values), None)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def row(record: Record | Spoilt) -> dict[str, str]:
    """A line of the history as text, for people."""
    at = record.at if isinstance(record, Spoilt) else record.started_at
    when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(record, Spoilt):
        return dict.fromkeys(COLUMNS, "") | {"when": when, "status": record.status, "reason": record.outcome}
    seconds = "" if record.ended_at is None else f"{record.ended_at - record.started_at:.0f}"
    said = (f"{each.target} {each.phase}" for each in record.targets)
    past = (f"override: {each.reason}" for each in record.overrides)
    why = "; ".join(filter(None, (*past, record.reason, record.outcome)))
    version = record.version if record.kind == "release" else f"{record.version} ({record.kind})"
    cells = (when, version, str(record.status), record.actor, seconds, ", ".join(said), why)
    return dict(zip(COLUMNS, cells, strict=True))


COLUMNS = ("when", "version", "status", "by", "seconds", "targets", "reason")
