"""What the catalog costs the DAG processor and the workers, against bare Airflow DAGs.

Both sides go the DAG processor's own way: `DagFileProcessorProcess` forks a process that parses the file, serialises
its DAGs and sends them back, and serves Variables from a real (SQLite) metadata database meanwhile; from fork to
the process's end, in turn (A B A B …); ratios are of medians. The worker's parse is the same file with the parsing
context of a task process, timed around the file itself: import of the package, Variables, and the one DAG.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESSOR_BOUND, WORKER_BOUND = 1.5, 1.2
SHARD = 100
KINDS: dict[str, dict[str, Any]] = {
    "aws": {"platform": "aws_ecs", "conn_id": "aws_prod", "cluster": "main", "service": "s"},
    "gcp": {
        "platform": "gcp_cloud_run",
        "conn_id": "gcp_prod",
        "project": "demo-project",
        "location": "europe-west1",
        "service": "s",
    },
    "azure": {"platform": "azure_web_app", "conn_id": "azure_prod", "resource_group": "rg", "site": "s"},
    "onprem": {"platform": "http", "conn_id": "dc1"},
}
TIMER = "import json, os, time\n_began = time.perf_counter(), time.process_time()\n"
TIMED = """
with open(os.environ["BENCH_TIMES"], "w") as _file:
    json.dump([time.perf_counter() - _began[0], time.process_time() - _began[1]], _file)
"""
OURS = """from airflow_multideploy import service_dags

globals().update(service_dags())
"""
BARE = """import datetime
from contextlib import nullcontext

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, TaskGroup

TARGETS = ["aws", "gcp", "azure", "onprem"]
DEFAULTS = {{"owner": "team", "retries": 2, "retry_delay": datetime.timedelta(seconds=5)}} if {python} else {{}}


def work():
    pass


def task(task_id):
    return PythonOperator(task_id=task_id, python_callable=work) if {python} else EmptyOperator(task_id=task_id)


def group(name):
    return TaskGroup(name) if {groups} else nullcontext()


for number in range({services}):
    with DAG(f"service-{{number}}", schedule=None, default_args=DEFAULTS) as dag:
        plan = task(task_id="plan")
        deploys, rollbacks = [], []
        for target in TARGETS:
            with group(target):
                deploys.append(task(task_id=f"deploy_{{target}}"))
        ended = task(task_id="deploys_ended")
        aggregate = task(task_id="aggregate_status")
        finalize = task(task_id="finalize")
        with group("rollback"):
            for target in TARGETS:
                rollbacks.append(task(task_id=f"rollback_{{target}}"))
        plan >> deploys >> aggregate >> rollbacks >> finalize
        deploys >> ended >> finalize
        aggregate >> finalize
    globals()[dag.dag_id] = dag
