"""Many rollouts at once over the four platforms while calls fail, driven as the operators drive them.

The official SDKs talk to the stand-ins over loopback sockets. The clock is the machine's: a hang costs a thread and
no CPU, so many rollouts side by side make real time-outs and real pauses affordable, and nothing has to be patched.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow_multideploy.errors import MultideployError, PlatformError
from airflow_multideploy.operators.trigger import RolloutTrigger
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Observation, Platform, Release
from airflow_multideploy.release.journal import GOOD, Entry, Journal, Phase, Run
from airflow_multideploy.release.plan import release_id
from airflow_multideploy.release.rollback import WayBack, quiet_from
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.wait import SystemClock, Watch, follow
from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.world import PLATFORMS, Call, RandomFaults, RolloutFault
from airflow_multideploy.testing.fake import MemoryStore

IMAGE = "registry.example.com/shop"
OLD, NEW = f"{IMAGE}:1.0.0", f"{IMAGE}:1.1.0"
ANSWERS = ("500", "429", "reset", "lost", "hang", "malformed")
TRIES = 3
"""As the factory has it: ``retries: 2``."""


@dataclass(frozen=True)
class Job:
    """One rollout to be made.

    :param fails: the new version does not start; then the way back follows.
    :param deferred: waited for in the triggerer's way, on one event loop; else in place.
    :param changes: to the target's config; a job with changes is one that the platform refuses.
    """

    kind: str
    resource: str
    fails: bool = False
    deferred: bool = False
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """What one rollout came to.

    :param errors: what was raised, as text; ``unforeseen`` those that are not ours.
    :param revisions: how many the stand-in made for it.
    """

    job: Job
    phase: Phase | None = None
    deployed: Phase | None = None
    settled: bool = False
    tries: int = 0
    live: str | None = None
    revisions: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether it ended as it should, by the journal and by what the stand-in serves."""
        if self.job.changes:
            return self.deployed is Phase.FAILED and self.live == OLD
        if self.job.fails:
            return (self.phase, self.live) == (Phase.ROLLED_BACK, OLD)
        return (self.phase, self.live) == (Phase.SUCCEEDED, NEW)

    @property
    def duplicates(self) -> int:
        """Revisions beyond the release's own, and the way back's where going back makes one."""
        back = self.job.fails and self.job.kind in ("http", "azure_web_app")
        return max(0, self.revisions - (2 if back else 1))


