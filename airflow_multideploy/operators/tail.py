"""Wiring: what follows the deploys of a release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TaskGroup

from airflow_multideploy.core.models import Policy, Strategy
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.release import ENDED, AggregateStatusOperator, FinalizeOperator
from airflow_multideploy.operators.rollback import RollbackOperator

PATIENT = 4
"""At least so many further tries have the tasks that only look and say, 5, 10, 20 and 40 seconds or a little more
apart: an api-server or a database that restarts must not cost a release its verdict."""


def finish(
    deploys: Sequence[DeployOperator],
    *,
    policy: Policy | dict[str, int] = "all",
    strategy: Strategy = "all",
    keep_on_cancel: bool = False,
    notify: Sequence[Mapping[str, Any]] = (),
    plan_task_id: str | None = None,
    build_task_id: str | None = None,
    group: str = "rollback",
    deferrable: bool = True,
    retries: int = 2,
    **operator_args: Any,
) -> FinalizeOperator:
    """The tail of a release: a mark that the deploys have ended, aggregate, rollbacks in the reverse order of the
    deploys, finalize; wired and returned.

    :param deploys: the deploy tasks, already wired among each other.
    :param retries: of the rollbacks; aggregate and finalize have `PATIENT` at least.
    :param operator_args: of every task that is made here, such as ``owner``.
    :param notify: who is told how it ended, each as `ReleaseNotifier` is made.
    """
    common: dict[str, Any] = {
        "deploys": deploys,
        "policy": policy,
        "strategy": strategy,
        "keep_on_cancel": keep_on_cancel,
        "plan_task_id": plan_task_id,
        "build_task_id": build_task_id,
        "retry_delay": timedelta(seconds=5),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=60),
        **operator_args,
    }
    aggregate = AggregateStatusOperator(
        task_id="aggregate_status",
        rollbacks={deploy.target: f"{group}.{deploy.target}" for deploy in deploys},
        retries=max(retries, PATIENT),
        **common,
    )
    finalize = FinalizeOperator(task_id="finalize", retries=max(retries, PATIENT), notify=notify, **common)
    by_task = {deploy.task_id: deploy for deploy in deploys}
    with TaskGroup(group, tooltip="what goes back when the release does not reach its policy"):
        rollbacks = {
            deploy.task_id: RollbackOperator(
                task_id=deploy.target,
                target=deploy.target,
                deferrable=deferrable,
                retries=retries,
                **common,
            )
            for deploy in deploys
        }
    for task_id, deploy in by_task.items():
        # Of all targets below it: one in between that has nothing to undo is skipped at once, and holds nobody up.
        for upstream in deploy.get_flat_relative_ids(upstream=True) & by_task.keys():
            rollbacks[task_id] >> rollbacks[upstream]
    ended = EmptyOperator(task_id=ENDED, trigger_rule="all_done", **operator_args)
    ended.set_upstream(list(deploys))
    aggregate.set_upstream([*deploys, ended])
    aggregate.set_downstream([*rollbacks.values(), finalize])
    finalize.set_upstream(list(rollbacks.values()))
    return finalize
