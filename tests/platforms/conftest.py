"""What the tests of all platforms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stand_ins import kube


@pytest.fixture(scope="module", autouse=True)
def _no_idle_cluster() -> Iterator[None]:
    """Each file that needs Kubernetes has it for as long as it runs."""
    yield
    kube.stop()
