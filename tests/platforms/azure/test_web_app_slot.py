"""Azure Web Apps by slot and swap: the conformance suite, and what only this platform does."""

from __future__ import annotations

import base64
import math
from typing import Any

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.operators.azure import AzureWebAppSlotDeployOperator
from airflow_multideploy.platforms.azure.web_app_slot import AzureWebAppSlotConfig
from airflow_multideploy.release.contract import Handle, Snapshot, State
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.azure_sites import OTHERS, SLOT, AzureWebAppSlotStandIn

IN_SLOT = f"{RESOURCE}-{SLOT}"


class TestAzureWebAppSlot(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slot is looked at again after 0.2 s here, a tenth of which the suite's clock makes of it."""
        monkeypatch.setattr("airflow_multideploy.platforms.azure.web_app_slot.PAUSE", 2.0)

    def make_stand_in(self, world: World) -> AzureWebAppSlotStandIn:
        return AzureWebAppSlotStandIn(world)

    def prepare(self, stand_in: AzureWebAppSlotStandIn) -> Snapshot:
        """One call of deploy, which puts the release into the slot and no further."""
        snapshot = self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="slot 'staging' is starting") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert (caught.value.retryable, caught.value.retry_after) == (True, 2.0)
        return snapshot

    # --- what a site that is none of ours runs -----------------------------------------------------------------------

    @pytest.mark.parametrize("kind", ["COMPOSE", "KUBE", "SITECONTAINERS"])
    def test_a_file_in_place_of_an_image_is_never_shown(
        self, stand_in: Any, caplog: pytest.LogCaptureFixture, kind: str, mode: str
    ) -> None:
        """The whole of it stands there, passwords included: before a release, or put there while one is under way."""
        canary = "others-canary-51c0"
        file = base64.b64encode(f"services: {{db: {{environment: {{PASSWORD: {canary}}}}}}}".encode()).decode()
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, mode)
        stand_in.sites[RESOURCE].fx = f"{kind}|{file}"
        said = []
        for step in (
            lambda: self.platform(stand_in).snapshot(),
            lambda: self.platform(stand_in).deploy(release, snapshot),
            lambda: self.platform(stand_in).rollback(release, snapshot, handle),
            lambda: self.look(self.platform(stand_in), handle, mode),
        ):
            try:
                said.append(step().model_dump_json())
            except PlatformError as error:
                said.append(f"{error} {error!r}")
        assert any(kind in words for words in said)
        for words in (*said, caplog.text):
            assert canary not in words
            assert file[:12] not in words
            assert file[-12:] not in words

    # --- where a slot differs from what the suite assumes -------------------------------------------------------------

    def test_force_releases_over_drift(self, stand_in: Any) -> None:
        """As in the suite, but the first call of deploy only fills the slot: it is called as a release calls it."""
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        handle = self.deployed(stand_in, self.release(force=True), snapshot)
        stand_in.swaps = dict.fromkeys(stand_in.swaps, math.inf)
        assert self.platform(stand_in).observe(handle).state is State.PROGRESSING
        stand_in.swaps = dict.fromkeys(stand_in.swaps, 0.0)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_a_rollout_that_never_ends_can_be_rolled_back(self, stand_in: Any, world: World, mode: str) -> None:
        """A slot that never starts keeps deploy itself from ending: its tries are used up, nothing was swapped, and the
        release goes back without a handle."""
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot = self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="slot 'staging' is starting"):
            self.start(stand_in)
        self.undo(stand_in, self.release(), snapshot, None, mode)
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("calls", range(13))
    def test_a_swap_that_lands_while_a_retry_looks_is_seen(self, stand_in: AzureWebAppSlotStandIn, calls: int) -> None:
        """Production was read before it, the slot after it: that is no drift, and nobody took the release back."""
        snapshot, handle, release = self.start(stand_in)
        stand_in.lands_after = calls
        again = self.deployed(stand_in, release, snapshot)
        assert stand_in.lands_after is None
        assert again.revision == handle.revision
        assert self.wait(self.platform(stand_in), again, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    @pytest.mark.parametrize("calls", range(16))
    def test_a_swap_that_lands_while_a_way_back_looks_goes_back_too(
        self, stand_in: AzureWebAppSlotStandIn, calls: int
    ) -> None:
        snapshot, _, release = self.start(stand_in)
        stand_in.lands_after = calls
        self.undo(stand_in, release, snapshot, None, "sync")
        assert stand_in.lands_after is None
        assert stand_in.live(RESOURCE).image == OLD

    # --- slot and swap ------------------------------------------------------------------------------------------------

    def test_settings_travel_and_those_of_others_are_kept(self, stand_in: AzureWebAppSlotStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        assert "MULTIDEPLOY_RELEASE" in stand_in.sites[RESOURCE].settings
        assert stand_in.sites[IN_SLOT].settings == OTHERS
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.sites[RESOURCE].settings == OTHERS
        writes = [call.operation.rpartition("/")[2] for call in world.calls_of(stand_in.kind, writes=True)]
        assert writes == ["appsettings", "web", "slotsswap", "slotsswap"]

    def test_a_slot_that_does_not_start_is_not_swapped(
        self, stand_in: AzureWebAppSlotStandIn, world: World, mode: str
    ) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "slot 'staging', not swapped" in seen.reason
        self.undo(stand_in, release, snapshot, handle, mode)
        assert not any("slotsswap" in call.operation for call in world.calls_of(stand_in.kind))
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("way", ["deploy", "back"])
    def test_a_lost_swap_is_not_undone_by_a_second_one(
        self, stand_in: AzureWebAppSlotStandIn, world: World, way: str
    ) -> None:
        swaps = [CallFault(stand_in.kind, "lost", operation="slotsswap", nth=1 if way == "deploy" else 2)]
        world.call_faults.extend(swaps)
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    @pytest.mark.parametrize("swapped", [False, True])
    def test_an_orphan_does_not_swap_after_its_rollback(self, stand_in: AzureWebAppSlotStandIn, swapped: bool) -> None:
        handle: Handle | None = None
        if swapped:
            snapshot, handle, _ = self.start(stand_in)
            self.wait(self.platform(stand_in), handle, "sync")
        else:
            snapshot = self.prepare(stand_in)
        self.undo(stand_in, self.release(), snapshot, handle, "sync")
        with pytest.raises(Drift, match="rolled back here meanwhile"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.live(RESOURCE).image == OLD

    def test_the_next_release_after_a_rollback_goes_through(self, stand_in: AzureWebAppSlotStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        _, handle, _ = self.start(stand_in, self.release(NEW, "r0000000002"))
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.live(RESOURCE).image == NEW

    def test_a_slot_that_somebody_uses_is_drift(self, stand_in: AzureWebAppSlotStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(IN_SLOT, OTHER)
        with pytest.raises(Drift, match="in slot 'staging'"):
            self.platform(stand_in).deploy(self.release(), snapshot)

    def test_a_slot_that_lost_what_ran_before_is_drift(self, stand_in: AzureWebAppSlotStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.meddle(IN_SLOT, OTHER)
        writes = len(world.calls_of(stand_in.kind, writes=True))
        with pytest.raises(Drift, match="which ran before"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes
        assert stand_in.live(RESOURCE).image == NEW

    def test_no_slot_is_a_clear_error(self, stand_in: AzureWebAppSlotStandIn) -> None:
        with pytest.raises(PlatformError, match="get_slot of site 'shop' failed with HTTP 404") as caught:
            self.platform(stand_in, slot="ghost").snapshot()
        assert not caught.value.retryable


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureWebAppSlotDeployOperator(
        task_id="azure", conn_id="azure_prod", resource_group="rg", site="shop", version="1.1.0", image=NEW
    )
    AzureWebAppSlotConfig.model_validate({"platform": "azure_web_app_slot", **operator.config})
