"""What the README says is tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.catalog.parse import parse_catalog
from airflow_multideploy.errors import SpecError
from airflow_multideploy.platforms.kinds import adapter, config_type
from airflow_multideploy.sandbox import Sandbox
from airflow_multideploy.sandbox.command import guide

ROOT = Path(__file__).parents[1]


def test_the_first_catalog_is_good(tmp_path: Path) -> None:
    block = re.search(r"<!-- catalog -->\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert block is not None
    path = tmp_path / "catalog.yaml"
    path.write_text(block[1])
    entries, defaults = read_file(path)
    catalog = parse_catalog(entries, defaults=defaults, config_type=config_type)
    assert not catalog.errors
    assert set(catalog.services) == {"shop", "legacy"}


def test_the_three_lines_are_the_ones_of_the_dag_file() -> None:
    lines = (ROOT / "dags" / "multideploy_services.py").read_text().split('"""')[-1].strip()
    assert lines in (ROOT / "README.md").read_text()


def test_the_commands_for_a_sandbox_are_those_that_it_tells() -> None:
    with Sandbox(platforms=["http"]) as sandbox:
        sandbox.seed("http", "shop", None)
        told = guide(sandbox, Path("sandbox/env.sh")).splitlines()
    commands = [line for line in told if line.startswith(("source", "airflow"))]
    readme = [line.partition("    # ")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()]
    at = readme.index(commands[0])
    assert readme[at : at + 3] == commands


def test_the_hand_written_dag_can_be_parsed() -> None:
    import runpy

    dag = runpy.run_path(str(ROOT / "dags" / "multi_platform_deploy.py"))["dag"]
    assert dag.task_dict["finalize"].is_teardown
    assert {"aws", "azure", "gcp", "onprem"} <= set(dag.task_dict)


@pytest.mark.parametrize(
    ("name", "text"),
    [("twice.yaml", "shop: {a: 1}\nshop: {b: 2}\n"), ("twice.json", '{"shop": {"a": 1, "a": 2}}')],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SpecError, match=r"line \d+, column \d+: .*given twice"):
        read_file(path)


def test_a_bad_config_is_refused_without_its_values() -> None:
    config = {"platform": "http", "conn_id": "c", "etag": "hunter4hunter4"}
    with pytest.raises(SpecError, match=r"targets\.t\.etag") as caught:
        adapter(config, service="s", target="t")
    assert "hunter4" not in str(caught.value)
