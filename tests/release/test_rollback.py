"""What goes back and in which order, and the way back on the fake platform."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_multideploy.catalog.order import dependents
from airflow_multideploy.errors import PlatformError, RollbackFailed, RolloutFailed
from airflow_multideploy.release.contract import Observation, State
from airflow_multideploy.release.journal import Phase
from airflow_multideploy.release.rollback import ATTEMPTS, LANDING, blockers, select
from airflow_multideploy.release.status import TargetResult
from airflow_multideploy.testing.fake import Crash
from tests.release.conftest import IMAGE, OLD, Bench, targets
from tests.release.test_plan import graphs

NEW = f"{IMAGE}:2"
GRAPH: dict[str, list[Any]] = {"aws": [], "gcp": [], "dc": ["aws"], "edge": ["dc"], "late": ["gcp"]}


def results(**deploys: str) -> list[TargetResult]:
    """Of target=how: succeeded, failed (touched), refused (failed, not touched), unknown, pending, skipped."""
    return [
        TargetResult(
            target=name,
            deployed=Phase("failed" if how == "refused" else how),
            touched=how in ("succeeded", "failed", "unknown"),
        )
        for name, how in {**dict.fromkeys(GRAPH, "succeeded"), **deploys}.items()
    ]


@pytest.mark.parametrize(
    ("strategy", "met", "cancelled", "back"),
    [
        ("all", False, False, "aws gcp edge"),
        ("all", True, False, "gcp"),
        ("failed", False, False, "gcp"),
        ("failed", True, False, "gcp"),
        ("dependents", False, False, "gcp edge"),
        ("dependents", True, False, "gcp"),
        ("manual", False, False, ""),
        ("none", False, False, ""),
        ("none", True, False, ""),
        ("none", False, True, "aws gcp edge"),
        ("failed", True, True, "aws gcp edge"),
    ],
)
def test_what_goes_back(strategy: Any, met: bool, cancelled: bool, back: str) -> None:
    outcome = results(gcp="failed", dc="refused", late="pending")
    found = select(outcome, targets(GRAPH), met=met, strategy=strategy, cancelled=cancelled)
    assert found == set(back.split())


def test_a_target_in_doubt_goes_back_and_a_skipped_or_unchanged_one_stays() -> None:
    outcome = results(aws="unknown", gcp="skipped", dc="unchanged", edge="skipped", late="pending")
    assert select(outcome, targets(GRAPH), met=False, strategy="all") == {"aws"}
    assert select(outcome, targets(GRAPH), met=False, strategy="failed") == {"aws"}
    assert select(outcome, targets(GRAPH), met=False, strategy="dependents") == {"aws"}


@given(graphs(), st.sets(st.sampled_from([f"t{n}" for n in range(7)])))
def test_a_target_waits_for_everything_that_depends_on_it(graph: dict[str, list[str]], going: set[str]) -> None:
    configs, selected = targets(graph), frozenset(going & set(graph))
    for name in graph:
        found = blockers(name, configs, selected)
        assert name not in found
        assert found == (dependents(configs, {name}) - {name}) & selected
        assert all(name not in blockers(other, configs, selected) for other in found)


def failed(bench: Bench, **more: Any) -> None:
    bench.fault("deploy", "fails", **more)
    assert bench.deploy().phase is Phase.FAILED


def test_back_is_said_after_the_snapshot_was_seen_serving(bench: Bench) -> None:
    failed(bench)
    entry = bench.way().begin(bench.entry())
    assert (entry.phase, entry.settled, entry.deployed) == ("rolling_back", False, "failed")
    assert bench.journal().live() is None
    assert bench.platform().observe(entry.back).state is State.PROGRESSING  # type: ignore[arg-type]
    entry = bench.way().conclude(entry, bench.look(entry))
    assert (entry.phase, entry.settled, entry.deployed) == ("rolled_back", True, "failed")
    assert entry.rollback_started_at is not None
    assert entry.rollback_ended_at is not None
    assert entry.rollback_ended_at - entry.rollback_started_at >= bench.world.seconds
    assert (bench.live(), entry.reason) == (OLD, "exit code 1")
    assert bench.journal().bad() == {NEW: "exit code 1"}


def test_a_release_that_succeeded_can_go_back_too_and_is_not_blamed_here(bench: Bench) -> None:
    """Another target failed; it is bad there, with that target's reason."""
    bench.deploy()
    entry = bench.back()
    assert (entry.phase, entry.deployed, entry.reason) == ("rolled_back", "succeeded", "")
    assert bench.journal().bad() == {}


