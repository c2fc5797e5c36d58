"""``airflow multideploy``: what it prints, where, and how it ends. Through Airflow's own parser, or as a process."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from airflow_multideploy import service_dags
from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.platforms import kinds
from airflow_multideploy.sandbox.server import listen

GOOD: dict[str, Any] = {
    "artifact": {"image": "registry.example.com/shop"},
    "targets": {
        "aws": {"platform": "aws_ecs", "conn_id": "aws_prod", "cluster": "main", "service": "shop"},
        "onprem": {
            "platform": "http",
            "conn_id": "dc1",
            "depends_on": ["aws"],
            "deploy": {"method": "POST", "path": "/deploy", "form": {"image": "${image}"}},
        },
    },
}
CANARY = "ghp_" + "c4nary" * 6
BAD: dict[str, Any] = {
    "artifact": {"image": "registry.example.com/shop:1"},
    "targets": {
        "aws": {"platform": "aws_ecs", "conn_id": "aws_prod", "clustr": "main", "service": "shop"},
        "gcp": {"platform": "cloud_rum", "conn_id": "gcp_prod", "token": CANARY},
    },
}


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line that an error is."""
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of the group as ``airflow`` would, in this process."""
    from airflow.cli.cli_parser import get_parser

    monkeypatch.setenv("COLUMNS", "200")

    def command(*argv: str) -> Done:
        args = get_parser().parse_args(["multideploy", *argv])
        capsys.readouterr()
        code = 0
        try:
            args.func(args)
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return command


def write(path: Path, document: object) -> str:
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_validate_finds_a_good_catalog_good(run: Run, tmp_path: Path) -> None:
    done = run("validate", write(tmp_path / "c.yaml", {"shop": GOOD}))
    assert (done.code, done.err) == (0, "")
    assert "1 services, 0 with problems" in done.out


def test_validate_tells_every_problem_of_every_service_and_no_secret(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", {"shop": GOOD, "bad": BAD, "worse": 7})
    done = run("validate", file, "--output", "json")
    assert done.code == 1
    assert (done.json["ok"], done.json["source"]) == (False, file)
    services = {found["service"]: found for found in done.json["services"]}
    assert services["shop"] == {"service": "shop", "ok": True, "targets": ["aws", "onprem"], "problems": []}
    places = {problem.split(":")[0] for problem in services["bad"]["problems"]}
    assert places >= {"artifact.image", "targets.aws.cluster", "targets.aws.clustr", "targets.gcp.platform"}
    assert "targets.gcp.token" in places
    assert "expected a mapping, got int" in services["worse"]["problems"][0]
    table = run("validate", file)
    assert table.code == 1
    assert [line for line in table.out.splitlines() if line.startswith("bad: targets.aws.clustr: ")]
    assert CANARY not in done.out + table.out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("shop: [1", "is no YAML or JSON"),
        ("[shop]", "expected a mapping"),
        ("{services: {}, default: {}}", "did you mean 'defaults'?"),
    ],
)
def test_validate_of_a_file_that_is_no_catalog_is_one_line(
    run: Run, tmp_path: Path, text: str | None, says: str
) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    done = run("validate", str(file))
    assert done.code == 2
    assert str(file) in done.complaint
    assert says in done.complaint


@pytest.mark.parametrize(("notifier", "why"), [("no.such.Notifier", "cannot be imported"), ("os.system", "is no")])
def test_validate_finds_what_is_no_notifier(run: Run, tmp_path: Path, notifier: str, why: str) -> None:
    file = write(tmp_path / "c.yaml", {"shop": {**GOOD, "notify": [{"notifier": notifier}]}})
    done = run("validate", file)
    assert done.code == 1
    assert f"shop: notify[0].notifier: {why}" in done.out


def test_validate_reads_the_variables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {"owner": 5}
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", json.dumps(defaults))
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"shop": GOOD, "cart": GOOD | {"owner": "a"}}))
    done = run("validate", "-o", "json")
    assert done.json["source"] == "Variable multideploy_services"
    assert [(s["service"], s["ok"]) for s in done.json["services"]] == [("shop", False), ("cart", True)]

    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", '["shop", "cart"]')
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICE_SHOP", "{")
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICE_CART", json.dumps(GOOD | {"owner": "a"}))
    done = run("validate", "-o", "json")
    shop, cart = done.json["services"]
    assert "multideploy_service_shop: is no JSON" in shop["problems"][0]
    assert cart["ok"]

    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", "{")
    done = run("validate")
    assert done.code == 2
    assert "Variable multideploy_services: is no JSON" in done.complaint


def test_validate_prefers_the_configured_file_to_the_variables(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "c.yaml", {"services": {"shop": GOOD}, "defaults": {"owner": "team"}})
    monkeypatch.setenv("AIRFLOW__MULTIDEPLOY__CATALOG_FILE", file)
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", "{}")
    done = run("validate", "-o", "json")
    assert (done.code, done.json["source"]) == (0, file)


def test_schema_accepts_what_validate_accepts(run: Run, tmp_path: Path) -> None:
    document = run("schema").json
    validator = jsonschema.Draft202012Validator(document)
    validator.check_schema(document)
    validator.validate({"shop": GOOD})
    assert not validator.is_valid({"bad": BAD})
    file = tmp_path / "schema.json"
    assert run("schema", "--output-file", str(file)) == Done(0, "", "")
    assert json.loads(file.read_text()) == document
    assert "name a file that can be written" in run("schema", "--output-file", str(tmp_path)).complaint


def test_platforms_lists_ours(run: Run) -> None:
    done = run("platforms", "-o", "json")
    assert done.code == 0
    rows = {row["kind"]: row for row in done.json}
    assert set(rows) >= {"aws_ecs", "azure_web_app", "gcp_cloud_run", "http"}
    for row in rows.values():
        assert row["distribution"].startswith("airflow-provider-multideploy ")
        assert row["error"] is None
        assert isinstance(row["asynchronous"], bool)
        assert row["snapshot"]
    assert "gcp_cloud_run" in run("platforms").out


PLUGIN = """
from airflow_multideploy.platforms.onprem.http import Http
class Kind(Http): kind = "other"
class Dict(Http): kind, capabilities = "b_dict", {"snapshot": "x"}
class Config(Http): kind, config_type = "b_config", dict
class Manual(Http): kind, manual = "b_manual", "read me"
from airflow_multideploy.release.contract import Capabilities, Platform
class Nothing(Platform): pass
class Able(Platform): kind = "b_able"
class Abstract(Platform): kind, capabilities, config_type = "b_abstract", Http.capabilities, Http.config_type
value = 3
"""
BROKEN = {
    "b_import": ("no_such_module_here:Broken", "No module named 'no_such_module_here'"),
    "b_exit": ("third_party_exit:Broken", "SystemExit('bye')"),
    "b_value": ("third_party:value", "is no subclass of Platform; name one"),
    "b_kind": ("third_party:Kind", "has the kind 'other', its entry point the name 'b_kind'"),
    "b_nothing": ("third_party:Nothing", "has the kind None"),
    "b_able": ("third_party:Able", "set capabilities = Capabilities(…)"),
    "b_dict": ("third_party:Dict", "set capabilities"),
    "b_config": ("third_party:Config", "set config_type to a subclass of TargetConfig"),
    "b_manual": ("third_party:Manual", "set manual = Manual(…)"),
    "b_abstract": ("third_party:Abstract", "lacks aobserve, deploy, observe, rollback, snapshot; write"),
}


@pytest.fixture
def broken_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Third parties' platforms that cannot be used, each for another reason."""
    (tmp_path / "third_party.py").write_text(PLUGIN)
    (tmp_path / "third_party_exit.py").write_text("import sys; sys.exit('bye')")
    monkeypatch.syspath_prepend(tmp_path)
    points = {kind: EntryPoint(kind, where, kinds.ENTRY_POINT_GROUP) for kind, (where, _) in BROKEN.items()}
    installed = {**kinds.kinds(), **points}
    monkeypatch.setattr(kinds, "kinds", lambda: installed)
    kinds.platform_type.cache_clear()
    yield
    kinds.platform_type.cache_clear()
    sys.modules.pop("third_party", None)


