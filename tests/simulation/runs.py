"""What the simulated Airflow keeps: runs, tasks and attempts; and what an operator sees of it."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from airflow_multideploy.testing.fake import MemoryStore

if TYPE_CHECKING:
    from tests.simulation.scheduler import SimAirflow

FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass(eq=False)
class Task:
    """A task instance."""

    run: Run
    operator: Any
    state: str | None = None
    tries: int = 0
    most_tries: int = 1
    xcom: dict[str, str] = field(default_factory=dict)
    kept: MemoryStore = field(default_factory=MemoryStore)
    """Its state store."""
    attempt: Attempt | None = None
    waiting: object = None
    came: set[str] = field(default_factory=set)
    """Everything that it has been, for the oracle."""

    @property
    def name(self) -> str:
        return str(self.operator.task_id)


@dataclass(eq=False)
class Attempt:
    """A process that works on a task; Airflow may have given up on it long ago."""

    task: Task
    stopped: bool = False
    dead: bool = False
    lost_at: float | None = None
    """When Airflow gave up on it."""


@dataclass(eq=False)
class Run:
    """A DagRun."""

    dag: DAG
    run_id: str
    conf: dict[str, Any]
    began: dt.datetime
    due: dt.datetime
    tasks: dict[str, Task] = field(default_factory=dict)
    state: str = "running"
    clear_number: int = 0
    cancelled: bool = False
    """Marked failed, ever; ``stopped``: and not cleared since."""
    stopped: bool = False
    cut: bool = False
    """Marked failed before all its deploys had ended."""
    events: dict[str, Any] = field(default_factory=dict)

    def value(self, task_id: str, key: str = "return_value") -> Any:
        """An XCom."""
        task = self.tasks.get(task_id)
        return json.loads(task.xcom[key]) if task is not None and key in task.xcom else None


class Ti:
    """What our operators use of ``context["ti"]``."""

    def __init__(self, airflow: SimAirflow, task: Task) -> None:
        self._airflow, self._task = airflow, task

    @property
    def try_number(self) -> int:
        return self._task.tries

    @property
    def max_tries(self) -> int:
        return self._task.most_tries

    def xcom_push(self, key: str, value: Any) -> None:
        self._task.xcom[key] = json.dumps(value)

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self._task.run.value(task_ids, key)

    @property
    def dag_id(self) -> str:
        return self._task.run.dag.dag_id

    def get_task_states(
        self, *, dag_id: str, run_ids: list[str], task_ids: list[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        return self._airflow.task_states(dag_id, run_ids, task_ids)

    def get_dr_count(self, *, dag_id: str, states: list[str], run_ids: list[str] | None = None) -> int:
        wanted = (run for run in self._airflow.runs if run.dag.dag_id == dag_id and run.state in states)
        return sum(run_ids is None or run.run_id in run_ids for run in wanted)


class Stores:
    """``context["asset_state_store"]``: only assets that the task has as inlet or outlet."""

    def __init__(self, airflow: SimAirflow, operator: Any) -> None:
        self._airflow = airflow
        self._known = {asset.name for asset in (*operator.inlets, *operator.outlets)}

    def __getitem__(self, asset: Any) -> MemoryStore:
        if asset.name not in self._known:
            raise KeyError(asset.name)
        return self._airflow.store(asset.name)


def context_of(airflow: SimAirflow, task: Task) -> dict[str, Any]:
    """The context of an attempt that starts now; it stays so, whatever becomes of the run."""
    run = task.run
    return {
        "ti": Ti(airflow, task),
        "dag": run.dag,
        "dag_run": SimpleNamespace(
            conf=run.conf, clear_number=run.clear_number, start_date=run.began, run_after=run.due
        ),
        "run_id": run.run_id,
        "params": {},
        "task_state_store": task.kept,
        "asset_state_store": Stores(airflow, task.operator),
        "outlet_events": defaultdict(lambda: SimpleNamespace(extra=None), run.events),
    }


def effective_leaves(dag: DAG) -> list[str]:
    """The tasks that make a run's state: teardowns do not, unless they say that they do."""

    def counts(task: Any) -> bool:
        return bool(not task.is_teardown or task.on_failure_fail_dagrun)

    def below(task: Any) -> Iterable[Any]:
        return (dag.get_task(name) for name in task.downstream_task_ids)

    return [task.task_id for task in dag.tasks if counts(task) and not any(counts(t) for t in below(task))]
