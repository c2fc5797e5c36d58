"""The catalog in Variables: as a mapping, as a list of names, and in shards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_multideploy import variables
from airflow_multideploy.core.errors import SpecError

SHOP, CART = {"owner": "team-a"}, {"owner": "team-b"}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets Variables, in the environment, where Airflow looks first."""

    def give(**values: object) -> None:
        for key, value in {"multideploy_defaults": {}, **values}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"AIRFLOW_VAR_{key.upper()}", text)

    return give


@pytest.mark.parametrize(
    "values",
    [
        {"multideploy_services": {"shop": SHOP, "cart": CART}},
        {
            "multideploy_services": ["shop", "cart"],
            "multideploy_service_shop": SHOP,
            "multideploy_service_cart": CART,
        },
        {"multideploy_services": {"shop": "a", "cart": CART}, "multideploy_services_a": {"shop": SHOP}},
        {"multideploy_services": {"services": {"shop": SHOP, "cart": CART}, "defaults": {}}},
    ],
    ids=["mapping", "list", "shards", "a file's layout"],
)
def test_each_layout_reads_the_same(given: Any, values: dict[str, object]) -> None:
    given(**values)
    assert variables.read_catalog() == ({"shop": SHOP, "cart": CART}, {})
    assert variables.read_entry("shop") == (SHOP, {})
    assert variables.read_entry("cart") == (CART, {})
    assert variables.read_entry("mars")[0] is None


@pytest.mark.parametrize(
    ("shard", "why"),
    [({"cart": CART}, "no service of that name"), ([], "no mapping"), ("{", "is no JSON"), (None, "is not set")],
)
def test_a_shard_that_lacks_a_service_harms_no_other(given: Any, shard: object, why: str) -> None:
    given(multideploy_services={"shop": "a", "cart": CART}, multideploy_services_a=shard)
    entries, _ = variables.read_catalog()
    assert entries["cart"] == CART
    for found in (entries["shop"], variables.read_entry("shop")[0]):
        assert isinstance(found, SpecError)
        assert "Variable multideploy_services_a: " in str(found)
        assert why in str(found)