"""


@dataclass(frozen=True)
class Sample:
    """One parse in a process of its own.

    :param wall: seconds from fork to the process's end.
    :param cpu: CPU seconds of that process and of whoever served it.
    :param file_wall: seconds of the file alone.
    :param file_cpu: CPU seconds of the file alone.
    :param shape: number of DAGs, tasks and edges.
    :param size: bytes of the serialised DAGs.
    """

    wall: float
    cpu: float
    file_wall: float
    file_cpu: float
    shape: tuple[int, int, int]
    size: int


def catalog(services: int) -> dict[str, Any]:
    """So many services with four targets each."""
    return {
        f"service-{n}": {"artifact": {"image": "registry.example.com/s"}, "targets": KINDS} for n in range(services)
    }


def set_catalog(services: int) -> None:
    """The catalog in Variables, as docs/catalog.md advises: a hundred services in a shard when there are more."""
    entries = catalog(services)
    names = list(entries)
    shards = {f"s{start}": names[start : start + SHARD] for start in range(0, services, SHARD)}
    if len(shards) == 1:
        set_variable("multideploy_services", entries)
        return
    set_variable("multideploy_services", {name: shard for shard, members in shards.items() for name in members})
    for shard, members in shards.items():
        set_variable(f"multideploy_services_{shard}", {name: entries[name] for name in members})


class Processor:
    """Parses files as the DAG processor's manager does, one at a time."""

    def __init__(self, folder: Path) -> None:
        import structlog
        from airflow.dag_processing.processor import DagFileProcessorProcess, in_process_api_server
        from airflow.sdk.api.client import Client
        from uuid6 import uuid7

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self.folder, self._log, self._uuid = folder, structlog.get_logger(), uuid7
        self._process = DagFileProcessorProcess
        self._client = Client(base_url=None, token="", dry_run=True, transport=in_process_api_server().transport)
        self._client.base_url = "http://in-process.invalid./"

    def parse(self, file: Path, context: tuple[str, str] | None = None) -> Sample:
        """Parse and serialise a file.

        :param context: DAG and task, as in a worker's task process.
        """
        times = self.folder / "times.json"
        os.environ["BENCH_TIMES"] = str(times)
        if context:
            os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"], os.environ["_AIRFLOW_PARSING_CONTEXT_TASK_ID"] = context
        before, began = sum(os.times()[:4]), time.perf_counter()
        process = self._process.start(
            id=self._uuid(),
            path=file,
            bundle_path=file.parent,
            bundle_name="bench",
            dag_file_rel_path=file.name,
            callbacks=[],
            selector=(selector := selectors.DefaultSelector()),
            logger=self._log,
            logger_filehandle=(self.folder / "log").open("ab"),
            client=self._client,
        )
        while not process.is_ready:
            process._service_subprocess(0.05)
        wall, cpu = time.perf_counter() - began, sum(os.times()[:4]) - before
        process.close()  # type: ignore[no-untyped-call]
        selector.close()
        for key in ("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PARSING_CONTEXT_TASK_ID"):
            os.environ.pop(key, None)
        result = process.parsing_result
        if result is None or result.import_errors:
            raise SystemExit(f"{file.name}: {result and result.import_errors}: nothing measured")
        dags = [lazy.data["dag"] for lazy in result.serialized_dags]
        tasks = [task["__var"] for dag in dags for task in dag["tasks"]]
        if any("broken" in dag.get("tags", ()) for dag in dags):
            raise SystemExit(f"{file.name}: a DAG is broken in the catalog: {dags[0].get('doc_md')}: nothing measured")
        edges = sum(len(task.get("downstream_task_ids", ())) for task in tasks)
        file_wall, file_cpu = json.loads(times.read_text())
        size = sum(len(json.dumps(dag)) for dag in dags)
        return Sample(wall, cpu, file_wall, file_cpu, (len(dags), len(tasks), edges), size)


def medians(samples: list[Sample]) -> dict[str, float]:
    """Of each figure."""
    return {
        key: statistics.median(getattr(s, key) for s in samples) for key in ("wall", "cpu", "file_wall", "file_cpu")
    }


def set_variable(key: str, value: object) -> None:
    """Straight into the metadata database."""
    from airflow.models import Variable

    if value is None:
        Variable.delete(key)
    else:
        Variable.set(key, value, serialize_json=True)


