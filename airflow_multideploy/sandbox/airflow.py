"""A whole Airflow on loopback for demo, tests and benchmarks: SQLite and LocalExecutor unless told otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
SIGNERS = ("api-server", "scheduler")
"""Who has the key that tokens are signed with: whoever has it can make one of any user."""
WORKER_SLOTS = 6
ENDED = frozenset({"success", "failed"})

_SEED = """
import json, sys
from airflow.utils.db import upgradedb
from airflow.models import Variable
upgradedb()
for key, value in json.load(sys.stdin).items():
    Variable.set(key, value, serialize_json=not isinstance(value, str))
"""


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # and never another one that got its number
            process.kill()


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class LocalAirflow:
    """Starts, kills and stops api-server, scheduler, dag-processor, triggerer and workers, and speaks REST to them.

    :param home: becomes ``AIRFLOW_HOME``; logs of the components are in its ``components`` folder.
    :param dags: the DAGs folder.
    :param connections: by id, as JSON documents; they live in the environment only, not in the database.
    :param variables: Variables to set before the DAGs are parsed for the first time.
    :param settings: more environment variables (``AIRFLOW__SECTION__KEY``).
    :param workers: how many Celery workers, for an executor that needs them: components ``worker-1``, ``worker-2``, …
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        connections: Mapping[str, Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        settings: Mapping[str, str] | None = None,
        workers: int = 0,
    ) -> None:
        self.home = home
        self.components = (*COMPONENTS, *(f"worker-{number + 1}" for number in range(workers)))
        self.variables = dict(variables or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.user, self.password = "admin", secrets.token_urlsafe(12)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._left: list[psutil.Process] = []
        self._http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self._token = ""
        passwords = home / "passwords.json"
        # Without byte code every task process compiles Airflow and the SDKs anew.
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environment = {
            **inherited,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.user}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "PYTHONUNBUFFERED": "1",
            **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(conn) for name, conn in (connections or {}).items()},
            **(settings or {}),
        }

    def prepare(self) -> None:
        """Create the home, the database and the Variables.

        :raises RuntimeError: the database cannot be made; with the last lines of what was said.
        """
        (self.home / "components").mkdir(parents=True, exist_ok=True)
        passwords = Path(self.environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({self.user: self.password}))
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
            [sys.executable, "-c", _SEED],
            input=json.dumps(self.variables).encode(),
            env=self.environment,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError("no Airflow database: " + done.stderr.decode(errors="replace")[-2000:])

    def start(self, *, timeout: float = 120) -> Self:
        """Prepare, start all components, and return when each of them is healthy.

        :param timeout: seconds.
        :raises RuntimeError: a component ended, or is not healthy in time.
        """
        self.prepare()
        for component in self.components:
            self.start_component(component)
        until = time.monotonic() + timeout
        while not self._healthy():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > until:
                why = self.log_tail(dead[0] if dead else "api-server")
                self.stop()
                raise RuntimeError(f"Airflow did not start: {dead or 'not healthy in time'}: {why}")
            time.sleep(0.3)
        return self

    def start_component(self, component: str) -> None:
        """Start one component as a process group of its own."""
        (self.home / f"{component}.pid").unlink(missing_ok=True)  # of a worker that was killed
        log = (self.home / "components" / f"{component}.log").open("ab")
        with log:
            self.processes[component] = subprocess.Popen(  # noqa: S603 - our own interpreter, fixed arguments
                [sys.executable, "-m", "airflow", *self._command(component)],
                env=self.environment_of(component),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment_of(self, component: str) -> dict[str, str]:
        """What a component is started with: no key that it does not need."""
        keys = () if component in SIGNERS else ("AIRFLOW__API_AUTH__JWT_SECRET",)
        return {name: value for name, value in self.environment.items() if name not in keys}

    def _command(self, component: str) -> list[str]:
        if component in COMPONENTS:
            return [component]
        pid = str(self.home / f"{component}.pid")
        slots = ["--concurrency", str(WORKER_SLOTS)]
        return ["celery", "worker", "--skip-serve-logs", *slots, "--celery-hostname", component, "--pid", pid]

    def kill(self, component: str, *, tree: bool = False) -> None:
        """SIGKILL one component; `start_component` starts it again.

        :param tree: with all its processes, as when its machine is lost; else they live on until `stop`.
        """
        process = self.processes.pop(component)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        if tree:
            _kill(children)
        self._left += children

    def stop(self) -> None:
        """Stop everything that was started: politely, then for certain."""
        for left in self._left:
            with contextlib.suppress(psutil.NoSuchProcess):
                _kill([*left.children(recursive=True), left])
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + 10
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()
        self._http.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log_tail(self, component: str, characters: int = 1500) -> str:
        """The end of a component's log."""
        path = self.home / "components" / f"{component}.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""

    def _healthy(self) -> bool:
        try:
            health = self._http.get("/api/v2/monitor/health").json()
        except (httpx.HTTPError, ValueError):
            return False
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    # --- REST ------------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, *, ok: tuple[int, ...] = (200, 201, 204), **kwargs: Any) -> Any:
        """A call to ``/api/v2``; the JSON answer.

        :raises RuntimeError: any other status, with Airflow's own words.
        """
        if not self._token:
            answer = self._http.post("/auth/token", json={"username": self.user, "password": self.password})
            answer.raise_for_status()
            self._token = answer.json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"}
        response = self._http.request(method, f"/api/v2{path}", headers=headers, **kwargs)
        if response.status_code not in ok:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response.json() if response.content else None

    def wait_for_dag(self, dag_id: str, *, timeout: float = 60) -> None:
        """Wait until the DAG processor knows the DAG, and unpause it.

        :raises TimeoutError: it does not show up within so many seconds.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                self.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
            except RuntimeError as error:
                if time.monotonic() > until:
                    tail = self.log_tail("dag-processor")
                    raise TimeoutError(f"DAG {dag_id!r} did not show up: {error}\n{tail}") from error
                time.sleep(0.3)
            else:
                return

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run as a pipeline would; returns its run id."""
        run = self.api("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": dict(conf)})
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a run."""
        return str(self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """All task instances of a run by task id."""
        found = self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=200")
        return {instance["task_id"]: instance for instance in found["task_instances"]}

    def watch(self, dag_id: str, run_id: str, *, timeout: float = 300, pause: float = 0.5) -> Iterator[str]:
        """Yields the run's state again and again until it has ended.

        :raises TimeoutError: it does not end within so many seconds.
        """
        until = time.monotonic() + timeout
        while True:
            state = self.run_state(dag_id, run_id)
            yield state
            if state in ENDED:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"run {run_id!r} of {dag_id!r} is {state} after {timeout:g} s")
            time.sleep(pause)

    def finish(self, dag_id: str, run_id: str, *, timeout: float = 300) -> str:
        """Wait for a run's end; returns its state."""
        *_, state = self.watch(dag_id, run_id, timeout=timeout)
        return state

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """What a task pushed, or None."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        entry = self.api("GET", path, ok=(200, 404), params={"deserialize": "true"})
        return entry.get("value") if entry else None
