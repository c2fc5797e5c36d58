"""App Engine against its stand-in: the public contract, and what is special to App Engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.operators.gcp import GcpAppEngineDeployOperator
from airflow_multideploy.platforms.gcp.app_engine_judge import judge
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.release.wait import persist
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract, QuickClock
from tests.stand_ins.gcp_app_engine import APP, GcpAppEngineStandIn
from tests.stand_ins.google_api import Violation, discovery

KIND, MINE = "gcp_app_engine", "r0a1b2c3d4"
NAME = f"{APP}/services/shop"


class TestGcpAppEngine(PlatformContract):
    """The public contract, and App Engine's own behaviour. All that passes is judged by Google's documents."""

    rollout_seconds = 0.2
    port = 0

    def make_stand_in(self, world: World) -> GcpAppEngineStandIn:
        """At the same address each time: Airflow learns each Connection's secrets for its logs, which takes a while."""
        stand_in = GcpAppEngineStandIn(world, port=type(self).port)
        type(self).port = stand_in.port
        return stand_in

    @pytest.fixture(autouse=True)
    def _contract_kept(self, stand_in: GcpAppEngineStandIn) -> Iterator[None]:
        yield
        assert stand_in.violations == []

    def service(self, stand_in: GcpAppEngineStandIn) -> Any:
        return stand_in.services[NAME]

    def test_a_rollout_that_never_ends_can_be_rolled_back(self, stand_in: Any, world: World, mode: str) -> None:
        """A version that is never ready keeps ``deploy`` from ending, which goes on saying so: there is no handle. The
        traffic was not touched, and the way back finds that without one."""
        world.rollout_faults.append(RolloutFault(KIND, "hangs"))
        snapshot = self.platform(stand_in).snapshot()
        for _ in range(3):
            with pytest.raises(PlatformError, match=r"CreateVersion of .* is under way") as caught:
                self.platform(stand_in).deploy(self.release(), snapshot)
            assert caught.value.retryable
            assert caught.value.retry_after == 1
        assert stand_in.revisions(RESOURCE) == [MINE]
        self.undo(stand_in, self.release(), snapshot, None, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_force_releases_over_drift(self, stand_in: Any) -> None:
        """As everywhere, but ``deploy`` is called as a release calls it: again while the version is being created."""
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        platform, release, clock = self.platform(stand_in), self.release(force=True), QuickClock()
        handle = persist(lambda: platform.deploy(release, snapshot), clock=clock, until=clock.time() + 20)
        assert self.wait(platform, handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_no_traffic_before_the_version_serves(self, stand_in: Any, world: World) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        stand_in.early = True  # it can be read before it is done
        world.seconds = 60.0
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        assert len(world.calls_of(KIND, writes=True)) == 1
        assert list(self.service(stand_in).split["allocations"]) == ["by-hand-1"]

    def test_the_new_version_is_a_copy_with_another_package(self, stand_in: Any) -> None:
        self.service(stand_in).versions["by-hand-1"]["runtime"] = "python311"
        _, handle, _ = self.start(stand_in)
        version = self.service(stand_in).versions[MINE]
        assert (handle.revision, version["id"]) == (MINE, MINE)
        assert version["deployment"] == {"zip": {"sourceUrl": "https://storage.googleapis.com/releases/shop-1.1.0.zip"}}
        assert (version["envVariables"], version["instanceClass"]) == ({"MODE": "shop"}, "F2")
        assert version["runtime"] == "python312", "settings go over what is copied"
        assert "createTime" not in version

    def test_the_image_itself_goes_to_the_flexible_environment(self, stand_in: Any) -> None:
        platform = self.platform(stand_in, package=None, settings={"runtime": "custom", "env": "flexible"})
        snapshot = platform.snapshot()
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        assert stand_in.operations[0].wanted["deployment"] == {"container": {"image": NEW}}

    def test_a_split_comes_back_as_it_was(self, stand_in: Any, mode: str) -> None:
        stand_in.meddle(RESOURCE, OTHER)
        split = {"allocations": {"by-hand-1": 0.7, "by-hand-2": 0.3}, "shardBy": "COOKIE"}
        self.service(stand_in).split = split
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.service(stand_in).split == split

    def test_the_old_version_serves_while_the_new_one_fails(self, stand_in: Any, world: World) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "fails", reason="no main.py"))
        _, handle, _ = self.start(stand_in)
        seen = self.platform(stand_in).observe(handle)
        assert (seen.state, handle.revision) == (State.FAILED, MINE)
        assert "Cloud build 4b26ccc6 status: FAILURE. no main.py (code 9)" in seen.reason
        assert stand_in.live(RESOURCE).image == OLD
        assert len(world.calls_of(KIND, writes=True)) == 1

    def test_the_traffic_that_cannot_be_moved(self, stand_in: Any, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "slow", seconds=0.1))
        world.rollout_faults.append(RolloutFault(KIND, "fails", reason="quota"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "quota" in seen.reason
        self.undo(stand_in, release, snapshot, handle, mode)

    def test_a_lost_promotion_is_waited_for_before_the_way_back(self, stand_in: Any, world: World) -> None:
        """Else it would land after the old traffic was found in place."""
        platform, snapshot = self.platform(stand_in), self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        stand_in.end(stand_in.operations[0])
        world.call_faults.append(CallFault(KIND, "lost", operation="^PATCH"))
        world.rollout_faults.append(RolloutFault(KIND, "hangs"))
        with pytest.raises(PlatformError):
            platform.deploy(self.release(), snapshot)
        with pytest.raises(PlatformError, match=r"UpdateService of .* is under way") as caught:
            platform.rollback(self.release(), snapshot, None)
        assert caught.value.retryable
        again = platform.deploy(self.release(), snapshot)
        assert platform.observe(again).state is State.PROGRESSING
        stand_in.meddle(RESOURCE, OTHER)
        assert platform.observe(again).state is State.FAILED  # the hanging one was ended
        assert len(world.calls_of(KIND, writes=True)) == 2

    def test_a_version_that_somebody_stopped(self, stand_in: Any, mode: str) -> None:
        snapshot, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.service(stand_in).versions[MINE]["servingStatus"] = "STOPPED"
        seen = self.look(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason) == (State.FAILED, f"version {MINE} is STOPPED")
        self.service(stand_in).split = {"allocations": {"by-hand-1": 1}}
        with pytest.raises(PlatformError, match="is STOPPED: somebody stopped it"):
            self.platform(stand_in).deploy(self.release(), snapshot)

    def test_a_package_that_is_live_is_left_alone_when_its_name_tells(self, stand_in: Any, world: World) -> None:
        platform = self.platform(stand_in)
        same = platform.deploy(self.release(OLD), platform.snapshot())
        assert (same.changed, same.revision) == (False, "by-hand-1")
        assert platform.observe(same).state is State.HEALTHY
        assert world.calls_of(KIND, writes=True) == []
        blind = self.platform(stand_in, package="gs://releases/shop-1.0.0.zip")
        with pytest.raises(PlatformError, match="under way"):
            blind.deploy(self.release(OLD), blind.snapshot())

    def test_a_missing_package_ends_the_release_before_any_write(self, stand_in: Any, world: World) -> None:
        stand_in.missing.add("shop-1.1.0.zip")
        with pytest.raises(
            PlatformError, match=r"shop/t1: there is no package gs://releases/shop-1\.1\.0\.zip"
        ) as caught:
            self.start(stand_in)
        assert not caught.value.retryable
        assert world.calls_of(KIND, writes=True) == []

    def test_deploy_refuses_a_target_that_changed_since_the_snapshot(self, stand_in: Any, world: World) -> None:
        platform, snapshot = self.platform(stand_in), self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="by-hand-2"):
            platform.deploy(self.release(), snapshot)
        stand_in.services.clear()
        for step in (platform.deploy, lambda *given: platform.rollback(*given, None)):
            with pytest.raises(Drift, match="deleted since the snapshot"):
                step(self.release(), snapshot)
        assert world.calls_of(KIND, writes=True) == []

    def test_first_ever_release_is_removed(self, stand_in: Any, mode: str) -> None:
        stand_in.seed(RESOURCE, None)
        bare = self.platform(stand_in, settings={})
        with pytest.raises(PlatformError, match="give its runtime"):
            bare.deploy(self.release(), bare.snapshot())
        snapshot, _, release = self.start(stand_in)
        versions = self.service(stand_in).versions
        versions["theirs"] = {**versions[MINE], "id": "theirs"}
        with pytest.raises(Drift, match="versions of others"):
            self.platform(stand_in).rollback(release, snapshot, None)
        del versions["theirs"]
        removed = self.platform(stand_in).rollback(release, snapshot, None)
        assert self.wait(self.platform(stand_in), removed, mode).state is State.HEALTHY
        assert not self.platform(stand_in).rollback(release, snapshot, None).changed
        stand_in.seed(RESOURCE, OTHER)
        assert self.look(self.platform(stand_in), removed, mode).state is State.SUPERSEDED
        with pytest.raises(Drift, match="not this release's"):
            self.platform(stand_in).rollback(release, snapshot, None)

    def test_the_way_back_from_a_first_version_under_way_waits_for_it(self, stand_in: Any, world: World) -> None:
        stand_in.seed(RESOURCE, None)
        world.seconds = 60.0
        platform, snapshot = self.platform(stand_in), self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        with pytest.raises(PlatformError, match=r"CreateVersion of .* is under way"):
            platform.rollback(self.release(), snapshot, None)

    def test_the_default_service_is_left(self, stand_in: Any) -> None:
        platform = self.platform(stand_in, service="default", package="gs://releases/shop-${version}.zip")
        snapshot = platform.snapshot()
        with pytest.raises(PlatformError, match="under way"):
            platform.deploy(self.release(), snapshot)
        stand_in.end(stand_in.operations[0])
        left = platform.rollback(self.release(), snapshot, None)
        assert "a default service cannot be deleted" in platform.observe(left).reason

    def test_the_whole_contract_is_used(self, stand_in: Any, world: World) -> None:
        """Every method that is called was judged by Google's documents, and nothing else was called."""
        world.rollout_faults.append(RolloutFault(KIND, "fails"))
        self.start(stand_in, self.release(release_id="r-failing"))
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "async")
        self.undo(stand_in, release, snapshot, handle, "async")
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        services = {"get", "patch", "delete", "versions.get", "versions.list", "versions.create"}
        calls = {f"appengine.apps.services.{c}" for c in services} | {"appengine.apps.operations.list"}
        expected = calls | {"appengine.apps.operations.get", "storage.objects.get"}
        assert stand_in.seen == expected
        assert stand_in.refusals == {"NOT_FOUND"}


