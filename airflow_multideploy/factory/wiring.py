"""Wiring: what stands before the deploys of a release, and what follows them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, TaskGroup, TriggerRule
from airflow.sdk.definitions._internal.contextmanager import TaskGroupContext

from airflow_multideploy.catalog.service import Policy, Rollback, Service, Strategy
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.aggregate import AggregateStatusOperator
from airflow_multideploy.operators.by_hand import airflows, known, model, policy_of, strategy_of
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.finalize import FinalizeOperator
from airflow_multideploy.operators.release import ENDED, checked
from airflow_multideploy.operators.rollback import RollbackOperator

FIRST: dict[str, Any] = {"priority_weight": 2, "weight_rule": "absolute"}
"""Of a rollback among all that wait for a slot of a lock's pool, where deploys have 1."""
PATIENT = 4
"""At least so many further tries have the tasks that only look and say, 5, 10, 20 and 40 seconds or a little more
apart: an api-server or a database that restarts must not cost a release its verdict."""
LONGEST = timedelta(seconds=60)
"""Between two tries, where there are more of them."""
APPROVE, DECIDE = "approve", "decide"
AGGREGATE, ROLLBACK, FINALIZE = "aggregate_status", "rollback", "finalize"
_FIXED = frozenset(
    {"task_id", "task_group", "trigger_rule", "depends_on_past", "wait_for_downstream", "execution_timeout"}
)
"""Arguments of tasks that are what they are, whoever asks."""
RETRIES = 10
"""At least so often a person may ask for a retry."""
HOUR = 3600.0


def gates(
    service: Service, first: BaseOperator, deploys: Mapping[str, DeployOperator], **operator_args: Any
) -> BaseOperator:
    """Put a service's approvals before its deploys; returns the task that the first ones wait for.

    :param first: the task that they wait for so far.
    :param deploys: by target, not wired yet.
    :param operator_args: of every gate.
    """
    own = {target: config.approval for target, config in service.targets.items() if config.approval is not None}
    if service.approval is None and not own:
        return first
    from airflow_multideploy.operators.approval import ApproveOperator  # most services do without what it imports

    operator_args = {**operator_args, "retries": max(operator_args.get("retries", 0), PATIENT)}
    if service.approval is not None:
        gate = ApproveOperator(task_id=APPROVE, gate=service.approval, **operator_args)
        first >> gate
        first = gate
        for deploy in deploys.values():
            deploy.gates = (APPROVE,)
    for target, asked in own.items():
        deploy, edges = deploys[target], service.targets[target].depends_on
        rule = TriggerRule.ALL_DONE if edges else TriggerRule.ALL_SUCCESS
        with deploy.task_group or TaskGroup(target):
            gate = ApproveOperator(
                task_id=APPROVE, gate=asked, deploy_task_id=deploy.task_id, trigger_rule=rule, **operator_args
            )
        deploy.gates += (gate.task_id,)
        gate.set_upstream([deploys[edge.target] for edge in edges] or first)
        gate >> deploy
    return first


def finish(
    deploys: Sequence[DeployOperator],
    *,
    policy: Policy | dict[str, int] = "all",
    strategy: Strategy = "all",
    manual: Mapping[str, Any] | None = None,
    keep_on_cancel: bool = False,
    notify: Sequence[Mapping[str, Any]] = (),
    plan_task_id: str | None = None,
    build_task_id: str | None = None,
    approve_task_id: str | None = None,
    group: str | None = None,
    deferrable: bool = True,
    pools: Mapping[str, str] | None = None,
    retries: int = 2,
    **operator_args: Any,
) -> FinalizeOperator:
    """The tail of a release: a mark that the deploys have ended, aggregate, rollbacks in the reverse order of the
    deploys, finalize; wired and returned.

    What waits for the release waits for what is returned. A DAG may release several services, each with its own tail.

    :param deploys: all deploy tasks of one service, already wired among each other.
    :param manual: for the strategy of that name ``users``, ``timeout`` and ``default``, as in a catalog's ``rollback``.
    :param group: the TaskGroup, made or there already, in which these tasks stand; default: none, and for the second
        tail of a DAG the one called like its service.
    :param pools: by target, the Airflow pool in which its rollback runs, before any deploy that waits for a slot there.
    :param retries: of the rollbacks; aggregate and finalize have `PATIENT` at least.
    :param operator_args: of every task that is made here, such as ``owner``.
    :param notify: who is told how it ended, each as `ReleaseNotifier` is made.
    :raises SpecError: what is asked for is no release; with the remedy.
    """
    deploys = list(deploys) if isinstance(deploys, Iterable) else [deploys]
    service = checked("finish", deploys, policy_of("finish", policy))
    _allowed(operator_args, strategy, manual, set(pools or ()) - {deploy.target for deploy in deploys})
    asked = model("finish", Rollback, {"strategy": strategy, **(manual or {})}, prefix="manual")
    if deploys[0].get_dag() is None:
        raise SpecError(f"finish: {deploys[0].task_id} is in no DAG; make the deploys in the DAG's with block")
    dag: DAG = deploys[0].dag
    for other in dag.tasks:
        if isinstance(other, FinalizeOperator) and other.service_name == service:
            raise SpecError(
                f"finish: {other.task_id} ends a release of {service!r} already; give all its deploys to one finish, "
                "or others a service_name of their own"
            )
    common: dict[str, Any] = {
        "deploys": deploys,
        "policy": policy,
        "strategy": strategy,
        "default": asked.default or "roll_back_all",
        "keep_on_cancel": keep_on_cancel,
        "plan_task_id": plan_task_id,
        "build_task_id": build_task_id,
        "approve_task_id": approve_task_id,
        "retry_delay": timedelta(seconds=5),
        "retry_exponential_backoff": 2.0,
        **({"max_retry_delay": LONGEST} if retries > PATIENT else {}),
        **operator_args,
    }
    with dag, _place(dag, group, service) as level:
        common["aggregate_task_id"], common["ended_task_id"] = level.child_id(AGGREGATE), level.child_id(ENDED)
        common["decide_task_id"] = level.child_id(DECIDE) if strategy == "manual" else None
        with TaskGroup(ROLLBACK, tooltip="what goes back when the release does not reach its policy"):
            rollbacks = {
                deploy.task_id: RollbackOperator(
                    target=deploy.target,
                    deferrable=deferrable and deploy.target not in (pools or {}),  # as in `DeployOperator`
                    retries=retries,
                    **{
                        **common,
                        "task_id": deploy.target,
                        **({"pool": pools[deploy.target], **FIRST} if pools and deploy.target in pools else {}),
                    },
                )
                for deploy in deploys
            }
        ids = {back.target: back.task_id for back in rollbacks.values()}
        head = _head(ids, asked, notify, retries, common)
        finalize = FinalizeOperator(task_id=FINALIZE, retries=max(retries, PATIENT), notify=notify, **common)
        # With a callback it would be a task with a process, and no mark of one moment.
        silent = {"on_execute_callback": None, "on_success_callback": None}
        past = {"depends_on_past": False, "wait_for_downstream": False}
        ended = EmptyOperator(task_id=ENDED, trigger_rule="all_done", **{**operator_args, **silent, **past})
    _wire(deploys, ended, head, rollbacks, finalize)
    return finalize


