"""The deploy tasks of hand-written DAGs: Google Cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from airflow_multideploy.operators.deploy import DeployOperator

if TYPE_CHECKING:
    pass


class GcpCloudRunDeployOperator(DeployOperator):
    """Releases one image to one Cloud Run service, and waits until it is what serves.

    :param conn_id: Google Cloud Connection.
    :param project: project id.
    :param location: region.
    :param service: name of the Cloud Run service; created when it does not exist.
    :param container: which container gets the image, when there are several.
    :param smoke_path: path on the revision's own URL that has to answer 2xx.
    """

    kind = "gcp_cloud_run"

    def __init__(
        self,
        *,
        conn_id: str,
        project: str,
        location: str,
        service: str,
        container: str | None = None,
        smoke_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "project": project,
            "location": location,
            "service": service,
            "container": container,
            "smoke_path": smoke_path,
        }
        super().__init__(config=config, **kwargs)


class GcpCloudFunctionsDeployOperator(DeployOperator):
    """Releases one source package to one Cloud Function, and waits until it is what serves; see
    `GcpCloudFunctionsConfig` for the arguments."""

    kind = "gcp_cloud_functions"

    def __init__(
        self,
        *,
        conn_id: str,
        project: str,
        location: str,
        function: str,
        package: str,
        runtime: str | None = None,
        entry_point: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "project": project,
            "location": location,
            "function": function,
            "package": package,
            "runtime": runtime,
            "entry_point": entry_point,
        }
        super().__init__(config=config, **kwargs)


class GcpAppEngineDeployOperator(DeployOperator):
    """Releases one version of one App Engine service and waits until it has the traffic; see `GcpAppEngineConfig` for
    the arguments."""

    kind = "gcp_app_engine"

    def __init__(
        self,
        *,
        conn_id: str,
        project: str,
        service: str | None = None,
        package: str | None = None,
        settings: dict[str, JsonValue] | None = None,
        **kwargs: Any,
    ) -> None:
        config = {"conn_id": conn_id, "project": project, "service": service, "package": package, "settings": settings}
        super().__init__(config=config, **kwargs)
