"""Installs the built wheel beside plain Airflow in a clean environment, and looks whether Airflow sees it.

python -m tests.system.wheel dist
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLAIN = """
import sys
import airflow_multideploy
loaded = sorted(m for m in sys.modules if m == "airflow.models" or m.split(".")[0] in ("boto3", "azure", "google"))
assert not loaded, loaded
import airflow_multideploy.catalog.parse, airflow_multideploy.release.rollout, airflow_multideploy.release.verdict
assert "airflow" not in sys.modules
import airflow_multideploy.factory.factory
loaded = sorted(m for m in sys.modules if m.split(".")[0] in ("boto3", "azure") or m.startswith("google.cloud"))
assert not loaded, loaded
print("imports: clean")
"""


def run(*argv: str, env: dict[str, str]) -> str:
    """A command's output; it has to succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def main(folder: str) -> None:
    """Install, list, import."""
    (wheel,) = sorted(Path(folder).glob("*.whl"))
    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"} | {"AIRFLOW_HOME": home}
        python = str(Path(home) / "venv" / "bin" / "python")
        uv = str(Path(sys.executable).parent / "uv")
        run(sys.executable, "-m", "venv", str(Path(home) / "venv"), env=env)
        # The pinned versions, without the development and cloud packages: what a base install would get.
        pins = re.findall(r"^([a-z0-9][a-z0-9._-]*==[^\\]+?) *\\", (ROOT / "requirements.txt").read_text(), flags=re.M)
        constraints = Path(home) / "constraints.txt"
        constraints.write_text("\n".join(pins))
        run(uv, "pip", "install", "--quiet", "--python", python, "-c", str(constraints), str(wheel), env=env)
        listed = json.loads(run(python, "-m", "airflow", "providers", "list", "--output", "json", env=env))
        names = [provider["package_name"] for provider in listed]
        assert "airflow-provider-multideploy" in names, names
        print("providers list: airflow-provider-multideploy is there")
        clouds = [n for n in names if n.endswith(("-amazon", "-google", "-azure"))]
        assert not clouds, clouds
        print(run(python, "-c", PLAIN, env=env).strip())
        kinds = json.loads(run(python, "-m", "airflow", "multideploy", "platforms", "--output", "json", env=env))
        print("platforms:", ", ".join(kind["kind"] for kind in kinds))


if __name__ == "__main__":
    main(sys.argv[1])
