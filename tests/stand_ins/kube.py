"""A real Kubernetes API for the tests: the one that MULTIDEPLOY_TEST_KUBECONFIG leads to, else one of our own."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

KUBECONFIG = "MULTIDEPLOY_TEST_KUBECONFIG"
_KUBE_LOCAL = Path(__file__).parents[3] / "shared" / "kube" / "kube-local"

Json = dict[str, Any]
_started = ExitStack()
"""What is to be closed and stopped when nobody uses the cluster any more."""
atexit.register(_started.close)


class Cluster:
    """A cluster as its administrator sees it.

    :param path: of a kubeconfig that may do everything.
    """

    def __init__(self, path: str) -> None:
        from kubernetes import client, config

        self.path, known = path, client.Configuration()
        config.load_kube_config(config_file=path, client_configuration=known)
        self.url = known.host
        tls = ssl.create_default_context(cafile=known.ssl_ca_cert)
        if known.cert_file:
            tls.load_cert_chain(known.cert_file, known.key_file)
        headers = {auth["key"]: auth["value"] for auth in known.auth_settings().values() if auth["in"] == "header"}
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=tls, headers=headers)
        _started.callback(self.http.close)

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **params: str) -> Json:
        """One call, which has to succeed; an object that does not exist is empty."""
        answer = self.http.request(method, path, json=body, params=params, headers={"Content-Type": kind})
        if answer.status_code == 404:
            return {}
        assert answer.is_success, answer.text
        return dict(answer.json())


@cache
def _found() -> Cluster | str:
    if path := os.environ.get(KUBECONFIG):
        return Cluster(path)
    if not _KUBE_LOCAL.exists():
        return f"no Kubernetes API: {KUBECONFIG} is not set, and ../shared/kube is not beside the repository"
    missing = [tool for tool in ("etcd", "openssl", "curl", "zstd") if shutil.which(tool) is None]
    if missing:
        return f"no Kubernetes API: {', '.join(missing)} not installed"
    folder = tempfile.mkdtemp(prefix="multideploy-kube-")
    environment = {**os.environ, "BASE_PORT": str(_free_ports(4))}

    def down() -> None:
        subprocess.run([_KUBE_LOCAL, "down", folder], check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)

    _started.callback(down)
    up = subprocess.run(
        [_KUBE_LOCAL, "up", folder], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert up.returncode == 0, up.stderr
    return Cluster(up.stdout.strip())


def cluster() -> Cluster:
    """The cluster of this test module; skips the test, and says so, where there is none."""
    found = _found()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def stop() -> None:
    """Nobody uses it any more: leave it, and stop it if it was started here, as it takes a tenth of a core."""
    _started.close()
    _found.cache_clear()


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row; each pytest worker looks among others, and begins anywhere in them."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(26443 + 500 * (worker % 10) + 10 * (os.getpid() % 40), 32000, 10):
        socks = [socket.socket() for _ in range(count)]
        try:
            for offset, sock in enumerate(socks):
                sock.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for sock in socks:
                sock.close()
    raise RuntimeError("no free ports")
