"""``python -m tests.chaos``: kill what can be killed while releases run, and report what became of each."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.chaos.course import run
from tests.chaos.judge import Row
from tests.chaos.kills import catalog, cells
from tests.chaos.servers import Missing, program
from tests.chaos.stack import Executor, Stack

NEEDED = {"local": {"initdb": "postgresql"}, "celery": {"initdb": "postgresql", "redis-server": "redis-server"}}


def main() -> int:
    """Exit code 1 when an invariant was violated, 2 when a part could not run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--executor", choices=["local", "celery"], help="only this one (default: both)")
    parser.add_argument("--only", default="", help="only cells whose 'kill instant' contains this text")
    parser.add_argument("--short", action="store_true", help="a handful of cells on LocalExecutor")
    parser.add_argument("--report", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--keep", action="store_true", help="keep logs and databases (kept anyway after a violation)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, as at Ctrl+C
    rows: list[Row] = []
    not_run = []
    executors: list[Executor] = (
        [given.executor] if given.executor else ["local"] if given.short else ["local", "celery"]
    )
    for executor in executors:
        try:
            for name, package in NEEDED[executor].items():
                program(name, package)
        except Missing as error:
            not_run.append(f"{executor}: did not run: {error}")
            continue
        rows += _one(executor, given)
    if given.report is not None:
        given.report.write_text("\n".join(table(rows) + not_run) + "\n")
    bad = sum(bool(row.violations) for row in rows)
    print("\n".join([*not_run, f"{len(rows)} cells, {bad} with violations"]))
    return 1 if bad else 2 if not_run else 0


def _one(executor: Executor, given: argparse.Namespace) -> list[Row]:
    chosen = cells(executor, only=given.only, short=given.short)
    rows: list[Row] = []
    began = time.monotonic()

    def report(row: Row) -> None:
        rows.append(row)
        print(f"{time.monotonic() - began:5.0f} s {len(rows)}/{len(chosen)} {row.line()}", flush=True)

    with Stack(executor, catalog(chosen)) as stack:
        print(f"{executor}: {len(chosen)} cells; logs in {stack.home}", flush=True)
        run(stack, chosen, report)
    if not given.keep and not any(row.violations for row in rows):
        shutil.rmtree(stack.home, ignore_errors=True)
    return rows


def table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [row.line() for row in sorted(rows, key=lambda row: (row.executor, row.kill, row.instant))]
    return [Row.HEAD, "|" + "---|" * (Row.HEAD.count("|") - 1), *lines]


if __name__ == "__main__":
    sys.exit(main())
