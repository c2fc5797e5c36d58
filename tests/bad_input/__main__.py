"""The whole of it: ``python -m tests.bad_input --documents 20000`` prints a row per kind, and fails on a violation."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
import warnings

SHARES = {"catalog": 6, "conf": 4, "catalog file": 3, "journal": 4, "plan": 2, "event": 2, "interrupted rollout": 2}
"""How many of 40 parts a kind gets of our own documents; the others get one. Answers get a quarter of all."""


def main() -> int:
    """Make the documents; 1 when one of them got the better of us."""
    ask = argparse.ArgumentParser(prog="python -m tests.bad_input", description=__doc__)
    ask.add_argument("--documents", type=int, default=20_000)
    ask.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    ask.add_argument("--only", help="one kind")
    asked = ask.parse_args()
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "CRITICAL"
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    from tests.bad_input.answers import Studio, platform_answers, registry_answers
    from tests.bad_input.documents import KINDS
    from tests.bad_input.garbage import hold

    began, total, violations = time.monotonic(), 0, 0
    print(
        f"seed {asked.seed}\n\n| kind | documents | taken | refused | seconds | violation |\n|---|---|---|---|---|---|"
    )
    with Studio() as studio:
        own = {kind: (check, SHARES.get(kind, 1), True) for kind, check in KINDS.items()}
        parts = sum(share for _, share, _ in own.values()) * 4 / 3
        answers = {f"answers of {kind}": (platform_answers(studio, kind), parts / 20, False) for kind in studio.wires}
        answers["answers of a registry"] = registry_answers(studio), parts / 20, False
        for kind, (check, share, shrink) in {**own, **answers}.items():
            if asked.only not in (None, kind):
                continue
            started = time.monotonic()
            tally = hold(check, documents=round(asked.documents * share / parts) + 1, seed=asked.seed, shrink=shrink)
            total, violations = total + tally.documents, violations + bool(tally.violation)
            counts = f"{tally.documents} | {tally.taken} | {tally.documents - tally.taken}"
            print(f"| {kind} | {counts} | {time.monotonic() - started:.0f} | {tally.violation or 'none'} |", flush=True)
    print(f"\n{total} documents, {violations} violations, {time.monotonic() - began:.0f} s")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
