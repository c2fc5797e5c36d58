"""What is done to a release under way, and when."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from tests.chaos.stack import NEW, Stack

WRITES = ("deploy before", "deploy late", "deploy after", "rollback before", "rollback late", "rollback after")
"""``before`` its effect (a client that dies takes it along), or ``late``: its effect comes when somebody else has
written meanwhile, or a long while later; ``after`` its effect and before its answer."""
WAITING = ("deploy waiting", "rollback waiting")
READY = ("deploy ready",)
"""The platform has come to rest, and the task that waits for it does not know yet."""
ENDED = ("after success", "after rollback", "after cancel")
"""``cancel``: the run was marked failed in mid-deploy, and has undone what it did."""
TAIL = ("finalize queued",)
"""The last task is on its way to a worker, or has just begun."""


@dataclass(frozen=True)
class Cell:
    """One kill at one instant of one release.

    :param platform: the platform of its target ``hit``; the other target's is always http.
    :param deferrable: its tasks wait in the triggerer.
    """

    kill: Kill
    instant: str
    platform: str
    deferrable: bool

    @property
    def service(self) -> str:
        """Its service, and the resource it is released to."""
        return f"{self.kill.name} {self.instant}".replace(" ", "-")

    @property
    def stage(self) -> str:
        """``deploy``, ``rollback``, ``finalize`` or ``after``."""
        return self.instant.split()[0]

    @property
    def moment(self) -> str:
        """The second word of its instant."""
        return self.instant.split()[1]


@dataclass
class Started:
    """A cell whose release is under way."""

    cell: Cell
    stack: Stack
    run_id: str = ""
    began: float = 0.0
    struck: float = 0.0
    calls: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def task_id(self) -> str:
        """The task that is hit."""
        return "rollback.hit" if self.cell.stage == "rollback" else "hit.deploy"

    def process(self) -> psutil.Process:
        """The process of that task."""
        instance = self.stack.instance(self.cell.service, self.run_id, self.task_id)
        return self.stack.task_process(str(instance["id"]))

    def rest(self, method: str, path: str, document: dict[str, object]) -> None:
        """A call on behalf of a person at the UI."""
        self.stack.api(method, f"/dags/{self.cell.service}{path}", json=document)

    def clear(self, task_id: str) -> None:
        """Clear a task and what follows it, as the UI does by default."""
        document = {"dry_run": False, "dag_run_id": self.run_id, "task_ids": [task_id], "include_downstream": True}
        self.rest("POST", "/clearTaskInstances", {**document, "only_failed": False, "reset_dag_runs": True})


@dataclass(frozen=True)
class Kill:
    """A way to harm releases.

    :param strike: does it, to all that are under way at once.
    :param instants: where it makes sense.
    :param mend: what an operator, or the machine, does afterwards.
    :param shared: it hits everything that runs, so that cells share it and nothing else runs meanwhile.
    :param client_dies: whoever waits for a platform's answer is gone at once.
    :param away: seconds until it is mended.
    :param in_worker: it needs a task that waits in its worker, not in the triggerer.
    """

    name: str
    strike: Callable[[Stack, Sequence[Started]], None]
    instants: tuple[str, ...]
    mend: Callable[[Stack], None] | None = None
    shared: bool = False
    client_dies: bool = False
    away: float = 4.0
    in_worker: bool = False


def _signal(number: signal.Signals, *, supervisor: bool = False, task: bool = True) -> Callable[..., None]:
    def strike(stack: Stack, started: Sequence[Started]) -> None:
        for one in started:
            process = one.process()
            hit = ([process.parent()] if supervisor else []) + ([process] if task else [])
            for victim in hit:
                victim.send_signal(number)

    return strike


def _component(name: str, *, tree: bool = False) -> Callable[..., None]:
    return lambda stack, started: stack.airflow.kill(name, tree=tree)


def _start(name: str) -> Callable[[Stack], None]:
    return lambda stack: stack.airflow.start_component(name)


def _workers(stack: Stack, started: Sequence[Started]) -> None:
    """The Celery workers that run the tasks, as when their machines are lost."""
    running = [one.process() for one in started if one.cell.moment != "waiting"]
    for name in stack.components_of(running) or {"worker-1"}:
        stack.airflow.kill(name, tree=True)


def _start_workers(stack: Stack) -> None:
    for name in stack.airflow.components:
        if name.startswith("worker") and name not in stack.airflow.processes:
            stack.airflow.start_component(name)


def _mark_task(stack: Stack, started: Sequence[Started]) -> None:
    for one in started:
        one.rest("PATCH", f"/dagRuns/{one.run_id}/taskInstances/{one.task_id}", {"new_state": "failed"})


def _mark_run(stack: Stack, started: Sequence[Started]) -> None:
    for one in started:
        one.rest("PATCH", f"/dagRuns/{one.run_id}", {"state": "failed"})


def _clear(stack: Stack, started: Sequence[Started]) -> None:
    for one in started:
        one.clear(one.task_id)


def _clear_rollback(stack: Stack, started: Sequence[Started]) -> None:
    for one in started:
        one.clear("rollback.hit")


def kills(executor: str) -> list[Kill]:
    """All kills that make sense on an executor."""
    machine = Kill(
        "scheduler and its tasks",
        _component("scheduler", tree=True),
        (*WRITES, *WAITING),
        _start("scheduler"),
        shared=True,
        client_dies=True,
    )
    worker = (
        Kill("worker", _workers, (*WRITES, *WAITING), _start_workers, shared=True, client_dies=True)
        if executor == "celery"
        # There a worker process is one task's supervisor: lost with its task, as when its machine is lost.
        else Kill(
            "worker", _signal(signal.SIGKILL, supervisor=True), (*WRITES, *WAITING), client_dies=True, in_worker=True
        )
    )
    return [
        Kill("nothing", lambda stack, started: None, ("deploy after", "rollback after")),
        Kill("kill task", _signal(signal.SIGKILL), (*WRITES, *WAITING), client_dies=True, in_worker=True),
        Kill(
            "kill supervisor", _signal(signal.SIGKILL, supervisor=True, task=False), (*WRITES, *WAITING), in_worker=True
        ),
        worker,
        Kill("term task", _signal(signal.SIGTERM), (*WRITES, *WAITING), in_worker=True),
        Kill("mark task failed", _mark_task, (*WRITES, *WAITING)),
        Kill("mark run failed", _mark_run, (*WRITES, *WAITING)),
        Kill("clear running", _clear, WRITES),
        Kill("clear deferred", _clear, (*WAITING, *READY)),
        Kill("clear ended", _clear, ENDED),
        Kill("clear rollback", _clear_rollback, ENDED),
        Kill("triggerer", _component("triggerer"), (*WAITING, "deploy after"), _start("triggerer"), shared=True),
        Kill("scheduler", _component("scheduler"), (*WRITES, *WAITING), _start("scheduler"), shared=True),
        *([machine] if executor == "local" else []),
        Kill("api-server", _component("api-server"), (*WRITES, *WAITING), _start("api-server"), shared=True),
        # Longer than a worker that was given a task asks for it: the task fails without ever having begun.
        Kill("api-server away", _component("api-server"), TAIL, _start("api-server"), shared=True, away=25),
        Kill("database", lambda stack, started: stack.postgres.restart(), (*WRITES, *WAITING), shared=True),
    ]


PLATFORMS = ("http", "aws_ecs", "azure_web_app", "http", "gcp_cloud_run", "azure_web_app", "http", "gcp_cloud_run")
"""In turn over a kill's instants; each kill begins elsewhere."""
SHORT: tuple[str, ...] = (
    "nothing deploy after",
    "kill task deploy after",
    "kill supervisor deploy before",
    "mark run failed deploy waiting",
)
SHORT += ("scheduler deploy after", "scheduler rollback before", "clear running rollback after")


def cells(executor: str, *, only: str = "", short: bool = False) -> list[Cell]:
    """The cells of one pass, platforms in turn."""
    found: list[Cell] = []
    for number, kill in enumerate(kills(executor)):
        for turn, instant in enumerate(kill.instants):
            platform = PLATFORMS[(3 * number + turn) % len(PLATFORMS)]
            deferrable = (
                not kill.in_worker if instant in (*WAITING, *READY, "after cancel") else (number + turn) % 2 == 0
            )
            found.append(Cell(kill, instant, platform, deferrable))
    return [
        cell
        for cell in found
        if only in f"{cell.kill.name} {cell.instant}" and (not short or f"{cell.kill.name} {cell.instant}" in SHORT)
    ]


def catalog(chosen: Sequence[Cell]) -> dict[str, dict[str, object]]:
    """One service per cell, with the targets ``hit`` and ``other``."""
    return {
        cell.service: {
            "deferrable": cell.deferrable,
            "targets": {
                "hit": {"platform": cell.platform, "resource": cell.service},
                "other": {"platform": "http", "resource": f"{cell.service}-other"},
            },
        }
        for cell in chosen
    }


RELEASED = {"version": NEW, "reason": "chaos"}
