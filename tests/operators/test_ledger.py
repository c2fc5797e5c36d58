"""The ledger as tasks keep it, on the simulated Airflow, and as ``airflow multideploy history`` shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.cli.terminal import print_table
from airflow_multideploy.release.contract import Release
from airflow_multideploy.release.journal import Entry, Journal, Phase
from airflow_multideploy.release.ledger import COLUMNS, RUNNING, Ledger, Record, TargetRecord, agreed
from airflow_multideploy.release.plan import release_id
from airflow_multideploy.release.status import Status
from airflow_multideploy.sandbox.airflow import LocalAirflow
from airflow_multideploy.testing.fake import MemoryStore
from tests.simulation.play import SERVICE, Story, _run, installed, play, service_of
from tests.simulation.schedules import Schedule, Trouble, schedules

# --- kept by tasks


@pytest.fixture(scope="module")
def fake() -> Iterator[None]:
    """The platform kind ``fake`` is installed."""
    with installed():
        yield


def ledger(story: Story) -> Ledger:
    return Ledger(story.airflow.store(f"{SERVICE}/journal"), SERVICE)


def record(story: Story, run_id: str = "run1") -> Record:
    found = ledger(story).find(SERVICE, run_id)
    assert found is not None
    return found


def test_a_release_is_kept_with_who_what_and_how_it_ended(fake: None) -> None:
    story = play(Schedule("chain2"))
    kept, said = record(story), story.airflow.runs[0].value("finalize")
    assert (kept.version, kept.image, kept.actor, kept.status) == ("2", "registry.test/shop:2", "manual", "succeeded")
    assert [(each.target, each.platform, each.phase) for each in kept.targets] == [
        (result["target"], "fake", "succeeded") for result in said["results"]
    ]
    assert kept.ended_at is not None
    assert kept.ended_at > kept.started_at
    assert len(kept.config_hash) == 12


def test_who_approved_and_overrode_is_not_what_somebody_put_into_xcom(fake: None) -> None:
    story = play(Schedule("one"))
    run = story.airflow.runs[0]
    approval = {"gate": "prod", "choice": "approve", "by": "bob", "at": 7.0}
    freeze = {"what": "freeze", "by": "bob", "at": 8.0, "reason": "outage"}
    run.tasks["plan"].xcom |= {"approval": json.dumps([approval]), "override": json.dumps(freeze)}
    story.airflow.clear(run.tasks["finalize"])
    story.airflow.drain()
    kept = record(story)
    assert (kept.status, kept.approvals, kept.overrides) == ("succeeded", (), ())


def test_whatever_happens_the_ledger_agrees_with_what_was_said_and_with_the_journals(fake: None) -> None:
    """Once somebody came after a run, its record needs no more agreement; and a verdict is not forgotten."""
    seen: Counter[bool] = Counter()
    coming = (schedule for schedule in schedules(3000, 5) if schedule.after and "clear" not in schedule.after)
    for schedule in islice(coming, 150):
        story = play(schedule)
        first = story.airflow.runs[schedule.before]
        kept, said = record(story), first.value("finalize")
        if said is not None and "; later " not in kept.outcome:
            assert kept.status == said["status"], schedule
        journals = {t: Journal(ledger(story)._store, prefix=f"{t}.").read() for t in schedule.targets}
        entries = {target: entry for target, entry in journals.items() if entry is not None}
        assert agreed(kept, entries) == kept, schedule
        seen["; later " in kept.outcome] += 1
    assert min(seen[True], seen[False]) > 3, "both happened"


DIES = (Trouble("finalize", "start", nth=0),)


@pytest.mark.parametrize("after", ["again", "reconciler", "reconcile"])
def test_a_run_that_never_said_how_it_ended_is_closed_by_whoever_comes_next(fake: None, after: str) -> None:
    story = play(Schedule("one", rollbacks=("fails",), deploys=("fails",), troubles=DIES, after=after))
    assert story.airflow.runs[0].value("finalize") is None
    kept = record(story)
    expected = ("interrupted", "rollback_failed") if after == "again" else ("rolled_back", "rolled_back")
    assert (kept.status, kept.targets[0].phase) == expected
    if after != "reconciler":
        assert [each.run_id for each in ledger(story).records()] == ["run2", "run1"]


def test_a_run_that_died_before_it_touched_anything_is_closed_too(fake: None) -> None:
    troubles = (Trouble("plan", "ledger", nth=2), *DIES)
    kept = record(play(Schedule("one", retries=0, troubles=troubles, after="release")))
    assert (kept.status, kept.targets[0].phase) == ("interrupted", Phase.PENDING)


@pytest.mark.parametrize("task", ["plan", "finalize"])
def test_a_task_that_dies_right_after_it_kept_the_record_is_as_if_it_had_not(fake: None, task: str) -> None:
    story = play(Schedule("one", troubles=(Trouble(task, "ledger", 1, "crash"),)))
    assert story.met[task, "ledger"] > 1
    assert [(each.run_id, each.status) for each in ledger(story).records()] == [("run1", "succeeded")]


def test_a_spoilt_ledger_changes_nothing_about_a_release(fake: None, caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule("one", before=True)
    service, story = service_of(schedule), play(schedule)
    store = story.airflow.store(f"{SERVICE}/journal")
    store.set("ledger", {"releases": "none"})
    run = _run(story, service, "run9", "9")
    assert (run.state, run.value("finalize")["status"]) == ("success", "succeeded")
    assert "the ledger could not be kept; the release goes on" in caplog.text


def test_a_refused_release_is_kept_with_why_and_a_dry_run_is_not(fake: None) -> None:
    schedule = Schedule("one")
    service, story = service_of(schedule), play(schedule)
    _run(story, service, "dry", "3", dry_run=True)
    _run(story, service, "refused", "3", verison="4", reason="hurry")
    assert [each.run_id for each in ledger(story).records()] == ["refused", "run1"]
    kept = record(story, "refused")
    assert (kept.status, kept.version, kept.reason) == ("not_started", "3", "hurry")
    assert "conf.verison: unknown key" in kept.outcome


# --- shown by the command

SEED = """
import json, sys
from airflow.models.asset import AssetModel
from airflow.models.asset_state_store import AssetStateStoreModel
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
with create_session() as session:
    for service, kept in json.load(sys.stdin).items():
        asset = AssetModel(name=f"{service}/journal", uri=f"multideploy://{service}/journal", group="multideploy")
        session.add(asset)
        session.flush()
        for key, value in kept.items():
            session.add(AssetStateStoreModel(asset_id=asset.id, key=key, value=json.dumps(value)))
    session.add(DagRun(dag_id="shop", run_id="now", run_type="manual", state="running"))
