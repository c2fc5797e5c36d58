"""What the DAGs of the factory are called, and what they share."""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.utils.types import DagRunType

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


RECONCILE_DAG, CATALOG_DAG = "multideploy_reconcile", "multideploy_catalog"
"""Stands in the list of DAGs when the catalog as a whole cannot be read."""


PLAN, BUILD = "plan", "build"


RUN_TYPES: Any = [kind for kind in DagRunType if kind is not DagRunType.BACKFILL_JOB]
"""A backfill would run several releases of one service at once, whatever ``max_active_runs`` says."""


RETRY_DELAY = dt.timedelta(seconds=5)
