from __future__ import annotations

from typing import Any

import pytest

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.journal import Journal, Phase
from airflow_multideploy.release.ledger import (
    INTERRUPTED,
    RUNNING,
    Ledger,
    Override,
    Record,
    Spoilt,
    TargetRecord,
    agreed,
    percentile,
    row,
)
from airflow_multideploy.release.plan import make_plan, release_id
from airflow_multideploy.release.status import Status
from airflow_multideploy.testing.fake import Crash, MemoryStore
from tests.release.conftest import IMAGE, Bench, config_type

GOOD, BACK = Phase.SUCCEEDED, Phase.ROLLED_BACK


def part(target: str = "t1", phase: Phase = GOOD, deployed: Phase | None = None, **more: Any) -> TargetRecord:
    touched = phase not in (Phase.PENDING, Phase.UNCHANGED, Phase.SKIPPED)
    return TargetRecord(target=target, phase=phase, deployed=deployed or phase, touched=touched, **more)


def record(run: str, version: str = "1", *parts: TargetRecord, at: float = 0.0, **more: Any) -> Record:
    return Record(
        release_id=release_id("shop", run),
        service="shop",
        dag_id="shop",
        run_id=run,
        version=version,
        image=f"{IMAGE}:{version}",
        actor="ann",
        started_at=at,
        targets=parts or (part(),),
        **{"status": Status.SUCCEEDED, **more},
    )


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, "shop")


def runs(ledger: Ledger, **asked: Any) -> list[str]:
    return [each.run_id for each in ledger.records(**asked)]


def test_what_is_kept_is_read_back_newest_first_whatever_the_order_of_keeping(ledger: Ledger) -> None:
    second, first = record("run2", at=20.0, met=True, ended_at=25.0, restore=("t1",)), record("run1", at=10.0)
    ledger.keep(second)
    ledger.keep(first)
    assert list(ledger.records()) == [second, first]
    assert ledger.find("shop", "run2") == second
    assert ledger.find("shop", "run3") is None


def test_the_same_release_is_overwritten_and_moves_to_when_it_was_started_again(ledger: Ledger) -> None:
    for run, at in (("run1", 10.0), ("run2", 20.0), ("run1", 30.0)):
        ledger.keep(record(run, at=at, status=RUNNING))
    ledger.keep(record("run1", at=30.0, status=Status.FAILED))
    assert [(each.run_id, each.status) for each in ledger.records()] == [("run1", "failed"), ("run2", "running")]


@pytest.mark.parametrize("crash_after", [1, 2])
def test_a_crash_while_keeping_leaves_no_line_without_its_record_and_the_next_attempt_heals_it(
    ledger: Ledger, store: MemoryStore, crash_after: int
) -> None:
    for number in range(Ledger.KEPT):
        ledger.keep(record(f"run{number}", at=float(number)))
    store.crash_after = crash_after
    newest = record("newest", at=1e6)
    with pytest.raises(Crash):
        ledger.keep(newest)
    lines = store.get("ledger")["releases"]
    assert len(lines) == Ledger.KEPT
    assert all(store.get(f"ledger.{line['release_id']}") for line in lines)
    ledger.keep(newest)
    assert len(found := runs(ledger)) == Ledger.KEPT
    assert (found[0], found[-1]) == ("newest", "run1")


def test_beyond_the_number_kept_the_oldest_record_is_deleted(ledger: Ledger, store: MemoryStore) -> None:
    for number in range(Ledger.KEPT + 1):
        ledger.keep(record(f"run{number}", at=float(number)))
    assert ledger.find("shop", "run0") is None
    assert len(runs(ledger)) == Ledger.KEPT


