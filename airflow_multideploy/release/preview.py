"""What a release would do, told before it does anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Literal

from airflow_multideploy.catalog.approval import Gate
from airflow_multideploy.catalog.locks import locks
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.service import AtLeast, Service
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.release.contract import Document, Release, Snapshot
from airflow_multideploy.release.ledger import percentile
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.release.status import critical_targets
from airflow_multideploy.release.windows import Blocked

STRATEGIES = {
    "all": "every target that the release touched goes back",
    "failed": "the targets that failed go back, the healthy ones stay",
    "dependents": "the targets that failed go back, and those that depend on them",
    "manual": "a person decides what goes back",
    "none": "nothing goes back",
}


class Look(Document):
    """What was found out about one target, without writing anything.

    :param snapshot: what runs there; None where the platform did not answer.
    :param error: why it did not, in its words.
    :param previous: the release that the journal last saw live there.
    :param restores: what a way back brings back on this platform.
    :param durations: seconds that the good deploys there took.
    """

    snapshot: Snapshot | None = None
    error: str = ""
    previous: Release | None = None
    restores: str = ""
    durations: tuple[float, ...] = ()


class Expected(Document):
    """How long it takes, by the releases before: seconds that half of them, and 19 of 20, did not exceed.

    :param releases: how many there were, of the target that has the fewest.
    """

    p50: float
    p95: float
    releases: int


class Live(Document):
    """What runs on a target now; ``exists`` is False where nothing does."""

    exists: bool
    version: str | None
    image: str | None
    revision: str | None


class TargetPreview(Document):
    """What a release would do to one target.

    :param wave: 1 for the first; None: it takes no part.
    :param change: ``same tag``: the tag is live, and what it stands for today is not known; the platform decides.
    :param after: what it waits for.
    :param why: of one that takes no part, or whose platform did not answer.
    :param live: None where nobody could be asked.
    :param way_back: where a rollback would lead.
    """

    target: str
    platform: str
    wave: int | None
    change: Literal["release", "same tag", "no change", "none", "unknown"]
    after: tuple[str, ...] = ()
    why: str = ""
    live: Live | None = None
    lock: str | None = None
    expected: Expected | None = None
    way_back: str = ""
    restores: str = ""


class Preview(Document):
    """What a release would do; nothing was written to find it out.

    :param refusals: why it would be refused; empty: it would be released.
    :param held: the windows and freezes that hold it up now; empty: it may write at once.
    :param start: when it may write, in UTC, where it waits for that.
    :param override: what it is let past, and why.
    :param approval: who is asked before the first write; empty: nobody.
    :param requires: what has to be live elsewhere first, and is not, where it waits for that.
    """

    service: str
    version: str | None = None
    image: str | None = None
    digest: str | None = None
    refusals: tuple[str, ...] = ()
    held: str = ""
    start: str | None = None
    override: str = ""
    approval: str = ""
    requires: tuple[str, ...] = ()
    expected: Expected | None = None
    success: str = ""
    rollback: str = ""
    waves: tuple[tuple[str, ...], ...] = ()
    targets: tuple[TargetPreview, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every platform answered."""
        return all(target.change != "unknown" for target in self.targets)


def make_preview(
    plan: Plan,
    service: Service,
    looks: Mapping[str, Look],
    *,
    refusals: Sequence[str] = (),
    held: Blocked | None = None,
    past: Blocked | None = None,
    requires: Sequence[str] = (),
) -> Preview:
    """What the plan would do, by what was found out about its targets.

    :param looks: of each selected target.
    :param refusals: why it would be refused.
    :param held: what windows and freezes say now, where they do not let it write at once.
    :param past: what they would say without the run's override.
    :param requires: other services' versions that it would wait for.
    """
    targets = tuple(_target(plan, service, name, looks.get(name)) for name in service.targets)
    opens = None if held is None or held.opens is None or refusals else held.opens.astimezone(UTC)
    return Preview(
        service=plan.name,
        version=plan.release.version,
        image=plan.release.image,
        digest=plan.release.digest,
        refusals=tuple(refusals),
        held="" if held is None else held.reason,
        start=opens and opens.isoformat(timespec="seconds"),
        override=f"{plan.override}; past: {past.reason if past else 'nothing now'}" if plan.override else "",
        approval=_asks(service.approval) if service.approval else "",
        requires=tuple(requires),
        expected=_expected(service, targets),
        success=_success(plan, service),
        rollback=_rollback(service),
        waves=plan.waves,
        targets=targets,
    )


def _asks(approval: Gate) -> str:
    who = ", ".join(approval.users or ()) or "anybody who may answer"
    return f"{who}, within {approval.timeout:g} s (else {approval.default})"


def _target(plan: Plan, service: Service, name: str, look: Look | None) -> TargetPreview:
    config = service.targets[name]
    wave = next((number for number, wave in enumerate(plan.waves, start=1) if name in wave), None)
    told = TargetPreview(target=name, platform=config.platform, wave=wave, change="none")
    if wave is None or look is None:
        return told.model_copy(update={"why": plan.skipped.get(name, "not selected")})
    lock = locks(service).get(name)
    edges = [edge for edge in config.depends_on if edge.target in (*plan.selected, *plan.skipped)]
    common = {
        "after": (*(f"{edge.target} {edge.when}" for edge in edges), *(["approval"] if config.approval else [])),
        "lock": lock.name if lock else None,
        "restores": look.restores,
    }
    if look.snapshot is None:
        unknown = {"change": "unknown", "why": look.error, "way_back": "unknown"}
        return told.model_copy(update={**common, **unknown, "expected": _of(look.durations)})
    change = _change(plan.release, look.snapshot)
    nothing = Expected(p50=0.0, p95=0.0, releases=len(look.durations))
    return told.model_copy(
        update={
            **common,
            "change": change,
            "live": _live(look.snapshot, look.previous),
            "expected": nothing if change == "no change" else _of(look.durations),
            "way_back": "nothing to undo" if change == "no change" else _way_back(config, look.snapshot),
        }
    )


