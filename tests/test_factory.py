"""The DAGs of a catalog: what is wrong in one place harms no other."""

from __future__ import annotations

import json

import pytest

from airflow_multideploy.factory import RECONCILE_DAG, service_dags

SHOP = {"artifact": {"image": "registry.test/shop"}, "targets": {"dc1": {"platform": "http", "conn_id": "dc1"}}}


@pytest.fixture(autouse=True)
def catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": SHOP}))
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", "{}")


def reconciler(monkeypatch: pytest.MonkeyPatch, **options: str) -> str | None:
    """What the reconciler's DAG says of itself; None when there is none."""
    for name, value in options.items():
        monkeypatch.setenv(f"AIRFLOW__MULTIDEPLOY__{name.upper()}", value)
    dags = service_dags()
    assert not dags["shop"].description.startswith("BROKEN")
    return dags[RECONCILE_DAG].description if RECONCILE_DAG in dags else None


@pytest.mark.parametrize("off", ["off", ""])
def test_there_is_no_reconciler_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, off: str) -> None:
    assert reconciler(monkeypatch) is None
    assert reconciler(monkeypatch, reconcile=off) is None


def test_the_reconciler_reports_or_sends_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reconciler(monkeypatch, reconcile="report") == "Reports what dead runs left in doubt"
    assert reconciler(monkeypatch, reconcile="rollback") == "Sends back what dead runs left in doubt"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reconcile": "yes"}, "reconcile: is 'yes'; set off, report or rollback"),
        ({"reconcile": "report", "reconcile_schedule": "every ten"}, "reconcile_schedule: "),
    ],
)
def test_wrong_options_break_the_reconciler_alone(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], said: str
) -> None:
    shown = reconciler(monkeypatch, **options)
    assert shown is not None
    assert shown.startswith("BROKEN: [multideploy] ")
    assert said in shown
