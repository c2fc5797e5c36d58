"""A catalog as a file: what is read of it, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.errors import SpecError

SERVICES = {"shop": {"owner": "team-a"}}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("catalog.yaml", "shop: {owner: team-a}", (SERVICES, None)),
        (
            "catalog.json",
            '{"services": {"shop": {"owner": "team-a"}}, "defaults": {"retries": 1}}',
            (SERVICES, {"retries": 1}),
        ),
        ("anchors.yaml", "services: {shop: &a {owner: team-a}}\ndefaults: *a", (SERVICES, {"owner": "team-a"})),
        ("merged.yaml", "shop: {<<: {owner: team-b}, owner: team-a}", (SERVICES, None)),
    ],
)
def test_yaml_and_json_read_alike(tmp_path: Path, name: str, text: str, found: object) -> None:
    (tmp_path / name).write_text(text)
    assert read_file(tmp_path / name) == found


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- shop", "expected a mapping of service name to service, got list"),
        ("shop: {\n", "line 2, column 1"),
        ("shop: {}\nshop: {}", "key 'shop' is given twice"),
        ("shop: 2026-99-99", "is no YAML or JSON that can be read"),
        (BOMB, "its aliases unfold to too much"),
        ("servicse: {}\ndefaults: {}", "did you mean 'services'"),
    ],
)
def test_what_is_no_catalog_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=said) as caught:
        read_file(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.yaml")
