"""Cloud Functions against its stand-in: the public contract, and what is special to Cloud Functions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.gcp import GcpCloudFunctionsDeployOperator
from airflow_multideploy.platforms.gcp import calls as gcp_calls
from airflow_multideploy.platforms.gcp.cloud_functions_judge import RELEASE_LABEL, judge
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.release.wait import persist
from airflow_multideploy.sandbox.world import RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract, QuickClock
from tests.stand_ins.gcp_cloud_functions import BUCKET, GcpCloudFunctionsStandIn
from tests.stand_ins.google_api import Violation, discovery

KIND = "gcp_cloud_functions"
CONFIG = {"platform": KIND, "conn_id": "c", "project": "proj-1", "location": "europe-west1", "function": "shop"}
NAME = "projects/sandbox-project/locations/europe-west1/functions/shop"


class TestGcpCloudFunctions(PlatformContract):
    """The public contract, and Cloud Functions' own behaviour. All that passes is judged by Google's documents."""

    rollout_seconds = 0.2

    port = 0

    def make_stand_in(self, world: World) -> GcpCloudFunctionsStandIn:
        """At the same address each time: Airflow learns each Connection's secrets for its logs, which takes a while."""
        stand_in = GcpCloudFunctionsStandIn(world, port=type(self).port)
        type(self).port = stand_in.port
        return stand_in

    @pytest.fixture(autouse=True)
    def _contract_kept(self, stand_in: GcpCloudFunctionsStandIn) -> Iterator[None]:
        yield
        assert stand_in.violations == []

    def function(self, stand_in: GcpCloudFunctionsStandIn) -> Any:
        return stand_in.functions[NAME]

    def test_a_rollout_that_never_ends_can_be_rolled_back(self, stand_in: Any, world: World, mode: str) -> None:
        """Not before it ends: the API takes no second change while one is under way and cannot cancel it. So the way
        back says what it waits for, writes nothing, and goes on when the build's time-out has ended it."""
        world.rollout_faults.append(RolloutFault(KIND, "hangs"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=0.3)
        assert seen.state is State.FAILED
        writes = len(world.calls_of(KIND, writes=True))
        with pytest.raises(PlatformError, match=r"update is still under way .*operation-1") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert caught.value.retryable
        assert caught.value.retry_after == 1
        assert stand_in.live(RESOURCE).image == OLD
        assert len(world.calls_of(KIND, writes=True)) == writes
        stand_in.end(stand_in.operations[0])
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_the_package_is_pinned_and_so_is_the_way_back(self, stand_in: Any, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        old, new = stand_in.generation("shop-1.0.0.zip"), stand_in.generation("shop-1.1.0.zip")
        assert snapshot.revision == f"gs://{BUCKET}/shop-1.0.0.zip#{old}"
        assert handle.revision == f"gs://{BUCKET}/shop-1.1.0.zip#{new}"
        self.wait(self.platform(stand_in), handle, mode)
        stand_in.generations["shop-1.0.0.zip"] += 1000  # overwritten meanwhile
        self.undo(stand_in, release, snapshot, handle, mode)
        stored = self.function(stand_in).shown["buildConfig"]["source"]["storageSource"]
        assert stored["generation"] == str(old)
        assert self.function(stand_in).shown["labels"] == {"team": "shop"}

    def test_an_overwritten_package_is_another_one(self, stand_in: Any) -> None:
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        other = self.release(release_id="r-next")
        platform = self.platform(stand_in)
        assert not platform.deploy(other, platform.snapshot()).changed
        stand_in.generations["shop-1.1.0.zip"] += 1000
        assert platform.deploy(other, platform.snapshot()).changed

    def test_a_missing_package_ends_the_release_before_any_write(self, stand_in: Any, world: World) -> None:
        stand_in.missing.add("shop-1.1.0.zip")
        with pytest.raises(
            PlatformError, match=r"shop/t1: there is no package gs://releases/shop-1\.1\.0\.zip"
        ) as caught:
            self.start(stand_in)
        assert not caught.value.retryable
        assert world.calls_of(KIND, writes=True) == []

    def test_a_failed_build_that_the_function_forgets(self, stand_in: Any, world: World, mode: str) -> None:
        """Seen by the operation alone; there is nothing to take back then."""
        stand_in.forgets = True
        world.rollout_faults.append(RolloutFault(KIND, "fails", reason="no main.py"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.revision) == (State.FAILED, snapshot.revision)
        assert "Build failed with status: FAILURE and message: no main.py" in seen.reason
        assert "CloudRunServiceNotFound: Cloud Run service was not found." in seen.reason
        writes = len(world.calls_of(KIND, writes=True))
        again = self.platform(stand_in).deploy(release, snapshot)  # a lost answer's retry
        assert self.wait(self.platform(stand_in), again, mode).state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, mode)
        assert len(world.calls_of(KIND, writes=True)) == writes

    def test_operations_that_the_api_forgot(self, stand_in: Any, mode: str) -> None:
        """The function alone says enough."""
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        stand_in.operations.clear()
        assert self.look(self.platform(stand_in), handle, mode).state is State.HEALTHY
        again = self.platform(stand_in).deploy(release, snapshot)
        assert again.changed
        assert self.look(self.platform(stand_in), again, mode).state is State.HEALTHY
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_operations_are_read_page_by_page(self, stand_in: Any) -> None:
        stand_in.page = 1
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        again = self.platform(stand_in).rollback(release, snapshot, handle)
        assert not again.changed

    def test_somebody_elses_change_under_way_is_waited_for_or_drift(self, stand_in: Any, world: World) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        world.rollout_faults.append(RolloutFault(KIND, "hangs"))
        theirs = self.release(OTHER, "r-theirs")
        platform.deploy(theirs, snapshot)
        with pytest.raises(PlatformError, match="DEPLOYING") as caught:
            platform.snapshot()
        assert caught.value.retryable
        with pytest.raises(PlatformError, match="still under way") as caught:
            platform.deploy(self.release(), snapshot)
        assert caught.value.retryable
        with pytest.raises(Drift, match="somebody else's update is under way"):
            platform.rollback(self.release(), snapshot, None)
        world_lost = stand_in.operations[0]
        stand_in.end(world_lost)
        with pytest.raises(Drift, match=r"shop-9\.9\.9\.zip"):
            platform.deploy(self.release(), snapshot)

    def test_a_split_of_the_traffic_is_not_healthy(self, stand_in: Any, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.function(stand_in).shown["serviceConfig"].pop("allTrafficOnLatestRevision")
        seen = self.look(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason) == (
            State.PROGRESSING,
            "not all traffic goes to the function's latest revision",
        )

    def test_a_function_that_had_failed_before_is_left(self, stand_in: Any, world: World) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "fails", times=2))
        _, handle, _ = self.start(stand_in, self.release(OTHER, "r-before"))
        self.wait(self.platform(stand_in), handle, "sync")
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.FAILED
        left = self.platform(stand_in).rollback(release, snapshot, handle)
        seen = self.platform(stand_in).observe(left)
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert "failed before this release" in seen.reason

    def test_first_ever_release_is_removed(self, stand_in: Any, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        bare = self.platform(stand_in, runtime=None)
        with pytest.raises(PlatformError, match="create it once with your infrastructure tool"):
            bare.deploy(self.release(), bare.snapshot())
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        removed = self.platform(stand_in).rollback(release, snapshot, None)
        again = self.platform(stand_in).rollback(release, snapshot, None)  # while it is being deleted
        for handle in (removed, again):
            assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        assert NAME not in stand_in.functions
        stand_in.seed(RESOURCE, OTHER)
        assert self.look(self.platform(stand_in), removed, mode).state is State.SUPERSEDED
        with pytest.raises(Drift, match="created by somebody else"):
            self.platform(stand_in).rollback(release, snapshot, None)

    def test_a_change_that_keeps_our_label_is_not_ours(self, stand_in: Any) -> None:
        """Deploying by hand keeps the labels; the package tells."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.meddle(RESOURCE, OTHER)
        assert self.function(stand_in).shown["labels"][RELEASE_LABEL] == release.release_id
        for known in (handle, None):
            with pytest.raises(Drift, match=r"shop-9\.9\.9\.zip"):
                self.platform(stand_in).rollback(release, snapshot, known)

    def test_the_previous_release_names_the_image(self, stand_in: Any) -> None:
        assert self.platform(stand_in).snapshot(self.release(OLD)).image == OLD
        assert self.platform(stand_in).snapshot(self.release(NEW)).image is None

    def test_the_whole_contract_is_used(self, stand_in: Any, world: World) -> None:
        """Every method that is called was judged by Google's documents, and nothing else was called."""
        world.rollout_faults.append(RolloutFault(KIND, "fails"))
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "async")
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "async")
        functions = {f"functions.{call}" for call in ("get", "create", "patch", "delete")}
        calls = {f"cloudfunctions.projects.locations.{c}" for c in functions | {"operations.get", "operations.list"}}
        assert stand_in.seen == calls | {"storage.objects.get"}
        assert stand_in.refusals <= {"NOT_FOUND"}

    def test_credentials_go_over_tls_only(self, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import json

        connection = stand_in.connection()
        connection["extra"]["api_endpoint"] = "http://functions.example.com"
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(SpecError, match="refusing to send credentials over plain http"):
            self.platform(stand_in).snapshot()
        connection["extra"]["keyfile_dict"] = {"type": "service_account", "private_key": "canary-5e1"}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(PlatformError, match="gives no access to Google") as caught:
            self.platform(stand_in).snapshot()
        assert "canary" not in str(caught.value)
        assert not caught.value.retryable
        monkeypatch.delenv("AIRFLOW_CONN_CONTRACT")
        with pytest.raises(PlatformError, match="there is no Airflow Connection 'contract'"):
            asyncio.run(self.platform(stand_in).aobserve(Handle(action="rollback", data={"removed": True})))


@pytest.mark.parametrize(("error", "retryable"), [("TransportError", True), ("RefreshError", False)])
def test_a_token_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: str, retryable: bool) -> None:
    """Neither does a message show what the Connection holds, nor is a key that was revoked tried again."""
    from google.auth import exceptions

    class Credentials:
        universe_domain = "googleapis.com"

        def before_request(self, *_: Any) -> None:
            raise getattr(exceptions, error)("canary-5e1")

    monkeypatch.setattr(gcp_calls, "_credentials", lambda *_: Credentials())
    monkeypatch.setenv("AIRFLOW_CONN_C", '{"conn_type": "google_cloud_platform"}')
    platform = adapter({**CONFIG, "package": "gs://b/shop-${version}.zip"}, service="shop", target="t1")
    for look in (platform.snapshot, lambda: asyncio.run(platform.aobserve(Handle(action="deploy")))):
        with pytest.raises(PlatformError, match=r"shop/t1: connection 'c' gives no access to Google") as caught:
            look()
        assert caught.value.retryable is retryable
        assert "canary" not in str(caught.value)


