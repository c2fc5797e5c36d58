"""What holds a release before its first write: the frozen plan's windows, and the freezes of the moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk.exceptions import TaskDeferred

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators.clock import TaskClock
from airflow_multideploy.operators.windows import closed, hold, refusal, waits
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.release.plan import Plan, make_plan

MONDAY = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
ALWAYS = {"from": "2020-01-01T00:00", "to": "2999-01-01T00:00"}
TUESDAYS = {"open": [{"days": ["tue"], "from": "09:00", "to": "17:00"}]}
BOTH = ["aws_ecs", "http"]


def plan(*, service: dict[str, Any] | None = None, **conf: Any) -> Plan:
    targets = {
        "aws": {"platform": "aws_ecs", "conn_id": "aws", "cluster": "main", "service": "shop"},
        "dc1": {"platform": "http", "conn_id": "dc1"},
    }
    document = {"artifact": {"image": "registry.test/shop"}, "targets": targets, **(service or {})}
    made = parse_service("shop", document, config_type=config_type)
    return make_plan("shop", made, {"version": "1", **conf}, dag_id="shop", run_id="run1")


@pytest.fixture(autouse=True)
def _no_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(monkeypatch)


def freeze(monkeypatch: pytest.MonkeyPatch, *freezes: object) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_FREEZES", json.dumps(freezes))


def test_a_freeze_holds_a_release_but_no_rollback_and_none_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert closed(plan(), MONDAY, platforms=BOTH) is None
    freeze(monkeypatch, {"name": "year end", **ALWAYS})
    found = closed(plan(), MONDAY, platforms=BOTH)
    assert found is not None
    assert "frozen by 'year end' on aws_ecs, http" in found.reason
    assert closed(plan(rollback=True), MONDAY, platforms=BOTH) is None
    assert closed(plan(override="INC-7"), MONDAY, platforms=BOTH) is None


def test_once_begun_only_a_freeze_of_the_platform_itself_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = plan(service={"windows": TUESDAYS})
    freeze(monkeypatch, {"name": "all", **ALWAYS}, {"name": "cloud", "platforms": ["aws_*"], **ALWAYS})
    assert closed(windows, MONDAY, platforms=["http"], begun=True) is None
    found = closed(windows, MONDAY, platforms=["aws_ecs"], begun=True)
    assert found is not None
    assert found.reason.startswith("frozen by 'cloud'")


@pytest.mark.parametrize("service", [{"windows": TUESDAYS}, {"schedule": {"windows": TUESDAYS}, "version": "1"}])
def test_outside_its_windows_a_service_waits_unless_it_refuses(service: dict[str, Any]) -> None:
    waiting = plan(service=service)
    found = closed(waiting, MONDAY, platforms=BOTH)
    assert found is not None
    assert found.opens == datetime(2026, 11, 24, 9, tzinfo=UTC)
    assert waits(waiting)
    assert refusal(waiting, MONDAY) == ""
    refusing = plan(service={"windows": {**TUESDAYS, "when_closed": "refuse"}})
    assert "outside its windows" in refusal(refusing, MONDAY)


def test_windows_of_its_own_come_before_those_of_its_schedule() -> None:
    mondays = {"open": [{"days": ["mon"], "from": "09:00", "to": "17:00"}]}
    both = plan(service={"windows": mondays, "schedule": {"windows": TUESDAYS}, "version": "1"})
    assert closed(both, MONDAY, platforms=BOTH) is None


def test_a_freeze_of_one_platform_refuses_a_release_that_cannot_succeed_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would write to the others, miss its policy, and send them back."""
    freeze(monkeypatch, {"name": "cloud", "platforms": ["aws_*"], **ALWAYS})
    assert "frozen by 'cloud' on aws_ecs" in refusal(plan(), MONDAY)
    assert refusal(plan(targets=["dc1"]), MONDAY) == ""
    one = {"success": {"policy": {"at_least": 1}}}
    assert refusal(plan(service=one), MONDAY) == ""
    assert "frozen by 'cloud'" in refusal(plan(service=one, targets=["aws"]), MONDAY)


@pytest.mark.parametrize(
    ("scope", "holds"),
    [
        ({"services": ["shop"], "environments": ["prod"]}, True),
        ({"services": ["shop-prod"]}, True),
        ({"services": ["shop"], "environments": ["dev"]}, False),
        ({"services": ["shop-pro"]}, False),
    ],
)
def test_in_an_environment_a_service_is_frozen_by_either_of_its_names(
    monkeypatch: pytest.MonkeyPatch, scope: dict[str, Any], holds: bool
) -> None:
    prod = plan(service={"environment": "prod"}).model_copy(update={"name": "shop-prod"})
    freeze(monkeypatch, {"name": "x", **ALWAYS, **scope})
    assert (closed(prod, MONDAY, platforms=BOTH) is not None) is holds


def test_freezes_that_cannot_be_read_let_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(monkeypatch, {"name": "x", "weekly": {}})
    with pytest.raises(SpecError, match=r"Variable multideploy_freezes: freezes\[0\]\.weekly"):
        closed(plan(), MONDAY, platforms=BOTH)


class Hours(TaskClock):
    """Sleeps without waiting."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.now = now
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def held(plan: Plan, clock: Hours, *, again: str = "", useless: Sequence[str] = ()) -> str:
    """
    :param useless: what is said at each look; nothing after the last.
    """
    said = iter(useless)
    task = EmptyOperator(task_id="deploy")
    return hold(task, plan, "http", clock, begun=False, since=MONDAY, again=again, useless=lambda: next(said, ""))


def test_a_release_looks_ever_more_seldom_until_its_window_opens() -> None:
    clock = Hours(MONDAY)
    assert held(plan(service={"windows": TUESDAYS}), clock) == ""
    assert clock.now == datetime(2026, 11, 24, 9, tzinfo=UTC).timestamp()
    assert clock.slept[0] == 10
    assert max(clock.slept) == 300


def test_a_wait_ends_when_there_is_no_more_use_in_it() -> None:
    clock = Hours(MONDAY)
    assert held(plan(service={"windows": TUESDAYS}), clock, useless=["", "", "gives way"]) == "gives way"
    assert len(clock.slept) == 2


def test_it_waits_in_the_triggerer_where_it_may() -> None:
    with pytest.raises(TaskDeferred) as deferred:
        held(plan(service={"windows": TUESDAYS}), Hours(MONDAY), again="reopened")
    assert deferred.value.method_name == "reopened"
    assert deferred.value.trigger.moment.timestamp() == MONDAY + 10


def test_it_begins_only_when_all_of_its_platforms_are_free_but_goes_on_where_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freeze(monkeypatch, {"name": "cloud", "platforms": ["aws_*"], **ALWAYS, "to": "2026-11-24T00:00"})
    waiting = plan(service={"windows": {"open": [{"days": ["mon"], "from": "09:00", "to": "17:00"}]}})
    assert held(waiting, Hours(MONDAY), useless=["enough"]) == "enough"
    begun = hold(
        EmptyOperator(task_id="deploy"),
        waiting,
        "http",
        Hours(MONDAY),
        begun=True,
        since=MONDAY,
        again="",
        useless=lambda: "not asked",
    )
    assert begun == ""
