"""Plays a schedule: the real DAG of a service, on the simulated Airflow, against the fake platform."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms, task_runner

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.factory.reconcile import reconcile_dag
from airflow_multideploy.factory.service import service_dag
from airflow_multideploy.platforms import kinds
from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot
from airflow_multideploy.testing.fake import Crash, FakePlatform, FakeWorld, Fault, MemoryStore
from tests.simulation.runs import Attempt, Run, Task
from tests.simulation.scheduler import CLOCK, SimAirflow, ready
from tests.simulation.schedules import DEPLOYS, GRAPHS, ROLLBACKS, Schedule, deploy_task, rollback_task

SERVICE = "shop"
IMAGE = "registry.test/shop"
LANDED = 34.0
"""Seconds for which a write of a process that was thought dead is waited for (docs/reliability.md)."""
FOREIGN = "registry.test/other:1"


class Step(NamedTuple):
    """One thing that happened.

    :param what: ``deploy:before``, a call that reached the platform by its name, ``wrote``, or a key of the journal.
    :param value: of a call, the observation's state or the release id; of a write, what was live before and after; of a
        journal, what was written.
    :param live: what is live on the target now, and whether it is well.
    """

    at: float
    run: str
    task: str
    target: str
    what: str
    value: Any
    live: str | None
    well: bool


@dataclass
class Story:
    """A schedule, played."""

    schedule: Schedule
    airflow: SimAirflow
    world: FakeWorld
    steps: list[Step] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    """Variables for which Airflow's API answers with an error."""
    marks: dict[str, int] = field(default_factory=dict)
    """Per run, the index of its first step; and one for what came after the last."""
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    ends: dict[str, dict[str, tuple[str | None, bool]]] = field(default_factory=dict)
    """Per run, what was live on each target at its end, and whether it was well."""
    beyond: set[str] = field(default_factory=set)
    """Targets on which a process wrote that had been thought dead for longer than any call lasts, and which then died
    before it could see that it was too late; or whose rollback woke up so late in the midst of its write, after the
    next rollout had begun.

    Where that comes after the last look, and the platform has no fence of its own, nobody is left who could notice.
    """
    error: str = ""

    def point(self, attempt: Attempt, name: str) -> None:
        """An instant in an attempt: whatever the schedule has for it happens now."""
        task = attempt.task
        self.met[task.name, name] += 1
        count = self.met[task.name, name]
        for trouble in self.schedule.troubles:
            if (trouble.task, trouble.point) == (task.name, name) and trouble.nth in (0, count):
                late = attempt.lost_at is not None and CLOCK.now - attempt.lost_at > LANDED
                if (name, trouble.action) == ("deploy:after", "crash") and late:
                    self.beyond.add(task.operator.target)
                before = len(self.steps)
                self._happen(attempt, trouble.action, trouble.seconds)
                late = attempt.lost_at is not None and CLOCK.now - attempt.lost_at > LANDED
                if (name, trouble.action) == ("rollback:before", "orphan") and late:
                    self.beyond |= {step.target for step in self.steps[before:] if self._begun(step, task)}

    def _begun(self, step: Step, task: Task) -> bool:
        """Whether it is the beginning of another rollout on the target that this task sends back."""
        here = step.target == task.operator.target and step.what == "journal"
        return here and step.value["phase"] == "deploying"

    def _happen(self, attempt: Attempt, action: str, seconds: float) -> None:
        if action == "crash":
            raise Crash("scripted")
        if action == "orphan":
            self.airflow.lose(attempt)
            self.airflow.pause(seconds)
        elif action == "fail_run":
            self.airflow.fail_run(attempt.task.run)
        elif action == "fail_task":
            self.airflow.fail_task(attempt.task)
        else:
            self.airflow.clear(attempt.task)

    def now(self, target: str) -> tuple[str | None, bool]:
        """What is live there, and whether it is well."""
        place = self.world.places[f"{SERVICE}/{target}"]
        return place.live, place.fate == "healthy" and CLOCK.now >= place.ready_at

    def over(self, run: Run) -> None:
        """Keep how the targets are at the end of a run."""
        self.ends[run.run_id] = {target: self.now(target) for target in self.schedule.targets}
        self.marks[f"{run.run_id} over"] = len(self.steps)

    def record(self, target: str, what: str, value: Any) -> None:
        """Keep a step."""
        attempt = self.airflow.attempt
        run, task = (attempt.task.run.run_id, attempt.task.name) if attempt else ("", "")
        self.steps.append(Step(CLOCK.now, run, task, target, what, value, *self.now(target)))


