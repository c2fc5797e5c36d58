"""Who imports whom, seen from a fresh interpreter."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import airflow_multideploy.core

CORE = [f"airflow_multideploy.core.{module.name}" for module in pkgutil.iter_modules(airflow_multideploy.core.__path__)]
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


@pytest.mark.parametrize("statement", ["import " + ", ".join(CORE), "import airflow_multideploy"])
def test_neither_airflow_nor_an_sdk_is_loaded(statement: str) -> None:
    modules = loaded(statement)
    assert "airflow_multideploy" in modules
    assert not modules & {"airflow", "airflow.models", "airflow.sdk", *SDKS}


def test_every_core_module_was_looked_at() -> None:
    assert len(CORE) >= 11


def test_the_package_itself_loads_nothing_heavy_and_the_public_names_resolve_lazily() -> None:
    modules = loaded("import airflow_multideploy as m; assert 'Platform' in dir(m); m.Platform; m.MultideployError")
    assert "airflow_multideploy.core.contract" in modules
    assert "airflow" not in modules
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        airflow_multideploy.nothing  # noqa: B018


def test_the_fake_platform_needs_neither_airflow_nor_an_sdk() -> None:
    assert not loaded("import airflow_multideploy.testing.fake") & {"airflow", *SDKS}
