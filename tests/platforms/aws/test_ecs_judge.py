"""How ECS's answers are judged, and the operator: without a stand-in."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_multideploy.operators.aws import AwsEcsDeployOperator
from airflow_multideploy.platforms.aws.ecs import AwsEcs
from airflow_multideploy.platforms.aws.ecs_judge import judge
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.testing.contract import NEW


def service_of(*deployments: dict[str, Any], **configuration: Any) -> dict[str, Any]:
    filled = [
        {"id": d["taskDefinition"], "desiredCount": 2, "runningCount": 0, "failedTasks": 0, **d} for d in deployments
    ]
    running = sum(d["runningCount"] for d in filled)
    return {
        "desiredCount": 2,
        "runningCount": running,
        "deployments": filled,
        "deploymentConfiguration": configuration,
    }


MINE = {"taskDefinition": "new", "status": "PRIMARY", "rolloutState": "COMPLETED", "runningCount": 2}
THEIRS = {"taskDefinition": "old", "status": "PRIMARY", "rolloutState": "COMPLETED", "runningCount": 2}
ACTIVE = {"taskDefinition": "old", "status": "ACTIVE", "runningCount": 2}
BREAKER = {"deploymentCircuitBreaker": {"enable": True, "rollback": False}}


@pytest.mark.parametrize(
    ("service", "state"),
    [
        pytest.param(service_of(MINE), State.HEALTHY, id="mine is complete"),
        pytest.param(service_of(THEIRS), State.FAILED, id="steady, on the old revision"),
        pytest.param(service_of({**THEIRS, "id": "before"}), State.PROGRESSING, id="not shown yet"),
        pytest.param(service_of({**THEIRS, "taskDefinition": "x"}), State.SUPERSEDED, id="somebody else's"),
        pytest.param(service_of({**MINE, "runningCount": 1}), State.PROGRESSING, id="complete, a task died since"),
        pytest.param(
            service_of({**MINE, "runningCount": 1}, earlySuccessCriteria={"enable": True}),
            State.HEALTHY,
            id="early success is the owner's wish",
        ),
        pytest.param(
            service_of({**MINE, "rolloutState": "IN_PROGRESS", "failedTasks": 9}, ACTIVE, **BREAKER),
            State.PROGRESSING,
            id="the breaker decides",
        ),
        pytest.param(
            service_of({**MINE, "rolloutState": "IN_PROGRESS", "failedTasks": 3}, ACTIVE), State.FAILED, id="no breaker"
        ),
        pytest.param(service_of({**MINE, "rolloutState": None}), State.HEALTHY, id="no rollout state, mine alone"),
        pytest.param(
            service_of({**MINE, "rolloutState": None}, ACTIVE), State.PROGRESSING, id="no rollout state, old tasks run"
        ),
    ],
)
def test_judgement(service: dict[str, Any], state: State) -> None:
    handle = Handle(action="deploy", revision="new", data={"previous": "old", "before": "before", "deployment": "d1"})
    assert judge(handle, service, [], None, 3).state is state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("ROLLBACK_IN_PROGRESS", State.PROGRESSING),
        ("ROLLBACK_FAILED", State.FAILED),
        ("SUCCESSFUL", State.FAILED),
    ],
)
def test_judgement_of_a_stopped_deployment(status: str, state: State) -> None:
    data: dict[str, Any] = {"taskDefinition": "old", "from": "new", "serviceDeployment": "arn"}
    handle = Handle(action="rollback", revision="old", data=data)
    assert judge(handle, service_of(MINE, ACTIVE), [], {"status": status}, 3).state is state


# --- operator and import ---------------------------------------------------------------------------------------------


def test_operator() -> None:
    with DAG("release_shop", schedule=None):
        task = AwsEcsDeployOperator(
            task_id="aws", conn_id="aws_prod", cluster="main", service="{{ params.s }}", version="1.1.0", image=NEW
        )
    config = {**task.config, "service": "shop"}
    platform = adapter({"platform": "aws_ecs", **config}, service="shop", target="aws")
    assert isinstance(platform, AwsEcs)
    assert platform.config.conn_id == "aws_prod"
    assert "config" in task.template_fields
    with pytest.raises(TypeError, match="cluster"):
        AwsEcsDeployOperator(task_id="aws", conn_id="aws_prod", service="shop")  # type: ignore[call-arg]


def test_console_url() -> None:
    config = {
        "platform": "aws_ecs",
        "conn_id": "c",
        "cluster": "arn:aws:ecs:eu-west-1:1:cluster/main",
        "service": "shop",
    }
    platform = adapter(config, service="shop", target="aws")
    assert platform.console_url() == (
        "https://eu-west-1.console.aws.amazon.com/ecs/v2/clusters/main/services/shop/health?region=eu-west-1"
    )


def test_importing_the_platform_loads_no_sdk() -> None:
    code = (
        "import sys, airflow_multideploy.platforms.aws.ecs; "
        "sdk = ('boto3', 'botocore', 'aiobotocore', 'airflow.providers.amazon.aws.hooks'); "
        "print([m for m in sdk if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