class Triggerer:
    """One event loop for everything that waits deferred, as in Airflow."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triggerer", daemon=True)
        self._thread.start()

    def fire(self, entry: Entry, handle: Handle, deadline: float) -> Observation:
        """What the trigger of this rollout ends with."""
        trigger = RolloutTrigger(
            service=entry.service,
            target=entry.target,
            config=dict(entry.config),
            handle=handle.dump(),
            deadline=deadline,
            earliest=_earliest(entry),
        )

        async def first() -> Any:
            async for event in trigger.run():
                return event.payload

        return Observation.model_validate(asyncio.run_coroutine_threadsafe(first(), self._loop).result())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Driver:
    """Makes rollouts against a sandbox, each step with a fresh adapter, as another process would."""

    def __init__(self, sandbox: Sandbox, *, retry_delay: float, poll_interval: float) -> None:
        self.sandbox, self.retry_delay, self.poll_interval = sandbox, retry_delay, poll_interval
        self.clock, self.triggerer = SystemClock(), Triggerer()

    def run(self, job: Job) -> Result:
        """The whole of one job: deploy with its tries, the way back with its tries when it failed."""
        config = {**self.sandbox.target(job.kind, job.resource), "poll_interval": self.poll_interval, **job.changes}
        journal, result, began = Journal(MemoryStore()), Result(job), time.monotonic()
        make = partial(adapter, config, service=job.resource, target=job.kind)
        self._tried(result, lambda: self._deploy(job, make(), journal))
        entry = journal.read()
        if entry is not None and entry.touched and entry.deployed not in GOOD:
            self._tried(result, lambda: self._back(job, make(), journal))
            entry = journal.read()
        stand_in = self.sandbox.stand_ins[job.kind]
        if entry is not None:
            result.phase, result.deployed, result.settled = entry.phase, entry.deployed, not entry.unsettled
        result.live, result.revisions = stand_in.live(job.resource).image, len(stand_in.revisions(job.resource))
        result.seconds = time.monotonic() - began
        return result

    def _tried(self, result: Result, attempt: Callable[[], None]) -> None:
        """An attempt, and Airflow's further ones: after an error that may heal, and after one that nobody foresaw."""
        for number in range(1, TRIES + 1):
            result.tries += 1
            try:
                return attempt()
            except MultideployError as error:
                result.errors.append(str(error))
                platform_error = error if isinstance(error, PlatformError) else error.__cause__
                if not (isinstance(platform_error, PlatformError) and platform_error.retryable):
                    return None
            except Exception as error:
                result.unforeseen.append(repr(error))
            if number < TRIES:
                self.clock.sleep(self.retry_delay)
        return None

    def _deploy(self, job: Job, platform: Platform[Any], journal: Journal) -> None:
        rollout = Rollout(platform, journal, self.clock, Run(dag_id=job.resource, run_id="run"))
        rid = release_id(job.resource, "run")
        entry = rollout.begin(Release(service=job.resource, version="1.1.0", image=NEW, release_id=rid))
        if entry.phase is Phase.VERIFYING and entry.handle and entry.deadline:
            rollout.conclude(entry, self._watched(job, platform, entry, entry.handle, entry.deadline))

    def _back(self, job: Job, platform: Platform[Any], journal: Journal) -> None:
        entry, way = journal.read(), WayBack(platform, journal, self.clock)
        while entry is not None and entry.phase is not Phase.ROLLED_BACK:
            entry = way.begin(entry)
            if entry.back is None or entry.rollback_deadline is None:
                return
            entry = way.conclude(entry, self._watched(job, platform, entry, entry.back, entry.rollback_deadline))
            if entry.phase is not Phase.ROLLING_BACK:
                return

    def _watched(self, job: Job, platform: Platform[Any], entry: Entry, handle: Handle, deadline: float) -> Observation:
        if job.deferred:
            return self.triggerer.fire(entry, handle, deadline)
        watch = Watch(deadline=deadline, interval=platform.config.poll_interval, earliest=_earliest(entry))
        return follow(lambda: platform.observe(handle), watch=watch, clock=self.clock)


def _earliest(entry: Entry) -> float:
    return quiet_from(entry) if entry.phase is Phase.ROLLING_BACK else 0.0


