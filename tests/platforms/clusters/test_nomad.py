"""Nomad against its stand-in: the public contract, and what is special to Nomad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.clusters import NomadDeployOperator
from airflow_multideploy.platforms.clusters.nomad import AGAIN
from airflow_multideploy.platforms.clusters.nomad_judge import RELEASE_META, judge, rest_of
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.sandbox.world import CallFault, Course, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.nomad import KIND, NomadStandIn, Refused, Violation, check


class TestNomad(PlatformContract):
    """The public contract, and Nomad's own behaviour. All that passes is judged by the schema in the stand-in."""

    rollout_seconds = 0.2
    port = 0

    def make_stand_in(self, world: World) -> NomadStandIn:
        """At the same address each time: Airflow learns each Connection's secrets for its logs, which takes a while."""
        stand_in = NomadStandIn(world, port=type(self).port)
        type(self).port = stand_in.port
        return stand_in

    @pytest.fixture(autouse=True)
    def _contract_kept(self, stand_in: NomadStandIn) -> Iterator[None]:
        yield
        assert stand_in.violations == []

    def job(self, stand_in: NomadStandIn) -> Any:
        return stand_in.jobs[RESOURCE].job

    def test_a_release_changes_image_and_label_alone(self, stand_in: Any, mode: str) -> None:
        before = json.loads(json.dumps(self.job(stand_in)["TaskGroups"]))
        snapshot, handle, release = self.start(stand_in)
        assert (snapshot.revision, handle.revision) == ("0", "1")
        after = self.job(stand_in)
        assert after["Meta"] == {RELEASE_META: release.release_id}
        assert after["TaskGroups"][0]["Tasks"][0]["Config"] == {"image": NEW, "ports": ["http"]}
        after["TaskGroups"][0]["Tasks"][0]["Config"]["image"] = OLD
        assert after["TaskGroups"] == before
        after["TaskGroups"][0]["Tasks"][0]["Config"]["image"] = NEW
        self.wait(self.platform(stand_in), handle, mode)
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.job(stand_in)["TaskGroups"] == before
        assert self.job(stand_in)["Meta"] is None

    def test_a_failure_says_what_the_tasks_say(self, stand_in: Any, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "fails", reason="Exit Code: 137"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.revision) == (State.FAILED, "1")
        assert seen.reason == (
            "Failed due to unhealthy allocations; web: Not Restarting: Exceeded allowed attempts 2; "
            "web: Terminated: Exit Code: 137"
        )

    def test_nomads_own_way_back_is_a_failure_and_is_not_repeated(self, stand_in: Any, world: World, mode: str) -> None:
        stand_in.auto_revert = True
        world.rollout_faults.append(RolloutFault(KIND, "fails", reason="Exit Code: 137"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "rolling back to job version 0; web: Not Restarting" in seen.reason
        writes = len(world.calls_of(KIND, writes=True))
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD
        assert len(world.calls_of(KIND, writes=True)) == writes

    def test_a_way_back_that_failed_is_registered_anew(self, stand_in: Any, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        world.rollout_faults.append(RolloutFault(KIND, "fails"))
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        assert self.wait(self.platform(stand_in), back, "sync").state is State.FAILED
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert self.job(stand_in)["Meta"] == {RELEASE_META: f"{release.release_id}-back"}

    def test_a_version_that_nomad_forgot(self, stand_in: Any, mode: str) -> None:
        """What the release changed in it is known."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        del stand_in.jobs[RESOURCE].versions[0]
        stand_in.jobs[RESOURCE].rollouts = stand_in.jobs[RESOURCE].rollouts[1:]
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD
        assert self.job(stand_in)["Meta"] is None

    @pytest.mark.parametrize("step", ["deploy", "rollback"])
    def test_a_change_between_read_and_write_is_not_overwritten(
        self, stand_in: Any, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        if step == "rollback":
            self.wait(platform, platform.deploy(self.release(), snapshot), "sync")
        name = "_register" if step == "deploy" else "_revert"
        call = getattr(stand_in, name)

        def somebody_is_faster(*given: Any) -> Any:
            stand_in.meddle(RESOURCE, OTHER)
            return call(*given)

        monkeypatch.setattr(stand_in, name, somebody_is_faster)
        write = platform.deploy if step == "deploy" else lambda *given: platform.rollback(*given, None)
        with pytest.raises(
            PlatformError, match=r"Enforcing job modify index|Current job has version 2; enforcing"
        ) as caught:
            write(self.release(), snapshot)
        assert caught.value.retryable
        with pytest.raises(Drift):
            write(self.release(), snapshot)
        assert stand_in.live(RESOURCE).image == OTHER

    def test_an_autoscaler_may_change_the_counts(self, stand_in: Any, mode: str) -> None:
        """It makes a version of its own, with our label, in the middle of it all."""

        def scale(count: int) -> None:
            job = json.loads(json.dumps(self.job(stand_in)))
            job["TaskGroups"][0]["Count"] = count
            stand_in.write(RESOURCE, job, by_api=False, course=Course("succeeds", 0))

        platform = self.platform(stand_in)
        snapshot = platform.snapshot()
        scale(5)
        handle = platform.deploy(self.release(), snapshot)
        scale(7)
        assert self.wait(platform, handle, mode).state is State.HEALTHY
        self.undo(stand_in, self.release(), snapshot, handle, mode)
        assert stand_in.live(RESOURCE).image == OLD

    def test_an_edit_that_keeps_label_and_image_is_not_ours(self, stand_in: Any, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        job = json.loads(json.dumps(self.job(stand_in)))
        job["TaskGroups"][0]["Tasks"][0]["Env"] = {"MODE": "other"}
        stand_in.write(RESOURCE, job, by_api=False, course=Course("succeeds", 0))
        assert self.look(self.platform(stand_in), handle, mode).state is State.SUPERSEDED
        with pytest.raises(Drift, match="of neither this release nor the snapshot"):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_a_stopped_job_is_started_and_stopped_again(self, stand_in: Any, mode: str) -> None:
        stand_in._stop(RESOURCE, {}, {})
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.undo(stand_in, release, snapshot, handle, mode)
        assert self.job(stand_in)["Stop"], "it was there before, and so it is not purged"
        stand_in.seed(RESOURCE, OTHER)
        with pytest.raises(Drift, match="not of this release"):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_a_job_that_somebody_stopped(self, stand_in: Any, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        stand_in._stop(RESOURCE, {}, {})
        assert "stopped: not by us" in self.look(self.platform(stand_in), handle, mode).reason
        with pytest.raises(Drift, match="stopped since the snapshot"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        with pytest.raises(Drift, match="stopped the job since"):
            self.platform(stand_in).deploy(self.release(release_id="r-next"), snapshot)

    def test_somebody_elses_rollout_under_way_is_no_snapshot(self, stand_in: Any, world: World) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "hangs"))
        self.start(stand_in, self.release(OTHER, "r-theirs"))
        with pytest.raises(PlatformError, match="the deployment of version 1 is running") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, AGAIN)

    def test_first_ever_release(self, stand_in: Any) -> None:
        stand_in.seed(RESOURCE, None)
        bare = self.platform(stand_in, specification=None)
        with pytest.raises(PlatformError, match="does not exist; run it once"):
            bare.deploy(self.release(), bare.snapshot())
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.jobs == {}

    def test_a_specification_that_nomad_refuses_is_not_tried_again(
        self, stand_in: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Although Nomad says so with 500."""

        def refuses(*_: Any) -> None:
            raise Refused(500, "1 error occurred:\n\t* Missing job datacenters")

        monkeypatch.setattr(stand_in, "_register", refuses)
        with pytest.raises(PlatformError, match="Missing job datacenters") as caught:
            self.start(stand_in)
        assert not caught.value.retryable

    def test_a_write_whose_result_cannot_be_read_had_its_effect(self, stand_in: Any, world: World) -> None:
        platform, snapshot = self.platform(stand_in), self.platform(stand_in).snapshot()
        for nth, no_effect in ((1, True), (2, False)):
            world.call_faults.append(CallFault(KIND, "400", operation="^GET", nth=nth))
            with pytest.raises(PlatformError, match="HTTP 400") as caught:
                platform.deploy(self.release(), snapshot)
            assert caught.value.no_effect is no_effect
        assert stand_in.revisions(RESOURCE) == ["1"]

    def test_which_task_gets_the_image(self, stand_in: Any) -> None:
        job = json.loads(json.dumps(self.job(stand_in)))
        job["TaskGroups"][0]["Tasks"][1]["Config"]["image"] = "proxy:1"
        stand_in.write(RESOURCE, job, by_api=False, course=Course("succeeds", 0))
        with pytest.raises(PlatformError, match=r"Set `task`; with images: web \(.*1\.0\.0\), log \(proxy:1\)"):
            self.platform(stand_in).snapshot()
        platform = self.platform(stand_in, task="web")
        assert platform.snapshot().image == OLD
        platform.deploy(self.release(), platform.snapshot())
        images = [task["Config"]["image"] for task in self.job(stand_in)["TaskGroups"][0]["Tasks"]]
        assert images == [NEW, "proxy:1"]

    def test_batch_jobs_are_not_released(self, stand_in: Any) -> None:
        self.job(stand_in)["Type"] = "batch"
        with pytest.raises(PlatformError, match="is of type batch"):
            self.platform(stand_in).snapshot()

    def test_every_call_is_judged(self, stand_in: Any, world: World) -> None:
        world.rollout_faults.append(RolloutFault(KIND, "fails"))
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in, namespace="shops", region="eu"), handle, "async")
        self.undo(stand_in, release, snapshot, handle, "async")
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.seen == {"read", "register", "revert", "stop", "deployments", "allocations"}

    def test_the_token_goes_over_tls_only(self, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = stand_in.connection() | {"host": "http://nomad.example.com:4646"}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(SpecError, match="refusing to send credentials over plain http"):
            self.platform(stand_in).snapshot()


def _job(**changes: Any) -> Any:
    task = {"Name": "web", "Config": {"image": NEW}}
    return {"Version": 3, "Type": "service", "TaskGroups": [{"Name": "web", "Count": 2, "Tasks": [task]}], **changes}


def test_a_version_without_a_deployment_is_judged_by_its_allocations() -> None:
    data = {"image": NEW, "rest": rest_of(_job(), None), "label": None, "version": 3}
    handle = Handle(action="rollback", revision="3", data=data)

    def seen(*allocations: tuple[int, str], **changes: Any) -> State:
        stubs = [
            {"JobVersion": v, "ClientStatus": status, "DesiredStatus": "run", "TaskGroup": "web"}
            for v, status in allocations
        ]
        return judge(_job(**changes), [], stubs, handle, task=None, limit=2).state

    assert seen() is State.PROGRESSING
    assert seen((2, "running"), (2, "running")) is State.PROGRESSING
    assert seen((3, "running"), (2, "running")) is State.PROGRESSING
    assert seen((3, "running"), (3, "running")) is State.HEALTHY
    assert seen((3, "running"), (3, "failed")) is State.PROGRESSING
    assert seen((3, "failed"), (3, "failed")) is State.FAILED


def test_unhealthy_allocations_count_before_nomad_gives_up() -> None:
    data = {"image": NEW, "rest": rest_of(_job(), None), "label": None, "version": 3}
    deployment = {
        "JobVersion": 3,
        "Status": "running",
        "TaskGroups": {"web": {"DesiredTotal": 2, "UnhealthyAllocs": 1}},
    }
    handle = Handle(action="deploy", revision="3", changed=False, data=data)
    assert judge(_job(), [deployment], [], handle, task=None, limit=1).state is State.FAILED
    assert judge(_job(), [deployment], [], handle, task=None, limit=2).state is State.PROGRESSING


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("Job", {"Id": "shop"}),
        ("Job", {"Type": "daemon"}),
        ("Job", {"Meta": {"a": 1}}),
        ("JobRegisterRequest", {"Job": {}, "EnforceIndex": "true"}),
        ("JobRegisterRequest", {"Job": {}, "JobModifyIndex": True}),
        ("JobRevertRequest", {"JobID": "shop", "JobVersion": "1"}),
        (["Deployment"], [{"Status": "done"}]),
        (["Deployment"], {"Status": "failed"}),
    ],
)
def test_what_the_schema_refuses(kind: Any, value: Any) -> None:
    with pytest.raises(Violation):
        check(kind, value, "x")


def test_the_operator_packs_its_arguments() -> None:
    operator = NomadDeployOperator(task_id="deploy", conn_id="dc", job="shop", task="web", image=NEW, version="1.1.0")
    assert operator.kind == KIND
    assert operator.config == {"platform": KIND, "conn_id": "dc", "job": "shop", "task": "web"}
