"""Which of a task's errors Airflow tries again, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Context
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_multideploy.errors import PlatformError

LONGEST_WAIT = 300.0
"""Seconds: a platform that asks for more is asked again after these; the release has its own deadlines."""


class ByErrorClass(RetryPolicy):
    """Tries again what may heal, with the delay that the platform asked for; fails at once on what cannot.

    Throttling, 5xx and lost connections may heal; what is refused (authentication, validation, drift) cannot. An error
    that is not ours is left to Airflow's own rules. ``retries`` stays the limit.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """The decision for one failed try."""
        cause = exception if isinstance(exception, PlatformError) else exception.__cause__
        if isinstance(cause, PlatformError):
            if not cause.retryable:
                return RetryDecision.fail("the platform's answer will not change by itself")
            asked = cause.retry_after
            delay = timedelta(seconds=min(asked, LONGEST_WAIT)) if asked is not None else None
            return RetryDecision.retry(delay, "the platform asked to wait" if asked is not None else "may heal")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Nothing: it has no settings."""
        return {}


BY_ERROR_CLASS = ByErrorClass()
