"""The deploy tasks of hand-written DAGs: clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from airflow_multideploy.operators.deploy import DeployOperator


class KubernetesDeployOperator(DeployOperator):
    """Releases one image into one Deployment and waits until it serves; see `KubernetesDeploymentConfig`."""

    kind = "kubernetes"

    def __init__(
        self,
        *,
        conn_id: str,
        deployment: str,
        namespace: str = "default",
        cluster: dict[str, str] | None = None,
        containers: Sequence[str] = (),
        restarts: int = 2,
        manifest: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "deployment": deployment,
            "namespace": namespace,
            "cluster": cluster,
            "containers": list(containers),
            "restarts": restarts,
            "manifest": manifest,
        }
        super().__init__(config=config, **kwargs)


class HelmDeployOperator(DeployOperator):
    """Releases one image by one Helm release and waits until it serves; see `HelmConfig` for the arguments."""

    kind = "helm"

    def __init__(
        self,
        *,
        conn_id: str,
        release: str,
        chart: str,
        chart_version: str | None = None,
        values: dict[str, Any] | None = None,
        reuse_values: bool = True,
        namespace: str = "default",
        cluster: dict[str, str] | None = None,
        restarts: int = 2,
        hook_timeout: float = 300.0,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "release": release,
            "chart": chart,
            "chart_version": chart_version,
            "values": values or {},
            "reuse_values": reuse_values,
            "namespace": namespace,
            "cluster": cluster,
            "restarts": restarts,
            "hook_timeout": hook_timeout,
        }
        super().__init__(config=config, **kwargs)


class NomadDeployOperator(DeployOperator):
    """Releases one image into one Nomad job and waits until it runs; see `NomadConfig` for the arguments."""

    kind = "nomad"

    def __init__(
        self,
        *,
        conn_id: str,
        job: str,
        namespace: str | None = None,
        region: str | None = None,
        task: str | None = None,
        unhealthy: int | None = None,
        specification: dict[str, JsonValue] | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "job": job,
            "namespace": namespace,
            "region": region,
            "task": task,
            "unhealthy": unhealthy,
            "specification": specification,
        }
        super().__init__(config=config, **kwargs)
