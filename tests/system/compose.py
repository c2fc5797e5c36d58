"""Runs docker-compose.yaml for real and releases through it: ``make test-compose``.

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
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from airflow_multideploy.sandbox.server import listen
from tests.system.docker_images import ROOT, WORK, CannotRun, daemon, docker, images, say

PORTS = ("api", "postgres", "redis", "scheduler")
ENDED = ("success", "failed")
PROJECT = "multideploy-test"


def free_ports() -> dict[str, int]:
    """A free loopback port for every server; under ``sandbox`` the first of five in a row."""
    socks = {name: listen() for name in PORTS}
    ports: dict[str, int] = {name: sock.getsockname()[1] for name, sock in socks.items()}
    for sock in socks.values():
        sock.close()
    for first in range(9400, 30_000, 10):
        try:
            row = [listen(port) for port in range(first, first + 5)]
        except OSError:
            continue
        for sock in row:
            sock.close()
        return ports | {"sandbox": first}
    raise SystemExit("no five free ports in a row")


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
        "command": [
            *base["services"]["postgres"]["command"],
            *("-c", "listen_addresses=127.0.0.1", "-p", str(ports["postgres"])),
        ],
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
    changed["sandbox"]["environment"] = {"SANDBOX_BASE_PORT": str(ports["sandbox"])}
    return {"services": changed}


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

    def up(self) -> None:
        """Build the image and start everything; returns when it is healthy."""
        say("building the image with this package's wheel")
        self.compose("build", "init")
        say("docker-compose up")
        self.compose("up", "--detach", "--no-build")
        self.wait_healthy(600)
        say("every service is healthy")

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

    def xcom(self, dag_id: str, run_id: str, task: str) -> Any:
        """A task's return value."""
        return self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value")["value"]


class Sandbox:
    """The sandbox's control API."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def live(self) -> dict[str, str]:
        """The version that each platform's ``shop`` really serves."""
        state = self.http.get("/state").raise_for_status().json()
        return {kind: str(found["shop"]["image"]).rpartition(":")[2] for kind, found in state.items()}

    def fail_next_rollout(self, kind: str) -> None:
        """The next rollout there fails half-way."""
        self.http.post("/faults", json={"platform": kind, "outcome": "fails"}).raise_for_status()


def expect(what: str, found: object, wanted: object) -> None:
    """Stop when something is not as it has to be."""
    if found != wanted:
        raise SystemExit(f"FAILED: {what}: expected {wanted!r}, got {found!r}")
    say(f"ok: {what}: {found!r}")


def check_releases(stack: Stack) -> None:
    """One release that works and one that is rolled back, over REST, on both workers."""
    api = Api(f"http://127.0.0.1:{stack.ports['api']}", stack.secrets["AIRFLOW_ADMIN_PASSWORD"])
    sandbox = Sandbox(f"http://127.0.0.1:{stack.ports['sandbox']}")
    before = sandbox.live()
    expect("targets", len(before), 4)
    api.wait_for_dag("shop")
    scenes = (("1.0.0", None, "success", "succeeded"), ("1.1.0", "gcp_cloud_run", "failed", "rolled_back"))
    for version, fails, state, status in scenes:
        if fails:
            sandbox.fail_next_rollout(fails)
        run = api.release("shop", {"version": version, "reason": "test"})
        for task in sorted(run["tasks"], key=lambda task: task["start_date"] or ""):
            say(f"  {task['task_id']:24} {task['state']:16} {task['duration'] or 0:5.1f} s")
        expect(f"release {version}: run", run["state"], state)
        expect(f"release {version}: status", api.xcom("shop", run["dag_run_id"], "finalize")["status"], status)
        expect(f"release {version}: live", sandbox.live(), dict.fromkeys(before, "1.0.0"))
    for worker in ("worker-1", "worker-2"):
        ran = stack.logs(worker).count("execute_workload")
        expect(f"{worker} ran tasks", ran > 0, True)
        say(f"{worker}: {ran} log lines of tasks")


def check_secrets(stack: Stack) -> None:
    """No secret in the compose file or in any service's output."""
    places = {"docker-compose.yaml": (ROOT / "docker-compose.yaml").read_text()}
    places |= {f"log of {service}": stack.logs(service) for service in stack.services}
    secrets = stack.secrets.items()
    leaks = [f"{name} in {place}" for place, text in places.items() for name, value in secrets if value in text]
    expect("secrets in the file or in logs", leaks, [])


def check_powers(stack: Stack) -> None:
    """Who has the keys to sign tokens, and that Redis is not root."""
    has: dict[str, list[str]] = {"AIRFLOW_JWT_SECRET": [], "AIRFLOW_API_SECRET_KEY": []}
    for service in stack.services:
        seen = docker("inspect", stack.compose("ps", "--quiet", service).strip()).stdout
        for name, services in has.items():
            if stack.secrets[name] in seen:
                services.append(service)
    expect("who can sign tokens", has["AIRFLOW_JWT_SECRET"], ["api-server", "scheduler"])
    expect("who can sign for the api-server's pages", has["AIRFLOW_API_SECRET_KEY"], ["api-server"])
    status = docker("exec", stack.compose("ps", "--quiet", "redis").strip(), "cat", "/proc/1/status").stdout
    expect("Redis runs as root", "\nUid:\t0\t" in status, False)


def main() -> int:
    """Run it; 0 when all is well or it cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    options = parser.parse_args()
    try:
        with daemon(keep=options.keep):
            folder = WORK / "run"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack = Stack(folder, free_ports(), images())
            try:
                stack.up()
                check_releases(stack)
                check_secrets(stack)
                check_powers(stack)
            finally:
                if not options.keep:
                    stack.compose("down", "--volumes", "--timeout", "10", check=False)
            if options.keep:
                print(f"Airflow: http://127.0.0.1:{stack.ports['api']}, user admin, password in {folder / '.env'}")
                print(f"stop: DOCKER_HOST={os.environ['DOCKER_HOST']} {' '.join(stack.command)} down --volumes")
    except CannotRun as reason:
        print(f"SKIPPED: test-compose cannot run on this machine: {reason}")
        return 0
    say("all is well")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
