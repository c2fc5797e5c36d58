"""``python -m tests.simulation.mutants``: break the release logic, one rule at a time, and see the simulation notice.

Each mutant is an exact text and what stands there instead, in a copy of the package. 1 when one is not noticed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "airflow_multideploy"
ROLLOUT, ROLLBACK, STATUS = "release/rollout.py", "release/rollback.py", "release/status.py"
RUN, FINALIZE = "operators/run.py", "operators/finalize.py"
RELEASE, WAY_BACK, DEPLOY, TAIL = (
    "operators/release.py",
    "operators/rollback.py",
    "operators/deploy.py",
    "factory/wiring.py",
)
SCHEDULES, SEED = 6000, 1


class Mutant(NamedTuple):
    """A rule that is broken: edits of file, old text, new text."""

    name: str
    edits: tuple[tuple[str, str, str], ...]


MUTANTS = (
    Mutant(
        "the way back is not verified",
        (
            (
                ROLLBACK,
                "return self.journal.write(entry.to(Phase.ROLLING_BACK, back=back))",
                "return self.journal.write(entry.to(Phase.ROLLED_BACK, settled=True, rollback_ended_at=now))",
            ),
        ),
    ),
    Mutant(
        "dependencies go back first",
        (
            (
                TAIL,
                "rollbacks[deploy.task_id] >> rollbacks[upstream]",
                "rollbacks[upstream] >> rollbacks[deploy.task_id]",
            ),
            (ROLLBACK, "return frozenset((dependents(targets, {target}) - {target}) & selected)", "return frozenset()"),
        ),
    ),
    Mutant(
        "a dependency does not wait for a dependent that is not back",
        ((ROLLBACK, "return frozenset((dependents(targets, {target}) - {target}) & selected)", "return frozenset()"),),
    ),
    Mutant(
        "what is left on purpose is selected to go back",
        ((ROLLBACK, "if r.touched and not r.stays}", "if r.touched}"),),
    ),
    Mutant(
        "what is left on purpose goes back where nobody selects",
        ((ROLLBACK, "        if entry.stays:\n", "        if False:\n"),),
    ),
    Mutant(
        "a late write of what is left on purpose is taken back",
        ((ROLLOUT, "entry.snapshot is None or entry.stays:", "entry.snapshot is None:"),),
    ),
    Mutant(
        "a retry takes the snapshot again",
        ((ROLLOUT, "if entry.snapshot is None:\n                previous", "if True:\n                previous"),),
    ),
    Mutant(
        "XCom is trusted, the journal is not",
        (
            (RUN, "entry = own_entry(context, dag_id, service, target)", "entry = None"),
            (RUN, "if not (said.touched or said.phase in GOOD):", "if True:"),
        ),
    ),
    Mutant(
        "nothing is journalled ahead of the write",
        (
            (
                ROLLOUT,
                "entry = self.journal.write(entry.to(Phase.DEPLOYING, touched=True, settled=False))",
                "entry = entry.to(Phase.DEPLOYING, touched=True, settled=False)",
            ),
        ),
    ),
    Mutant(
        "what the platform accepted counts as succeeded",
        (
            (
                ROLLOUT,
                "return self.journal.write(entry.to(Phase.VERIFYING, handle=handle,",
                "return self.journal.write(entry.to(Phase.SUCCEEDED, settled=True, handle=handle,",
            ),
        ),
    ),
    Mutant(
        "drift is overwritten",
        (
            (
                ROLLOUT,
                "return self.platform.deploy(entry.release, snapshot)",
                'return self.platform.deploy(entry.release.model_copy(update={"force": True}), snapshot)',
            ),
        ),
    ),
    Mutant(
        "a retry gets a release id of its own",
        (
            (
                ROLLOUT,
                "return entry.to(entry.phase, attempt=entry.attempt + 1,",
                'again_id = {"release_id": f"{entry.release.release_id}-r"}\n'
                "                return entry.to(entry.phase, release=entry.release.model_copy(update=again_id), "
                "attempt=entry.attempt + 1,",
            ),
        ),
    ),
    Mutant(
        "untouched targets are sent back",
        (
            (ROLLBACK, "for r in results if r.touched and not r.stays}", "for r in results if not r.stays}"),
            (WAY_BACK, "or entry is None or not entry.touched:", "or entry is None:"),
        ),
    ),
    Mutant("critical means nothing", ((STATUS, "criticals = [r for r in counting if r.critical]", "criticals = []"),)),
    Mutant(
        "a failed way back is green",
        (
            (
                STATUS,
                "return self in (Status.SUCCEEDED, Status.DEGRADED)",
                "return self in (Status.SUCCEEDED, Status.DEGRADED, Status.ROLLBACK_FAILED)",
            ),
        ),
    ),
    Mutant(
        "a late write is not taken back",
        ((ROLLOUT, "        self._give_way(entry, handle)\n        self._still_mine", "        self._still_mine"),),
    ),
    Mutant(
        "a deploy that wakes up after its run goes on",
        ((RELEASE, "if entry is None or entry.phase in CONTINUABLE:", "if False:"),),
    ),
    Mutant(
        "a way back writes over what came after it",
        ((ROLLBACK, "if (now := self.journal.read()) != entry:", "if (now := entry) != entry:"),),
    ),
    Mutant("a retry starts a rollout that has ended again", ((ROLLOUT, "if not again:\n", "if False:\n"),)),
    Mutant(
        "another run's doubt is ignored",
        ((ROLLOUT, "if entry is not None and entry.unsettled and not entry.is_of(self.run):", "if False:"),),
    ),
    Mutant(
        "a cleared task takes the snapshot again",
        ((ROLLOUT, "keep = entry.touched and not (entry.settled and back)", "keep = False"),),
    ),
    Mutant(
        "rollback tasks are no teardowns",
        (
            (
                WAY_BACK,
                "self._init(**kwargs)\n        vars(self)",
                "self._init(**kwargs)\n        self.is_teardown = False\n        vars(self)",
            ),
        ),
    ),
    Mutant(
        "finalize does not decide the run's colour",
        (
            (
                FINALIZE,
                "self.on_failure_fail_dagrun = True\n        self._clock",
                "self._clock",
            ),
        ),
    ),
    Mutant(
        "a look that tells nothing counts as back",
        (
            (
                ROLLBACK,
                "now = self.clock.time()\n        if seen.state is State.HEALTHY:",
                "now = self.clock.time()\n        if seen.state is not State.FAILED:",
            ),
        ),
    ),
    Mutant(
        "a way back that somebody wrote over is not repeated",
        ((ROLLBACK, "(failed or seen.state is State.SUPERSEDED) and", "failed and"),),
    ),
    Mutant(
        "a target that should be back and is not goes unnoticed",
        ((STATUS, " or (r.target in wanted and not _went_back(r)) for r in counting", " for r in counting"),),
    ),
    Mutant(
        "only failed targets go back, whatever the strategy",
        ((ROLLBACK, 'if met or strategy == "failed":', "if True:"),),
    ),
    Mutant(
        "a dependency that died counts as skipped",
        (
            (
                DEPLOY,
                '"skipped" if ended is Phase.SKIPPED else "failed"',
                '"skipped" if ended in (Phase.SKIPPED, Phase.PENDING) else "failed"',
            ),
        ),
    ),
    Mutant(
        "that the run was marked failed is not noticed",
        ((RELEASE, 'return str(states.get(mark)) == "skipped"', "return False"),),
    ),
    Mutant("nobody waits for a write that may land late", ((ROLLBACK, "LANDING = 35.0", "LANDING = 0.0"),)),
    Mutant(
        "only a deploy without any answer is waited for",
        ((ROLLBACK, "gone = [entry.adrift, entry", "gone = [None, entry"),),
    ),
    Mutant(
        "a healthy deploy's words stand for its failed way back",
        ((RELEASE, " and now.phase not in GOOD and was.deployed not in GOOD:", " and now.phase not in GOOD:"),),
    ),
    Mutant(
        "a way back that never began is not in doubt",
        ((FINALIZE, "if entry.phase not in GOOD:", "if True:"),),
    ),
    Mutant(
        "a rollback that was thought dead does not look before it writes",
        ((ROLLBACK, "            self._still_mine(entry)  # one that was", "            # one that was"),),
    ),
    Mutant(
        "a deploy that is cleared alone rolls out",
        ((DEPLOY, "if self._clear is None and (why := cleared_alone(self, context, after)):", "if why := '':"),),
    ),
    Mutant(
        "what went back before a clear still counts as good",
        ((RELEASE, "        if earlier is None:\n", "        if False:\n"),),
    ),
)


def run(mutant: Mutant) -> tuple[str, float]:
    """The invariant that a mutant breaks (empty: none), and after how many seconds."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = Path(place)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignore)
        shutil.copytree(ROOT / "tests" / "simulation", folder / "tests" / "simulation", ignore=ignore)
        (folder / "tests" / "__init__.py").touch()
        for name, old, new in mutant.edits:
            path = folder / PACKAGE / name
            path.write_text(path.read_text().replace(old, new))
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.simulation", "--first", "--processes", "1"]
        command += ["--schedules", str(SCHEDULES), "--seed", str(SEED)]
        environment = {**os.environ, "PYTHONPATH": place}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        broken = re.search(r"^(\w+) +1?\d+$", done.stdout, re.M)
        if done.returncode not in (0, 1) or (done.returncode == 1) != (broken is not None):
            raise SystemExit(f"{mutant.name}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return (broken.group(1) if broken else ""), time.monotonic() - began


def misfits() -> list[str]:
    """The edits that no longer fit the code: their text has to be there once."""
    return [
        f"{mutant.name}: {name} holds {count} times, not once: {old}"
        for mutant in MUTANTS
        for name, old, _ in mutant.edits
        if (count := (ROOT / PACKAGE / name).read_text().count(old)) != 1
    ]


def main() -> int:
    survivors = 0
    if wrong := misfits():
        raise SystemExit("\n".join(wrong))
    if without := run(Mutant("nothing", ()))[0]:
        raise SystemExit(f"{without} is broken without any mutant: so nothing can be said about them")
    with ThreadPoolExecutor(2) as pool:
        for mutant, (caught, seconds) in zip(MUTANTS, pool.map(run, MUTANTS), strict=True):
            survivors += not caught
            print(f"{mutant.name:60} {caught or 'SURVIVES':65} {seconds:5.1f} s", flush=True)
    print(f"{len(MUTANTS)} mutants, {survivors} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
