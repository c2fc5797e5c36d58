"""The short form of ``python -m tests.bad_input``: what somebody else wrote, or spoilt, meets errors of ours alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.errors import SpecError
from airflow_multideploy.store import variables
from tests.bad_input.documents import _BOMB, KINDS, read
from tests.bad_input.garbage import hold


@pytest.mark.parametrize("kind", KINDS)
def test_only_errors_of_ours_that_name_the_place_and_no_secret(kind: str) -> None:
    tally = hold(KINDS[kind], documents=250, seed=7)
    assert tally.violation == ""
    assert tally.documents >= 200
    assert 0 < tally.taken < tally.documents, "all alike: the documents test nothing"


def test_the_harness_sees_a_foreign_error_and_a_secret() -> None:
    def foreign(rng: random.Random) -> bool:
        return read(lambda: [].pop(), "shop")

    def telling(rng: random.Random) -> bool:
        def refuse() -> None:
            error = SpecError("x: y", service="shop")
            error.args = ("service 'shop': password sandbox-secret: mend it",)
            raise error

        return read(refuse, "shop")

    assert "IndexError" in hold(foreign, documents=3, seed=1).violation
    assert "'sandbox-secret' stands in" in hold(telling, documents=3, seed=1).violation


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_BOMB + b"shop: {tags: *j}\n", "unfold"),
        (b"a: &a {k: 1}\nb: &b {<<: [*a, *a]}\nshop: {at: 2026-99-99}\n", "is no YAML"),
        (b"shop: !!bool maybe\n", "is no YAML"),
        (b"[" * 5000, "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
    ],
)
def test_a_file_that_its_reader_stumbles_over_is_refused_by_name(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_bytes(text)
    with pytest.raises(SpecError, match=said) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ['{"run_id": {}}', '{"service": {}}', "[1]", "{", "[" * 100_000, '{"run_id": "r", "service": []}']
)
def test_a_spoilt_frozen_config_counts_as_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would take every DAG of the file with it."""
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_FROZEN_SHOP", text)
    assert variables.frozen("shop") is None
