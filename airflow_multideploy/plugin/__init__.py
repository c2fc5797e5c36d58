"""The Airflow plugin."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class MultideployPlugin(AirflowPlugin):
    """Registers the asset and console links."""

    name = "multideploy"
