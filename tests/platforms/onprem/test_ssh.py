from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.release.contract import Release, Snapshot, State
from airflow_multideploy.sandbox.server import Server
from airflow_multideploy.sandbox.world import CallFault, Course, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.ssh import SSHD, SshStandIn, keys

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed (apt-get install openssh-server)")


class Base(PlatformContract):
    rollout_seconds = 0.05
    waiting = 20
    """Each look is an SSH handshake, which costs both sides their cryptography."""

    def make_stand_in(self, world: World) -> SshStandIn:
        self.host = SshStandIn(world)
        return self.host

    def release(self, image: str = NEW, release_id: str = "r0a1b2c3d4", *, force: bool = False) -> Release:
        release = super().release(image, release_id, force=force)
        self.host.keep(RESOURCE, release.version)
        return release.model_copy(update={"digest": self.host.digest(release.version)})


class TestSsh(Base):
    def writing_operation(self) -> str:
        """The scripts that write."""
        return r"^(go|receive)$"

    @pytest.mark.parametrize(
        ("answer", "retryable"), [("500", True), ("429", True), ("reset", True), ("malformed", True)]
    )
    def test_errors_are_classified_and_name_the_target(
        self, stand_in: SshStandIn, world: World, answer: Any, retryable: bool, mode: str
    ) -> None:
        """As in the suite, but for the Retry-After: a host that cannot fork names no time."""
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.call_faults.append(CallFault(stand_in.kind, answer, times=50))
        with pytest.raises(PlatformError, match="shop/t1") as caught:
            self.look(self.platform(stand_in), handle, mode)
        assert caught.value.retryable is retryable


class Sums:
    """Where checksums are kept: an https server, whose authority the host's curl trusts."""

    url = file = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The file, whatever is asked for."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.file.encode()})


@pytest.fixture
def sums(stand_in: SshStandIn, tmp_path: Path) -> Iterator[Sums]:
    authority, app = trustme.CA(), Sums()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    curl = stand_in.folder / "bin" / "curl"
    curl.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} --cacert {tmp_path}/ca.pem "$@"\n')
    curl.chmod(0o755)
    server = Server(app, tls=(str(tmp_path / "server.pem"), str(tmp_path / "server.pem"))).start()
    app.url = server.url
    yield app
    server.stop()


del PlatformContract


def own(base: type[Any]) -> type[Any]:
    """The suite's means without its tests."""
    return type("Own", (base,), {name: None for name in dir(base) if name.startswith("test_")})


