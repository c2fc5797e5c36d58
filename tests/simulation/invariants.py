"""What holds after every schedule. An invariant is a function: its name and docstring say it, it gives the breaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation.oracle import Oracle
from tests.simulation.play import FOREIGN, SERVICE, Story
from tests.simulation.runs import Run

Invariant = Callable[[Story], Iterator[str]]
INVARIANTS: list[Invariant] = []


def invariant(function: Invariant) -> Invariant:
    """Registers it."""
    INVARIANTS.append(function)
    return function


def releases(story: Story) -> list[Run]:
    """The story's releases that ran to their end."""
    return [run for run in story.airflow.runs if run.run_id != "reconcile" and run.state != "running"]


def verdict(run: Run) -> Any:
    """What ``finalize`` said; None when it could not."""
    return run.value("finalize")


def entry(story: Story, target: str) -> Any:
    """A target's journal."""
    store = story.airflow.stores.get(f"{SERVICE}/journal")
    return store.get(f"{target}.journal") if store is not None else None


def of_run(story: Story, run_id: str, target: str, *, over: bool = False) -> Any:
    """A target's journal as that run last left it; with ``over``, as it was when the run ended."""
    steps = story.steps[: story.marks[f"{run_id} over"]] if over else story.steps
    kept = [s.value for s in steps if s.target == target and s.what == "journal" and s.value["run_id"] == run_id]
    return kept[-1] if kept else None


@invariant
def it_always_ends(story: Story) -> Iterator[str]:
    """Every run comes to its end, in bounded time and steps, without an error of its own making."""
    if story.error:
        yield story.error


@invariant
def never_rolled_back_without_verification_after_last_write(story: Story) -> Iterator[str]:
    """Whenever a journal comes to say ``rolled_back``, a healthy look at the target came after the last write there."""
    looked = dict.fromkeys(story.beyond, True)
    for step in story.steps:
        if step.what == "wrote":
            looked[step.target] = step.target in story.beyond
        elif step.what == "seen" and step.value == ("rollback", "healthy"):
            looked[step.target] = True
        elif step.what == "journal" and step.value["phase"] == "rolled_back" and not looked.get(step.target):
            yield f"{step.target} at {step.at:.1f}"


@invariant
def rolled_back_is_never_a_lie(story: Story) -> Iterator[str]:
    """In the end, a target whose journal says ``rolled_back`` serves what its snapshot says."""
    for target in story.schedule.targets:
        kept = entry(story, target)
        if kept is None or kept["phase"] != "rolled_back" or target in story.beyond:
            continue
        live, well = story.now(target)
        snapshot = kept["snapshot"]["revision"]
        if not well or live != snapshot:
            yield f"{target} serves {live} (well: {well}), its snapshot is {snapshot}"


@invariant
def succeeded_is_never_a_lie(story: Story) -> Iterator[str]:
    """In the end, a target whose journal says ``succeeded`` or ``unchanged`` serves that release.

    That revision, or the one that the same run made for the same image before a person cleared it: an attempt from
    before the clearing may write that one once more.
    """
    for target in story.schedule.targets:
        kept = entry(story, target)
        if kept is None or kept["phase"] not in ("succeeded", "unchanged") or target in story.beyond:
            continue
        live, well = story.now(target)
        if not well or (live != kept["handle"]["revision"] and not _same(story, target, live, kept["release"])):
            yield f"{target} serves {live} (well: {well}), not {kept['handle']['revision']}"


@invariant
def a_good_status_counts_only_what_is_there(story: Story) -> Iterator[str]:
    """No release is ``succeeded`` or ``degraded`` by a target that was healthy once and has gone back since."""
    for run in releases(story):
        said = verdict(run)
        if said is None or said["status"] not in ("succeeded", "degraded"):
            continue
        for result in said["results"]:
            if result["deployed"] in ("succeeded", "unchanged") and result["phase"] != result["deployed"]:
                yield f"{run.run_id}: {said['status']}, and {result['target']} is {result['phase']}"


def _same(story: Story, target: str, revision: str | None, release: dict[str, Any]) -> bool:
    """Whether the revision is another rollout's of the same run, of the same image."""
    if revision is None:
        return False
    made = story.world.places[f"{SERVICE}/{target}"].revisions[revision]
    same = str(made.release_id).split("-")[0] == str(release["release_id"]).split("-")[0]
    return same and made.image == release["image"]


