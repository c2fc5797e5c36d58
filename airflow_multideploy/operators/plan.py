"""The first task of a release: freezes the config, checks the conf, and refuses before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook, BaseOperator, Context

from airflow_multideploy import variables
from airflow_multideploy.core.errors import MultideployError, PlatformError, SpecError
from airflow_multideploy.core.models import Service
from airflow_multideploy.core.plan import Plan, make_plan
from airflow_multideploy.core.reconcile import facts
from airflow_multideploy.core.rollout import Rollout
from airflow_multideploy.operators.reconcile import doubts, reconcile
from airflow_multideploy.operators.release import REFUSED
from airflow_multideploy.operators.state import Final, TaskClock, journal, journal_asset
from airflow_multideploy.platforms import adapter, existing


class PlanOperator(BaseOperator):
    """Resolves what this run releases where, and pushes it as the plan that every later task of the run reads.

    Refuses, before anything is written to a platform: unknown conf keys, a bad version, an unknown target, a target
    that another run left in doubt (with ``in_doubt: reconcile`` it is settled first), a version that was rolled back
    before, a Connection that does not exist.

    :param name: the service's name.
    :param service: the service as the catalog has it now; None when the catalog no longer has it.
    """

    ui_color = "#eef2fb"

    def __init__(self, *, name: str, service: Service | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.service_name = name
        self._service = service
        self._clock = TaskClock()
        self.inlets = [*self.inlets, journal_asset(name)]

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, check the journals, freeze; returns the plan as JSON."""
        try:
            plan = self._plan(context)
        except MultideployError as error:
            context["ti"].xcom_push(REFUSED, str(error))
            raise Final(str(error)) from error
        variables.freeze(self.service_name, plan.service, context["run_id"])
        for number, wave in enumerate(plan.waves, start=1):
            self.log.info("wave %d: %s", number, ", ".join(wave))
        return plan.dump()

    def _plan(self, context: Context) -> Plan:
        service = self._service
        if service is None:
            raise SpecError("is no longer in the catalog; add it again", service=self.service_name)
        conf: Mapping[str, Any] = {**context["params"], **(context["dag_run"].conf or {})}
        plan = make_plan(self.service_name, service, conf, dag_id=self.dag_id, run_id=context["run_id"])
        if service.artifact.registry_conn_id is not None and service.build is None:
            plan = self._pin(plan, service)
        if service.rollback.in_doubt == "reconcile" and not (plan.dry_run or plan.release.force):
            self._reconcile(context, service)
        refusals = self._refusals(context, plan)
        if refusals:
            raise SpecError(refusals, service=self.service_name)
        return plan

    def _pin(self, plan: Plan, service: Service) -> Plan:
        """The plan with the tag resolved to its digest, so that every platform gets the same bits."""
        from airflow_multideploy.registry import connect, resolve

        connection = BaseHook.get_connection(str(service.artifact.registry_conn_id))
        image = connect(service.artifact.image, connection).repository.name
        digest = resolve(image, plan.release.version, connection)
        release = plan.release.model_copy(update={"image": f"{image}@{digest}", "digest": digest})
        return plan.model_copy(update={"release": release})

    def _reconcile(self, context: Context, service: Service) -> None:
        """Settle what runs that are over left in doubt; what stays so is refused afterwards, with the facts."""
        found = doubts(context, self.service_name, service.targets)
        for target, why in reconcile(context, self.service_name, service.targets, found, self._clock).items():
            was = facts(found[target])
            self.log.warning("%s/%s: in doubt: %s; %s", self.service_name, target, was, why or "now verified back")

    def on_kill(self) -> None:
        """Stop waiting; what was being reconciled stays in doubt, and its journal says how far it came."""
        self._clock.stop()

    def _refusals(self, context: Context, plan: Plan) -> list[str]:
        found = []
        for target in plan.selected:
            platform = adapter(plan.config(target), service=self.service_name, target=target)
            try:
                with existing(platform.config.conn_id, platform.error):
                    BaseHook.get_connection(platform.config.conn_id)
            except PlatformError as error:
                found.append(str(error))
            rollout = Rollout(
                platform,
                journal(context, self.service_name, target),
                self._clock,
                dag_id=self.dag_id,
                run_id=context["run_id"],
                clear=getattr(context["dag_run"], "clear_number", None) or 0,
            )
            if (why := rollout.refuse(plan.release)) is not None:
                found.append(why)
        return found
