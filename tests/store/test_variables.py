"""The catalog in Variables: as a mapping, as a list of names, and in shards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_multideploy.errors import SpecError, Unreadable
from airflow_multideploy.store import pools, variables

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


class Supervisor:
    """What a task's supervisor answers when Airflow's API is in trouble."""

    def __init__(self, error: ErrorType) -> None:
        self.error = error

    def send(self, message: object) -> ErrorResponse:
        return ErrorResponse(error=self.error)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets Airflow's API answer every look-up with an error."""

    def answer(error: ErrorType) -> None:
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(error), raising=False)

    return answer


@pytest.mark.parametrize("error", [ErrorType.API_SERVER_ERROR, ErrorType.GENERIC_ERROR, ErrorType.PERMISSION_DENIED])
def test_what_cannot_be_read_is_not_absent(given: Any, api: Any, error: ErrorType) -> None:
    given()
    api(error)
    for read in (
        variables.read_catalog,
        lambda: variables.read_entry("shop"),
        lambda: variables.frozen("shop"),
        lambda: variables.keys(variables.FROZEN),
        pools.known,
    ):
        with pytest.raises(Unreadable, match=r"^Variables? multideploy_\w+…?: cannot be"):
            read()


def test_what_is_not_there_is_absent(given: Any, api: Any) -> None:
    given()
    api(ErrorType.VARIABLE_NOT_FOUND)
    assert variables.get("multideploy_freezes") is None
    assert variables.read_catalog() == ({}, None)
    assert variables.frozen("shop") is None


def test_a_service_whose_variable_cannot_be_read_harms_no_other(given: Any, api: Any) -> None:
    given(multideploy_services=["shop", "cart"], multideploy_service_cart=CART)
    api(ErrorType.API_SERVER_ERROR)
    entries, _ = variables.read_catalog()
    assert entries["cart"] == CART
    assert isinstance(entries["shop"], Unreadable)
