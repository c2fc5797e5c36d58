"""The first task of a release: freezes the config, checks the conf, and refuses before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseOperator, Context

from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import MultideployError, PlatformError, SpecError, Unreadable
from airflow_multideploy.operators.clock import Final, TaskClock
from airflow_multideploy.operators.notify import notify
from airflow_multideploy.operators.preview import lacking, poolless, preview, refusals, resolved
from airflow_multideploy.operators.promotion import TargetsOf, hold, no_catalog, others, promoted
from airflow_multideploy.operators.queue import missed, passed_over, skip
from airflow_multideploy.operators.reconcile import agree, doubts, reconcile
from airflow_multideploy.operators.release import REFUSED
from airflow_multideploy.operators.retry import BY_ERROR_CLASS
from airflow_multideploy.operators.run import cleared_alone, decisions, keep_record, new_record, recording, this_run
from airflow_multideploy.operators.windows import closed, platforms_of, refusal
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import Store
from airflow_multideploy.release.ledger import Override, TargetRecord
from airflow_multideploy.release.plan import Plan, make_plan
from airflow_multideploy.release.preview import markdown
from airflow_multideploy.release.reconcile import came_to, facts
from airflow_multideploy.release.status import Status
from airflow_multideploy.store import pools, variables
from airflow_multideploy.store.assets import journal_asset

PARSED_WITHIN, PARSED_AGAIN = 180.0, 3.0
"""Seconds for which a run waits until the DAG processor has read the catalog again, and between two looks."""
PREVIEW = "preview"
"""XCom key of what a dry run found; with ``_markdown`` behind it, as Markdown."""


class PlanOperator(BaseOperator):
    """Resolves what this run releases where, and pushes it as the plan that every later task of the run reads.

    Refuses, before anything is written to a platform: unknown conf keys, a bad version, an unknown target, a target
    that another run left in doubt (with ``in_doubt: reconcile`` it is settled first), a version that was rolled back
    before, a Connection that does not exist.

    :param name: the service's name.
    :param service: the service as the catalog has it now; None when the catalog no longer has it.
    :param targets_of: gives the targets of the services that this one requires.
    """

    ui_color = "#eef2fb"

    def __init__(
        self, *, name: str, service: Service | None, targets_of: TargetsOf = no_catalog, **kwargs: Any
    ) -> None:
        kwargs.setdefault("retry_policy", BY_ERROR_CLASS)
        super().__init__(**kwargs)
        self.service_name = name
        self._service = service
        self._targets_of = targets_of
        self._clock = TaskClock()
        self.inlets = [*self.inlets, *(journal_asset(each) for each in (name, *(others(service) if service else ())))]

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, wait for what it builds on, check the journals, freeze; returns the plan as JSON."""
        return self._go(context)

    def resume(self, context: Context, event: object = None) -> dict[str, Any]:
        """As `execute`, once it has waited: everything is looked at again."""
        return self._go(context)

    def _go(self, context: Context) -> dict[str, Any]:
        after = (task.task_id for task in self.dag.tasks if getattr(task, "plan_task_id", None) == self.task_id)
        if why := cleared_alone(self, context, after):
            raise Final(f"{self.service_name}: {why}: else nothing follows this plan")
        kept = decisions(context, self.service_name)
        kept.keep_plan(None)
        try:
            plan = self._plan(context)
        except MultideployError as error:
            passing = isinstance(error, Unreadable) or (isinstance(error, PlatformError) and error.retryable)
            if passing and context["ti"].try_number <= (self.retries or 0):
                raise  # a registry that is busy, a Variable that could not be read: nothing was said yet
            context["ti"].xcom_push(REFUSED, str(error))
            self._record(context, None, refused=str(error))
            skip(f"{target}.deploy" for target in poolless(self._service))
            raise Final(str(error)) from error
        self._record(context, plan)
        if not plan.dry_run:
            variables.freeze(self.service_name, plan.service, context["run_id"])
            kept.keep_plan(plan)
        for number, wave in enumerate(plan.waves, start=1):
            self.log.info("wave %d: %s", number, ", ".join(wave))
        self._tell(context, plan)
        return plan.dump()

    def _tell(self, context: Context, plan: Plan) -> None:
        release, told = plan.release, plan.service["notify"]
        if isinstance(told, list) and not plan.dry_run:
            about = {"service": plan.name, "version": release.version, "reason": release.reason}
            message = f"{plan.name} {release.version}: started on {', '.join(plan.selected)}"
            notify((each for each in told if isinstance(each, dict)), context, "started", message=message, **about)

    def _record(self, context: Context, plan: Plan | None, refused: str = "") -> None:
        """Open this run's record, once the one of a run that died is closed; ``finalize`` says how this one ended."""
        release = self._asked(context) if plan is None else plan.release
        if release is None or self._service is None or (plan is not None and plan.dry_run):
            return
        agree(context, self.service_name, self._service.targets)
        with recording():
            record = new_record(context, self.dag_id, release, now=self._clock.time())
            if plan is None:
                if release.rollback:
                    record = record.to(kind="rollback", image="")
                record = record.to(status=Status.NOT_STARTED, outcome=refused, met=False, ended_at=self._clock.time())
            else:
                platforms = {target: str(plan.config(target)["platform"]) for target in plan.selected}
                parts = tuple(TargetRecord(target=name, platform=platform) for name, platform in platforms.items())
                kind = "rollback" if plan.rollback else "release"
                past = self._overridden(context, plan)
                record = record.to(targets=parts, config_hash=plan.config_hash, kind=kind, overrides=past)
            keep_record(context, record)

    def _asked(self, context: Context) -> Release | None:
        """What a refused run wanted to release; None when it named no version, or wanted only a plan."""
        try:
            conf = self._conf(context)
        except SpecError:  # an event that says nothing of ours
            return None
        version = conf.get("version") or (self._service and self._service.version)
        if self._service is None or not version or conf.get("dry_run"):
            return None
        return Release(
            service=self.service_name,
            version=f"{version!s:.128}",
            image=f"{self._service.artifact.image}:{version!s:.128}",
            release_id="",
            reason=str(conf.get("reason") or ""),
            force=conf.get("force") is True,
            rollback=conf.get("rollback") is True,
        )

    def _conf(self, context: Context) -> Mapping[str, Any]:
        """What the run was asked for, by whoever started it or by the release that it promotes."""
        conf = {**context["params"], **(context["dag_run"].conf or {})}
        source = promoted(context, self._service.promote if self._service else None)
        return conf if source is None else {**conf, "version": source.version, "reason": source.said}

    def _plan(self, context: Context) -> Plan:
        service = self._service
        if service is None:
            raise SpecError("is no longer in the catalog; add it again", service=self.service_name)
        store = context["asset_state_store"][journal_asset(self.service_name)]
        conf, source = self._conf(context), promoted(context, service.promote)
        plan = make_plan(self.service_name, service, conf, dag_id=self.dag_id, run_id=context["run_id"])
        if source is not None:
            same = {"image": source.image_in(service.artifact.image), "digest": source.digest}
            plan = plan.model_copy(update={"source": source, "release": plan.release.model_copy(update=same)})
        else:
            plan = resolved(plan, service, store)
        if plan.dry_run:
            self._show(context, plan, service, store)
        else:
            self._of_this_catalog(context)
        if why := missed(context, service) or passed_over(context, plan, service):
            raise SpecError(why, service=self.service_name)
        hold(self, context, plan, service, self._clock, targets_of=self._targets_of)
        self._in_time(context, plan)
        if service.rollback.in_doubt == "reconcile" and not (plan.dry_run or plan.release.force):
            self._reconcile(context, plan, service)
        if found := refusals(plan, service, store, made=pools.known(), run=this_run(context, self.dag_id)):
            raise SpecError(found, service=self.service_name)
        return plan

    def _show(self, context: Context, plan: Plan, service: Service, store: Store) -> None:
        """Push what the release would do, for machines and for people."""
        others = context["asset_state_store"]
        missing = lacking(service, self._targets_of, lambda name: others[journal_asset(name)])
        run = this_run(context, self.dag_id)
        found = preview(plan, service, store, made=pools.known(), run=run, lacking=missing)
        text = markdown(found)
        context["ti"].xcom_push(PREVIEW, found.dump())
        context["ti"].xcom_push(f"{PREVIEW}_markdown", text)
        for line in text.splitlines():
            self.log.info(line)

    def _in_time(self, context: Context, plan: Plan) -> None:
        """Refuse, or say that it will be waited, where no window is open or a freeze is on.

        What counts is the moment of the first write, so the deploys look again.
        """
        now = self._clock.time()
        found = None if plan.dry_run else closed(plan, now, platforms=platforms_of(plan))
        if found is not None and (why := refusal(plan, now)):
            raise SpecError(f"{why}; come back then, or give 'override' a reason", service=plan.name)
        if found is not None:
            self.log.warning("%s: some of it will wait, or be left out: %s", plan.name, found.reason)

    def _overridden(self, context: Context, plan: Plan) -> tuple[Override, ...]:
        """What the run's override is good for, for the record. What it will be good for may begin before the first
        write."""
        if not plan.override:
            return ()
        now, by = self._clock.time(), getattr(context["dag_run"], "triggering_user_name", None) or ""
        try:
            found = closed(plan.model_copy(update={"override": ""}), now, platforms=platforms_of(plan))
            what = found.reason if found else "nothing when it was planned, and whatever came after that"
        except SpecError as error:
            what = str(error)
        return (Override(what=what, by=by, at=now, reason=plan.override),)

    def _of_this_catalog(self, context: Context) -> None:
        """Wait until the run has the tasks of the catalog that it is planned by: a run that starts right after an edit
        has those of the catalog before it, until the DAG processor has read it again.

        :raises SpecError: it has not within `PARSED_WITHIN`.
        """
        self._forget_leftover(context)
        until, wanted = self._clock.time() + PARSED_WITHIN, set(self.dag.task_ids)
        while differing := wanted ^ _tasks_of(context, self.dag_id):
            named = ", ".join(sorted(differing)[:4])
            if self._clock.time() >= until:
                raise SpecError(
                    f"the catalog was changed, and after {PARSED_WITHIN:g} s this run still has the tasks of the one "
                    f"before (they differ in {named}); see that the DAG processor reads it, and release again",
                    service=self.service_name,
                )
            self.log.info("waiting until the DAG processor has read the changed catalog: %s", named)
            self._clock.sleep(PARSED_AGAIN)

    def _forget_leftover(self, context: Context) -> None:
        """Thaw the config of a run that was deleted, or ended without its ``finalize``: the DAG is still made of it."""
        kept, run_id = variables.frozen(self.service_name), context["run_id"]
        if kept is not None and kept.run_id != run_id and not variables.under_way(self.dag_id, kept.run_id):
            variables.thaw(self.service_name, kept.run_id)

    def _reconcile(self, context: Context, plan: Plan, service: Service) -> None:
        """Settle what runs that are over left in doubt where this one releases; what stays so is refused afterwards,
        with the facts."""
        found = doubts(context, self.service_name, plan.selected)
        for target, why in reconcile(context, self.service_name, service.targets, found, self._clock).items():
            was, now = facts(found[target]), why or f"now {came_to(found[target])}"
            self.log.warning("%s/%s: in doubt: %s; %s", self.service_name, target, was, now)

    def on_kill(self) -> None:
        """Stop waiting; what was being reconciled stays in doubt, and its journal says how far it came."""
        self._clock.stop()


def _tasks_of(context: Context, dag_id: str) -> set[str]:
    """Ids of the tasks that the scheduler has for this run."""
    run_id = context["run_id"]
    states = context["ti"].get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
    return {task_id for task_id, state in states.items() if str(state) != "removed"}
