"""What stands in for a service, or a catalog, that is broken."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, BaseOperator, Context

from airflow_multideploy.errors import SpecError
from airflow_multideploy.factory.names import CATALOG_DAG, RECONCILE_DAG, START
from airflow_multideploy.operators.clock import Final
from airflow_multideploy.secrets import redact
from airflow_multideploy.store.assets import journal_asset


class CatalogErrorOperator(BaseOperator):
    """Fails with the error of a service that is broken in the catalog."""

    def __init__(self, *, error: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error = error

    def execute(self, context: Context) -> None:
        """Raise the error."""
        raise Final(self.error)


def error_dag(name: str, error: Exception) -> DAG:
    """What a broken service shows instead of its DAG: the error, with every problem on a line.

    It goes on naming the service's journals, which Airflow would delete, with ledger and all, once no DAG names them.
    """
    import re

    name = redact(str(name))  # a key of the catalog, which may be anything
    dag_id = name if re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name) else CATALOG_DAG
    problems = error.problems if isinstance(error, SpecError) else (f"{type(error).__name__}: {error}",)
    with DAG(
        dag_id=dag_id,
        dag_display_name=f"{dag_id} (broken)",
        description=f"BROKEN: {problems[0]}"[:500],
        schedule=None,
        start_date=START,
        tags=["multideploy", "broken"],
        doc_md="\n".join([f"# {name}: broken in the catalog", "", *(f"- {problem}" for problem in problems)]),
        max_active_runs=1,
    ) as dag:
        shown = CatalogErrorOperator(task_id="show_error", error=str(error), retries=0)
        if dag_id == name and name not in (CATALOG_DAG, RECONCILE_DAG):
            shown.inlets = [journal_asset(name)]
    return dag
