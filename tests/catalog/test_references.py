"""What the services of one catalog say about each other."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.references import astray
from airflow_multideploy.catalog.service import Service
from tests.release.conftest import config_type


def catalog(**said: dict[str, Any]) -> dict[str, Service]:
    target = {"platform": "fake", "conn_id": "c"}
    common = {"artifact": {"image": "registry.test/shop"}, "targets": {"t1": target}}
    return {name: parse_service(name, {**common, **more}, config_type=config_type) for name, more in said.items()}


def test_services_that_are_not_there_are_named_where_they_are_meant() -> None:
    services = catalog(shop={"requires": {"pay": ">=1"}}, mail={"promote": {"from": "dev"}}, cart={})
    assert astray(services, services) == {
        "shop": ["requires.pay: the catalog has no service 'pay'; name one that it has"],
        "mail": ["promote.from: the catalog has no service 'dev'; name one that it has"],
    }
    assert astray(services, {*services, "pay", "dev"}) == {}, "broken ones are there all the same"


def test_circles_are_told_once_with_their_way() -> None:
    services = catalog(a={"requires": {"b": ">=1"}}, b={"requires": {"a": ">=1"}})
    (problems,) = astray(services, services).values()
    assert problems[0].startswith("requires: runs in a circle: ")
    services = catalog(a={"promote": {"from": "b"}}, b={"promote": {"from": "a"}})
    assert "promote.from: runs in a circle: a → b → a" in astray(services, services)["a"][0]
