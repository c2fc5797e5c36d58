"""Runs docker-compose.yaml for real and releases through it: ``make test-compose``, or ``python tests/system/compose.py``.

Where the official images are on this machine, they are used. Where no image can be had, stand-ins for them are built
from Debian packages and the package index. The containers use the host's network, on free loopback ports, so that no
bridge or firewall rule is needed. Where Docker cannot run at all, it says why and ends with 0.

``--keep`` leaves everything running and prints how to reach and how to stop it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from airflow_multideploy.sandbox.server import listen

ROOT = Path(__file__).parents[2]
WORK = Path(tempfile.gettempdir()) / "multideploy-compose"
"""Docker's data and the images in it: kept, so that a second run is fast."""

OFFICIAL = {"airflow": "apache/airflow:3.3.2", "postgres": "postgres:17", "redis": "redis:7"}
STAND_IN = {"debian": "multideploy-standin/debian:12"} | {
    name: f"multideploy-standin/{image.rpartition('/')[2]}" for name, image in OFFICIAL.items()
}
PORTS = ("api", "postgres", "redis", "scheduler", "control", "aws_ecs", "azure_web_app", "gcp_cloud_run", "http")
ENDED = ("success", "failed")
PROJECT = "multideploy-test"

DOCKERFILES = {
    "airflow": """\
        FROM {debian}
        RUN useradd --uid 50000 --gid 0 --create-home airflow \\
         && mkdir -p /opt/airflow/dags /opt/airflow/logs && chown -R airflow:0 /opt/airflow
        USER airflow
        ENV AIRFLOW_HOME=/opt/airflow PATH=/home/airflow/.local/bin:/usr/local/bin:/usr/bin:/bin
        RUN python3 -m venv /home/airflow/.local
        COPY requirements.txt /tmp/requirements.txt
        RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes -r /tmp/requirements.txt
        RUN pip install --no-cache-dir --no-compile 'apache-airflow==3.3.2' 'apache-airflow-providers-celery[redis]' \\
            apache-airflow-providers-postgres psycopg2-binary asyncpg hatchling
        COPY entrypoint /entrypoint
        WORKDIR /opt/airflow
        ENTRYPOINT ["/entrypoint"]
        """,
    "postgres": """\
        FROM {debian}
        ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
        RUN mkdir -p $PGDATA && chown postgres $PGDATA && chmod 700 $PGDATA
        USER postgres
        COPY entrypoint /entrypoint
        ENTRYPOINT ["/entrypoint"]
        CMD ["postgres"]
        """,
    "redis": """\
        FROM {debian}
        USER redis
        WORKDIR /tmp
        """,
}

ENTRYPOINTS = {
    "airflow": """\
        #!/bin/bash
        # As the official image's: "airflow" is the program unless another one is named.
        case "$1" in bash|sh|python|airflow|celery) exec "$@" ;; esac
        exec airflow "$@"
        """,
    "postgres": """\
        #!/bin/bash
        # As the official image's: creates user and database when the volume is empty.
        set -e
        if [ ! -s "$PGDATA/PG_VERSION" ]; then
            initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 > /dev/null
            pg_ctl start --wait --silent --options="-c listen_addresses=''"
            createdb --username="$POSTGRES_USER" --host=/var/run/postgresql "$POSTGRES_DB" || true
            pg_ctl stop --wait --silent
        fi
        exec "$@"
        """,
}


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", flush=True)


STARTED = time.monotonic()


