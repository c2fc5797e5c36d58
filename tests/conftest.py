"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FIRST = ("aws/test_ecs", "azure/test_web_app", "gcp/test_cloud_run", "onprem/test_http")
"""The platforms whose whole conformance suite is in ``make test``."""
PLAIN = ("test_deploy_then_rollback_restores", "test_failure_is_seen_early_with_the_platforms_reason")
"""The tests of the suite that are there for all others too."""
LONGEST = ("system/test_release", "system/test_trouble", "system", "simulation", "faults", "bad_input", "platforms")
"""Files and folders that take longest, the longest first: side by side, what takes minutes must not begin last."""


def _rank(path: Path) -> int:
    inside = path.relative_to(Path(__file__).parent).as_posix()
    return next((n for n, start in enumerate(LONGEST) if inside.startswith(start)), len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, and mark what ``make test-conformance`` runs: twenty suites take longer than everything
    else together."""
    items.sort(key=lambda item: _rank(item.path))
    suite = sys.modules.get("airflow_multideploy.testing.contract")
    for item in items:
        function = getattr(item, "function", None)
        if suite is None or function is None or function.__module__ != suite.__name__:
            continue
        place = f"{item.path.parent.name}/{item.path.stem}"
        if place not in FIRST and function.__name__ not in PLAIN:
            item.add_marker(pytest.mark.conformance)


@pytest.fixture(autouse=True)
def _forget_secrets() -> None:
    """Airflow's masker remembers every Connection that any test has read, and compiles all of them anew for each."""
    for name in ("airflow._shared.secrets_masker.secrets_masker", "airflow.sdk._shared.secrets_masker.secrets_masker"):
        if name in sys.modules:
            sys.modules[name].reset_secrets_masker()
