"""What the chaos runs on: one executor with its servers, the sandbox, and one service per cell."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
import psutil

from airflow_multideploy.release.journal import Entry
from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.airflow import ENDED, LocalAirflow
from tests.chaos.servers import Postgres, Redis

T = TypeVar("T")
Executor = Literal["local", "celery"]

DAGS = Path(__file__).parents[2] / "dags"
IMAGE = "registry.example.com/shop"
OLD, NEW, NEXT = "1.0.0", "2.0.0", "3.0.0"
HEARTBEAT_TIMEOUT = 25
"""After so many seconds without a word Airflow takes a task for dead; its default is 300."""
TIMEOUT = ROLLBACK_TIMEOUT = 60.0

_EXECUTORS = {"local": "LocalExecutor", "celery": "CeleryExecutor"}
_TIMINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
}


class Gone(Exception):
    """What was waited for did not come in time."""


class Stack:
    """An Airflow on PostgreSQL and the sandbox, while the ``with`` block runs.

    :param services: the catalog; each target names a ``platform`` and a ``resource``.
    """

    def __init__(self, executor: Executor, services: Mapping[str, Mapping[str, Any]]) -> None:
        self.executor, self.services = executor, services
        self.home = Path(tempfile.mkdtemp(prefix=f"multideploy-chaos-{executor}-"))
        self.home.chmod(0o711)  # PostgreSQL runs as another user, in a folder of its own below
        self.sandbox = Sandbox(seconds=2, folder=self.home / "sandbox")
        self.postgres = Postgres(self.home)
        self._redis = Redis(self.home) if executor == "celery" else None
        self._exits = ExitStack()
        self._assets: dict[str, int] = {}
        self._ended = threading.Event()
        self.revived: list[str] = []

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(self.sandbox)
            for server in (self.postgres, self._redis):
                if server is not None:
                    exits.callback(server.stop)
                    server.start()
            for service in self.services.values():
                for target in service["targets"].values():
                    self.sandbox.seed(target["platform"], target["resource"], f"{IMAGE}:{OLD}")
            settings = {
                **_TIMINGS,
                "AIRFLOW__CORE__EXECUTOR": _EXECUTORS[self.executor],
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.url,
            }
            if self._redis is not None:
                settings["AIRFLOW__CELERY__BROKER_URL"] = self._redis.url
                settings["AIRFLOW__CELERY__RESULT_BACKEND"] = self._redis.url
            self.airflow = LocalAirflow(
                self.home / "airflow",
                DAGS,
                connections=self.sandbox.connections(),
                variables={"multideploy_services": {name: self._entry(s) for name, s in self.services.items()}},
                settings=settings,
                workers=2 if self._redis else 0,
            )
            exits.enter_context(self.airflow)
            exits.callback(self._ended.set)
            threading.Thread(target=self._keep, daemon=True).start()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exits.close()

    def _keep(self) -> None:
        """Start again what comes down by itself, as every process manager does: Airflow's components end when their
        database is away for too long."""
        while not self._ended.wait(2):
            for name, process in list(self.airflow.processes.items()):
                if process.poll() is not None:
                    self.revived.append(name)
                    self.airflow.start_component(name)

    def _entry(self, service: Mapping[str, Any]) -> dict[str, Any]:
        targets = {}
        for name, target in service["targets"].items():
            kind = target["platform"]
            targets[name] = {
                **self.sandbox.stand_ins[kind].target(target["resource"]),
                "conn_id": CONN_IDS[kind],
                "poll_interval": 1,
                "timeout": TIMEOUT,
                "rollback_timeout": ROLLBACK_TIMEOUT,
            }
        return {"artifact": {"image": IMAGE}, **service, "targets": targets}

    # --- what is the case -------------------------------------------------------------------------------------------

    def live(self, service: str, target: str) -> tuple[str, bool]:
        """(the tag that is served, whether no rollout is under way), from the platform's own state."""
        place = self.services[service]["targets"][target]
        live = self.sandbox.stand_ins[place["platform"]].live(place["resource"])
        return (live.image or "").rpartition(":")[2], live.settled

    def revisions(self, service: str, target: str) -> int:
        """How many revisions calls to the platform's API have created."""
        place = self.services[service]["targets"][target]
        return len(self.sandbox.stand_ins[place["platform"]].revisions(place["resource"]))

    def journal(self, service: str, target: str) -> Entry | None:
        """The target's journal, read over REST."""
        name = f"{service}/journal"
        if name not in self._assets:
            found = self.api("GET", "/assets", params={"uri_pattern": name, "limit": 100})["assets"]
            self._assets |= {asset["name"]: asset["id"] for asset in found}
        answer = self.api("GET", f"/assets/{self._assets[name]}/state-store/{target}.journal", ok=(200, 404))
        return Entry.model_validate(answer["value"]) if "value" in answer else None

    def api(self, method: str, path: str, **kwargs: Any) -> Any:
        """As `LocalAirflow.api`, but patient: the api-server or its database may be dead just now."""
        return self.until(f"{method} {path}", lambda: (self.airflow.api(method, path, **kwargs),), timeout=60)[0]

    def instance(self, service: str, run_id: str, task_id: str) -> dict[str, Any]:
        """A task instance as REST shows it."""
        found: dict[str, Any] = self.api("GET", f"/dags/{service}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def finish(self, service: str, run_id: str, timeout: float) -> str:
        """How the run ended.

        :raises Gone: it is stuck.
        """

        def ended() -> str:
            return found if (found := self.state(service, run_id)) in ENDED else ""

        return self.until("the run ends", ended, timeout=timeout)

    def knows(self, service: str) -> bool:
        """Whether the DAG processor has seen the service."""
        return "dag_id" in self.api("GET", f"/dags/{service}", ok=(200, 404))

    def state(self, service: str, run_id: str) -> str:
        """How a run is."""
        return str(self.api("GET", f"/dags/{service}/dagRuns/{run_id}")["state"])

    def until(self, what: str, check: Callable[[], T], *, timeout: float) -> T:
        """The first result of ``check()`` that is true; an Airflow that does not answer counts as false.

        :raises Gone: not within so many seconds.
        """
        end, last = time.monotonic() + timeout, ""
        while True:
            try:
                if found := check():
                    return found
            except httpx.HTTPError as error:
                last = repr(error)
            except RuntimeError as error:  # LocalAirflow.api: a status that was not expected
                if re.search(r": 5\d\d ", str(error)) is None:
                    raise
                last = str(error)
            if time.monotonic() > end:
                raise Gone(f"not within {timeout:g} s: {what} {last}".rstrip())
            time.sleep(0.4)

    # --- processes --------------------------------------------------------------------------------------------------

    def task_process(self, instance_id: str) -> psutil.Process:
        """The process that runs a task, by its try's id, which Airflow puts into the process title.

        :raises Gone: there is none.
        """
        title = f"airflow worker -- {instance_id}"
        for process in psutil.process_iter(["cmdline"]):
            if " ".join(process.info["cmdline"] or ()).strip() == title:
                return process
        raise Gone(f"no process {title!r}")

    def components_of(self, processes: Iterable[psutil.Process]) -> set[str]:
        """The components that these processes belong to."""
        pids = {p.pid: name for name, p in self.airflow.processes.items()}
        return {pids[parent.pid] for process in processes for parent in process.parents() if parent.pid in pids}
