"""What is to be said and done about a release once its deploys have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airflow_multideploy.catalog.approval import Choice
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.service import Policy, Strategy
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import GOOD, IN_FLIGHT, Phase
from airflow_multideploy.release.rollback import LEFT, joined, select
from airflow_multideploy.release.status import (
    Figures,
    Status,
    TargetResult,
    critical_targets,
    figures,
    overall,
    policy_met,
)

CHOICES: Mapping[Choice, Strategy] = {
    "retry": "manual",
    "roll_back_failed": "failed",
    "roll_back_all": "all",
    "accept": "none",
}
"""What a person may pick with strategy ``manual``, and the strategy whose rollbacks follow."""


class Rules(Document):
    """What a service says about success and rollback."""

    policy: Policy = "all"
    strategy: Strategy = "all"
    keep_on_cancel: bool = False


class Verdict(Document):
    """The one result document of a release.

    :param restore: targets that go back, or went back.
    :param choice: what a person picked, or the default in its place; None where nobody picks.
    :param reason: why, in one paragraph, the worst first.
    """

    service: str
    version: str
    status: Status
    met: bool
    cancelled: bool
    dry_run: bool = False
    rules: Rules
    restore: tuple[str, ...]
    choice: Choice | None = None
    reason: str
    results: tuple[TargetResult, ...]
    figures: Figures

    @property
    def asks(self) -> bool:
        """Whether a person picks what happens next: something was written, and the policy is not met."""
        manual = self.rules.strategy == "manual" and not (self.met or self.cancelled)
        return manual and any(result.touched for result in self.results)


def judge(
    results: Mapping[str, TargetResult],
    targets: Mapping[str, TargetConfig],
    *,
    service: str,
    version: str,
    rules: Rules,
    cancelled: bool = False,
    dry_run: bool = False,
    refused: str = "",
    choice: Choice | None = None,
    missed: bool = False,
    final: bool = True,
) -> Verdict:
    """The verdict; asked again after the rollbacks, it selects the same targets and tells how they ended.

    :param results: by target; deploy tasks are over, so one that is still in flight died and counts as failed.
    :param refused: why nothing was started (a refused plan, a failed build), when that is so.
    :param choice: what a person picked, or its default; None: with strategy ``manual``, nothing goes back.
    :param missed: the verdict before the rollbacks was that the policy is not met: it stays so, whatever they changed.
    :param final: False before the rollbacks: the status then says what the deploys alone came to.
    """
    marks = {name: target.critical for name, target in targets.items()}
    critical = critical_targets(marks)
    ended = [_ended(result).model_copy(update={"critical": critical[name]}) for name, result in results.items()]
    marked = any(mark is True for mark in marks.values())
    met = not (refused or missed) and (dry_run or policy_met(ended, rules.policy, any_marked=marked))
    picked = None if met or rules.strategy != "manual" else choice
    strategy = rules.strategy if picked is None else CHOICES[picked]
    undo = cancelled and not rules.keep_on_cancel
    if refused or (cancelled and rules.keep_on_cancel):
        restore = frozenset[str]()
    else:
        restore = select(ended, targets, met=met and not cancelled, strategy=strategy, cancelled=undo)
    ended = [_stayed(result) if not met or cancelled or result.deployed not in GOOD else result for result in ended]
    status = (
        Status.NOT_STARTED if refused else overall(ended, met=met and not cancelled, restore=restore if final else ())
    )
    return Verdict(
        service=service,
        version=version,
        status=status,
        met=met,
        cancelled=cancelled,
        dry_run=dry_run,
        rules=rules,
        choice=picked,
        restore=tuple(name for wave in reversed(waves(targets)) for name in wave if name in restore),
        reason=refused or _reason(ended, cancelled, restore if final else ()),
        results=tuple(ended),
        figures=figures(ended, waves(targets)),
    )


def _ended(result: TargetResult) -> TargetResult:
    if result.deployed in IN_FLIGHT - {Phase.ROLLING_BACK}:
        reason = result.reason or f"the task ended while {result.phase}"
        return result.model_copy(update={"deployed": Phase.FAILED, "reason": reason})
    return result


def _stayed(result: TargetResult) -> TargetResult:
    if not (result.stays and result.touched):
        return result
    return result.model_copy(update={"reason": joined(result.reason, LEFT)})


def _reason(results: Iterable[TargetResult], cancelled: bool, restore: Iterable[str]) -> str:
    parts = ["the run was stopped by hand"] if cancelled else []
    worst = (Phase.ROLLBACK_FAILED, Phase.UNKNOWN, Phase.ROLLING_BACK)
    wanted = frozenset(restore)
    for result in sorted(results, key=lambda r: r.phase not in worst and not (r.phase in GOOD and r.target in wanted)):
        if result.phase in GOOD and result.target in wanted:
            parts.append(f"{result.target}: {result.phase}, and was not sent back")
            continue
        if result.phase in GOOD and result.verified and LEFT not in result.reason:
            continue
        if result.phase is Phase.SKIPPED and not result.reason:
            continue
        healthy_before = result.phase is Phase.ROLLED_BACK and result.deployed in GOOD
        cut_short = "its task was stopped" if result.phase is Phase.ROLLED_BACK else ""
        said = "was healthy" if healthy_before else result.reason or cut_short
        parts.append(f"{result.target}: {result.phase}" + (f" ({said})" if said else ""))
    return "; ".join(parts)


def table(verdict: Verdict) -> list[dict[str, str]]:
    """The results as rows of text, for people."""

    def seconds(start: float | None, end: float | None) -> str:
        return f"{end - start:.1f}" if start is not None and end is not None else ""

    return [
        {
            "target": r.target,
            "platform": r.platform,
            "deploy": str(r.deployed),
            "now": str(r.phase) + ("" if r.verified else " (not verified)"),
            "seconds": seconds(r.started_at, r.ended_at),
            "rollback seconds": seconds(r.rollback_started_at, r.rollback_ended_at),
            "reason": r.reason,
        }
        for r in verdict.results
    ]