def test_a_spoilt_record_is_shown_as_such_beside_the_others_and_can_be_overwritten(
    ledger: Ledger, store: MemoryStore
) -> None:
    ledger.keep(record("run1", at=1.0))
    ledger.keep(bad := record("run2", at=2.0))
    store.set(f"ledger.{bad.release_id}", {"release_id": 7})
    spoilt, good = ledger.read()
    assert isinstance(spoilt, Spoilt)
    assert (spoilt.run_id, spoilt.status) == ("run2", "spoilt")
    assert f"(key 'ledger.{bad.release_id}')" in spoilt.outcome
    assert "delete that key of the asset multideploy://shop/journal" in row(spoilt)["reason"]
    assert (good.run_id, runs(ledger)) == ("run1", ["run1"])
    with pytest.raises(SpecError, match="cannot be read"):
        ledger.find("shop", "run2")
    ledger.keep(bad)
    assert runs(ledger) == ["run2", "run1"]


def test_a_spoilt_index_is_an_error_that_names_the_remedy(ledger: Ledger, store: MemoryStore) -> None:
    store.set("ledger", [1])
    with pytest.raises(SpecError, match=r"\(key 'ledger'\): cannot be read: .*; delete that key of the asset"):
        list(ledger.read())


def test_records_are_chosen_by_target_and_time(ledger: Ledger) -> None:
    ledger.keep(record("run1", "1", part("t1"), at=10.0))
    ledger.keep(record("run2", "2", part("t2"), at=20.0))
    ledger.keep(record("run3", "3", part("t1"), part("t2"), at=30.0))
    assert runs(ledger, target="t1") == ["run3", "run1"]
    assert runs(ledger, since=20.0) == ["run3", "run2"]
    assert runs(ledger, since=10.0, until=30.0) == ["run2", "run1"]
    assert runs(ledger, target="t2", until=30.0) == ["run2"]


def test_the_last_good_release_of_the_service_or_of_a_target(ledger: Ledger) -> None:
    ledger.keep(record("run1", "1", part("t1"), part("t2"), at=10.0))
    ledger.keep(record("run2", "2", part("t1"), part("t2", BACK, Phase.FAILED), at=20.0, status=Status.DEGRADED))
    ledger.keep(record("run3", "3", part("t1", BACK, GOOD), at=30.0, status=Status.ROLLED_BACK))
    ledger.keep(record("run4", "4", part("t1", Phase.PENDING), at=40.0, status=RUNNING))

    def last(**asked: Any) -> str | None:
        found = ledger.last_good(**asked)
        return found and found.run_id

    assert (last(), last(target="t1"), last(target="t2")) == ("run2", "run2", "run1")
    assert (last(before=20.0), last(before=10.0)) == ("run1", None)


def test_good_releases_are_those_whose_last_word_on_the_target_is_good(ledger: Ledger, store: MemoryStore) -> None:
    story = [
        ("1", part()),
        ("2", part(phase=BACK, deployed=Phase.FAILED)),
        ("3", part()),
        ("4", part()),
        ("4", part(phase=BACK, deployed=GOOD)),  # it was good once, and was rolled back since
        ("5", part()),
        ("6", part()),
        ("1", part(phase=Phase.UNCHANGED)),
        ("6", part(phase=Phase.FAILED).model_copy(update={"touched": False})),  # refused: says nothing about it
        ("7", part(phase=Phase.PENDING)),
        ("8", part("t2")),
    ]
    for at, (version, kept) in enumerate(story):
        ledger.keep(record(f"run{at}", version, kept, at=float(at)))
    Journal(store, "shop/t1", "t1.").remember_bad(f"{IMAGE}:5", "exit code 137")
    assert [each.version for each in ledger.good_releases("t1")] == ["1", "6", "3"]


def test_good_releases_of_one_tag_are_told_apart_by_digest(ledger: Ledger) -> None:
    ledger.keep(record("run1", "1", at=1.0, digest="sha256:a"))
    ledger.keep(record("run2", "1", at=2.0, digest="sha256:b"))
    ledger.keep(record("run3", "1", at=3.0, digest="sha256:a"))
    assert [each.digest for each in ledger.good_releases("t1")] == ["sha256:a", "sha256:b"]