_story: Story


class SimPlatform(FakePlatform):
    """The fake platform, whose every call takes time, is recorded, and is an instant for trouble."""

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """As the fake one."""
        handle = super().deploy(release, snapshot)
        _story.record(self.target, "answered", handle.changed)
        return handle

    def observe(self, handle: Handle) -> Observation:
        """As the fake one."""
        seen = super().observe(handle)
        _story.record(self.target, "seen", (handle.action, str(seen.state)))
        return seen

    def _begin(self, name: Any, of: str | None = None) -> Fault | None:
        self._pass(f"{name}:before")
        return super()._begin(name, of)

    def _end(self, name: Any, fault: Fault | None, release: Release | None = None, wrote: str | None = None) -> None:
        if name != "observe":
            _story.record(self.target, name, (release and release.release_id, wrote))
        self._pass(f"{name}:after")
        super()._end(name, fault, release, wrote)

    def _activate(self, revision: str | None, fault: Fault | None) -> str:
        before = self._place.live
        wrote = super()._activate(revision, fault)
        _story.record(self.target, "wrote", (before, revision))
        return wrote

    def _pass(self, name: str) -> None:
        attempt = _story.airflow.attempt
        if attempt is not None:
            if name in ("deploy:before", "rollback:before"):
                _story.record(self.target, name, None)
            _story.airflow.pause(_story.airflow.rng.uniform(0.01, 0.4))
            _story.point(attempt, name)


class SimStore(MemoryStore):
    """A state store whose every write is recorded, and an instant for trouble."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        super().set(key, value)
        target, _, key = key.partition(".")
        attempt = _story.airflow.attempt
        if target not in _story.schedule.targets:  # the ledger, and what decides the run
            if attempt is not None:
                _story.point(attempt, target)
            return
        _story.record(target, key, value)
        if attempt is not None:
            _story.point(attempt, f"journal:{value['phase']}" if key == "journal" else key)


class Supervisor:
    """What a task's supervisor answers about Variables and tasks; the SDK asks it."""

    @staticmethod
    def send(message: Any) -> Any:
        """The answer of Airflow's API."""
        kept = _story.variables
        if isinstance(message, comms.GetTaskStates):
            states = _story.airflow.task_states(message.dag_id, message.run_ids or [], message.task_ids)
            return comms.TaskStatesResult(task_states=states)
        if isinstance(message, comms.PutVariable):
            kept[message.key] = message.value or ""
        elif isinstance(message, comms.DeleteVariable):
            kept.pop(message.key, None)
        elif message.key in _story.unreadable:
            return comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 500})
        elif message.key in kept:
            return comms.VariableResult(key=message.key, value=kept[message.key])
        else:
            return comms.ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)
        return comms.OKResponse(ok=True)


@contextmanager
def installed() -> Iterator[None]:
    """The platform kind ``fake`` and the stand-in for a task's supervisor are in place; undone afterwards."""
    point = EntryPoint("fake", f"{__name__}:SimPlatform", kinds.ENTRY_POINT_GROUP)
    test_mode = ExecutorSafeguard.test_mode
    kinds.kinds()["fake"] = point
    os.environ["AIRFLOW_CONN_FAKE"] = "{}"
    ExecutorSafeguard.test_mode = True
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)  # a task of Airflow's has one
            yield
    finally:
        ExecutorSafeguard.test_mode = test_mode
        kinds.kinds().pop("fake")
        del os.environ["AIRFLOW_CONN_FAKE"]
        kinds.platform_type.cache_clear()


