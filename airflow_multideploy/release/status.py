"""The overall status of a release, and the figures: pure functions of the rollouts, the policy and the rollbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from airflow_multideploy.catalog.service import AtLeast, Policy
from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import GOOD, IN_FLIGHT, Entry, Phase


class Status(StrEnum):
    """How a release ended, as a whole."""

    SUCCEEDED = "succeeded"
    DEGRADED = "degraded"
    ROLLED_BACK = "rolled_back"
    PARTIALLY_ROLLED_BACK = "partially_rolled_back"
    FAILED = "failed"
    UNKNOWN = "unknown"
    ROLLBACK_FAILED = "rollback_failed"
    NOT_STARTED = "not_started"

    @property
    def good(self) -> bool:
        """Whether the DagRun is a success."""
        return self in (Status.SUCCEEDED, Status.DEGRADED)


class TargetResult(Document):
    """One target's part of a release.

    :param phase: where its rollout ended; ``skipped`` when it was not selected or its condition was not met.
    :param deployed: the phase at which the deploy ended, before any rollback.
    :param touched: something was written there, or may have been.
    :param stays: whatever becomes of the release, it does not go back; see `Entry.stays`.
    """

    target: str
    platform: str = ""
    phase: Phase = Phase.PENDING
    deployed: Phase = Phase.PENDING
    critical: bool = True
    touched: bool = False
    stays: bool = False
    verified: bool = True
    reason: str = ""
    version: str | None = None
    revision: str | None = None
    previous: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    rollback_started_at: float | None = None
    rollback_ended_at: float | None = None


def result_of(entry: Entry, *, critical: bool) -> TargetResult:
    """A target's result from its journal entry."""
    return TargetResult(
        target=entry.target,
        platform=str(entry.config.get("platform", "")),
        phase=entry.phase,
        deployed=entry.deployed or entry.phase,
        critical=critical,
        touched=entry.touched,
        stays=entry.stays,
        verified=entry.verified,
        reason=entry.reason,
        version=entry.release.version,
        revision=entry.handle.revision if entry.handle else None,
        previous=entry.snapshot.revision if entry.snapshot else None,
        started_at=entry.started_at,
        ended_at=entry.ended_at,
        rollback_started_at=entry.rollback_started_at,
        rollback_ended_at=entry.rollback_ended_at,
    )


def counted(results: Iterable[TargetResult]) -> list[TargetResult]:
    """Those that count for a policy: a skipped target counts neither for nor against."""
    return [r for r in results if r.deployed is not Phase.SKIPPED]


def critical_targets(marks: Mapping[str, bool | None]) -> dict[str, bool]:
    """Which targets are critical: those marked so; when none is marked, all that are not marked otherwise."""
    if any(mark is True for mark in marks.values()):
        return {name: mark is True for name, mark in marks.items()}
    return {name: mark is not False for name, mark in marks.items()}


def policy_met(results: Iterable[TargetResult], policy: Policy, *, any_marked: bool) -> bool:
    """Whether the deploys reached the policy, whatever was rolled back later.

    Where no critical target counts, ``critical`` asks for all that do: a run in which all failed is never good. Nor is
    one in which all were skipped: nothing was released.

    :param any_marked: whether the service marks a target as critical; then a quorum needs every critical one too.
    """
    counting = counted(results)
    good = [r for r in counting if r.deployed in GOOD]
    criticals = [r for r in counting if r.critical]
    criticals_good = all(r.deployed in GOOD for r in criticals)
    if policy == "all" or (policy == "critical" and not criticals):
        return 0 < len(good) == len(counting)
    if policy == "critical":
        return criticals_good
    if not isinstance(policy, AtLeast):
        raise TypeError(f"no policy: {policy!r}")
    return len(good) >= policy.at_least and (criticals_good or not any_marked)


