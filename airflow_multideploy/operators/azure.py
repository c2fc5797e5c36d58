"""The deploy tasks of hand-written DAGs: Azure."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.operators.deploy import DeployOperator


class AzureWebAppDeployOperator(DeployOperator):
    """Releases one image into one site and waits until it serves; see `AzureWebAppConfig` for the arguments."""

    kind = "azure_web_app"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        site: str,
        subscription_id: str | None = None,
        health_url: str | None = None,
        health_path: str = "/",
        version_json_path: str | None = None,
        version_header: str | None = None,
        settle: float = 240.0,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "site": site,
            "subscription_id": subscription_id,
            "health_url": health_url,
            "health_path": health_path,
            "version_json_path": version_json_path,
            "version_header": version_header,
            "settle": settle,
        }
        super().__init__(config=config, **kwargs)


class AzureWebAppSlotDeployOperator(DeployOperator):
    """Releases one image through one slot and waits until production serves it; see `AzureWebAppSlotConfig`."""

    kind = "azure_web_app_slot"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        site: str,
        slot: str = "staging",
        subscription_id: str | None = None,
        health_url: str | None = None,
        slot_health_url: str | None = None,
        health_path: str = "/",
        version_json_path: str | None = None,
        version_header: str | None = None,
        settle: float = 240.0,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "site": site,
            "slot": slot,
            "subscription_id": subscription_id,
            "health_url": health_url,
            "slot_health_url": slot_health_url,
            "health_path": health_path,
            "version_json_path": version_json_path,
            "version_header": version_header,
            "settle": settle,
        }
        super().__init__(config=config, **kwargs)


class AzureWebAppPackageDeployOperator(DeployOperator):
    """Releases one package into one site and waits until it serves; see `AzureWebAppPackageConfig`."""

    kind = "azure_web_app_package"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        site: str,
        package: str,
        subscription_id: str | None = None,
        health_url: str | None = None,
        health_path: str = "/",
        version_json_path: str | None = None,
        version_header: str | None = None,
        settle: float = 240.0,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "site": site,
            "package": package,
            "subscription_id": subscription_id,
            "health_url": health_url,
            "health_path": health_path,
            "version_json_path": version_json_path,
            "version_header": version_header,
            "settle": settle,
        }
        super().__init__(config=config, **kwargs)


class AzureFunctionsDeployOperator(DeployOperator):
    """Releases one package into one function app and waits until it serves; see `AzureFunctionsConfig`."""

    kind = "azure_functions"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        site: str,
        package: str,
        subscription_id: str | None = None,
        health_url: str | None = None,
        health_path: str = "/",
        version_json_path: str | None = None,
        version_header: str | None = None,
        settle: float = 240.0,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "site": site,
            "package": package,
            "subscription_id": subscription_id,
            "health_url": health_url,
            "health_path": health_path,
            "version_json_path": version_json_path,
            "version_header": version_header,
            "settle": settle,
        }
        super().__init__(config=config, **kwargs)


class AzureContainerAppsDeployOperator(DeployOperator):
    """Releases one image into one container app and waits until it serves; see `AzureContainerAppsConfig`."""

    kind = "azure_container_apps"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        app: str,
        container: str | None = None,
        subscription_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "app": app,
            "container": container,
            "subscription_id": subscription_id,
        }
        super().__init__(config=config, **kwargs)


class AzureContainerInstancesDeployOperator(DeployOperator):
    """Releases one image into one container group and waits until it runs; see `AzureContainerInstancesConfig`."""

    kind = "azure_container_instances"

    def __init__(
        self,
        *,
        conn_id: str,
        resource_group: str,
        group: str,
        container: str | None = None,
        subscription_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "resource_group": resource_group,
            "group": group,
            "container": container,
            "subscription_id": subscription_id,
        }
        super().__init__(config=config, **kwargs)
