"""Where a release waits for a person: what all questions share, and the gate before a release or one target."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context, Param
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.execution_time.hitl import HITLUser

from airflow_multideploy.catalog.approval import Gate
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.notify import notify
from airflow_multideploy.operators.run import (
    APPROVAL,
    decisions,
    journal,
    new_record,
    not_approved,
    pull_plan,
    times_cleared,
)
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.ledger import Approval
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.store.assets import journal_asset

COMMENT = "comment"
"""The field of the form in which people say why."""
ANSWER = "answer"
"""The option of ``[multideploy]`` that answers under ``dags test``, where nobody can."""


class Question(HITLOperator):
    """Base of the tasks that wait for a person, without a worker, a triggerer or a slot of a pool.

    A final choice stands for later tries of the task. Clearing the task asks anew.

    :param options: what may be chosen.
    :param users: who may answer, by the ids that Airflow's auth manager knows them by; empty: whoever may at all.
    :param timeout: seconds that it waits.
    :param defaults: the option that no answer in time means.
    """

    template_fields: Sequence[str] = ()
    is_question: ClassVar[bool] = True
    decides: ClassVar[bool] = True
    service_name: str

    def __init__(
        self, *, options: Sequence[str], defaults: str, timeout: float, users: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(
            subject="",  # known when it asks
            options=list(options),
            defaults=defaults,
            params={
                COMMENT: Param("", type="string", maxLength=500, title="Reason", description="kept with the release")
            },
            assigned_users=[HITLUser(id=user, name=user) for user in users] or None,
            response_timeout=timedelta(seconds=timeout),
            **kwargs,
        )

    def ask(self, context: Context, subject: str, body: str, **told: Any) -> Approval:
        """Put the question, tell the service's notifiers that it waits, and park the task; returns only when there is
        nobody who could answer.

        :param body: Markdown.
        :param told: of the notification: ``notifiers``, and what its templates see.
        """
        self.subject, self.body = subject, body
        if not self.earlier(context):  # what was answered before a clear is asked for again, and no longer counts
            decisions(context, self.service_name).keep_answers(self.task_id, [], times_cleared(context))
        if _alone():
            # Airflow would wait for an api-server's answer, and for no time-out.
            answer = str(conf.get("multideploy", ANSWER, fallback=""))
            choice = answer if answer in self.options else str((self.defaults or self.options)[0])
            why = "dags test asks nobody; AIRFLOW__MULTIDEPLOY__ANSWER is the answer, or else the default is"
            return Approval(gate=self.task_id, choice=choice, at=time.time(), reason=f"{why}: {choice}")
        try:
            super().execute(context)
        except TaskAwaitingInput:
            with suppress(ValueError):  # no base_url
                told["link"] = self.generate_link_to_ui_from_context(context=context)
            told = {"message": subject, "link": "", "reason": "", **told}
            notify(told.pop("notifiers"), context, "approval_needed", **told)
            raise
        raise AssertionError("unreachable: a question parks its task")

    def answer(self, context: Context, event: Mapping[str, Any]) -> Approval:
        """What was chosen, by whom and why, out of the event with which Airflow resumes the task.

        :raises HITLTriggerEventError: Airflow could not resume it.
        """
        chosen = super().execute_complete(context, dict(event))
        by = event.get("responded_by_user") or {}
        said = str(chosen["params_input"].get(COMMENT) or "")
        waited = self.response_timeout or timedelta()
        return Approval(
            gate=self.task_id,
            choice=chosen["chosen_options"][0],
            by=str(by.get("name") or by.get("id") or ""),
            at=event["responded_at"].timestamp(),
            reason=said if by else f"no answer within {_span(waited)}",
        )

    def earlier(self, context: Context) -> list[Approval]:
        """What was chosen in earlier tries, since a person last cleared the run's tasks; by the record, which holds
        nothing but what Airflow's own questions were answered."""
        return list(decisions(context, self.service_name).answers(self.task_id, times_cleared(context)))

    def keep(self, context: Context, approvals: Sequence[Approval]) -> None:
        """Keep what was chosen, for later tries and for all who go by it."""
        decisions(context, self.service_name).keep_answers(self.task_id, approvals, times_cleared(context))
        context["ti"].xcom_push(APPROVAL, [approval.dump() for approval in approvals])