@invariant
def no_dependency_reverted_before_its_dependents(story: Story) -> Iterator[str]:
    """When a rollback writes, no target that depends on this one, and has to go back too, still serves the release."""
    for run in releases(story):
        oracle = Oracle(story, run)
        said = verdict(run)
        restore = set(said["restore"]) if said else set(oracle.selected)
        live: dict[str, str | None] = {}
        for step in oracle.steps:
            live[step.target] = step.live
            if step.what != "wrote" or not step.task.startswith("rollback."):
                continue
            for other in oracle._above({step.target}) - {step.target}:
                if other in restore and _of(story, other, live.get(other), run):
                    yield f"{run.run_id}: {step.target} went back at {step.at:.1f} while {other} serves the release"


def _of(story: Story, target: str, revision: str | None, run: Run) -> bool:
    place = story.world.places[f"{SERVICE}/{target}"]
    if revision is None:
        return False
    kept = of_run(story, run.run_id, target)
    mine = str(kept["release"]["release_id"]).split("-")[0] if kept else None
    if kept and kept["snapshot"] is None and kept["config"]["first_deploy"] == "leave":
        return False
    left = kept and kept["config"]["first_deploy"] == "leave" and kept["snapshot"] and not kept["snapshot"]["exists"]
    return not left and str(place.revisions[revision].release_id).split("-")[0] == mine


@invariant
def every_touched_target_settled_or_named_in_status(story: Story) -> Iterator[str]:
    """A target that a run wrote to is settled in its journal, or the run's status is bad and its reason names it.

    So is one that should be back and is not. What an attempt that was thought dead does after the end of its run can
    be in no status: its journal then says that it is in doubt.
    """
    for run in releases(story):
        oracle, said = Oracle(story, run), verdict(run)
        own = [step for step in oracle.steps if step.run == run.run_id and step.task != "plan"]
        wrote = {step.target for step in own if step.what == "wrote"}
        for target in said["restore"] if said and said["status"] == "rollback_failed" else ():
            if True not in oracle.back(target) and target not in said["reason"]:
                yield f"{run.run_id}: {target} is not back, and {said['reason']!r} does not name it"
        for target in sorted(wrote):
            kept = of_run(story, run.run_id, target, over=True)
            if kept is None and of_run(story, run.run_id, target) is None:
                yield f"{run.run_id}: {target} was written, and no journal says so"
            elif kept is None:
                continue
            elif not kept["settled"] and said is not None:
                bad = said["status"] in ("rollback_failed", "unknown", "failed", "partially_rolled_back")
                if not bad or target not in said["reason"]:
                    yield f"{run.run_id}: {target} is {kept['phase']}, unsettled; {said['status']}: {said['reason']}"


@invariant
def a_way_back_that_failed_is_told_as_the_journal_tells_it(story: Story) -> Iterator[str]:
    """What the status says of a target that should be back and is not are the journal's words, not the deploy's."""
    for run in releases(story):
        for result in (verdict(run) or {"results": ()})["results"]:
            kept = of_run(story, run.run_id, result["target"], over=True)
            failed = result["phase"] == "rollback_failed" and kept and kept["phase"] == "rollback_failed"
            if failed and not run.clear_number and result["reason"] != kept["reason"]:
                yield f"{run.run_id}: {result['target']}: {result['reason']!r}, and the journal says {kept['reason']!r}"


@invariant
def what_should_be_back_and_is_not_is_in_doubt(story: Story) -> Iterator[str]:
    """A target that a run should have sent back, and did not, never stands in its journal as a good and settled one."""
    for run in releases(story):
        said = verdict(run)
        for target in said["restore"] if said and not run.clear_number else ():
            kept = of_run(story, run.run_id, target, over=True)
            if kept and kept["settled"] and kept["phase"] in ("succeeded", "unchanged"):
                yield f"{run.run_id}: {target} is {kept['phase']}, and should be back"


@invariant
def what_is_verified_back_stays_settled(story: Story) -> Iterator[str]:
    """A journal that says ``rolled_back`` is opened again only when the target no longer serves the snapshot."""
    last: dict[str, Any] = {}
    for step in story.steps:
        if step.what == "journal":
            before, kept = last.get(step.target), step.value
            last[step.target] = kept
            if before is None or before["phase"] != "rolled_back" or kept["phase"] in ("rolled_back", "deploying"):
                continue
            if before["run_id"] == kept["run_id"] and step.live == kept["snapshot"]["revision"]:
                yield f"{step.target} at {step.at:.1f}: {kept['phase']}"