def test_durations_are_those_of_good_deploys_that_wrote_something(ledger: Ledger) -> None:
    for at, (seconds, phase, deployed) in enumerate(
        [(10.0, GOOD, GOOD), (20.0, BACK, Phase.FAILED), (30.0, BACK, GOOD), (1.0, Phase.UNCHANGED, Phase.UNCHANGED)]
    ):
        kept = part(phase=phase, deployed=deployed, started_at=100.0, ended_at=100.0 + seconds)
        ledger.keep(record(f"run{at}", "1", kept, at=float(at)))
    ledger.keep(record("now", "1", part(phase=Phase.PENDING), at=9.0))
    assert ledger.durations("t1") == (30.0, 10.0)
    assert ledger.durations("t2") == ()


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [((), 50, None), ((7.0,), 95, 7.0), ((1.0, 2.0, 9.0), 50, 2.0), (tuple(map(float, range(101))), 95, 95.0)],
)
def test_percentiles(values: tuple[float, ...], percent: int, expected: float | None) -> None:
    assert percentile(values, percent) == expected


# --- agreement with the journal


def died(run: str = "run1", **more: Any) -> Record:
    """A record that nobody closed."""
    return record(run, "2", part(phase=Phase.PENDING, platform="fake"), status=RUNNING, **more)


def entries(bench: Bench) -> dict[str, Any]:
    entry = bench.journal().read()
    return {} if entry is None else {"t1": entry}


@pytest.mark.parametrize(
    ("writes", "phase", "touched"),
    [(1, Phase.DEPLOYING, True), (2, Phase.VERIFYING, True), (None, Phase.SUCCEEDED, True)],
)
def test_a_run_that_died_is_interrupted_and_its_targets_are_what_the_journal_says(
    bench: Bench, writes: int | None, phase: Phase, touched: bool
) -> None:
    bench.store().crash_after = writes
    if writes:
        with pytest.raises(Crash):
            bench.deploy()
    else:
        bench.deploy()
    now = agreed(died(), entries(bench))
    assert (now.status, now.targets[0].phase, now.targets[0].touched) == (INTERRUPTED, phase, touched)
    assert now.outcome == "the run is over, and did not say how the release ended"
    assert agreed(now, entries(bench)) is now


def test_a_run_that_died_before_it_touched_anything_is_interrupted_with_pending_targets() -> None:
    now = agreed(died(), {})
    assert (now.status, now.targets) == (INTERRUPTED, died().targets)


def test_once_all_of_a_dead_run_is_back_its_record_says_rolled_back(bench: Bench) -> None:
    bench.store().crash_after = 2
    with pytest.raises(Crash):
        bench.deploy()
    interrupted = agreed(died(), entries(bench))
    bench.back()
    now = agreed(interrupted, entries(bench))
    assert (now.status, now.targets[0].phase, now.targets[0].platform) == (Status.ROLLED_BACK, BACK, "fake")
    assert now.outcome.endswith("how the release ended; later t1: rolled_back")
    assert now.ended_at == now.targets[0].rollback_ended_at
    assert agreed(died(), entries(bench)).status is Status.ROLLED_BACK


@pytest.mark.parametrize(
    ("met", "others", "status"),
    [
        (False, (), Status.ROLLED_BACK),
        (False, (part("t2"),), Status.PARTIALLY_ROLLED_BACK),
        (True, (part("t2"),), Status.DEGRADED),
        (False, (part("t2", Phase.ROLLBACK_FAILED, Phase.FAILED),), Status.ROLLBACK_FAILED),
        (False, (part("t3"),), Status.ROLLBACK_FAILED),  # t3 should have gone back, and was not even begun with
    ],
)
def test_what_was_settled_after_the_verdict_gives_the_status_by_the_same_rules(
    bench: Bench, met: bool, others: tuple[TargetRecord, ...], status: Status
) -> None:
    bench.fault("deploy", "fails")
    assert bench.deploy().phase is Phase.FAILED
    kept = part(phase=Phase.ROLLBACK_FAILED, deployed=Phase.UNKNOWN)
    said = record(
        "run1",
        "2",
        kept,
        *others,
        status=Status.ROLLBACK_FAILED,
        met=met,
        restore=("t1", "t3"),
        outcome="t1: 503",
        ended_at=9,
    )
    bench.back()
    now = agreed(said, entries(bench))
    assert (now.status, now.targets[0].phase, now.ended_at) == (status, BACK, 9.0)
    assert now.outcome == "t1: 503; later t1: rolled_back"
    assert now.targets[0].deployed is Phase.UNKNOWN, "how the deploy went was judged by the run"


