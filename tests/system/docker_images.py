"""A Docker daemon and the images for `compose`: the official ones, or stand-ins built from packages alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORK = Path(tempfile.gettempdir()) / "multideploy-compose"
"""Docker's data and the images in it: kept, so that a second run is fast."""

OFFICIAL = {"airflow": "apache/airflow:3.3.2", "postgres": "postgres:17", "redis": "redis:7"}
DEBIAN = "multideploy-standin/debian:12"
STAND_IN = {
    "airflow": "multideploy-standin/airflow:3.3.2",
    "postgres": "multideploy-standin/postgres:15",
    "redis": DEBIAN,
}
STARTED = time.monotonic()


class CannotRun(Exception):
    """This machine cannot run it; the message says why."""


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", flush=True)


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run docker; its output is shown when it fails."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise SystemExit(
            f"docker {arguments[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done


@contextmanager
def daemon(*, keep: bool = False) -> Iterator[None]:
    """The Docker daemon that DOCKER_HOST names, or one of our own on a socket of its own, stopped afterwards.

    :param keep: leave it running.
    :raises CannotRun: there is none, and none can be started.
    """
    own = not os.environ.get("DOCKER_HOST")
    wanted = ("docker", "docker-compose", "dockerd") if own else ("docker", "docker-compose")
    if missing := [program for program in wanted if shutil.which(program) is None]:
        raise CannotRun(f"not installed: {', '.join(missing)}")
    if not own:
        if docker("info", check=False).returncode != 0:
            raise CannotRun(f"no Docker daemon answers at DOCKER_HOST={os.environ['DOCKER_HOST']}")
        yield
        return
    if os.geteuid() != 0:
        raise CannotRun("no DOCKER_HOST is set, and a Docker daemon of its own needs root")
    WORK.mkdir(mode=0o700, exist_ok=True)
    os.environ["DOCKER_HOST"] = f"unix://{WORK}/docker.sock"
    places = [f"--data-root={WORK}/data", f"--exec-root={WORK}/exec", f"--pidfile={WORK}/docker.pid"]
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    with (WORK / "dockerd.log").open("w") as log:
        process = subprocess.Popen(
            ["dockerd", *places, f"--host={os.environ['DOCKER_HOST']}", "--group=root", *network],
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + 30
        while docker("info", check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > until:
                last = (WORK / "dockerd.log").read_text()[-1500:]
                raise CannotRun(f"the Docker daemon does not start:\n{last}")
            time.sleep(0.2)
        yield
    finally:
        if not keep:
            process.terminate()
            process.wait(60)


def has_image(name: str) -> bool:
    """Whether an image is on this machine."""
    return docker("image", "inspect", name, check=False).returncode == 0


def images() -> dict[str, str]:
    """The images to run on, by role: the official ones when they are all here, else stand-ins, built when needed.

    :raises CannotRun: there are none, and none can be built.
    """
    if all(map(has_image, OFFICIAL.values())):
        say("using the official images")
        return OFFICIAL
    if not has_image(DEBIAN):
        _import_debian()
    for name in ("airflow", "postgres"):
        if not has_image(STAND_IN[name]):
            say(f"building {STAND_IN[name]}")
            _build_stand_in(name)
    return STAND_IN


def _import_debian() -> None:
    """Debian with Python, PostgreSQL and Redis as an image, straight from its packages."""
    if shutil.which("debootstrap") is None:
        raise CannotRun("the official images are not here, and debootstrap is not installed to build stand-ins")
    say(f"building {DEBIAN}")
    packages = "python3,python3-venv,ca-certificates,postgresql-15,redis-server,curl"
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        # What this machine trusts, the build inside has to trust as well (a proxy's authority, for one).
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", f"{folder}/etc/ssl/certs/ca-certificates.crt")
        change = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1"
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            docker("import", "--change", change, "-", DEBIAN, stdin=tar.stdout)


def _build_stand_in(name: str) -> None:
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        shutil.copytree(Path(__file__).parent / "images" / name, folder, dirs_exist_ok=True)
        if name == "airflow":
            shutil.copy(ROOT / "requirements.txt", folder)
        arguments = ["--network", "host", "--build-arg", f"DEBIAN={DEBIAN}", "--tag", STAND_IN[name], folder]
        docker("build", *arguments, env=os.environ | {"DOCKER_BUILDKIT": "0"})