@invariant
def what_is_left_on_purpose_is_never_asked_to_go_back(story: Story) -> Iterator[str]:
    """Where nothing was before and ``first_deploy`` is ``leave``, no platform is asked for a way back."""
    last: dict[tuple[str, str], Any] = {}
    for step in story.steps:
        if step.what == "journal":
            last[step.run, step.target] = step.value
        kept = last.get((step.run, step.target)) or entry(story, step.target)
        first = kept and kept["snapshot"] and not kept["snapshot"]["exists"]
        if step.what == "rollback:before" and first and kept["config"]["first_deploy"] == "leave":
            yield f"{step.target} at {step.at:.1f}, by {step.run}"


@invariant
def snapshot_never_overwritten_by_half_deployed_state(story: Story) -> Iterator[str]:
    """A snapshot never holds what its own run wrote, nor what an earlier run wrote and left unsettled."""
    unsettled: dict[tuple[str, str], bool] = {}
    for step in story.steps:
        if step.what != "journal":
            continue
        kept, revisions = step.value, story.world.places[f"{SERVICE}/{step.target}"].revisions
        snapshot = (kept["snapshot"] or {}).get("revision")
        owner = str(revisions[snapshot].release_id or "").split("-")[0] if snapshot is not None else ""
        mine = kept["release"]["release_id"].split("-")[0]
        if owner == mine or unsettled.get((step.target, owner)):
            yield f"{step.target} at {step.at:.1f}: {snapshot} of {owner}"
        unsettled[step.target, mine] = kept["touched"] and not kept["settled"]


@invariant
def at_most_one_revision_per_rollout(story: Story) -> Iterator[str]:
    """A run makes at most one revision on a target, and one more for each time that a person cleared its tasks."""
    for run in story.airflow.runs:
        for target in story.schedule.targets:
            kept = of_run(story, run.run_id, target)
            if kept is None:
                continue
            mine = kept["release"]["release_id"].split("-")[0]
            made = story.world.places[f"{SERVICE}/{target}"].revisions.values()
            number = sum(str(revision.release_id).split("-")[0] == mine for revision in made)
            if number > 1 + run.clear_number:
                yield f"{run.run_id}: {number} revisions on {target}, cleared {run.clear_number} times"


@invariant
def untouched_targets_receive_no_write(story: Story) -> Iterator[str]:
    """A rollback writes only where its own run wrote before; a target that a run does not name gets no write."""
    for run in releases(story):
        oracle = Oracle(story, run)
        wrote: set[str] = set()
        for step in oracle.steps:
            if step.what == "wrote" and step.run == run.run_id:
                if step.target not in oracle.selected:
                    yield f"{run.run_id}: {step.target} is not selected, and was written at {step.at:.1f}"
                if step.task.startswith("rollback.") and step.target not in wrote and not _forced(story, run):
                    yield f"{run.run_id}: {step.target} was sent back at {step.at:.1f}, and never written before"
                wrote.add(step.target)


def _forced(story: Story, run: Run) -> bool:
    """A forced run answers for what another one left."""
    return bool(run.conf.get("force"))


@invariant
def drift_is_left_alone(story: Story) -> Iterator[str]:
    """What somebody else deployed is never overwritten, unless the rollout found it at its start, or forces."""
    first: dict[tuple[str, str, int], Any] = {}
    rollout: dict[tuple[str, str], int] = {}
    for step in story.steps:
        if step.what == "journal" and step.value["snapshot"] is not None:
            run_id, number = step.value["run_id"], step.value["rollout"]
            rollout[run_id, step.target] = number
            first.setdefault((run_id, step.target, number), step.value["snapshot"]["revision"])
        if step.what != "wrote" or step.value[0] is None:
            continue
        revision = story.world.places[f"{SERVICE}/{step.target}"].revisions[step.value[0]]
        run = next((run for run in story.airflow.runs if run.run_id == step.run), None)
        if revision.image != FOREIGN or run is None or run.conf.get("force"):
            continue
        if first.get((step.run, step.target, rollout.get((step.run, step.target), 1))) != revision.id:
            yield f"{step.run}: {step.target} at {step.at:.1f}: {revision.id} was overwritten"


