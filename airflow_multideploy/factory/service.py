"""The release DAG of one service."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, TaskGroup, TriggerRule
from airflow.sdk.definitions.param import ParamsDict

from airflow_multideploy.catalog.locks import locks
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.parse import UNTIMED
from airflow_multideploy.catalog.service import AtLeast, Service
from airflow_multideploy.catalog.windows import Scheduled
from airflow_multideploy.factory.entries import _targets_of
from airflow_multideploy.factory.form import _params
from airflow_multideploy.factory.names import BUILD, PLAN, RETRY_DELAY, RUN_TYPES, START
from airflow_multideploy.factory.wiring import APPROVE, finish, gates
from airflow_multideploy.operators.build import BuildImageOperator
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.plan import PlanOperator
from airflow_multideploy.store.assets import service_asset


def service_dag(name: str, service: Service, catalog: str | Path | None = None) -> DAG:
    """The release DAG of one service: plan → build → deploys → aggregate_status → rollbacks → finalize.

    :param catalog: the file with the services that this one requires; default: the Variables.
    """
    order, held = waves(service.targets), locks(service)
    with DAG(
        dag_id=name,
        description=service.description or f"Releases {name} to {len(service.targets)} targets",
        schedule=_schedule(service),
        start_date=START,
        catchup=False,
        allowed_run_types=RUN_TYPES,
        max_active_runs=1,
        max_active_tasks=max(16, len(service.targets)),
        tags=["multideploy", *([f"env:{service.environment}"] if service.environment else []), *service.tags],
        doc_md=describe(name, service, order),
    ) as dag:
        # Not as default_args, which Airflow copies for every class of every task.
        common: dict[str, Any] = {"owner": service.owner, "retries": service.retries, "retry_delay": RETRY_DELAY}
        first: BaseOperator = PlanOperator(
            task_id=PLAN, name=name, service=service, targets_of=partial(_targets_of, catalog), **common
        )
        if service.build is not None:
            build = BuildImageOperator(task_id=BUILD, plan_task_id=PLAN, service_name=name, **common)
            first >> build
            first = build
        build_id = BUILD if service.build is not None else None
        deploys: dict[str, DeployOperator] = {}
        for wave in order:
            for target in wave:
                pool = {"pool": held[target].pool, "weight_rule": "absolute"} if target in held else {}
                deploys[target] = _deploy(name, service, target, build_task_id=build_id, **pool, **common)
        roots = [d for target, d in deploys.items() if not service.targets[target].depends_on]
        gates(service, first, deploys, service_name=name, plan_task_id=PLAN, build_task_id=build_id, **common) >> roots
        for target, config in service.targets.items():
            for edge in config.depends_on:
                deploys[edge.target] >> deploys[target]
        _lanes(service, [deploys[target] for wave in order for target in wave])
        finish(
            [deploys[target] for target in service.targets],
            plan_task_id=PLAN,
            build_task_id=build_id,
            approve_task_id=APPROVE if service.approval else None,
            strategy=service.rollback.strategy,
            manual=service.rollback.model_dump(include={"users", "timeout", "default"}),
            notify=[settings.model_dump(mode="json") for settings in service.notify],
            deferrable=service.deferrable,
            pools={target: lock.pool for target, lock in held.items()},
            **common,
        )
    # Last: each task would copy the params that its DAG has by then, and Airflow validates and serialises every copy.
    dag.params = ParamsDict(_params(service))
    return dag


def _schedule(service: Service) -> Any:
    """What starts releases beside people: a release elsewhere that is promoted, a window that opens, or a cron."""
    if service.promote:
        return service_asset(service.promote.source)
    if isinstance(service.schedule, Scheduled):
        from airflow_multideploy.plugin.timetables import WindowTimetable

        return WindowTimetable(service.schedule.windows.model_dump(mode="json"))
    if service.schedule is None or service.schedule in UNTIMED:
        return service.schedule
    from airflow_multideploy.plugin.timetables import CronTimetable

    return CronTimetable(service.schedule, timezone="UTC")


def _lanes(service: Service, deploys: Sequence[DeployOperator]) -> None:
    """At most ``max_parallel`` at once: each deploy also waits for the end, good or bad, of the one so many before it.

    And so do the rollbacks, which go the same way in reverse.
    """
    if service.max_parallel is not None:
        for before, after in zip(deploys, deploys[service.max_parallel :], strict=False):
            before >> after
            after.trigger_rule = TriggerRule.ALL_DONE


def _deploy(name: str, service: Service, target: str, **common: Any) -> DeployOperator:
    config = service.targets[target]
    with TaskGroup(target, tooltip=config.platform):
        return DeployOperator(
            task_id="deploy",
            service_name=name,
            target=target,
            depends_on=config.depends_on,
            trigger_rule="all_done" if config.depends_on else "all_success",
            deferrable=service.deferrable,
            plan_task_id=PLAN,
            custom_name=config.platform,
            **common,
        )


def describe(name: str, service: Service, order: Sequence[Sequence[str]]) -> str:
    """The DAG's documentation: targets, order and policies, as Markdown."""
    policy = service.success.policy
    success = f"at least {policy.at_least} targets" if isinstance(policy, AtLeast) else f"{policy} targets"
    lines = [
        f"# {name}",
        service.description,
        f"Releases `{service.artifact.image}`. Succeeds with **{success}**; otherwise rolls back "
        f"**{service.rollback.strategy}**. Marking a run failed: **{service.rollback.cancel}**.",
        "",
        "| wave | target | platform | after | critical | time-out |",
        "|---|---|---|---|---|---|",
    ]
    for number, wave in enumerate(order, start=1):
        for target in wave:
            config = service.targets[target]
            edges = [e.target if e.when == "succeeded" else f"{e.target} {e.when}" for e in config.depends_on]
            after = ", ".join([*edges, *([f"when `{config.when}`"] if config.when else [])])
            critical = "" if config.critical is None else str(config.critical).lower()
            lines.append(f"| {number} | {target} | {config.platform} | {after} | {critical} | {config.timeout:g} s |")
    return "\n".join(lines)
