"""What decides a run: kept for itself, and forgotten with its release."""

from __future__ import annotations

import pytest

from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.decisions import Built, Decisions
from airflow_multideploy.release.ledger import Approval, Ledger, Record
from airflow_multideploy.release.plan import make_plan
from airflow_multideploy.testing.fake import MemoryStore
from tests.release.test_plan import service

YES = Approval(gate="approve", choice="approve", by="alice", at=1.0)


def test_each_run_has_its_own() -> None:
    store = MemoryStore()
    first, second = Decisions(store, "shop", "r1"), Decisions(store, "shop", "r2")
    plan = make_plan("shop", service(), {"version": "2"}, dag_id="shop", run_id="x")
    first.keep_plan(plan)
    first.keep_built(Built(image="registry.test/shop@sha256:1", digest="sha256:1"))
    first.keep_answers("approve", [YES], 0)
    assert (first.plan(), first.built(), first.answers("approve")) == (
        plan,
        Built(image="registry.test/shop@sha256:1", digest="sha256:1"),
        (YES,),
    )
    assert (second.plan(), second.built(), second.answers("approve")) == (None, None, ())
    first.keep_plan(None)
    assert first.plan() is None
    first.forget(["approve"])
    assert not store._kept


def test_an_answer_from_before_a_clear_is_asked_for_again() -> None:
    kept = Decisions(MemoryStore(), "shop", "r1")
    kept.keep_answers("approve", [YES], 0)
    assert kept.answers("approve", 0) == kept.answers("approve") == (YES,)
    assert kept.answers("approve", 1) == ()


def test_what_is_spoilt_is_said_with_its_place() -> None:
    store = MemoryStore()
    store.set("plan.r1", {"name": 7})
    with pytest.raises(SpecError, match=r"shop: the record \(key 'plan\.r1'\): cannot be read"):
        Decisions(store, "shop", "r1").plan()


def test_the_ledger_says_which_releases_it_drops() -> None:
    book = Ledger(MemoryStore(), "shop")

    def record(number: int) -> Record:
        ids = {"release_id": f"r{number}", "dag_id": "shop", "run_id": f"run{number}"}
        return Record(service="shop", version="1", actor="me", started_at=float(number), status="succeeded", **ids)

    dropped = [line.run_id for number in range(book.KEPT + 2) for line in book.keep(record(number))]
    assert dropped == ["run0", "run1"]
