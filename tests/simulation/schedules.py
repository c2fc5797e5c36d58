"""What can happen to a release: one `Schedule` is one story, told by choices from short lists."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]
"""Picks one of a sequence: ``random.Random.choice``, or Hypothesis drawing."""

GRAPHS: dict[str, dict[str, list[Any]]] = {
    "one": {"t1": []},
    "two": {"t1": [], "t2": []},
    "chain2": {"t1": [], "t2": ["t1"]},
    "failover2": {"t1": [], "t2": [{"target": "t1", "when": "failed"}]},
    "after2": {"t1": [], "t2": [{"target": "t1", "when": "completed"}]},
    "three": {"t1": [], "t2": [], "t3": []},
    "chain3": {"t1": [], "t2": ["t1"], "t3": ["t2"]},
    "out3": {"t1": [], "t2": ["t1"], "t3": ["t1"]},
    "in3": {"t1": [], "t2": [], "t3": ["t1", "t2"]},
    "pair3": {"t1": [], "t2": ["t1"], "t3": []},
    "failover3": {"t1": [], "t2": [{"target": "t1", "when": "failed"}], "t3": [{"target": "t2", "when": "skipped"}]},
    "four": {"t1": [], "t2": [], "t3": [], "t4": []},
    "chain4": {"t1": [], "t2": ["t1"], "t3": ["t2"], "t4": ["t3"]},
    "out4": {"t1": [], "t2": ["t1"], "t3": ["t1"], "t4": ["t1"]},
    "in4": {"t1": [], "t2": [], "t3": [], "t4": ["t1", "t2", "t3"]},
    "diamond": {"t1": [], "t2": ["t1"], "t3": ["t1"], "t4": ["t2", "t3"]},
    "pairs4": {"t1": [], "t2": ["t1"], "t3": [], "t4": ["t3"]},
    "n4": {"t1": [], "t2": [], "t3": ["t1", "t2"], "t4": ["t2"]},
    "y4": {"t1": [], "t2": ["t1"], "t3": ["t2"], "t4": ["t2"]},
}
STRATEGIES = ("all", "failed", "dependents", "manual", "none")
POLICIES = ("all", "critical", "at_least")
PLACES = ("old", "first", "first_left", "live")
"""What runs at the start: another version; nothing (removed, or left, when it fails); this version already."""

FOREVER = 999
DEPLOYS: dict[str, tuple[dict[str, Any], ...]] = {
    "ok": (),
    "fails": ({"call": "deploy", "kind": "fails", "times": FOREVER},),
    "hangs": ({"call": "deploy", "kind": "hangs", "times": FOREVER},),
    "unknown": ({"call": "observe", "kind": "unknown", "of": "deploy", "times": FOREVER},),
    "drift": ({"call": "deploy", "kind": "drift"},),
    "drift_later": ({"call": "observe", "kind": "drift", "of": "deploy"},),
    "lost": ({"call": "deploy", "kind": "lost"},),
    "lost_for_good": ({"call": "deploy", "kind": "lost", "times": FOREVER},),
    "error": ({"call": "deploy", "kind": "error", "times": 2},),
    "errors": ({"call": "deploy", "kind": "error", "times": FOREVER},),
    "refused": ({"call": "deploy", "kind": "refused"},),
    "no_snapshot": ({"call": "snapshot", "kind": "refused"},),
    "snapshot_errors": ({"call": "snapshot", "kind": "error", "times": FOREVER},),
    "unseen": ({"call": "observe", "kind": "error", "of": "deploy", "times": FOREVER},),
    "denied": ({"call": "observe", "kind": "refused", "of": "deploy"},),
}
ROLLBACKS: dict[str, tuple[dict[str, Any], ...]] = {
    "ok": (),
    "fails_once": ({"call": "rollback", "kind": "fails"},),
    "fails": ({"call": "rollback", "kind": "fails", "times": FOREVER},),
    "hangs": ({"call": "rollback", "kind": "hangs", "times": FOREVER},),
    "drift": ({"call": "rollback", "kind": "drift"},),
    "drift_later": ({"call": "observe", "kind": "drift", "of": "rollback"},),
    "lost": ({"call": "rollback", "kind": "lost"},),
    "errors": ({"call": "rollback", "kind": "error", "times": FOREVER},),
    "refused": ({"call": "rollback", "kind": "refused"},),
    "unknown": ({"call": "observe", "kind": "unknown", "of": "rollback", "times": FOREVER},),
}
DEPLOY_POINTS = (
    ("start", 1),
    ("snapshot:after", 1),
    ("journal:deploying", 1),
    ("deploy:before", 1),
    ("deploy:after", 1),
    ("journal:verifying", 1),
    ("start", 2),
    ("live", 1),
    ("journal:succeeded", 1),
    ("journal:failed", 1),
)
"""Instants of a deploy task, each with its how manieth time; ``start`` 2 is a resumption or a retry."""
ROLLBACK_POINTS = (
    ("start", 1),
    ("journal:rolling_back", 1),
    ("live", 1),
    ("rollback:before", 1),
    ("rollback:after", 1),
    ("journal:rolling_back", 2),
    ("start", 2),
    ("bad", 1),
    ("journal:rolled_back", 1),
)
Action = Literal["crash", "orphan", "fail_run", "fail_task", "clear"]
ORPHANS = (0.5, 12.0, 60.0, 1000.0)
"""Seconds that a process sleeps which is thought dead."""


@dataclass(frozen=True)
class Trouble:
    """Something that happens to a task at an instant.

    :param nth: at that how manieth time; 0: each time.
    :param seconds: how long an orphan sleeps.
    """

    task: str
    point: str
    nth: int = 1
    action: Action = "crash"
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """One story.

    :param deploys: per target, how the platform takes the deploy; ``rollbacks`` likewise.
    :param places: per target, what runs at the start.
    :param marks: per target, whether it is critical.
    :param after: what comes when the run is over: another release, one by force, one of the same version, one that
        reconciles first, the reconciler, a task that is cleared with everything downstream of it, a deploy that is
        cleared alone, all failed tasks and no others.
    :param selected: how many of the targets the run names.
    """

    graph: str
    strategy: str = "all"
    policy: str = "all"
    deploys: tuple[str, ...] = ("ok",)
    rollbacks: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    marks: tuple[bool | None, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    retries: int = 1
    deferrable: bool = True
    keep: bool = False
    after: str = ""
    before: bool = False
    selected: int = 4
    seed: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(GRAPHS[self.graph])

    def of(self, values: tuple[T, ...], target: str, default: T) -> T:
        """A target's own of some values."""
        index = self.targets.index(target)
        return values[index] if index < len(values) else default


