"""What we read that somebody else wrote or may have spoilt: catalogs, run confs, files, journals, plans, events.

Each function makes one document from a `random.Random` and reads it with our own code; it returns whether it was
taken, and fails when anything but an error of ours came out, or an error that does not name its place, or a secret.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import yaml
from airflow.sdk import DAG

from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.catalog.parse import parse_catalog, parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import MultideployError, SpecError
from airflow_multideploy.factory.factory import _dag
from airflow_multideploy.factory.names import CATALOG_DAG
from airflow_multideploy.factory.service import service_dag
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.run import pull_plan
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import Journal, Run
from airflow_multideploy.release.plan import make_plan, release_id
from airflow_multideploy.release.rollback import WayBack
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.wait import Watch, follow
from airflow_multideploy.store import variables
from airflow_multideploy.testing.fake import FakeWorld, MemoryStore
from tests.bad_input.garbage import CANARIES, bent, bent_text, leaks, value

SECONDS = 10.0
"""A document that takes longer keeps a DAG processor, or a task, from its work."""
SHOP: dict[str, Any] = {
    "owner": "team-shop",
    "description": "the shop",
    "artifact": {"image": "registry.example.com/shop", "registry_conn_id": "registry"},
    "build": {"context": "/srv/shop", "args": {"A": "b"}, "builder": "docker"},
    "version": "1.0.0",
    "schedule": "0 10 * * 2-4",
    "tags": ["web"],
    "retries": 2,
    "success": {"policy": {"at_least": 2}},
    "rollback": {"strategy": "dependents", "cancel": "keep"},
    "targets": {
        "aws": {"platform": "aws_ecs", "conn_id": "aws_prod", "cluster": "main", "service": "shop", "timeout": 60},
        "gcp": {
            "platform": "gcp_cloud_run",
            "conn_id": "gcp_prod",
            "project": "p1",
            "location": "europe-west1",
            "service": "shop",
            "depends_on": ["aws", {"target": "azure", "when": "completed"}],
        },
        "azure": {"platform": "azure_web_app", "conn_id": "az", "resource_group": "rg", "site": "shop", "settle": 30.5},
        "onprem": {
            "platform": "http",
            "conn_id": "dc1",
            "critical": False,
            "depends_on": ["gcp"],
            "deploy": {
                "method": "PUT",
                "path": "/apps/${service}",
                "json": {"image": "${image}", "a": [1, {"b": "c"}]},
            },
            "operation": "operation.id",
            "status": {"path": "/operations/${operation}", "state": {"json": "state", "regex": "[a-z]+"}},
            "version": {"path": "/v", "header": "X-Version", "absent": [404]},
        },
    },
}
CONF: dict[str, Any] = {"version": "1.2.3", "targets": ["aws", "gcp"], "reason": "why", "dry_run": False, "force": True}
NAMES = ("shop", "shop", "shop", "Shop", "", "a" * 300, "плата", 7, None, True, ("a", "b"), "a\nb", "\x00", "\ud800")


def named(error: Exception, *names: str) -> None:
    """The error is ours, names its place, and shows no secret."""
    assert isinstance(error, MultideployError), f"{type(error).__name__}: {str(error)[:300]}"
    text, problems = str(error), error.problems if isinstance(error, SpecError) else (str(error),)
    assert all(": " in problem for problem in problems), problems
    for name in names:
        assert name in text, f"{name!r} is not named in {text[:300]!r}"
    shown = text + repr(error) + (repr(error.__cause__) if error.__cause__ else "")  # as a task's log shows it
    assert leaks(shown) is None, f"{leaks(shown)!r} stands in {shown[:600]!r}"
    assert max(map(len, problems)) < 1_200, f"{max(map(len, problems))} characters"
    text.encode()  # or no log can take it


def read(call: Callable[[], Any], *names: str) -> bool:
    """Whether it was taken; when not, the error is `named`."""
    began = time.monotonic()
    try:
        call()
    except Exception as error:
        named(error, *names)
        taken = False
    else:
        taken = True
    assert time.monotonic() - began < SECONDS, f"{time.monotonic() - began:.1f} s"
    return taken


def catalog(rng: random.Random) -> bool:
    """A service of a catalog, with defaults under it or without; taken ones have to make a DAG."""
    entry, name = bent(rng, SHOP), rng.choice(NAMES)
    defaults = rng.choice(
        (None, None, {"owner": "x"}, value(rng), bent(rng, {"owner": "a", "rollback": {"strategy": "all"}}))
    )

    def parse() -> None:
        service = parse_service(name, entry, defaults=defaults, config_type=config_type)
        assert service_dag(str(name), service).task_ids

    taken = read(parse, "service ", *([str(name)] if name == "shop" else []))
    if rng.random() < 0.1:  # whatever it is, the DAG file goes on
        dag = _dag(name, entry, defaults)  # type: ignore[arg-type]
        assert dag.dag_id in (str(name), CATALOG_DAG)
        assert leaks(str(dag.doc_md)) is None, dag.doc_md
    return taken


def whole_catalog(rng: random.Random) -> bool:
    """Several services at once: a broken one harms no other."""
    document = bent(rng, {"shop": SHOP, "pay": {"artifact": {"image": "r.test/pay"}, "targets": SHOP["targets"]}})

    def parse() -> None:
        found = parse_catalog(
            {**document, "whole": SHOP} if isinstance(document, dict) else document, config_type=config_type
        )
        assert "whole" in found.services
        for error in found.errors.values():
            named(error, "service ")

    return read(parse, "catalog")


def conf(rng: random.Random) -> bool:
    """What a run is asked for."""
    document = bent(rng, CONF)
    service = parse_service("shop", SHOP, config_type=config_type)
    if not isinstance(document, dict):
        document = {"version": document}

    def plan() -> None:
        made = make_plan("shop", service, document, dag_id="shop", run_id="r")
        json.dumps(made.dump(), allow_nan=False).encode()

    return read(plan, "service 'shop'", "conf.")


_YAML = (
    *(
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!python/object/apply:os.system ['true']",
        b"!!binary x",
        b"!!timestamp 2",
        b"!x y",
    ),
    *(b"!!set {a}", b"!!omap x", b"!!int x", b"!!float x", b"!!bool x", b"%YAML 9\n---\n", b"---\n", b"...\n", b"\t"),
    *(b"{", b"}", b"[", b"]", b": ", b"- ", b"'", b'"', b"? ", b"|\n", b">", b"#", b"=", b"\x00", b"\xff", b"0b"),
    *(b"1_000:60", b"2026-99-99", b".nan", b"1e999", b"password: ", b"shop:\n", "ключ: значение\n".encode()),
    *(b"[" * 3000, b"{a: " * 2000, b"- " * 4000, "\u2028\ud7ff".encode(), *(c.encode() for c in CANARIES)),
)
_BOMB = b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9) if letter > 97 else b"x")
    for letter in range(97, 107)
)


def file(rng: random.Random) -> bool:
    """A catalog file, from its bytes to its DAGs."""
    text = yaml.safe_dump({"services": {"shop": SHOP}, "defaults": {"owner": "x"}}, allow_unicode=True).encode()
    text = rng.choice((text, text, json.dumps({"shop": SHOP}).encode(), _BOMB + b"shop: {tags: *j}\n"))
    text = bent_text(rng, text, _YAML)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.yaml"
        path.write_bytes(text)

        def parse() -> None:
            entries, defaults = read_file(path)
            for name, entry in entries.items():
                dag = _dag(name, entry, defaults)
                assert leaks(str(dag.doc_md)) is None, dag.doc_md
                assert "Error: " not in (dag.description or ""), dag.description

        return read(parse, "catalog.yaml")


def variable(rng: random.Random) -> bool:
    """The index Variable, and a service's frozen config."""
    kept: dict[str, Any] = {
        variables.INDEX: rng.choice(({"shop": SHOP}, ["shop"])),
        variables.DEFAULTS: {"owner": "x"},
        f"{variables.ONE}shop": SHOP,
        f"{variables.FROZEN}shop": {"service": SHOP, "run_id": "r"},
    }
    key = rng.choice([k for k in kept if not isinstance(kept[k], list)])
    texts = {
        name: json.dumps(bent(rng, document, json_only=True) if name == key else document)
        for name, document in kept.items()
    }
    if rng.random() < 0.3:
        texts[key] = bent_text(rng, texts[key].encode(), _YAML).decode("utf-8", "replace").replace("\x00", "")
    known = {f"AIRFLOW_VAR_{name.upper()}": text for name, text in texts.items()}
    os.environ.update(known)

    def parse() -> None:
        entries, defaults = variables.read_catalog()
        variables.read_entry("shop")
        if (kept := variables.frozen("shop")) is not None:
            entries["shop"] = kept.service
        for name, entry in entries.items():
            assert _dag(name, entry, defaults).dag_id in (name, CATALOG_DAG)

    try:
        return read(parse, "Variable multideploy_")
    finally:
        for name in known:
            del os.environ[name]


