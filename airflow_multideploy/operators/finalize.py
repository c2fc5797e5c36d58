"""How a release ended: the last task, and its colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from airflow_multideploy.catalog.notify import Notify
from airflow_multideploy.errors import ReleaseFailed, SpecError, Unreadable
from airflow_multideploy.operators.by_hand import model
from airflow_multideploy.operators.clock import Final, TaskClock
from airflow_multideploy.operators.notify import notify
from airflow_multideploy.operators.promotion import tell
from airflow_multideploy.operators.release import ReleaseOperator
from airflow_multideploy.operators.run import (
    decisions,
    journal,
    keep_record,
    ledger,
    new_record,
    pull_plan,
    recording,
)
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import GOOD, Phase
from airflow_multideploy.release.ledger import Approval, TargetRecord
from airflow_multideploy.release.rollback import left
from airflow_multideploy.release.status import Status
from airflow_multideploy.release.verdict import Verdict, table
from airflow_multideploy.store import variables
from airflow_multideploy.store.assets import service_asset, target_asset


class FinalizeOperator(ReleaseOperator):
    """Says how the release ended; the only leaf of its DAG, so that the run's colour is the truth.

    ``return_value`` is the result document. On ``succeeded`` and ``degraded`` the service's asset gets an event, and so
    does that of each target on which the release is live.

    :param notify: who is told how it ended, each as `ReleaseNotifier` is made; a plan's wins.
    """

    ui_color = "#eef2fb"

    def __init__(self, *, notify: Sequence[Mapping[str, Any]] = (), **kwargs: Any) -> None:
        self._init(**kwargs)
        told = [model(self.task_id, Notify, each, prefix=f"notify[{n}]") for n, each in enumerate(notify)]
        self._notifiers = tuple(each.model_dump(mode="json") for each in told)
        self.on_failure_fail_dagrun = True
        self._clock = TaskClock()
        assets = service_asset(self.service_name), *(target_asset(self.service_name, each) for each in self.tasks)
        self.outlets = [*self.outlets, *assets]

    def prepare_template(self) -> None:
        """As every task of a release; and what was wired after these were made does not undo what they are for."""
        super().prepare_template()
        from airflow_multideploy.operators.whole import flaw  # knows this module

        if self.dag is not None and (why := flaw(self, self.dag)):
            raise SpecError(why)

    def execute(self, context: Context) -> dict[str, Any]:
        """Judge again, now with the rollbacks; fail unless the release is good.

        :raises ReleaseFailed: any status but ``succeeded`` and ``degraded``.
        """
        if self._decided(context) is None:
            self._close(context)
        verdict = self.judge(context)
        if self._settle(context, verdict):
            verdict = self.judge(context)
        if self.plan_task_id is not None:
            self._thaw(context)
        release = self._release(context)
        self._record(context, verdict, release)
        document = verdict.dump()
        context["ti"].xcom_push("return_value", document)
        for row in table(verdict):
            self.log.info("  ".join(f"{value or '-'}" for value in row.values()))
        message = f"{verdict.service} {verdict.version}: {verdict.status}" + (
            f": {verdict.reason}" if verdict.reason else ""
        )
        self._notify(context, document, message)
        if not verdict.status.good or verdict.cancelled:
            self.log.error(message)
            raise Final(message) from ReleaseFailed(message)
        self.log.log(30 if verdict.status is Status.DEGRADED else 20, message)
        if verdict.dry_run:
            # A task that succeeds tells all who wait for the service's asset; nothing was released.
            raise AirflowSkipException("dry run: nothing was written")
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        tell(self, context, verdict, release, plan)
        return document

    def _thaw(self, context: Context) -> None:
        """Let go of the frozen config. One that stays is a leftover, which no longer counts."""
        try:
            variables.thaw(self.service_name, context["run_id"])
        except Unreadable as error:
            self.log.warning("%s", error)

    def _release(self, context: Context) -> Release | None:
        """What this run released: by the plan, with what was built; without a plan by the journals, if they know."""
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        if plan is None:
            entries = (self._entry(context, target) for target in self.tasks)
            return next((entry.release for entry in entries if entry is not None), None)
        built = decisions(context, self.service_name).built() if self.build_task_id else None
        return plan.release.model_copy(update=built.model_dump() if built else {})

    def _record(self, context: Context, verdict: Verdict, release: Release | None) -> None:
        """Close the run's record. A run that never named a version leaves none."""
        asked_for = {**context["params"], **(context["dag_run"].conf or {})}
        if asked_for.get("dry_run") or not verdict.version:
            return
        book, opened, now = ledger(context, self.service_name), None, self._clock.time()
        with recording():
            opened = book.find(self.dag_id, context["run_id"])
        with recording():
            asked = release or Release(service=self.service_name, version=verdict.version, image="", release_id="")
            fresh = new_record(context, self.dag_id, asked, now=now)
            record = opened or fresh
            platforms = {each.target: each.platform for each in record.targets}
            parts = (r for r in verdict.results if r.phase is not Phase.SKIPPED or r.reason)
            record = record.to(
                image=asked.image or record.image,
                digest=asked.digest,
                status=verdict.status,
                outcome=verdict.reason,
                met=verdict.met and not verdict.cancelled,
                restore=verdict.restore,
                started_at=fresh.started_at,
                ended_at=now,
                targets=tuple(TargetRecord.of(r, platform=platforms.get(r.target, "")) for r in parts),
                approvals=tuple(dict.fromkeys([*record.approvals, *self._answers(context)])),
            )
            keep_record(context, record)

    def _answers(self, context: Context) -> Iterator[Approval]:
        """What was answered at the gates before this task."""
        for task in self.dag.tasks if self.dag else ():
            if getattr(task, "is_question", False) and getattr(task, "service_name", None) == self.service_name:
                with recording():  # one that is spoilt costs the record nothing else
                    yield from decisions(context, self.service_name).answers(task.task_id)

    def _notify(self, context: Context, document: dict[str, Any], message: str) -> None:
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        told: Any = self._notifiers if plan is None else plan.service["notify"]
        if not document["dry_run"]:
            notify(told, context, document["status"], message=message, **document)

    def _settle(self, context: Context, verdict: Verdict) -> bool:
        """Whether something had to be said in the journals: what was left on purpose is settled, and the next
        release starts from it; what should have gone back and was never asked to is in doubt."""
        said = False
        for result in verdict.results:
            entry = self._entry(context, result.target)
            if entry is None or not result.touched:
                continue
            if result.target in verdict.restore:
                if entry.phase not in GOOD:
                    continue
                reason = "should have gone back, and its rollback ended before it began; clear it"
                now = entry.to(Phase.ROLLBACK_FAILED, settled=False, reason=reason)
            elif entry.stays and not entry.settled:
                now = left(entry.to(entry.phase, reason=result.reason), self._clock.time())
            elif not entry.settled and entry.phase not in (Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED):
                phase = Phase.FAILED if entry.phase is Phase.FAILED else Phase.UNKNOWN
                now = entry.to(phase, settled=True, deployed=phase, reason=result.reason)
            else:
                continue
            journal(context, self.service_name, result.target).write(now)
            said = True
        return said
