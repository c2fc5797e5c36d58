"""The Helm adapter with the real helm and a real API server: the shared contract, and what only Helm does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.clusters.helm import Helm
from airflow_multideploy.platforms.clusters.workloads import AGAIN
from airflow_multideploy.release.contract import Snapshot, State
from airflow_multideploy.release.wait import persist
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, SECRET, PlatformContract, QuickClock
from tests.stand_ins.helm import HelmStandIn, program
from tests.stand_ins.kube import cluster
from tests.stand_ins.kubernetes import MERGE

HOOK = """
{apiVersion: v1, kind: ConfigMap, metadata: {name: No_Name, annotations: {helm.sh/hook: post-install}}}
"""
"""A hook that the API refuses, when all else is installed."""


@pytest.fixture(scope="module")
def kube() -> Iterator[HelmStandIn]:
    stand_in = HelmStandIn(World(), cluster())
    stand_in.start()
    yield stand_in
    stand_in.stop()


class TestHelm(PlatformContract):
    rollout_seconds = 0.2

    @pytest.fixture
    def stand_in(self, world: World, kube: HelmStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HelmStandIn:
        (tmp_path / "helm").symlink_to(program())
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(kube.connection()))
        kube.reset(world)
        kube.seed(RESOURCE, OLD)
        return kube

    # --- what helm is told -------------------------------------------------------------------------------------------

    def test_the_values_of_others_stay(self, stand_in: HelmStandIn) -> None:
        name = stand_in.names[RESOURCE]
        stand_in.put(
            name, lambda: stand_in.helm("upgrade", name, str(stand_in.chart), "--reuse-values", "--set=replicas=2")
        )
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert json.loads(stand_in.helm("get", "values", name, "-o", "json")) == {"image": {"ref": NEW}, "replicas": 2}
        self.platform(stand_in, reuse_values=False).deploy(self.release(OTHER, "r1alone"), self.snapshot(stand_in))
        assert json.loads(stand_in.helm("get", "values", name, "-o", "json")) == {"image": {"ref": OTHER}}

    def snapshot(self, stand_in: HelmStandIn) -> Snapshot:
        return persist(lambda: self.platform(stand_in).snapshot(), clock=QuickClock(), until=time.time() + 20)

    def test_no_secret_is_an_argument_and_the_kubeconfig_is_private(
        self, stand_in: HelmStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spy, told = tmp_path / "spy", tmp_path / "told"
        spy.mkdir()
        (spy / "helm").write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >{told}\nwhile [ "$1" != --kubeconfig ]; do shift; done\n'
            f'stat -c %a "$2" "$(dirname "$2")" >{told}.modes\nexit 3\n'
        )
        (spy / "helm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{spy}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(), self.snapshot(stand_in))
        arguments = told.read_text().splitlines()
        assert arguments[:4] == ["upgrade", stand_in.names[RESOURCE], str(stand_in.chart), "--install"]
        assert SECRET not in told.read_text()
        assert Path(f"{told}.modes").read_text().split() == ["600", "700"]
        assert not Path(arguments[arguments.index("--kubeconfig") + 1]).exists()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [({"chart": "/nowhere/shop"}, "helm upgrade: .*not found"), ({"values": {"image": 1}}, "helm upgrade: .*ref")],
    )
    def test_what_helm_refuses_is_not_tried_again(
        self, stand_in: HelmStandIn, changes: dict[str, object], words: str
    ) -> None:
        platform = self.platform(stand_in, **changes)
        with pytest.raises(PlatformError, match=words) as caught:
            platform.deploy(self.release(), platform.snapshot())
        assert not caught.value.retryable

    def test_without_helm_it_says_so(self, stand_in: HelmStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = self.platform(stand_in).snapshot()
        monkeypatch.setenv("PATH", "")
        with pytest.raises(PlatformError, match="install Helm 4 on the workers"):
            self.platform(stand_in).deploy(self.release(), snapshot)

    @pytest.mark.parametrize(
        "changes", [{"values": {"a": ["${nothing}"]}}, {"chart": "--post-renderer=x"}, {"release": "-x"}]
    )
    def test_a_config_that_is_none_is_refused(self, stand_in: HelmStandIn, changes: dict[str, object]) -> None:
        with pytest.raises(SpecError, match=next(iter(changes))):
            self.platform(stand_in, **changes)

    # --- what helm kept ----------------------------------------------------------------------------------------------

    def test_its_records_are_read_as_helm_reads_them(self, stand_in: HelmStandIn) -> None:
        """The contract: what ``helm history`` and ``helm get manifest`` say of the same release."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        platform = self.platform(stand_in)
        assert isinstance(platform, Helm)
        records = platform._run(platform._records())
        ours = [{"revision": r.number, "status": r.status, "description": r.description} for r in records]
        theirs = [{key: line[key] for key in ours[0]} for line in stand_in.history(RESOURCE)]
        assert ours == theirs
        assert [line["description"] for line in theirs] == [
            "Install complete",
            f"multideploy {release.release_id} 1.1.0",
            "Rollback to 1",
        ]
        manifest = yaml.safe_load(stand_in.helm("get", "manifest", stand_in.names[RESOURCE]))
        assert records[-1].deployments() == [manifest]

    def test_a_crashed_helm_of_ours_is_gone_over(self, stand_in: HelmStandIn, world: World) -> None:
        """It died after its first record, so that Helm itself would refuse to go on."""
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="^POST .*secrets"))
        snapshot = self.snapshot(stand_in)
        with pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.history(RESOURCE)[-1]["status"] == "pending-upgrade"
        self.undo(stand_in, self.release(), snapshot, None, "sync")
        assert stand_in.history(RESOURCE)[-1]["description"] == "Rollback to 1"
        assert stand_in.live(RESOURCE).image == OLD

    def test_a_first_install_that_crashed_can_be_made_again(self, stand_in: HelmStandIn, world: World) -> None:
        stand_in.seed(RESOURCE, None)
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="^POST .*secrets"))
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "async").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_another_helm_at_work_is_waited_for(self, stand_in: HelmStandIn, world: World) -> None:
        snapshot = self.snapshot(stand_in)
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="^POST .*secrets"))
        with pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(OTHER, "r1else"), snapshot)
        with pytest.raises(PlatformError, match="pending-upgrade") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, AGAIN)
        with pytest.raises(Drift):
            self.platform(stand_in).deploy(self.release(), snapshot)

    # --- records of which none is deployed ---------------------------------------------------------------------------

    def by_hand(self, stand_in: HelmStandIn, *arguments: str) -> None:
        """Somebody's helm, which fails."""
        with pytest.raises(subprocess.CalledProcessError):
            stand_in.helm(*arguments)

    @contextmanager
    def broken(self, stand_in: HelmStandIn) -> Iterator[None]:
        """The chart's last hook fails."""
        hook = stand_in.chart / "templates" / "hook.yaml"
        hook.write_text(HOOK)
        yield
        hook.unlink()

    def failed_install(self, stand_in: HelmStandIn) -> str:
        """Somebody's first install, whose last hook failed; its pods run."""
        stand_in.seed(RESOURCE, None)
        name = stand_in.names[RESOURCE]
        with self.broken(stand_in):
            arguments = ("install", name, str(stand_in.chart), "--set", f"image.ref={OLD}")
            stand_in.put(name, lambda: self.by_hand(stand_in, *arguments))
        assert [line["status"] for line in stand_in.history(RESOURCE)] == ["failed"]
        return name

    def test_a_failed_install_of_somebody_that_runs_is_never_uninstalled(
        self, stand_in: HelmStandIn, world: World, mode: str
    ) -> None:
        self.failed_install(stand_in)
        snapshot = self.snapshot(stand_in)
        assert (snapshot.exists, snapshot.revision, snapshot.image) == (True, "1", OLD)
        assert self.platform(stand_in).rollback(self.release(), snapshot, None).changed is False
        self.undo(stand_in, self.release(), snapshot, None, mode)
        with self.going_wrong(world, RolloutFault(stand_in.kind, "fails")):
            handle = self.deployed(stand_in, self.release(), snapshot)
            assert self.wait(self.platform(stand_in), handle, mode).state is State.FAILED
        self.undo(stand_in, self.release(), snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD
        assert stand_in.history(RESOURCE)[-1]["description"] == "Rollback to 1"

    def test_the_older_revision_that_runs_is_the_one_to_go_back_to(self, stand_in: HelmStandIn) -> None:
        name = stand_in.names[RESOURCE]
        self.by_hand(stand_in, "upgrade", name, str(stand_in.chart), "--set", f"image.ref={OTHER}", "--set=replicas=x")
        secrets = f"/api/v1/namespaces/{stand_in.namespace}/secrets/sh.helm.release.v1.{name}.v1"
        stand_in.cluster.call("PATCH", secrets, {"metadata": {"labels": {"status": "superseded"}}}, kind=MERGE)
        snapshot = self.snapshot(stand_in)
        assert (snapshot.revision, snapshot.image) == ("1", OLD)

    def test_records_of_which_nothing_runs_are_refused_before_anything_is_written(
        self, stand_in: HelmStandIn, world: World
    ) -> None:
        name = self.failed_install(stand_in)
        stand_in.cluster.call("DELETE", stand_in.deployments(name))
        words = rf"no deployed revision \(the newest, 1, is failed: .*`helm uninstall {name}`"
        with self.unwritten(stand_in, world), pytest.raises(PlatformError, match=words) as caught:
            self.snapshot(stand_in)
        assert not caught.value.retryable

    def test_the_releases_own_failed_first_install_is_uninstalled(self, stand_in: HelmStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot = self.snapshot(stand_in)
        with self.broken(stand_in), pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert [line["status"] for line in stand_in.history(RESOURCE)] == ["failed"]
        self.undo(stand_in, self.release(), snapshot, None, "sync")
        with pytest.raises(subprocess.CalledProcessError):
            stand_in.history(RESOURCE)

    def test_a_crashed_helm_of_ours_over_a_failed_install_uninstalls_nothing(
        self, stand_in: HelmStandIn, world: World
    ) -> None:
        self.failed_install(stand_in)
        snapshot = self.snapshot(stand_in)
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="^POST .*secrets"))
        handle = self.deployed(stand_in, self.release(), snapshot)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        told = [line["description"] for line in stand_in.history(RESOURCE)]
        assert told[2:] == ["Rollback to 1", f"multideploy {self.release().release_id} 1.1.0"]

    def test_a_pending_install_is_not_told_to_go_back_to_what_never_was(
        self, stand_in: HelmStandIn, world: World
    ) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot = self.snapshot(stand_in)
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="^POST .*secrets"))
        with pytest.raises(PlatformError):
            self.platform(stand_in).deploy(self.release(OTHER, "r1else"), snapshot)
        with pytest.raises(PlatformError, match=f"pending-install .*`helm uninstall {stand_in.names[RESOURCE]}` first"):
            self.platform(stand_in).snapshot()

    def test_an_edit_past_helm_is_not_healthy(self, stand_in: HelmStandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        edit = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": OTHER}]}}}}
        stand_in.cluster.call("PATCH", stand_in.deployments(stand_in.names[RESOURCE]), edit, kind=MERGE)
        seen = self.look(self.platform(stand_in), handle, mode)
        assert (seen.state, OTHER in seen.reason) == (State.SUPERSEDED, True)

    def test_a_chart_without_a_deployment_is_not_verified(self, stand_in: HelmStandIn, tmp_path: Path) -> None:
        chart = tmp_path / "settings"
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text("{apiVersion: v2, name: settings, version: 1.0.0}\n")
        (chart / "templates" / "map.yaml").write_text(
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Release.Name }}}}\n"
        )
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, chart=str(chart))
        seen = platform.observe(platform.deploy(self.release(), platform.snapshot()))
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert "no Deployment" in seen.reason