def _recorded() -> list[dict[str, dict[str, Any]]]:
    """What real rollouts leave in a store: one under way, one that is done, one that went back."""
    kept = []
    for fate in ("under way", "done", "back"):
        world, store = FakeWorld(), MemoryStore()
        world.seed("shop/t1", "r.test/shop:1")
        platform, journal = world.platform("shop", "t1"), Journal(store)
        rollout = Rollout(platform, journal, world.clock, Run(dag_id="shop", run_id="run"))
        release = Release(service="shop", version="2", image="r.test/shop:2", release_id=release_id("shop", "run"))
        entry = rollout.begin(release)
        handle, deadline = entry.handle, entry.deadline
        assert handle is not None
        assert deadline is not None
        if fate != "under way":
            watch = Watch(deadline=deadline, interval=5)
            entry = rollout.conclude(entry, follow(partial(platform.observe, handle), watch=watch, clock=world.clock))
        if fate == "back":
            WayBack(platform, journal, world.clock).go(entry)
        journal.close("shop", "another run", 0)
        kept.append({key: store.get(key) for key in ("journal", "live", "bad", "closed")})
    return kept


RECORDED = _recorded()


def _spoilt(rng: random.Random) -> MemoryStore:
    store = MemoryStore()
    for key, document in rng.choice(RECORDED).items():
        spoilt = bent(rng, document, json_only=True) if rng.random() < 0.7 else document
        if spoilt is not None:
            store.set(key, spoilt)
    return store


