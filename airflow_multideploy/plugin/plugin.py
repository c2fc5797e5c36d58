"""The Airflow plugin."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from airflow_multideploy.plugin.timetables import CronTimetable, WindowTimetable


class MultideployPlugin(AirflowPlugin):
    """Registers the timetables, which Airflow's scheduler reads DAGs with."""

    name = "multideploy"
    timetables = [CronTimetable, WindowTimetable]
