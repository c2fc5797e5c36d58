"""Deploys on the fake platform: every step may fail, hang, lose its answer or die, and is made again elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_multideploy.errors import Drift, InDoubt, KnownBad, PlatformError, RolloutFailed
from airflow_multideploy.release.contract import Observation, State
from airflow_multideploy.release.journal import SKEW, Phase
from airflow_multideploy.release.rollback import LANDING, quiet_from
from airflow_multideploy.testing.fake import Crash
from tests.release.conftest import IMAGE, OLD, Bench

NEW = f"{IMAGE}:2"


def test_a_release_is_journalled_before_it_is_written_and_settled_after_it_serves(bench: Bench) -> None:
    seen: list[tuple[Any, ...]] = []
    look = lambda: seen.append((bench.entry().phase, bench.entry().touched, bench.live()))  # noqa: E731
    bench.fault("deploy", "meanwhile", action=look)
    entry = bench.deploy()
    assert seen == [(Phase.DEPLOYING, True, OLD)]
    assert (entry.phase, entry.deployed, entry.touched, entry.settled) == ("succeeded", "succeeded", True, True)
    assert entry.snapshot is not None
    assert entry.snapshot.image == OLD
    assert bench.live() == NEW
    assert bench.journal().live() == entry.release
    assert entry.started_at is not None
    assert entry.ended_at is not None
    assert entry.ended_at - entry.started_at >= bench.world.seconds
    assert bench.entry() == entry


def test_a_version_that_is_live_and_healthy_is_left_as_it_is(bench: Bench) -> None:
    bench.deploy("2", "run1")
    entry = bench.deploy("2", "run2")
    assert (entry.phase, entry.touched, entry.settled) == ("unchanged", False, True)
    assert len(bench.world.writes()) == 1
    forced = bench.deploy("2", "run3", force=True)
    assert (forced.phase, len(bench.world.writes())) == ("succeeded", 2)


def test_one_release_after_another(bench: Bench) -> None:
    for number in range(2, 6):
        entry = bench.deploy(str(number), f"run{number}")
        assert entry.snapshot is not None
        assert entry.snapshot.image == f"{IMAGE}:{number - 1}"
    assert bench.live() == f"{IMAGE}:5"


@pytest.mark.parametrize(("kind", "waited"), [("fails", 10), ("hangs", 600)])
def test_a_rollout_that_fails_or_never_ends_is_failed_and_asks_for_a_rollback(
    bench: Bench, kind: str, waited: int
) -> None:
    bench.fault("deploy", kind)
    entry = bench.deploy()
    assert (entry.phase, entry.deployed, entry.touched, entry.settled) == ("failed", "failed", True, False)
    assert "exit code 1" in entry.reason or "deadline passed while progressing: 0 of 1 ready" in entry.reason
    assert entry.ended_at is not None
    assert waited <= entry.ended_at - (entry.started_at or 0) <= waited + 20


def test_somebody_elses_revision_is_not_our_success(bench: Bench) -> None:
    entry = bench.begin()
    bench.world.meddle("shop/t1")
    entry = bench.rollout().conclude(entry, bench.look(entry))
    assert (entry.phase, entry.settled) == ("failed", False)
    assert bench.journal().live() is None


def test_what_cannot_be_looked_at_is_unknown(bench: Bench) -> None:
    bench.fault("observe", "error", times=999)
    entry = bench.deploy()
    assert (entry.phase, entry.deployed, entry.settled) == ("unknown", "unknown", False)
    assert "last error: shop/t1: observe: scripted error" in entry.reason


def test_an_acceptance_that_could_not_be_verified_is_kept_as_such(bench: Bench) -> None:
    seen = Observation(state=State.HEALTHY, verified=False, reason="accepted")
    entry = bench.rollout().conclude(bench.begin(), seen)
    assert (entry.phase, entry.verified, entry.reason) == ("succeeded", False, "accepted")


@pytest.mark.parametrize("call", ["snapshot", "deploy"])
@pytest.mark.parametrize("kind", ["error", "lost"])
def test_errors_that_heal_are_passed_over_without_a_second_write(bench: Bench, call: str, kind: str) -> None:
    bench.fault(call, kind, times=3)
    assert bench.deploy().phase is Phase.SUCCEEDED
    assert len(bench.world.writes()) == 1


def test_a_refused_snapshot_leaves_a_settled_failure_that_touched_nothing(bench: Bench) -> None:
    bench.fault("snapshot", "refused")
    with pytest.raises(PlatformError, match="shop/t1: snapshot: scripted refused"):
        bench.begin()
    entry = bench.entry()
    assert (entry.phase, entry.deployed, entry.touched, entry.settled) == ("failed", "failed", False, True)
    assert (entry.reason, entry.deadline) == ("shop/t1: snapshot: scripted refused", None)
    assert bench.world.writes() == []


def test_a_refused_deploy_asks_for_a_rollback_because_it_may_have_written(bench: Bench) -> None:
    bench.fault("deploy", "refused")
    with pytest.raises(PlatformError, match="scripted refused"):
        bench.begin()
    entry = bench.entry()
    assert (entry.phase, entry.deployed, entry.touched, entry.settled) == ("failed", "failed", True, False)


def test_a_platform_that_does_not_answer_is_tried_again_by_airflow_with_a_new_deadline(bench: Bench) -> None:
    bench.fault("snapshot", "error", times=6)
    with pytest.raises(PlatformError) as caught:
        bench.begin()
    assert caught.value.retryable
    entry = bench.entry()
    assert (entry.phase, entry.deployed, entry.settled, entry.deadline) == ("pending", None, True, None)
    bench.world.clock.sleep(900)
    entry = bench.deploy()
    assert (entry.phase, entry.attempt, entry.rollout, entry.touched) == ("succeeded", 2, 1, True)


def test_a_deploy_without_an_answer_is_continued_within_the_first_deadline(bench: Bench) -> None:
    bench.fault("deploy", "lost", times=6)
    with pytest.raises(PlatformError):
        bench.begin()
    first = bench.entry()
    assert (first.phase, first.deployed, first.settled, first.touched) == ("deploying", None, False, True)
    entry = bench.deploy()
    assert (entry.phase, entry.attempt, entry.deadline) == ("succeeded", 2, first.deadline)
    assert entry.snapshot == first.snapshot
    assert len(bench.world.writes()) == 1


def test_a_retry_that_died_before_it_wrote_anything_is_unchanged_where_the_version_is_live(bench: Bench) -> None:
    bench.world.seed("shop/t1", NEW)
    bench.fault("snapshot", "error", times=6)
    with pytest.raises(PlatformError):
        bench.begin()
    entry = bench.deploy()
    assert (entry.phase, entry.touched) == ("unchanged", False)


CRASHES: list[tuple[str, Any]] = [
    *[(call, kind) for call in ("snapshot", "deploy", "observe") for kind in ("crash_before", "crash_after")],
    *[("journal", number) for number in range(1, 5)],
]


@pytest.mark.parametrize(("where", "how"), CRASHES)
def test_a_worker_that_dies_anywhere_is_continued_without_a_second_write_or_snapshot(
    bench: Bench, where: str, how: Any
) -> None:
    if where == "journal":
        bench.store().crash_after = how
    else:
        bench.fault(where, how)
    with pytest.raises(Crash):
        bench.deploy()
    before = bench.journal().read()
    entry = before if before is not None and before.settled else bench.deploy()
    assert (entry.phase, entry.rollout, entry.settled) == ("succeeded", 1, True)
    assert entry.snapshot is not None
    assert entry.snapshot.image == OLD
    assert bench.live() == NEW
    assert len(bench.world.writes()) == 1


def test_a_restart_does_not_extend_the_deadline(bench: Bench) -> None:
    bench.fault("deploy", "hangs")
    first = bench.begin()
    bench.world.clock.sleep(500)
    second = bench.begin()
    assert (second.deadline, second.handle, second.attempt) == (first.deadline, first.handle, 2)
    bench.rollout().conclude(second, bench.look(second))
    assert first.deadline is not None
    assert bench.world.clock.now <= first.deadline + 1


# --- whose rollout it is -----------------------------------------------------------------------------------------


def test_an_unsettled_rollout_of_another_run_is_in_doubt_until_it_is_forced(bench: Bench) -> None:
    bench.fault("deploy", "fails")
    first = bench.deploy("2", "run1")
    facts = r"shop/t1: in doubt: run 'run1' of 'shop' left version 2 failed here \(exit code 1\)"
    with pytest.raises(InDoubt, match=facts):
        bench.begin("3", "run2")
    assert bench.entry() == first
    why = bench.rollout("run2").refuse(bench.release("3", "run2"))
    assert why is not None
    assert "in doubt" in why
    forced = bench.release("3", "run2", force=True)
    assert bench.rollout("run2").refuse(forced) is None
    entry = bench.deploy("3", "run2", force=True)
    assert entry.phase is Phase.SUCCEEDED
    assert entry.snapshot == first.snapshot, "the last state known to be good is what was there before run1"


def test_another_run_that_touched_nothing_is_no_doubt(bench: Bench) -> None:
    bench.fault("snapshot", "refused")
    with pytest.raises(PlatformError):
        bench.begin("2", "run1")
    assert bench.rollout("run2").refuse(bench.release("3", "run2")) is None
    assert bench.deploy("3", "run2").phase is Phase.SUCCEEDED


def test_a_version_that_was_rolled_back_asks_for_force_and_is_forgiven_when_it_works(bench: Bench) -> None:
    bench.fault("deploy", "fails")
    bench.deploy("2", "run1")
    bench.back()
    with pytest.raises(KnownBad, match="version 2 was rolled back here before"):
        bench.begin("2", "run2")
    assert "rolled back here before" in (bench.rollout("run2").refuse(bench.release("2", "run2")) or "")
    assert bench.deploy("2", "run2", force=True).phase is Phase.SUCCEEDED
    assert bench.journal().bad() == {}


def test_a_cleared_task_gets_a_rollout_of_its_own(bench: Bench) -> None:
    bench.fault("deploy", "fails")
    first = bench.deploy()
    bench.clear += 1
    entry = bench.deploy()
    assert (entry.phase, entry.rollout) == ("succeeded", 2)
    assert entry.release.release_id == f"{first.release.release_id}-2"
    assert entry.snapshot == first.snapshot


@pytest.mark.parametrize("outcome", ["fails", None])
def test_a_retry_of_a_rollout_that_has_ended_starts_no_other(bench: Bench, outcome: str | None) -> None:
    """Airflow's scheduler takes a task that was resumed quickly for dead, and retries it while it ends."""
    if outcome:
        bench.fault("deploy", outcome)
    first = bench.deploy()
    writes = len(bench.world.writes())
    assert bench.deploy() == first
    assert len(bench.world.writes()) == writes


