"""Resident memory of a process that releases to one platform: it loads that platform's SDK and no other.

``python bench/memory.py`` prints, per platform of the sandbox, the MiB of a fresh process that took a snapshot there,
against one that has loaded Airflow and the deploy operator only; and which SDKs were in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.world import PLATFORMS

SDKS = (
    "boto3",
    "aiobotocore",
    "azure",
    "google.api_core",
    "google.auth",
    "kubernetes",
    "docker",
    "paramiko",
    "asyncssh",
)
_CHILD = f"""
import json, sys
import psutil
import airflow_multideploy.operators.deploy
from airflow_multideploy.platforms import adapter
config = json.loads(sys.argv[1])
if config:
    adapter(config, service="shop", target="t1").snapshot()
rss = psutil.Process().memory_info().rss / 2**20
print(json.dumps({{"rss": rss, "sdks": [name for name in {SDKS!r} if name in sys.modules]}}))
"""


def measure(config: dict[str, object] | None, environment: dict[str, str]) -> dict[str, object]:
    """What a fresh process came to that took a snapshot (None: that did nothing)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD, json.dumps(config)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with Sandbox(seconds=0.1) as sandbox:
        for kind in PLATFORMS:
            sandbox.seed(kind, "shop", "registry.example.com/shop:1.0.0")
        bare = measure(None, {})
        print(f"{'nothing':15} {bare['rss']:6.0f} MiB        SDKs: {bare['sdks']}")
        for kind in PLATFORMS:
            config = {**sandbox.stand_ins[kind].target("shop"), "conn_id": CONN_IDS[kind]}
            seen = measure(config, sandbox.environment())
            print(f"{kind:15} {seen['rss']:6.0f} MiB  x {seen['rss'] / bare['rss']:.2f}  SDKs: {seen['sdks']}")


if __name__ == "__main__":
    main()
