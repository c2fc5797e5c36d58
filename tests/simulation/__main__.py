"""``python -m tests.simulation --schedules 100000``: many schedules, every invariant after each; 1 on a breach.

``--replay "Schedule(…)"`` plays one and shows its history.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter

from tests.simulation.check import check, history
from tests.simulation.invariants import INVARIANTS, breaches
from tests.simulation.play import installed, play
from tests.simulation.schedules import Schedule, Trouble

SHOWN = 3
"""Breaches of one invariant that are shown in full."""


def _replay(text: str) -> int:
    schedule = eval(text, {"Schedule": Schedule, "Trouble": Trouble})
    with installed():
        story = play(schedule)
        print(history(story))
        found = breaches(story)
    for name, said in found:
        print(f"BREACH {name}: {said}")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock; it is printed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", action="store_true", help="stop at the first breach; in one process")
    parser.add_argument("--replay", metavar="SCHEDULE", help="play this one and show its history")
    asked = parser.parse_args()
    if asked.replay:
        return _replay(asked.replay)
    seed = int(time.time()) if asked.seed is None else asked.seed
    began = time.monotonic()
    jobs = [(asked.schedules, seed, part, asked.processes) for part in range(asked.processes)]
    if asked.first or asked.processes == 1:
        parts = [check(asked.schedules, seed, first=asked.first)]
    else:
        with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
            parts = pool.starmap(check, jobs, chunksize=1)
    found = [breach for _, broken in parts for breach in broken]
    times = Counter(name for name, _, _ in found)
    for invariant in INVARIANTS:
        print(f"{invariant.__name__:65} {times[invariant.__name__] or 'holds'}")
        told = sorted((b for b in found if b[0] == invariant.__name__), key=lambda b: len(repr(b[2])))
        for _, said, schedule in told[:SHOWN]:
            print(f"    {said}\n      {schedule}")
    seconds = time.monotonic() - began
    number = sum(played for played, _ in parts)
    print(f"{number} distinct schedules, {len(found)} violations, seed {seed}, {seconds:.0f} seconds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
