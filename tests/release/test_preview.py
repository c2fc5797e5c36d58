"""What a plan says beforehand: what changes, what it waits for, how long it takes, and what a rollback would do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_multideploy.catalog.locks import contradictions, pools
from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.release.contract import Release, Snapshot
from airflow_multideploy.release.plan import make_plan
from airflow_multideploy.release.preview import Look, Preview, TargetPreview, make_preview, markdown, summary
from airflow_multideploy.release.windows import Blocked

IMAGE, DIGEST = "registry.example.com/shop", "sha256:" + "a" * 64


def service(*names: str, targets: dict[str, dict[str, Any]] | None = None, **more: Any) -> Service:
    given = targets or {name: {} for name in names}
    document = {
        "artifact": {"image": IMAGE},
        "targets": {name: {"platform": "plain", "conn_id": "c", **each} for name, each in given.items()},
        **more,
    }
    return parse_service("shop", document, config_type=lambda _: TargetConfig)


def runs(image: str | None = f"{IMAGE}:1", revision: str | None = "rev-1", **more: Any) -> Look:
    return Look(snapshot=Snapshot(exists=True, image=image, revision=revision), **more)


def preview(shop: Service, looks: dict[str, Look], *, digest: str | None = None, **more: Any) -> Preview:
    conf = {key: more.pop(key) for key in ("targets", "force") if key in more}
    plan = make_plan("shop", shop, {"version": "2", **conf}, dag_id="shop", run_id="r", digest=digest)
    return make_preview(plan, shop, looks, **more)


def only(found: Preview) -> TargetPreview:
    (target,) = found.targets
    return target


@pytest.mark.parametrize(
    ("live", "digest", "force", "change"),
    [
        (f"{IMAGE}:1", None, False, "release"),
        (f"{IMAGE}:2", None, False, "same tag"),
        (f"{IMAGE}@{DIGEST}", DIGEST, False, "no change"),
        (f"{IMAGE}@{DIGEST}", DIGEST, True, "release"),
        (None, None, False, "release"),
    ],
)
def test_no_change_is_said_only_where_it_is_certain(
    live: str | None, digest: str | None, force: bool, change: str
) -> None:
    assert only(preview(service("a"), {"a": runs(live)}, digest=digest, force=force)).change == change


def test_the_live_version_comes_from_the_journal_or_from_the_tag() -> None:
    known = Release(service="shop", version="1.4", image=f"{IMAGE}@{DIGEST}", release_id="r1")
    cases = [
        (runs(f"{IMAGE}@{DIGEST}", previous=known), "1.4"),
        (runs(None, previous=known), "1.4"),
        (runs("localhost:5000/shop:3", previous=known), "3"),
        (runs(f"{IMAGE}@sha256:{'b' * 64}", previous=known), None),
        (Look(snapshot=Snapshot(exists=False), previous=known), None),
    ]
    for look, version in cases:
        live = only(preview(service("a"), {"a": look})).live
        assert live is not None
        assert live.version == version, look


def test_where_a_rollback_would_lead() -> None:
    first = Look(snapshot=Snapshot(exists=False))
    cases = [
        (runs(), {}, "back to rev-1"),
        (first, {}, "removed again"),
        (first, {"first_deploy": "leave"}, "left as it is (first_deploy: leave)"),
        (Look(error="no answer"), {}, "unknown"),
    ]
    for look, config, said in cases:
        assert only(preview(service(targets={"a": config}), {"a": look})).way_back == said
    same = only(preview(service("a"), {"a": runs(f"{IMAGE}@{DIGEST}")}, digest=DIGEST))
    assert same.way_back == "nothing to undo"


def took(*seconds: float) -> Look:
    return runs(durations=seconds)


def test_the_whole_takes_as_long_as_its_longest_way() -> None:
    shop = service(targets={"a": {}, "b": {}, "c": {"depends_on": ["a"]}})
    looks = {"a": took(10, 10, 30), "b": took(50), "c": took(5, 7)}
    expected = preview(shop, looks).expected
    assert expected is not None
    assert (expected.p50, expected.releases) == (50, 1)
    assert preview(shop, {**looks, "b": took(1)}).expected == expected.model_copy(
        update={"p50": 10 + 6, "p95": pytest.approx(28 + 6.9)}
    )
    assert preview(shop, {**looks, "b": runs()}).expected is None, "one is not known"
    assert preview(shop, {"a": took(3)}, targets=["a"]).expected is not None, "and takes no part here"


def test_what_goes_two_at_a_time_takes_longer() -> None:
    looks = {name: took(10) for name in "abcd"}
    spans = []
    for most in (None, 2, 1):
        expected = preview(service(*"abcd", max_parallel=most), looks).expected
        spans.append(expected and expected.p50)
    assert spans == [10, 20, 40]


def test_what_is_live_already_takes_no_time() -> None:
    looks = {"a": took(10), "b": runs(f"{IMAGE}@{DIGEST}", durations=(99.0,))}
    expected = preview(service("a", "b"), looks, digest=DIGEST).expected
    assert expected is not None
    assert expected.p50 == 10


def test_each_target_says_what_it_waits_for_and_why_it_takes_no_part() -> None:
    shop = service(
        targets={
            "a": {"lock": {"name": "own", "slots": 2}},
            "b": {"depends_on": ["a"], "when": "params.version == '9'"},
            "c": {"depends_on": ["a", {"target": "b", "when": "skipped"}, {"target": "d", "when": "failed"}]},
            "d": {},
        },
        lock="main",
    )
    found = preview(shop, {name: runs() for name in "ac"}, targets=["a", "b", "c"])
    a, b, c, d = found.targets
    assert (a.wave, b.wave, c.wave, d.wave) == (1, None, 2, None)
    assert c.after == ("a succeeded", "b skipped"), "d is not selected, and counts as live"
    assert (b.why, d.why) == ("not when params.version == '9'", "not selected")
    assert (a.lock, c.lock) == ("own", "main")


def test_windows_and_freezes_hold_a_release_up_or_refuse_it() -> None:
    opens = datetime(2026, 12, 1, 8, tzinfo=UTC)
    held = preview(service("a"), {"a": runs()}, held=Blocked("frozen", opens))
    assert (held.start, held.refusals) == ("2026-12-01T08:00:00+00:00", ())
    assert "first write: 2026-12-01T08:00:00+00:00: frozen" in summary(held)
    refused = preview(service("a"), {"a": runs()}, held=Blocked("frozen", opens), refusals=["frozen"])
    assert (refused.start, summary(refused)[:2]) == (None, ["shop 2: REFUSED", "refused: frozen"])


def test_a_platform_that_does_not_answer_is_a_line_and_not_the_end() -> None:
    found = preview(service("a", "b"), {"a": runs(), "b": Look(error="shop/b: 503 <b>|x")})
    assert not found.whole
    text = markdown(found)
    assert "shop/b: 503 &lt;b>\\|x" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1, "every row has all columns"
    assert found == Preview.model_validate_json(found.model_dump_json())


def test_the_policy_in_words() -> None:
    shop = service(targets={"a": {"critical": True}, "b": {}, "c": {}}, success={"policy": {"at_least": 2}})
    looks = {name: runs() for name in "abc"}
    assert preview(shop, looks).success == "at least 2 targets succeed, and: a"
    some = service(
        targets={"a": {"critical": True}, "b": {}}, success={"policy": "critical"}, rollback={"strategy": "none"}
    )
    found = preview(some, {name: runs() for name in "ab"})
    assert (found.success, found.rollback.partition(";")[0]) == ("these succeed: a", "otherwise nothing goes back")
    assert preview(some, {"b": runs()}, targets=["b"]).success == "all targets succeed"


def test_a_lock_has_the_slots_that_somebody_gives_it() -> None:
    one = service(targets={"a": {"lock": {"name": "x", "slots": 3}}, "b": {"lock": "y"}})
    two = service("a", lock="x")
    assert pools([one, two]) == {"multideploy_x": 3, "multideploy_y": 1}
    assert contradictions({"one": one, "two": two}) == {}
    three = service("a", lock={"name": "x", "slots": 2})
    assert pools([one, three])["multideploy_x"] == 2
    assert contradictions({"one": one, "three": three}) == {
        "one": ["targets.a.lock: 'x' has 3 slots here and 2 in three/a; say it in one place, or the same in all"],
        "three": ["targets.a.lock: 'x' has 2 slots here and 3 in one/a; say it in one place, or the same in all"],
    }
