"""``airflow multideploy init`` and ``doctor`` against Airflow's own database, and whose turn a release is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.cli.doctor import _missing
from airflow_multideploy.operators.queue import covering, passed_over
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.release.plan import make_plan
from airflow_multideploy.sandbox.airflow import LocalAirflow

TARGET = {"platform": "aws_ecs", "conn_id": "aws_prod", "cluster": "main", "service": "shop"}
Run = Callable[..., tuple[int, Any]]


def entry(**target: Any) -> dict[str, Any]:
    return {"artifact": {"image": "registry.example.com/shop"}, "targets": {"aws": {**TARGET, **target}}}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """A database, and nothing that runs on it."""
    home = tmp_path_factory.mktemp("airflow")
    connections = {"aws_prod": {"conn_type": "aws"}}
    local = LocalAirflow(home, Path("dags").resolve(), connections=connections)
    local.prepare()
    yield local
    local.stop()


@pytest.fixture
def run(airflow: LocalAirflow, tmp_path: Path) -> Run:
    """Runs a command on a catalog; gives its exit code and what it printed as JSON."""

    def command(name: str, catalog: dict[str, Any], *argv: str, **environment: str) -> tuple[int, Any]:
        file = tmp_path / "catalog.yaml"
        file.write_text(yaml.safe_dump(catalog))
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "multideploy", name, *argv, "--file", str(file), "-o", "json"],
            env={**airflow.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    return command


def test_init_tells_asks_makes_and_corrects(run: Run) -> None:
    one = {"shop": entry(lock={"name": "cluster-main", "slots": 2})}

    def action(*argv: str, catalog: dict[str, Any] = one) -> tuple[int, list[str]]:
        code, steps = run("init", catalog, *argv)
        return code, [step["action"] for step in steps]

    assert action("--check") == (1, ["create"])
    assert action() == (1, ["create"]), "nobody said yes"
    assert action("--yes") == (0, ["create"])
    assert action("--yes") == (0, ["keep"])
    assert action("--check") == (0, ["keep"])
    three = {"shop": entry(lock={"name": "cluster-main", "slots": 3})}
    assert action("--check", catalog=three) == (1, ["correct"])
    assert action("--yes", catalog=three) == (0, ["correct"])
    other = {"site": entry(lock="elsewhere")}  # a second catalog file forgets nothing of the first
    assert action("--yes", catalog=other) == (0, ["create"])
    assert action("--check", catalog=three) == (0, ["keep"])
    assert action("--check", catalog=other) == (0, ["keep"])
    spoilt = {"AIRFLOW_VAR_MULTIDEPLOY_POOLS": "[1]"}
    assert [run("init", other, option, **spoilt)[0] for option in ("--check", "--yes")] == [1, 0], "it mends it"
    both = {**one, "site": entry(lock={"name": "cluster-main", "slots": 5})}
    code, said = run("init", both, "--yes")
    assert code == 1
    assert "'cluster-main' has 2 slots here and 5 in site/aws" in said


def test_doctor_finds_each_thing_that_would_make_a_release_fail_or_hang(run: Run) -> None:
    catalog = {
        "shop": entry(conn_id="nobody", lock="missing"),
        "site": {**entry(), "deferrable": False},
        "bad": entry(clutser="x"),
    }
    environment = {
        "AIRFLOW_VAR_MULTIDEPLOY_FREEZES": json.dumps([{"name": "x", "weekly": {"days": ["never"]}}]),
        "AIRFLOW__MULTIDEPLOY__RECONCILE": "sometimes",
    }
    code, findings = run("doctor", catalog, **environment)
    assert code == 1
    found = {each["place"]: each for each in findings}
    assert all(each["reason"] and each["remedy"] for each in findings)
    assert {place for place, each in found.items() if each["severity"] == "error"} == {
        "Connection nobody",
        "Variable multideploy_freezes",
        "Variable multideploy_pools",
        "[multideploy] reconcile",
        "pool multideploy_missing",
        "scheduler",
        "service bad",
        "triggerer",
    }
    assert "shop/aws needs it" in found["Connection nobody"]["reason"]
    assert "Airflow knows no DAG" in found["service site"]["reason"]


def test_doctor_finds_a_freeze_that_is_about_nothing_and_a_calendar_that_cannot_be_read(run: Run) -> None:
    yearly = {"from": "12-20", "to": "01-03"}
    freezes = [
        {"name": "xmas", "yearly": yearly, "platforms": ["aws-ecs"]},
        {"name": "shop", "yearly": yearly, "services": ["sho*"], "platforms": ["aws_*"]},
        {"name": "company", "icalendar": "/no/such.ics", "services": ["site"]},
    ]
    _, findings = run("doctor", {"shop": entry()}, AIRFLOW_VAR_MULTIDEPLOY_FREEZES=json.dumps(freezes[:2]))
    (found,) = [each for each in findings if each["place"] == "Variable multideploy_freezes"]
    assert found["severity"] == "warning"
    assert found["reason"] == "freeze 'xmas': platforms: 'aws-ecs' fits nothing in the catalog"
    _, findings = run("doctor", {"shop": entry()}, AIRFLOW_VAR_MULTIDEPLOY_FREEZES=json.dumps(freezes))
    (found,) = [each for each in findings if each["place"] == "Variable multideploy_freezes"]
    assert (found["severity"], "/no/such.ics cannot be read" in found["reason"]) == ("error", True)


def test_services_that_wait_for_each_other_or_for_nobody_are_found(run: Run) -> None:
    catalog = {
        "a": {**entry(), "promote": {"from": "b"}},
        "b": {**entry(), "promote": {"from": "a"}},
        "c": {**entry(), "promote": {"from": "b"}},
        "d": {**entry(), "promote": {"from": "nosuch"}, "requires": {"neither": "1.4", "c": ">=1"}},
        "e": {**entry(), "requires": {"f": "1"}},
        "f": {**entry(), "requires": {"e": "1"}},
    }
    _, findings = run("doctor", catalog)
    said = {(each["place"], each["reason"]) for each in findings if each["place"].startswith("service ")}
    assert {(place, reason) for place, reason in said if "no DAG" not in reason} == {
        ("service a", "promote.from: runs in a circle: a → b → a"),
        ("service b", "promote.from: runs in a circle: b → a → b"),
        ("service d", "promote.from: the catalog has no service 'nosuch'"),
        ("service d", "requires.neither: the catalog has no service 'neither'"),
        ("service e", "requires: runs in a circle: e → f → e"),
    }


def test_doctor_needs_no_triggerer_where_nobody_waits_there(run: Run) -> None:
    _, findings = run("doctor", {"site": {**entry(), "deferrable": False}})
    places = {each["place"]: each["severity"] for each in findings}
    assert "triggerer" not in places
    assert places["[multideploy] reconcile"] == "warning", "it is off"


def test_a_platform_whose_extra_is_not_installed_is_found() -> None:
    requires = ["pytest>=8; extra == 'aws'", "pytest>=999; extra == 'aws'", "no-such-thing; extra == 'aws'", "pyyaml"]
    assert list(_missing(requires, "aws")) == ["pytest", "no-such-thing"]
    assert not list(_missing(requires, "gcp"))


def test_the_commands_say_what_is_wrong_with_what_they_were_given(run: Run) -> None:
    code, said = run("plan", {"shop": entry()}, "shop", "--version", "1")
    assert code == 2
    assert "Airflow knows no DAG that releases it" in said
    code, said = run("plan", {"shop": entry()}, "shpo", "--version", "1")
    assert code == 2
    assert "service 'shpo': is not in " in said
    code, told = run("plan", {"shop": entry()}, "shop", "--targets", "gcp", "--param", "colour=red")
    assert code == 1
    assert [why.partition(":")[0] for why in told["refusals"]] == ["conf.colour", "conf.version", "conf.targets"]


# --- whose turn


def shop(**more: Any) -> Service:
    document = {**entry(), "params": {"region": {"default": "eu"}}, **more}
    document["targets"] = {name: {**TARGET, "service": name} for name in ("a", "b")}
    return parse_service("shop", document, config_type=config_type)


@pytest.mark.parametrize(
    ("mine", "theirs", "covered"),
    [
        ({}, {"version": "3"}, True),
        ({}, {"version": "3", "targets": ["a"]}, False),
        ({"targets": ["a"]}, {"version": "3", "targets": ["a"]}, True),
        ({}, {"version": "3", "dry_run": True}, False),
        ({}, {}, False),
        ({}, {"version": "3", "nonsense": 1}, False),
    ],
)
def test_a_release_gives_way_only_to_one_that_does_all_of_it(
    mine: dict[str, Any], theirs: dict[str, Any], covered: bool
) -> None:
    service = shop(when_busy="supersede")
    plan = make_plan("shop", service, {"version": "2", **mine}, dag_id="shop", run_id="r1")
    other = covering(plan, service, {"dag_id": "shop", "run_id": "r2", "conf": theirs})
    assert (other is not None) is covered


def test_a_rollback_gives_way_to_nobody() -> None:
    service = shop(when_busy="supersede")
    plan = make_plan("shop", service, {"version": "1", "rollback": True}, dag_id="shop", run_id="r1")
    context: Any = {"dag_run": SimpleNamespace(clear_number=0)}  # no more: nobody is asked
    assert passed_over(context, plan, service) == ""
    with pytest.raises(KeyError):
        passed_over(context, plan.model_copy(update={"rollback": False}), service)
