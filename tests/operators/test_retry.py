"""Which errors Airflow tries again, and when: told from real errors, through Airflow's own hook for it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from airflow_multideploy.errors import Drift, PlatformError, RollbackFailed
from airflow_multideploy.factory.factory import service_dags
from airflow_multideploy.operators.retry import BY_ERROR_CLASS


def lost(**more: float) -> PlatformError:
    return PlatformError("busy", target="shop/aws", retryable=True, **more)


def caused(by: Exception) -> RollbackFailed:
    try:
        raise RollbackFailed("not back") from by
    except RollbackFailed as error:
        return error


@pytest.mark.parametrize(
    ("error", "action", "seconds"),
    [
        (lost(), RetryAction.RETRY, None),
        (lost(retry_after=17.0), RetryAction.RETRY, 17),
        (lost(retry_after=0.0), RetryAction.RETRY, 0),
        (lost(retry_after=86_400.0), RetryAction.RETRY, 300),
        (caused(lost(retry_after=3.0)), RetryAction.RETRY, 3),
        (PlatformError("forbidden", target="shop/aws"), RetryAction.FAIL, None),
        (Drift("somebody else's", target="shop/aws"), RetryAction.FAIL, None),
        (caused(PlatformError("forbidden", target="shop/aws")), RetryAction.FAIL, None),
        (KeyError("bug"), RetryAction.DEFAULT, None),
    ],
)
def test_what_may_heal_is_tried_again_when_the_platform_says(
    error: Exception, action: RetryAction, seconds: int | None
) -> None:
    decision = BY_ERROR_CLASS.evaluate(error, 1, 3)
    delay = None if seconds is None else timedelta(seconds=seconds)
    assert (decision.action, decision.retry_delay) == (action, delay)


def test_deploys_and_rollbacks_go_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target = '{"dc1": {"platform": "http", "conn_id": "dc1"}}'
    shop = f'{{"shop": {{"artifact": {{"image": "registry.test/shop"}}, "targets": {target}}}}}'
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", shop)
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", "{}")
    dag = service_dags()["shop"]
    assert dag.get_task("dc1.deploy").retry_policy is BY_ERROR_CLASS
    assert dag.get_task("rollback.dc1").retry_policy is BY_ERROR_CLASS