@pytest.mark.usefixtures("broken_platforms")
def test_a_broken_platform_shows_why_and_harms_no_other(run: Run, tmp_path: Path) -> None:
    done = run("platforms", "-o", "json")
    assert done.code == 1
    errors = {row["kind"]: row["error"] for row in done.json}
    for kind, (where, words) in BROKEN.items():
        error = errors.pop(kind)
        assert all(part in error for part in (f"platform {kind!r}", where, words)), error
    assert set(errors.values()) == {None}
    assert "b_exit: platform 'b_exit'" in run("platforms").out
    schema = run("schema")
    assert schema.err.count("left out: platform 'b_") == len(BROKEN)
    assert "AwsEcsConfig" in schema.json["$defs"]
    pages = run("platforms", "--docs", str(tmp_path / "pages"))
    assert pages.code == 1
    assert all(words in pages.complaint for _, words in BROKEN.values())
    assert (tmp_path / "pages" / "aws_ecs.md").read_text().startswith("# aws_ecs")


@pytest.mark.usefixtures("broken_platforms")
def test_a_broken_platform_is_the_problem_of_its_services_alone(run: Run, tmp_path: Path) -> None:
    broken = {kind: {**GOOD, "targets": {"t": {"platform": kind, "conn_id": "c"}}} for kind in BROKEN}
    done = run("validate", (file := write(tmp_path / "c.yaml", {**broken, "shop": GOOD})), "-o", "json")
    *services, shop = done.json["services"]
    assert shop["ok"]
    for found in services:
        assert BROKEN[found["service"]][1] in found["problems"][0]
    dags = service_dags(file)
    assert len(dags) == len(BROKEN) + 1
    assert len(dags["shop"].tasks) > 5


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--port", "ftp=1"), "--port ftp=1: is not KIND=PORT"),
        (("--port", "http=99999"), "http: 99999 is no port"),
        (("--seed", "shop"), "--seed shop: is not RESOURCE=IMAGE"),
        (("--seed", "ftp/shop=a:1"), "kinds are aws_ecs"),
        (("--seconds", "0"), "--seconds: 0 is no duration"),
    ],
)
def test_sandbox_refuses_options_that_do_not_fit(run: Run, option: tuple[str, ...], says: str) -> None:
    done = run("sandbox", *option)
    assert done.code == 2
    assert says in done.complaint


