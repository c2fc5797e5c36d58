"""Guided failure: where the policy is not met and the strategy is ``manual``, a person picks what happens next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, get_args

from airflow.sdk import Context

from airflow_multideploy.catalog.approval import Choice
from airflow_multideploy.catalog.notify import Notify
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.errors import ReleaseFailed
from airflow_multideploy.operators.approval import Question, markdown
from airflow_multideploy.operators.clock import Stopped, TaskClock
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.release import ReleaseOperator
from airflow_multideploy.operators.run import decisions, journal, pull_plan
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.journal import GOOD, Phase
from airflow_multideploy.release.ledger import Approval
from airflow_multideploy.release.rollback import WayBack
from airflow_multideploy.release.verdict import Verdict, table

RETRY = "retry"
_OPTIONS = """
* `retry`: what failed goes back and is rolled out again, with what was not started because of it
* `roll_back_failed`: the failed targets go back, the others stay on the new release
* `roll_back_all`: every target that this run touched goes back
* `accept`: leave everything as it is
"""
VERDICT = "verdict"
"""XCom key of the results that the latest question is about."""
_LATER = f"""
The table is from the first time of asking: after a retry, the current one is in the XCom `{VERDICT}` of this task."""
_STEP = 0.001
"""What a retry adds to the count of clears: any real one still counts for more."""


class DecideOperator(ReleaseOperator, Question):
    """Asks a person what becomes of a release that did not reach its policy, and pushes the verdict that follows.

    A retry rolls out in this task's own process: each failed target goes back to its snapshot first, because only from
    there every platform takes the release again. When it does not help, the task fails, and its next try asks again;
    after the last one the default is taken. Airflow shows the words of the first question then: what is the case now is
    in the XCom ``verdict`` and in the notification.

    :param rollbacks: ids of the rollback tasks by target.
    :param notify: who is told that it waits; a plan's wins.
    """

    ui_color = "#fdf6d8"

    def __init__(
        self, *, rollbacks: Mapping[str, str], notify: Sequence[Mapping[str, Any]] = (), **kwargs: Any
    ) -> None:
        self._init(options=get_args(Choice), defaults=kwargs.get("default", "roll_back_all"), **kwargs)
        self.rollbacks = dict(rollbacks)
        self._clock = TaskClock()
        self._notifiers = tuple(Notify.model_validate(settings).model_dump(mode="json") for settings in notify)

    def execute(self, context: Context) -> None:
        """Ask, unless there is nothing to pick, or a person already has."""
        decisions(context, self.service_name).keep_verdict(self.task_id, None)
        verdict = self.judge(context, final=False)
        if not verdict.asks:
            self._go_on(context, verdict, self.rollbacks)
        elif (earlier := self.earlier(context)) and earlier[-1].choice != RETRY:
            self._follow(context, earlier)
        else:
            self._follow(context, [*earlier, self._put(context, verdict)])

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Do what was picked."""
        self._follow(context, [*self.earlier(context), self.answer(context, event)])

    def on_kill(self) -> None:
        """Stop waiting for what is rolled out again; the journals say how far it came."""
        self._clock.stop()
        for deploy in self._deploys():
            deploy.on_kill()

    def _follow(self, context: Context, approvals: Sequence[Approval]) -> None:
        self.keep(context, approvals)
        picked, ti = approvals[-1], context["ti"]
        self.log.info("%s: %s", picked.by or picked.reason, picked.choice)
        choice = cast("Choice | None", None if picked.choice == RETRY else picked.choice)
        if choice is None:
            self._retry(context, sum(each.choice == RETRY for each in approvals))
        verdict = self.judge(context, final=False, choice=choice)
        if choice is None and verdict.asks and ti.try_number <= ti.max_tries:
            message = f"{verdict.service} {verdict.version}: the retry did not help, so it asks again: {verdict.reason}"
            raise ReleaseFailed(message)
        self._go_on(context, verdict, self.rollbacks)

    def _put(self, context: Context, verdict: Verdict) -> Approval:
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        notifiers: Any = self._notifiers if plan is None else plan.service["notify"]
        failed = ", ".join(sorted(_failed(verdict)))
        what = f"{verdict.service} {verdict.version}:"
        body = f"{markdown(table(verdict))}\n{_OPTIONS}\nNo answer in time: `{verdict.choice}`.\n{_LATER}"
        context["ti"].xcom_push(VERDICT, table(verdict))
        told: Any = {**verdict.dump(), "message": f"{what} failed on {failed}; what now?"}
        return self.ask(context, f"{what} the policy is not met; what now?", body, notifiers=notifiers, **told)

    def _retry(self, context: Context, number: int) -> None:
        """Roll out again, in the order of the dependencies; what comes of it is in the journals."""
        clear = (getattr(context["dag_run"], "clear_number", None) or 0) + number * _STEP
        plan = None if self.plan_task_id is None else pull_plan(context, self.service_name, self.plan_task_id)
        most: Any = plan.service.get("max_parallel") if plan is not None else None
        failed = _failed(self.judge(context, final=False))
        for wave in waves(self._configs(context, plan)):
            deploys = [deploy.repeated(clear) for deploy in self._deploys() if deploy.target in failed & set(wave)]
            for start in range(0, len(deploys), most or len(self.tasks)):
                self._roll_out(context, deploys[start : start + (most or len(self.tasks))])
        self._close(context, clear)

    def _roll_out(self, context: Context, deploys: Sequence[DeployOperator]) -> None:
        """Start them all, then wait for each."""
        under_way = []
        for deploy in deploys:
            with self._reported(deploy):
                self._back(context, deploy.target)
                deploy.render_template_fields(context)
                under_way.append((deploy, deploy.begin(context)))
        for deploy, wait in under_way:
            with self._reported(deploy):
                wait()

    def _back(self, context: Context, target: str) -> None:
        """Send a target back, and forgive the version: a person wants it once more."""
        entry, book = self._entry(context, target), journal(context, self.service_name, target)
        if entry is None or not entry.touched:
            return
        if not entry.settled or entry.phase is not Phase.ROLLED_BACK:
            platform = adapter(dict(entry.config), service=self.service_name, target=target)
            entry = WayBack(platform, book, self._clock).go(entry)
        if entry.settled:
            book.forgive(entry.release.image)

    @contextmanager
    def _reported(self, deploy: DeployOperator) -> Iterator[None]:
        """What one target comes to is logged, and keeps no other from its turn."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the journal says how far the rollout came
            self.log.warning("%s/%s: %s", self.service_name, deploy.target, error)

    def _deploys(self) -> list[DeployOperator]:
        tasks = [self.dag.get_task(task_id) for task_id in self.tasks.values()] if self.dag else []
        return [task for task in tasks if isinstance(task, DeployOperator)]


def _failed(verdict: Verdict) -> set[str]:
    return {r.target for r in verdict.results if r.deployed not in GOOD and r.deployed is not Phase.SKIPPED}
