"""Plays many schedules and gathers what they break."""

from __future__ import annotations

from itertools import islice

from tests.simulation.invariants import breaches
from tests.simulation.play import Story, installed, play
from tests.simulation.schedules import Schedule, schedules

Breach = tuple[str, str, Schedule]
"""The invariant's name, how it was broken, and by what."""


def check(number: int, seed: int, part: int = 0, parts: int = 1, *, first: bool = False) -> tuple[int, list[Breach]]:
    """Play every ``parts``-th of that many schedules; how many, and what they broke.

    :param first: stop at the first breach.
    """
    played, found = 0, list[Breach]()
    with installed():
        for schedule in islice(schedules(number, seed), part, None, parts):
            played += 1
            found += [(name, said, schedule) for name, said in breaches(play(schedule))]
            if found and first:
                break
    return played, found


def history(story: Story) -> str:
    """What happened, a line each; and how the runs ended."""
    lines = []
    for step in story.steps:
        value = step.value
        if step.what == "journal":
            value = f"{value['phase']}{' touched' if value['touched'] else ''}{' settled' if value['settled'] else ''}"
        at = f"{step.at - 1_000_000:9.1f}"
        lines.append(f"{at} {step.run:6} {step.task:14} {step.target}: {step.what} {value} → live {step.live}")
    for run in story.airflow.runs:
        said = run.value("finalize") or {}
        lines.append(f"{run.run_id}: {run.state}; {said.get('status')}: {said.get('reason')}")
        lines.append("  " + ", ".join(f"{task.name} {task.state}" for task in run.tasks.values()))
    return "\n".join(lines)