def test_a_run_id_that_a_deleted_run_had_is_refused(bench: Bench) -> None:
    """Or the old run's good end would stand for a release that nobody made."""
    bench.deploy("2")
    assert "another run was called 'run1'" in str(bench.rollout().refuse(bench.release("3")))
    bench.world.clock.sleep(SKEW + 1)
    bench.since = bench.world.clock.time()
    with pytest.raises(RolloutFailed, match="another run was called 'run1'"):
        bench.begin("3")
    bench.clear = 1
    assert bench.rollout().refuse(bench.release("3")) is None, "cleared, it is the same run"


def test_a_run_id_that_a_deleted_run_had_is_refused_after_a_clear_too(bench: Bench) -> None:
    """A clear changes when a run began, but not from when on it was due."""
    bench.due = 1000.0
    bench.deploy("2")
    bench.due, bench.clear = 2000.0, 1
    assert "another run was called 'run1'" in str(bench.rollout().refuse(bench.release("3")))
    with pytest.raises(RolloutFailed, match="another run was called 'run1'"):
        bench.begin("3")
    bench.due = 1000.0
    assert bench.rollout().refuse(bench.release("3")) is None


@pytest.mark.parametrize(("kind", "waits"), [("lost", True), ("error", True), (None, False)])
def test_a_write_without_an_answer_may_land_late_also_when_a_later_one_was_answered(
    bench: Bench, kind: str | None, waits: bool
) -> None:
    if kind:
        bench.fault("deploy", kind)
    entry = bench.deploy()
    assert entry.handle is not None
    began = bench.world.clock.time()
    assert (began < quiet_from(entry) <= began + LANDING) is waits


