"""The tasks after the deploys: aggregate, roll back, finalize. All are teardowns: they run whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from airflow_multideploy import variables
from airflow_multideploy.core.contract import Observation, Platform
from airflow_multideploy.core.errors import PlatformError, ReleaseFailed, RollbackFailed
from airflow_multideploy.core.journal import Entry, Phase
from airflow_multideploy.core.models import AtLeast, Edge, Policy, Strategy, TargetConfig
from airflow_multideploy.core.rollback import WayBack, blockers
from airflow_multideploy.core.status import Status, TargetResult, result_of
from airflow_multideploy.core.verdict import Rules, Verdict, judge, table
from airflow_multideploy.core.wait import Watch, follow
from airflow_multideploy.operators.deploy import ROLLOUT, ConsoleLink, DeployOperator
from airflow_multideploy.operators.state import (
    Final,
    TaskClock,
    journal,
    pull_plan,
    service_asset,
    target_asset,
)
from airflow_multideploy.platforms import adapter
from airflow_multideploy.triggers import RolloutTrigger

REFUSED = "refused"
"""XCom key under which a plan or a build says why nothing starts."""


class ReleaseOperator(BaseOperator):
    """Base of the tasks that look at a release as a whole.

    :param deploys: the deploy tasks of this release.
    :param service_name: name of the service; default: the deploys'.
    :param policy: when the release counts as done: ``all``, ``critical`` or ``{"at_least": n}``; a plan's wins.
    :param strategy: what goes back when it does not: ``all``, ``failed``, ``dependents``, ``manual`` or ``none``; a
        plan's wins.
    :param keep_on_cancel: True leaves what is live when the run is marked failed; False (default) undoes it.
    :param plan_task_id: the task that froze the plan, when there is one.
    """

    def __init__(
        self,
        *,
        deploys: Sequence[DeployOperator],
        service_name: str | None = None,
        policy: Policy | dict[str, int] = "all",
        strategy: Strategy = "all",
        keep_on_cancel: bool = False,
        plan_task_id: str | None = None,
        build_task_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("trigger_rule", "all_done")
        super().__init__(**kwargs)
        if not deploys:
            raise ValueError(f"{self.task_id}: deploys: empty; give the release's deploy tasks")
        self.is_teardown = True
        self.service_name = service_name or deploys[0].service_name
        self.tasks = {deploy.target: deploy.task_id for deploy in deploys}
        chosen = AtLeast.model_validate(policy) if isinstance(policy, Mapping) else policy
        self.rules = Rules(policy=chosen, strategy=strategy, keep_on_cancel=keep_on_cancel)
        self.plan_task_id, self.build_task_id = plan_task_id, build_task_id
        self.inlets = [*self.inlets, *(target_asset(self.service_name, target) for target in self.tasks)]

    def judge(self, context: Context, *, final: bool = True) -> Verdict:
        """The verdict as it is now: from the journals, and from XCom for targets that have none in this run."""
        plan = None if self.plan_task_id is None else pull_plan(context, self.plan_task_id)
        results = {target: self._result(context, target) for target in self.tasks}
        if plan is None:
            rules, configs = self.rules, self._configs(context)
            version = next((r.version for r in results.values() if r.version), "")
        else:
            settings: Any = plan.service
            rules = Rules(
                policy=settings["success"]["policy"],
                strategy=settings["rollback"]["strategy"],
                keep_on_cancel=settings["rollback"]["cancel"] == "keep",
            )
            configs = {target: _common(plan.config(target)) for target in self.tasks}
            version = plan.release.version
        return judge(
            results,
            configs,
            service=self.service_name,
            version=version,
            rules=rules,
            cancelled=str(getattr(context["dag_run"], "state", "")) == "failed",
            dry_run=plan is not None and plan.dry_run,
            final=final,
            refused=self._refused(context, planned=plan is not None, results=results),
        )

    def _refused(self, context: Context, *, planned: bool, results: Mapping[str, TargetResult]) -> str:
        """Why nothing was started, or an empty string."""
        if any(result.touched for result in results.values()):
            return ""
        for task_id in (self.plan_task_id, self.build_task_id):
            if task_id is not None and (why := context["ti"].xcom_pull(task_ids=task_id, key=REFUSED)):
                return str(why)
        if self.plan_task_id is not None and not planned:
            return f"the {self.plan_task_id} task did not end well; its log says why"
        if self.build_task_id is not None and not context["ti"].xcom_pull(task_ids=self.build_task_id):
            return f"the {self.build_task_id} task did not end well; its log says why"
        return ""

    def _result(self, context: Context, target: str) -> TargetResult:
        entry = self._entry(context, target)
        pushed = context["ti"].xcom_pull(task_ids=self.tasks[target], key=ROLLOUT)
        if entry is not None:
            return result_of(entry, critical=True)
        return TargetResult.model_validate(pushed) if pushed else TargetResult(target=target)

    def _entry(self, context: Context, target: str) -> Entry | None:
        """The target's journal entry, when it is this run's."""
        entry = journal(context, self.service_name, target).read()
        mine = entry is not None and (entry.dag_id, entry.run_id) == (self.dag_id, context["run_id"])
        return entry if mine else None

    def _configs(self, context: Context) -> dict[str, TargetConfig]:
        """Without a plan: what the journals hold, with the dependencies that the DAG's own edges show."""
        configs = {}
        for target, task_id in self.tasks.items():
            upstream = self.dag.get_task(task_id).upstream_task_ids if self.dag else set()
            edges = [Edge(target=t).model_dump() for t, other in self.tasks.items() if other in upstream]
            entry = self._entry(context, target)
            known = dict(entry.config) if entry else {"platform": "", "conn_id": "-"}
            configs[target] = _common({**known, "depends_on": edges or known.get("depends_on", [])})
        return configs