def jobs(rollouts: int) -> list[Job]:
    """So many rollouts, evenly over the platforms; every eighth one fails and goes back, half of them wait deferred."""
    return [
        Job(PLATFORMS[n % 4], f"shop{n}", fails=n // 4 % 8 == 7, deferred=(n // 4 + n // 32) % 2 == 1)
        for n in range(rollouts)
    ]


def refusals() -> list[Job]:
    """Rollouts that a platform refuses for good: with 401 or 403, and with another 4xx where it has one."""
    without_id = {
        "method": "PUT",
        "path": "/apps/refused1-http",
        "json": {"image": "${image}", "version": "${version}"},
    }
    others: dict[str, dict[str, Any]] = {
        "aws_ecs": {"cluster": "no-such-cluster"},
        "azure_web_app": {"resource_group": "no-such-group"},
        "http": {"deploy": without_id},
    }
    logins = {kind: {"conn_id": f"wrong_{kind}"} for kind in PLATFORMS}
    return [
        Job(kind, f"refused{number}-{kind.replace('_', '-')}", changes=changes)
        for number, refused in enumerate((logins, others))
        for kind, changes in refused.items()
    ]


@dataclass
class Report:
    """All results of one run, and what the stand-ins saw."""

    seed: int
    seconds: float
    results: list[Result]
    calls: list[Call]

    @property
    def made(self) -> list[Result]:
        """Rollouts that no platform refused for good."""
        return [r for r in self.results if not r.job.changes]

    @property
    def good(self) -> int:
        """How many of those ended as they should."""
        return sum(r.good for r in self.made)

    @property
    def refused(self) -> Counter[str]:
        """Answers with a 4xx that cannot heal, by platform; more than one for a refused rollout is a retry of it."""
        lost = [c for c in self.calls if not c.fault and c.status and 400 <= c.status < 500 and c.status != 429]
        return Counter(call.platform for call in lost)

    def violations(self) -> list[str]:
        """What must not be, in words."""
        found = [f"{r.job} was not refused as it should be: {r}" for r in self.results if r.job.changes and not r.good]
        if self.good < 0.999 * len(self.made):
            found.append(f"only {self.good} of {len(self.made)}: {[r for r in self.made if not r.good][:5]}")
        found += [f"{r.job}: {r.duplicates} duplicate revisions" for r in self.results if r.duplicates]
        found += [f"{r.job}: unsettled, {r.phase}" for r in self.results if not r.settled]
        found += [f"{r.job}: {text}" for r in self.results for text in r.unforeseen]
        found += [f"{call} came {gap:.2f} s after a 429" for call, gap in self.hasty()]
        asked = Counter(r.job.kind for r in self.results if r.job.changes)
        # After a 401 Google's SDK asks twice more, each time with a new token; a fault in between starts that anew.
        mixed = [c for c in self.calls if c.platform == "gcp_cloud_run" and c.fault and "refused" in c.operation]
        asked["gcp_cloud_run"] = 3 * (asked["gcp_cloud_run"] + len(mixed))
        found += [f"{kind}: {n} refusals, not {asked[kind]}" for kind, n in self.refused.items() if n > asked[kind]]
        return found

    def hasty(self) -> list[tuple[Call, float]]:
        """Calls after a 429, and after how many seconds, that came before its Retry-After was over.

        By the paths of the calls, which name the resource everywhere but at ECS and over gRPC. What an application
        itself answers about its health is no answer of the platform.
        """
        found, waiting = [], dict[str, Call]()
        for call in sorted(self.calls, key=lambda c: c.at):
            resource = next((part for part in call.operation.split("/") if part.startswith(("shop", "refused"))), "")
            before = waiting.pop(resource, None)
            if before is not None and call.at - before.at < RETRY_AFTER - 0.05:
                found.append((call, call.at - before.at))
            if resource and call.fault == "429" and not call.operation.endswith("/health"):
                waiting[resource] = call
        return found


RETRY_AFTER = 3.0
"""Seconds that a 429 asks for: clearly more than the first pause would be without."""


def connect(sandbox: Sandbox) -> None:
    """Airflow Connections to the stand-ins, and for each kind a second one with a wrong secret."""
    wrong = json.dumps(sandbox.connections()).replace("sandbox-secret", "wrong-secret")
    known = {f"wrong_{kind}": json.loads(wrong)[conn_id] for kind, conn_id in CONN_IDS.items()} | sandbox.connections()
    os.environ.update({f"AIRFLOW_CONN_{name.upper()}": json.dumps(doc) for name, doc in known.items()})


def run(
    *, rollouts: int, seed: int, rate: float = 0.05, hang: float = 30.0, threads: int = 48, delay: float = 5.0
) -> Report:
    """Make the rollouts, and the refused ones among them, while so many of all calls fail.

    :param hang: seconds that a hanging call takes; the platforms' own time-outs are 30 s.
    :param delay: seconds between two tries of a task; the factory has 5.
    """
    began = time.monotonic()
    with Sandbox(seconds=1.0) as sandbox:
        connect(sandbox)
        todo = refusals() + jobs(rollouts)
        for job in todo:
            sandbox.seed(job.kind, job.resource, OLD)
            if job.fails:
                sandbox.world.rollout_faults.append(RolloutFault(job.kind, "fails", resource=job.resource))
        driver = Driver(sandbox, retry_delay=delay, poll_interval=1.0)
        sandbox.world.random_faults = RandomFaults(rate, seed, seconds=hang, retry_after=RETRY_AFTER)
        try:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(driver.run, todo))
        finally:
            driver.triggerer.stop()
        calls = [call for kind in PLATFORMS for call in sandbox.world.calls_of(kind)]
    return Report(seed, time.monotonic() - began, results, calls)


def table(report: Report) -> str:
    """What was seen, as a Markdown table by platform."""
    rows = [("platform", "rollouts", "good", "tries", "calls", *ANSWERS, "duplicates", "unsettled")]
    for kind in (*PLATFORMS, "all"):
        results = [r for r in report.made if kind in (r.job.kind, "all")]
        calls = [c for c in report.calls if kind in (c.platform, "all")]
        faults = Counter(c.fault for c in calls)
        counts = [len(results), sum(r.good for r in results), sum(r.tries for r in results), len(calls)]
        counts += [faults[answer] for answer in ANSWERS]
        counts += [sum(r.duplicates for r in results), sum(not r.settled for r in results)]
        rows.append((kind, *map(str, counts)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
