from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_multideploy.catalog.service import AtLeast
from airflow_multideploy.release.journal import Phase
from airflow_multideploy.release.status import Status, TargetResult
from airflow_multideploy.release.verdict import Rules, Verdict, judge, table
from tests.release.conftest import targets

GRAPH: dict[str, list[Any]] = {"aws": [], "gcp": [], "dc": ["aws"]}


def verdict(
    rules: Rules | None = None, *, marks: dict[str, Any] | None = None, stays: tuple[str, ...] = (), **more: Any
) -> Verdict:
    """Of results given as target=phase or target=(deployed, phase); `succeeded` and `failed` ones were touched."""
    results = {}
    for name in GRAPH:
        deployed, phase = (said, said) if isinstance(said := more.pop(name, "succeeded"), str) else said
        touched = deployed in ("succeeded", "failed", "verifying")
        results[name] = TargetResult(
            target=name,
            deployed=Phase(deployed),
            phase=Phase(phase),
            touched=touched,
            stays=name in stays,
            reason=more.pop(f"{name}_why", ""),
        )
    configs = targets(GRAPH)
    for name, mark in (marks or {}).items():
        configs[name] = configs[name].model_copy(update={"critical": mark})
    return judge(results, configs, service="shop", version="2", rules=rules or Rules(), **more)


def test_a_release_that_went_well() -> None:
    made = verdict(gcp="unchanged")
    assert (made.status, made.met, made.restore, made.reason) == ("succeeded", True, (), "")
    assert Verdict.model_validate(json.loads(json.dumps(made.dump()))) == made


def test_before_the_rollbacks_it_selects_and_afterwards_it_tells() -> None:
    first = verdict(gcp="failed", gcp_why="exit code 1", final=False)
    assert (first.status, first.restore) == ("failed", ("dc", "aws", "gcp"))
    assert first.reason == "gcp: failed (exit code 1)"
    ended = {"aws": ("succeeded", "rolled_back"), "dc": ("succeeded", "rolled_back"), "gcp": ("failed", "rolled_back")}
    last = verdict(**ended)
    assert (last.status, last.restore) == ("rolled_back", first.restore)
    assert verdict(**{**ended, "gcp": ("failed", "failed")}).status == "rollback_failed"
    assert verdict(**{**ended, "gcp": ("failed", "rolling_back")}).status == "rollback_failed"


def test_dependents_go_back_before_what_they_depend_on() -> None:
    restore = verdict(aws="failed", final=False).restore
    assert restore.index("dc") < restore.index("aws")


def test_a_task_that_died_in_flight_counts_as_failed() -> None:
    made = verdict(gcp="verifying", final=False)
    gcp = next(r for r in made.results if r.target == "gcp")
    assert (gcp.deployed, gcp.reason, made.met) == ("failed", "the task ended while verifying", False)
    assert "gcp" in made.restore
    assert verdict(Rules(strategy="none"), gcp="verifying").status == "unknown"


def test_nothing_goes_back_when_strategy_none_says_so() -> None:
    made = verdict(Rules(strategy="none"), gcp="failed")
    assert (made.status, made.restore) == ("failed", ())


def test_a_strategy_that_leaves_targets_is_a_partial_rollback() -> None:
    made = verdict(Rules(strategy="failed"), gcp=("failed", "rolled_back"))
    assert (made.status, made.restore) == ("partially_rolled_back", ("gcp",))


def test_a_met_policy_restores_only_the_failed_ones_and_is_degraded() -> None:
    made = verdict(Rules(policy=AtLeast(at_least=2)), gcp=("failed", "rolled_back"))
    assert (made.status, made.restore, made.met) == ("degraded", ("gcp",), True)
    marked = verdict(Rules(policy="critical"), gcp=("failed", "rolled_back"), marks={"aws": True})
    assert (marked.status, marked.restore) == ("degraded", ("gcp",))
    assert {r.target for r in marked.results if r.critical} == {"aws"}


def test_where_no_critical_target_is_selected_all_that_are_have_to_succeed() -> None:
    rules, marks = Rules(policy="critical"), {"aws": True}
    gone = verdict(rules, marks=marks, aws="skipped", gcp=("failed", "rolled_back"), dc=("succeeded", "rolled_back"))
    assert (gone.status, gone.met, set(gone.restore)) == ("rolled_back", False, {"gcp", "dc"})
    assert verdict(rules, marks=marks, aws="skipped").status == "succeeded"


def test_a_cancelled_run_is_undone_or_kept_as_the_service_says_and_is_never_green() -> None:
    undone = verdict(cancelled=True, final=False)
    assert set(undone.restore) == set(GRAPH)
    assert not undone.status.good
    assert undone.reason.startswith("the run was stopped by hand")
    assert verdict(Rules(strategy="none"), cancelled=True).restore == undone.restore
    kept = verdict(Rules(keep_on_cancel=True), cancelled=True)
    assert (kept.restore, kept.status) == ((), "failed")