class AggregateStatusOperator(ReleaseOperator):
    """Computes the release's overall status and selects what goes back; its ``return_value`` is the result document.

    When nothing goes back, the rollback tasks are skipped without a process each. Should this task itself die, each
    rollback task decides by the journals.

    :param rollbacks: ids of the rollback tasks by target.
    """

    ui_color = "#eef2fb"

    def __init__(self, *, rollbacks: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Without it Airflow takes a failed deploy for a leaf (all below it are ignorable teardowns) and fails the run,
        # also when the release is only degraded.
        self.on_failure_fail_dagrun = True
        self.rollbacks = dict(rollbacks or {})

    def execute(self, context: Context) -> None:
        """Judge, push the document, and skip the rollback tasks that have nothing to do."""
        verdict = self.judge(context, final=False)
        context["ti"].xcom_push("return_value", verdict.dump())
        self.log.info("%s %s: %s %s", verdict.service, verdict.version, verdict.status, verdict.reason)
        if verdict.restore:
            self.log.warning("going back: %s", ", ".join(verdict.restore))
        idle = [task_id for target, task_id in self.rollbacks.items() if target not in verdict.restore]
        if idle:
            raise DownstreamTasksSkipped(tasks=idle)  # type: ignore[no-untyped-call]


class RollbackOperator(ReleaseOperator):
    """Returns one target to its snapshot when the verdict says so, and says so only after it was seen serving.

    Everything it needs is in the journal: it works without a catalog, a plan or XCom, on any worker, and continues
    where an earlier try was interrupted. Live state that is neither ours nor the snapshot is left alone and reported.

    :param target: which target.
    :param aggregate_task_id: the task whose verdict it follows.
    :param deferrable: wait in the triggerer (default) or in the worker.
    """

    ui_color = "#fdeeea"
    operator_extra_links = (ConsoleLink(),)

    def __init__(
        self,
        *,
        target: str,
        aggregate_task_id: str = "aggregate_status",
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target, self.aggregate_task_id, self.deferrable = target, aggregate_task_id, deferrable
        self._clock = TaskClock()

    def execute(self, context: Context) -> dict[str, Any]:
        """Go back, wait until the snapshot serves, and return the target's result document."""
        pulled = context["ti"].xcom_pull(task_ids=self.aggregate_task_id, key="return_value")
        verdict = Verdict.model_validate(pulled) if pulled else self.judge(context)
        entry = self._entry(context, self.target)
        if self.target not in verdict.restore or entry is None or not entry.touched:
            raise AirflowSkipException("nothing of this run is to be undone here")
        if entry.phase is Phase.ROLLED_BACK:
            return result_of(entry, critical=True).dump()
        platform = adapter(dict(entry.config), service=self.service_name, target=self.target)
        self._blocked(context, verdict, entry)
        context["ti"].xcom_push("console_url", platform.console_url(entry.handle))
        return self._go_back(context, platform, entry)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Journal what the triggerer saw; go back once more when somebody wrote after us and there is time."""
        entry = self._entry(context, self.target)
        if entry is None or entry.phase is not Phase.ROLLING_BACK:
            raise Final(
                f"{self.service_name}/{self.target}: the journal is {entry and entry.phase}; somebody took over"
            )
        platform = adapter(dict(entry.config), service=self.service_name, target=self.target)
        return self._end(context, platform, self._way(context, platform).conclude(entry, _seen(event)))

    def on_kill(self) -> None:
        """Stop waiting; the next try continues from the journal."""
        self._clock.stop()

    def _way(self, context: Context, platform: Platform[Any]) -> WayBack:
        return WayBack(platform, journal(context, self.service_name, self.target), self._clock)

    def _go_back(self, context: Context, platform: Platform[Any], entry: Entry) -> dict[str, Any]:
        try:
            entry = self._way(context, platform).begin(entry)
        except RollbackFailed as error:
            cause = error.__cause__
            if isinstance(cause, PlatformError) and not cause.retryable:
                raise Final(str(error)) from error
            raise
        self._clock.check()
        back = entry.back
        if back is None:
            return self._end(context, platform, entry)
        deadline = entry.rollback_deadline or 0.0
        if self.deferrable:
            self._defer(entry, deadline)
        watch = Watch(deadline=deadline, interval=platform.config.poll_interval)
        seen = follow(lambda: platform.observe(back), watch=watch, clock=self._clock)
        return self._end(context, platform, self._way(context, platform).conclude(entry, seen))

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
            ),
            method_name="resume",
            timeout=timedelta(seconds=max(deadline - self._clock.time(), 0.0) + 120),
        )
        raise AssertionError("unreachable: defer raises")

    def _end(self, context: Context, platform: Platform[Any], entry: Entry) -> dict[str, Any]:
        if entry.phase is Phase.ROLLING_BACK:
            self.log.warning("%s: somebody wrote after us; going back again", platform.name)
            return self._go_back(context, platform, entry)
        if entry.phase is Phase.ROLLED_BACK:
            self.log.info("%s: verified back on %s", platform.name, entry.snapshot and entry.snapshot.revision)
            return result_of(entry, critical=True).dump()
        raise Final(f"{platform.name}: {entry.phase}: {entry.reason}") from RollbackFailed(entry.reason)

    def _blocked(self, context: Context, verdict: Verdict, entry: Entry) -> None:
        """No dependency goes back before its dependents."""
        if self.plan_task_id is not None and (plan := pull_plan(context, self.plan_task_id)) is not None:
            configs = {target: _common(plan.config(target)) for target in self.tasks}
        else:
            configs = self._configs(context)
        waiting = []
        for other in sorted(blockers(self.target, configs, frozenset(verdict.restore))):
            theirs = self._entry(context, other)
            gone = theirs is not None and (
                theirs.phase is Phase.ROLLED_BACK
                or (theirs.phase is Phase.UNKNOWN and theirs.rollback_ended_at is not None)
            )
            if not gone:
                waiting.append(other)
        if waiting:
            reason = f"not sent back: {', '.join(waiting)} depends on it and is not back; clear that rollback first"
            journal(context, self.service_name, self.target).write(
                entry.to(Phase.ROLLBACK_FAILED, settled=False, deployed=entry.deployed or Phase.FAILED, reason=reason)
            )
            raise Final(f"{self.service_name}/{self.target}: {reason}")


class FinalizeOperator(ReleaseOperator):
    """Says how the release ended; the only leaf of its DAG, so that the run's colour is the truth.

    ``return_value`` is the result document. On ``succeeded`` and ``degraded`` the service's asset gets an event.
    """

    ui_color = "#eef2fb"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_failure_fail_dagrun = True
        self.outlets = [*self.outlets, service_asset(self.service_name)]

    def execute(self, context: Context) -> dict[str, Any]:
        """Judge again, now with the rollbacks; fail unless the release is good.

        :raises ReleaseFailed: any status but ``succeeded`` and ``degraded``.
        """
        verdict = self.judge(context)
        self._settle(context, verdict)
        if self.plan_task_id is not None:
            variables.thaw(self.service_name)
        document = verdict.dump()
        context["ti"].xcom_push("return_value", document)
        for row in table(verdict):
            self.log.info("  ".join(f"{value or '-'}" for value in row.values()))
        message = f"{verdict.service} {verdict.version}: {verdict.status}" + (
            f": {verdict.reason}" if verdict.reason else ""
        )
        if not verdict.status.good or verdict.cancelled:
            self.log.error(message)
            raise Final(message) from ReleaseFailed(message)
        self.log.log(30 if verdict.status is Status.DEGRADED else 20, message)
        context["outlet_events"][service_asset(self.service_name)].extra = {
            "status": str(verdict.status),
            "version": verdict.version,
            "dry_run": verdict.dry_run,
            "run_id": context["run_id"],
            "targets": {r.target: str(r.phase) for r in verdict.results},
        }
        return document

    def _settle(self, context: Context, verdict: Verdict) -> None:
        """What was left on purpose is settled: the next release starts from it."""
        for result in verdict.results:
            if result.target in verdict.restore or not result.touched:
                continue
            entry = self._entry(context, result.target)
            if entry is not None and not entry.settled:
                kept = entry.to(Phase.FAILED, settled=True, deployed=Phase.FAILED, reason=result.reason)
                journal(context, self.service_name, result.target).write(kept)


def _seen(event: dict[str, Any]) -> Observation:
    return Observation.model_validate(event)


def _common(config: Mapping[str, Any]) -> TargetConfig:
    """The part of a target's config that all platforms share."""
    known = {key: value for key, value in config.items() if key in TargetConfig.model_fields}
    return TargetConfig.model_validate({"platform": "", "conn_id": "-", **known})


def finish(
    deploys: Sequence[DeployOperator],
    *,
    policy: Policy | dict[str, int] = "all",
    strategy: Strategy = "all",
    keep_on_cancel: bool = False,
    plan_task_id: str | None = None,
    build_task_id: str | None = None,
    group: str = "rollback",
    deferrable: bool = True,
    retries: int = 2,
) -> FinalizeOperator:
    """The tail of a release: aggregate, rollbacks in the reverse order of the deploys, finalize; wired and returned.

    :param deploys: the deploy tasks, already wired among each other.
    """
    from airflow.sdk import TaskGroup

    common: dict[str, Any] = {
        "deploys": deploys,
        "policy": policy,
        "strategy": strategy,
        "keep_on_cancel": keep_on_cancel,
        "plan_task_id": plan_task_id,
        "build_task_id": build_task_id,
    }
    aggregate = AggregateStatusOperator(
        task_id="aggregate_status",
        rollbacks={deploy.target: f"{group}.{deploy.target}" for deploy in deploys},
        retries=retries,
        retry_delay=timedelta(seconds=5),
        **common,
    )
    finalize = FinalizeOperator(task_id="finalize", retries=0, **common)
    by_task = {deploy.task_id: deploy for deploy in deploys}
    with TaskGroup(group, tooltip="what goes back when the release does not reach its policy"):
        rollbacks = {
            deploy.task_id: RollbackOperator(
                task_id=deploy.target,
                target=deploy.target,
                deferrable=deferrable,
                retries=retries,
                retry_delay=timedelta(seconds=5),
                **common,
            )
            for deploy in deploys
        }
    for task_id, deploy in by_task.items():
        deploy >> aggregate >> rollbacks[task_id] >> finalize
        for upstream in deploy.upstream_task_ids & by_task.keys():
            rollbacks[task_id] >> rollbacks[upstream]
    aggregate >> finalize
    return finalize