def test_the_old_revision_is_not_healthy() -> None:
    source = {"storageSource": {"bucket": "b", "object": "shop-1.zip", "generation": "1"}}
    service = {"revision": "shop-00001-abc", "allTrafficOnLatestRevision": True}
    function = {"state": "ACTIVE", "buildConfig": {"source": source}, "serviceConfig": service}
    handle = Handle(action="deploy", data={"source": source, "was": "shop-00001-abc"})
    assert judge(function, None, handle).state is State.PROGRESSING
    function["serviceConfig"] = {**service, "revision": "shop-00002-abc"}
    assert judge(function, None, handle).state is State.HEALTHY
    assert judge({**function, "state": "UNKNOWN"}, None, handle).state is State.UNKNOWN
    assert judge(None, None, handle).state is State.FAILED


def test_retries_wait_out_a_build() -> None:
    """Six tries with the pauses that a busy function asks for come to most of the rollback's time."""
    platform: Any = adapter({**CONFIG, "package": "gs://b/shop-${version}.zip"}, service="shop", target="t1")
    now = 0.0

    class Clock(QuickClock):
        def time(self) -> float:
            return now

        def sleep(self, seconds: float) -> None:
            nonlocal now
            now += seconds

    def busy() -> None:
        raise platform._busy({"metadata": {"verb": "update"}, "name": "o"}, platform.config.rollback_timeout)

    with pytest.raises(PlatformError):
        persist(busy, clock=Clock(), until=platform.config.rollback_timeout)
    assert 200 < now <= 300


