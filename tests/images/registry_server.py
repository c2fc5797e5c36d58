"""A real image registry on loopback: Debian's docker-registry, with a login."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from airflow_multideploy.sandbox.server import listen


@contextmanager
def docker_registry(folder: Path, htpasswd: str) -> Iterator[str]:
    """Serve it while the block runs; its ``host:port``.

    :param htpasswd: one line, ``user:bcrypt hash``.
    """
    sock = listen()
    host = f"127.0.0.1:{sock.getsockname()[1]}"
    sock.close()
    (folder / "htpasswd").write_text(htpasswd + "\n")
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": host, "secret": "of no importance"},
        "auth": {"htpasswd": {"realm": "registry", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        until = time.monotonic() + 10
        while True:
            try:
                assert httpx.get(f"http://{host}/v2/").status_code == 401
                break
            except httpx.TransportError:
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(10)
