"""The course of cells: release, wait for the instant, strike, mend, wait for the end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace

from airflow_multideploy.release.journal import Phase
from airflow_multideploy.sandbox.airflow import ENDED
from tests.chaos.judge import Row, judge
from tests.chaos.kills import RELEASED, WRITES, Cell, Started
from tests.chaos.stack import HEARTBEAT_TIMEOUT, NEW, ROLLBACK_TIMEOUT, TIMEOUT, Gone, Stack

BOUND = 2 * (HEARTBEAT_TIMEOUT + 5) + TIMEOUT + ROLLBACK_TIMEOUT + 30
"""Seconds from the kill to the end of a run; a run that takes longer is stuck."""
HOLD = 100.0
LATE = 20.0
"""A platform has answered a call, or forgotten it, after so many seconds."""
AT_ONCE = 6

_aws = threading.Lock()
"""The stand-in's AWS calls do not name their service: one cell at a time."""


def run(stack: Stack, chosen: Sequence[Cell], report: Callable[[Row], None]) -> None:
    """All cells; those of one shared kill together, the others side by side."""
    alone = [[cell] for cell in chosen if not cell.kill.shared]
    together = {cell.kill.name: [c for c in chosen if c.kill is cell.kill] for cell in chosen if cell.kill.shared}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in as_completed([pool.submit(_group, stack, group) for group in alone]):
                for row in done.result():
                    report(row)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for group in together.values():
        for row in _group(stack, group):
            report(row)


def _group(stack: Stack, group: Sequence[Cell]) -> list[Row]:
    started, before = [Started(cell, stack) for cell in group], len(stack.revived)
    with _one_on_aws(group), ThreadPoolExecutor(len(group)) as pool:
        # A client does not wait for ever: what takes longest to reach its instant goes first.
        for stage in ("after", "rollback", "deploy", "finalize"):
            list(pool.map(_reach, [one for one in started if one.cell.stage == stage]))
        hit = [one for one in started if one.struck]
        if hit:
            _strike(stack, hit)
            list(pool.map(_let_go_late, hit))
        rows = list(pool.map(lambda one: judge(one, BOUND), started))
    return [replace(row, notes=_also(row.notes, stack, before)) for row in rows]


def _also(notes: str, stack: Stack, before: int) -> str:
    ended = ", ".join(stack.revived[before:])
    return "; ".join(filter(None, [notes, f"ended by itself and was started again: {ended}" if ended else ""]))


@contextmanager
def _one_on_aws(group: Sequence[Cell]) -> Iterator[None]:
    if any(cell.platform == "aws_ecs" for cell in group):
        with _aws:
            yield
    else:
        yield


def _operation(cell: Cell) -> str:
    """A regular expression for the write that is held."""
    name = re.escape(cell.service)
    return {
        "aws_ecs": "^UpdateService$",
        "azure_web_app": f"^PATCH .*/sites/{name}/config/web$",
        "gcp_cloud_run": f"^PATCH .*/services/{name}$",
        "http": f"^PUT /apps/{name}$",
    }[cell.platform]


def _reach(one: Started) -> None:
    """Release, and return when the instant has come."""
    cell, stack, world = one.cell, one.stack, one.stack.sandbox.world
    on = {"platform": cell.platform}
    if cell.stage == "rollback" or cell.moment == "rollback":
        world.add_fault({"platform": "http", "outcome": "fails", "resource": f"{cell.service}-other"})
    if cell.moment in ("before", "late", "after"):
        answer = "held_after" if cell.moment == "after" else "held"
        nth = 2 if cell.stage == "rollback" else 1
        world.add_fault({**on, "answer": answer, "operation": _operation(cell), "nth": nth, "seconds": HOLD})
    if cell.moment in ("waiting", "ready", "cancel"):
        for seconds in [1.0, 15.0] if cell.stage == "rollback" else [15.0]:
            world.add_fault({**on, "outcome": "slow", "resource": cell.service, "seconds": seconds})
    one.began = time.time()
    try:
        stack.until("the DAG is known", lambda: stack.knows(cell.service), timeout=60)
        one.run_id = stack.until("triggered", lambda: stack.airflow.trigger(cell.service, RELEASED), timeout=30)
        stack.until("the instant comes", lambda: _there(one), timeout=120)
    except Gone as error:
        one.notes.append(f"not reached: {error}")
        return
    one.calls = len(world.calls_of(cell.platform, writes=True))
    one.struck = time.time()


def _there(one: Started) -> bool:
    cell, stack = one.cell, one.stack
    if cell.moment == "cancel" and stack.state(cell.service, one.run_id) not in ENDED:
        if _waits(one, "hit.deploy"):
            one.rest("PATCH", f"/dagRuns/{one.run_id}", {"state": "failed"})
        return False
    if cell.stage == "after":
        return bool(stack.finish(cell.service, one.run_id, 120))
    if cell.stage == "finalize":
        return stack.instance(cell.service, one.run_id, "finalize")["state"] in ("scheduled", "queued", "running")
    if cell.moment not in ("waiting", "ready"):
        return _operation(cell) in stack.sandbox.world.held()
    return _waits(one, one.task_id) and (cell.moment == "waiting" or stack.live(cell.service, "hit")[0] == NEW)


def _waits(one: Started, task_id: str) -> bool:
    """Whether the task has written, and waits for the platform."""
    cell, stack = one.cell, one.stack
    entry = stack.journal(cell.service, "hit")
    phase = Phase.VERIFYING if task_id == "hit.deploy" else Phase.ROLLING_BACK
    if entry is None or entry.phase is not phase or (phase is Phase.ROLLING_BACK and entry.back is None):
        return False
    state = stack.instance(cell.service, one.run_id, task_id)["state"]
    return bool(state == ("running" if cell.kill.in_worker else "deferred"))


def _strike(stack: Stack, hit: Sequence[Started]) -> None:
    """Do it, let go what is held (but what is late), and mend."""
    kill, world = hit[0].cell.kill, stack.sandbox.world
    for one in hit:
        if one.cell.instant in WRITES and _operation(one.cell) not in world.held():
            one.notes.append("its client gave up before")
    kill.strike(stack, hit)
    time.sleep(1)
    for one in hit:
        if one.cell.moment in ("before", "after"):
            world.release(_operation(one.cell), drop=one.cell.moment == "before" and kill.client_dies)
    if kill.mend is not None:
        time.sleep(kill.away)
        kill.mend(stack)


def _let_go_late(one: Started) -> None:
    """Let a late write have its effect: after somebody else's next write, or a long while."""
    cell, stack, world = one.cell, one.stack, one.stack.sandbox.world
    if cell.moment != "late":
        return
    place = re.compile(_operation(cell))

    def others() -> bool:
        calls = world.calls_of(cell.platform, writes=True)[one.calls :]
        return any(place.search(call.operation) and call.status for call in calls)

    try:
        stack.until("another write", others, timeout=LATE)
        when = "after another write"
    except Gone:
        when = f"after {LATE:g} s"
    over = stack.state(cell.service, one.run_id) in ENDED
    world.release(_operation(cell))
    one.notes.append(f"landed {when}" + (" and after the end" if over else ""))