@pytest.mark.parametrize("package", ["s3://b/shop.zip", "gs://b", "gs://b/$shop.zip", "shop.zip"])
def test_a_package_that_is_none_is_refused(package: str) -> None:
    with pytest.raises(SpecError, match=r"targets\.t1\.package"):
        adapter({**CONFIG, "package": package}, service="shop", target="t1")


@pytest.mark.parametrize(
    "change",
    [
        {"madeUp": 1},
        {"state": "READY"},
        {"createTime": "yesterday"},
        {"labels": {"a": 1}},
        {"buildConfig": {"source": {"storageSource": {"generation": "one"}}}},
        {"serviceConfig": {"maxInstanceCount": "3"}},
    ],
)
def test_a_bad_answer_is_refused(change: Any) -> None:
    judge, good = discovery("cloudfunctions.v2"), {"name": NAME, "state": "ACTIVE", "labels": {"a": "b"}}
    judge.value({"$ref": "Function"}, good, "good")
    with pytest.raises(Violation):
        judge.value({"$ref": "Function"}, good | change, "bad")


@pytest.mark.parametrize(
    ("verb", "path", "query", "body"),
    [
        ("PUT", f"/v2/{NAME}", {}, {}),
        ("PATCH", f"/v1/{NAME}", {}, {}),
        ("PATCH", f"/v2/{NAME}", {"mask": "labels"}, {}),
        ("PATCH", f"/v2/{NAME}", {"updateMask": "build_config.source, labels"}, {}),
        ("PATCH", f"/v2/{NAME}", {}, {"state": "ACTIVE"}),
        ("PATCH", f"/v2/{NAME}", {}, {"serviceConfig": {"revision": "mine"}}),
        ("PATCH", f"/v2/{NAME}", {}, None),
        ("GET", f"/v2/{NAME}", {}, {}),
    ],
)
def test_a_bad_request_is_refused(verb: str, path: str, query: Any, body: Any) -> None:
    judge = discovery("cloudfunctions.v2")
    if (found := judge.route(verb, path)) is not None:
        with pytest.raises(Violation):
            judge.request(found[0], query, body)
    else:
        assert verb == "PUT" or path.startswith("/v1/")


def test_the_operator_packs_its_arguments() -> None:
    operator = GcpCloudFunctionsDeployOperator(
        task_id="deploy",
        conn_id="gcp",
        project="proj-1",
        location="europe-west1",
        function="shop",
        package="gs://b/shop-${version}.zip",
        image=NEW,
        version="1.1.0",
    )
    assert {k: v for k, v in operator.config.items() if v is not None and k != "platform"} == {
        "conn_id": "gcp",
        "project": "proj-1",
        "location": "europe-west1",
        "function": "shop",
        "package": "gs://b/shop-${version}.zip",
    }
    assert operator.kind == KIND