def test_what_is_live_after_a_rollback_is_the_release_before(bench: Bench) -> None:
    before = bench.deploy("2", "run1").release
    bench.fault("deploy", "fails")
    bench.deploy("3", "run2")
    bench.back()
    assert bench.journal().live() == before
    bench.world.meddle("shop/t1")
    bench.fault("deploy", "fails")
    bench.deploy("4", "run3")
    bench.back()
    assert bench.journal().live() is None, "what was restored is nobody's release"


def test_a_version_that_never_got_there_is_not_bad(bench: Bench) -> None:
    bench.fault("deploy", "refused")
    with pytest.raises(PlatformError):
        bench.begin()
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.journal().bad() == {}
    assert bench.world.writes() == []


def test_a_version_that_got_there_unseen_goes_back_and_is_bad(bench: Bench) -> None:
    bench.fault("deploy", "lost", times=6)
    with pytest.raises(PlatformError):
        bench.begin()
    assert bench.live() == NEW
    assert bench.back().phase is Phase.ROLLED_BACK
    assert (bench.live(), list(bench.journal().bad())) == (OLD, [NEW])


def test_a_first_ever_deploy_is_removed_again(bench: Bench) -> None:
    bench.world.seed("shop/t1", None)
    failed(bench)
    assert bench.entry().snapshot.exists is False  # type: ignore[union-attr]
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.live() is None
    assert bench.journal().live() is None


def first_ever_left(bench: Bench) -> None:
    bench.config = {"first_deploy": "leave"}
    bench.world.seed("shop/t1", None)


@pytest.mark.parametrize(("fault", "phase"), [("fails", "failed"), (None, "succeeded"), ("crash_after", "failed")])
def test_a_first_ever_deploy_that_is_left_is_settled_without_a_word_to_the_platform(
    bench: Bench, fault: Any, phase: str
) -> None:
    first_ever_left(bench)
    if fault:
        bench.fault("deploy", fault)
    with suppress(Crash):
        bench.deploy()
    live, asked = bench.live(), len(bench.world.calls)
    entry = bench.way().go(bench.entry())
    assert (entry.phase, entry.settled) == (phase, True)
    assert entry.reason.endswith("left in place, as configured (first_deploy: leave)")
    assert (bench.live(), len(bench.world.calls)) == (live, asked)
    assert bench.way().go(entry) == bench.entry() == entry
    assert bench.deploy("3", "run2").phase is Phase.SUCCEEDED, "the next release starts from it"


