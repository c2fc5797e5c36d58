"""What the demo says about a release that it can only follow by its log."""

from __future__ import annotations

import pytest

from airflow_multideploy.cli.demo import _last_status

LOG = """03:04:05Z [info     ] shop 1.3.0: failed azure: failed (exit code 1)   [Aggregate]
03:04:06Z [error    ] shop 1.3.0: rolled_back: azure: rolled_back (exit code 1) [Finalize]
03:04:07Z [info     ] Pushing xcom
"""


@pytest.mark.parametrize(("log", "status"), [(LOG, "rolled_back"), ("Traceback", "not told")])
def test_the_last_word_on_a_release_is_its_status(log: str, status: str) -> None:
    assert _last_status(log) == status
