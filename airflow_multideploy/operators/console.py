"""The link from a task to its target in the platform's console."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

CONSOLE = "console_url"


class ConsoleLink(BaseOperatorLink):
    """Leads from a task to its target in the platform's own console."""

    name = "Platform console"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task pushed, or nothing before it did."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(key=CONSOLE, ti_key=ti_key) or ""
