"""The catalogs in dags/: what people copy is valid, and becomes the DAGs that they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_multideploy.factory.factory import service_dags

DAGS = Path(__file__).parents[1] / "dags"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("environments.yaml", {"payments-prod", "shop-dev", "shop-prod", "shop-staging"}),
        ("release_control.yaml", {"nightly", "shop"}),
    ],
)
def test_an_example_catalog_becomes_dags(name: str, expected: set[str]) -> None:
    dags = service_dags(DAGS / name)
    assert dags.keys() == expected
    assert not [dag.doc_md for dag in dags.values() if "broken" in dag.tags]
    if name == "release_control.yaml":
        assert {"approve", "decide", "aws.deploy", "fallback.deploy"} <= set(dags["shop"].task_ids)
        assert dags["shop"].get_task("aws.deploy").pool == dags["nightly"].get_task("dc1.deploy").pool
