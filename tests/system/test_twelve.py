"""One release to twelve targets on twelve kinds of platform at once, on a real Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from airflow_multideploy.sandbox.airflow import LocalAirflow
from airflow_multideploy.sandbox.world import RolloutFault, StandIn, World

pytestmark = [pytest.mark.system, pytest.mark.long]

IMAGE, RESOURCE, FAILING = "registry.example.com/shop", "shop", "http"
SECONDS = 40.0
"""How long each rollout takes: the processes of twelve tasks start one after the other on two cores."""
PACE = {"poll_interval": 2, "timeout": 300, "rollback_timeout": 180}
STAND_INS = {
    "aws_ecs": "airflow_multideploy.sandbox.aws_ecs:AwsEcsStandIn",
    "azure_web_app": "airflow_multideploy.sandbox.azure_web_app:AzureWebAppStandIn",
    "gcp_cloud_run": "airflow_multideploy.sandbox.gcp_cloud_run:GcpCloudRunStandIn",
    "http": "airflow_multideploy.sandbox.http:HttpStandIn",
    "airflow": "tests.stand_ins.airflow:AirflowStandIn",
    "argo_workflows": "tests.stand_ins.argo_workflows:ArgoWorkflowsStandIn",
    "aws_lambda": "tests.stand_ins.aws_lambda:AwsLambdaStandIn",
    "aws_app_runner": "tests.stand_ins.aws_app_runner:AwsAppRunnerStandIn",
    "azure_container_apps": "tests.stand_ins.azure_container_apps:AzureContainerAppsStandIn",
    "gcp_cloud_functions": "tests.stand_ins.gcp_cloud_functions:GcpCloudFunctionsStandIn",
    "prefect": "tests.stand_ins.prefect:PrefectStandIn",
    "nomad": "tests.stand_ins.nomad:NomadStandIn",
}


@pytest.fixture
def world() -> World:
    return World(seconds=SECONDS)


@pytest.fixture
def places(world: World) -> Iterator[dict[str, StandIn]]:
    """A stand-in of each kind, where 1.0.0 runs."""
    with ExitStack() as stack:
        started: dict[str, StandIn] = {}
        for kind, name in STAND_INS.items():
            stand_in: StandIn = resolve_name(name)(world)
            stand_in.start()
            stack.callback(stand_in.stop)
            stand_in.seed(RESOURCE, f"{IMAGE}:1.0.0")
            started[kind] = stand_in
        yield started


def test_with_one_failing_all_others_are_verified_back(
    world: World, places: dict[str, StandIn], tmp_path: Path
) -> None:
    targets: dict[str, Any] = {
        kind: {**stand_in.target(RESOURCE), "conn_id": kind, **PACE} for kind, stand_in in places.items()
    }
    catalog = {"shop": {"artifact": {"image": IMAGE}, "targets": targets}}
    dags = Path(__file__).parents[2] / "dags"
    connections = {kind: stand_in.connection() for kind, stand_in in places.items()}
    world.rollout_faults.append(RolloutFault(FAILING, "fails", reason="exit code 137"))
    with LocalAirflow(tmp_path, dags, connections=connections, variables={"multideploy_services": catalog}) as airflow:
        airflow.wait_for_dag("shop")
        run_id = airflow.trigger("shop", {"version": "1.1.0"})
        state = airflow.finish("shop", run_id, timeout=420)
        result: dict[str, Any] = airflow.xcom("shop", run_id, "finalize")
    assert (state, result["status"]) == ("failed", "rolled_back"), result["reason"]
    deployed = {row["target"]: (row["deployed"], row["phase"], row["verified"]) for row in result["results"]}
    others = dict.fromkeys(STAND_INS.keys() - {FAILING}, ("succeeded", "rolled_back", True))
    assert deployed == {**others, FAILING: ("failed", "rolled_back", True)}
    assert "exit code 137" in result["reason"]
    assert {kind: stand_in.live(RESOURCE).image for kind, stand_in in places.items()} == dict.fromkeys(
        STAND_INS, f"{IMAGE}:1.0.0"
    )
    print("figures:", result["figures"])
    assert result["figures"]["parallel_rate"] > 0.9
