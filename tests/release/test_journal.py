from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.contract import Handle, Release, Snapshot
from airflow_multideploy.release.journal import GOOD, IN_FLIGHT, Entry, Journal, Phase
from airflow_multideploy.testing.fake import MemoryStore

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DATA = st.dictionaries(TEXT, JSON, max_size=3)
TIME = st.none() | st.floats(0, 4e9)
RELEASES = st.builds(Release, service=TEXT, version=TEXT, image=TEXT, digest=st.none() | TEXT, release_id=TEXT)
HANDLES = st.builds(Handle, action=st.sampled_from(["deploy", "rollback"]), revision=st.none() | TEXT, data=DATA)
ENTRIES = st.builds(
    Entry,
    service=TEXT,
    target=TEXT,
    config=DATA,
    release=RELEASES,
    dag_id=TEXT,
    run_id=TEXT,
    phase=st.sampled_from(Phase),
    touched=st.booleans(),
    settled=st.booleans(),
    snapshot=st.none() | st.builds(Snapshot, exists=st.booleans(), revision=st.none() | TEXT, data=DATA),
    previous=st.none() | RELEASES,
    handle=st.none() | HANDLES,
    back=st.none() | HANDLES,
    deadline=TIME,
    rollback_deadline=TIME,
    started_at=TIME,
    reason=TEXT,
    deployed=st.none() | st.sampled_from(Phase),
    attempt=st.integers(1, 99),
)


def release(version: str) -> Release:
    return Release(service="s", version=version, image=f"i:{version}", release_id=f"r{version}")


def entry(version: str = "1") -> Entry:
    return Entry(service="s", target="t", config={}, release=release(version), dag_id="d", run_id="r")


@given(ENTRIES)
def test_an_entry_survives_the_store_and_json(made: Entry) -> None:
    journal = Journal(MemoryStore())
    assert journal.write(made) is made
    assert journal.read() == made
    assert Entry.model_validate_json(made.model_dump_json()) == made
    assert Entry.model_validate(json.loads(json.dumps(made.dump()))) == made


def test_a_new_journal_knows_nothing() -> None:
    journal = Journal(MemoryStore())
    assert (journal.read(), journal.live(), journal.bad()) == (None, None, {})


def test_an_entry_of_another_shape_is_refused_instead_of_guessed() -> None:
    store = MemoryStore()
    store.set("t1.journal", {**entry().dump(), "surprise": 1})
    where = r"shop/t1: the journal \(key 't1.journal'\).*surprise: Extra inputs.*that key of .*//shop/journal"
    with pytest.raises(SpecError, match=where):
        Journal(store, "shop/t1", "t1.").read()


def test_targets_that_share_a_store_keep_apart() -> None:
    store = MemoryStore()
    one, two = Journal(store, "shop/t1", "t1."), Journal(store, "shop/t2", "t2.")
    one.write(entry())
    one.remember_bad("i", "why")
    assert (two.read(), two.bad()) == (None, {})
    assert (one.read(), one.bad()) == (entry(), {"i": "why"})


def test_another_phase_is_a_copy() -> None:
    first = entry()
    second = first.to(Phase.FAILED, reason="x")
    assert (first.phase, second.phase, second.reason) == (Phase.PENDING, Phase.FAILED, "x")


def test_what_is_live_is_remembered_and_forgotten() -> None:
    journal = Journal(MemoryStore())
    journal.remember_live(release("1"))
    assert journal.live() == release("1")
    journal.remember_live(None)
    assert journal.live() is None


def test_bad_images_are_kept_newest_last_up_to_a_number_and_can_be_forgiven() -> None:
    store = MemoryStore()
    journal = Journal(store)
    for number in range(Journal.KEPT_BAD + 5):
        journal.remember_bad(f"i:{number}", "why")
    journal.remember_bad("i:10", "again")
    bad = journal.bad()
    assert len(bad) == Journal.KEPT_BAD
    assert list(bad)[-1] == "i:10"
    assert bad["i:10"] == "again"
    assert "i:0" not in bad
    journal.forgive("i:10")
    assert "i:10" not in journal.bad()
    writes = len(store.writes)
    journal.forgive("i:10")
    assert len(store.writes) == writes


def test_each_phase_is_good_in_flight_or_neither() -> None:
    assert not GOOD & IN_FLIGHT
    assert Phase.PENDING not in IN_FLIGHT
