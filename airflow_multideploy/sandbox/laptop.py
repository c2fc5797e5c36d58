"""What a laptop's own Airflow needs to release to the sandbox: DAG file, catalog, and a script that leads to both."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from airflow_multideploy.sandbox import Sandbox

DAG_FILE = """from airflow_multideploy import service_dags

globals().update(service_dags())
"""
_NOTE = "# Written anew whenever the sandbox starts on this folder; change it while it runs.\n"


def write_laptop(sandbox: Sandbox) -> Path:
    """The path of a script that makes a shell's ``airflow`` release to the sandbox, for ``source``.

    It gives an ``AIRFLOW_HOME`` and a SQLite database of their own, the Connections (only its owner can read it) and
    the catalog. Everything is in the sandbox's folder.
    """
    folder = sandbox.folder
    home, dags, catalog, script = (folder / name for name in ("airflow", "dags", "catalog.yaml", "env.sh"))
    for each in (home, dags):
        each.mkdir(exist_ok=True)
    (dags / "multideploy_services.py").write_text(DAG_FILE)
    catalog.write_text(_NOTE + yaml.safe_dump(sandbox.catalog(), sort_keys=False))
    environment = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__MULTIDEPLOY__CATALOG_FILE": str(catalog),
        **sandbox.environment(),
        "CONTROL": sandbox.control_url,
    }
    script.touch(mode=0o600)
    script.write_text("".join(f"export {key}={shlex.quote(value)}\n" for key, value in environment.items()))
    return script
