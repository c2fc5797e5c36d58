from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.release.contract import Release, State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, SECRET, PlatformContract
from tests.stand_ins.docker import CannotRun, DockerStandIn, engine

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[str, str]]:
    try:
        with engine() as running:
            yield running
    except CannotRun as error:
        pytest.skip(f"no Docker Engine: {error}")


class Base(PlatformContract):
    rollout_seconds = 0.1
    waiting = 60
    """Each look is a thread's, with a client that asks for the API's version."""

    @pytest.fixture(autouse=True)
    def _placed(self, places: tuple[str, str]) -> None:
        self.places = places

    def make_stand_in(self, world: World) -> DockerStandIn:
        self.host = DockerStandIn(world, engine=self.places[0], registry=self.places[1])
        return self.host

    def release(self, image: str = NEW, release_id: str = "r0a1b2c3d4", *, force: bool = False) -> Release:
        """Its image from the loopback registry."""
        return super().release(self.host.own(image), release_id, force=force)


class TestDocker(Base):
    def writing_operation(self) -> str:
        return r"^(POST|DELETE)"

    def test_wrong_credentials_are_not_retryable(
        self, stand_in: DockerStandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        """They are the registry's, so a look does not need them: the pull does."""
        snapshot = self.platform(stand_in).snapshot()
        wrong = json.dumps(stand_in.connection()).replace(SECRET, "wrong-canary-7f3a")
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", wrong)
        with pytest.raises(PlatformError, match=r"pull of .*shop:1\.1\.0: ") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert not caught.value.retryable
        assert "wrong-canary-7f3a" not in str(caught.value) + repr(caught.value)
        assert stand_in.revisions(RESOURCE) == []


del PlatformContract


def own(base: type[Any]) -> type[Any]:
    """The suite's means without its tests."""
    return type("Own", (base,), {name: None for name in dir(base) if name.startswith("test_")})


class TestOwn(own(Base)):  # type: ignore[misc]
    def test_the_container_has_what_the_config_says_and_the_secrets_of_the_connection(
        self, stand_in: DockerStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = {**stand_in.connection(), "extra": {"environment": {"PASSWORD": SECRET}}}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        changes: dict[str, Any] = {
            "environment": {"MODE": "fast"},
            "ports": {"8080": "127.0.0.1:18080", "53/udp": "53"},
        }
        changes["create"] = {"HostConfig": {"Memory": 67108864}, "Labels": {"team": "shop"}}
        platform = self.platform(stand_in, **changes)
        handle = platform.deploy(self.release(), platform.snapshot())
        made = stand_in.api.inspect_container(RESOURCE)
        assert {"MODE=fast", f"PASSWORD={SECRET}"} < set(made["Config"]["Env"])
        assert made["Config"]["Labels"]["team"] == "shop"
        assert made["Config"]["Labels"]["multideploy.release"] == "r0a1b2c3d4"
        host = made["HostConfig"]
        assert host["PortBindings"]["8080/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "18080"}]
        assert host["PortBindings"]["53/udp"] == [{"HostIp": "", "HostPort": "53"}]
        assert host["Memory"] == 67108864
        assert SECRET not in handle.model_dump_json() + platform.snapshot().model_dump_json()

    def test_the_old_container_stays_stopped_and_comes_back_as_it_was(self, stand_in: DockerStandIn) -> None:
        stand_in.api.update_container(RESOURCE, restart_policy={"Name": "always"})
        snapshot, handle, release = self.start(stand_in)
        kept = stand_in.api.inspect_container(f"{RESOURCE}-before-r0a1b2c3d4")
        assert (kept["Id"], kept["State"]["Running"]) == (snapshot.revision, False)
        assert kept["HostConfig"]["RestartPolicy"]["Name"] == "no", "the Engine's restart would bring it back"
        self.undo(stand_in, release, snapshot, handle, "sync")
        back = stand_in.api.inspect_container(RESOURCE)
        assert (back["Id"], back["HostConfig"]["RestartPolicy"]["Name"]) == (snapshot.revision, "always")
        assert [each["Id"] for each in stand_in.api.containers(all=True)] == [snapshot.revision]

    def test_the_same_image_is_left_alone_unless_its_config_changed(self, stand_in: DockerStandIn) -> None:
        theirs = {"Image": stand_in.own(OLD)}
        stand_in.api.create_container_from_config(theirs, f"{RESOURCE}-before-migration")
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        _, again, _ = self.start(stand_in, self.release(release_id="r2"))
        assert (again.changed, again.revision) == (False, handle.revision)
        platform = self.platform(stand_in, environment={"MODE": "slow"})
        third = platform.deploy(self.release(release_id="r3"), platform.snapshot())
        assert third.changed is True
        assert self.wait(platform, third, "sync").state is State.HEALTHY
        names = {name for each in stand_in.api.containers(all=True) for name in each["Names"]}
        assert names == {"/shop", "/shop-before-r3", "/shop-before-migration"}, (
            "what ran before the one before is removed"
        )

    def test_a_crash_loop_and_an_unhealthy_container_have_failed(self, stand_in: DockerStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("docker", "fails", reason="exit code 3"))
        platform = self.platform(stand_in, restart="always", restarts=2)
        seen = self.wait(platform, platform.deploy(self.release(), platform.snapshot()), "sync")
        assert seen.state is State.FAILED
        assert "restarting: exit code 3" in seen.reason
        check = {"Test": ["CMD", "/bin/busybox", "ls", "/nowhere"], "Interval": 50_000_000, "Retries": 1}
        platform = self.platform(stand_in, create={"Healthcheck": check})
        handle = platform.deploy(self.release(release_id="r2", force=True), platform.snapshot())
        seen = self.wait(platform, handle, "sync")
        assert seen.state is State.FAILED
        assert "unhealthy: ls: /nowhere: No such file" in seen.reason

    def test_without_a_health_check_it_has_to_run_for_a_while(self, stand_in: DockerStandIn) -> None:
        platform = self.platform(stand_in, create={}, settle=0.5)
        handle = platform.deploy(self.release(), platform.snapshot())
        seen = platform.observe(handle)
        assert seen.state is State.HEALTHY or "of 0.5 s" in seen.reason
        assert self.platform(stand_in, create={}, settle=999).observe(handle).state is State.PROGRESSING
        assert self.wait(platform, handle, "sync").state is State.HEALTHY

    def test_drift_before_the_deploy_is_refused(self, stand_in: DockerStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else changed it"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        stand_in.api.remove_container(RESOURCE, force=True)
        with pytest.raises(Drift, match="no container"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    @pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("answer", ["lost", "malformed"])
    def test_a_way_back_from_every_half_done_swap(
        self, stand_in: DockerStandIn, world: World, nth: int, answer: Any
    ) -> None:
        """Pull, create, update, stop, rename, rename: whichever call dies, and nobody tries again."""
        snapshot = self.platform(stand_in).snapshot()
        world.call_faults.append(CallFault("docker", answer, operation=r"^(POST|DELETE)", nth=nth))
        with pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(), snapshot)
        self.undo(stand_in, self.release(), snapshot, None, "sync")
        assert stand_in.live(RESOURCE).image == OLD
        assert len(stand_in.api.containers(all=True)) == 1

    def test_a_lost_container_before_is_told(self, stand_in: DockerStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        stand_in.api.remove_container(str(snapshot.revision))
        with pytest.raises(PlatformError, match=r"the container before .* is gone") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert not caught.value.retryable

    def test_an_image_that_is_not_there_is_not_tried_again(self, stand_in: DockerStandIn) -> None:
        release = self.release("registry.example.com/shop:4.0.4")
        with pytest.raises(PlatformError, match=r"shop:4\.0\.4") as caught:
            self.platform(stand_in).deploy(release, self.platform(stand_in).snapshot())
        assert not caught.value.retryable

    def test_an_image_pinned_by_digest_is_pulled_once(self, stand_in: DockerStandIn, world: World) -> None:
        digest = stand_in.api.inspect_distribution(
            self.host.own(NEW), auth_config={"username": "shop", "password": SECRET}
        )["Descriptor"]["digest"]
        pinned = self.release().model_copy(update={"image": f"{self.host.own(NEW).rpartition(':')[0]}@{digest}"})
        self.start(stand_in, pinned)
        pulls = [call for call in world.calls if "/images/create" in call.operation]
        self.start(stand_in, pinned.model_copy(update={"release_id": "r2", "force": True}))
        assert len([call for call in world.calls if "/images/create" in call.operation]) == len(pulls) <= 1

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # Docker's SDK, when a connect is refused
    def test_an_engine_elsewhere_needs_tls(self, stand_in: DockerStandIn) -> None:
        with pytest.raises(SpecError, match="refusing to send credentials over plain http"):
            self.platform(stand_in, url="tcp://192.0.2.1:2375").snapshot()
        broken = self.platform(stand_in, url="tcp://192.0.2.1:2376", tls_ca_cert="/not/there")
        with pytest.raises(PlatformError, match="TLS") as caught:
            broken.snapshot()
        assert not caught.value.retryable
        nobody = self.platform(stand_in, url="unix:///not/there.sock")
        with pytest.raises(PlatformError, match=r"Docker Engine at .*/not/there\.sock") as caught:
            nobody.snapshot()
        assert caught.value.retryable
        del caught
        gc.collect()
