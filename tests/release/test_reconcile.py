"""What a run that is over left in doubt: settled by looking at the target, in order, and never on a guess."""

from __future__ import annotations

import pytest

from airflow_multideploy.release.journal import Entry, Phase
from airflow_multideploy.release.reconcile import came_to, settle
from airflow_multideploy.testing.fake import Crash
from tests.release.conftest import IMAGE, OLD, Bench, targets

CHAIN = targets({"t1": [], "t2": ["t1"]})


@pytest.fixture
def left(bench: Bench) -> Bench:
    """Two targets, one after the other, both written by a run that then died."""
    bench.world.seed("shop/t2", OLD)
    for target in ("t1", "t2"):
        bench.begin(target=target)
    return bench


def reconcile(bench: Bench, doubts: dict[str, Entry] | None = None) -> dict[str, str]:
    found = {target: bench.entry(target) for target in bench.stores}
    return settle(
        found if doubts is None else doubts,
        CHAIN,
        platform=lambda entry: bench.platform(entry.target),
        journal=bench.journal,
        clock=bench.world.clock,
    )


def rollbacks(bench: Bench) -> list[str]:
    return [call.target for call in bench.world.calls if call.name == "rollback"]


def test_dependents_go_back_first_and_every_target_is_verified(left: Bench) -> None:
    assert reconcile(left) == {"t2": "", "t1": ""}
    assert rollbacks(left) == ["shop/t2", "shop/t1"]
    for target in ("t1", "t2"):
        assert left.live(target) == OLD
        assert left.entry(target).phase is Phase.ROLLED_BACK
        assert left.entry(target).settled
    assert left.world.calls[-1].name == "observe", "a look comes after the last write"


def test_a_release_may_start_afterwards(left: Bench) -> None:
    reconcile(left)
    assert left.deploy("3", "run2").phase is Phase.SUCCEEDED


def test_a_write_that_never_happened_is_found_out_without_another_one(bench: Bench) -> None:
    bench.fault("deploy", "crash_before")
    with pytest.raises(Crash):
        bench.begin()
    assert bench.entry().unsettled
    assert reconcile(bench) == {"t1": ""}
    assert [call.wrote for call in bench.world.calls if call.wrote] == []


def test_a_dependency_stays_when_its_dependent_does_not_go_back(left: Bench) -> None:
    left.fault("rollback", "refused", target="shop/t2")
    found = reconcile(left)
    assert "refused" in found["t2"]
    assert found["t1"] == "not sent back: t2 depends on it and is not back"
    assert left.live("t1") == f"{IMAGE}:2"
    assert left.entry("t1").unsettled
    assert reconcile(left) == {"t2": "", "t1": ""}, "the next time goes on"


def test_what_somebody_else_deployed_is_left_alone(left: Bench) -> None:
    left.world.meddle("shop/t2")
    now = left.live("t2")
    assert "nothing was touched" in reconcile(left)["t2"]
    assert left.live("t2") == now
    assert left.entry("t2").unsettled


def test_an_interrupted_one_goes_on(left: Bench) -> None:
    left.fault("rollback", "crash_after", target="shop/t2")
    with pytest.raises(Crash):
        reconcile(left)
    assert left.entry("t2").phase is Phase.ROLLING_BACK
    assert reconcile(left) == {"t2": "", "t1": ""}


def test_a_journal_that_changed_since_it_was_read_is_left_to_whoever_wrote_it(left: Bench) -> None:
    doubts = {"t2": left.entry("t2")}
    later = left.deploy("3", "run2", "t2", force=True)
    assert "the journal changed meanwhile: run 'run2'" in reconcile(left, doubts)["t2"]
    assert left.entry("t2") == later
    assert left.live("t2") == f"{IMAGE}:3"


def test_a_first_ever_release_that_is_left_is_settled_untouched_and_nothing_waits_for_it(bench: Bench) -> None:
    bench.begin(target="t1")
    bench.config = {"first_deploy": "leave"}
    bench.world.seed("shop/t2", None)
    bench.begin(target="t2")
    assert reconcile(bench) == {"t2": "", "t1": ""}
    assert rollbacks(bench) == ["shop/t1"]
    assert (bench.live("t1"), bench.live("t2")) == (OLD, f"{IMAGE}:2")
    entry = bench.entry("t2")
    assert (entry.phase, entry.settled, came_to(entry)) == (Phase.FAILED, True, entry.reason)
