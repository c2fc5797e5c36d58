"""The overall status against an oracle written from the table in the design, and the figures against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_multideploy.catalog.service import AtLeast, Policy
from airflow_multideploy.release.contract import Handle, Release, Snapshot
from airflow_multideploy.release.journal import Entry, Phase
from airflow_multideploy.release.status import (
    Status,
    TargetResult,
    counted,
    critical_targets,
    figures,
    overall,
    policy_met,
    result_of,
)

SEVERITY = ["succeeded", "degraded", "rolled_back", "partially_rolled_back", "failed", "unknown", "rollback_failed"]
"""When several fit, the worst counts."""

DEPLOYS = ["succeeded", "unchanged", "failed", "unknown", "skipped", "pending"]


def oracle(results: list[TargetResult], met: bool, restore: set[str]) -> str:
    """The table, row by row: every status that fits; then the worst."""
    selected = [r for r in results if r.deployed != "skipped"]
    touched = [r for r in selected if r.touched]
    failed = [r for r in selected if r.deployed not in ("succeeded", "unchanged")]
    back = [r for r in touched if r.phase == "rolled_back"]
    sent_back_unseen = [r for r in selected if r.phase == "unknown" and r.rollback_ended_at is not None]
    met = met and not any(r in back and r.deployed in ("succeeded", "unchanged") for r in selected)
    fits = set()
    if any(r.phase == "rollback_failed" for r in selected):
        fits.add("rollback_failed")
    if any(r.target in restore and r not in back and r not in sent_back_unseen for r in selected):
        fits.add("rollback_failed")
    if any(r.phase in ("unknown", "snapshotted", "deploying", "verifying", "rolling_back") for r in selected):
        fits.add("unknown")
    if met:
        fits.add("degraded" if failed else "succeeded")
    elif not touched:
        if not fits:
            return "not_started"
    elif len(back) == len(touched):
        fits.add("rolled_back")
    elif back:
        fits.add("partially_rolled_back")
    else:
        fits.add("failed")
    return max(fits, key=SEVERITY.index)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[list[TargetResult], bool, set[str]]:
    """What targets can come to: a deploy's end, and perhaps a rollback's."""
    results, restore = [], set()
    for number in range(draw(st.integers(0, 4))):
        deployed = draw(st.sampled_from(DEPLOYS))
        touched = deployed in ("succeeded", "unknown") or (deployed == "failed" and draw(st.booleans()))
        phase, ended = deployed, None
        if touched and draw(st.booleans()):
            restore.add(f"t{number}")
            phase = draw(st.sampled_from(["rolled_back", "rollback_failed", "rolling_back", "unknown", deployed]))
            ended = 9.0 if phase == "unknown" and draw(st.booleans()) else None
        if deployed == "failed" and phase == "failed" and draw(st.booleans()):
            phase = draw(st.sampled_from(["deploying", "verifying", "failed"]))
        results.append(
            TargetResult(
                target=f"t{number}",
                phase=Phase(phase),
                deployed=Phase(deployed),
                touched=touched,
                rollback_ended_at=ended,
            )
        )
    return results, draw(st.booleans()), restore


@settings(max_examples=400)
@given(outcomes())
def test_the_overall_status_is_what_the_table_says(outcome: tuple[list[TargetResult], bool, set[str]]) -> None:
    results, met, restore = outcome
    assert overall(results, met=met, restore=restore) == oracle(results, met, restore)


@given(outcomes())
def test_only_a_met_policy_is_green_and_never_beside_a_failed_rollback(
    outcome: tuple[list[TargetResult], bool, set[str]],
) -> None:
    results, met, restore = outcome
    status = overall(results, met=met, restore=restore)
    if status.good:
        assert met
        assert all(r.phase not in ("rollback_failed", "unknown", "rolling_back") for r in counted(results))
        assert not [r for r in results if r.deployed == "succeeded" and r.phase == "rolled_back"], (
            "what went back is not there"
        )


def result(target: str, deployed: str, *, critical: bool = True, **more: Any) -> TargetResult:
    return TargetResult(
        target=target, deployed=Phase(deployed), phase=Phase(more.pop("phase", deployed)), critical=critical, **more
    )


@pytest.mark.parametrize(
    ("policy", "deploys", "met"),
    [
        ("all", "ss", True),
        ("all", "su", True),
        ("all", "sf", False),
        ("all", "sk", True),
        ("all", "sp", False),
        ("critical", "sF", True),
        ("critical", "fS", False),
        ("critical", "KF", False),
        ("critical", "kF", False),
        ("critical", "SF", False),
        ("critical", "kS", True),
        (AtLeast(at_least=1), "sF", True),
        (AtLeast(at_least=1), "fS", False),
        (AtLeast(at_least=2), "sk", False),
        (AtLeast(at_least=2), "sS", True),
    ],
)
def test_the_policy_counts_targets(policy: Policy, deploys: str, met: bool) -> None:
    """Lower case: critical; upper case: not. s(ucceeded) u(nchanged) f(ailed) k(skipped) p(ending)."""
    names = {"s": "succeeded", "u": "unchanged", "f": "failed", "k": "skipped", "p": "pending"}
    results = [result(f"t{n}", names[d.lower()], critical=d.islower()) for n, d in enumerate(deploys)]
    assert policy_met(results, policy, any_marked=any(d.isupper() for d in deploys)) is met


def test_a_quorum_needs_no_critical_ones_when_none_is_marked() -> None:
    results = [result("a", "failed"), result("b", "succeeded")]
    assert policy_met(results, AtLeast(at_least=1), any_marked=False)
    assert not policy_met(results, AtLeast(at_least=1), any_marked=True)


def test_a_policy_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TypeError, match="some"):
        policy_met([], "some", any_marked=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("marks", "critical"),
    [
        ({"a": None, "b": None}, "ab"),
        ({"a": True, "b": None}, "a"),
        ({"a": False, "b": None}, "b"),
        ({"a": False, "b": True, "c": None}, "b"),
        ({"a": False}, ""),
    ],
)
def test_all_targets_are_critical_until_one_is_marked(marks: dict[str, bool | None], critical: str) -> None:
    assert {name for name, yes in critical_targets(marks).items() if yes} == set(critical)


def test_the_colour_is_the_truth() -> None:
    assert {status for status in Status if status.good} == {"succeeded", "degraded"}


def test_a_result_tells_what_the_journal_says() -> None:
    entry = Entry(
        service="s",
        target="t",
        config={"platform": "fake"},
        release=Release(service="s", version="2", image="i:2", release_id="r"),
        dag_id="d",
        run_id="r",
        phase=Phase.ROLLED_BACK,
        deployed=Phase.FAILED,
        touched=True,
    )
    bare = result_of(entry, critical=False)
    assert (bare.platform, bare.version, bare.phase, bare.deployed) == ("fake", "2", "rolled_back", "failed")
    assert (bare.touched, bare.critical, bare.revision, bare.previous) == (True, False, None, None)
    full = entry.to(
        Phase.VERIFYING,
        deployed=None,
        handle=Handle(action="deploy", revision="new"),
        snapshot=Snapshot(exists=True, revision="old"),
    )
    assert (result_of(full, critical=True).revision, result_of(full, critical=True).previous) == ("new", "old")
    assert result_of(full, critical=True).deployed is Phase.VERIFYING


SPANS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda s: (min(s), max(s))), max_size=5)


@given(SPANS, SPANS)
def test_the_figures_are_what_counting_second_by_second_gives(
    together: list[tuple[int, int]], alone: list[tuple[int, int]]
) -> None:
    results = [
        result(f"p{n}", "succeeded" if n % 2 else "failed", started_at=float(a), ended_at=float(b))
        for n, (a, b) in enumerate(together)
    ]
    results += [result(f"s{n}", "succeeded", started_at=float(a), ended_at=float(b)) for n, (a, b) in enumerate(alone)]
    waves = [[f"p{n}" for n in range(len(together))], *[[f"s{n}"] for n in range(len(alone))]]
    made = figures(results, waves)
    running = [sum(start <= second < end for start, end in together) for second in range(12)]
    one, two = sum(n >= 1 for n in running), sum(n >= 2 for n in running)
    expected = two / one if len(together) > 1 and one else None
    assert made.parallel_rate == (None if expected is None else pytest.approx(expected))
    spans = together + alone
    length = max(e for _, e in spans) - min(s for s, _ in spans) if spans else None
    assert made.deployment_seconds == length
    good = sum(n % 2 for n in range(len(together))) + len(alone)
    assert made.success_rate == (pytest.approx(good / len(spans)) if spans else None)
    assert made.rollback_seconds is None


def test_a_target_that_was_not_selected_makes_no_wave_parallel() -> None:
    results = [
        result("a", "succeeded", started_at=0, ended_at=4),
        result("b", "skipped"),
        result("c", "succeeded", started_at=4, ended_at=8),
        result("d", "skipped"),
    ]
    assert figures(results, [["a", "b"], ["c", "d"]]).parallel_rate is None


def test_rollback_time_runs_from_the_first_start_to_the_last_end() -> None:
    results = [
        result("a", "failed", rollback_started_at=10, rollback_ended_at=12),
        result("b", "failed", rollback_started_at=11, rollback_ended_at=19),
        result("c", "failed", rollback_started_at=11),
    ]
    made = figures(results, [["a", "b", "c"]])
    assert made.rollback_seconds == 9
    assert (made.deployment_seconds, made.parallel_rate) == (None, None)


def test_every_pair_of_statuses_has_a_worse_one() -> None:
    ranked = {Status(s): n for n, s in enumerate(SEVERITY)}
    assert len(ranked) == len(Status) - 1
    for phase, worse in itertools.pairwise(["rolled_back", "unknown", "rollback_failed"]):
        pair = [result(n, "failed", phase=p, touched=True) for n, p in (("a", phase), ("b", worse))]
        assert overall(pair, met=False) == worse
