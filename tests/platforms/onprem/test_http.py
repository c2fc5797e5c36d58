from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.platforms.onprem.http import Http
from airflow_multideploy.release.contract import Release, Snapshot, State
from airflow_multideploy.sandbox.http import HttpStandIn
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, SECRET, PlatformContract

RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4", reason="Tuesday's release")
BEFORE = Release(service="shop", version="1.0.0", image=OLD, release_id="r00000000")


class TestRich(PlatformContract):
    def make_stand_in(self, world: World) -> StandIn:
        return HttpStandIn(world)

    def test_somebody_writing_between_read_and_write_is_drift(self, stand_in: HttpStandIn, world: World) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        app, done = stand_in.app, []

        async def race(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "PUT" and not done:
                done.append(stand_in.meddle(RESOURCE, OTHER))
            await app(scope, receive, send)

        stand_in.stop()
        stand_in.app = race
        stand_in.start()
        connection = json.dumps(stand_in.connection())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFLOW_CONN_CONTRACT", connection)
            with pytest.raises(Drift, match=f"live is (?!serves).*{OTHER}"):
                platform.deploy(RELEASE, snapshot)
        assert stand_in.live(RESOURCE).image == OTHER

    def test_a_failed_way_back_is_sent_again(self, stand_in: HttpStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.rollout_faults.append(RolloutFault("http", "fails", reason="disk full"))
        first = self.platform(stand_in).rollback(release, snapshot, handle)
        failed = self.wait(self.platform(stand_in), first, "sync")
        assert failed.state is State.FAILED
        assert "disk full" in failed.reason
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_live_by_another_release_is_unchanged_unless_forced(self, stand_in: HttpStandIn, world: World) -> None:
        stand_in.seed(RESOURCE, NEW)
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        assert platform.deploy(self.release(), snapshot).changed is False
        assert stand_in.revisions(RESOURCE) == []
        assert platform.deploy(self.release(force=True), snapshot).changed is True
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_an_api_that_insists_on_a_condition_says_so(self, stand_in: HttpStandIn) -> None:
        platform = self.platform(stand_in, current={"path": "/apps/shop"}, etag=False)
        with pytest.raises(PlatformError, match="HTTP 428: send If-Match"):
            platform.deploy(RELEASE, platform.snapshot())
        assert stand_in.revisions(RESOURCE) == []

    def test_the_key_alone_makes_a_retry_harmless(self, stand_in: HttpStandIn) -> None:
        target = stand_in.target(RESOURCE)
        deploy = {**target["deploy"], "headers": {"If-Match": "*"}}
        platform = self.platform(stand_in, current=None, deploy=deploy)
        snapshot = platform.snapshot()
        handles = [platform.deploy(RELEASE, snapshot) for _ in range(2)]
        assert handles[0].data["operation"] == handles[1].data["operation"]
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_progress_is_told(self, stand_in: HttpStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("http", "hangs"))
        _, handle, _ = self.start(stand_in)
        time.sleep(0.1)
        seen = self.platform(stand_in).observe(handle)
        assert seen.state is State.PROGRESSING
        assert seen.progress is not None
        assert 0 < seen.progress <= 0.5
        assert "running" in seen.reason

    def test_without_version_the_operation_is_the_evidence(self, stand_in: HttpStandIn, mode: str) -> None:
        platform = self.platform(stand_in, version=None)
        snapshot = platform.snapshot()
        assert snapshot.image == OLD
        seen = self.wait(platform, platform.deploy(RELEASE, snapshot), mode)
        assert (seen.state, seen.verified) == (State.HEALTHY, True)
        back = self.wait(platform, platform.rollback(RELEASE, snapshot, None), mode)
        assert (back.state, back.verified) == (State.HEALTHY, True)
        assert stand_in.live(RESOURCE).image == OLD

    def test_ill_health_is_not_healthy(self, stand_in: HttpStandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault("http", "500", operation="health", times=99))
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=0.3)
        assert seen.state is State.FAILED
        assert "/apps/shop/health: HTTP 500" in seen.reason

    def test_a_first_ever_deploy_without_a_way_to_remove_says_so(self, stand_in: HttpStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, remove=None)
        snapshot = platform.snapshot()
        handle = platform.deploy(RELEASE, snapshot)
        with pytest.raises(PlatformError, match="configure remove:") as caught:
            platform.rollback(RELEASE, snapshot, handle)
        assert not caught.value.retryable

    def test_an_application_that_tells_no_version_is_not_taken_for_none(
        self, stand_in: HttpStandIn, world: World
    ) -> None:
        untold: dict[str, Any] = {"current": None, "version": {"path": "/apps/nobody/version", "json": "$.version"}}
        platform = self.platform(stand_in, **untold)
        with (
            self.unwritten(stand_in, world),
            pytest.raises(PlatformError, match="health: HTTP 200, so an app") as caught,
        ):
            platform.snapshot()
        assert not caught.value.retryable
        stand_in.seed(RESOURCE, None)
        assert platform.snapshot().exists is False

    def test_insisting_on_an_etag_that_is_not_there(self, stand_in: HttpStandIn) -> None:
        current = {"path": "/apps/shop/version", "image": "image"}
        with pytest.raises(PlatformError, match="no ETag"):
            self.platform(stand_in, current=current, etag=True).snapshot()

    def test_a_missing_application_is_named(self, stand_in: HttpStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        platform = self.platform(stand_in, status={**stand_in.target(RESOURCE)["status"], "path": "/nowhere/"})
        with pytest.raises(PlatformError, match="shop/t1: GET /nowhere/: HTTP 404: ") as caught:
            platform.observe(handle)
        assert not caught.value.retryable


class TestPoorWithVersion(PlatformContract):
    """``POST /deploy`` and a plain-text version address: what it cannot promise is taken out, and tested below."""

    test_a_retry_makes_one_revision = None  # no key, no way to see a write under way
    test_failure_is_seen_early_with_the_platforms_reason = None
    test_rollback_of_nothing_is_verified_and_writes_nothing = None
    test_first_ever_deploy_and_its_rollback = None
    test_a_failing_first_ever_deploy_and_its_rollback = None
    test_wrong_credentials_are_not_retryable = None  # its version address takes none
    test_a_second_deploy_of_one_release_makes_no_second_revision = None

    def make_stand_in(self, world: World) -> StandIn:
        return HttpStandIn(world, manner="poor")

    def test_a_lost_answer_after_the_end_is_recognised(self, stand_in: StandIn, world: World) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        world.call_faults.append(CallFault("http", "lost", operation="POST"))
        with pytest.raises(PlatformError) as caught:
            platform.deploy(RELEASE, snapshot)
        assert caught.value.retryable
        time.sleep(self.rollout_seconds + 0.1)
        again = platform.deploy(RELEASE, snapshot)
        assert again.changed is True
        assert len(stand_in.revisions(RESOURCE)) == 1
        assert platform.observe(again).state is State.HEALTHY

    def test_a_failure_is_seen_at_the_deadline(self, stand_in: StandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault("http", "fails"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=0.5)
        assert seen.state is State.FAILED
        assert "GET /shop/version.txt says 1.0.0, expected 1.1.0" in seen.reason

    def test_a_way_back_that_cannot_be_told_from_its_start_is_not_verified(
        self, stand_in: StandIn, world: World
    ) -> None:
        world.seconds = 60.0
        snapshot, handle, release = self.start(stand_in)
        platform = self.platform(stand_in)
        back = platform.rollback(release, snapshot, handle)
        assert len(stand_in.revisions(RESOURCE)) == 2
        seen = platform.observe(back)
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert "cannot tell an end from a start" in seen.reason

    def test_the_journal_adds_what_the_version_does_not_say(self, stand_in: StandIn) -> None:
        pinned = BEFORE.model_copy(update={"image": f"{OLD}@sha256:{'a' * 64}", "digest": f"sha256:{'a' * 64}"})
        assert self.platform(stand_in).snapshot(pinned).image == pinned.image
        assert self.platform(stand_in).snapshot(BEFORE.model_copy(update={"version": "0.9"})).image == OLD
        assert self.platform(stand_in).snapshot().image is None

    def test_a_version_that_keeps_silent_does_not_stop_the_way_back(self, stand_in: StandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault("http", "500", operation="version.txt", times=3))
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        seen = self.wait(self.platform(stand_in), back, "sync")
        assert (seen.state, seen.verified) == (State.HEALTHY, True), seen
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_version_that_keeps_silent_stops_a_deploy(self, stand_in: StandIn, world: World) -> None:
        world.call_faults.append(CallFault("http", "500", operation="version.txt", times=99))
        with pytest.raises(PlatformError) as caught:
            self.platform(stand_in).snapshot()
        assert caught.value.retryable

    def test_a_first_ever_deploy(self, stand_in: StandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert snapshot.exists is False
        assert self.wait(self.platform(stand_in), handle, "sync").verified is True
        with pytest.raises(PlatformError, match="configure remove:"):
            self.platform(stand_in).rollback(release, snapshot, handle)


class TestBlind:
    """``{platform: http, conn_id: dc1}`` alone."""

    @pytest.fixture
    def world(self) -> World:
        return World(seconds=0.2)

    @pytest.fixture
    def stand_in(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpStandIn]:
        stand_in = HttpStandIn(world, manner="blind")
        stand_in.start()
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps(stand_in.connection()))
        stand_in.seed("shop", OLD)
        yield stand_in
        stand_in.stop()

    @pytest.fixture
    def platform(self, stand_in: HttpStandIn) -> Http:
        platform = adapter({"platform": "http", "conn_id": "dc1"}, service="shop", target="onprem")
        assert isinstance(platform, Http)
        return platform

    def test_it_deploys_and_says_what_it_does_not_know(self, platform: Http, stand_in: HttpStandIn) -> None:
        snapshot = platform.snapshot()
        assert (snapshot.exists, snapshot.image, snapshot.data["known"]) == (True, None, False)
        handle = platform.deploy(RELEASE, snapshot)
        for seen in (platform.observe(handle), asyncio.run(platform.aobserve(handle))):
            assert (seen.state, seen.verified) == (State.HEALTHY, False)
            assert "configure version:" in seen.reason
        time.sleep(0.3)
        assert stand_in.live("shop").image == NEW

    def test_rollback_without_any_knowledge_is_a_clear_error(self, platform: Http, stand_in: HttpStandIn) -> None:
        snapshot = platform.snapshot()
        handle = platform.deploy(RELEASE, snapshot)
        with pytest.raises(PlatformError, match=r"shop/onprem: cannot roll back.* configure version:") as caught:
            platform.rollback(RELEASE, snapshot, handle)
        assert not caught.value.retryable
        assert len(stand_in.revisions("shop")) == 1

    def test_rollback_posts_what_the_journal_knows(self, platform: Http, stand_in: HttpStandIn) -> None:
        snapshot = Snapshot.model_validate_json(platform.snapshot(BEFORE).model_dump_json())
        assert (snapshot.exists, snapshot.image) == (True, OLD)
        handle = platform.deploy(RELEASE, snapshot)
        back = platform.rollback(RELEASE, snapshot, handle)
        assert platform.observe(back).verified is False
        time.sleep(0.3)
        assert stand_in.live("shop").image == OLD

    def test_a_basic_login_is_used_when_there_is_one(
        self, platform: Http, stand_in: HttpStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_DC1", json.dumps({**stand_in.connection(), "login": "deployer"}))
        pair = base64.b64encode(f"deployer:{SECRET}".encode()).decode()
        with pytest.raises(PlatformError, match="HTTP 401") as caught:
            platform.deploy(RELEASE, platform.snapshot())
        assert pair not in str(caught.value)
