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
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from docker_images import ROOT, WORK, CannotRun, daemon, docker, images, say

from airflow_multideploy.sandbox.server import listen

PORTS = ("api", "postgres", "redis", "scheduler", "control", "aws_ecs", "azure_web_app", "gcp_cloud_run", "http")
ENDED = ("success", "failed")
PROJECT = "multideploy-test"


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
        "healthcheck": {
            "test": ["CMD", "pg_isready", "-U", "airflow", "-h", "127.0.0.1", "-p", str(ports["postgres"])]
        },
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


def sandbox_on(ports: dict[str, int]) -> dict[str, Any]:
    """The sandbox's command and health check on other ports."""
    named = " ".join(f"--port {name}={ports[name]}" for name in PORTS[4:])
    return {
        "command": f"multideploy sandbox --folder /opt/airflow/sandbox {named}",
        "healthcheck": {"test": ["CMD-SHELL", f"curl --silent --fail http://127.0.0.1:{ports['control']}/healthz"]},
    }


class Stack:
    """The services of docker-compose.yaml, running."""

    def __init__(self, folder: Path, ports: dict[str, int], used: dict[str, str]) -> None:
        self.ports = ports
        base = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
        changes = override(ports, base, used)
        for service in base["services"].values():
            service.pop("ports", None)  # a published port and the host's network exclude each other
        self.services = list(base["services"])
        self.environment = {k: v for k, v in os.environ.items() if k != "COMPOSE_FILE"} | {"DOCKER_BUILDKIT": "0"}
        self.environment["COMPOSE_DOCKER_CLI_BUILD"] = "0"
        (folder / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
        (folder / "override.yaml").write_text(yaml.safe_dump(changes, sort_keys=False))
        subprocess.run([str(ROOT / "docker" / "env.sh"), str(folder / ".env")], check=True, stdout=subprocess.DEVNULL)
        self.secrets = dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines())
        self.command = ["docker-compose", "--project-name", PROJECT, "--project-directory", str(ROOT)]
        self.command += ["--env-file", str(folder / ".env")]
        self.command += ["--file", str(folder / "base.yaml"), "--file", str(folder / "override.yaml")]

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run docker-compose; its output."""
        done = subprocess.run(
            [*self.command, *arguments], check=False, capture_output=True, text=True, env=self.environment
        )
        if check and done.returncode != 0:
            words = f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            raise SystemExit(f"docker-compose {arguments[0]} ended with {done.returncode}:\n{words}")
        return done.stdout + done.stderr

    def logs(self, service: str, lines: int | None = None) -> str:
        """What a service printed."""
        tail = [f"--tail={lines}"] if lines else []
        return self.compose("logs", "--no-color", *tail, service, check=False)

    def health(self) -> dict[str, str]:
        """``healthy``, ``starting``, ``exited 0``, … of every service."""
        found = {}
        for service in self.services:
            container = self.compose("ps", "--quiet", service).strip()
            if not container:
                found[service] = "absent"
                continue
            state = json.loads(docker("inspect", "--format", "{{json .State}}", container).stdout)
            ended = f"exited {state['ExitCode']}"
            found[service] = state["Health"]["Status"] if state["Running"] and "Health" in state else ended
            if state["Running"] and "Health" not in state:
                found[service] = "running"
        return found

    def wait_healthy(self, seconds: float) -> None:
        """Return when every service is healthy, and those that only do a job have done it."""
        until = time.monotonic() + seconds
        told: dict[str, str] = {}
        while True:
            now = self.health()
            for service in [s for s in now if now[s] != told.get(s)]:
                say(f"{service}: {now[service]}")
            told = now
            if set(now.values()) <= {"healthy", "exited 0"}:
                return
            bad = [
                s for s, state in now.items() if state == "unhealthy" or (state[:6] == "exited" and state != "exited 0")
            ]
            if bad or time.monotonic() > until:
                bad = bad or [s for s, state in now.items() if state not in ("healthy", "exited 0")]
                words = "\n".join(f"--- {s} ({now[s]})\n{self.logs(s, 40)}" for s in bad)
                raise SystemExit(f"not healthy: {', '.join(bad)}\n{words}")
            time.sleep(1)


class Api:
    """Airflow's REST API, with the password from the .env file."""

    def __init__(self, url: str, password: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        answer = self.http.post("/auth/token", json={"username": "admin", "password": password}).raise_for_status()
        self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str) -> Any:
        """A document below /api/v2."""
        return self.http.get(f"/api/v2{path}").raise_for_status().json()

    def wait_for_dag(self, dag_id: str, seconds: float = 120) -> None:
        """Return when the DAG processor has found the DAG."""
        until = time.monotonic() + seconds
        while self.http.get(f"/api/v2/dags/{dag_id}").status_code != 200:
            if time.monotonic() > until:
                raise SystemExit(f"no DAG {dag_id}; import errors: {self.get('/importErrors')}")
            time.sleep(0.5)

    def release(self, dag_id: str, conf: dict[str, Any], seconds: float = 300) -> dict[str, Any]:
        """Trigger a release and wait for its end; the run, with its task instances under ``tasks``."""
        document = {"logical_date": None, "conf": conf}
        answer = self.http.post(f"/api/v2/dags/{dag_id}/dagRuns", json=document)
        if answer.status_code != 200:
            raise SystemExit(f"trigger refused: {answer.status_code} {answer.text}")
        run_id = answer.json()["dag_run_id"]
        until = time.monotonic() + seconds
        while True:
            run = dict(self.get(f"/dags/{dag_id}/dagRuns/{run_id}"))
            if run["state"] in ENDED or time.monotonic() > until:
                break
            time.sleep(0.5)
        run["tasks"] = self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return run