def journal(rng: random.Random) -> bool:
    """A target's records in the asset state store."""
    kept = Journal(_spoilt(rng), "shop/t1")

    def parse() -> None:
        kept.read()
        kept.live()
        kept.bad()
        kept.closed("shop", "run", 0)
        kept.remember_bad("r.test/shop:2", "why")
        kept.forgive("r.test/shop:1")

    return read(parse, "shop/t1", "journal")


def interrupted(rng: random.Random) -> bool:
    """A rollout, or its way back, that goes on from spoilt records."""
    world, store = FakeWorld(), _spoilt(rng)
    world.seed("shop/t1", "r.test/shop:1")
    platform, kept = world.platform("shop", "t1"), Journal(store, "shop/t1")
    run = rng.choice(("run", "other"))
    release = Release(service="shop", version="3", image="r.test/shop:3", release_id=release_id("shop", run))

    def goes_on() -> None:
        Rollout(platform, kept, world.clock, Run(dag_id="shop", run_id=run)).begin(release)
        entry = kept.read()
        if entry is not None:
            WayBack(platform, kept, world.clock).go(entry)

    return read(goes_on, "shop/t1")


def plan(rng: random.Random) -> bool:
    """A run's plan, as a later task pulls it from the record; in XCom it may be another one."""
    service: Service = parse_service("shop", SHOP, config_type=config_type)
    made = make_plan("shop", service, CONF, dag_id="shop", run_id="r").dump()
    document, store, strict = bent(rng, made, json_only=True), MemoryStore(), rng.random() < 0.5
    shown = document if rng.random() < 0.7 else bent(rng, made, json_only=True)
    store.set(f"plan.{release_id('shop', 'run')}", document)
    ti = SimpleNamespace(xcom_pull=lambda **_: shown, dag_id="shop")
    context: Any = {"ti": ti, "run_id": "run", "asset_state_store": defaultdict(lambda: store)}

    def pull() -> None:
        found: Any = pull_plan(context, "shop", "plan", strict=strict)
        for target in found.selected if found else ():
            found.config(target)

    return read(pull, "shop")


def event(rng: random.Random) -> bool:
    """What the triggerer's event brings to a task that resumes."""
    document = {"state": "healthy", "reason": "serves", "revision": "r1", "progress": 1.0, "verified": True}
    spoilt = bent(rng, document, json_only=True)
    store = MemoryStore()
    config = {"platform": "http", "conn_id": "none"}
    store.set("t1.journal", {**RECORDED[0]["journal"], "config": config})

    class Stores(dict[Any, Any]):
        def __missing__(self, asset: Any) -> MemoryStore:
            return store

    ti = SimpleNamespace(xcom_push=lambda *_, **__: None)
    context: Any = {
        "asset_state_store": Stores(),
        "run_id": "run",
        "dag_run": SimpleNamespace(clear_number=0),
        "ti": ti,
    }
    return read(lambda: EVENTS.resume(context, spoilt), "shop/t1")


EVENTS = DeployOperator(task_id="t1", service_name="shop", target="t1", image="r.test/shop:2", dag=DAG("shop"))

KINDS: dict[str, Callable[[random.Random], bool]] = {
    "catalog": catalog,
    "whole catalog": whole_catalog,
    "conf": conf,
    "catalog file": file,
    "variable": variable,
    "journal": journal,
    "interrupted rollout": interrupted,
    "plan": plan,
    "event": event,
}
"""Kinds of our own documents."""
