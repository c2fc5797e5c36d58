"""A small Airflow: states, tries, trigger rules, teardowns, XCom, deferrals, kills and clears, on a clock that jumps.

It runs real operators of real DAGs. Each attempt of a task is a greenlet, so attempts interleave, and one that was
thought dead can sleep and go on later. What it does is what Airflow 3.3 was measured to do (docs/measured.md).
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import json
import logging
import random
from collections.abc import Callable
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped, TaskDeferred
from greenlet import getcurrent, greenlet

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.operators.clock import Stopped
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Observation
from airflow_multideploy.release.wait import Watch
from airflow_multideploy.testing.fake import Crash, FakeClock, MemoryStore
from tests.simulation.runs import FINISHED, Attempt, Run, Task, context_of, effective_leaves

UNDER_WAY = frozenset({"running", "deferred"})
MOST_STEPS = 20_000
LONGEST = 200_000.0
"""Simulated seconds: no chain of deadlines and retries of one schedule comes near."""
RETRY_DELAY, NOTICED, HARD_KILL = 5.0, 1.0, 6.0
SILENT = logging.Logger("simulation", level=logging.CRITICAL + 1)


class EndlessError(Exception):
    """A run does not end."""


class SimClock(FakeClock):
    """What all operators take for their clock: ``sleep`` lets the others run until it is over."""

    airflow: SimAirflow

    def sleep(self, seconds: float) -> None:
        """Wait; as with a task's clock, being told to stop ends it."""
        if not self.airflow.pause(seconds):
            super().sleep(seconds)  # a thread of its own, or outside a task
        self.check()

    def check(self) -> None:
        """Raise `Stopped` when this attempt was told to stop."""
        attempt = self.airflow.attempt
        if attempt is not None and attempt.stopped:
            raise Stopped("the task was told to stop")

    def stop(self) -> None:
        """What an operator's ``on_kill`` does."""
        if self.airflow.killing is not None:
            self.airflow.killing.stopped = True


CLOCK = SimClock()


