"""What a release costs on top of its slowest platform, against the plain DAG that people write today.

On one live Airflow (SQLite, LocalExecutor, default settings) both DAGs are triggered over REST in turn: the plain one
is build → four PythonOperators that sleep → aggregate; ours releases one service to four targets of the sandbox, whose
rollouts take as long as the plain DAG sleeps. Overhead = trigger to final state, minus those seconds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_multideploy.sandbox import CONN_IDS, Sandbox
from airflow_multideploy.sandbox.airflow import LocalAirflow

BOUND = 2.0
SERVICE, PLAIN, IMAGE = "shop", "plain_release", "registry.example.com/shop"
OURS = """from airflow_multideploy import service_dags

globals().update(service_dags())
"""
BY_HAND = """import time

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def build():
    return "registry.example.com/shop:1.0.0"


def deploy(target):
    time.sleep({seconds})
    return {{"target": target, "status": "succeeded"}}


def aggregate(ti):
    results = ti.xcom_pull(task_ids=["deploy_aws", "deploy_azure", "deploy_gcp", "deploy_onprem"])
    return {{"status": "succeeded" if all(results) else "failed"}}


with DAG("{dag_id}", schedule=None, max_active_runs=1):
    deploys = [
        PythonOperator(task_id=f"deploy_{{target}}", python_callable=deploy, op_args=[target])
        for target in ("aws", "azure", "gcp", "onprem")
    ]
    first = PythonOperator(task_id="build", python_callable=build)
    first >> deploys >> PythonOperator(task_id="aggregate", python_callable=aggregate)
"""
FOUR = {"aws": "aws_ecs", "azure": "azure_web_app", "gcp": "gcp_cloud_run", "onprem": "http"}


@dataclass
class Run:
    """One run, in seconds since its trigger.

    :param marks: what happened when, in order.
    :param parses: milliseconds that the workers took to parse the DAG file, by task.
    """

    state: str
    total: float
    marks: list[tuple[float, str]] = field(default_factory=list)
    parses: dict[str, int] = field(default_factory=dict)


def targets_of(sandbox: Sandbox, *, mixed: bool) -> dict[str, dict[str, Any]]:
    """Four targets on the sandbox: four applications of the on-prem API, or one on each platform."""
    kinds = FOUR if mixed else dict.fromkeys(FOUR, "http")
    found = {}
    for name, kind in kinds.items():
        resource = SERVICE if mixed else f"{SERVICE}-{name}"
        sandbox.stand_ins[kind].seed(resource, f"{IMAGE}:0.9.0")
        found[name] = {**sandbox.stand_ins[kind].target(resource), "conn_id": CONN_IDS[kind]}
    return found


def entries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line that the tasks of a run logged, with its task's id."""
    for path in sorted(folder.rglob("*.log*")):
        task = next((part.removeprefix("task_id=") for part in path.parts if part.startswith("task_id=")), "?")
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                yield task + (" (triggerer)" if ".trigger." in path.name else ""), json.loads(line)


def seconds_since(began: float, stamp: str) -> float:
    """A timestamp of Airflow's, as seconds since the trigger."""
    return dt.datetime.fromisoformat(stamp).timestamp() - began


