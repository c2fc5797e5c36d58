"""A hand-written release: build → four deploys in parallel → aggregate → rollback → finalize.

The form most teams start from. Copy it, name your Connections and resources (the ones below are examples), and trigger
it with a version. ``finish`` adds the tail: it computes the overall status, takes back what has to go back, and makes
the run's colour the truth.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Param, task

from airflow_multideploy import finish
from airflow_multideploy.operators.aws import AwsEcsDeployOperator
from airflow_multideploy.operators.azure import AzureWebAppDeployOperator
from airflow_multideploy.operators.gcp import GcpCloudRunDeployOperator
from airflow_multideploy.operators.onprem import HttpDeployOperator

with DAG(
    dag_id="multi_platform_deploy",
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["multideploy", "example"],
    params={"version": Param(type="string", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")},
    default_args={"owner": "team-shop", "retries": 2},
    doc_md=__doc__,
) as dag:

    @task
    def build(params: dict[str, str]) -> str:
        """Your pipeline has built the image already: say which. To build here, use ``BuildImageOperator``."""
        return f"registry.example.com/shop:{params['version']}"

    image = build()
    common = {"image": str(image), "version": "{{ params.version }}", "service_name": "multi_platform_deploy"}

    deploys = [
        AwsEcsDeployOperator(task_id="aws", conn_id="aws_prod", cluster="main", service="shop", **common),
        AzureWebAppDeployOperator(task_id="azure", conn_id="azure_prod", resource_group="rg", site="shop", **common),
        GcpCloudRunDeployOperator(
            task_id="gcp", conn_id="gcp_prod", project="demo", location="europe-west1", service="shop", **common
        ),
        HttpDeployOperator(task_id="onprem", conn_id="dc1", **common),
    ]
    image >> deploys
    finish(deploys, policy="all", strategy="all")
