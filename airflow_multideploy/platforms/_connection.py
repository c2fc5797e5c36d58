"""Which Airflow Connections a target's platform can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_multideploy.core.errors import PlatformError

AWS = ("aws",)
AZURE = ("azure", "multideploy_azure", "azure_container_instance")
GOOGLE = ("google_cloud_platform", "multideploy_gcp")
HTTP = ("http", "https")
KUBERNETES = ("kubernetes",)
SSH = ("ssh", "sftp")


def fitting(connection: Any, types: tuple[str, ...], fail: Callable[[str], PlatformError]) -> Any:
    """The Connection, which is of one of these types, or ``generic``, or of none.

    Another type's login and password would be sent to a place that they are not for.

    :param fail: makes the error of the target that this is for.
    """
    found = connection.conn_type
    if found and found not in (*types, "generic"):
        accepted = " or ".join(repr(name) for name in types)
        raise fail(
            f"Connection {connection.conn_id!r} is of type {found!r}; this platform takes one of type {accepted}"
        )
    return connection
