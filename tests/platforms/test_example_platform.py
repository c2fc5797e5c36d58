"""The example of a third party's platform (``tests/example_platform``): conforms, is short, and installs beside us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.platforms import kinds
from airflow_multideploy.sandbox.http import HttpStandIn
from airflow_multideploy.sandbox.world import World
from airflow_multideploy.testing import PlatformContract

FOLDER = Path(__file__).parents[1] / "example_platform"


class ApplianceStandIn(HttpStandIn):
    """An appliance: the rich manner of the sandbox's deploy API."""

    def target(self, resource: str) -> dict[str, Any]:
        return {"platform": "appliance", "app": resource}


class TestAppliance(PlatformContract):
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """As if it were installed."""
        monkeypatch.syspath_prepend(FOLDER)
        point = EntryPoint("appliance", "multideploy_appliance:Appliance", kinds.ENTRY_POINT_GROUP)
        monkeypatch.setitem(kinds.kinds(), "appliance", point)
        yield
        kinds.platform_type.cache_clear()

    def make_stand_in(self, world: World) -> HttpStandIn:
        return ApplianceStandIn(world)


def test_it_is_short() -> None:
    assert len((FOLDER / "multideploy_appliance.py").read_text().splitlines()) < 80


def test_it_is_listed_when_its_distribution_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", tmp_path / "site", FOLDER], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "AIRFLOW_HOME": str(tmp_path / "airflow")}
    airflow = [sys.executable, "-m", "airflow", "multideploy", "platforms", "-o", "json"]
    listed = json.loads(subprocess.run(airflow, check=True, capture_output=True, text=True, env=environment).stdout)
    row = next(row for row in listed if row["kind"] == "appliance")
    assert (row["distribution"], row["error"]) == ("multideploy-appliance 1.0.0", None)
