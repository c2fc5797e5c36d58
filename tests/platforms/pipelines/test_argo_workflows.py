from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from jsonschema import ValidationError
from openapi_spec_validator import validate

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.pipelines import ArgoWorkflowsDeployOperator
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.platforms.pipelines.argo_workflows import ArgoWorkflows
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.world import RolloutFault, StandIn, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.argo_openapi import DOCUMENT
from tests.stand_ins.argo_workflows import ArgoWorkflowsStandIn
from tests.stand_ins.openapi import Document, Exchange


class TestArgoWorkflows(PlatformContract):
    rollout_seconds = 0.15

    def make_stand_in(self, world: World) -> StandIn:
        return ArgoWorkflowsStandIn(world)

    def test_a_workflow_holds_parameters_and_release(self, stand_in: ArgoWorkflowsStandIn) -> None:
        platform = self.platform(stand_in, parameters={"image": "${image}", "flags": "a=b,c=${version}"})
        platform.deploy(self.release(), platform.snapshot())
        run = stand_in.pipelines.all()[-1]
        assert (run.key, run.pipeline) == ("r0a1b2c3d4-t1", "deploy-shop")
        assert run.parameters == {"image": NEW, "flags": "a=b,c=1.1.0"}
        assert run.extra["labels"] == {"multideploy/release": "r0a1b2c3d4"}

    @pytest.mark.parametrize("target", ["eu_west", "eu-west", "a" * 40, "a" * 39 + "b"])
    def test_a_name_fits_kubernetes_and_belongs_to_one_target(
        self, stand_in: ArgoWorkflowsStandIn, target: str
    ) -> None:
        config = {**stand_in.target(RESOURCE), "conn_id": "contract"}
        platform, names = adapter(config, service="shop", target=target), set()
        assert isinstance(platform, ArgoWorkflows)
        for other in ("eu_west", "eu-west", "a" * 40, "a" * 39 + "b"):
            neighbour = adapter(config, service="shop", target=other)
            assert isinstance(neighbour, ArgoWorkflows)
            names.add(neighbour._key("r0a1b2c3d4-12-back12"))
        assert len(names) == 4
        assert all(len(name) <= 63 and "_" not in name for name in names)
        handle = platform.deploy(self.release(), platform.snapshot())
        assert self.wait(platform, handle, "sync").state is State.HEALTHY

    def test_a_failure_is_told_by_its_step(self, stand_in: ArgoWorkflowsStandIn, world: World, mode: str) -> None:
        world.rollout_faults.append(RolloutFault("argo_workflows", "fails", reason="Error (exit code 3)"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.reason == "run r0a1b2c3d4-t1 of deploy-shop failed: deploy: Error (exit code 3)"

    def test_progress_is_told(self, stand_in: ArgoWorkflowsStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault("argo_workflows", "hangs"))
        _, handle, _ = self.start(stand_in)
        seen = self.platform(stand_in).observe(handle)
        assert (seen.state, seen.progress) == (State.PROGRESSING, pytest.approx(1 / 3))

    @pytest.mark.parametrize("verb", ["terminate", "stop"])
    def test_the_way_back_waits_until_the_workflow_has_stopped(
        self, stand_in: ArgoWorkflowsStandIn, world: World, verb: str
    ) -> None:
        world.rollout_faults.append(RolloutFault("argo_workflows", "hangs"))
        snapshot, handle, release = self.start(stand_in)
        platform = self.platform(stand_in, stop=verb)
        with pytest.raises(PlatformError, match="was told to stop and has not ended yet") as caught:
            platform.rollback(release, snapshot, handle)
        assert caught.value.retryable
        assert len(stand_in.revisions(RESOURCE)) == 1
        assert platform.rollback(release, snapshot, handle).changed
        path = "/api/v1/workflows/ci"
        assert [call.operation for call in world.calls_of("argo_workflows", writes=True)] == [
            f"POST {path}/submit", f"PUT {path}/r0a1b2c3d4-t1/{verb}", f"POST {path}/submit"
        ]  # fmt: skip

    def test_another_template_goes_back(self, stand_in: ArgoWorkflowsStandIn, mode: str) -> None:
        platform = self.platform(stand_in, rollback_template="rollback-shop")
        snapshot = platform.snapshot()
        handle = platform.deploy(self.release(), snapshot)
        self.wait(platform, handle, mode)
        back = platform.rollback(self.release(), snapshot, handle)
        assert self.wait(platform, back, mode).state is State.HEALTHY
        last = stand_in.pipelines.runs[-1]
        assert (last.pipeline, last.key, last.parameters) == ("rollback-shop", "r0a1b2c3d4-back-t1", {"image": OLD})

    def test_in_the_same_second_somebody_elses_workflow_counts(self, stand_in: ArgoWorkflowsStandIn) -> None:
        """Argo tells whole seconds: what cannot be put in order is not taken for ours."""
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        ours = stand_in.pipelines.runs[-1]
        ours.started = int(ours.started) + 0.5
        stand_in.meddle(RESOURCE, OTHER)
        stand_in.pipelines.runs[-1].started = ours.started - 0.1
        assert self.platform(stand_in).observe(handle).state is State.SUPERSEDED
        with pytest.raises(Drift):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_a_workflow_that_was_cleaned_up_is_not_judged(self, stand_in: ArgoWorkflowsStandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.pipelines.runs.pop()
        seen = self.look(self.platform(stand_in), handle, mode)
        assert seen.state is State.UNKNOWN
        assert "keep runs for longer than a release takes" in seen.reason

    @pytest.mark.parametrize("key", ["template", "rollback_template", "remove_template"])
    def test_a_template_that_does_not_exist_is_named_before_any_write(
        self, stand_in: ArgoWorkflowsStandIn, key: str
    ) -> None:
        with pytest.raises(PlatformError, match='"nowhere" not found') as caught:
            self.platform(stand_in, **{key: "nowhere"}).snapshot()
        assert not caught.value.retryable

    def test_a_namespace_without_rights_is_named(self, stand_in: ArgoWorkflowsStandIn) -> None:
        with pytest.raises(PlatformError, match=r"HTTP 403: Permission denied.*check login, password and rights"):
            self.platform(stand_in, namespace="other").snapshot()

    def test_console(self, stand_in: ArgoWorkflowsStandIn) -> None:
        platform = self.platform(stand_in, console="https://argo.example.com")
        assert platform.console_url() == "https://argo.example.com/workflow-templates/ci/deploy-shop"
        handle = platform.deploy(self.release(), platform.snapshot())
        assert platform.console_url(handle) == "https://argo.example.com/workflows/ci/r0a1b2c3d4-t1"


def test_a_parameter_without_the_release_is_refused() -> None:
    config = {
        "platform": "argo_workflows",
        "conn_id": "c",
        "namespace": "ci",
        "template": "t",
        "parameters": {"a": "b"},
    }
    with pytest.raises(SpecError, match="every release would be the same run"):
        adapter(config, service="shop", target="t1")


def test_operator() -> None:
    operator = ArgoWorkflowsDeployOperator(
        task_id="argo", conn_id="c", namespace="ci", template="deploy-shop", parameters={"tag": "${version}"}
    )
    assert operator.config["parameters"] == {"tag": "${version}"}


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    """What passes in a deploy, a failing deploy, a stopped one and each one's rollback."""
    world = World(seconds=0.6)  # Argo tells times in whole seconds: two releases of one second have no order
    stand_in = ArgoWorkflowsStandIn(world)
    stand_in.start()
    stand_in.seed(RESOURCE, None)
    suite = TestArgoWorkflows()
    platform = adapter({**stand_in.target(RESOURCE), "conn_id": "contract"}, service="shop", target="t1")
    assert isinstance(platform, ArgoWorkflows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
        assert not platform.snapshot().exists
        stand_in.seed(RESOURCE, OLD)
        for outcome in (None, "fails", "hangs"):
            if outcome:
                world.rollout_faults.append(RolloutFault("argo_workflows", outcome))  # type: ignore[arg-type]
            snapshot, handle, release = suite.start(stand_in, suite.release(release_id=f"r{outcome}".lower()))
            again = platform._submit("deploy-shop", str(handle.data["key"]), {}, release)
            assert platform._run(again).id == handle.revision
            if outcome != "hangs":
                suite.wait(platform, handle, "async")
            suite.undo(stand_in, release, snapshot, handle, "sync")
    stand_in.stop()
    return stand_in.recorder.exchanges


def test_the_document_is_openapi() -> None:
    validate(DOCUMENT)


def test_all_that_passes_is_what_argo_documents(exchanges: list[Exchange]) -> None:
    document = Document(DOCUMENT)
    operations = ("List", "Get", "Submit", "Terminate")
    assert {document.check(e) for e in exchanges} == {
        "WorkflowTemplateService_GetWorkflowTemplate",
        *(f"WorkflowService_{name}Workflow{'s' if name == 'List' else ''}" for name in operations),
    }
    assert {exchange.status for exchange in exchanges} == {200, 404, 409}


@pytest.mark.parametrize(
    ("operation", "spoil"),
    [
        ("SubmitWorkflow", lambda e: setattr(e, "body", e.body.replace(b"resourceName", b"template"))),
        ("SubmitWorkflow", lambda e: setattr(e, "body", e.body.replace(b"image=", b"image:"))),
        ("SubmitWorkflow", lambda e: setattr(e, "answer", e.answer.replace(b'"uid"', b'"id"'))),
        ("GetWorkflow", lambda e: setattr(e, "answer", e.answer.replace(b'"phase":"', b'"phase":"Not'))),
        ("GetWorkflow", lambda e: setattr(e, "answer", e.answer.replace(b"T", b" "))),
        ("ListWorkflows", lambda e: e.query.append(("labelSelector", "a=b"))),
        ("TerminateWorkflow", lambda e: setattr(e, "body", b"")),
    ],
)
def test_the_checker_refuses_what_does_not_fit(exchanges: list[Exchange], operation: str, spoil: Any) -> None:
    document = Document(DOCUMENT)
    found = next(e for e in exchanges if e.status == 200 and document.check(e) == f"WorkflowService_{operation}")
    exchange = copy.deepcopy(found)
    spoil(exchange)
    with pytest.raises((ValidationError, json.JSONDecodeError)):
        document.check(exchange)