def test_what_an_earlier_try_wrote_as_it_died_may_land_late(bench: Bench) -> None:
    bench.fault("deploy", "crash_after")
    with pytest.raises(Crash):
        bench.begin()
    bench.world.clock.sleep(10)
    entry = bench.deploy()
    assert quiet_from(entry) > bench.world.clock.time()


def test_a_release_that_a_person_stopped_is_not_remembered_as_bad(bench: Bench) -> None:
    bench.fault("deploy", "hangs")
    bench.begin()
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.journal().bad() == {}


def test_a_cleared_task_that_still_waits_goes_on_with_a_deadline_of_its_own(bench: Bench) -> None:
    bench.fault("deploy", "hangs")
    first = bench.begin()
    bench.world.clock.sleep(100)
    assert bench.begin().deadline == first.deadline
    bench.clear += 1
    again = bench.begin()
    assert again.release == first.release
    assert again.deadline == (first.deadline or 0) + 100


def test_a_cleared_task_of_a_release_that_became_healthy_late_is_still_ours_to_undo(bench: Bench) -> None:
    bench.config = {"timeout": 5}
    assert bench.deploy().reason.startswith("deadline passed")
    bench.world.clock.sleep(60)
    bench.clear += 1
    entry = bench.deploy()
    assert (entry.phase, entry.touched, len(bench.world.writes())) == ("succeeded", True, 1)
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.live() == OLD