AFTER = (
    *("", "release", "force", "again", "reconcile", "reconciler"),
    *("clear_deploy", "clear_rollback", "clear_alone", "clear_failed"),
)


def deploy_task(target: str) -> str:
    """Its task id."""
    return f"{target}.deploy"


def rollback_task(target: str) -> str:
    """Its task id."""
    return f"rollback.{target}"


def troubles_of(target: str) -> Iterator[tuple[Trouble, ...]]:
    """Everything that can happen to one target's tasks, alone."""
    yield ()
    for task, points in ((deploy_task(target), DEPLOY_POINTS), (rollback_task(target), ROLLBACK_POINTS)):
        for point, nth in points:
            yield (Trouble(task, point, nth),)
            yield (Trouble(task, point, 0),)
            for seconds in ORPHANS:
                yield (Trouble(task, point, nth, "orphan", seconds),)
            for action in ("fail_run", "fail_task", "clear"):
                yield (Trouble(task, point, nth, action),)


def singles() -> Iterator[Schedule]:
    """One target: every outcome with every trouble, strategy and start; and every way back with every trouble."""
    for deploy, troubles, strategy, place in itertools.product(DEPLOYS, troubles_of("t1"), ("all", "none"), PLACES):
        yield Schedule("one", strategy, deploys=(deploy,), troubles=troubles, places=(place,))
    bad = ("fails", "unknown", "lost_for_good")
    for deploy, back, troubles, place in itertools.product(bad, ROLLBACKS, troubles_of("t1"), PLACES[:3]):
        yield Schedule("one", deploys=(deploy,), rollbacks=(back,), troubles=troubles, places=(place,))


