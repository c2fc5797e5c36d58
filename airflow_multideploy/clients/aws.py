"""What AWS's errors say."""

from __future__ import annotations

from airflow_multideploy.errors import PlatformError

THROTTLED = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "RequestThrottled",
        "ServerException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "InternalFailure",
        "InternalServerError",
        "RequestTimeout",
        "RequestTimeoutException",
    }
)
"""Error codes that pass by themselves; AWS answers most of them with HTTP status 400."""


def code_of(error: PlatformError) -> str:
    """AWS's code of a refused call, such as ``ResourceNotFoundException``; empty when there was no answer."""
    response = getattr(error.__cause__, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.replace(".", "", 1).isdecimal() else None