def test_sandbox_names_a_port_that_is_taken(run: Run) -> None:
    with listen() as taken:
        taken.listen()
        port = taken.getsockname()[1]
        done = run("sandbox", "--port", f"control={port}")
    assert done.code == 2
    assert f"control={port}" in done.complaint
    assert "--port" in done.complaint


def start(home: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "airflow", "multideploy", *argv],
        env={**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ends(process: subprocess.Popen[str], by: signal.Signals) -> None:
    process.send_signal(by)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_sandbox_serves_until_sigterm_and_says_how_to_release_to_it(tmp_path: Path) -> None:
    process = start(tmp_path, "sandbox", "--seconds", "0.3", "--seed", "shop=r.test/shop:1", "--seed", "http/new=")
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        script = Path(next(shlex.split(line)[1] for line in lines if line.startswith("source ")))
        assert script.stat().st_mode & 0o077 == 0
        exports = dict(shlex.split(line)[1].split("=", 1) for line in script.read_text().splitlines())
        connections = {name for name in exports if name.startswith("AIRFLOW_CONN_")}
        assert connections == {f"AIRFLOW_CONN_{name}" for name in ("AWS_PROD", "AZURE_PROD", "GCP_PROD", "DC1")}
        assert json.loads(exports["AIRFLOW_CONN_DC1"])["conn_type"] == "http"
        catalog = read_file(exports["AIRFLOW__MULTIDEPLOY__CATALOG_FILE"])[0]
        assert {name: list(service["targets"]) for name, service in catalog.items()} == {
            "shop": ["aws", "azure", "gcp", "onprem"],
            "new": ["onprem"],
        }
        assert [service["artifact"]["image"] for service in catalog.values()] == [
            "r.test/shop",
            "registry.example.com/new",
        ]
        control = next(line.rpartition(" ")[2].strip() for line in lines if line.startswith("# The control API"))
        assert exports["CONTROL"] == control
        state = httpx.get(f"{control}/state", timeout=30).json()
        assert {kind: live["shop"]["image"] for kind, live in state.items()} == dict.fromkeys(state, "r.test/shop:1")
        assert state["http"]["new"]["image"] is None
        assert set(state) == {"aws_ecs", "azure_web_app", "gcp_cloud_run", "http"}
        ends(process, signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{control}/healthz")
        assert not script.exists()
    finally:
        process.kill()


def test_sandbox_prints_json_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    process = start(
        tmp_path, "sandbox", "--folder", str(tmp_path / "ca"), "--seed", "gcp_cloud_run/shop=a:1", "-o", "json"
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            text += process.stdout.readline()
        document = json.loads(text)
        assert set(document["connections"]) == {"aws_prod", "azure_prod", "gcp_prod", "dc1"}
        assert json.loads(document["environment"]["AIRFLOW_CONN_DC1"]) == document["connections"]["dc1"]
        assert document["catalog"]["shop"]["targets"]["gcp"]["conn_id"] == "gcp_prod"
        assert (tmp_path / "ca" / "ca.pem").is_file()
        assert httpx.get(f"{document['control_url']}/healthz", timeout=30).json()["status"] == "ok"
        ends(process, signal.SIGINT)
    finally:
        process.kill()


@pytest.mark.parametrize("command", ["schema", "platforms"])
def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path, command: str) -> None:
    process = start(tmp_path, command)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(30)) == ("", 128 + signal.SIGPIPE)
    process.stderr.close()


def test_validate_says_that_the_database_is_missing_not_that_the_catalog_is_empty(tmp_path: Path) -> None:
    process = start(tmp_path, "validate")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "Airflow's database cannot be read" in err
    assert "Traceback" not in err


def test_the_demo_takes_no_folder_that_holds_an_airflow(run: Run, tmp_path: Path) -> None:
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "airflow.db").touch()
    done = run("demo", "--folder", str(tmp_path))
    assert done.code == 2
    assert "holds the Airflow of an earlier demo; name another folder" in done.complaint
