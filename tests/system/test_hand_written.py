"""Hand-written DAGs on a real Airflow: TaskGroups with edges between them, and two releases in one DAG."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.release.contract import State  # noqa: F401 - core loads before Airflow
from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.airflow import LocalAirflow
from tests.system.conftest import IMAGE, KINDS, Stage

pytestmark = [pytest.mark.system, pytest.mark.long]

RESOURCES = ("groups", "one", "two")
ARGUMENTS = {"version": "live_version"}
"""Of the operators, where they differ from a catalog's keys."""
DAG_FILE = '''
from airflow.sdk import DAG, Param, TaskGroup, task

from airflow_multideploy import finish
from airflow_multideploy.operators.aws import AwsEcsDeployOperator
from airflow_multideploy.operators.gcp import GcpCloudRunDeployOperator
from airflow_multideploy.operators.onprem import HttpDeployOperator

TARGETS = {targets!r}
MAKE = {{"aws": AwsEcsDeployOperator, "gcp": GcpCloudRunDeployOperator, "onprem": HttpDeployOperator}}
common = {{"image": {image!r}, "version": "{{{{ params.version }}}}", "poll_interval": 1}}
settings = {{"schedule": None, "max_active_runs": 1, "params": {{"version": Param(type="string")}}}}


@task
def look() -> None:
    """Stands between two deploys."""


with DAG("groups", **settings):
    with TaskGroup("eu"):
        first = MAKE["aws"](task_id="aws", **TARGETS["groups"]["aws"], **common)
    with TaskGroup("us"):
        then = [MAKE[name](task_id=name, **TARGETS["groups"][name], **common) for name in ("gcp", "onprem")]
    first >> look() >> then
    finish([first, *then])

with DAG("pair", **settings):
    for service in ("one", "two"):
        deploys = [
            MAKE[name](
                task_id=f"{{service}}_{{name}}", target=name, service_name=service, **TARGETS[service][name], **common
            )
            for name in ("aws", "onprem")
        ]
        finish(deploys)
'''


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("hand")
    with Sandbox(seconds=2, folder=home / "sandbox") as sandbox:
        found: dict[str, dict[str, Any]] = {}
        for resource in RESOURCES:
            found[resource] = {}
            for name, kind in KINDS.items():
                sandbox.stand_ins[kind].seed(resource, f"{IMAGE}:1.0.0")
                config = {**sandbox.stand_ins[kind].target(resource), "conn_id": CONN_IDS[kind]}
                found[resource][name] = {
                    ARGUMENTS.get(key, key): value for key, value in config.items() if key != "platform"
                }
        dags = home / "dags"
        dags.mkdir()
        (dags / "hand_written.py").write_text(textwrap.dedent(DAG_FILE.format(targets=found, image=IMAGE)))
        with LocalAirflow(home / "home", dags, connections=sandbox.connections()) as airflow:
            yield Stage(airflow, sandbox)


def fails(hand: Stage, resource: str) -> None:
    """The next rollout at the deploy API fails."""
    fault = {"platform": "http", "outcome": "fails", "resource": resource, "reason": "exit code 137"}
    hand.sandbox.world.add_fault(fault)


def test_groups_with_an_edge_between_them_go_back_in_order(hand: Stage) -> None:
    fails(hand, "groups")
    state, result, run_id = hand.release("groups", {"version": "1.1.0"})
    assert (state, result["status"]) == ("failed", "rolled_back"), result
    back = {each["target"]: each for each in result["results"]}
    assert back.keys() == {"eu.aws", "us.gcp", "us.onprem"}
    assert all(each["touched"] for each in back.values()), result
    for target in ("us.gcp", "us.onprem"):
        assert back[target]["rollback_ended_at"] <= back["eu.aws"]["rollback_started_at"]
        assert back["eu.aws"]["ended_at"] <= back[target]["started_at"]
    assert set(hand.live("groups").values()) == {"1.0.0"}
    assert hand.airflow.task_instances("groups", run_id)["rollback.eu.aws"]["state"] == "success"


def test_two_releases_in_one_dag_are_judged_each_for_itself(hand: Stage) -> None:
    state, result, run_id = hand.release("pair", {"version": "1.1.0"})
    second = hand.airflow.xcom("pair", run_id, "two.finalize")
    assert (state, result["status"], second["status"]) == ("success", "succeeded", "succeeded"), (result, second)
    fails(hand, "one")  # of the first one, so that what fails is not the last that ends
    state, result, run_id = hand.release("pair", {"version": "1.2.0"})
    second = hand.airflow.xcom("pair", run_id, "two.finalize")
    assert (state, result["status"], second["status"]) == ("failed", "rolled_back", "succeeded"), (result, second)
    assert {name: hand.live("one")[name] for name in ("aws", "onprem")} == {"aws": "1.1.0", "onprem": "1.1.0"}
    assert {name: hand.live("two")[name] for name in ("aws", "onprem")} == {"aws": "1.2.0", "onprem": "1.2.0"}
