"""The overall status of a release, and what goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow.sdk import Context

from airflow_multideploy.operators.release import ReleaseOperator
from airflow_multideploy.operators.run import (
    decisions,
)


class AggregateStatusOperator(ReleaseOperator):
    """Computes the release's overall status and selects what goes back; its ``return_value`` is the result document.

    When nothing goes back, the rollback tasks are skipped without a process each. Should this task itself die, each
    rollback task decides by the journals.

    :param rollbacks: ids of the rollback tasks by target.
    """

    decides: ClassVar[bool] = True
    ui_color = "#eef2fb"

    def __init__(self, *, rollbacks: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        self._init(**kwargs)
        # Without it Airflow takes a failed deploy for a leaf (all below it are ignorable teardowns) and fails the run,
        # also when the release is only degraded.
        self.on_failure_fail_dagrun = True
        self.rollbacks = dict(rollbacks or {})

    def execute(self, context: Context) -> None:
        """Judge, push the document, and skip the rollback tasks that have nothing to do."""
        decisions(context, self.service_name).keep_verdict(self.task_id, None)
        self._close(context)
        self._go_on(context, self.judge(context, final=False), self.rollbacks)
