"""The whole of it: ``python -m tests.faults`` makes 1,000 rollouts while 5 % of all calls fail, and prints a table."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys


def main() -> int:
    """Make the rollouts; 1 when something came out that must not."""
    ask = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    ask.add_argument("--rollouts", type=int, default=1000)
    ask.add_argument("--rate", type=float, default=0.05, help="share of calls that fail")
    ask.add_argument("--hang", type=float, default=30.0, help="seconds that a hanging call takes")
    ask.add_argument("--threads", type=int, default=64)
    ask.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    asked = ask.parse_args()
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "ERROR"
    logging.disable(logging.ERROR)
    from tests.faults.scale import run, table

    report = run(rollouts=asked.rollouts, seed=asked.seed, rate=asked.rate, hang=asked.hang, threads=asked.threads)
    print(f"seed {report.seed}\n\n{table(report)}\n")
    share = sum(call.fault is not None for call in report.calls) / len(report.calls)
    print(
        f"{100 * share:.1f} % of {len(report.calls)} calls failed; {report.good} of {len(report.made)} rollouts ended"
    )
    print(f"as they should; refused for good and not tried again: {dict(report.refused)}; {report.seconds:.0f} s")
    for violation in (found := report.violations()):
        print(f"VIOLATION {violation}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