def test_a_late_write_of_a_first_ever_deploy_that_is_left_is_not_taken_back(bench: Bench) -> None:
    first_ever_left(bench)

    def taken_over() -> None:
        bench.way().go(bench.entry())

    bench.fault("deploy", "meanwhile", action=taken_over)
    with pytest.raises(RolloutFailed, match="the journal says failed"):
        bench.begin()
    assert bench.live() == NEW
    assert [call.name for call in bench.world.writes()] == ["deploy"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_left_is_never_selected_and_nothing_waits_for_it(cancelled: bool) -> None:
    outcome = [
        result.model_copy(update={"stays": result.target in ("dc", "edge")}) for result in results(edge="failed")
    ]
    for strategy in ("all", "failed", "dependents"):
        found = select(outcome, targets(GRAPH), met=False, strategy=strategy, cancelled=cancelled)
        assert not {"dc", "edge"} & found
        assert not blockers("aws", targets(GRAPH), found)


@pytest.mark.parametrize("kind", ["error", "lost"])
def test_errors_that_heal_do_not_stop_a_rollback(bench: Bench, kind: str) -> None:
    failed(bench)
    bench.fault("rollback", kind, times=3)
    assert bench.back().phase is Phase.ROLLED_BACK
    assert len(bench.world.writes()) == 2


def test_a_refused_rollback_is_loud_and_can_be_tried_again(bench: Bench) -> None:
    failed(bench)
    for _ in range(2):
        bench.fault("rollback", "refused")
        with pytest.raises(RollbackFailed, match="scripted refused"):
            bench.back()
        entry = bench.entry()
        assert (entry.phase, entry.settled) == ("rollback_failed", False)
        assert entry.reason == "exit code 1; then shop/t1: rollback: scripted refused"
    assert bench.back().phase is Phase.ROLLED_BACK


def test_somebody_elses_state_is_left_alone(bench: Bench) -> None:
    failed(bench)
    bench.world.meddle("shop/t1", "theirs:1")
    with pytest.raises(RollbackFailed, match="neither ours"):
        bench.back()
    assert (bench.live(), bench.entry().phase, bench.entry().settled) == ("theirs:1", "rollback_failed", False)


@pytest.mark.parametrize("kind", ["fails", "hangs"])
def test_a_way_back_that_does_not_get_there_is_a_failed_rollback_within_its_own_budget(bench: Bench, kind: str) -> None:
    failed(bench)
    bench.world.clock.sleep(10_000)
    begun = bench.world.clock.now
    bench.fault("rollback", kind, times=9)
    entry = bench.back()
    assert (entry.phase, entry.settled) == ("rollback_failed", False)
    assert "the way back ended failed" in entry.reason
    assert bench.world.clock.now - begun <= 320


def test_what_cannot_be_looked_at_is_no_rollback(bench: Bench) -> None:
    failed(bench)
    bench.fault("observe", "unknown", times=999)
    assert "the way back ended unknown: deadline passed" in bench.back().reason


def test_a_snapshot_that_was_never_taken_cannot_be_restored(bench: Bench) -> None:
    failed(bench)
    entry = bench.way().begin(bench.entry().model_copy(update={"snapshot": None}))
    assert (entry.phase, entry.back) == ("rollback_failed", None)
    assert "no snapshot was taken" in entry.reason


def test_a_way_back_that_cannot_be_verified_is_unknown_and_over(bench: Bench) -> None:
    failed(bench)
    entry = bench.way().begin(bench.entry())
    entry = bench.way().conclude(entry, Observation(state=State.HEALTHY, verified=False, reason="accepted"))
    assert (entry.phase, entry.settled, entry.verified) == ("unknown", True, False)
    assert entry.reason == f"sent back to {OLD}, which cannot be verified: accepted"
    assert entry.rollback_ended_at is not None


def test_a_deploy_that_was_not_verified_but_is_back_is_verified(bench: Bench) -> None:
    bench.rollout().conclude(bench.begin(), Observation(state=State.HEALTHY, verified=False))
    assert bench.entry().verified is False
    assert bench.back().verified is True


CRASHES: list[tuple[str, Any]] = [
    *[(call, kind) for call in ("rollback", "observe") for kind in ("crash_before", "crash_after")],
    *[("journal", number) for number in range(1, 6)],
]


@pytest.mark.parametrize(("where", "how"), CRASHES)
def test_a_rollback_that_is_interrupted_anywhere_resumes(bench: Bench, where: str, how: Any) -> None:
    bench.deploy("1", "run0")
    failed(bench)
    if where == "journal":
        bench.store().crash_after = how
    else:
        bench.fault(where, how)
    with pytest.raises(Crash):
        bench.back()
    first = bench.entry().rollback_deadline
    bench.world.clock.sleep(60)
    if not bench.entry().settled:
        bench.back()
    entry = bench.entry()
    assert (entry.phase, entry.settled, entry.rollback_deadline) == ("rolled_back", True, first)
    assert bench.live() == OLD
    assert len(bench.world.writes()) == 2


def test_a_rollback_that_resumes_after_its_time_gets_a_new_budget(bench: Bench) -> None:
    failed(bench)
    bench.fault("rollback", "crash_after")
    with pytest.raises(Crash):
        bench.back()
    first = bench.entry()
    bench.world.clock.sleep(10_000)
    entry = bench.back()
    assert entry.phase is Phase.ROLLED_BACK
    assert (entry.rollback_deadline or 0) > (first.rollback_deadline or 0)
    assert entry.rollback_started_at == first.rollback_started_at


def test_a_deploy_that_was_thought_dead_and_writes_after_us_is_sent_back_again(bench: Bench) -> None:
    failed(bench)
    release, snapshot = bench.entry().release, bench.entry().snapshot
    assert snapshot is not None
    orphan = lambda: bench.platform().deploy(release, snapshot)  # noqa: E731
    bench.fault("observe", "meanwhile", action=orphan)
    assert bench.back().phase is Phase.ROLLED_BACK
    assert bench.live() == OLD
    assert [call.name for call in bench.world.writes()] == ["deploy", "rollback", "deploy", "rollback"]


def test_a_rollback_does_not_go_on_for_ever_against_an_orphan(bench: Bench) -> None:
    failed(bench)
    release, snapshot = bench.entry().release, bench.entry().snapshot
    assert snapshot is not None

    def orphan() -> None:
        bench.world.clock.sleep(40)
        bench.platform().deploy(release, snapshot)

    bench.fault("observe", "meanwhile", action=orphan, times=99)
    entry = bench.back()
    assert (entry.phase, entry.settled) == ("rollback_failed", False)
    assert "the way back ended superseded" in entry.reason


def test_a_rollback_of_a_task_that_died_in_mid_deploy(bench: Bench) -> None:
    bench.fault("deploy", "crash_after")
    with pytest.raises(Crash):
        bench.deploy()
    entry = bench.back()
    assert (entry.phase, entry.deployed) == ("rolled_back", "failed")
    assert bench.live() == OLD


def test_a_platform_that_fails_on_the_way_back_is_asked_again_within_the_budget(bench: Bench) -> None:
    bench.deploy()
    bench.fault("rollback", "fails", times=ATTEMPTS - 1)
    entry = bench.back()
    assert entry.phase is Phase.ROLLED_BACK
    assert bench.live() == OLD
    assert [call.name for call in bench.world.calls].count("rollback") == ATTEMPTS


def test_a_way_back_that_fails_every_time_is_said_to_have_failed(bench: Bench) -> None:
    bench.deploy()
    bench.fault("rollback", "fails", times=99)
    entry = bench.back()
    assert (entry.phase, entry.settled) == (Phase.ROLLBACK_FAILED, False)
    assert [call.name for call in bench.world.calls].count("rollback") == ATTEMPTS


def test_being_back_is_not_believed_while_a_write_without_an_answer_may_still_land(bench: Bench) -> None:
    bench.fault("deploy", "crash_before")
    with pytest.raises(Crash):
        bench.begin()
    began = bench.world.clock.now
    entry = bench.way().go(bench.entry())
    assert entry.phase is Phase.ROLLED_BACK
    assert bench.world.clock.now - began >= LANDING


def test_a_deploy_that_was_answered_goes_back_without_that_wait(bench: Bench) -> None:
    bench.deploy()
    began = bench.world.clock.now
    assert bench.way().go(bench.entry()).phase is Phase.ROLLED_BACK
    assert bench.world.clock.now - began < LANDING