def test_what_is_seen_of_a_service() -> None:
    def seen(shares: dict[str, float] | None, operation: Any = None, **data: Any) -> State:
        service = None if shares is None else {"split": {"allocations": shares}}
        handle = Handle(action="deploy", data={"allocations": {"new": 1.0}, "from": {"old": 1.0}, **data})
        return judge(service, {"new": {"servingStatus": "SERVING"}}, operation, handle).state

    assert seen({"new": 1}) is State.HEALTHY
    assert seen({"new": 1}, {"done": False}) is State.PROGRESSING
    assert seen({"old": 1}, {"done": False}) is State.PROGRESSING
    assert seen({"old": 1}) is State.PROGRESSING, "the answer to the write was lost"
    assert seen({"old": 1}, {"done": True}) is State.SUPERSEDED, "somebody moved it back"
    assert seen({"old": 1}, {"done": True, "error": {"code": 13}}) is State.FAILED
    assert seen({"old": 0.5, "new": 0.5}) is State.SUPERSEDED
    assert seen(None) is State.FAILED
    assert seen(None, removed=True, allocations=None) is State.HEALTHY


@pytest.mark.parametrize(
    ("verb", "path", "query", "body"),
    [
        ("PATCH", f"/v1/{NAME}", {"updateMask": "split"}, {"id": "shop"}),
        ("PATCH", f"/v1/{NAME}", {"mask": "split"}, {}),
        ("PATCH", f"/v1/{NAME}", {"updateMask": "split"}, {"split": {"shardBy": "MOON"}}),
        ("PATCH", f"/v1/{NAME}", {"updateMask": "split"}, {"split": {"allocations": {"a": "all"}}}),
        ("POST", f"/v1/{NAME}/versions", {}, {"id": "v", "createTime": "2026-01-01T00:00:00Z"}),
        ("POST", f"/v1/{NAME}/versions", {}, {"id": "v", "versionUrl": "https://x"}),
        ("GET", f"/v1/{NAME}/versions/v", {"view": "ALL"}, None),
    ],
)
def test_a_bad_request_is_refused(verb: str, path: str, query: Any, body: Any) -> None:
    judge = discovery("appengine.v1")
    found = judge.route(verb, path)
    assert found is not None
    with pytest.raises(Violation):
        judge.request(found[0], query, body)


def test_the_operator_packs_its_arguments() -> None:
    operator = GcpAppEngineDeployOperator(
        task_id="deploy",
        conn_id="gcp",
        project="proj-1",
        package="gs://b/shop-${version}.zip",
        image=NEW,
        version="1.1.0",
    )
    assert operator.kind == KIND
    assert operator.config == {
        "platform": KIND,
        "conn_id": "gcp",
        "project": "proj-1",
        "package": "gs://b/shop-${version}.zip",
    }