def test_a_verdict_stands_while_no_phase_has_changed(bench: Bench) -> None:
    bench.deploy()
    said = record("run1", "2", part(deployed=Phase.FAILED), met=False, status=Status.FAILED)
    assert agreed(said, entries(bench)) is said


def test_the_journal_of_a_later_run_says_that_nobody_knows_and_of_an_earlier_one_that_it_never_began(
    bench: Bench,
) -> None:
    bench.deploy("3", "run2")
    began = bench.entry().started_at or 0.0
    lost, never = (agreed(died(at=at), entries(bench)).targets[0] for at in (began - 1, began + 1))
    assert (lost.phase, never.phase) == (Phase.UNKNOWN, Phase.PENDING)
    assert "run 'run2' came after it here" in lost.reason


# --- what is kept


def test_no_secret_and_no_novel_is_kept() -> None:
    canary = "ghp_" + "c4nary" * 6
    kept = record("run1", reason=f"see {canary}", outcome="x" * 5000)
    assert canary not in str(kept.dump())
    assert kept.reason.startswith("see (")
    assert len(kept.outcome) == 1000
    assert Record.model_validate(kept.dump()) == kept
    assert kept.to(outcome=canary).outcome.startswith("(")


def test_a_row_says_who_what_when_why_and_how_it_ended() -> None:
    kept = record(
        "run1", "1.4", part("aws"), part("azure", BACK), at=1_700_000_000, ended_at=1_700_000_061.4, reason="sale"
    ).to(outcome="azure: exit code 137", status=Status.DEGRADED)
    assert row(kept) == {
        "when": "2023-11-14 22:13:20Z",
        "version": "1.4",
        "status": "degraded",
        "by": "ann",
        "seconds": "61",
        "targets": "aws succeeded, azure rolled_back",
        "reason": "sale; azure: exit code 137",
    }


def test_a_rollback_and_an_override_are_seen_at_a_glance() -> None:
    past = Override(what="frozen by 'year end'", by="ann", at=1.0, reason="INC-7")
    shown = row(record("run1", "1.4", kind="rollback", reason="slow", overrides=(past,)))
    assert (shown["version"], shown["reason"]) == ("1.4 (rollback)", "override: INC-7; slow")


def test_the_config_hash_tells_configs_apart_and_nothing_else() -> None:
    def hash_of(run: str = "r", version: str = "1", **target: Any) -> str:
        document = {"artifact": {"image": IMAGE}, "targets": {"t1": {"platform": "fake", "conn_id": "c", **target}}}
        service = parse_service("shop", document, config_type=config_type)
        plan = make_plan("shop", service, {"version": version}, dag_id="shop", run_id=run)
        turned = dict(reversed(plan.service.items()))
        assert plan.model_copy(update={"service": turned}).config_hash == plan.config_hash
        return plan.config_hash

    assert hash_of() == hash_of("other", "2")
    assert hash_of() != hash_of(timeout=7)
    assert len(hash_of()) == 12


def four(ledger: Ledger) -> None:
    """1, 2 and 4 are good on both targets; 3 was rolled back on one."""
    for number, version in enumerate(("1", "2", "3", "4")):
        phase = BACK if version == "3" else GOOD
        parts = (part("t1"), part("t2", phase, Phase.FAILED if phase is BACK else None))
        ledger.keep(record(f"run{version}", version, *parts, at=float(number), digest=f"sha256:{version}"))


def back(ledger: Ledger, wanted: str, *live: str | None, **more: Any) -> str:
    found = dict(zip(("t1", "t2"), live, strict=False))
    return ledger.earlier(wanted, found, **more).version


def test_previous_goes_back_further_each_time_and_past_what_was_not_good_everywhere(ledger: Ledger) -> None:
    four(ledger)
    assert back(ledger, "previous", "sha256:4", "sha256:4") == "2"
    assert back(ledger, "previous", "sha256:4") == "3", "of this target alone, 3 was good"
    ledger.keep(record("run5", "2", part("t1"), part("t2"), at=9.0, digest="sha256:2", kind="rollback"))
    assert back(ledger, "previous", "sha256:2", "sha256:2") == "1", "and not 4 again"
    assert back(ledger, "previous", None, "sha256:other") == "2", "where nobody knows what is live, what was last"