@invariant
def doubt_and_bad_versions_ask_for_force(story: Story) -> Iterator[str]:
    """No run starts where another left a target in doubt, or with a version that was rolled back, unless it forces."""
    doubt: dict[str, Any] = {}
    bad: dict[str, Any] = {}
    for step in story.steps:
        if step.what == "bad":
            bad[step.target] = step.value
        elif step.what == "journal":
            kept, before = step.value, doubt.get(step.target)
            where = f"{kept['run_id']}: {step.target} at {step.at:.1f}"
            if kept["phase"] == "deploying" and not kept["release"]["force"]:
                if before is not None and before["run_id"] != kept["run_id"]:
                    yield f"{where}: {before['run_id']} left it {before['phase']}"
                if kept["release"]["image"] in bad.get(step.target, ()):
                    yield f"{where}: {kept['release']['image']} is known as bad"
            doubt[step.target] = kept if kept["touched"] and not kept["settled"] else None


@invariant
def overall_status_equals_oracle(story: Story) -> Iterator[str]:
    """The status that ``finalize`` says is one that the platforms' state makes true.

    Not asked where tasks were cleared after other trouble: whose word counts then, the first one's or the second one's,
    the table of the statuses does not say.
    """
    for run in releases(story):
        said = verdict(run)
        if said is None or story.beyond or (run.clear_number and story.schedule.troubles):
            continue
        expected = Oracle(story, run).statuses()
        if said["status"] not in expected:
            yield f"{run.run_id}: {said['status']} ({said['reason']}), expected {' or '.join(sorted(expected))}"


@invariant
def a_way_back_without_trouble_of_its_own_succeeds(story: Story) -> Iterator[str]:
    """Where no rollback fails or dies and nobody else deploys, no run ends as ``rollback_failed``, orphans or not."""
    schedule = story.schedule
    deploys, backs = schedule.deploys[: len(schedule.targets)], schedule.rollbacks[: len(schedule.targets)]
    troubled = any(not trouble.task.endswith(".deploy") or trouble.action == "clear" for trouble in schedule.troubles)
    if troubled or schedule.after or not set(backs) <= {"ok"} or {"drift", "drift_later"} & set(deploys):
        return
    for run in releases(story):
        said = verdict(run)
        if said is not None and said["status"] == "rollback_failed":
            yield f"{run.run_id}: {said['reason']}"


@invariant
def run_colour_equals_status(story: Story) -> Iterator[str]:
    """A run is a success exactly when its status is ``succeeded`` or ``degraded`` and nobody stopped it."""
    for run in releases(story):
        said = verdict(run)
        good = said is not None and said["status"] in ("succeeded", "degraded") and not said["cancelled"]
        if (run.state == "success") != good:
            yield f"{run.run_id}: {run.state}, status {said and said['status']}"


@invariant
def live_memory_names_only_what_was_verified(story: Story) -> Iterator[str]:
    """The release that a journal remembers as live was seen healthy there, and nothing sent it away since."""
    for target in story.schedule.targets:
        remembered, healthy, gone = None, set[str | None](), set[str | None]()
        for step in (step for step in story.steps if step.target == target):
            if step.what == "live":
                remembered = step.value["release"]
            elif step.what == "seen" and step.value[1] == "healthy":
                healthy.add(step.live)
            elif step.what == "wrote":
                gone.update({step.value[0]} if "rollback" in step.task else ())
                gone.discard(step.value[1])
        revisions = story.world.places[f"{SERVICE}/{target}"].revisions
        if remembered is None or target in story.beyond:
            continue
        if not any(r is not None and revisions[r].image == remembered["image"] for r in healthy):
            yield f"{target}: {remembered['image']} is remembered, and was never seen healthy"
        if any(r is not None and revisions[r].release_id == remembered["release_id"] for r in gone):
            yield f"{target}: {remembered['image']} is remembered, and was rolled back"


@invariant
def nothing_is_left_frozen(story: Story) -> Iterator[str]:
    """Once ``finalize`` has spoken, no frozen config of the run is left."""
    if all(verdict(run) is not None for run in releases(story)) and releases(story):
        yield from story.variables


def breaches(story: Story) -> list[tuple[str, str]]:
    """What this story breaks: name of the invariant, and how."""
    return [(check.__name__, said) for check in INVARIANTS for said in check(story)]