class FailFast(Document):
    """When a release stops before its end: its policy can no longer be reached, however the rest of it ends.

    :param critical: which of the selected targets are critical.
    :param any_marked: whether the service marks a target as critical.
    """

    policy: Policy
    critical: dict[str, bool]
    any_marked: bool

    def why(self, failed: Iterable[str]) -> str:
        """Why a rollout stops now that these targets have failed; an empty text while it goes on."""
        lost = sorted(self.critical.keys() & set(failed))
        results = [
            TargetResult(target=t, critical=c, deployed=Phase.FAILED if t in lost else Phase.SUCCEEDED)
            for t, c in self.critical.items()
        ]
        if not lost or policy_met(results, self.policy, any_marked=self.any_marked):
            return ""
        return f"stopped (fail_fast): {', '.join(lost)} failed, and the policy can no longer be reached"


def overall(results: Iterable[TargetResult], *, met: bool, restore: Iterable[str] = ()) -> Status:
    """The overall status after the rollbacks.

    :param met: see `policy_met`.
    :param restore: targets that should have been restored.
    """
    counting = counted(results)
    wanted = set(restore)
    if any(r.phase is Phase.ROLLBACK_FAILED or (r.target in wanted and not _went_back(r)) for r in counting):
        return Status.ROLLBACK_FAILED
    if any(r.phase is Phase.UNKNOWN or r.phase in IN_FLIGHT for r in counting):
        return Status.UNKNOWN
    if met and not any(r.deployed in GOOD and r.phase is Phase.ROLLED_BACK for r in counting):
        return Status.SUCCEEDED if all(r.deployed in GOOD for r in counting) else Status.DEGRADED
    touched = [r for r in counting if r.touched]
    if not touched:
        return Status.NOT_STARTED
    back = [r for r in touched if r.phase is Phase.ROLLED_BACK]
    if len(back) == len(touched):
        return Status.ROLLED_BACK
    return Status.PARTIALLY_ROLLED_BACK if back else Status.FAILED


def _went_back(result: TargetResult) -> bool:
    """Whether its rollback ran to its end; an ``unknown`` one was sent back, and cannot be looked at."""
    return result.phase is Phase.ROLLED_BACK or (result.phase is Phase.UNKNOWN and result.rollback_ended_at is not None)


class Figures(Document):
    """The four figures of a run.

    :param deployment_seconds: from the first rollout's start to the last one's end.
    :param success_rate: good rollouts ÷ selected ones, 0.0 to 1.0; None when nothing was started.
    :param rollback_seconds: from the first rollback's start to the last one's end; None without a rollback.
    :param parallel_rate: time in which at least two rollouts ran ÷ time in which at least one ran, 0.0 to 1.0; None
        when the plan allows no two at once.
    """

    deployment_seconds: float | None = None
    success_rate: float | None = None
    rollback_seconds: float | None = None
    parallel_rate: float | None = None


def figures(results: Iterable[TargetResult], waves: Iterable[Iterable[str]]) -> Figures:
    """Measured over the targets of waves that hold at least two of those that count."""
    counting = counted(results)
    names = {r.target for r in counting}
    ran = [(r.started_at, r.ended_at) for r in counting if r.started_at is not None and r.ended_at is not None]
    back = [
        (r.rollback_started_at, r.rollback_ended_at)
        for r in counting
        if r.rollback_started_at is not None and r.rollback_ended_at is not None
    ]
    together = [names.intersection(wave) for wave in waves]
    parallel = {name for wave in together if len(wave) > 1 for name in wave}
    spans = [
        (r.started_at, r.ended_at)
        for r in counting
        if r.target in parallel and r.started_at is not None and r.ended_at is not None
    ]
    return Figures(
        deployment_seconds=_length(ran),
        success_rate=sum(r.deployed in GOOD for r in counting) / len(counting) if counting else None,
        rollback_seconds=_length(back),
        parallel_rate=_parallel_rate(spans),
    )


def _length(spans: list[tuple[float, float]]) -> float | None:
    return max(end for _, end in spans) - min(start for start, _ in spans) if spans else None


def _parallel_rate(spans: list[tuple[float, float]]) -> float | None:
    if len(spans) < 2:
        return None
    steps = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    one = two = 0.0
    running, last = 0, steps[0][0]
    for at, change in steps:
        one += (at - last) * (running >= 1)
        two += (at - last) * (running >= 2)
        running, last = running + change, at
    return two / one if one else None
