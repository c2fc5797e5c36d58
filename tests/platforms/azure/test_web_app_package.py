"""Azure Web Apps that run from a package: the conformance suite, and what only this platform does."""

from __future__ import annotations

import json

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.azure import AzureWebAppPackageDeployOperator
from airflow_multideploy.platforms.azure.web_app_package import AzureWebAppPackageConfig
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.world import World
from airflow_multideploy.testing.contract import NEW, OLD, RESOURCE, PlatformContract
from tests.stand_ins.azure_sites import OTHERS, PACKAGES, SETTING, AzureWebAppPackageStandIn

TOKEN = "?sv=2025&sig=others-canary-9a7c"


class TestAzureWebAppPackage(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20

    def make_stand_in(self, world: World) -> AzureWebAppPackageStandIn:
        return AzureWebAppPackageStandIn(world)

    def test_one_write_each_way_and_settings_of_others_are_kept(
        self, stand_in: AzureWebAppPackageStandIn, world: World
    ) -> None:
        site = stand_in.sites[RESOURCE]
        snapshot, handle, release = self.start(stand_in)
        assert handle.revision == site.settings[SETTING] == f"{PACKAGES}/shop-1.1.0.zip"
        self.wait(self.platform(stand_in), handle, "sync")
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        assert [call.operation.split(" ")[0] for call in world.calls_of(stand_in.kind, writes=True)] == ["PUT", "PUT"]
        assert site.settings == {
            **OTHERS,
            SETTING: f"{PACKAGES}/shop-1.0.0.zip",
            "MULTIDEPLOY_RELEASE": site.settings["MULTIDEPLOY_RELEASE"],
        }
        for document in (snapshot, handle, back):
            assert OTHERS["DATABASE_PASSWORD"] not in document.model_dump_json()

    def test_a_token_in_the_old_address_comes_back_and_is_in_no_document(
        self, stand_in: AzureWebAppPackageStandIn
    ) -> None:
        site = stand_in.sites[RESOURCE]
        old = site.settings[SETTING] = site.fx = site.serving = f"{PACKAGES}/shop-1.0.0.zip{TOKEN}"
        snapshot, handle, release = self.start(stand_in)
        self.platform(stand_in).deploy(release.model_copy(update={"force": True}), snapshot)
        self.wait(self.platform(stand_in), handle, "sync")
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        assert self.wait(self.platform(stand_in), back, "sync").state is State.HEALTHY
        assert site.settings[SETTING] == old
        for document in (snapshot, handle, back):
            assert "others-canary" not in document.model_dump_json()

    def test_an_orphan_does_not_deploy_after_its_rollback(self, stand_in: AzureWebAppPackageStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        with pytest.raises(Drift, match="rolled back here meanwhile"):
            self.platform(stand_in).deploy(release, snapshot)

    def test_a_package_that_is_not_there_fails_early_in_azures_words(self, stand_in: AzureWebAppPackageStandIn) -> None:
        elsewhere = {"package": "https://elsewhere.example.com/shop-${version}.zip"}
        snapshot = self.platform(stand_in).snapshot()
        handle = self.platform(stand_in, **elsewhere).deploy(self.release(), snapshot)
        seen = self.wait(self.platform(stand_in, **elsewhere), handle, "sync")
        assert seen.state is State.FAILED
        assert "was not found" in seen.reason

    def test_a_first_ever_package_is_removed_again(self, stand_in: AzureWebAppPackageStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert SETTING not in stand_in.sites[RESOURCE].settings

    def test_what_nobody_knows_any_more_is_not_made_up(self, stand_in: AzureWebAppPackageStandIn) -> None:
        site = stand_in.sites[RESOURCE]
        site.settings[SETTING] = site.fx = site.serving = f"{PACKAGES}/shop-1.0.0.zip{TOKEN}"
        snapshot, handle, release = self.start(stand_in)
        del site.settings["MULTIDEPLOY_PREVIOUS_PACKAGE"]
        with pytest.raises(PlatformError, match="has lost the address") as caught:
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert not caught.value.retryable

    @pytest.mark.parametrize(
        "wrong", ["s3://releases/${version}.zip", "https://x.example.com/a.zip?sig=1", "https://x.example.com/${who}"]
    )
    def test_a_wrong_address_is_refused(self, stand_in: AzureWebAppPackageStandIn, wrong: str) -> None:
        with pytest.raises(SpecError, match="package"):
            self.platform(stand_in, package=wrong)

    def test_force_restarts_the_same_package(self, stand_in: AzureWebAppPackageStandIn) -> None:
        before = stand_in.sites[RESOURCE].generation
        _, handle, _ = self.start(stand_in, self.release(OLD, force=True))
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.sites[RESOURCE].generation > before
        assert stand_in.revisions(RESOURCE) == []


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureWebAppPackageDeployOperator(
        task_id="azure",
        conn_id="azure_prod",
        resource_group="rg",
        site="shop",
        package=f"{PACKAGES}/shop-${{version}}.zip",
        version="1.1.0",
        image=NEW,
    )
    AzureWebAppPackageConfig.model_validate({"platform": "azure_web_app_package", **operator.config})
    assert json.dumps(operator.config)
