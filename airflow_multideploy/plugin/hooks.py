"""Connection types whose forms show the fields that our platforms read beside the official providers' own.

The platforms ask for a Connection by id, so one of the official type (``azure``, ``google_cloud_platform``) with the
same extra serves as well. There is no SDK behind these hooks: they are what Airflow wants for a form.
"""

from __future__ import annotations

from airflow.sdk import BaseHook


class AzureConnectionHook(BaseHook):
    """Connection type ``multideploy_azure``: a service principal or managed identity, and where Resource Manager is."""

    conn_name_attr = "conn_id"
    default_conn_name = "multideploy_azure_default"
    conn_type = "multideploy_azure"
    hook_name = "Azure (Multi Deploy)"


class GcpConnectionHook(BaseHook):
    """Connection type ``multideploy_gcp``: a service account, and where the Cloud Run API is."""

    conn_name_attr = "conn_id"
    default_conn_name = "multideploy_gcp_default"
    conn_type = "multideploy_gcp"
    hook_name = "Google Cloud (Multi Deploy)"