def corners() -> Iterator[Schedule]:
    """What no number of schedules leaves out: every trouble with the outcomes that matter most; what comes after; an
    orphan that writes while its run goes back, and then dies, or wakes up later; and a dependency that dies.
    """
    for deploy, troubles in itertools.product(("ok", "fails", "unseen", "lost_for_good"), troubles_of("t1")):
        yield Schedule("one", deploys=(deploy,), troubles=troubles)
    for tenths, strategy, seed in itertools.product(range(120, 220, 4), ("all", "failed"), range(2)):
        orphan = Trouble(deploy_task("t1"), "deploy:before", 1, "orphan", tenths / 10)
        killed = Trouble(deploy_task("t1"), "deploy:after", 2)
        yield Schedule("one", strategy, deploys=("fails",), troubles=(orphan, killed), seed=seed)
    for after, retries in itertools.product(AFTER, (0, 1)):
        never = (Trouble(rollback_task("t1"), "start", 0),)
        yield Schedule("two", deploys=("ok", "fails"), troubles=never, after=after, retries=retries)
    for failed, strategy, policy in itertools.product(("no_snapshot", "refused", "hangs"), STRATEGIES, POLICIES):
        for after, retries in itertools.product(("clear_deploy", "clear_alone", "clear_failed"), (0, 1)):
            yield Schedule("two", strategy, policy, (failed, "ok"), after=after, retries=retries)
    for strategy, place in itertools.product(STRATEGIES, PLACES):
        taken_over: dict[str, Any] = {"deploys": ("no_snapshot", "fails"), "rollbacks": ("ok", "errors")}
        yield Schedule("failover2", strategy, **taken_over, places=(place,), retries=0, after="clear_deploy")
    for seconds, deploy in itertools.product(range(20, 120, 5), ("fails", "refused")):
        late = (Trouble(rollback_task("t1"), "journal:rolling_back", 1, "orphan", float(seconds)),)
        yield Schedule("two", "failed", "at_least", (deploy, "ok"), troubles=late, after="clear_deploy")
    yield from awakenings()
    unsaid = (Trouble("finalize", "start", 0),)
    for deploy, after in itertools.product(("fails", "unknown", "lost_for_good"), AFTER):  # left, and nobody said so
        yield Schedule("chain2", deploys=("ok", deploy), places=("old", "first_left"), troubles=unsaid, after=after)
    for died, strategy, policy in itertools.product(("snapshot_errors", "no_snapshot"), STRATEGIES, POLICIES):
        for graph, marks in (
            ("chain2", (False, True)),
            ("in3", (False, None, True)),
            ("n4", (False, None, True, False)),
        ):
            yield Schedule(graph, strategy, policy, (died,), marks=marks)
    dead = (Trouble("aggregate_status", "start", 0),)
    for deploy, back, after in itertools.product(("ok", "fails", "unknown"), ("ok", "fails", "errors"), AFTER):
        for graph, strategy, troubles in itertools.product(("one", "chain2"), ("all", "none"), ((), dead)):
            yield Schedule(graph, strategy, "all", (deploy, "fails"), (back,), after=after, troubles=troubles)


def awakenings() -> Iterator[Schedule]:
    """A deploy that was thought dead wakes up when its run is over, or has been cleared, and gone back again."""
    for (point, nth), seconds, strategy in itertools.product(DEPLOY_POINTS, ORPHANS, ("all", "none")):
        awake = (Trouble(deploy_task("t1"), point, nth, "orphan", seconds),)  # nobody tries again before it wakes up
        yield Schedule("one", strategy, troubles=awake, retries=0)
        yield Schedule("two", strategy, deploys=("ok", "fails"), troubles=awake, retries=0)
    for seconds in (5.0, 7.0, 9.0):  # of a first-ever release that is left, beside the next one
        awake = (Trouble(deploy_task("t1"), "deploy:before", 1, "orphan", seconds),)
        yield Schedule("one", places=("first_left",), troubles=awake, retries=0, after="release")
    for seconds, bad, strategy in itertools.product(ORPHANS, ("unseen", "fails", "refused"), ("all", "dependents")):
        awake = (Trouble(deploy_task("t1"), "deploy:before", 1, "orphan", seconds),)
        for dies in ((), (Trouble(deploy_task("t1"), "start", 2, "fail_task"),)):
            yield Schedule("two", strategy, deploys=("ok", bad), troubles=awake + dies, retries=0, after="clear_deploy")


SHORT = ("ok", "fails", "hangs", "unknown", "drift", "lost", "errors", "refused")
CRASHES = (None, "start", "journal:deploying", "deploy:after", "journal:verifying", "journal:succeeded")
BACK = ("ok", "fails_once", "fails", "errors")