"""


def a_record(run: str, at: float, **more: Any) -> Record:
    known = {"service": "shop", "dag_id": "shop", "version": "1.0", "actor": "ann", "status": Status.SUCCEEDED, **more}
    return Record(release_id=release_id("shop", run), run_id=run, started_at=at, **known)


def kept_state() -> dict[str, Any]:
    """Releases at hours 0, 1, …: good, failed, spoilt, kept elsewhere, dead, under way."""
    store, hour = MemoryStore(), 3600.0
    book = Ledger(store, "shop")
    aws = TargetRecord(target="aws", platform="aws_ecs", phase=Phase.SUCCEEDED, deployed=Phase.SUCCEEDED, touched=True)
    book.keep(a_record("good", 0, targets=(aws,), reason="sale", digest="sha256:a", ended_at=61.0))
    book.keep(a_record("refused", hour, version="1.1", status=Status.NOT_STARTED, outcome="no such Connection"))
    for at, run in enumerate(("spoilt", "elsewhere"), start=2):
        book.keep(a_record(run, at * hour))
    store.set(f"ledger.{release_id('shop', 'spoilt')}", {"surprise": 1})
    store.set(f"ledger.{release_id('shop', 'elsewhere')}", {"__airflow_state_ref__": "s3://bucket/key"})
    book.keep(a_record("dead", 4 * hour, status=RUNNING, targets=(TargetRecord(target="aws", platform="aws_ecs"),)))
    release = Release(service="shop", version="1.0", image="i:1", release_id=release_id("shop", "dead"))
    known: Any = {"config": {"platform": "aws_ecs"}, "release": release, "dag_id": "shop", "run_id": "dead"}
    entry = Entry(service="shop", target="aws", phase=Phase.DEPLOYING, touched=True, reason="503", **known)
    Journal(store, prefix="aws.").write(entry)
    book.keep(a_record("now", 5 * hour, status=RUNNING))
    return dict(store._kept)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of an Airflow with a database in which services have a ledger."""
    airflow = LocalAirflow(tmp_path_factory.mktemp("home"), Path(__file__).parent)
    airflow.prepare()
    kept = {"shop": {key: json.loads(text) for key, text in kept_state().items()}, "idle": {}}
    seed = [sys.executable, "-c", SEED]
    subprocess.run(seed, input=json.dumps(kept), text=True, env=airflow.environment, check=True, capture_output=True)
    return airflow.environment


