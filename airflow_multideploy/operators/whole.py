"""What is wrong with a DAG as a whole, once it has all its tasks and edges: what is wired last counts too."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.finalize import FinalizeOperator
from airflow_multideploy.operators.release import ReleaseOperator
from airflow_multideploy.operators.rollback import RollbackOperator

_HEED_FAILURE = ("all_success", "none_failed", "none_failed_min_one_success")
"""Trigger rules of a task that does not run when the one before it failed."""


def flaw(finalize: FinalizeOperator, dag: DAG) -> str:
    """What would break the release that this task ends, with the remedy; an empty text where nothing does."""
    return _forgotten(dag) or _rewired(finalize, dag) or _early(finalize, dag) or _green(finalize, dag)


def _forgotten(dag: DAG) -> str:
    released = {task_id for task in dag.tasks if isinstance(task, ReleaseOperator) for task_id in task.tasks.values()}
    for task in dag.tasks:
        if isinstance(task, DeployOperator) and task.task_id not in released:
            return f"{task.task_id}: no finish has it among its deploys, so it would never go back; add it to one"
    return ""


def _rewired(finalize: FinalizeOperator, dag: DAG) -> str:
    """Rollbacks were wired as the deploys were then."""
    backs = {task.target: task for task in finalize.upstream_list if isinstance(task, RollbackOperator)}
    targets = {task_id: target for target, task_id in finalize.tasks.items() if target in backs}
    deploys = {task_id: dag.get_task(task_id) for task_id in targets}
    if len({frozenset(deploy.upstream_task_ids) for deploy in deploys.values()}) == 1:
        return ""  # so none of them is above another
    for task_id, deploy in deploys.items():
        below = backs[targets[task_id]].get_flat_relative_ids()
        for before in sorted(deploy.get_flat_relative_ids(upstream=True) & deploys.keys()):
            if backs[targets[before]].task_id not in below:
                return f"{task_id}: was put behind {before} after finish was called; wire the deploys, then call finish"
    return ""


def _early(finalize: FinalizeOperator, dag: DAG) -> str:
    own = {task.task_id for task in dag.tasks if isinstance(task, ReleaseOperator)} | finalize.upstream_task_ids
    for task in finalize.upstream_list:
        ours = isinstance(task, ReleaseOperator) or task.task_id == finalize.ended_task_id
        for after in sorted(task.downstream_task_ids - own) if ours else ():
            return (
                f"{after}: waits for {task.task_id}, which ends before the release does; let it wait for what finish "
                "returns (the arrow after a TaskGroup that holds a finish takes another task)"
            )
    return ""


def _green(finalize: FinalizeOperator, dag: DAG) -> str:
    marks = {task.ended_task_id for task in dag.tasks if isinstance(task, ReleaseOperator)}
    for task in map(dag.get_task, sorted(finalize.get_flat_relative_ids() - marks)):
        if not (task.is_teardown or task.trigger_rule in _HEED_FAILURE):
            return (
                f"{task.task_id}: comes after {finalize.task_id} with trigger rule {task.trigger_rule.value}, so a "
                "failed release would end green; tell people with finish(notify=…), or make it a teardown (as_teardown)"
            )
    return ""