def pairs() -> Iterator[Schedule]:
    """Two targets: every graph, strategy and policy with every pair of outcomes, of crashes and of ways back."""
    shapes = ("two", "chain2", "failover2", "after2")
    rules = tuple(itertools.product(shapes, STRATEGIES, POLICIES, ((), (True, False))))
    for (graph, strategy, policy, marks), first, second in itertools.product(rules, SHORT, SHORT):
        base: dict[str, Any] = {"graph": graph, "strategy": strategy, "policy": policy, "marks": marks}
        yield Schedule(**base, deploys=(first, second))
        if first in ("fails", "refused") or second in ("fails", "refused"):
            for backs in itertools.product(BACK, BACK):
                if backs != ("ok", "ok"):
                    yield Schedule(**base, deploys=(first, second), rollbacks=backs)
        if (first, second) in (("ok", "ok"), ("ok", "fails"), ("fails", "ok")):
            for one, two, nth in itertools.product(CRASHES, CRASHES, (0, 1)):
                crashed = [(t, point) for t, point in (("t1", one), ("t2", two)) if point is not None]
                troubles = tuple(Trouble(deploy_task(target), point, nth) for target, point in crashed)
                if troubles:
                    yield Schedule(**base, deploys=(first, second), troubles=troubles)


def draw(choose: Choose) -> Schedule:
    """Any schedule, by choices; the first of each list is the plainest."""
    graph = choose(tuple(GRAPHS))
    targets = tuple(GRAPHS[graph])
    usual = ("ok", "ok", "ok", "fails")
    places = ("old", "old", "old")
    return Schedule(
        graph,
        strategy=choose(STRATEGIES),
        policy=choose(POLICIES),
        deploys=tuple(choose((*usual, *DEPLOYS)) for _ in targets),
        rollbacks=tuple(choose(("ok", "ok", "ok", *ROLLBACKS)) for _ in targets),
        places=tuple(choose(places + PLACES) for _ in targets),
        marks=tuple(choose((None, None, True, False)) for _ in targets),
        troubles=tuple(_trouble(choose, targets) for _ in range(choose((0, 0, 1, 1, 2, 3)))),
        retries=choose((1, 0, 2)),
        deferrable=choose((True, True, False)),
        keep=choose((False, False, True)),
        after=choose(("", "", *AFTER)),
        before=choose((False, False, False, True)),
        selected=choose((4, 4, 4, 3, 2, 1)),
        seed=choose(range(1000)),
    )


def _trouble(choose: Choose, targets: Sequence[str]) -> Trouble:
    kind = choose(("deploy", "deploy", "rollback", "rollback", "other"))
    if kind == "other":
        return Trouble(choose(("aggregate_status", "plan")), "start", choose((1, 0)), choose(("crash", "fail_run")))
    points = DEPLOY_POINTS if kind == "deploy" else ROLLBACK_POINTS
    point, nth = choose(points)
    task = (deploy_task if kind == "deploy" else rollback_task)(choose(targets))
    action = choose(("crash", "crash", "orphan", "orphan", "fail_run", "fail_task", "clear"))
    if action == "crash":
        nth = choose((nth, nth, 0, nth + 1))
    return Trouble(task, point, nth, action, choose(ORPHANS) if action == "orphan" else 0.0)


@cache
def listed() -> tuple[tuple[Schedule, ...], ...]:
    """The corners, all of one target, and all of two."""
    known: set[Schedule] = set()
    found = []
    for source in (corners, singles, pairs):
        found.append(tuple(schedule for schedule in dict.fromkeys(source()) if schedule not in known))
        known.update(found[-1])
    return tuple(found)


def schedules(number: int, seed: int) -> Iterator[Schedule]:
    """That many distinct schedules: of each list a third, or the whole list where that is less; for the rest random
    ones of all graphs. Mixed, so that the first thousand are of every kind.
    """
    rng = random.Random(seed)
    chosen = [rng.sample(everything, min(len(everything), number // 3)) for everything in listed()]
    known = {schedule for some in chosen for schedule in some}
    drawn = number - len(known)
    while number:
        kind = rng.choices(range(4), weights=[*map(len, chosen), drawn])[0]
        if kind < 3:
            schedule = chosen[kind].pop()
        else:
            while (schedule := draw(rng.choice)) in known:
                pass
            known.add(schedule)
            drawn -= 1
        number -= 1
        yield schedule