class TestOwn(own(Base)):  # type: ignore[misc]
    def test_one_release_restarts_the_unit_once(self, stand_in: SshStandIn, world: World) -> None:
        world.call_faults.append(CallFault("ssh", "lost", operation="go"))
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.platform(stand_in).deploy(release, snapshot)
        assert stand_in.units[RESOURCE].restarts == 1
        self.undo(stand_in, release, snapshot, handle, "async")
        assert stand_in.units[RESOURCE].restarts == 2

    @pytest.mark.parametrize("answer", ["lost", "reset"])
    def test_a_package_from_the_worker(self, stand_in: SshStandIn, world: World, answer: Any) -> None:
        stand_in.copies = True
        world.call_faults.append(CallFault("ssh", answer, operation="receive"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, None, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_what_another_release_made_live_is_left_alone(self, stand_in: SshStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        _, again, _ = self.start(stand_in, self.release(release_id="r2"))
        assert (again.changed, again.revision) == (False, "releases/r0a1b2c3d4")
        assert self.wait(self.platform(stand_in), again, "async").state is State.HEALTHY
        _, other, _ = self.start(stand_in, self.release(release_id="r3", force=True))
        assert other.changed is True
        assert self.wait(self.platform(stand_in), other, "async").state is State.HEALTHY
        assert stand_in.units[RESOURCE].restarts == 2

    def test_a_package_that_is_not_there_is_told_in_the_hosts_words(self, stand_in: SshStandIn) -> None:
        release = self.release().model_copy(update={"version": "4.0.4"})
        snapshot, handle, _ = self.start(stand_in, release)
        seen = self.wait(self.platform(stand_in), handle, "sync")
        assert seen.state is State.FAILED
        assert "4.0.4.tar.gz: curl: (22)" in seen.reason
        assert "404" in seen.reason
        assert self.platform(stand_in).rollback(release, snapshot, handle).changed is False

    def test_a_package_with_another_checksum_is_not_unpacked(self, stand_in: SshStandIn) -> None:
        release = self.release().model_copy(update={"digest": "sha256:" + "0" * 64})
        _, handle, _ = self.start(stand_in, release)
        seen = self.wait(self.platform(stand_in), handle, "async")
        assert seen.state is State.FAILED
        assert f"not {'0' * 64}" in seen.reason
        assert stand_in.revisions(RESOURCE) == []
        assert stand_in.units[RESOURCE].restarts == 0

    @pytest.mark.parametrize(
        "file",
        [
            "",
            "\n",
            " {sum}  shop.tar.gz\n",
            "\t{sum}",
            "<html>\n{sum}\n</html>",
            "{sum:.40}",
            "{sum}0",
            "0x{sum:.62}",
            "g{sum:.63}",
        ],
    )
    def test_what_is_no_checksum_checks_nothing_and_releases_nothing(
        self, stand_in: SshStandIn, sums: Sums, file: str
    ) -> None:
        release = self.release()
        sums.file = file.format(sum=stand_in.digest(release.version).removeprefix("sha256:"))
        platform = self.platform(stand_in, checksum=f"{sums.url}/${{version}}.sha256?sig=canary-7d1f")
        snapshot = platform.snapshot()
        seen = self.wait(platform, handle := platform.deploy(release, snapshot), "sync")
        assert seen.state is State.FAILED
        assert "does not begin with a SHA-256 of 64 hexadecimal digits" in seen.reason
        assert "canary-7d1f" not in seen.reason
        assert (stand_in.revisions(RESOURCE), stand_in.units[RESOURCE].restarts) == ([], 0)
        assert platform.rollback(release, snapshot, handle).changed is False

    @pytest.mark.parametrize("file", ["{sum}\n", "{sum}  shop.tar.gz\n{other}  more.tar.gz\n", "{SUM} *shop.tar.gz"])
    def test_a_checksum_file_that_fits_is_released(self, stand_in: SshStandIn, sums: Sums, file: str) -> None:
        release = self.release()
        right = stand_in.digest(release.version).removeprefix("sha256:")
        sums.file = file.format(sum=right, SUM=right.upper(), other="0" * 64)
        platform = self.platform(stand_in, checksum=f"{sums.url}/${{version}}.sha256")
        handle = platform.deploy(release, platform.snapshot())
        assert self.wait(platform, handle, "sync").state is State.HEALTHY

    @pytest.mark.parametrize("checksum", ["", " ", "sha256:", "0" * 63, "<html>", "http://example.com/sum"])
    def test_what_is_no_checksum_in_the_catalog_is_refused_when_it_is_read(
        self, stand_in: SshStandIn, checksum: str
    ) -> None:
        with pytest.raises(SpecError, match="neither 64 hexadecimal digits nor an https address"):
            self.platform(stand_in, checksum=checksum)
        platform = self.platform(stand_in, checksum="${digest}")
        with pytest.raises(PlatformError, match="neither 64 hexadecimal digits nor an https address"):
            platform.deploy(self.release().model_copy(update={"digest": checksum}), platform.snapshot())

    def test_a_package_from_the_worker_has_to_have_its_checksum_too(self, stand_in: SshStandIn, sums: Sums) -> None:
        stand_in.copies = True
        release, snapshot = self.release(), self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match=f"not {'0' * 64}; nothing was sent"):
            self.platform(stand_in, checksum="0" * 64).deploy(release, snapshot)
        sums.file = "0" * 64
        platform = self.platform(stand_in, checksum=f"{sums.url}/sum")
        seen = self.wait(platform, platform.deploy(release, snapshot), "sync")
        assert (seen.state, stand_in.units[RESOURCE].restarts) == (State.FAILED, 0)
        assert f"not {'0' * 64}" in seen.reason

    def test_a_rollback_stops_steps_that_still_run(self, stand_in: SshStandIn) -> None:
        stand_in.serve.clear()
        snapshot, handle, release = self.start(stand_in)
        assert self.platform(stand_in).observe(handle).reason in ("waiting", "fetching")
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        assert back.changed is True
        stand_in.serve.set()
        assert self.wait(self.platform(stand_in), back, "sync").state is State.HEALTHY
        seen = self.wait(self.platform(stand_in), handle, "sync")
        assert (seen.state, seen.reason) == (State.FAILED, "cancelled: its way back began")
        assert stand_in.units[RESOURCE].restarts == 0

    def test_who_switches_between_look_and_switch_wins(self, stand_in: SshStandIn) -> None:
        stand_in.serve.clear()
        _, handle, _ = self.start(stand_in)
        stand_in.meddle(RESOURCE, OTHER)
        stand_in.serve.set()
        seen = self.wait(self.platform(stand_in), handle, "sync")
        assert seen.state is State.SUPERSEDED
        assert stand_in.live(RESOURCE).image == OTHER

    def test_drift_before_the_deploy_is_refused(self, stand_in: SshStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="current leads to releases/hand-"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    def test_steps_that_a_reboot_ended_count_as_failed(self, stand_in: SshStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        (stand_in.root(RESOURCE) / ".multideploy/r0a1b2c3d4/step").write_text("unpacking\n")
        seen = self.platform(stand_in).observe(handle)
        assert (seen.state, seen.reason) == (State.FAILED, "the steps on the host were interrupted while unpacking")

    def test_a_unit_that_systemd_keeps_restarting_has_failed(self, stand_in: SshStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.units[RESOURCE].automatic = 3
        assert self.platform(stand_in).observe(handle).state is State.FAILED
        assert self.platform(stand_in, restarts=4).observe(handle).state is State.HEALTHY
        seen = self.platform(stand_in, restarts=4, settle=999).observe(handle)
        assert seen.state is State.PROGRESSING
        assert "of 999 s" in seen.reason

    def test_what_check_says_is_not_what_is_expected(self, stand_in: SshStandIn) -> None:
        changes: dict[str, Any] = {"check": ["sh", "-c", "echo 1.0.9; exit 3"]}
        platform = self.platform(stand_in, **changes)
        handle = platform.deploy(self.release(), platform.snapshot())
        seen = self.wait(platform, handle, "sync", seconds=1)
        assert seen.state is State.FAILED
        assert "check says '1.0.9' (exit code 3), not '1.1.0'" in seen.reason

    def test_words_stay_words(self, stand_in: SshStandIn) -> None:
        """What a shell could take for its own is refused, or arrives as it was."""
        odd = "$(touch /tmp/p) 'a\" ; b"
        platform = self.platform(stand_in, check=["echo", odd])
        assert platform.snapshot().data["said"] == odd
        for changes in (
            {"package": "https://127.0.0.1/$$(reboot)"},
            {"package": "https://127.0.0.1/a b"},
            {"package": "${image}"},
            {"checksum": "abc"},
        ):
            with pytest.raises((PlatformError, SpecError), match=r"(package|checksum): ") as caught:
                self.platform(stand_in, **changes).deploy(self.release(), platform.snapshot())
            assert not getattr(caught.value, "retryable", False)

    def test_a_strange_key_and_a_strange_host_are_refused(
        self, stand_in: SshStandIn, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, handle, _ = self.start(stand_in)
        connection = stand_in.connection()
        for extra, words in (
            ({"private_key": keys()["stranger"], "private_key_passphrase": None}, "refuses the login"),
            ({"host_key": " ".join(keys()["other.pub"].split()[:2])}, "key is not the expected one"),
        ):
            changed = {**connection, "extra": {**connection["extra"], **extra}}
            monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(changed))
            with pytest.raises(PlatformError, match=words) as caught:
                self.look(self.platform(stand_in), handle, mode)
            assert not caught.value.retryable
        monkeypatch.delenv("AIRFLOW_CONN_CONTRACT")
        with pytest.raises(PlatformError, match="there is no Airflow Connection 'contract'"):
            self.look(self.platform(stand_in), handle, mode)
        stand_in.stop()
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(PlatformError, match="no answer from the host") as caught:
            self.look(self.platform(stand_in), handle, mode)
        assert caught.value.retryable

    def test_a_unit_that_nobody_made_is_named(self, stand_in: SshStandIn) -> None:
        with pytest.raises(PlatformError, match=r"unit other\.service is not-found"):
            self.platform(stand_in, unit="other.service").snapshot()

    def test_old_folders_go_and_the_ones_in_use_stay(self, stand_in: SshStandIn) -> None:
        for number in range(4):
            release = self.release(f"registry.example.com/shop:1.1.{number}", f"r{number}")
            platform = self.platform(stand_in, keep=2)
            handle = platform.deploy(release, platform.snapshot())
            assert self.wait(platform, handle, "sync").state is State.HEALTHY
            time.sleep(0.01)
        self.wait_for_the_end(stand_in, "r3")
        assert set(stand_in.revisions(RESOURCE)) == {"r2", "r3"}

    def test_a_link_that_somebody_made_absolute_keeps_its_folder(self, stand_in: SshStandIn) -> None:
        root = stand_in.root(RESOURCE)
        for number in range(4):
            release = self.release(f"registry.example.com/shop:1.1.{number}", f"r{number}")
            platform = self.platform(stand_in, keep=2)
            snapshot = platform.snapshot()
            handle = platform.deploy(release, snapshot)
            assert self.wait(platform, handle, "sync").state is State.HEALTHY
            self.wait_for_the_end(stand_in, f"r{number}")
            if number == 2:  # back to the one before, by hand: r2 is younger than what is live
                (root / "current").unlink()
                (root / "current").symlink_to(root / "releases/r1")
        assert snapshot.revision == "releases/r1"
        assert set(stand_in.revisions(RESOURCE)) == {"r1", "r2", "r3"}
        self.undo(stand_in, release, snapshot, handle, "sync")

    def test_a_failed_first_release_is_removed(self, stand_in: SshStandIn, world: World) -> None:
        stand_in.seed(RESOURCE, None)
        world.rollout_faults.append(RolloutFault("ssh", "fails"))
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.revisions(RESOURCE) == []
        assert not (stand_in.root(RESOURCE) / "current").is_symlink()

    # --- what is there, in a form that no release made ---------------------------------------------------------------

    def strange(self, stand_in: SshStandIn, form: str) -> Path:
        """Make what runs a strange one; where ``current`` is."""
        current = stand_in.root(RESOURCE) / "current"
        if form == "folder":
            shutil.copytree(current.resolve(), stand_in.root(RESOURCE) / "copy")
            current.unlink()
            (stand_in.root(RESOURCE) / "copy").rename(current)
        else:
            current.unlink()
        if form == "file":
            current.write_text("1.0.0\n")
        elif form == "dangling":
            current.symlink_to("releases/gone")
        return current

    @pytest.mark.parametrize(
        ("form", "words"),
        [
            ("folder", "current is no link; make it one"),
            ("file", "current is no link; make it one"),
            ("dangling", "leads to releases/gone, which is no folder"),
            ("missing", r"shop.service is active \(running\), and there is no .*current; .* or stop the unit"),
        ],
    )
    def test_what_could_not_be_restored_is_refused_before_anything_is_written(
        self, stand_in: SshStandIn, world: World, form: str, words: str
    ) -> None:
        self.strange(stand_in, form)
        with self.unwritten(stand_in, world), pytest.raises(PlatformError, match=words) as caught:
            self.platform(stand_in).snapshot()
        assert not caught.value.retryable
        assert stand_in.units[RESOURCE].state()[0] == "active"

    def test_a_unit_that_keeps_failing_without_a_release_is_no_obstacle_to_the_first(
        self, stand_in: SshStandIn
    ) -> None:
        stand_in.seed(RESOURCE, None)
        unit = stand_in.units[RESOURCE]
        unit.runs, unit.course = "", Course("fails", 0.0)
        assert self.platform(stand_in).snapshot().exists is False

    @pytest.mark.parametrize("form", ["folder", "missing"])
    def test_a_way_back_never_stops_a_unit_that_the_release_did_not_start(
        self, stand_in: SshStandIn, world: World, form: str
    ) -> None:
        """Somebody comes between the snapshot of nothing and the switch, or the fetch fails before it."""
        live = stand_in.units[RESOURCE].runs
        nothing = Snapshot(exists=False, data={"said": None, "active": False})
        current = self.strange(stand_in, form)
        release = self.release()
        stand_in.serve.clear()  # the package does not come
        if form == "missing":
            handle = self.platform(stand_in).deploy(release, nothing)
            back = self.platform(stand_in).rollback(release, nothing, handle)
            stand_in.serve.set()
            assert self.wait(self.platform(stand_in), back, "sync").state is State.HEALTHY
        else:
            with pytest.raises(Drift, match="leads to nothing, as it is no link"):
                self.platform(stand_in).deploy(release, nothing)
            with pytest.raises(Drift):
                self.platform(stand_in).rollback(release, nothing, None)
            assert (current / "VERSION").read_text() == "1.0.0\n"
        assert stand_in.units[RESOURCE].runs == live, "the unit was stopped"

    def test_a_folder_that_comes_before_the_switch_is_left_alone(self, stand_in: SshStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        release, snapshot = self.release(), self.platform(stand_in).snapshot()
        stand_in.serve.clear()
        handle = self.platform(stand_in).deploy(release, snapshot)
        (stand_in.root(RESOURCE) / "current").mkdir()
        stand_in.serve.set()
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.SUPERSEDED
        with pytest.raises(Drift, match="no link"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert (stand_in.root(RESOURCE) / "current").is_dir()

    def wait_for_the_end(self, stand_in: SshStandIn, id_: str) -> None:
        with (stand_in.root(RESOURCE) / ".multideploy" / id_ / "running").open() as running:
            fcntl.flock(running, fcntl.LOCK_EX)
