"""Who imports whom, seen from a fresh interpreter."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import airflow_multideploy.catalog
import airflow_multideploy.release
from airflow_multideploy.release.contract import Platform

CORE = [
    f"{room.__name__}.{module.name}"
    for room in (airflow_multideploy.catalog, airflow_multideploy.release)
    for module in pkgutil.iter_modules(room.__path__)
]
SDKS = (
    "boto3",
    "botocore",
    "aiobotocore",
    "azure",
    "google.api_core",
    "google.cloud.run_v2",
    "google.auth",
    "httpx",
    "aiohttp",
    "requests",
)


def loaded(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter (site-packages' .pth files load some before it)."""
    script = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_catalog_release_and_the_fake_platform_load_neither_airflow_nor_an_sdk() -> None:
    assert len(CORE) >= 25
    modules = loaded(f"import {', '.join(CORE)}, airflow_multideploy.testing.fake")
    assert modules.issuperset(CORE)
    assert not modules & {"airflow", "airflow.models", "airflow.sdk", *SDKS}


def test_the_package_itself_loads_nothing_heavy_and_its_public_names_resolve_lazily() -> None:
    modules = loaded("import airflow_multideploy as m; assert 'Platform' in dir(m)")
    assert "airflow_multideploy" in modules
    assert not modules & {"airflow", "airflow.models", "airflow.sdk", "pydantic", *SDKS, *CORE}
    assert airflow_multideploy.Platform is Platform
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        airflow_multideploy.nothing  # noqa: B018
