"""The platforms' pages under docs/ are those that their code writes, and what a release needs is on them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from airflow_multideploy.cli.pages import pages, undocumented
from airflow_multideploy.platforms.kinds import adapter, kinds, platform_type

DOCS = Path(__file__).parents[2] / "docs" / "platforms"
OURS = sorted(kind for kind, point in kinds().items() if point.value.startswith("airflow_multideploy."))


def test_the_pages_are_those_that_the_code_writes() -> None:
    """``make docs`` writes them anew."""
    written = pages(platform_type(kind) for kind in OURS)
    assert written == {path.name: path.read_text() for path in DOCS.iterdir()}


@pytest.mark.parametrize("kind", OURS)
def test_a_page_explains_every_key_and_its_example_is_a_target(kind: str) -> None:
    platform = platform_type(kind)
    assert undocumented(platform) == []
    assert platform.manual is not None
    (example,) = yaml.safe_load(platform.manual.example).values()
    assert isinstance(adapter(example, service="shop", target="t1"), platform)


@pytest.mark.parametrize("kind", OURS)
def test_a_platform_is_one_file_of_at_most_400_lines(kind: str) -> None:
    source = Path(inspect.getfile(platform_type(kind)))
    assert source.read_text().count("\n") <= 400


SDKS = ("boto3", "aiobotocore", "azure.mgmt", "azure.identity", "google.api_core", "google.auth", "google.cloud.run_v2")
SDKS += ("kubernetes", "kubernetes_asyncio", "docker", "paramiko", "asyncssh")


def test_no_platform_loads_an_sdk_before_it_is_used() -> None:
    """All of ours, configs and operators included, in one fresh process."""
    names = [kinds()[kind].module for kind in OURS]
    script = f"import sys, {', '.join(names)}\nprint([name for name in {SDKS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