def obstacles() -> list[str]:
    """Why it cannot run here; empty when it can."""
    missing = [p for p in ("docker", "docker-compose") if shutil.which(p) is None]
    if not os.environ.get("DOCKER_HOST"):
        missing += [p for p in ("dockerd",) if shutil.which(p) is None]
    found = [f"not installed: {', '.join(missing)}"] if missing else []
    if not os.environ.get("DOCKER_HOST") and os.geteuid() != 0:
        found.append("no DOCKER_HOST is set, and a Docker daemon of its own needs root")
    if not found and os.environ.get("DOCKER_HOST") and docker("info", check=False).returncode != 0:
        found.append(f"no Docker daemon answers at DOCKER_HOST={os.environ['DOCKER_HOST']}")
    return found


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run docker; its output is shown when it fails."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise SystemExit(f"docker {arguments[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


@contextmanager
def daemon() -> Iterator[None]:
    """The Docker daemon that DOCKER_HOST names, or one of our own on a socket of its own, stopped afterwards."""
    if os.environ.get("DOCKER_HOST"):
        yield
        return
    socket = WORK / "docker.sock"
    options = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    places = [f"--data-root={WORK}/data", f"--exec-root={WORK}/exec", f"--pidfile={WORK}/docker.pid"]
    with (WORK / "dockerd.log").open("w") as log:
        process = subprocess.Popen(
            ["dockerd", *places, f"--host=unix://{socket}", "--group=root", *options], stdout=log, stderr=log
        )
    os.environ["DOCKER_HOST"] = f"unix://{socket}"
    try:
        until = time.monotonic() + 30
        while docker("info", check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > until:
                last = (WORK / "dockerd.log").read_text()[-1500:]
                print(f"SKIPPED: the Docker daemon cannot run on this machine:\n{last}")
                raise SystemExit(0)
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)
        del os.environ["DOCKER_HOST"]


def has_image(name: str) -> bool:
    """Whether an image is on this machine."""
    return docker("image", "inspect", name, check=False).returncode == 0


def images() -> dict[str, str]:
    """The images to run on, by role: the official ones when they are all here, else stand-ins, built when needed."""
    if all(map(has_image, OFFICIAL.values())):
        say("using the official images")
        return OFFICIAL
    if not has_image(STAND_IN["debian"]):
        import_debian()
    for name, text in DOCKERFILES.items():
        if not has_image(STAND_IN[name]):
            say(f"building {STAND_IN[name]}")
            build_stand_in(name, text)
    return {name: STAND_IN[name] for name in OFFICIAL}


def import_debian() -> None:
    """Debian with Python, PostgreSQL and Redis as an image, straight from its packages."""
    if shutil.which("debootstrap") is None:
        print("SKIPPED: the official images are not on this machine, and debootstrap is not installed to build others")
        raise SystemExit(0)
    say(f"building {STAND_IN['debian']}")
    packages = "python3,python3-venv,ca-certificates,postgresql-15,redis-server,curl"
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # What this machine trusts, the build inside has to trust as well (a proxy's authority, for one).
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", f"{folder}/etc/ssl/certs/ca-certificates.crt")
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            change = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1"
            docker("import", "--change", change, "-", STAND_IN["debian"], stdin=tar.stdout)


def build_stand_in(name: str, dockerfile: str) -> None:
    """One stand-in image from its Dockerfile above."""
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        context = Path(folder)
        lines = dockerfile.format(debian=STAND_IN["debian"]).splitlines()
        (context / "Dockerfile").write_text("\n".join(line.strip() for line in lines))
        if name in ENTRYPOINTS:
            script = "\n".join(line.removeprefix("        ") for line in ENTRYPOINTS[name].splitlines())
            (context / "entrypoint").write_text(script + "\n")
            (context / "entrypoint").chmod(0o755)
        if name == "airflow":
            shutil.copy(ROOT / "requirements.txt", context)
        environment = os.environ | {"DOCKER_BUILDKIT": "0"}
        docker("build", "--network", "host", "--tag", STAND_IN[name], folder, env=environment)


def free_ports() -> dict[str, int]:
    """A free loopback port for every server."""
    socks = {name: listen() for name in PORTS}
    ports = {name: sock.getsockname()[1] for name, sock in socks.items()}
    for sock in socks.values():
        sock.close()
    return ports


def override(ports: dict[str, int], base: dict[str, Any], used: dict[str, str]) -> dict[str, Any]:
    """What differs from docker-compose.yaml: the host's network, loopback ports of our own, images that are here."""
    redis = f"redis://:${{REDIS_PASSWORD}}@127.0.0.1:{ports['redis']}/0"
    environment = {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{ports['api']}/execution/",
        "AIRFLOW__CELERY__BROKER_URL": redis,
        "AIRFLOW__CELERY__RESULT_BACKEND": redis,
    }
    database = f"postgresql+psycopg2://airflow:${{POSTGRES_PASSWORD}}@127.0.0.1:{ports['postgres']}/airflow"
    server = environment | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(ports["scheduler"]),
    }
    changed: dict[str, Any] = {}
    for name, service in base["services"].items():
        changed[name] = {"network_mode": "host"}
        if "build" in service:
            changed[name]["build"] = {"network": "host", "args": {"AIRFLOW_IMAGE": used["airflow"]}}
            if name != "sandbox":
                changed[name]["environment"] = environment if name.startswith("worker") else server
    changed["postgres"] |= {
        "image": used["postgres"],
        "command": ["postgres", "-c", "listen_addresses=127.0.0.1", "-p", str(ports["postgres"])],
        "healthcheck": {"test": ["CMD", "pg_isready", "-U", "airflow", "-h", "127.0.0.1", "-p", str(ports["postgres"])]},
    }
    bind = f"--bind 127.0.0.1 --port {ports['redis']}"
    changed["redis"] |= {
        "image": used["redis"],
        "command": [*base["services"]["redis"]["command"][:2], base["services"]["redis"]["command"][2] + f" {bind}"],
        "healthcheck": {"test": ["CMD-SHELL", f"redis-cli -p {ports['redis']} ping | grep -q PONG"]},
    }
    changed["api-server"] |= {"command": f"api-server --host 127.0.0.1 --port {ports['api']}"}
    changed["sandbox"] |= sandbox_on(ports)
    return {"services": changed}
