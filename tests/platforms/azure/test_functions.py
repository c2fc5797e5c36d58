"""Azure Functions: the conformance suite, and what only this platform does."""

from __future__ import annotations

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.operators.azure import AzureFunctionsDeployOperator
from airflow_multideploy.platforms.azure.functions import AzureFunctionsConfig
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.world import CallFault, World
from airflow_multideploy.testing.contract import NEW, RESOURCE, PlatformContract
from tests.stand_ins.azure_sites import PACKAGES, AzureFunctionsStandIn


class TestAzureFunctions(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20

    def make_stand_in(self, world: World) -> AzureFunctionsStandIn:
        return AzureFunctionsStandIn(world)

    def test_triggers_are_synchronised_both_ways(self, stand_in: AzureFunctionsStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        assert stand_in.synced[RESOURCE] == f"{PACKAGES}/shop-1.1.0.zip"
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.synced[RESOURCE] == f"{PACKAGES}/shop-1.0.0.zip"

    def test_a_synchronisation_that_was_refused_is_made_again(
        self, stand_in: AzureFunctionsStandIn, world: World
    ) -> None:
        snapshot = self.platform(stand_in).snapshot()
        world.call_faults.append(CallFault(stand_in.kind, "400", operation="syncfunctiontriggers"))
        with pytest.raises(PlatformError, match="not synchronised yet") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.retryable
        self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.synced[RESOURCE] == f"{PACKAGES}/shop-1.1.0.zip"
        assert len(stand_in.revisions(RESOURCE)) == 1

    def test_a_role_that_may_not_synchronise_is_a_clear_error(self, stand_in: AzureFunctionsStandIn) -> None:
        stand_in.forbidden.add("/syncfunctiontriggers")
        with pytest.raises(PlatformError, match="AuthorizationFailed") as caught:
            self.start(stand_in)
        assert not caught.value.retryable

    def test_an_app_without_functions_is_not_healthy(self, stand_in: AzureFunctionsStandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.synced[RESOURCE] = "something else"
        seen = self.wait(self.platform(stand_in), handle, mode, seconds=1)
        assert seen.state is State.FAILED
        assert "lists no function of it yet" in seen.reason


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureFunctionsDeployOperator(
        task_id="azure",
        conn_id="azure_prod",
        resource_group="rg",
        site="shop",
        package=f"{PACKAGES}/shop-${{version}}.zip",
        version="1.1.0",
        image=NEW,
    )
    AzureFunctionsConfig.model_validate({"platform": "azure_functions", **operator.config})