@pytest.mark.parametrize("phase", [Phase.PENDING, BACK])
def test_previous_is_not_led_astray_by_runs_that_came_to_nothing(ledger: Ledger, phase: Phase) -> None:
    """1 was good; 3 came to nothing the first time; 2, the hotfix, was good, and so was 3 then."""
    for number, (version, came_to) in enumerate([("1", GOOD), ("3", phase), ("2", GOOD), ("3", GOOD)]):
        failed = None if came_to is not BACK else Phase.FAILED
        ledger.keep(record(f"run{number}", version, part("t1", came_to, failed), at=float(number), digest=version))
    assert back(ledger, "previous", "3") == "2"
    assert back(ledger, "previous", "3", force=True) == "2", "force is for other things"


def test_force_does_not_make_previous_one_that_was_rolled_back(ledger: Ledger) -> None:
    for number, (version, phase) in enumerate([("1", GOOD), ("2", BACK), ("3", GOOD)]):
        failed = None if phase is not BACK else Phase.FAILED
        ledger.keep(record(f"run{number}", version, part("t1", phase, failed), at=float(number), digest=version))
    assert back(ledger, "previous", "3", force=True) == "1"
    assert back(ledger, "2", "3", force=True) == "2", "by name it may be"


def test_previous_is_what_was_there_last_and_each_target_goes_back_no_further_than_it_must(ledger: Ledger) -> None:
    for number, version in enumerate(("1", "2", "3", "1", "4")):  # back to 1 on demand, and on from there
        parts = (part("t1"), part("t2", GOOD if version != "4" else BACK, Phase.FAILED if version == "4" else None))
        ledger.keep(record(f"run{number}", version, *parts, at=float(number), digest=version))
    assert back(ledger, "previous", "4") == "1"
    assert back(ledger, "previous", "4", "1") == "1", "t2 runs it already"


def test_a_target_that_only_stands_in_for_another_has_no_say(ledger: Ledger) -> None:
    for number, version in enumerate(("1", "2")):
        spare = part("t2", Phase.SKIPPED, Phase.SKIPPED)
        ledger.keep(record(f"run{number}", version, part("t1"), spare, at=float(number), digest=version))
    assert back(ledger, "previous", "2", None) == "1"


def test_refused_runs_do_not_push_out_what_one_can_go_back_to(ledger: Ledger) -> None:
    for number, version in enumerate(("1", "2")):
        ledger.keep(record(f"run{number}", version, part("t1"), at=float(number), digest=version))
    for number in range(Ledger.KEPT + 5):
        ledger.keep(record(f"frozen{number}", "9", at=10.0 + number, digest="9").to(status="not_started", targets=()))
    assert back(ledger, "previous", "2") == "1"
    kept = [each.run_id for each in ledger.read()]
    assert len(kept) == Ledger.KEPT
    assert kept[0] == f"frozen{Ledger.KEPT + 4}", "and the last of them are there to be read"


def test_an_earlier_release_is_named_by_version_or_digest(ledger: Ledger) -> None:
    four(ledger)
    assert back(ledger, "1", "sha256:4", "sha256:4") == "1"
    assert back(ledger, "sha256:2", "sha256:4", "sha256:4") == "2"
    assert back(ledger, "3", "sha256:4", "sha256:4", force=True) == "3"


@pytest.mark.parametrize("wanted", ["3", "9", "sha256:9"])
def test_what_was_not_good_there_is_refused_with_what_there_is(ledger: Ledger, wanted: str) -> None:
    four(ledger)
    with pytest.raises(SpecError, match=r"no release '.*' that was good on t1, t2; the ledger knows of: 4, 2, 1;"):
        back(ledger, wanted, "sha256:4", "sha256:4")
    with pytest.raises(SpecError, match="no earlier release"):
        back(ledger, "previous", "sha256:1", "sha256:1")
