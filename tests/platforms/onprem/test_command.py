from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Release, State
from airflow_multideploy.sandbox.world import StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, SECRET, PlatformContract
from tests.stand_ins.command import CommandStandIn

RELEASE = Release(service="shop", version="1.1.0", image=NEW, release_id="r0a1b2c3d4", reason="Tuesday's release")
BEFORE = Release(service="shop", version="1.0.0", image=OLD, release_id="r00000000")


class TestRich(PlatformContract):
    rollout_seconds = 0.1

    def make_stand_in(self, world: World) -> StandIn:
        return CommandStandIn(world)

    def writing_operation(self) -> str:
        return r"^(deploy|remove)$"

    def test_drift_before_the_deploy_is_refused(self, stand_in: CommandStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="live is revision '2'"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    def test_what_another_release_made_live_is_left_alone(self, stand_in: CommandStandIn) -> None:
        stand_in.seed(RESOURCE, NEW)
        platform = self.platform(stand_in)
        assert platform.deploy(self.release(), platform.snapshot()).changed is False
        assert platform.deploy(self.release(force=True), platform.snapshot()).changed is True

    def test_a_snapshot_without_release_id_still_knows_its_own_write(
        self, stand_in: CommandStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stand_in, "tells", ("exists", "revision", "image", "state"))
        snapshot, handle, release = self.start(stand_in)
        assert self.platform(stand_in).observe(handle).state in (State.PROGRESSING, State.HEALTHY)
        self.wait(self.platform(stand_in), handle, "sync")
        assert self.platform(stand_in).deploy(release, snapshot) == handle
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_snapshot_without_release_id_still_sees_drift(
        self, stand_in: CommandStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stand_in, "tells", ("exists", "revision", "image", "state"))
        snapshot, handle, release = self.start(stand_in)
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else deployed"):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_a_first_release_has_to_be_removable(self, stand_in: CommandStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        with pytest.raises(PlatformError, match="configure remove:"):
            self.platform(stand_in, remove=[]).rollback(release, snapshot, handle)


class TestPoor:
    """``deploy`` alone: what cannot be known is said."""

    @pytest.fixture
    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        stand_in = CommandStandIn(World(seconds=0.0), manner="poor")
        stand_in.start()
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", f'{{"conn_type": "generic", "password": "{SECRET}"}}')
        stand_in.seed(RESOURCE, OLD)
        yield stand_in
        stand_in.stop()

    def platform(self, stand_in: CommandStandIn, **changes: Any) -> Any:
        config = {**stand_in.target(RESOURCE), "conn_id": "contract", **changes}
        return adapter(config, service="shop", target="t1")

    def test_there_and_back_unverified(self, stand_in: CommandStandIn) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot(BEFORE)
        handle = platform.deploy(RELEASE, snapshot)
        assert stand_in.live(RESOURCE).image == NEW
        for seen in (platform.observe(handle), asyncio.run(platform.aobserve(handle))):
            assert (seen.state, seen.verified) == (State.HEALTHY, False)
            assert "no status command tells what is live" in seen.reason
        back = platform.rollback(RELEASE, snapshot, handle)
        assert stand_in.live(RESOURCE).image == OLD
        assert platform.observe(back).verified is False

    def test_without_a_journal_there_is_no_way_back(self, stand_in: CommandStandIn) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        assert snapshot.exists is True, "nobody says that nothing is there"
        with pytest.raises(PlatformError, match="the journal knows of no earlier release"):
            platform.rollback(RELEASE, snapshot, platform.deploy(RELEASE, snapshot))

    def test_secrets_are_in_the_environment_alone_and_masked(
        self, stand_in: CommandStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "canary")
        monkeypatch.setenv("KUBECONFIG", "/etc/kube")
        platform = self.platform(stand_in, inherit=["KUBECONFIG"], environment={"TAG": "v${version}"})
        platform.deploy(RELEASE, platform.snapshot(BEFORE))
        words, environment = stand_in.calls[-1]
        assert words == ["deploy", RESOURCE, NEW]
        assert environment["CONNECTION_PASSWORD"] == SECRET
        assert (environment["TAG"], environment["KUBECONFIG"]) == ("v1.1.0", "/etc/kube")
        assert environment["MULTIDEPLOY_ACTION"] == "deploy"
        assert environment["MULTIDEPLOY_REASON"] == "Tuesday's release"
        assert "canary" not in str(environment)
        stand_in.secret = "another"
        with pytest.raises(PlatformError, match=r"exit code 77: the deploy server refuses the token \*\*\*$") as caught:
            platform.deploy(RELEASE, platform.snapshot(BEFORE))
        assert not caught.value.retryable

    def test_words_stay_words(self, stand_in: CommandStandIn) -> None:
        odd = RELEASE.model_copy(update={"image": "x\"; touch /tmp/p $(id) 'a b\n"})
        self.platform(stand_in).deploy(odd, self.platform(stand_in).snapshot(BEFORE))
        assert stand_in.calls[-1][0] == ["deploy", RESOURCE, odd.image]
        with pytest.raises(SpecError, match="its first word is the program"):
            self.platform(stand_in, deploy=["./${version}"])

    @pytest.mark.parametrize("mode", ["sync", "async"])
    def test_what_takes_too_long_is_killed_with_its_children(self, stand_in: CommandStandIn, mode: str) -> None:
        file = Path(stand_in.folder) / "pid"
        slow = ["bash", "-c", f"sleep 60 & echo $$! >{file}; wait"]
        platform = self.platform(stand_in, status=slow, deploy=slow, look_timeout=2, command_timeout=2)
        snapshot = platform.snapshot(BEFORE)
        handle = self.platform(stand_in).deploy(RELEASE, snapshot)
        with pytest.raises(PlatformError, match=r"no end within 2(\.0)? s") as caught:
            asyncio.run(platform.aobserve(handle)) if mode == "async" else platform.deploy(RELEASE, snapshot)
        assert caught.value.retryable
        child = int(file.read_text())
        until = time.monotonic() + 5
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, f"{child} of {os.getpid()} still runs"
            time.sleep(0.02)

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("echo no >&2; exit 3", "exit code 3: no"),
            ("kill -9 $$", "ended by signal 9"),
            ("echo '[1]'", "printed no JSON document"),
            ('echo \'{"state": "fine"}\'', "not what the platform's API promises"),
        ],
    )
    def test_a_status_that_cannot_be_understood(self, stand_in: CommandStandIn, script: str, words: str) -> None:
        platform = self.platform(stand_in, status=["sh", "-c", script.replace("$", "$$")])
        handle = platform.deploy(RELEASE, platform.snapshot(BEFORE))
        with pytest.raises(PlatformError, match=words):
            platform.observe(handle)

    def test_an_exit_code_is_status_enough(self, stand_in: CommandStandIn) -> None:
        platform = self.platform(stand_in, status=["test", "${version}", "=", "1.1.0"])
        handle = platform.deploy(RELEASE, platform.snapshot(BEFORE))
        assert platform.observe(handle).state is State.HEALTHY
        missing = self.platform(stand_in, status=["./not-there"])
        with pytest.raises(PlatformError, match="exit code 127: No such file"):
            missing.observe(handle)
