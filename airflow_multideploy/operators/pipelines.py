"""The deploy tasks of hand-written DAGs: pipelines elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from airflow_multideploy.operators.deploy import DeployOperator


class AirflowDeployOperator(DeployOperator):
    """Releases one image through another Airflow's DAG and waits for its run; see `AirflowConfig` for the arguments."""

    kind = "airflow"

    def __init__(
        self,
        *,
        conn_id: str,
        dag_id: str,
        conf: dict[str, Any] | None = None,
        rollback_dag_id: str | None = None,
        remove_dag_id: str | None = None,
        scope: dict[str, Any] | None = None,
        console: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "dag_id": dag_id,
            "conf": conf,
            "rollback_dag_id": rollback_dag_id,
            "remove_dag_id": remove_dag_id,
            "scope": scope,
            "console": console,
        }
        super().__init__(config=config, **kwargs)


class ArgoWorkflowsDeployOperator(DeployOperator):
    """Releases one image through an Argo workflow template and waits; see `ArgoWorkflowsConfig` for the arguments."""

    kind = "argo_workflows"

    def __init__(
        self,
        *,
        conn_id: str,
        namespace: str,
        template: str,
        parameters: dict[str, str] | None = None,
        rollback_template: str | None = None,
        remove_template: str | None = None,
        cluster_scope: bool = False,
        stop: Literal["terminate", "stop"] = "terminate",
        scope: dict[str, Any] | None = None,
        console: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "namespace": namespace,
            "template": template,
            "parameters": parameters,
            "rollback_template": rollback_template,
            "remove_template": remove_template,
            "cluster_scope": cluster_scope,
            "stop": stop,
            "scope": scope,
            "console": console,
        }
        super().__init__(config=config, **kwargs)


class PrefectDeployOperator(DeployOperator):
    """Releases one image through a Prefect deployment and waits for its run; see `PrefectConfig` for the arguments."""

    kind = "prefect"

    def __init__(
        self,
        *,
        conn_id: str,
        deployment: str,
        parameters: dict[str, Any] | None = None,
        rollback_deployment: str | None = None,
        remove_deployment: str | None = None,
        scope: dict[str, Any] | None = None,
        console: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "deployment": deployment,
            "parameters": parameters,
            "rollback_deployment": rollback_deployment,
            "remove_deployment": remove_deployment,
            "scope": scope,
            "console": console,
        }
        super().__init__(config=config, **kwargs)
