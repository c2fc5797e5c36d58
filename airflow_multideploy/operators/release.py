"""The tasks after the deploys: aggregate, roll back, finalize. All are teardowns: they run whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_multideploy.catalog.approval import Choice
from airflow_multideploy.catalog.service import AtLeast, Policy, Strategy
from airflow_multideploy.catalog.target import Edge, TargetConfig
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.by_hand import Checked, hurried, own_arguments, policy_of, strategy_of
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.run import (
    decisions,
    journal,
    not_approved,
    outcome_of,
    own_entry,
    pull_plan,
)
from airflow_multideploy.release.journal import GOOD, Entry, Phase
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.release.rollout import CONTINUABLE
from airflow_multideploy.release.status import TargetResult, result_of
from airflow_multideploy.release.verdict import Rules, Verdict, judge
from airflow_multideploy.store.assets import journal_asset

ENDED = "deploys_ended"
"""A task that does nothing, once all deploys have ended. It is no teardown: when the run is marked failed before that,
Airflow skips it, and so the tasks after it know."""
SENT_BACK = "had gone back before this was decided; clear its deploy too"
REFUSED = "refused"
"""XCom key under which a plan or a build says why nothing starts."""


def checked(place: str, deploys: Sequence[DeployOperator], policy: Policy) -> str:
    """The service that these deploys release, by one policy.

    :raises SpecError: they are no release.
    """
    if not deploys:
        raise SpecError(f"{place}: deploys: empty; give the release's deploy tasks")
    for deploy in deploys:
        if not isinstance(deploy, DeployOperator):
            name = getattr(deploy, "task_id", type(deploy).__name__)
            raise SpecError(
                f"{place}: deploys: {name!s:.250} is no deploy task; give those alone, and wire others with >>"
            )
    if len(services := sorted({deploy.service_name for deploy in deploys})) > 1:
        raise SpecError(
            f"{place}: deploys: are of {len(services)} services ({', '.join(services)}), and a release is of one; call "
            "finish once for each service, or give all of them one service_name"
        )
    by_target = {deploy.target: deploy for deploy in deploys}
    for deploy in deploys:
        if (other := by_target[deploy.target]) is not deploy:
            raise SpecError(
                f"{place}: deploys: {deploy.task_id} and {other.task_id} both have the target {deploy.target!r}; give "
                "each a target of its own"
            )
    if isinstance(policy, AtLeast) and policy.at_least > len(deploys):
        raise SpecError(
            f"{place}: policy.at_least: {policy.at_least} is more than the {len(deploys)} deploys; lower it"
        )
    if policy == "critical" and all(deploy.config.get("critical") is False for deploy in deploys):
        raise SpecError(f"{place}: policy: critical, but every deploy is marked critical=False; mark one True")
    return services[0]


class ReleaseOperator(Checked):
    """Base of the tasks that look at a release as a whole.

    :param deploys: the deploy tasks of this release.
    :param service_name: name of the service; default: the deploys'.
    :param policy: when the release counts as done: ``all``, ``critical`` or ``{"at_least": n}``; a plan's wins.
    :param strategy: what goes back when it does not: ``all``, ``failed``, ``dependents``, ``manual`` or ``none``; a
        plan's wins.
    :param keep_on_cancel: True leaves what is live when the run is marked failed; False (default) undoes it.
    :param default: with strategy ``manual``, what no answer in time means; a plan's wins.
    :param plan_task_id: the task that froze the plan, when there is one.
    :param build_task_id: the task that built the image, when one did.
    :param approve_task_id: the task in which somebody approves the release, when there is one.
    :param aggregate_task_id: the task whose verdict the later ones follow.
    :param decide_task_id: the task in which a person picks, when there is one: then its verdict comes first.
    :param ended_task_id: the mark that the deploys have ended, see `ENDED`.
    """

    service_name: str
    tasks: dict[str, str]
    """Ids of the deploy tasks by target."""
    rules: Rules
    plan_task_id: str | None
    build_task_id: str | None
    approve_task_id: str | None
    default: Choice
    aggregate_task_id: str
    decide_task_id: str | None
    ended_task_id: str

    def _init(
        self,
        *,
        deploys: Sequence[DeployOperator] = (),
        service_name: str | None = None,
        policy: Policy | dict[str, int] = "all",
        strategy: Strategy = "all",
        default: Choice = "roll_back_all",
        keep_on_cancel: bool = False,
        plan_task_id: str | None = None,
        build_task_id: str | None = None,
        approve_task_id: str | None = None,
        aggregate_task_id: str = "aggregate_status",
        decide_task_id: str | None = None,
        ended_task_id: str = ENDED,
        **kwargs: Any,
    ) -> None:
        """What each constructor begins with. Were it one itself, Airflow would merge the DAG's defaults once more for
        each task, for which a large catalog pays when it is parsed."""
        place = own_arguments(type(self), kwargs)
        kwargs.setdefault("trigger_rule", "all_done")
        kwargs |= {"depends_on_past": False, "wait_for_downstream": False}  # whatever the DAG's defaults ask of deploys
        super().__init__(**kwargs)
        chosen = policy_of(place, policy)
        service = checked(place, deploys, chosen)
        if service_name not in (None, service):
            raise SpecError(
                f"{place}: service_name: is {service_name!r:.200}, and the deploys release {service!r}; give the "
                f"deploys service_name={service_name!r:.200}"
            )
        self.is_teardown = True
        # Past Airflow's own __setattr__, for the same reason.
        vars(self).update(
            service_name=service,
            tasks={deploy.target: deploy.task_id for deploy in deploys},
            rules=Rules(policy=chosen, strategy=strategy_of(place, strategy), keep_on_cancel=keep_on_cancel),
            plan_task_id=plan_task_id,
            build_task_id=build_task_id,
            approve_task_id=approve_task_id,
            default=default,
            aggregate_task_id=aggregate_task_id,
            decide_task_id=decide_task_id,
            ended_task_id=ended_task_id,
        )
        self.inlets = [*self.inlets, journal_asset(self.service_name)]

    def prepare_template(self) -> None:
        """Airflow asks for it once the DAG is whole.

        :raises SpecError: the DAG has what breaks a release.
        """
        if self.dag is not None and (why := hurried(self.dag)):
            raise SpecError(why)

    def judge(self, context: Context, *, final: bool = True, choice: Choice | None = None) -> Verdict:
        """The verdict as it is now: from the journals, and from XCom for targets that have none in this run.

        :param choice: what a person picked; None: what this run's verdict says so far, or else the default.
        """
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        results = self._results(context, plan)
        if plan is None:
            rules, default = self.rules, self.default
            asked = str((context["dag_run"].conf or {}).get("version") or "")
            version = next((r.version for r in results.values() if r.version), asked)
        else:
            settings: Any = plan.service
            rules = Rules(
                policy=settings["success"]["policy"],
                strategy=settings["rollback"]["strategy"],
                keep_on_cancel=settings["rollback"]["cancel"] == "keep",
            )
            version, default = plan.release.version, settings["rollback"].get("default") or self.default
        earlier, cancelled = self._decided(context), self._stopped(context)
        return judge(
            results,
            self._configs(context, plan),
            service=self.service_name,
            version=version,
            rules=rules,
            cancelled=cancelled,
            dry_run=plan is not None and plan.dry_run,
            final=final,
            refused=self._refused(context, plan, results, cancelled=cancelled),
            choice=choice or (earlier and earlier.choice) or default,
            missed=final and earlier is not None and not earlier.met,
        )

    def _results(self, context: Context, plan: Plan | None) -> dict[str, TargetResult]:
        aside = {} if plan is None else {t: plan.skipped.get(t, "") for t in self.tasks.keys() - set(plan.selected)}
        entries = {target: self._entry(context, target) for target in aside}
        skipped = {
            target: TargetResult(target=target, phase=Phase.SKIPPED, deployed=Phase.SKIPPED, reason=why)
            for target, why in aside.items()
            if (left := entries[target]) is None or not left.unsettled  # what this run left there before a clear
        }
        results = {target: skipped.get(target) or self._outcome(context, target) for target in self.tasks}
        if plan is not None and not plan.dry_run:
            results |= self._vanished(context, plan) | self._unskipped(context, plan, results)
        earlier = self._decided(context)
        if earlier is None:
            # Healthy once, and sent back since: its deploy was not cleared with the others, or each rollback judged for
            # itself, because aggregate_status had died. So nothing of it is there.
            results |= {
                target: now.model_copy(
                    update={
                        "deployed": Phase.FAILED,
                        "reason": SENT_BACK if now.phase is Phase.ROLLED_BACK else now.reason,
                    }
                )
                for target, now in results.items()
                if now.deployed in GOOD and now.phase not in GOOD
            }
        for was in earlier.results if earlier else ():
            now = results.get(was.target)
            if now is None:
                continue
            if now.deployed in GOOD and now.phase not in GOOD and was.deployed not in GOOD:
                # Its task went on while it was taken for failed, and came to a good end before its rollback: what was
                # decided, and undone, stays decided.
                results[was.target] = now.model_copy(update={"deployed": was.deployed, "reason": was.reason})
        return results

    def _vanished(self, context: Context, plan: Plan) -> dict[str, TargetResult]:
        """Selected targets whose task the run no longer has, because the catalog was changed under it: what the journal
        says of their rollout, else that nobody knows."""
        run_id, tasks = context["run_id"], list(self.tasks.values())
        states = context["ti"].get_task_states(dag_id=self.dag_id, task_ids=tasks, run_ids=[run_id]).get(run_id, {})
        found = {}
        for target in plan.selected:
            if target in self.tasks and str(states.get(self.tasks[target])) != "removed":
                continue
            entry = self._entry(context, target)
            why = "the run has no task for it any more: the catalog was changed under it; look at what it runs"
            unknown = TargetResult(target=target, phase=Phase.UNKNOWN, deployed=Phase.UNKNOWN, reason=why)
            found[target] = unknown if entry is None else result_of(entry, critical=True)
        return found

    def _unskipped(self, context: Context, plan: Plan, results: Mapping[str, TargetResult]) -> dict[str, TargetResult]:
        """Selected targets that XCom alone calls skipped, and the plan does not."""
        found = {}
        for target, result in results.items():
            skipped = target in plan.selected and result.phase is Phase.SKIPPED
            if not skipped or self._entry(context, target) is not None or self.dag is None:
                continue
            deploy: Any = self.dag.get_task(self.tasks[target])
            held = deploy.held(context, plan)
            if held is None or held.phase is not Phase.SKIPPED:
                why = f"{self.tasks[target]} says that it was skipped, and the plan does not"
                found[target] = held or TargetResult(target=target, reason=why)
        return found

    def _decided(self, context: Context) -> Verdict | None:
        """The verdict so far, for the tasks after aggregate_status: where a person picked, the one that followed.

        By the record: XCom shows the same, and others may write it.
        """
        order = [self.aggregate_task_id, self.decide_task_id]
        before = order[: order.index(self.task_id)] if self.task_id in order else order
        for task_id in reversed(before):
            if task_id and (said := self._judged(context, task_id)) is not None:
                if task_id != self.aggregate_task_id and not self._asked(context):
                    continue  # skipped this time, it keeps what it said before a clear
                return said
        return None

    def _judged(self, context: Context, task_id: str) -> Verdict | None:
        try:
            return decisions(context, self.service_name).verdict(task_id)
        except SpecError as error:
            self.log.error("%s; going by the journals", error)  # noqa: TRY400 - the message is the whole of it
            return None

    def _asked(self, context: Context) -> bool:
        """Whether aggregate_status left it to a person what goes back, or left no verdict."""
        said = self._judged(context, self.aggregate_task_id)
        return said is None or said.asks

    def _stopped(self, context: Context) -> bool:
        """Whether a person stopped the run before its deploys had ended.

        Airflow keeps such a run ``running`` until its teardowns are over, so a task has to tell: see `ENDED`. In a DAG
        without it, wired without `finish`, the deploys that were cut short count as failed.
        """
        if (earlier := self._decided(context)) is not None:
            return earlier.cancelled
        run_id, mark = context["run_id"], self.ended_task_id
        states = context["ti"].get_task_states(dag_id=self.dag_id, task_ids=[mark], run_ids=[run_id]).get(run_id, {})
        return str(states.get(mark)) == "skipped"

    def _refused(
        self, context: Context, plan: Plan | None, results: Mapping[str, TargetResult], *, cancelled: bool
    ) -> str:
        """Why nothing was started, or an empty string."""
        if any(result.touched for result in results.values()) and self._begun(context):
            return ""
        for task_id in (self.plan_task_id, self.build_task_id):
            if task_id is not None and (why := context["ti"].xcom_pull(task_ids=task_id, key=REFUSED)):
                return str(why)
        if self.plan_task_id is not None and plan is None:
            return f"the {self.plan_task_id} task did not end well; its log says why"
        if self.build_task_id is not None and decisions(context, self.service_name).built() is None:
            return f"the {self.build_task_id} task did not end well; its log says why"
        if self.approve_task_id is not None and not (cancelled or (plan is not None and plan.dry_run)):
            return not_approved(context, self.service_name, [self.approve_task_id])
        return ""

    def _begun(self, context: Context) -> bool:
        """Whether something was written since a person last cleared the run, or was left unsettled before that."""
        clear = getattr(context["dag_run"], "clear_number", None) or 0
        entries = (self._entry(context, target) for target in self.tasks)
        return any(entry.touched and (not entry.settled or entry.clear >= clear) for entry in entries if entry)

    def _close(self, context: Context, clear: float | None = None) -> None:
        """From here on what the journals say stands: a deploy that was thought dead and wakes up now stops."""
        clear = clear or getattr(context["dag_run"], "clear_number", None) or 0
        for target in self.tasks:
            entry = self._entry(context, target)
            if entry is None or entry.phase in CONTINUABLE:
                journal(context, self.service_name, target).close(self.dag_id, context["run_id"], clear)

    def _outcome(self, context: Context, target: str) -> TargetResult:
        return outcome_of(context, self.dag_id, self.service_name, target, self.tasks[target])

    def _entry(self, context: Context, target: str) -> Entry | None:
        """The target's journal entry, when it is this run's."""
        return own_entry(context, self.dag_id, self.service_name, target)

    def _configs(self, context: Context, plan: Plan | None) -> dict[str, TargetConfig]:
        """By the plan; without one what the journals hold, with the dependencies that the DAG's own edges show, also
        those that lead through other tasks."""
        if plan is not None:
            return {
                target: common_config(plan.config(target)) for target in {**self.tasks, **dict.fromkeys(plan.selected)}
            }
        configs = {}
        for target, task_id in self.tasks.items():
            upstream = self.dag.get_task(task_id).get_flat_relative_ids(upstream=True) if self.dag else set()
            # Not validated: a target is called here as tasks are, which in a catalog is no name.
            edges = tuple(Edge.model_construct(target=t) for t, other in self.tasks.items() if other in upstream)
            entry = self._entry(context, target)
            config = common_config(entry.config if entry else {})
            configs[target] = config.model_copy(update={"depends_on": edges}) if edges else config
        return configs

    def _go_on(self, context: Context, verdict: Verdict, tasks: Mapping[str, str]) -> None:
        """Push the verdict, and end with the tasks skipped that have nothing to do.

        :param tasks: ids of the rollback tasks by target.
        """
        decisions(context, self.service_name).keep_verdict(self.task_id, verdict)
        context["ti"].xcom_push("return_value", verdict.dump())
        self.log.info("%s %s: %s %s", verdict.service, verdict.version, verdict.status, verdict.reason)
        decide = self.decide_task_id if self.task_id == self.aggregate_task_id else None
        if decide and verdict.asks:
            return  # what goes back is picked there
        idle = [task_id for target, task_id in tasks.items() if target not in verdict.restore]
        idle += [decide] if decide else []
        if verdict.restore:
            self.log.warning("going back: %s", ", ".join(verdict.restore))
        if idle:
            raise DownstreamTasksSkipped(tasks=idle)  # type: ignore[no-untyped-call]


def common_config(config: Mapping[str, Any]) -> TargetConfig:
    """The part of a target's config that all platforms share."""
    known = {key: value for key, value in config.items() if key in TargetConfig.model_fields}
    return TargetConfig.model_validate({"platform": "", "conn_id": "-", **known})