def service_of(schedule: Schedule, **rollback: Any) -> Service:
    """The schedule's entry of the catalog."""
    graph = GRAPHS[schedule.graph]
    targets = {}
    for name, after in graph.items():
        place, mark = schedule.of(schedule.places, name, "old"), schedule.of(schedule.marks, name, None)
        targets[name] = {
            "platform": "fake",
            "conn_id": "fake",
            "depends_on": after,
            "critical": mark,
            "first_deploy": "leave" if place == "first_left" else "remove",
            "timeout": 120,
            "rollback_timeout": 90,
            "poll_interval": 10,
        }
    if schedule.policy == "critical" and all(target["critical"] is False for target in targets.values()):
        targets[schedule.targets[0]]["critical"] = None
    at_least = {"at_least": (selected(schedule) + 1) // 2}
    document = {
        "artifact": {"image": IMAGE},
        "targets": targets,
        "success": {"policy": at_least if schedule.policy == "at_least" else schedule.policy},
        "rollback": {"strategy": schedule.strategy, "cancel": "keep" if schedule.keep else "rollback", **rollback},
        "retries": schedule.retries,
        "deferrable": schedule.deferrable,
    }
    return parse_service(SERVICE, document, config_type=kinds.config_type)


def selected(schedule: Schedule) -> int:
    """How many targets the schedule's run names."""
    return min(schedule.selected, len(schedule.targets))


@lru_cache(maxsize=256)
def _dag(graph: str, retries: int, deferrable: bool) -> DAG:
    return ready(service_dag(SERVICE, service_of(Schedule(graph, retries=retries, deferrable=deferrable))))


def dag_of(schedule: Schedule, service: Service) -> DAG:
    """The service's DAG. Shared by schedules whose tasks are the same; the plan task gets this one's catalog."""
    dag = _dag(schedule.graph, schedule.retries, schedule.deferrable)
    plan: Any = dag.get_task("plan")
    plan._service = service
    return dag


def play(schedule: Schedule) -> Story:
    """Play it to its end."""
    global _story
    random.seed(schedule.seed)
    airflow_ = SimAirflow(store=lambda _: SimStore(), rng=random.Random(schedule.seed))
    story = _story = Story(schedule, airflow_, FakeWorld(seconds=4.0, clock=CLOCK))
    airflow_.point, airflow_.over = story.point, story.over
    for target in schedule.targets:
        place = schedule.of(schedule.places, target, "old")
        image = {"old": f"{IMAGE}:1", "live": f"{IMAGE}:2"}.get(place)
        story.world.seed(f"{SERVICE}/{target}", image)
    service = service_of(schedule)
    try:
        if schedule.before:
            _run(story, service, "run0", "1")
        for target in schedule.targets:
            for call in DEPLOYS[schedule.of(schedule.deploys, target, "ok")]:
                story.world.faults.append(Fault(target=f"{SERVICE}/{target}", **call))
            for call in ROLLBACKS[schedule.of(schedule.rollbacks, target, "ok")]:
                story.world.faults.append(Fault(target=f"{SERVICE}/{target}", **call))
        run = _run(story, service, "run1", "2", until_over=bool(schedule.after))
        _afterwards(story, run, service)
    except Exception as error:
        story.error = f"{type(error).__name__}: {error}"
    story.marks["end"] = len(story.steps)
    CLOCK.now += story.world.seconds  # what was written last becomes healthy, or fails
    return story


def _run(story: Story, service: Service, run_id: str, version: str, *, until_over: bool = False, **conf: Any) -> Run:
    schedule = story.schedule
    story.marks[run_id] = len(story.steps)
    names = list(schedule.targets)[: selected(schedule)]
    conf = {"version": version, "targets": names, **conf}
    if schedule.before and run_id == "run0":
        conf["targets"] = list(schedule.targets)
    run = story.airflow.trigger(dag_of(schedule, service), run_id, conf)
    story.airflow.drain(run if until_over else None)
    return run


def _afterwards(story: Story, run: Run, service: Service) -> None:
    """What the schedule has for the time after the run; its faults are over by then."""
    schedule, after = story.schedule, story.schedule.after
    if not after:
        return
    story.world.faults.clear()
    if after.startswith("clear"):
        task = run.tasks[(rollback_task if after == "clear_rollback" else deploy_task)(schedule.targets[0])]
        story.marks["clear"] = len(story.steps)
        if after == "clear_failed":
            story.airflow.clear(*(t for t in run.tasks.values() if t.state == "failed"), downstream=False)
        else:
            story.airflow.clear(task, downstream=after != "clear_alone")
        story.airflow.drain()
    elif after == "reconciler":
        story.marks["reconcile"] = len(story.steps)
        dag = ready(reconcile_dag({SERVICE: service}, schedule="@hourly", settle=True))
        story.airflow.trigger(dag, "reconcile", {})
        story.airflow.drain()
    else:
        service = service_of(schedule, in_doubt="reconcile") if after == "reconcile" else service
        _run(story, service, "run2", "2" if after == "again" else "3", force=after == "force")
