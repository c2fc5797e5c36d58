"""The Cloud Run platform against its stand-in: the public contract, and what is special to Cloud Run."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.gcp import GcpCloudRunDeployOperator
from airflow_multideploy.platforms.gcp.cloud_run import SMOKE_TAG, GcpCloudRun, GcpCloudRunConfig
from airflow_multideploy.platforms.gcp.cloud_run_judge import judge
from airflow_multideploy.release.contract import Handle, Observation, State
from airflow_multideploy.sandbox.gcp_cloud_run import GcpCloudRunStandIn
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract

BY_NAME, LATEST = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
MINE = "shop-r0a1b2c3d4"


@pytest.fixture(autouse=True)
def _no_traffic_leaves(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """google-auth looks things up at Google in background threads; urllib3 would say so here."""
    with caplog.at_level(logging.WARNING, logger="urllib3"):
        yield
    assert "googleapis.com" not in caplog.text


class TestGcpCloudRun(PlatformContract):
    """The public contract, and Cloud Run's own behaviour."""

    def make_stand_in(self, world: World) -> GcpCloudRunStandIn:
        return GcpCloudRunStandIn(world)

    def test_a_way_back_that_failed_can_be_gone_again(self, stand_in: Any, world: World, mode: str) -> None:
        """Not here: traffic that is asked for a second time changes nothing, so Cloud Run does not try again by itself.
        What counts then is that it is not called back."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        for _ in range(2):
            back = self.platform(stand_in).rollback(release, snapshot, handle)
            assert self.wait(self.platform(stand_in), back, mode).state is State.FAILED
        assert stand_in.live(RESOURCE).image == NEW

    def service(self, stand_in: GcpCloudRunStandIn) -> dict[str, Any]:
        """The service as it is stored."""
        path = GcpCloudRun(self.config(stand_in), service="shop", target="t1")._path
        with stand_in.run.lock:
            return stand_in.run.services[path].document(time.time())

    def config(self, stand_in: GcpCloudRunStandIn, **changes: Any) -> GcpCloudRunConfig:
        return GcpCloudRunConfig.model_validate({**stand_in.target(RESOURCE), "conn_id": "contract", **changes})

    def test_a_release_is_one_write_that_sends_traffic_by_name(
        self, stand_in: GcpCloudRunStandIn, world: World
    ) -> None:
        world.rollout_faults.append(RolloutFault("gcp_cloud_run", "hangs"))
        self.start(stand_in)
        assert len(world.calls_of("gcp_cloud_run", writes=True)) == 1
        document = self.service(stand_in)
        assert document["traffic"] == [{"type": BY_NAME, "revision": MINE, "percent": 100}]
        assert document["template"]["revision"] == MINE
        assert stand_in.live(RESOURCE).image == OLD

    def test_the_old_revision_serves_while_the_new_one_fails(
        self, stand_in: GcpCloudRunStandIn, world: World, mode: str
    ) -> None:
        world.rollout_faults.append(RolloutFault("gcp_cloud_run", "fails", reason="failed to listen on PORT=8080"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "HEALTH_CHECK_CONTAINER_ERROR" in seen.reason
        assert "failed to listen on PORT=8080" in seen.reason
        assert seen.reason.count("failed to listen") == 1
        assert seen.revision != MINE
        assert stand_in.live(RESOURCE).image == OLD

    def test_rollback_pins_latest_to_what_it_stood_for(self, stand_in: GcpCloudRunStandIn, mode: str) -> None:
        assert self.service(stand_in)["traffic"] == [{"type": LATEST, "percent": 100}]
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.service(stand_in)["traffic"] == [{"type": BY_NAME, "revision": snapshot.revision, "percent": 100}]

    def test_a_split_with_tags_comes_back_bit_for_bit(self, stand_in: GcpCloudRunStandIn, mode: str) -> None:
        first = self.service(stand_in)["latestReadyRevision"].rsplit("/", 1)[-1]
        stand_in.meddle(RESOURCE, OTHER)
        second = self.service(stand_in)["latestReadyRevision"].rsplit("/", 1)[-1]
        split = [
            {"type": BY_NAME, "revision": first, "percent": 70, "tag": "stable"},
            {"type": BY_NAME, "revision": second, "percent": 30},
            {"type": BY_NAME, "revision": second, "tag": "next"},
        ]
        self.route(stand_in, split)
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        tags = {t.get("tag"): t.get("percent", 0) for t in self.service(stand_in)["traffic"]}
        assert tags == {None: 100, "stable": 0, "next": 0}, "tags of others were lost"
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.service(stand_in)["traffic"] == split

    def route(self, stand_in: GcpCloudRunStandIn, traffic: list[dict[str, Any]]) -> None:
        """Somebody sets the traffic by hand; done when it is served."""
        path = self.service(stand_in)["name"]
        stand_in.run.call("services.patch", {"name": path, "updateMask": "traffic", "service": {"traffic": traffic}})
        while self.service(stand_in)["reconciling"]:
            time.sleep(0.02)

    def test_a_stale_etag_is_refused_and_worth_another_look(self, stand_in: GcpCloudRunStandIn) -> None:
        platform = self.platform(stand_in)
        live = platform._api.get()
        self.route(stand_in, [{"type": LATEST, "percent": 100, "tag": "x"}])
        with pytest.raises(PlatformError, match=r"shop/t1.*409 ABORTED.*was specified but current version") as caught:
            platform._api.patch(live, ["traffic"])
        assert caught.value.retryable

    @pytest.mark.parametrize("step", ["deploy", "rollback", "remove"])
    def test_a_change_between_read_and_write_is_not_overwritten(
        self, stand_in: GcpCloudRunStandIn, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        if step == "remove":
            stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        if step != "deploy":
            self.wait(platform, platform.deploy(self.release(), snapshot), "sync")
        call = stand_in.run.call

        def somebody_is_faster(method: str, params: dict[str, Any]) -> dict[str, Any]:
            if method in ("services.patch", "services.delete"):
                stand_in.meddle(RESOURCE, OTHER)
            return call(method, params)

        monkeypatch.setattr(stand_in.run, "call", somebody_is_faster)
        write = platform.deploy if step == "deploy" else lambda *given: platform.rollback(*given, None)
        with pytest.raises(PlatformError, match="409 ABORTED") as caught:
            write(self.release(), snapshot)
        assert caught.value.retryable
        monkeypatch.undo()
        assert stand_in.live(RESOURCE).image == OTHER

    def test_a_revision_name_with_another_template_is_final(self, stand_in: GcpCloudRunStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        stand_in.meddle(RESOURCE, OTHER)
        changed = self.release(image=OLD)
        with pytest.raises(PlatformError, match=r"409 ALREADY_EXISTS.*different configuration") as caught:
            self.platform(stand_in).deploy(changed, self.platform(stand_in).snapshot())
        assert not caught.value.retryable

    def test_releasing_again_after_a_rollback_makes_no_second_revision(
        self, stand_in: GcpCloudRunStandIn, mode: str
    ) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        self.undo(stand_in, release, snapshot, handle, mode)
        again = self.platform(stand_in).deploy(release, snapshot)
        assert self.wait(self.platform(stand_in), again, mode).state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        assert stand_in.revisions(RESOURCE) == [MINE]

    def test_deploy_refuses_a_target_that_changed_since_the_snapshot(
        self, stand_in: GcpCloudRunStandIn, world: World
    ) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match=r"shop/t1.*changed the traffic since the snapshot"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        stand_in.seed(RESOURCE, OLD)
        with pytest.raises(Drift, match="created again"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        stand_in.seed(RESOURCE, None)
        with pytest.raises(Drift, match="deleted since the snapshot"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        with pytest.raises(Drift, match="deleted"):
            self.platform(stand_in).rollback(self.release(), snapshot, None)
        assert world.calls_of("gcp_cloud_run", writes=True) == []

    def test_force_writes_although_the_image_is_live(self, stand_in: GcpCloudRunStandIn) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        same = platform.deploy(self.release(image=OLD), snapshot)
        assert (same.changed, same.revision) == (False, snapshot.revision)
        assert platform.observe(same).state is State.HEALTHY
        forced = platform.deploy(self.release(image=OLD, force=True), snapshot)
        assert (forced.changed, forced.revision) == (True, MINE)

    def test_first_ever_deploy_that_fails_is_removed(
        self, stand_in: GcpCloudRunStandIn, world: World, mode: str
    ) -> None:
        stand_in.seed(RESOURCE, None)
        world.rollout_faults.append(RolloutFault("gcp_cloud_run", "fails"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.FAILED
        assert stand_in.revisions(RESOURCE) == [MINE]
        removed = self.platform(stand_in).rollback(release, snapshot, None)
        assert self.wait(self.platform(stand_in), removed, mode).state is State.HEALTHY
        again = self.platform(stand_in).rollback(release, snapshot, None)
        assert not again.changed

    def test_a_service_created_by_somebody_else_is_not_removed(self, stand_in: GcpCloudRunStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert stand_in.live(RESOURCE).image == OTHER

    def test_a_lost_create_is_recognised(self, stand_in: GcpCloudRunStandIn, world: World) -> None:
        stand_in.seed(RESOURCE, None)
        world.call_faults.append(CallFault("gcp_cloud_run", "lost", operation="^POST"))
        snapshot, handle, _ = self.start(stand_in)
        assert not snapshot.exists
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.revisions(RESOURCE) == [MINE]

    def test_a_service_on_which_nothing_ever_served_is_left(self, stand_in: GcpCloudRunStandIn, world: World) -> None:
        stand_in.seed(RESOURCE, None)
        world.rollout_faults.append(RolloutFault("gcp_cloud_run", "fails", times=2))
        other = self.release(release_id="r-somebody-else")
        _, handle, _ = self.start(stand_in, other)
        self.wait(self.platform(stand_in), handle, "sync")
        snapshot, handle, release = self.start(stand_in)
        assert (snapshot.exists, snapshot.revision, snapshot.image) == (True, None, None)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, "sync")

    def test_a_malformed_grpc_answer_is_not_a_missing_service(self, stand_in: GcpCloudRunStandIn, world: World) -> None:
        world.call_faults.append(CallFault("gcp_cloud_run", "malformed", operation="GetService"))
        with pytest.raises(PlatformError, match="no document of the API") as caught:
            asyncio.run(self.platform(stand_in).aobserve(Handle(action="rollback", data={"removed": True})))
        assert caught.value.retryable

    @pytest.mark.parametrize(("status", "state"), [(200, State.HEALTHY), (404, State.FAILED), (503, State.PROGRESSING)])
    def test_smoke_test_asks_the_released_revision(
        self, stand_in: GcpCloudRunStandIn, mode: str, status: int, state: State
    ) -> None:
        stand_in.smoke_status = status
        platform = self.platform(stand_in, smoke_path="/healthz")
        handle = platform.deploy(self.release(), platform.snapshot())
        while stand_in.live(RESOURCE).image != NEW:
            time.sleep(0.02)
        seen = asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        assert seen.state is state
        assert status == 200 or f"/{SMOKE_TAG}/healthz answered {status}" in seen.reason

    def test_the_container_that_gets_the_image(self, stand_in: GcpCloudRunStandIn) -> None:
        path = self.service(stand_in)["name"]
        pair = [{"name": "proxy", "image": "proxy:1"}, {"name": "app", "image": OLD}]
        change = {"updateMask": "template.containers", "service": {"template": {"containers": pair}}}
        stand_in.run.call("services.patch", {"name": path, **change})
        while self.service(stand_in)["reconciling"]:
            time.sleep(0.02)
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError, match=r"Set `container`; there are: proxy, app"):
            platform.deploy(self.release(), platform.snapshot())
        platform = self.platform(stand_in, container="app")
        assert platform.snapshot().image == OLD
        platform.deploy(self.release(), platform.snapshot())
        images = {c["name"]: c["image"] for c in self.service(stand_in)["template"]["containers"]}
        assert images == {"proxy": "proxy:1", "app": NEW}

    def test_a_deleted_service_is_a_clear_failure(self, stand_in: GcpCloudRunStandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.seed(RESOURCE, None)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen == Observation(state=State.FAILED, reason="the service does not exist: somebody deleted it")

    def test_the_worker_may_speak_grpc(
        self, stand_in: GcpCloudRunStandIn, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.extra(stand_in, monkeypatch, transport="grpc")
        world.call_faults.append(CallFault("gcp_cloud_run", "lost", operation="^UpdateService"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert {call.operation.split()[1].split("/")[0] for call in world.calls} == {""}, "something went over REST"

    def extra(self, stand_in: GcpCloudRunStandIn, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
        """Change extras of the Connection."""
        connection = stand_in.connection()
        connection["extra"] |= extra
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))

    def test_credentials_do_not_travel_in_the_clear(
        self, stand_in: GcpCloudRunStandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        self.extra(stand_in, monkeypatch, api_endpoint="http://run.example.com", grpc_endpoint="http://run.example.com")
        handle = Handle(action="deploy", revision="x", data={"serves": {"x": 100}})
        platform = self.platform(stand_in)
        with pytest.raises(SpecError, match="plain http"):
            asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        self.extra(stand_in, monkeypatch, grpc_endpoint=stand_in.grpc_url.replace("https", "http"))
        with pytest.raises(PlatformError, match="over TLS only"):
            asyncio.run(self.platform(stand_in).aobserve(handle))

    def test_a_connection_without_usable_key_says_so_and_shows_nothing(
        self, stand_in: GcpCloudRunStandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        key = stand_in.connection()["extra"]["keyfile_dict"] | {"private_key": "canary-5519"}
        self.extra(stand_in, monkeypatch, keyfile_dict=key)
        handle = Handle(action="deploy", revision="x", data={"serves": {"x": 100}})
        platform = self.platform(stand_in)
        with pytest.raises(PlatformError, match="shop/t1: connection 'contract' gives no Google cred") as caught:
            asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.observe(handle)
        assert not caught.value.retryable
        assert "canary" not in str(caught.value) + repr(caught.value.__cause__)


def test_an_emulator_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = GcpCloudRunStandIn(World(seconds=0.1), secret="")
    stand_in.start()
    try:
        monkeypatch.setenv("AIRFLOW_CONN_EMULATOR", json.dumps(stand_in.connection()))
        stand_in.seed(RESOURCE, OLD)
        config = GcpCloudRunConfig.model_validate({**stand_in.target(RESOURCE), "conn_id": "emulator"})
        platform = GcpCloudRun(config, service="shop", target="t1")
        snapshot = platform.snapshot()
        assert snapshot.image == OLD
        handle = Handle(action="rollback", revision=snapshot.revision, data={"serves": snapshot.data["serves"]})
        assert platform.observe(handle) == asyncio.run(platform.aobserve(handle))
        assert platform.observe(handle).state is State.HEALTHY
    finally:
        stand_in.stop()


def test_the_revision_name_fits_and_is_always_the_same() -> None:
    def name(service: str, release_id: str) -> str:
        config = {"platform": "gcp_cloud_run", "conn_id": "c", "project": "proj-1", "location": "europe-west1"}
        platform = GcpCloudRun(
            GcpCloudRunConfig.model_validate({**config, "service": service}), service="shop", target="t1"
        )
        release = PlatformContract().release(release_id=release_id)
        return platform._revision_of(release)

    assert name("shop", "r1") == "shop-r1"
    longest = name("s" * 49, "r" * 20)
    assert longest == name("s" * 49, "r" * 20) != name("s" * 49, "r" * 19 + "q")
    assert len(longest) <= 63


def test_reconciling_holds_back_a_deploy_but_not_a_rollback() -> None:
    """An undone revision that never gets ready keeps the service reconciling, without traffic."""
    document = {
        "reconciling": True,
        "traffic": [{"type": BY_NAME, "revision": "shop-1", "percent": 100}],
        "trafficStatuses": [{"type": BY_NAME, "revision": "shop-1", "percent": 100}],
        "conditions": [{"type": "RoutesReady", "state": "CONDITION_SUCCEEDED"}],
    }
    data: dict[str, Any] = {"serves": {"shop-1": 100}}
    assert judge(document, Handle(action="deploy", revision="shop-1", data=data)).state is State.PROGRESSING
    assert judge(document, Handle(action="rollback", revision="shop-1", data=data)).state is State.HEALTHY


def test_a_service_being_deleted_is_not_yet_removed() -> None:
    handle = Handle(action="rollback", data={"removed": True})
    assert judge({"deleteTime": "2026-01-02T03:04:05Z"}, handle).state is State.PROGRESSING
    assert judge({}, handle).state is State.SUPERSEDED
    assert judge(None, handle).state is State.HEALTHY


def test_the_operator_packs_its_arguments() -> None:
    operator = GcpCloudRunDeployOperator(
        task_id="deploy",
        conn_id="gcp",
        project="proj-1",
        location="europe-west1",
        service="shop",
        image=NEW,
        version="1.1.0",
    )
    assert operator.kind == "gcp_cloud_run"
    assert {k: v for k, v in operator.config.items() if v is not None and k != "platform"} == {
        "conn_id": "gcp",
        "project": "proj-1",
        "location": "europe-west1",
        "service": "shop",
    }


def test_console_url_names_service_and_project(stand_in_config: GcpCloudRunConfig) -> None:
    url = GcpCloudRun(stand_in_config, service="shop", target="t1").console_url()
    assert url == "https://console.cloud.google.com/run/detail/europe-west1/shop/revisions?project=sandbox-project"


@pytest.fixture
def stand_in_config() -> GcpCloudRunConfig:
    document = {"platform": "gcp_cloud_run", "conn_id": "c", "project": "sandbox-project", "location": "europe-west1"}
    return GcpCloudRunConfig.model_validate({**document, "service": "shop"})
