"""Azure Container Instances: the conformance suite, what only this platform does, and the official contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import azure.identity.aio
import azure.mgmt.containerinstance.aio  # noqa: F401 - takes longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401
from azure.mgmt.containerinstance import models
from azure.mgmt.containerinstance.operations import _container_groups_operations as operations

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.operators.azure import AzureContainerInstancesDeployOperator
from airflow_multideploy.platforms.azure.container_instances import AzureContainerInstancesConfig
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.azure_web_app import GROUP, SUBSCRIPTION, TENANT
from airflow_multideploy.sandbox.world import RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.azure_container_instances import SECRETS, AzureContainerInstancesStandIn, group
from tests.stand_ins.azure_models import Exchange, recording


class TestAzureContainerInstances(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20

    def make_stand_in(self, world: World) -> AzureContainerInstancesStandIn:
        return AzureContainerInstancesStandIn(world)

    def test_only_image_and_tag_change_and_secrets_come_from_the_connection(
        self, stand_in: AzureContainerInstancesStandIn
    ) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        document = stand_in.groups[RESOURCE].document
        expected = group(NEW)
        expected["tags"]["multideploy-release"] = handle.data["mark"]
        assert document == expected
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        for kept in (snapshot, handle, back):
            assert "others-canary" not in kept.model_dump_json()

    @pytest.mark.parametrize("name", sorted(SECRETS))
    def test_a_secret_that_nobody_knows_is_named_and_nothing_is_written(
        self, stand_in: AzureContainerInstancesStandIn, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        connection = stand_in.connection()
        connection["extra"]["container_secrets"] = {k: v for k, v in SECRETS.items() if k != name}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        snapshot = self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match=f"put {name} into container_secrets") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert not caught.value.retryable
        assert stand_in.revisions(RESOURCE) == []

    def test_an_orphan_does_not_deploy_after_its_rollback(self, stand_in: AzureContainerInstancesStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        with pytest.raises(Drift, match="rolled back here meanwhile"):
            self.platform(stand_in).deploy(release, snapshot)

    def test_drift_before_the_deploy_is_refused(self, stand_in: AzureContainerInstancesStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    def test_a_group_that_ends_is_refused(self, stand_in: AzureContainerInstancesStandIn) -> None:
        stand_in.groups[RESOURCE].document["properties"]["restartPolicy"] = "Never"
        with pytest.raises(PlatformError, match="does not restart its containers always"):
            self.platform(stand_in).snapshot()

    def test_a_transition_is_retryable(self, stand_in: AzureContainerInstancesStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.busy = 1
        with pytest.raises(PlatformError, match="ContainerGroupTransitioning") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.retryable


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureContainerInstancesDeployOperator(
        task_id="azure", conn_id="azure_prod", resource_group="rg", group="shop", version="1.1.0", image=NEW
    )
    AzureContainerInstancesConfig.model_validate({"platform": "azure_container_instances", **operator.config})


# --- the official contract: this SDK's models check what they are given ----------------------------------------------


def conforms(document: dict[str, Any], *, request: bool) -> None:
    """A container group as the SDK's models have it: nothing unknown, nothing missing, nothing of another type."""
    assert {"containers", "osType"} <= set(document["properties"])
    again = models.ContainerGroup.deserialize(document).serialize(keep_readonly=not request)
    assert _instants(again) == _instants(document)


def _instants(document: Any) -> Any:
    """The document with each instant written in one way."""
    if isinstance(document, dict):
        return {k: v[:19] if k == "startTime" else _instants(v) for k, v in document.items()}
    return [_instants(item) for item in document] if isinstance(document, list) else document


def check(exchange: Exchange) -> str | None:
    """Hold one exchange to the contract, and say which operation it was."""
    method, path, query, body, _, answer = exchange
    if path.startswith(f"/{TENANT}/"):
        return None
    name = {"GET": "get", "PUT": "create_or_update"}[method]
    build = getattr(operations, f"build_{name}_request")
    built = build(resource_group_name=GROUP, container_group_name=RESOURCE, subscription_id=SUBSCRIPTION)
    assert (method, path) == (built.method, built.url.partition("?")[0])
    assert query == {"api-version": "2023-05-01"}
    if method == "PUT":
        conforms(json.loads(body), request=True)
    conforms(answer, request=False)
    return name


class Drive(PlatformContract):
    """Only the drivers of the suite are used here."""

    __test__ = False


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stand_in = recording(AzureContainerInstancesStandIn)(World(seconds=0.2))
    stand_in.start()
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
    stand_in.seed(RESOURCE, OLD)
    yield stand_in
    stand_in.stop()


def test_all_that_passes_is_in_the_contract(stand_in: Any) -> None:
    drive = Drive()
    for fault, mode in ((False, "sync"), (True, "async")):
        if fault:
            stand_in.world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = drive.start(stand_in, drive.release(NEW, f"r-{mode}"))
        seen = drive.wait(drive.platform(stand_in), handle, mode)
        assert seen.state is (State.FAILED if fault else State.HEALTHY)
        drive.undo(stand_in, release, snapshot, handle, mode)
    assert {name for exchange in stand_in.passed if (name := check(exchange))} == {"get", "create_or_update"}


@pytest.mark.parametrize("change", [{"invented": 1}, {"properties": {"osType": "Linux"}}, {"location": 1}])
def test_the_checker_refuses_what_is_wrong(stand_in: Any, change: dict[str, Any]) -> None:
    document = stand_in._document(RESOURCE, stand_in.groups[RESOURCE])
    conforms(document, request=False)
    with pytest.raises(AssertionError):
        conforms({**document, **change}, request=False)
