"""One DAG per service of the catalog (Airflow Variables ``multideploy_services`` and ``multideploy_defaults``)."""

from airflow_multideploy import service_dags

globals().update(service_dags())