def test_a_refused_release_was_not_started_and_its_reason_comes_first() -> None:
    made = verdict(refused="conf.version: missing", aws="pending", gcp="pending", dc="pending")
    assert (made.status, made.reason, made.restore, made.met) == ("not_started", "conf.version: missing", (), False)
    untouched = verdict(aws="pending", gcp="pending", dc="pending")
    assert untouched.status is Status.NOT_STARTED


@pytest.mark.parametrize("policy", ["all", "critical", AtLeast(at_least=2)])
def test_a_dry_run_in_which_all_targets_are_skipped_is_green_whatever_the_policy(policy: Any) -> None:
    made = verdict(Rules(policy=policy), aws="skipped", gcp="skipped", dc="skipped", dry_run=True)
    assert (made.status, made.restore, made.figures.success_rate) == ("succeeded", (), None)


def test_the_reason_names_the_worst_first_and_leaves_out_what_went_well() -> None:
    made = verdict(
        aws=("failed", "rolled_back"),
        aws_why="exit code 1",
        gcp=("failed", "rollback_failed"),
        gcp_why="drift",
        dc="skipped",
    )
    assert made.reason == "gcp: rollback_failed (drift); aws: rolled_back (exit code 1)"
    skipped = verdict(dc="skipped", dc_why="waits for aws failed, which is succeeded")
    assert skipped.reason == "dc: skipped (waits for aws failed, which is succeeded)"


def test_what_was_not_verified_is_told_even_when_it_succeeded() -> None:
    result = TargetResult(
        target="aws", deployed=Phase.SUCCEEDED, phase=Phase.SUCCEEDED, touched=True, verified=False, reason="accepted"
    )
    made = judge({"aws": result}, targets({"aws": []}), service="s", version="1", rules=Rules())
    assert (made.status, made.reason) == ("succeeded", "aws: succeeded (accepted)")
    assert table(made)[0]["now"] == "succeeded (not verified)"


def test_the_table_shows_each_target_with_its_seconds() -> None:
    result = TargetResult(
        target="aws",
        platform="fake",
        deployed=Phase.FAILED,
        phase=Phase.ROLLED_BACK,
        started_at=1,
        ended_at=3.25,
        rollback_started_at=4,
    )
    made = judge({"aws": result}, targets({"aws": []}), service="s", version="1", rules=Rules())
    assert table(made) == [
        {
            "target": "aws",
            "platform": "fake",
            "deploy": "failed",
            "now": "rolled_back",
            "seconds": "2.2",
            "rollback seconds": "",
            "reason": "",
        }
    ]


@pytest.mark.parametrize(
    ("rules", "others", "status", "restore"),
    [
        (Rules(), {"aws": "rolled_back", "dc": "rolled_back"}, "partially_rolled_back", ("dc", "aws")),
        (Rules(strategy="failed"), {}, "failed", ()),
        (Rules(strategy="dependents"), {}, "failed", ()),
        (Rules(strategy="none"), {}, "failed", ()),
        (Rules(policy=AtLeast(at_least=2)), {}, "degraded", ()),
    ],
)
def test_a_first_ever_release_that_is_left_is_failed_and_says_why(
    rules: Rules, others: dict[str, str], status: str, restore: tuple[str, ...]
) -> None:
    phases = {name: ("succeeded", phase) for name, phase in others.items()}
    made = verdict(rules, gcp="failed", gcp_why="exit code 1", stays=("gcp",), **phases)
    assert (made.status, made.restore) == (status, restore)
    assert "gcp: failed (exit code 1; then first-ever release: left in place, as configured" in made.reason
    first = verdict(rules, gcp="failed", stays=("gcp",), final=False)
    assert first.restore == restore, "the same before the rollbacks and after them"


def test_all_that_is_left_of_a_stopped_run_is_failed_and_a_healthy_one_is_named() -> None:
    settled = {"gcp": ("failed", "failed"), "aws": "pending", "dc": "pending"}
    made = verdict(cancelled=True, stays=("gcp",), **settled)
    assert (made.status, made.restore) == ("failed", ())
    healthy = {"gcp": ("failed", "rolled_back"), "aws": ("succeeded", "rolled_back"), "dc": "succeeded"}
    made = verdict(stays=("dc",), **healthy)
    assert (made.status, made.restore) == ("partially_rolled_back", ("aws", "gcp"))
    assert "dc: succeeded (first-ever release: left in place" in made.reason
    assert verdict(stays=("dc",)).reason == ""
