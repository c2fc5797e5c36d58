"""Gates and guided failure: what the catalog takes, how the DAG is wired, and that no answer is no yes."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_multideploy.catalog.approval import Choice
from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.factory.factory import service_dags
from airflow_multideploy.operators.approval import ApproveOperator, cell, markdown
from airflow_multideploy.operators.run import decisions, not_approved
from airflow_multideploy.release.journal import Phase
from airflow_multideploy.release.ledger import Approval
from airflow_multideploy.release.status import TargetResult
from airflow_multideploy.release.verdict import Rules, Verdict, judge
from airflow_multideploy.testing.fake import MemoryStore
from tests.release.conftest import config_type, targets

IMAGE = {"image": "registry.test/shop"}


def dag(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """A service of three targets, of which ``c`` waits for ``a``."""
    places = {name: {"platform": "http", "conn_id": "dc1", **more.pop(name, {})} for name in "abc"}
    places["c"]["depends_on"] = ["a"]
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", "{}")
    services = {"shop": {"artifact": IMAGE, "targets": places, **more}}
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps(services))
    return service_dags()["shop"]


# --- catalog


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"rollback": {"users": ["alice"]}},
            "rollback.users: nobody is asked with this strategy; set strategy: manual",
        ),
        ({"rollback": {"timeout": 60}}, "rollback.timeout: nobody is asked"),
        ({"rollback": {"strategy": "manual", "default": "retry"}}, "rollback.default: "),
        ({"approval": {"timeout": 300_000}}, "approval.timeout: "),
        ({"approval": {"users": [7]}}, "approval.users.0: "),
        ({"approval": {"users": []}}, "approval.users: is empty; name who may answer"),
        ({"approval": {"user": ["alice"]}}, "approval.user: unknown key; did you mean 'users'?"),
    ],
)
def test_a_wrong_question_is_refused(entry: dict[str, Any], said: str) -> None:
    whole = {"artifact": IMAGE, "targets": {"t1": {"platform": "fake", "conn_id": "c"}}, **entry}
    with pytest.raises(SpecError) as caught:
        parse_service("shop", whole, config_type=config_type)
    assert any(problem.startswith(said) for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("name", ["approve", "decide"])
def test_no_target_takes_the_name_of_a_question(name: str) -> None:
    entry = {"artifact": IMAGE, "targets": {name: {"platform": "fake", "conn_id": "c"}}}
    with pytest.raises(SpecError, match="is taken by a task of every release"):
        parse_service("shop", entry, config_type=config_type)


def test_a_frozen_service_is_read_again_as_it_was() -> None:
    entry = {
        "artifact": IMAGE,
        "targets": {"t1": {"platform": "fake", "conn_id": "c", "approval": {"users": ["bob"]}}},
        "approval": {"timeout": 5},
        "rollback": {"strategy": "manual", "timeout": 5, "users": ["alice"]},
    }
    service = parse_service("shop", entry, config_type=config_type)
    assert parse_service("shop", service.model_dump(mode="json"), config_type=config_type) == service


# --- the DAG


def test_every_deploy_waits_for_the_services_gate_and_one_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = dag(monkeypatch, approval={"users": ["alice"], "timeout": 60}, c={"approval": {"default": "approve"}})
    assert shop.get_task("approve").upstream_task_ids == {"plan"}
    assert shop.get_task("a.deploy").upstream_task_ids == {"approve"}
    assert shop.get_task("c.approve").upstream_task_ids == {"a.deploy"}
    assert shop.get_task("c.deploy").upstream_task_ids == {"a.deploy", "c.approve"}
    assert shop.get_task("b.deploy").gates == ("approve",)
    assert shop.get_task("c.deploy").gates == ("approve", "c.approve")
    gate = shop.get_task("approve")
    assert gate.assigned_users == [{"id": "alice", "name": "alice"}]
    assert (gate.response_timeout.total_seconds(), gate.defaults) == (60, ["reject"])
    assert shop.get_task("c.approve").defaults == ["approve"]


def test_only_where_a_person_picks_there_is_a_task_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"decide", "approve"} & dag(monkeypatch).task_dict.keys()
    shop = dag(monkeypatch, rollback={"strategy": "manual", "default": "accept"})
    decide = shop.get_task("decide")
    assert decide.upstream_task_ids == {"aggregate_status"}
    assert decide.downstream_task_ids == {"rollback.a", "rollback.b", "rollback.c", "finalize"}
    assert (decide.defaults, decide.is_teardown, decide.trigger_rule) == (["accept"], True, "all_done")
    assert decide.response_timeout.total_seconds() == 3600


# --- no answer is no yes


class Ti:
    """What tasks have left in XCom."""

    dag_id = "shop"

    def __init__(self, **left: Any) -> None:
        self.left = left

    def xcom_pull(self, *, task_ids: str, key: str) -> Any:
        return self.left.get(task_ids)


def answered(*gates: str, **left: Any) -> Any:
    """The context of a run in which that is in XCom, and for these gates in the record too."""
    context: Any = {"ti": Ti(**left), "run_id": "run1", "asset_state_store": defaultdict(MemoryStore)}
    for gate in gates:
        answers = [Approval.model_validate(each) for each in left[gate]]
        decisions(context, "shop").keep_answers(gate, answers, 0)
    return context


YES = {"gate": "approve", "choice": "approve", "by": "alice", "at": 1.0, "reason": ""}


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ([YES], ""),
        ([{**YES, "choice": "reject"}], "rejected by alice"),
        ([{**YES, "choice": "reject", "reason": "no"}], "rejected by alice: no"),
        ([{**YES, "choice": "reject", "by": "", "reason": "no answer within 1 h"}], "not approved: no ans"),
        (None, "the approve task did not end well"),
        ([], "the approve task did not end well"),
    ],
)
def test_a_gate_lets_past_only_with_a_yes(left: Any, said: str) -> None:
    found = not_approved(answered(*["approve"] * bool(left), approve=left), "shop", ["approve"])
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_gates_of_a_target_all_have_to_approve() -> None:
    no = {**YES, "choice": "reject", "by": "bob"}
    context = answered("approve", "c.approve", **{"approve": [YES], "c.approve": [no]})
    assert not_approved(context, "shop", ["approve", "c.approve"]) == "rejected by bob"


def test_an_answer_that_only_xcom_has_is_none() -> None:
    said = "the answer in XCom of task 'approve' is not what Airflow's question was answered: somebody changed it"
    assert not_approved(answered(approve=[YES]), "shop", ["approve"]) == said
    context = answered("approve", approve=[{**YES, "choice": "reject"}])
    context["ti"] = Ti(approve=[YES])
    assert not_approved(context, "shop", ["approve"]) == said


@pytest.mark.parametrize(
    ("who", "said"), [({"id": "7", "name": "alice"}, ("alice", "why")), (None, ("", "no answer within 90 s"))]
)
def test_what_was_answered_by_whom(monkeypatch: pytest.MonkeyPatch, who: Any, said: tuple[str, str]) -> None:
    gate = dag(monkeypatch, approval={"timeout": 90}).get_task("approve")
    assert isinstance(gate, ApproveOperator)
    at = datetime(2026, 1, 2, tzinfo=UTC)
    event = {"chosen_options": ["reject"], "params_input": {"comment": "why"}, "responded_at": at}
    found = gate.answer({}, {**event, "responded_by_user": who, "timedout": who is None})
    assert (found.gate, found.choice, found.at) == ("approve", "reject", at.timestamp())
    assert (found.by, found.reason) == said


# --- what a person picks


def verdict(choice: Choice | None, *, strategy: Any = "manual", final: bool = False, **more: Any) -> Verdict:
    """One of three targets failed; another one depends on it and was never started."""
    ended = {"a": Phase.FAILED, "b": Phase.SUCCEEDED, "c": Phase.PENDING, **more}
    results = {
        name: TargetResult(target=name, phase=phase, deployed=phase, touched=phase is not Phase.PENDING)
        for name, phase in ended.items()
    }
    configs = targets({"a": [], "b": [], "c": ["a"]})
    rules = Rules(strategy=strategy)
    return judge(results, configs, service="shop", version="2", rules=rules, choice=choice, final=final)


@pytest.mark.parametrize(
    ("choice", "restore"),
    [("roll_back_all", {"a", "b"}), ("roll_back_failed", {"a"}), ("accept", set()), ("retry", set()), (None, set())],
)
def test_what_is_picked_says_what_goes_back(choice: Choice | None, restore: set[str]) -> None:
    made = verdict(choice)
    assert (set(made.restore), made.choice, made.asks) == (restore, choice, True)


def test_accepted_it_is_failed_and_says_so() -> None:
    assert verdict("accept", final=True).status == "failed"


def test_a_choice_counts_only_where_one_is_to_be_made() -> None:
    good = dict.fromkeys("ac", Phase.SUCCEEDED)
    assert (verdict("roll_back_all", **good).restore, verdict("roll_back_all", **good).asks) == ((), False)
    assert set(verdict("accept", strategy="all").restore) == {"a", "b"}
    untouched = dict.fromkeys("abc", Phase.PENDING)
    assert not verdict(None, **untouched).asks, "nothing was written: there is nothing to pick"


# --- what people are shown


def test_other_peoples_words_stay_words() -> None:
    shown = markdown([{"target": "a", "reason": "| <b>\n[x](http://evil) `code`"}])
    assert shown.splitlines()[2] == r"| a | \| \<b\> \[x\](http://evil) \`code\` |"
    assert cell("  two\n lines ") == "two lines"
    assert markdown([]) == ""
