"""What a cell came to: judged from the platforms' own state, the journals, the result document and the run's colour."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_multideploy.release.journal import GOOD, Entry, Phase
from tests.chaos.kills import Started
from tests.chaos.stack import NEW, NEXT, OLD, Gone

TARGETS = ("hit", "other")
ADMITTED = frozenset({"rollback_failed", "unknown"})
"""Statuses that say: look at it; the reason names the targets."""
REVISION_BACK = ("http", "azure_web_app")
"""Platforms on which the way back creates a revision too."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    executor: str
    kill: str
    instant: str
    platform: str
    state: str
    status: str
    live: str
    seconds: float
    next: str
    notes: str
    violations: tuple[str, ...]

    HEAD = (
        "| executor | kill | instant | platform | run | status | live | seconds | next release | notes | violations |"
    )

    def line(self) -> str:
        """As Markdown."""
        said = "; ".join(self.violations) or "none"
        cells = [self.executor, self.kill, self.instant, self.platform, self.state, self.status, self.live]
        cells += [f"{self.seconds:.0f}", self.next, self.notes, said]
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def judge(one: Started, bound: float) -> Row:
    """Wait for the end of the run, check every invariant, and release once more."""
    cell, stack = one.cell, one.stack
    state, document, found, following = "not reached", None, list(one.notes), "-"
    if one.struck:
        try:
            state = stack.finish(cell.service, one.run_id, bound)
        except Gone:
            state = "stuck"
        seconds = time.time() - one.struck
        document = _document(one)
        _settle(one)
        entries = {target: stack.journal(cell.service, target) for target in TARGETS}
        found = list(_violations(one, state, document, entries))
        live = {target: stack.live(cell.service, target)[0] for target in TARGETS}
        if found:
            _keep(one, state, document, entries)
        if state != "stuck":
            following, wrong = _next(one)
            found += wrong
    else:
        seconds, live = time.time() - one.began, {}
    return Row(
        executor=stack.executor,
        kill=cell.kill.name,
        instant=cell.instant,
        platform=cell.platform,
        state=state,
        status=str((document or {}).get("status", "-")),
        live=" ".join(f"{target} {tag}" for target, tag in live.items()),
        seconds=seconds,
        next=following,
        notes="; ".join(one.notes),
        violations=tuple(found),
    )


def _document(one: Started) -> dict[str, Any] | None:
    path = f"/dags/{one.cell.service}/dagRuns/{one.run_id}/taskInstances/finalize/xcomEntries/return_value"
    answer = one.stack.api("GET", path, ok=(200, 404), params={"deserialize": "true"})
    value: dict[str, Any] | None = answer.get("value")
    return value


def _settle(one: Started) -> None:
    """Wait until the platforms have come to rest."""
    time.sleep(3 if one.cell.moment == "late" else 0)
    for target in TARGETS:
        with suppress(Gone):
            one.stack.until("at rest", partial(_rests, one, target), timeout=25)


def _rests(one: Started, target: str) -> bool:
    return one.stack.live(one.cell.service, target)[1]


def _violations(
    one: Started, state: str, document: dict[str, Any] | None, entries: dict[str, Entry | None]
) -> Iterator[str]:
    if state == "stuck":
        yield "stuck"
    if document is None:
        yield "no result document"
        return
    status, results = document["status"], {result["target"]: result for result in document["results"]}
    good = status in ("succeeded", "degraded") and not document["cancelled"]
    if state != "stuck" and (state == "success") != good:
        yield f"run {state}, status {status}"
    cut = {"mark run failed": one.cell.stage == "deploy", "mark task failed": False}.get(one.cell.kill.name)
    if cut is not None and document["cancelled"] != cut:
        yield f"cancelled: {document['cancelled']}"
    wanted = {"succeeded": NEW, "rolled_back": OLD}.get(status)
    for target in TARGETS:
        entry, (live, rest) = entries[target], one.stack.live(one.cell.service, target)
        named = status in ADMITTED and f"{target}: " in document["reason"]
        if wanted is not None and live != wanted and (results[target]["touched"] or status == "succeeded"):
            yield f"{status}, but {target} serves {live}"
        if not rest and not named:
            yield f"{target}: a rollout is still under way"
        yield from _target(one, target, entry, live, named=named)


def _target(one: Started, target: str, entry: Entry | None, live: str, *, named: bool) -> Iterator[str]:
    made = one.stack.revisions(one.cell.service, target)
    if entry is None:
        if made or live != OLD:
            yield f"{target}: written, but no journal"
        return
    if entry.unsettled and not named:
        yield f"{target}: unsettled ({entry.phase}) and not named in the status"
    if entry.phase is Phase.ROLLED_BACK and live != OLD:
        yield f"{target}: journal rolled_back, live {live}"
    if entry.phase in GOOD and live != NEW:
        yield f"{target}: journal {entry.phase}, live {live}"
    platform = str(entry.config["platform"])
    backs = entry.rollout if entry.rollback_started_at is not None and platform in REVISION_BACK else 0
    if made > entry.rollout + backs:
        yield f"{target}: {made} revisions by {entry.rollout} rollouts"


def _next(one: Started) -> tuple[str, list[str]]:
    """A plain release of the same service afterwards: how it went, and what is wrong about that."""
    stack, service = one.stack, one.cell.service
    try:
        run_id = stack.until("triggered", lambda: stack.airflow.trigger(service, {"version": NEXT}), timeout=30)
        state = stack.finish(service, run_id, 120)
    except Gone as error:
        return "stuck", [f"next release: {error}"]
    document = stack.airflow.xcom(service, run_id, "finalize") or {}
    status, reason = str(document.get("status")), str(document.get("reason"))
    if status == "not_started" and "in doubt" in reason:
        return "refused: in doubt", []
    live = [stack.live(service, target)[0] for target in TARGETS]
    if (state, status, live) == ("success", "succeeded", [NEXT, NEXT]):
        return "succeeded", []
    return status, [f"next release: {state}, {status}, live {live}: {reason[:300]}"]


def _keep(one: Started, state: str, document: dict[str, Any] | None, entries: dict[str, Entry | None]) -> None:
    """Leave all facts of a cell with violations beside the logs."""
    stack, service = one.stack, one.cell.service
    path = f"/dags/{service}/dagRuns/{one.run_id}/taskInstances"
    tries = {
        task["task_id"]: (task["state"], task["try_number"], task["start_date"], task["end_date"])
        for task in stack.api("GET", path, params={"limit": 100})["task_instances"]
    }
    place = [service, f"{service}-other"]
    calls = [
        (call.at - one.struck, call.platform, call.operation, call.status, call.fault)
        for call in stack.sandbox.world.calls
        if call.writes and (call.platform == "aws_ecs" or any(name in call.operation for name in place))
    ]
    facts = {
        "run_id": one.run_id,
        "struck": one.struck,
        "state": state,
        "tasks": tries,
        "document": document,
        "journals": {target: entry and entry.dump() for target, entry in entries.items()},
        "writes (seconds after the kill)": calls,
    }
    folder = stack.home / "violations"
    folder.mkdir(exist_ok=True)
    (folder / f"{service}.json").write_text(json.dumps(facts, indent=1, default=str))
