"""What `airflow multideploy sandbox` tells a new user to type, typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


def test_a_new_user_releases_by_hand(tmp_path: Path) -> None:
    commands = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "AIRFLOW_HOME": str(tmp_path / "other")}
    options = ["--folder", tmp_path / "my sandbox", "--seconds", "0.3"]
    options += ["--seed", "http/shop=registry.example.com/shop:1.0.0"]
    sandbox = subprocess.Popen(
        ["airflow", "multideploy", "sandbox", *options], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert sandbox.stdout is not None
        typed = ["set -e"]
        for line in sandbox.stdout:
            typed.append(line)
            if "Ctrl-C" in line:
                break
        done = subprocess.run(
            ["bash", "-c", "\n".join(typed)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "shop 1.1.0: succeeded" in done.stdout
        assert '"image":"registry.example.com/shop:1.1.0"' in done.stdout.splitlines()[-1]
        sandbox.send_signal(signal.SIGINT)
        assert sandbox.wait(30) == 0
    finally:
        sandbox.kill()
        sandbox.communicate()
