"""Smoke checks: what people write, what a good answer is, and what a rollout makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from airflow_multideploy.catalog.checks import CommandCheck, HttpCheck, Verify
from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import RolloutFailed, SpecError
from airflow_multideploy.release.journal import Entry, Phase
from airflow_multideploy.testing.fake import Crash
from tests.release.conftest import OLD, Bench, config_type

VALUES = {"version": "2.1", "digest": None, "image": "registry.test/shop:2.1", "release_id": "r1"}
UP = "https://shop.test/up"


def wrong(verify: object) -> str:
    """What a catalog says about it."""
    target = {"platform": "fake", "conn_id": "c", "verify": verify}
    with pytest.raises(SpecError) as caught:
        parse_service("shop", {"artifact": {"image": "r.test/shop"}, "targets": {"a": target}}, config_type=config_type)
    return str(caught.value)


@pytest.mark.parametrize(
    ("verify", "path", "remedy"),
    [
        ({}, "verify", "give checks, or bake"),
        ({"bake": -1}, "verify.bake", "greater than or equal to 0"),
        ({"bake": 600, "witin": 5}, "verify.witin", "did you mean 'within'?"),
        ({"checks": [{"http": "shop.test/up"}]}, "verify.checks.0.http", "such as https://shop.example.com/up"),
        ({"checks": [{"http": f"{UP}?v={{verison}}"}]}, "verify.checks.0.http", "{version}"),
        ({"checks": [{"http": UP, "status": "200"}]}, "verify.checks.0.status.0", "without quotes"),
        ({"checks": [{"http": UP, "status": []}]}, "verify.checks.0.status", "is empty; add an entry"),
        ({"checks": [{"http": UP, "json": {"path": "a b", "equals": 1}}]}, "verify.checks.0.json.path", "JSON path"),
        (
            {"checks": [{"http": UP, "json": {"path": "a", "equals": [1]}}]},
            "verify.checks.0.json.equals",
            "longer path",
        ),
        ({"checks": [{"http": UP, "command": ["x"]}]}, "verify.checks.0.http", "remove it"),
        ({"checks": [{"command": "smoke.sh 1"}]}, "verify.checks.0.command", "expected a list"),
        ({"checks": [{"command": ["{version}"]}]}, "verify.checks.0", "first word is the program"),
        ({"checks": [{"http": "http://shop.test", "conn_id": "c"}]}, "verify.checks.0", "use https"),
    ],
)
def test_a_verify_that_cannot_be_meant_is_refused_with_place_and_remedy(verify: Any, path: str, remedy: str) -> None:
    said = wrong(verify)
    assert f"targets.a.{path}: " in said
    assert remedy in said


@pytest.mark.parametrize(
    "check",
    [
        {"http": "https://robot:hunter2@shop.test/up"},
        {"http": "https://shop.test/up?token=hunter2"},
        {"command": ["curl", "-H", "Authorization: Bearer hunter2hunter2", UP]},
    ],
)
def test_a_secret_in_a_check_is_refused_and_not_shown(check: Any) -> None:
    said = wrong({"checks": [check]})
    assert "looks like a secret" in said
    assert "hunter2" not in said


def test_credentials_may_go_to_this_machine_over_plain_http() -> None:
    for host in ("localhost:8080", "127.0.0.1", "[::1]:80"):
        assert HttpCheck.model_validate({"http": f"http://{host}/up", "conn_id": "c"}).conn_id == "c"
    for host in ("localhost.shop.test", "127.0.0.1.shop.test"):
        with pytest.raises(ValidationError):
            HttpCheck.model_validate({"http": f"http://{host}/up", "conn_id": "c"})


def test_what_is_written_survives_the_journal() -> None:
    document = {"checks": [{"http": UP, "status": 200, "json": {"path": "a", "equals": True}}, {"command": ["x", "y"]}]}
    verify = Verify.model_validate(document)
    assert Verify.model_validate(verify.model_dump(mode="json")) == verify


@pytest.mark.parametrize(
    ("check", "status", "text", "flaw"),
    [
        ({}, 204, "", ""),
        ({}, 302, "", "HTTP 302, not 200 to 299"),
        ({"status": [200, 404]}, 404, "", ""),
        ({"status": 200}, 204, "", "HTTP 204, not 200"),
        ({"json": ("status", "ok")}, 200, '{"status": "ok"}', ""),
        ({"json": ("status", "ok")}, 200, '{"status": "warming up"}', 'status is "warming up", not "ok"'),
        ({"json": ("$.a[1].b", 3)}, 200, '{"a": [0, {"b": 3}]}', ""),
        ({"json": ("a[2]", 3)}, 200, '{"a": [0, 1]}', "its JSON has no a[2]"),
        ({"json": ("a.b", 3)}, 200, '{"a": [0, 1]}', "its JSON has no a.b"),
        ({"json": ("version", "{version}")}, 200, '{"version": "2.1"}', ""),
        ({"json": ("version", "v${version}")}, 200, '{"version": "v2.1"}', ""),
        ({"json": ("version", "{version}")}, 200, '{"version": 2.1}', 'version is 2.1, not "2.1"'),
        ({"json": ("up", True)}, 200, '{"up": 1}', "up is 1, not true"),
        ({"json": ("down", None)}, 200, '{"down": null}', ""),
        ({"json": ("down", None)}, 200, "{}", "its JSON has no down"),
        ({"json": ("a", 1)}, 200, "<html>", "its body is not JSON"),
    ],
)
def test_what_a_good_answer_is(check: Any, status: int, text: str, flaw: str) -> None:
    if "json" in check:
        check = {"json": dict(zip(("path", "equals"), check["json"], strict=True))}
    assert HttpCheck.model_validate({"http": UP, **check}).flaw(status, text, VALUES) == flaw


class Smoke:
    """A bench whose target is verified; ``bad`` is what its check says from when on, and until when."""

    def __init__(self, bench: Bench, **verify: Any) -> None:
        self.bench = bench
        self.bad: list[tuple[float, float, str]] = []
        self.asked: list[float] = []
        checks = [{"command": ["smoke", "{version}"]}]
        bench.config = {"verify": {"checks": checks, "within": 20, **verify}, "timeout": 60}
        self.began = bench.world.clock.time()

    def ask(self, check: object) -> str:
        assert isinstance(check, CommandCheck)
        now = self.bench.world.clock.time() - self.began
        self.asked.append(now)
        return next((said for start, end, said in self.bad if start <= now < end), "")

    def go(self, version: str = "2") -> Entry:
        entry = self.bench.begin(version)
        while entry.phase is Phase.VERIFYING:
            handle = entry.handle
            assert handle is not None
            entry = self.bench.rollout().wait(entry, lambda h=handle: self.bench.platform().observe(h), self.ask)
        return entry


def test_a_good_check_lets_a_rollout_succeed(bench: Bench) -> None:
    smoke = Smoke(bench)
    entry = smoke.go()
    assert (entry.phase, entry.settled, len(smoke.asked)) == (Phase.SUCCEEDED, True, 1)
    assert entry.checked_at is None, "there is no bake"


def test_a_check_is_asked_again_until_its_time_is_over_and_that_is_beside_the_deadline(bench: Bench) -> None:
    smoke = Smoke(bench, within=100)
    smoke.bad = [(0, 80, "not yet")]
    entry = smoke.go()
    assert entry.phase is Phase.SUCCEEDED
    assert (entry.ended_at or 0) > (entry.deadline or 0)


def test_a_bad_check_takes_the_release_back_and_its_words_are_the_reason(bench: Bench) -> None:
    smoke = Smoke(bench)
    smoke.bad = [(0, 1e9, "GET /up: HTTP 503: no database")]
    entry = smoke.go()
    assert (entry.phase, entry.settled, entry.reason) == (Phase.FAILED, False, "GET /up: HTTP 503: no database")
    assert 28 < (entry.ended_at or 0) - (entry.started_at or 0) < 36
    back = bench.back()
    assert (back.phase, bench.live()) == (Phase.ROLLED_BACK, OLD)
    assert "no database" in bench.journal().bad()["registry.test/shop:2"]


def test_a_bake_observes_on_and_checks_again(bench: Bench) -> None:
    smoke = Smoke(bench, bake=600)
    entry = smoke.go()
    assert entry.phase is Phase.SUCCEEDED
    assert (entry.ended_at or 0) - (entry.checked_at or 0) >= 600
    assert entry.reason == "smoke checks good; baked for 600 s"
    assert len(smoke.asked) == 2
    assert len([call for call in bench.world.calls if call.name == "observe"]) > 100


@pytest.mark.parametrize(
    ("fate", "state"), [("fails", "exit code 1"), ("superseded", "is live")], ids=["fails", "superseded"]
)
def test_a_release_that_turns_bad_during_the_bake_fails_at_once(bench: Bench, fate: Any, state: str) -> None:
    smoke = Smoke(bench, bake=600)

    def turn(check: object) -> str:
        if fate == "superseded":
            bench.world.meddle("shop/t1")
        else:
            bench.world.places["shop/t1"].fate = fate
        return smoke.ask(check)

    entry = bench.begin()
    handle = entry.handle
    assert handle is not None
    while entry.phase is Phase.VERIFYING:
        entry = bench.rollout().wait(entry, lambda: bench.platform().observe(handle), turn)
    assert entry.phase is Phase.FAILED
    assert state in entry.reason
    assert (entry.ended_at or 0) - (entry.checked_at or 0) < 30


def test_checks_that_are_bad_after_the_bake_fail_the_rollout(bench: Bench) -> None:
    smoke = Smoke(bench, bake=100)
    smoke.bad = [(60, 1e9, "exit code 3; memory is full")]
    entry = smoke.go()
    assert (entry.phase, entry.reason) == (Phase.FAILED, "exit code 3; memory is full")


def test_a_short_illness_within_the_bake_is_forgiven(bench: Bench) -> None:
    smoke = Smoke(bench, bake=100)
    smoke.bad = [(60, 115, "slow")]
    assert smoke.go().phase is Phase.SUCCEEDED


def test_what_is_live_already_is_checked_and_not_baked(bench: Bench) -> None:
    smoke = Smoke(bench, bake=600)
    entry = smoke.go("1")
    assert (entry.phase, len(smoke.asked), entry.checked_at) == (Phase.UNCHANGED, 1, None)
    smoke.bad = [(0, 1e9, "ill")]
    bench.clear += 1
    entry = smoke.go("1")
    assert (entry.phase, entry.settled, entry.touched) == (Phase.FAILED, True, False)


def test_a_bake_alone_needs_no_checks(bench: Bench) -> None:
    smoke = Smoke(bench, bake=100, checks=[])
    entry = smoke.go()
    assert (entry.phase, smoke.asked) == (Phase.SUCCEEDED, [])
    assert (entry.ended_at or 0) - smoke.began >= 110


def test_healthy_seen_before_the_bake_is_over_does_not_end_it(bench: Bench) -> None:
    smoke = Smoke(bench, bake=600)
    entry = bench.begin()
    seen = bench.look(entry)
    entry = bench.rollout().advance(entry, seen, smoke.ask)
    assert bench.rollout().advance(entry, seen, smoke.ask) == entry
    assert entry.phase is Phase.VERIFYING


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_crash_at_any_write_of_the_journal_starts_nothing_anew(bench: Bench, nth: int) -> None:
    smoke = Smoke(bench, bake=600)
    bench.store().crash_after = nth
    try:
        entry = smoke.go()
    except Crash:
        bench.world.clock.sleep(40)
        before = bench.entry()
        entry = smoke.go()
        assert (before.checked_at or entry.checked_at) == entry.checked_at
        assert (before.healthy_at or entry.healthy_at) == entry.healthy_at
    assert entry.phase is Phase.SUCCEEDED
    assert len(bench.world.writes()) == 1
    assert (entry.ended_at or 0) - (entry.checked_at or 0) < 660


def test_a_worker_that_dies_in_the_bake_does_not_prolong_it(bench: Bench) -> None:
    smoke = Smoke(bench, bake=600)
    entry = bench.begin()
    bench.rollout().advance(entry, bench.look(entry), smoke.ask)
    bench.world.clock.sleep(1000)
    entry = smoke.go()
    assert entry.phase is Phase.SUCCEEDED
    assert (entry.ended_at or 0) - (entry.checked_at or 0) < 1010


def test_a_person_who_clears_the_task_has_it_verified_anew(bench: Bench) -> None:
    smoke = Smoke(bench, bake=600)
    entry = bench.begin()
    bench.rollout().advance(entry, bench.look(entry), smoke.ask)
    bench.clear += 1
    again = bench.begin()
    assert (again.phase, again.healthy_at, again.checked_at) == (Phase.VERIFYING, None, None)


def test_a_run_that_is_over_gets_no_more_from_its_checks(bench: Bench) -> None:
    smoke = Smoke(bench)
    entry = bench.begin()
    seen = bench.look(entry)
    bench.journal().close("shop", "run1", 0)
    with pytest.raises(RolloutFailed, match="are over"):
        bench.rollout().advance(entry, seen, smoke.ask)
    assert smoke.asked == []