class SimAirflow:
    """Scheduler, triggerer and workers.

    :param store: makes the state store of an asset.
    :param rng: decides who comes first where nothing else does.
    """

    def __init__(self, *, store: Callable[[str], MemoryStore], rng: random.Random) -> None:
        self.clock, self.rng = CLOCK, rng
        self.runs: list[Run] = []
        self.stores: dict[str, MemoryStore] = {}
        self.killing: Attempt | None = None
        self.steps = 0
        self.point: Callable[[Attempt, str], None] = lambda attempt, name: None
        self.over: Callable[[Run], None] = lambda run: None
        self._make_store = store
        self._queue: list[tuple[float, float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._attempts: dict[greenlet, Attempt] = {}
        self._hub = getcurrent()
        CLOCK.airflow, CLOCK.now = self, 1_000_000.0

    def store(self, asset: str) -> MemoryStore:
        """An asset's state store."""
        if asset not in self.stores:
            self.stores[asset] = self._make_store(asset)
        return self.stores[asset]

    @property
    def attempt(self) -> Attempt | None:
        """Whose code is running."""
        return self._attempts.get(getcurrent())

    def at(self, delay: float, action: Callable[[], object]) -> None:
        """Do it that many seconds from now."""
        entry = (self.clock.now + delay, self.rng.random(), next(self._numbers), action)
        heapq.heappush(self._queue, entry)

    def drain(self, run: Run | None = None) -> None:
        """Go on until nothing is left to happen, or until that run is over.

        :raises EndlessError: there is no end to it, or a run is stuck.
        """
        began = self.clock.now
        while self._queue and (run is None or run.state == "running"):
            at, _, _, action = heapq.heappop(self._queue)
            self.clock.now = max(self.clock.now, at)
            self.steps += 1
            if self.steps > MOST_STEPS or self.clock.now - began > LONGEST:
                raise EndlessError(f"after {self.steps} steps and {self.clock.now - began:.0f} seconds")
            action()
        stuck = [f"{run.run_id}: {t.name} is {t.state}" for run in self.runs for t in run.tasks.values()]
        if any(run.state == "running" for run in self.runs):
            raise EndlessError(f"stuck: {stuck}")

    def pause(self, seconds: float) -> bool:
        """Let others run for that long; False outside an attempt.

        :raises Crash: the process was killed meanwhile.
        """
        me = getcurrent()
        attempt = self._attempts.get(me)
        if attempt is None:
            return False
        self.at(seconds, me.switch)
        self._hub.switch()
        if attempt.dead:
            raise Crash("killed")
        return True

    # What people and machines do to a run.

    def trigger(self, dag: DAG, run_id: str, conf: dict[str, Any]) -> Run:
        """A new DagRun."""
        run = Run(dag, run_id, conf, self._now(), self._now())
        for operator in dag.tasks:
            run.tasks[operator.task_id] = Task(run, operator, most_tries=(operator.retries or 0) + 1)
        self.runs.append(run)
        self._schedule(run)
        return run

    def task_states(self, dag_id: str, run_ids: list[str], task_ids: list[str] | None) -> dict[str, dict[str, Any]]:
        """By run and task; all tasks where none is named."""
        runs = [run for run in self.runs if run.run_id in run_ids and run.dag.dag_id == dag_id]
        known = {run.run_id: {name: task.state for name, task in run.tasks.items()} for run in runs}
        return {
            run_id: {name: states[name] for name in states.keys() & set(task_ids or states)}
            for run_id, states in known.items()
        }

    def parsed(self, run: Run, tasks: dict[str, Task]) -> None:
        """The DAG processor has read the catalog: the run has these tasks too."""
        run.tasks |= tasks
        self._schedule(run)

    def lose(self, attempt: Attempt) -> None:
        """Take an attempt for dead, whatever it goes on to do."""
        if attempt.task.attempt is attempt:
            attempt.lost_at = self.clock.now
            self._failed(attempt.task)

    def fail_run(self, run: Run) -> None:
        """Mark it failed: what is under way is failed and killed, what waits is skipped; teardowns go on."""
        if run.state != "running":
            return
        run.cancelled = run.stopped = True
        run.cut = any(t.name.endswith(".deploy") and t.state not in FINISHED for t in run.tasks.values())
        for task in run.tasks.values():
            if not task.operator.is_teardown and task.state not in FINISHED:
                if task.state in UNDER_WAY:
                    self.fail_task(task)
                else:
                    self._set(task, "skipped")
        self._schedule(run)

    def fail_task(self, task: Task) -> None:
        """Mark it failed; its process is told so a moment later."""
        if task.state in UNDER_WAY:
            self._let_go(task)
            self._set(task, "failed")
            self._schedule(task.run)

    def delete(self, run: Run) -> None:
        """Delete it while nothing of it runs in a process, and with it what waits."""
        self.runs.remove(run)
        self._queue.clear()

    def clear(self, *tasks: Task, downstream: bool = True) -> None:
        """Clear tasks of one run, with everything after them or without."""
        if not tasks:
            return
        run, cleared, todo = tasks[0].run, set[str](), [task.name for task in tasks]
        while todo:
            name = todo.pop()
            if name not in cleared:
                cleared.add(name)
                todo += run.tasks[name].operator.downstream_task_ids if downstream else ()
        run.clear_number += 1
        run.stopped = False
        run.began = run.began if run.state == "running" else self._now()
        run.state = "running"
        for name in cleared:
            self._reset(run.tasks[name])
        self._schedule(run)

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock.now, dt.UTC)

    def _reset(self, task: Task) -> None:
        task.most_tries = task.tries + (task.operator.retries or 0) + 1
        busy = task.attempt is not None
        self._let_go(task)
        task.state = "restarting" if busy else None
        if busy:
            self._later(task, HARD_KILL + 1, lambda: self._restarted(task))

    def _restarted(self, task: Task) -> None:
        task.state = None
        self._schedule(task.run)

    def _let_go(self, task: Task) -> None:
        attempt, task.attempt, task.waiting = task.attempt, None, None
        if attempt is not None:
            attempt.lost_at = self.clock.now
            self.at(NOTICED, lambda: self._tell(attempt))
            self.at(HARD_KILL, lambda: setattr(attempt, "dead", True))

    def _tell(self, attempt: Attempt) -> None:
        self.killing = attempt
        attempt.task.operator.on_kill()
        self.killing = None

    # The scheduler.

    def _set(self, task: Task, state: str) -> None:
        task.state = state
        task.came.add(state)
        if state in FINISHED:
            task.waiting = None

    def _later(self, task: Task, delay: float, action: Callable[[], object]) -> None:
        """Go on with a task then, unless something else becomes of it first."""
        token = task.waiting = object()
        self.at(delay, lambda: task.waiting is token and action())

    def _schedule(self, run: Run) -> None:
        again = True
        while again:
            again = False
            for task in run.tasks.values():
                if task.state is None:
                    self._consider(task)
                    again = again or task.state in FINISHED
        if run.state == "running" and all(task.state in FINISHED for task in run.tasks.values()):
            leaves = effective_leaves(run.dag)
            bad = any(run.tasks[name].state in ("failed", "upstream_failed") for name in leaves)
            run.state = "failed" if bad else "success"
            self.over(run)

    def _consider(self, task: Task) -> None:
        known = task.run.tasks
        states = [known[name].state for name in task.operator.upstream_task_ids if name in known]
        if task.operator.trigger_rule == "all_success" and not all(s == "success" for s in states):
            if any(s in ("failed", "upstream_failed") for s in states):
                self._set(task, "upstream_failed")
            elif all(s in FINISHED for s in states):
                self._set(task, "skipped")
        elif all(s in FINISHED for s in states):
            task.state = "queued"
            self._later(task, self.rng.uniform(0.1, 1.5), lambda: self._start(task))

    def _start(self, task: Task) -> None:
        task.tries += 1
        task.xcom.clear()
        self._work(task, lambda context: task.operator.execute(context))

    def _work(self, task: Task, call: Callable[[Any], Any]) -> None:
        self._set(task, "running")
        attempt = task.attempt = Attempt(task)
        context = context_of(self, task)

        def process() -> None:
            try:
                self.point(attempt, "start")
                self._ended(attempt, call(context))
            except BaseException as error:
                self._raised(attempt, error)
            del self._attempts[getcurrent()]

        worker = greenlet(process)
        self._attempts[worker] = attempt
        worker.switch()

    def _ended(self, attempt: Attempt, value: Any) -> None:
        task = attempt.task
        if task.attempt is not attempt:
            return
        if value is not None:
            task.xcom["return_value"] = json.dumps(value)
        self._finish(task, "success")

    def _raised(self, attempt: Attempt, error: BaseException) -> None:
        """What Airflow makes of how a process ended; nothing, when it no longer listens."""
        task = attempt.task
        if not isinstance(error, Exception | Crash | TaskDeferred):
            raise error
        if task.attempt is not attempt:
            return
        if isinstance(error, TaskDeferred):
            self._defer(task, error)
        elif isinstance(error, AirflowSkipException):
            self._finish(task, "skipped")
        elif isinstance(error, DownstreamTasksSkipped):
            for name in error.tasks:
                if name in task.run.tasks and task.run.tasks[name].state not in ("running", "success", "failed"):
                    self._set(task.run.tasks[name], "skipped")
            self._finish(task, "success")
        elif isinstance(error, AirflowFailException):
            self._finish(task, "failed")
        elif isinstance(error, AssertionError | TypeError | AttributeError | NameError):
            raise error  # a bug, of ours or of the simulation: not what a platform or a worker does
        else:
            self._failed(task)

    def _finish(self, task: Task, state: str) -> None:
        task.attempt = None
        self._set(task, state)
        self._schedule(task.run)

    def _failed(self, task: Task) -> None:
        task.attempt = None
        if task.tries >= task.most_tries:
            self._finish(task, "failed")
            return
        task.state = "up_for_retry"
        self._later(task, RETRY_DELAY, lambda: self._start(task))

    # The triggerer.

    def _defer(self, task: Task, deferred: TaskDeferred) -> None:
        trigger: Any = deferred.trigger
        platform = adapter(trigger.config, service=trigger.service, target=trigger.target)
        pause, earliest = platform.config.poll_interval, trigger.earliest
        watch = Watch(deadline=trigger.deadline, interval=pause, earliest=earliest, rng=self.rng)
        handle = Handle.model_validate(trigger.handle)
        task.attempt = None
        self._set(task, "deferred")

        def look() -> None:
            seen: Observation | PlatformError
            try:
                seen = platform.observe(handle)
            except PlatformError as error:
                seen = error
            judged = watch.judge(seen, now=self.clock.now)
            if not isinstance(judged, Observation):
                self._later(task, judged, look)
                return
            task.state = "queued"
            event = json.loads(json.dumps(judged.dump()))
            self._later(task, self.rng.uniform(0.1, 1.5), lambda: resume(event))

        def resume(event: dict[str, Any]) -> None:
            self._work(task, lambda context: getattr(task.operator, deferred.method_name)(context, event))

        self._later(task, min(platform.config.poll_interval, self.rng.uniform(0.7, 1.3)), look)


def ready(dag: DAG) -> DAG:
    """The same DAG, its tasks on the simulation's clock and silent."""
    for task in dag.tasks:
        operator: Any = task
        operator._cached_logger = SILENT
        if hasattr(operator, "_clock"):
            operator._clock = CLOCK
    return dag
