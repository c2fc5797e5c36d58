"""The demo: four releases of one service to four platforms, on a real Airflow, against the sandbox."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from airflow_multideploy.errors import SpecError
from airflow_multideploy.sandbox import TARGETS, Sandbox
from airflow_multideploy.sandbox.airflow import LocalAirflow
from airflow_multideploy.sandbox.laptop import DAG_FILE

SERVICE, IMAGE = "shop", "registry.example.com/shop"
COLOURS = {"success": "green", "failed": "red", "skipped": "bright_black", "upstream_failed": "red"}
BAR = 44


@dataclass(frozen=True)
class Scene:
    """One release, and what has to come of it.

    :param expected: version that each target has to serve at the end.
    :param fails: kind whose rollout fails half-way.
    :param rules: changes to the service's ``success`` and ``rollback`` before the release.
    """

    title: str
    version: str
    status: str
    state: str
    expected: Mapping[str, str]
    fails: str | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)


def _everywhere(version: str, **others: str) -> dict[str, str]:
    return {**dict.fromkeys(TARGETS, version), **others}


SCENES = (
    Scene("(a) 1.0.0 to all four", "1.0.0", "succeeded", "success", _everywhere("1.0.0")),
    Scene(
        "(b) 1.1.0, Azure fails in mid-rollout: everything back on 1.0.0",
        "1.1.0",
        "rolled_back",
        "failed",
        _everywhere("1.0.0"),
        fails="azure_web_app",
    ),
    Scene(
        "(c) 1.2.0, strategy 'failed', policy 'at_least: 3': Azure fails again, the others stay",
        "1.2.0",
        "degraded",
        "success",
        _everywhere("1.2.0", azure="1.0.0"),
        fails="azure_web_app",
        rules={"success": {"policy": {"at_least": 3}}, "rollback": {"strategy": "failed"}},
    ),
)
LAST = Scene(
    "(d) 1.3.0 through `airflow dags test`, one target after the other",
    "1.3.0",
    "succeeded",
    "success",
    _everywhere("1.3.0"),
)


def catalog(sandbox: Sandbox, rules: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The demo's service catalog."""
    service = sandbox.catalog()[SERVICE]
    for target in service["targets"].values():
        target["poll_interval"] = 1
    return {SERVICE: {"owner": "team-shop", **service, **(rules or {})}}


def main(*, ui: bool = False, folder: Path | None = None, seconds: float = 6.0) -> int:
    """Run the demo; 0 when every outcome is the expected one, 1 otherwise. Everything it started is stopped.

    :param ui: leave Airflow and the sandbox running until Ctrl-C, and print address and login.
    :param folder: where Airflow's home goes (kept); default: a temporary folder that is removed.
    :param seconds: how long a rollout takes in the sandbox.
    :raises SpecError: the folder holds an Airflow already, whose runs would get in the way.
    """
    if folder is not None and (folder / "airflow" / "airflow.db").exists():
        raise SpecError(f"{folder}: holds the Airflow of an earlier demo; name another folder, or remove this one")
    console = Console(width=None if sys.stdout.isatty() else 140)
    with ExitStack() as stack:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        home = folder or Path(tempfile.mkdtemp(prefix="multideploy-demo-"))
        if folder is None:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        dags = home / "dags"
        dags.mkdir(parents=True, exist_ok=True)
        (dags / "multideploy_services.py").write_text(DAG_FILE)
        sandbox = stack.enter_context(Sandbox(seconds=seconds, folder=home / "sandbox"))
        for kind in TARGETS.values():
            sandbox.seed(kind, SERVICE, f"{IMAGE}:0.9.0")
        airflow = LocalAirflow(
            home / "airflow",
            dags,
            connections=sandbox.connections(),
            variables={"multideploy_services": catalog(sandbox)},
        )
        with console.status("starting scheduler, dag-processor, triggerer and api-server …"):
            stack.callback(airflow.stop)
            airflow.start()
            airflow.wait_for_dag(SERVICE)
        console.print(f"Airflow at {airflow.url} (SQLite, LocalExecutor); sandbox control at {sandbox.control_url}")
        good = [_play(console, airflow, sandbox, scene) for scene in SCENES]
        good.append(_dags_test(console, home, airflow, sandbox))
        console.print(Rule())
        verdict = "every outcome is the expected one" if all(good) else "NOT every outcome is the expected one"
        console.print(verdict, style="bold green" if all(good) else "bold red")
        if ui:
            _leave_running(console, airflow, sandbox)
        return 0 if all(good) else 1


def _play(console: Console, airflow: LocalAirflow, sandbox: Sandbox, scene: Scene) -> bool:
    console.print(Rule(scene.title, align="left"))
    if scene.rules:
        value = json.dumps(catalog(sandbox, scene.rules))
        body = {"key": "multideploy_services", "value": value}
        airflow.api("PATCH", "/variables/multideploy_services", json=body)
    if scene.fails:
        sandbox.world.add_fault({"platform": scene.fails, "outcome": "fails", "reason": "container exited: code 137"})
    run_id = airflow.trigger(SERVICE, {"version": scene.version, "reason": "demo"})
    state = ""
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        for now in airflow.watch(SERVICE, run_id):
            state = now
            picture = _timeline(airflow.task_instances(SERVICE, run_id), sandbox)
            if console.is_terminal:
                live.update(picture, refresh=True)
    if not console.is_terminal:
        console.print(_timeline(airflow.task_instances(SERVICE, run_id), sandbox))
    verdict = airflow.xcom(SERVICE, run_id, "finalize") or {}
    _figures(console, verdict)
    return _check(console, sandbox, scene, state=state, status=str(verdict.get("status")))