def shown(home: dict[str, str], *argv: str, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "airflow", "multideploy", "history", *argv]
    env = {**home, "COLUMNS": "250", "TZ": "Asia/Tokyo", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_history_shows_every_release_and_what_cannot_be_read(home: dict[str, str]) -> None:
    code, out, _ = shown(home, "shop", "-o", "json")
    found = json.loads(out)
    assert code == 1
    assert [each["run_id"] for each in found] == ["now", "dead", "elsewhere", "spoilt", "refused", "good"]
    assert [each["status"] for each in found] == [
        "running",
        "interrupted",
        "spoilt",
        "spoilt",
        "not_started",
        "succeeded",
    ]
    dead, elsewhere, spoilt, good = found[1], found[2], found[3], found[5]
    assert [(t["target"], t["phase"], t["reason"]) for t in dead["targets"]] == [("aws", "deploying", "503")]
    assert "[workers] state_store_backend" in elsewhere["outcome"]
    assert "delete that key of the asset multideploy://shop/journal" in spoilt["outcome"]
    assert (good["actor"], good["reason"], good["digest"], good["ended_at"]) == ("ann", "sale", "sha256:a", 61.0)


class Elsewhere:
    """A state store backend of the workers."""

    def deserialize_asset_state_store_from_ref(self, stored: str) -> Any:
        """The record."""
        assert stored == "s3://bucket/key"
        return a_record("elsewhere", 3 * 3600.0, version="9.9").dump()


def test_history_as_a_table_of_some_with_what_the_workers_keep_elsewhere(home: dict[str, str]) -> None:
    period = ("--since", "1970-01-01T03:00", "--until", "1970-01-01T05:00+01:00", "--limit", "2")
    backend = {
        "AIRFLOW__WORKERS__STATE_STORE_BACKEND": f"{__name__}.Elsewhere",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    code, out, err = shown(home, "shop", *period, **backend)
    assert code == 0, err
    head, _, line = (line for line in out.splitlines() if line.strip())
    assert tuple(cell.strip() for cell in head.split("|")) == COLUMNS
    assert [cell.strip() for cell in line.split("|")][:4] == ["1970-01-01 03:00:00Z", "9.9", "succeeded", "ann"]


def test_what_people_write_in_brackets_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"reason": "[/urgent] fix [hot] JIRA-7"}])
    assert "[/urgent] fix [hot] JIRA-7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("shpo",), 2, "error: service 'shpo': Airflow knows no DAG that releases it; there are: idle, shop; see that"),
        (("shop", "--since", "noon"), 2, "error: --since: is no ISO 8601 date or time; write one such as"),
        (("idle", "-o", "json"), 0, ""),
    ],
)
def test_history_of_nothing(home: dict[str, str], argv: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = shown(home, *argv)
    assert (got, out.strip()) == (code, "" if code else "[]")
    assert says in err


def test_history_says_that_there_is_no_database(home: dict[str, str], tmp_path: Path) -> None:
    code, out, err = shown(home, "shop", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{tmp_path}/none.db")
    assert (code, out) == (2, "")
    assert "Airflow's database cannot be read (no such table: asset); run `airflow db migrate`" in err