class ApproveOperator(Question):
    """Waits until somebody approves the release, or its part on one target; without a yes, nothing is written.

    Asks nobody in a dry run, about a target that will not be deployed anyway, and after another gate said no.

    :param gate: who is asked.
    :param service_name: name of the service.
    :param plan_task_id: the task that froze the plan.
    :param build_task_id: the task that built the image, when one did.
    :param deploy_task_id: the deploy that waits for it; None: all of them do.
    """

    ui_color = "#fdf6d8"

    def __init__(
        self,
        *,
        gate: Gate,
        service_name: str,
        plan_task_id: str,
        build_task_id: str | None = None,
        deploy_task_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        asked: dict[str, Any] = {"users": gate.users or (), "timeout": gate.timeout, "defaults": gate.default}
        super().__init__(options=("approve", "reject"), **asked, **kwargs)
        self.service_name, self.plan_task_id = service_name, plan_task_id
        self.build_task_id, self.deploy_task_id = build_task_id, deploy_task_id
        self.inlets = [*self.inlets, journal_asset(service_name)]

    def execute(self, context: Context) -> str:
        """Ask, unless there is nothing to ask about; returns what became of it."""
        plan = pull_plan(context, self.service_name, self.plan_task_id)
        if plan is None or plan.dry_run:
            return "nobody was asked: nothing is deployed"
        targets = plan.selected
        if self.deploy_task_id is not None:
            deploy: Any = self.dag.get_task(self.deploy_task_id) if self.dag else None
            if not isinstance(deploy, DeployOperator):
                raise TypeError(f"{self.deploy_task_id} is no deploy task")
            gates = [gate for gate in deploy.gates if gate != self.task_id]
            held = deploy.held(context, plan)
            if (why := held.reason if held else not_approved(context, self.service_name, gates)) or held:
                return f"nobody was asked: {why or 'not selected in this run'}"
            targets = (deploy.target,)
        if earlier := self.earlier(context):
            return self._choose(context, earlier[-1])
        return self._choose(context, self._put(context, plan, targets))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """Keep the answer; the deploys go by it."""
        return self._choose(context, self.answer(context, event))

    def _choose(self, context: Context, approval: Approval) -> str:
        self.keep(context, [approval])
        said = not_approved(context, self.service_name, [self.task_id]) or f"approved: {approval.by or approval.reason}"
        self.log.info(said)
        return said

    def _put(self, context: Context, plan: Plan, targets: Sequence[str]) -> Approval:
        release = self._released(context, plan)
        subject = f"{release.service} {release.version}: release to {', '.join(targets)}?"
        body = self._body(context, plan, release, targets)
        told: Any = {"service": release.service, "version": release.version, "reason": release.reason}
        return self.ask(context, subject, body, notifiers=plan.service["notify"], **told)

    def _released(self, context: Context, plan: Plan) -> Release:
        """The plan's release, with the image that was built for it."""
        built = decisions(context, self.service_name).built() if self.build_task_id else None
        return plan.release.model_copy(update=built.model_dump() if built else {})

    def _body(self, context: Context, plan: Plan, release: Release, targets: Sequence[str]) -> str:
        rows = []
        for number, wave in enumerate(plan.waves, start=1):
            for target in (name for name in wave if name in targets):
                live = journal(context, self.service_name, target).live()
                kind = str(plan.config(target)["platform"])
                rows.append(
                    {"wave": str(number), "target": target, "platform": kind, "live now": live.version if live else "?"}
                )
        actor = new_record(context, self.dag_id, release, now=0.0).actor
        why = f": {cell(release.reason)}" if release.reason else ""
        what = f"**{release.service} {release.version}** (`{release.image}`), asked for by {cell(actor)}{why}"
        return f"{what}\n\n{markdown(rows)}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows that have the same keys."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Other people's words as text of a Markdown table: on one line, and with no syntax of theirs."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#!" else sign for sign in " ".join(text.split()))


def _span(time: timedelta) -> str:
    seconds = time.total_seconds()
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"


def _alone() -> bool:
    """Whether this is ``dags test``: the task runs in its process, beside no scheduler."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    return isinstance(getattr(task_runner, "SUPERVISOR_COMMS", None), InProcessSupervisorComms)