def _timeline(tasks: Mapping[str, Mapping[str, Any]], sandbox: Sandbox) -> Group:
    """Which task ran when: one bar each on a common scale, and what each target serves by now."""
    now = dt.datetime.now(dt.UTC)
    spans = {
        name: (_time(task["start_date"]), _time(task["end_date"]) or now)
        for name, task in tasks.items()
        if task["start_date"] and task["state"] not in ("skipped", "upstream_failed")
    }
    first = min((start for start, _ in spans.values() if start), default=now)
    last = max((end for _, end in spans.values()), default=now)
    scale = BAR / max((last - first).total_seconds(), 1.0)
    table = Table("task", "state", "seconds", "timeline", "serves now", box=None, pad_edge=False)
    for name, task in sorted(tasks.items(), key=lambda item: (item[1]["start_date"] or "9", item[0])):
        state = task["state"] or "waiting"
        colour = COLOURS.get(state, "yellow")
        start, end = spans.get(name, (None, now))
        bar = Text()
        length = ""
        if start is not None:
            offset = round((start - first).total_seconds() * scale)
            width = max(1, round((end - start).total_seconds() * scale))
            bar = Text("·" * offset + "█" * width, style=colour)
            length = f"{(end - start).total_seconds():.1f}"
        target = next((t for t in TARGETS if t in name.split(".")), None)
        live = sandbox.stand_ins[TARGETS[target]].live(SERVICE).image if target else None
        table.add_row(name, Text(state, style=colour), length, bar, _version(live) if target else "")
    return Group(table)


def _time(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None


def _version(image: str | None) -> str:
    return (image or "nothing").rpartition(":")[2]


def _figures(console: Console, verdict: Mapping[str, Any]) -> None:
    figures = verdict.get("figures") or {}

    def show(key: str, form: str) -> str:
        return form.format(figures[key]) if figures.get(key) is not None else "-"

    table = Table(
        "deployment time", "success rate", "rollback time", "parallel execution rate", box=None, pad_edge=False
    )
    table.add_row(
        show("deployment_seconds", "{:.1f} s"),
        show("success_rate", "{:.0%}"),
        show("rollback_seconds", "{:.1f} s"),
        show("parallel_rate", "{:.0%}"),
    )
    console.print(table)
    if verdict.get("reason"):
        console.print(f"why: {verdict['reason']}", style="bright_black")


def _check(console: Console, sandbox: Sandbox, scene: Scene, *, state: str, status: str) -> bool:
    """Compare with the platforms' own state, and say so."""
    serves = {name: _version(sandbox.stand_ins[kind].live(SERVICE).image) for name, kind in TARGETS.items()}
    good = (state, status, serves) == (scene.state, scene.status, dict(scene.expected))
    said = f"run {state}, release {status}; serves " + ", ".join(f"{name} {v}" for name, v in serves.items())
    console.print(("✔ " if good else "✘ ") + said, style="green" if good else "bold red")
    if not good:
        wanted = ", ".join(f"{name} {v}" for name, v in scene.expected.items())
        console.print(f"  expected: run {scene.state}, release {scene.status}; {wanted}", style="red")
    return good


def _dags_test(console: Console, home: Path, airflow: LocalAirflow, sandbox: Sandbox) -> bool:
    """The laptop's way, with an AIRFLOW_HOME of its own: against a live scheduler's database tasks would run twice."""
    console.print(Rule(LAST.title, align="left"))
    laptop = LocalAirflow(
        home / "laptop",
        home / "dags",
        connections=sandbox.connections(),
        variables={"multideploy_services": catalog(sandbox)},
    )
    laptop.prepare()
    # One after the other, so shorter rollouts show it as well.
    sandbox.world.seconds = min(sandbox.world.seconds, 2.0)
    with console.status("airflow dags test …"):
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
            [sys.executable, "-m", "airflow", "dags", "test", SERVICE, "-c", json.dumps({"version": LAST.version})],
            env=laptop.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    state = "success" if done.returncode == 0 else "failed"  # its exit code says how the run ended, and no more
    good = _check(console, sandbox, LAST, state=state, status=_last_status(done.stdout))
    if not good:
        console.print(done.stdout[-3000:] + done.stderr[-1000:], markup=False, highlight=False)
    return good


def _last_status(log: str) -> str:
    """The release's status as `finalize`, the last to name one, logged it."""
    said = re.findall(rf"\b{SERVICE} {re.escape(LAST.version)}: (\w+)", log)
    return str(said[-1]) if said else "not told"


def _leave_running(console: Console, airflow: LocalAirflow, sandbox: Sandbox) -> None:
    console.print(f"\nAirflow UI:  {airflow.url}\nlogin:       {airflow.user} / {airflow.password}", highlight=False)
    console.print(f"sandbox:     {sandbox.control_url}  (POST /faults to script the next failure)")
    console.print(f"pid:         {os.getpid()}  (Ctrl-C stops everything)")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    raise SystemExit(main(ui="--ui" in sys.argv))