def release(airflow: LocalAirflow, dag_id: str, conf: Mapping[str, Any]) -> Run:
    """Trigger, wait, and collect what happened when."""
    began = time.time()
    run_id = airflow.trigger(dag_id, conf)
    state = airflow.finish(dag_id, run_id, timeout=180)
    detail = airflow.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
    run = Run(state=state, total=seconds_since(began, detail["end_date"]))
    run.marks.append((seconds_since(began, detail["start_date"]), "run starts"))
    for task, instance in airflow.task_instances(dag_id, run_id).items():
        for key in ("scheduled_when", "queued_when", "start_date", "end_date"):
            if instance.get(key):
                run.marks.append((seconds_since(began, instance[key]), f"{task}: {key}"))
    for task, entry in entries(airflow.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"):
        said = str(entry.get("event", ""))
        run.marks.append((seconds_since(began, entry["timestamp"]), f"{task}| {said[:110]}"))
        if "dag_file_parse_ms" in entry:
            run.parses.setdefault(task, entry["dag_file_parse_ms"])
    run.marks.append((run.total, "run ends"))
    run.marks.sort()
    return run


def show(ours: list[Run], plain: list[Run], seconds: float) -> float:
    """Print the figures; the ratio of the medians."""
    figures = {}
    for name, runs in (("plain DAG", plain), ("release", ours)):
        extra = [run.total - seconds for run in runs]
        figures[name] = statistics.median(extra)
        parses = [ms for run in runs for ms in run.parses.values()]
        parse = f"{statistics.median(parses):.0f} ms" if parses else "-"
        print(
            f"{name:10} overhead {figures[name]:5.2f} s  (runs: {', '.join(f'{e:.2f}' for e in extra)});"
            f" worker's parse {parse}"
        )
    ratio = figures["release"] / figures["plain DAG"]
    print(f"ratio {ratio:.2f} (bound {BOUND:g})")
    return ratio


def measure(args: argparse.Namespace) -> float:
    """Start everything, run both in turn, print."""
    with tempfile.TemporaryDirectory(prefix="multideploy-bench-") as folder:
        home = Path(folder)
        dags = home / "dags"
        dags.mkdir()
        (dags / "plain.py").write_text(BY_HAND.format(seconds=args.seconds, dag_id=PLAIN))
        (dags / "multideploy_services.py").write_text(OURS)
        platforms = tuple(FOUR.values()) if args.mixed else ("http",)
        with Sandbox(seconds=args.seconds, platforms=platforms, folder=home / "sandbox") as sandbox:
            common = {"poll_interval": args.poll} if args.poll else {}
            targets = {name: {**target, **common} for name, target in targets_of(sandbox, mixed=args.mixed).items()}
            service = {"artifact": {"image": IMAGE}, "targets": targets}
            catalog = {f"other-{n}": service for n in range(args.services - 1)} | {SERVICE: service}
            airflow = LocalAirflow(
                home / "airflow", dags, connections=sandbox.connections(), variables={"multideploy_services": catalog}
            )
            with airflow:
                for dag_id in (PLAIN, SERVICE):
                    airflow.wait_for_dag(dag_id, timeout=180)
                ours, plain = [], []
                for number in range(args.runs):
                    plain.append(release(airflow, PLAIN, {}))
                    ours.append(release(airflow, SERVICE, {"version": f"1.{number}.0"}))
                    if bad := [run.state for run in (ours[-1], plain[-1]) if run.state != "success"]:
                        print("\n".join(f"{at:7.2f}  {what}" for at, what in ours[-1].marks), file=sys.stderr)
                        raise SystemExit(f"a run is {bad}: nothing measured")
    if args.timeline:
        for name, run in (("plain DAG", plain[-1]), ("release", ours[-1])):
            print(f"\n{name}: seconds since the trigger")
            print("\n".join(f"{at:7.2f}  {what}" for at, what in run.marks))
    return show(ours, plain, args.seconds)


def main() -> int:
    """Exit code 1 with ``--check`` when the ratio is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each DAG, in turn (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="seconds that the slowest platform takes (default 10)"
    )
    parser.add_argument("--services", type=int, default=1, help="services in the catalog (default 1)")
    parser.add_argument("--poll", type=float, help="poll_interval of the targets (default: the catalog's default)")
    parser.add_argument("--mixed", action="store_true", help="one target per platform instead of four on-prem ones")
    parser.add_argument("--timeline", action="store_true", help="print what happened when in the last run of each")
    parser.add_argument("--short", action="store_true", help="for CI: two runs each, under two minutes")
    parser.add_argument("--check", action="store_true", help="exit code 1 when the ratio is over its bound")
    args = parser.parse_args()
    if args.short:
        args.runs = 2
    ratio = measure(args)
    return int(args.check and ratio > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