def compare(processor: Processor, files: Mapping[str, Path], rounds: int) -> dict[str, list[Sample]]:
    """Parse the files in turn, so many times each."""
    samples: dict[str, list[Sample]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            samples[name].append(processor.parse(file))
    return samples


def processor_ratios(processor: Processor, services: int, rounds: int) -> float:
    """Print one line per size; the ratio to bare DAGs."""
    files = {"ours": OURS}
    for name, groups, python in (("bare", False, False), ("python", False, True), ("groups", True, True)):
        files[name] = BARE.format(services=services, groups=groups, python=python)
    paths = {}
    for name, text in files.items():
        paths[name] = processor.folder / f"{name}_{services}.py"
        paths[name].write_text(TIMER + text + TIMED)
    set_catalog(services)
    samples = compare(processor, paths, rounds)
    if len(shapes := {s.shape for many in samples.values() for s in many}) != 1:
        raise SystemExit(f"the sides differ in DAGs, tasks or edges: {shapes}: nothing measured")
    figures = {name: medians(many) for name, many in samples.items()}
    ours, bare = figures["ours"], figures["bare"]
    print(f"{services} services: {ours['wall']:.3f} s (file alone {ours['file_wall']:.3f} s)")
    for name, what in (("bare", "bare"), ("python", "with PythonOperators, retries"), ("groups", "and task groups")):
        other = figures[name]
        print(
            f"  {what:30} {other['wall']:7.3f} s | ratio {ours['wall'] / other['wall']:5.2f} | CPU ratio "
            f"{ours['cpu'] / other['cpu']:5.2f} | bytes {samples['ours'][0].size / samples[name][0].size:.2f}"
        )
    return ours["wall"] / bare["wall"]


def worker_ratio(processor: Processor, services: int, rounds: int) -> float:
    """Print the worker's parse in both catalogs; the worst ratio."""
    file = processor.folder / "worker.py"
    file.write_text(TIMER + OURS + TIMED)
    one = "service-0"
    frozen = {"service": catalog(1)[one], "run_id": "r", "at": time.time()}
    worst = 0.0
    for what, task, kept in (("plan, from the index", "plan", None), ("others, frozen", "aws.deploy", frozen)):
        samples: dict[int, list[Sample]] = {1: [], services: []}
        set_variable(f"multideploy_frozen_{one}", kept)
        for _ in range(rounds):
            for size, many in samples.items():
                set_catalog(size)
                many.append(processor.parse(file, (one, task)))
        set_variable(f"multideploy_frozen_{one}", None)
        small, large = (medians(many) for many in samples.values())
        ratio = large["file_wall"] / small["file_wall"]
        worst = max(worst, ratio)
        print(
            f"worker, {what:20} | catalog of {services}: {large['file_wall'] * 1000:6.1f} ms, of 1: "
            f"{small['file_wall'] * 1000:6.1f} ms | ratio {ratio:5.2f} | CPU ratio "
            f"{large['file_cpu'] / small['file_cpu']:5.2f} | whole process {large['wall'] / small['wall']:5.2f}"
        )
    return worst


def warm_up(processor: Processor) -> None:
    """The first parse fills the byte code cache and starts the API that serves the Variables."""
    file = processor.folder / "warm_up.py"
    file.write_text(TIMER + OURS + TIMED)
    set_catalog(1)
    processor.parse(file)


def measure(sizes: list[int], rounds: int, worker_rounds: int) -> bool:
    """Print everything; whether both bounds hold."""
    with tempfile.TemporaryDirectory(prefix="multideploy-bench-") as name:
        folder = Path(name)
        os.environ |= {
            "AIRFLOW_HOME": name,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        }
        seed = "from airflow.utils.db import upgradedb; upgradedb()"
        # An installed package has its byte code beside it; a checkout, or PYTHONDONTWRITEBYTECODE, need not.
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder / "pycache")
        subprocess.run([sys.executable, "-c", seed], check=True, capture_output=True)
        processor = Processor(folder)
        warm_up(processor)
        ratios = {size: processor_ratios(processor, size, rounds) for size in sizes}
        worst = worker_ratio(processor, sizes[-1], worker_rounds)
    whole = ratios[sizes[-1]]
    print(f"DAG processor, {sizes[-1]} services: {whole:.2f} x bare (bound {PROCESSOR_BOUND:g})")
    print(f"worker, catalog of {sizes[-1]}: {worst:.2f} x a catalog of 1 (bound {WORKER_BOUND:g})")
    return whole <= PROCESSOR_BOUND and worst <= WORKER_BOUND


def main() -> int:
    """Exit code 1 with ``--check`` when a ratio is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, nargs="+", default=[1, 100, 1000], help="sizes of the catalog")
    parser.add_argument("--rounds", type=int, default=5, help="parses of each file, in turn (default 5)")
    parser.add_argument("--short", action="store_true", help="for CI: under a minute")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a ratio is over its bound")
    args = parser.parse_args()
    if args.short:
        args.services, args.rounds = [1, 1000], 1
    good = measure(args.services, args.rounds, 5 if args.short else 15)
    return int(args.check and not good)


if __name__ == "__main__":
    raise SystemExit(main())
