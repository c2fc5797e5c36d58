"""The Airflow plugin."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class MultideployPlugin(AirflowPlugin):
    """Makes the package visible among the plugins; what it adds to Airflow today is in the provider info."""

    name = "multideploy"
