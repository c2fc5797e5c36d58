"""The rollback task of one target: thin, the steps are in `airflow_multideploy.release.rollback`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from airflow_multideploy.errors import PlatformError, RollbackFailed
from airflow_multideploy.operators.clock import Final, TaskClock
from airflow_multideploy.operators.console import CONSOLE, ConsoleLink
from airflow_multideploy.operators.deploy import EARLY, IDLE, UNDER_WAY
from airflow_multideploy.operators.release import ReleaseOperator
from airflow_multideploy.operators.retry import BY_ERROR_CLASS
from airflow_multideploy.operators.run import journal, pull_plan, seen_by_trigger
from airflow_multideploy.operators.trigger import RolloutTrigger
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Platform
from airflow_multideploy.release.journal import Entry, Phase
from airflow_multideploy.release.rollback import WayBack, blockers, quiet_from
from airflow_multideploy.release.status import result_of
from airflow_multideploy.release.verdict import Verdict
from airflow_multideploy.store.variables import OVER


class RollbackOperator(ReleaseOperator):
    """Returns one target to its snapshot when the verdict says so, and says so only after it was seen serving.

    Everything it needs is in the journal: it works without a catalog, a plan or XCom, on any worker, and continues
    where an earlier try was interrupted. Live state that is neither ours nor the snapshot is left alone and reported.

    :param target: which target.
    :param deferrable: wait in the triggerer (default) or in the worker.
    """

    ui_color = "#fdeeea"
    operator_extra_links = (ConsoleLink(),)
    target: str
    deferrable: bool
    _clock: TaskClock

    def __init__(
        self,
        *,
        target: str,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", BY_ERROR_CLASS)
        self._init(**kwargs)
        vars(self).update(target=target, deferrable=deferrable, _clock=TaskClock())  # as in `ReleaseOperator`

    def execute(self, context: Context) -> dict[str, Any]:
        """Go back, wait until the snapshot serves, and return the target's result document."""
        verdict = self._decided(context) or self.judge(context)
        entry = self._entry(context, self.target)
        if self.target not in verdict.restore or entry is None or not entry.touched:
            raise AirflowSkipException("nothing of this run is to be undone here")
        if entry.phase is Phase.ROLLED_BACK:
            return result_of(entry, critical=True).dump()
        platform = adapter(dict(entry.config), service=self.service_name, target=self.target)
        self._blocked(context, verdict, entry)
        context["ti"].xcom_push(CONSOLE, platform.console_url(entry.handle))
        return self._go_back(context, platform, entry)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Journal what the triggerer saw; go back once more when that was in vain and there is time."""
        entry = self._entry(context, self.target)
        if entry is None or entry.phase is not Phase.ROLLING_BACK:
            raise Final(
                f"{self.service_name}/{self.target}: the journal is {entry and entry.phase}; somebody took over"
            )
        platform = adapter(dict(entry.config), service=self.service_name, target=self.target)
        seen = seen_by_trigger(event, platform.name)
        return self._end(context, platform, self._way(context, platform).conclude(entry, seen))

    def on_kill(self) -> None:
        """Stop waiting; the next try continues from the journal."""
        self._clock.stop()

    def _way(self, context: Context, platform: Platform[Any]) -> WayBack:
        return WayBack(platform, journal(context, self.service_name, self.target), self._clock)

    def _go_back(self, context: Context, platform: Platform[Any], entry: Entry) -> dict[str, Any]:
        way = self._way(context, platform)
        try:
            # As in a deploy, a later try waits here.
            first = self.deferrable and entry.phase is not Phase.ROLLING_BACK
            entry = way.begin(entry) if first else way.go(entry)
        except RollbackFailed as error:
            cause = error.__cause__
            if isinstance(cause, PlatformError) and not cause.retryable:
                raise Final(str(error)) from error
            raise
        self._clock.check()
        if entry.phase is Phase.ROLLING_BACK and entry.back is not None:
            self._defer(entry, entry.rollback_deadline or 0.0)
        return self._end(context, platform, entry)

    def _defer(self, entry: Entry, deadline: float) -> NoReturn:
        if entry.back is None:
            raise AssertionError("a way back that is waited for has a handle")
        self.defer(
            trigger=RolloutTrigger(
                service=self.service_name,
                target=self.target,
                config=dict(entry.config),
                handle=entry.back.dump(),
                deadline=deadline,
                earliest=quiet_from(entry),
            ),
            method_name="resume",
            timeout=timedelta(seconds=max(deadline - self._clock.time(), 0.0) + 120),
        )
        raise AssertionError("unreachable: defer raises")

    def _end(self, context: Context, platform: Platform[Any], entry: Entry) -> dict[str, Any]:
        if entry.phase is Phase.ROLLING_BACK:
            self.log.warning("%s: not back yet, and there is time left; going back again", platform.name)
            return self._go_back(context, platform, entry)
        if entry.phase is Phase.ROLLED_BACK:
            self.log.info("%s: verified back on %s", platform.name, entry.snapshot and entry.snapshot.revision)
            return result_of(entry, critical=True).dump()
        raise Final(f"{platform.name}: {entry.phase}: {entry.reason}") from RollbackFailed(entry.reason)

    def _gone(self, context: Context, target: str) -> bool:
        entry = self._entry(context, target)
        if entry is None:
            return False
        return entry.phase is Phase.ROLLED_BACK or (
            entry.phase is Phase.UNKNOWN and entry.rollback_ended_at is not None
        )

    def _going(self, context: Context, targets: list[str], *, idle: bool) -> bool:
        """Whether all of these are on their way back; ``idle``: or about to be."""
        run_id, prefix = context["run_id"], self.task_id.removesuffix(self.target)
        tasks = [prefix + target for target in targets]
        states = context["ti"].get_task_states(dag_id=self.dag_id, task_ids=tasks, run_ids=[run_id]).get(run_id, {})
        now = [str(states.get(task_id)) for task_id in tasks]
        return all(state in UNDER_WAY or (idle and state not in OVER) for state in now)

    def _blocked(self, context: Context, verdict: Verdict, entry: Entry) -> None:
        """No dependency goes back before its dependents, whose rollbacks Airflow starts first; unless it goes by a
        catalog that had no such edge yet: so those under way are waited for."""
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        others = sorted(blockers(self.target, self._configs(context, plan), frozenset(verdict.restore)))
        until = self._clock.time() + IDLE
        while waiting := [other for other in others if not self._gone(context, other)]:
            if not self._going(context, waiting, idle=self._clock.time() < until):
                break
            self.log.info("waiting until %s is back", ", ".join(waiting))
            self._clock.sleep(EARLY)
        if waiting:
            reason = f"not sent back: {', '.join(waiting)} depends on it and is not back; clear that rollback first"
            journal(context, self.service_name, self.target).write(
                entry.to(Phase.ROLLBACK_FAILED, settled=False, deployed=entry.deployed or Phase.FAILED, reason=reason)
            )
            raise Final(f"{self.service_name}/{self.target}: {reason}")