def _allowed(
    operator_args: Mapping[str, Any], strategy: object, manual: Mapping[str, Any] | None, strangers: set[str]
) -> None:
    """
    :param strangers: names of no target that stand in ``pools``.
    """
    if "service_name" in operator_args:
        raise SpecError("finish: service_name: is what the deploys say; give it to each of them")
    if not operator_args.keys() <= airflows():
        known("finish", operator_args, airflows().union(inspect.signature(finish).parameters))
    for key in sorted(_FIXED & operator_args.keys()):
        raise SpecError(
            f"finish: {key}: is set by finish, so that its tasks run whatever becomes of others; leave it out"
        )
    strategy_of("finish", strategy)
    if strategy != "manual" and (said := sorted(key for key, value in (manual or {}).items() if value)):
        raise SpecError(f"finish: manual.{said[0]}: nobody is asked with this strategy; set strategy='manual'")
    for target in sorted(strangers):
        raise SpecError(f"finish: pools: none of the deploys has the target {target!r}; name one that has")


@contextmanager
def _place(dag: DAG, group: str | None, service: str) -> Iterator[Any]:
    """The TaskGroup in which a release's tail stands.

    :raises SpecError: called inside another one.
    """
    if TaskGroupContext.get_current(dag) is not dag.task_group:
        raise SpecError(
            f"finish: makes {ROLLBACK!r} inside another TaskGroup; call it outside: group= puts its tasks into one"
        )
    if group is None and FINALIZE in dag.task_dict:
        group = service.replace(".", "_")
    if group is None:
        yield dag.task_group
        return
    there = dag.task_group.children.get(group)
    with there if isinstance(there, TaskGroup) else TaskGroup(group) as inner:
        yield inner


def _head(
    ids: Mapping[str, str], asked: Rollback, notify: Sequence[Mapping[str, Any]], retries: int, common: dict[str, Any]
) -> list[BaseOperator]:
    """What decides which rollbacks run: aggregate, and the person who picks, with strategy ``manual``."""
    aggregate = AggregateStatusOperator(task_id=AGGREGATE, rollbacks=ids, retries=max(retries, PATIENT), **common)
    if asked.strategy != "manual":
        return [aggregate]
    from airflow_multideploy.operators.decide import DecideOperator  # most services do without what it imports

    limits = {"users": asked.users or (), "timeout": asked.timeout or HOUR, "retries": max(retries, RETRIES)}
    common = {"max_retry_delay": LONGEST, **limits, **common}
    return [aggregate, DecideOperator(task_id=DECIDE, rollbacks=ids, notify=notify, **common)]


def _wire(
    deploys: Sequence[DeployOperator],
    ended: BaseOperator,
    head: Sequence[BaseOperator],
    rollbacks: Mapping[str, RollbackOperator],
    finalize: FinalizeOperator,
) -> None:
    """
    :param head: aggregate, and decide where there is one.
    :param rollbacks: by the id of the deploy task.
    """
    alike = len({frozenset(deploy.upstream_task_ids) for deploy in deploys}) == 1  # so none of them is above another
    for deploy in () if alike else deploys:
        # Of all targets below it: one in between that has nothing to undo is skipped at once, and holds nobody up.
        for upstream in deploy.get_flat_relative_ids(upstream=True) & rollbacks.keys():
            rollbacks[deploy.task_id] >> rollbacks[upstream]
    ended.set_upstream(list(deploys))
    head[0].set_upstream(list(deploys))  # not the mark: the scheduler sets it when it starts this, not a second before
    head[0].set_downstream(list(head[1:]))
    for task in head:
        task.set_downstream([*rollbacks.values(), finalize])
    finalize.set_upstream([ended, *rollbacks.values()])