def test_a_cleared_task_of_a_release_that_succeeded_still_goes_back_to_what_was_before_the_run(bench: Bench) -> None:
    bench.deploy()
    bench.clear += 1
    entry = bench.deploy()
    assert (entry.phase, entry.touched, entry.rollout) == ("succeeded", True, 2)
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.live() == OLD


def test_a_cleared_task_while_its_rollback_is_unsettled_is_in_doubt(bench: Bench) -> None:
    bench.fault("deploy", "fails")
    bench.deploy()
    bench.way().begin(bench.entry())
    with pytest.raises(InDoubt, match="this run's rollback is rolling_back"):
        bench.begin()


# --- attempts that were thought dead -----------------------------------------------------------------------------


def test_an_attempt_that_was_thought_dead_writes_nothing_after_its_rollback_began(bench: Bench) -> None:
    def rollback() -> None:
        bench.journal().write(first.to(Phase.ROLLING_BACK))

    bench.fault("deploy", "lost", times=6)
    with pytest.raises(PlatformError):
        bench.begin()
    first = bench.entry()
    rollback()
    with pytest.raises(InDoubt):
        bench.begin()
    bench.journal().write(first)
    bench.fault("deploy", "meanwhile", action=rollback)
    with pytest.raises(RolloutFailed, match="stopped: since this attempt began, the journal says rolling_back"):
        bench.begin()
    assert bench.entry().phase is Phase.ROLLING_BACK


def test_an_attempt_whose_snapshot_took_too_long_does_not_write_over_another_run(bench: Bench) -> None:
    bench.fault("snapshot", "meanwhile", action=lambda: bench.deploy("3", "run2"))
    with pytest.raises(RolloutFailed, match=r"the journal says succeeded \(run 'run2'\)"):
        bench.begin("2", "run1")
    assert bench.live() == f"{IMAGE}:3"
    assert bench.entry().run_id == "run2"


@pytest.mark.parametrize("call", ["snapshot", "deploy"])
def test_a_stray_error_does_not_overwrite_who_took_over(bench: Bench, call: str) -> None:
    def late() -> None:
        bench.deploy("3", "run2", force=True)
        raise bench.platform().error("too late")

    bench.fault(call, "meanwhile", action=late)
    with pytest.raises(PlatformError, match="too late"):
        bench.begin("2", "run1")
    entry = bench.entry()
    assert (entry.run_id, entry.phase, entry.settled) == ("run2", "succeeded", True)


def test_a_late_verdict_does_not_overwrite_a_finished_rollback(bench: Bench) -> None:
    entry = bench.begin()
    assert bench.back().phase is Phase.ROLLED_BACK
    with pytest.raises(RolloutFailed, match="the journal says rolled_back"):
        bench.rollout().conclude(entry, Observation(state=State.SUPERSEDED))
    assert bench.entry().phase is Phase.ROLLED_BACK


