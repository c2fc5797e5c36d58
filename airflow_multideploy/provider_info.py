"""What Airflow learns about this provider while it imports itself: standard library only, or that import would be circular."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Provider info, as ``airflow/provider_info.schema.json`` describes it."""
    return {
        "package-name": "airflow-provider-multideploy",
        "name": "Multi Deploy",
        "description": "Release one service to many platforms at once, verified, with proven rollback.",
    }
