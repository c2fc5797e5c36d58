"""What starts a release of one environment, and what it waits for: the DAGs, and what the plan reads of others."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Context
from airflow.sdk.api.datamodels._generated import AssetReferenceAssetEventDagRun
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
from airflow.sdk.execution_time.context import OutletEventAccessors, TriggeringAssetEventsAccessor

from airflow_multideploy.catalog.environments import expand
from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.factory.factory import service_dags
from airflow_multideploy.operators.clock import TaskClock
from airflow_multideploy.operators.plan import PlanOperator
from airflow_multideploy.operators.promotion import hold, promoted, tell
from airflow_multideploy.operators.run import journal
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import Phase
from airflow_multideploy.release.plan import Plan, make_plan
from airflow_multideploy.release.status import TargetResult
from airflow_multideploy.release.verdict import Rules, judge
from airflow_multideploy.store.assets import journal_asset, service_asset, target_asset
from airflow_multideploy.testing.fake import MemoryStore

TARGETS = {name: {"platform": "http", "conn_id": name} for name in ("dc1", "dc2")}
PAY = {"artifact": {"image": "registry.test/pay"}, "targets": TARGETS}
SHOP = {
    "artifact": {"image": "registry.test/shop"},
    "targets": TARGETS,
    "environments": {
        "dev": {},
        "prod": {
            "targets": {"dc1": None},
            "promote": {"from": "dev", "bake": 60},
            "requires": {"pay": {"version": ">=2", "wait": 600}},
        },
    },
}
CATALOG = {"shop": SHOP, "pay": PAY}
NOW = 1_800_000_000.0


def layouts(folder: Path) -> dict[str, tuple[dict[str, Any], Path | None]]:
    """The same catalog as Variables, in three ways, and as a file."""
    file = folder / "catalog.json"
    file.write_text(json.dumps(CATALOG))
    return {
        "mapping": ({"services": CATALOG}, None),
        "list": ({"services": list(CATALOG), **{f"service_{name}": each for name, each in CATALOG.items()}}, None),
        "shards": ({"services": {"shop": "a", "pay": "b"}, "services_a": {"shop": SHOP}, "services_b": CATALOG}, None),
        "file": ({}, file),
    }


@pytest.mark.parametrize("layout", ["mapping", "list", "shards", "file"])
def test_a_dag_for_each_environment_and_a_task_builds_only_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layout: str
) -> None:
    values, file = layouts(tmp_path)[layout]
    for key, value in {"defaults": {}, "frozen_shop-prod": None, **values}.items():
        monkeypatch.setenv(f"AIRFLOW_VAR_MULTIDEPLOY_{key.upper()}", json.dumps(value))
    dags = service_dags(file)
    assert set(dags) == {"shop-dev", "shop-prod", "pay"}
    prod = dags["shop-prod"]
    assert {"env:prod", "multideploy"} <= prod.tags
    assert prod.timetable.asset_condition == service_asset("shop-dev")  # type: ignore[attr-defined]
    assert prod.params.get_param("version").resolve() is None, "it comes with the event"
    plan = prod.get_task("plan")
    assert {asset.name for asset in plan.inlets} == {"shop-prod/journal", "shop-dev/journal", "pay/journal"}
    assert {asset.name for asset in prod.get_task("finalize").outlets} == {"shop-prod", "shop-prod/dc2"}
    assert isinstance(plan, PlanOperator)
    assert plan._targets_of("pay") == ("dc1", "dc2")
    with pytest.raises(SpecError, match=r"requires.mars: the catalog has no such service"):
        plan._targets_of("mars")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "shop-prod")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "dc2.deploy")
    only = service_dags(file)
    assert {name: dag.task_ids for name, dag in only.items()} == {"shop-prod": prod.task_ids}


class Clock(TaskClock):
    """Stands at `NOW`."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return NOW


class Bench:
    """A run of ``shop-prod`` that is being planned."""

    def __init__(self, *, age: float = 100.0, running: float = 0.0, **said: Any) -> None:
        stores: dict[Any, MemoryStore] = defaultdict(MemoryStore)
        began = datetime.fromtimestamp(NOW - running, UTC)
        alone = SimpleNamespace(dag_id="shop-prod", task_id="plan", get_dr_count=lambda **_: 0)  # no run is queued
        run = SimpleNamespace(start_date=began)
        self.context: Any = {"asset_state_store": stores, "dag_run": run, "ti": alone}
        self.events = [self.event(age, **said)]

    def event(self, age: float, **said: Any) -> AssetEventDagRunReferenceResult:
        extra = {
            "service": "shop-dev",
            "environment": "dev",
            "status": "succeeded",
            "version": "2",
            "image": "registry.test/shop:2",
            "dag_id": "shop-dev",
            "run_id": "run-2",
            "release_id": "r2",
            "reason": "sale",
            "targets": {"dc1": "succeeded", "dc2": "unchanged"},
            **said,
        }
        asset = service_asset("shop-dev")
        return AssetEventDagRunReferenceResult(
            asset=AssetReferenceAssetEventDagRun(name=asset.name, uri=asset.uri, extra={}),
            extra=extra,
            source_task_id="finalize",
            source_dag_id="shop-dev",
            source_run_id=str(extra["run_id"]),
            source_map_index=-1,
            source_aliases=[],
            timestamp=datetime.fromtimestamp(NOW - age, UTC),
        )

    def live(self, service: str, version: str) -> None:
        for target in TARGETS:
            image = f"registry.test/{service.partition('-')[0]}:{version}"
            release = Release(service=service, version=version, image=image, release_id="r")
            journal(self.context, service, target).remember_live(release)

    @property
    def service(self) -> Service:
        return parse_service("shop-prod", expand(CATALOG)["shop-prod"], config_type=config_type)

    def plan(self) -> Plan:
        self.context["triggering_asset_events"] = TriggeringAssetEventsAccessor.build(self.events)
        source = promoted(Context(self.context), self.service.promote)
        assert source is not None
        plan = make_plan("shop-prod", self.service, {"version": source.version}, dag_id="shop-prod", run_id="x")
        return plan.model_copy(update={"source": source})

    def waits(self, **changes: Any) -> float:
        """Seconds until it looks again; 0: it may begin."""
        operator, service = PlanOperator(task_id="plan", name="shop-prod", service=None), self.service
        plan = self.plan().model_copy(update=changes)
        try:
            hold(operator, self.context, plan, service, Clock(), targets_of=lambda _: TARGETS)
        except TaskDeferred as deferred:
            return float(deferred.trigger.moment.timestamp() - NOW)
        return 0.0