def _change(release: Release, snapshot: Snapshot) -> Literal["release", "same tag", "no change"]:
    if release.force or not snapshot.exists or snapshot.image != release.image:
        return "release"
    return "no change" if "@" in release.image else "same tag"


def _live(snapshot: Snapshot, previous: Release | None) -> Live:
    """With the version where it is known: by our own journal, or by the image's tag."""
    version = None
    if snapshot.exists and previous is not None and snapshot.image in (None, previous.image):
        version = previous.version
    elif snapshot.image and "@" not in snapshot.image:
        version = snapshot.image.rpartition("/")[2].partition(":")[2] or None
    return Live(exists=snapshot.exists, version=version, image=snapshot.image, revision=snapshot.revision)


def _way_back(config: TargetConfig, snapshot: Snapshot) -> str:
    if snapshot.exists:
        return f"back to {snapshot.revision or snapshot.image or 'what runs now'}"
    return "removed again" if config.first_deploy == "remove" else "left as it is (first_deploy: leave)"


def _of(durations: Sequence[float]) -> Expected | None:
    p50, p95 = percentile(durations, 50), percentile(durations, 95)
    return None if p50 is None or p95 is None else Expected(p50=p50, p95=p95, releases=len(durations))


def _expected(service: Service, targets: Sequence[TargetPreview]) -> Expected | None:
    """The longest way through dependencies and lanes; None where one target's share is not known."""
    part = {target.target: target.expected for target in targets if target.wave is not None}
    known = {name: expected for name, expected in part.items() if expected is not None}
    if not known or len(known) < len(part):
        return None
    order = [name for wave in waves(service.targets) for name in wave]

    def longest(each: Mapping[str, float]) -> float:
        ends: dict[str, float] = {}
        for number, name in enumerate(order):
            before = [edge.target for edge in service.targets[name].depends_on]
            if service.max_parallel is not None and number >= service.max_parallel:
                before.append(order[number - service.max_parallel])
            ends[name] = max((ends[other] for other in before), default=0.0) + each.get(name, 0.0)
        return max(ends.values())

    return Expected(
        p50=longest({name: expected.p50 for name, expected in known.items()}),
        p95=longest({name: expected.p95 for name, expected in known.items()}),
        releases=min(expected.releases for expected in known.values()),
    )


def _success(plan: Plan, service: Service) -> str:
    policy = service.success.policy
    critical = critical_targets({name: target.critical for name, target in service.targets.items()})
    counting = ", ".join(name for name in plan.selected if critical[name])
    if isinstance(policy, AtLeast):
        marked = any(target.critical for target in service.targets.values())
        return f"at least {policy.at_least} targets succeed" + (f", and: {counting}" if marked and counting else "")
    return f"these succeed: {counting}" if policy == "critical" and counting else "all targets succeed"


def _rollback(service: Service) -> str:
    stopped = "what the run touched goes back" if service.rollback.cancel == "rollback" else "all stays as it is"
    return f"otherwise {STRATEGIES[service.rollback.strategy]}; when the run is marked failed, {stopped}"


# --- for people


def summary(preview: Preview) -> list[str]:
    """What concerns the release as a whole, a line each."""
    lines = [f"{preview.service} {preview.version or '(no version)'}: " + ("REFUSED" if preview.refusals else "ready")]
    lines += [f"refused: {why}" for why in preview.refusals]
    if not preview.targets:
        return lines
    lines.append(f"image: {preview.image}")
    if not preview.refusals:
        but = f"{preview.start}: {preview.held}" if preview.start else f"at once, but not there: {preview.held}"
        lines.append(f"first write: {but if preview.held else 'at once'}")
    if preview.override:
        lines.append(f"override: {preview.override}")
    if preview.approval:
        lines.append(f"approval: {preview.approval}")
    lines += [f"waits for: {each}" for each in preview.requires]
    lines.append(f"expected: {seconds(preview.expected)}")
    return [*lines, f"success: {preview.success}", f"rollback: {preview.rollback}"]


def seconds(expected: Expected | None) -> str:
    """How long it takes, in words."""
    if expected is None:
        return "not known: no good release yet"
    return f"{expected.p50:.0f} s (P95 {expected.p95:.0f} s, {expected.releases} before)"


def rows(preview: Preview) -> list[dict[str, str]]:
    """The targets as rows of text."""
    return [
        {
            "wave": str(target.wave or "-"),
            "target": target.target,
            "platform": target.platform,
            "live": _shown(target.live),
            "change": f"to {preview.version}" if target.change == "release" else target.change,
            "waits for": ", ".join([*target.after, *([f"lock {target.lock}"] if target.lock else [])]),
            "expected": seconds(target.expected) if target.wave else "",
            "rollback": target.way_back,
            "remark": target.why,
        }
        for target in preview.targets
    ]


def _shown(live: Live | None) -> str:
    if live is None:
        return ""
    if not live.exists:
        return "nothing"
    known = live.version or live.image or "runs"
    return f"{known} ({live.revision})" if live.revision else known


def markdown(preview: Preview) -> str:
    """The preview as a Markdown document."""
    from tabulate import tabulate  # here: every task's process would wait for it

    first, *others = summary(preview)
    lines = [f"# {_plain(first)}", "", *(f"- {_plain(line)}" for line in others)]
    if preview.targets:
        cells = [{key: _plain(value) for key, value in row.items()} for row in rows(preview)]
        lines += ["", tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