def test_an_attempt_that_was_thought_dead_and_finds_its_version_live_takes_nothing_back(bench: Bench) -> None:
    def others() -> None:
        assert bench.back().phase is Phase.ROLLED_BACK
        bench.begin("2", "run2")
        bench.world.clock.sleep(30)

    bench.fault("deploy", "meanwhile", action=others)
    with pytest.raises(RolloutFailed, match=r"stopped"):
        bench.begin("2", "run1")
    assert (bench.live(), bench.entry().run_id, bench.entry().phase) == (NEW, "run2", "verifying")


def test_an_attempt_that_was_thought_dead_does_not_write_over_a_run_that_begins_while_it_looks(bench: Bench) -> None:
    def others() -> None:
        if bench.entry().phase is Phase.ROLLED_BACK:
            bench.deploy("3", "run2")

    bench.fault("deploy", "meanwhile", action=bench.back)
    bench.fault("observe", "meanwhile", of="rollback", times=99, action=others)
    with pytest.raises(RolloutFailed, match=r"stopped"):
        bench.begin("2", "run1")
    assert (bench.live(), bench.entry().run_id, bench.entry().phase) == (f"{IMAGE}:3", "run2", "succeeded")


def test_a_retry_may_finish_what_an_orphan_of_the_same_rollout_began(bench: Bench) -> None:
    bench.fault("deploy", "lost", times=6)
    with pytest.raises(PlatformError):
        bench.begin()
    bench.fault("deploy", "meanwhile", action=bench.begin)
    assert bench.deploy().phase is Phase.SUCCEEDED
    assert len(bench.world.writes()) == 1


def test_drift_between_snapshot_and_deploy_is_refused(bench: Bench) -> None:
    bench.fault("deploy", "drift")
    with pytest.raises(Drift, match="neither ours nor rev-1; nothing was touched"):
        bench.begin()
    assert bench.entry().deployed is Phase.FAILED
    assert bench.world.writes() == []


def test_a_write_that_was_refused_at_the_door_touched_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a wrong password would leave the target in doubt although nothing can have changed there."""
    refused = PlatformError("HTTP 401", target="shop/t1")
    refused.no_effect = True

    def deploy(*_: object) -> None:
        raise refused

    rollout = bench.rollout()
    monkeypatch.setattr(rollout.platform, "deploy", deploy)
    with pytest.raises(PlatformError):
        rollout.begin(bench.release())
    assert (bench.entry().phase, bench.entry().touched, bench.entry().settled) == (Phase.FAILED, False, True)
    assert bench.deploy("2", "run2").phase is Phase.SUCCEEDED


def test_a_rollback_on_demand_remembers_what_it_replaced_as_bad(bench: Bench) -> None:
    bench.deploy("2", "run1")
    back = bench.release("1", "run2").model_copy(update={"rollback": True, "reason": "INC-7"})
    entry = bench.rollout("run2").begin(back)
    entry = bench.rollout("run2").conclude(entry, bench.look(entry))
    assert entry.phase is Phase.SUCCEEDED
    with pytest.raises(KnownBad, match=r"version 2 was rolled back here before \(on demand, by run 'run2': INC-7\)"):
        bench.begin("2", "run3")
    assert bench.deploy("2", "run4", force=True).phase is Phase.SUCCEEDED
    assert bench.journal().bad() == {}


def test_a_rollback_on_demand_to_the_very_bits_that_run_says_nothing_against_them(bench: Bench) -> None:
    tagged = bench.release("2", "run1").model_copy(update={"digest": "sha256:2"})
    entry = bench.rollout("run1").begin(tagged)
    bench.rollout("run1").conclude(entry, bench.look(entry))
    pinned = {"rollback": True, "image": f"{IMAGE}@sha256:2", "digest": "sha256:2"}
    entry = bench.rollout("run2").begin(bench.release("2", "run2").model_copy(update=pinned))
    bench.rollout("run2").conclude(entry, bench.look(entry))
    assert bench.journal().bad() == {}