def test_the_newest_event_counts_and_says_where_the_release_comes_from() -> None:
    bench = Bench()
    bench.events += [bench.event(10, version="3", run_id="run-3"), bench.event(50, version="1", run_id="run-1")]
    source = bench.plan().source
    assert source is not None
    assert (source.version, source.at, source.said) == ("3", NOW - 10, "promoted from shop-dev, run run-3: sale")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"status": "degraded"}, "is degraded, which is promoted only with promote.degraded"),
        ({"rollback": True}, "a rollback is not promoted"),
        ({"version": None}, "version: "),
    ],
)
def test_what_is_not_to_be_promoted_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        Bench(**said).plan()
    assert "run 'run-2'" in str(caught.value)


def test_a_run_that_somebody_started_by_hand_promotes_nothing() -> None:
    bench = Bench()
    bench.context["triggering_asset_events"] = TriggeringAssetEventsAccessor.build([])
    assert promoted(bench.context, bench.service.promote) is None


def test_it_bakes_until_the_event_is_old_enough() -> None:
    bench = Bench(age=20, running=160)
    bench.live("shop-dev", "2")
    bench.live("pay", "2.0")
    assert bench.waits() == 20, "it looks ever more seldom whether somebody asks for a rollback"
    bench.events = [bench.event(50)]
    assert bench.waits() == 10
    bench.events = [bench.event(60)]
    assert bench.waits() == 0


def test_what_the_source_no_longer_runs_is_refused_however_long_it_baked() -> None:
    for age in (20, 100):
        bench = Bench(age=age)
        bench.live("shop-dev", "3")
        with pytest.raises(
            SpecError, match="2 is no longer what shop-dev runs: shop-dev/dc1 runs 3; shop-dev/dc2 runs 3"
        ):
            bench.waits()


def test_it_waits_for_a_service_that_it_requires_but_not_for_ever() -> None:
    bench = Bench(running=5)
    bench.live("shop-dev", "2")
    bench.live("pay", "1.9")
    assert bench.waits() == 10
    assert bench.waits(rollback=True) == 0, "the way back is not held up"
    assert bench.waits(dry_run=True) == 0, "a plan is not either"
    bench.live("pay", "2.1")
    assert bench.waits() == 0
    late = Bench(running=601, age=700)
    late.live("shop-dev", "2")
    with pytest.raises(SpecError, match=r"requires.pay: >=2 is not live there: dc1 runs nothing that we know of; "):
        late.waits()


def test_the_time_for_which_it_waits_begins_when_it_has_baked() -> None:
    bench = Bench(running=650, age=100)
    bench.live("shop-dev", "2")
    assert bench.waits() == 10
    assert journal_asset("pay") in bench.context["asset_state_store"]


def test_only_targets_that_run_the_release_have_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_SERVICES", json.dumps({"pay": PAY}))
    monkeypatch.setenv("AIRFLOW_VAR_MULTIDEPLOY_DEFAULTS", "{}")
    finalize = service_dags()["pay"].get_task("finalize")
    service = parse_service("pay", PAY, config_type=config_type)
    plan = make_plan("pay", service, {"version": "2"}, dag_id="pay", run_id="x")
    results = {
        "dc1": TargetResult(target="dc1", phase=Phase.SUCCEEDED, deployed=Phase.SUCCEEDED, touched=True),
        "dc2": TargetResult(target="dc2", phase=Phase.ROLLED_BACK, deployed=Phase.FAILED, touched=True),
    }
    rules = Rules(policy="critical")
    verdict = judge(results, service.targets, service="pay", version="2", rules=rules)
    context: Any = {"run_id": "x", "outlet_events": OutletEventAccessors()}
    tell(finalize, context, verdict.model_copy(update={"status": "degraded"}), plan.release, plan)
    assert {asset.name for asset in finalize.outlets} == {"pay", "pay/dc1"}
    said = context["outlet_events"][service_asset("pay")].extra
    assert (said["status"], said["targets"]) == ("degraded", {"dc1": "succeeded", "dc2": "rolled_back"})
    assert context["outlet_events"][target_asset("pay", "dc1")].extra["status"] == "succeeded"
