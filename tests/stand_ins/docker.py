"""A real Docker Engine on a socket of its own and a real image registry, behind a loopback proxy that plays the faults.

The image holds a static busybox. Its command runs the script that stands in ``/course`` under the container's host
name: the proxy writes it when it sees the start, as the world's script says.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from airflow_multideploy.sandbox.server import App, Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Course, Live, World
from tests.images.registry_server import docker_registry

REPOSITORY = "registry.example.com/shop"
USER = "shop"
_RUNS = "trap 'exit 0' TERM; busybox rm -f /ok; busybox sleep {0} & wait; {1} while :; do busybox sleep 99 & wait; done"
_STARTS = re.compile(r"/containers/([^/]+)/(start|restart)$")


class CannotRun(Exception):
    """Why there is no Docker Engine here."""


@contextmanager
def engine() -> Iterator[tuple[str, str]]:
    """An Engine and a registry with the image's versions while the block runs: (socket's address, ``host:port``).

    :raises CannotRun: something is missing, or the daemon does not start.
    """
    wanted = ("dockerd", "docker-registry", "busybox")
    if missing := [program for program in wanted if shutil.which(program) is None]:
        raise CannotRun(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        raise CannotRun("a Docker daemon needs root")
    import bcrypt

    from docker import APIClient

    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    url = f"unix://{folder}/s"
    places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host={url}"]
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(["dockerd", *places, "--group=root", *network], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not _answers(f"{folder}/s"):
            if daemon.poll() is not None or time.monotonic() > until:
                raise CannotRun(f"dockerd does not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.2)
        with_api = APIClient(base_url=url, version="auto", timeout=120)
        line = f"{USER}:{bcrypt.hashpw(b'sandbox-secret', bcrypt.gensalt(4)).decode()}"
        (folder / "registry").mkdir()
        with docker_registry(folder / "registry", line) as registry:
            for version in ("1.0.0", "1.1.0", "9.9.9"):
                _push(with_api, f"{registry}/shop", version)
            with_api.close()
            yield url, registry
    finally:
        daemon.terminate()
        daemon.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _push(api: Any, repository: str, version: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(str(shutil.which("busybox")), "bin/busybox", filter=_executable)
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
    command = json.dumps(["/bin/sh", "-c", ". /course/$(busybox hostname)"])
    changes = [f"CMD {command}", "ENV PATH=/bin", f"LABEL version={version}"]
    api.import_image_from_data(buffer.getvalue(), repository=repository, tag=version, changes=changes)
    said = api.push(repository, tag=version, auth_config={"username": USER, "password": "sandbox-secret"})
    assert "error" not in said, said


def _executable(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mode = 0o755
    return info


class DockerStandIn:
    """The containers of one Engine, which the next test finds empty again."""

    kind = "docker"

    def __init__(
        self, world: World, *, port: int = 0, secret: str = "sandbox-secret", engine: str, registry: str
    ) -> None:
        self.world, self.secret, self.engine, self.registry, self.url = world, secret, engine, registry, ""
        self.folder = Path(tempfile.mkdtemp(prefix="docker-"))
        self._port, self._created = port, list[str]()

    # --- StandIn ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve on loopback."""
        from docker import APIClient

        self.api = APIClient(base_url=self.engine, version="auto")
        self._clear()
        self._upstream = httpx.AsyncHTTPTransport(uds=self.engine.removeprefix("unix://"))
        app: App = Faults(self._forward, self.world, self.kind, error_body=_error_body)
        self._server = Server(app, port=self._port).start()
        self._port, self.url = self._server.port, self._server.url

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()
        self._clear()
        self.api.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection(self) -> dict[str, Any]:
        """The registry's login."""
        return {"conn_type": "docker", "host": self.registry, "login": USER, "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a container."""
        check = {"Test": ["CMD", "/bin/busybox", "test", "-f", "/ok"], "Interval": 200_000_000, "Retries": 1000}
        target = {"platform": self.kind, "url": self.url.replace("http:", "tcp:"), "container": resource}
        target |= {"network": "none", "restart": "no", "volumes": [f"{self.folder}:/course"], "stop_timeout": 1}
        return {**target, "settle": 0.05, "create": {"Healthcheck": check}}

    def seed(self, resource: str, image: str | None) -> None:
        """The container as it was made by hand."""
        self._clear()
        if image is not None:
            self._by_hand(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else replaces the container by hand."""
        self.api.remove_container(resource, force=True)
        self._by_hand(resource, image)

    def live(self, resource: str) -> Live:
        """What the container with the name runs."""
        from docker.errors import NotFound

        try:
            found = self.api.inspect_container(resource)
        except NotFound:
            return Live(None, None, True)
        health = (found["State"].get("Health") or {"Status": "healthy"})["Status"]
        up = found["State"]["Running"] and health == "healthy"
        image = found["Config"]["Image"].replace(f"{self.registry}/shop", REPOSITORY)
        return Live(image if up else None, found["Id"], health != "starting")

    def revisions(self, resource: str) -> list[str]:
        """Containers that were created through the proxy."""
        return list(self._created)

    # --- the host --------------------------------------------------------------------------------------------------

    def own(self, image: str) -> str:
        """Where the loopback registry has this image."""
        return image.replace(REPOSITORY, f"{self.registry}/shop")

    def _by_hand(self, resource: str, image: str) -> None:
        host = self.api.create_host_config(network_mode="none", binds=[f"{self.folder}:/course"])
        made = self.api.create_container(self.own(image), name=resource, host_config=host)["Id"]
        self._write(made, Course("succeeds", 0.0))
        self.api.start(made)

    def _clear(self) -> None:
        for each in self.api.containers(all=True):
            self.api.remove_container(each["Id"], force=True)
        self._created.clear()

    def _write(self, container: str, course: Course) -> None:
        seconds = f"{course.seconds:.2f}"
        script = _RUNS.format(seconds, ": >/ok;" if course.outcome == "succeeds" else "")
        if course.outcome == "fails":
            code = re.search(r"exit code (\d+)", course.reason)
            script = f"busybox rm -f /ok; busybox sleep {seconds}; exit {code[1] if code else 1}"
        (self.folder / container[:12]).write_text(script + "\n")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        path = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        if found := _STARTS.search(scope["path"]):
            self._write(found[1], self.world.course(self.kind, "shop"))
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"connection",)]
        request = httpx.Request(scope["method"], f"http://docker{path}", headers=headers, content=body)
        request.extensions["timeout"] = {"connect": 30, "read": 60, "write": 30, "pool": 30}
        answer = await self._upstream.handle_async_request(request)
        content = await answer.aread()
        if scope["path"].endswith("/containers/create") and answer.status_code == 201:
            self._created.append(answer.json()["Id"])
        # What the Engine streams stays a stream (the SDK tells one by it): the server cuts it into chunks again.
        kept = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() != b"transfer-encoding"]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        await send({"type": "http.response.body", "body": content})


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"message": f"the daemon cannot serve this ({status})"}).encode(), {}
