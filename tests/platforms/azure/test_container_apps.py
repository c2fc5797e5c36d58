"""Azure Container Apps: the conformance suite, what only this platform does, and the official contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import azure.identity.aio
import azure.mgmt.appcontainers.aio  # noqa: F401 - takes longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.operators.azure import AzureContainerAppsDeployOperator
from airflow_multideploy.platforms.azure.container_apps import AzureContainerAppsConfig
from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.azure_web_app import GROUP, SUBSCRIPTION, TENANT
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract
from tests.stand_ins.azure_container_apps import AzureContainerAppsStandIn, Revision, template
from tests.stand_ins.azure_models import Contract, Exchange, recording


class TestAzureContainerApps(PlatformContract):
    rollout_seconds = 0.2
    waiting = 20

    def make_stand_in(self, world: World) -> AzureContainerAppsStandIn:
        return AzureContainerAppsStandIn(world)

    # --- one write each way ------------------------------------------------------------------------------------------

    def test_one_write_each_way_and_traffic_is_pinned_on_the_way_back(
        self, stand_in: AzureContainerAppsStandIn, world: World
    ) -> None:
        snapshot, handle, release = self.start(stand_in)
        app = stand_in.apps[RESOURCE]
        assert (app.mode, handle.revision) == ("Multiple", f"{RESOURCE}--{release.release_id}")
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert app.traffic == [{"revisionName": "shop--abc1234", "weight": 100}]
        assert [call.operation.split(" ")[0] for call in world.calls_of(stand_in.kind, writes=True)] == ["PATCH"] * 2

    def test_the_old_revision_serves_until_the_new_one_is_ready(
        self, stand_in: AzureContainerAppsStandIn, world: World
    ) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        _, handle, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.FAILED
        assert stand_in.live(RESOURCE).image == OLD

    def test_what_else_the_template_holds_is_copied_from_the_revision_that_serves(
        self, stand_in: AzureContainerAppsStandIn
    ) -> None:
        app = stand_in.apps[RESOURCE]
        app.mode, app.traffic = "Multiple", [{"revisionName": app.latest, "weight": 100}]
        trial = template("registry.example.com/shop:trial", "trial")
        trial["containers"][0]["env"] = [{"name": "TRIAL", "value": "1"}]
        app.revisions["shop--trial"], app.latest = Revision(trial), "shop--trial"
        _, handle, _ = self.start(stand_in)
        made = app.revisions[str(handle.revision)].template
        assert made["containers"][0] == {
            **template(NEW)["containers"][0],
            "resources": {"cpu": 0.5, "memory": "1Gi"},
        }

    def test_a_split_with_labels_comes_back_as_it_was(self, stand_in: AzureContainerAppsStandIn) -> None:
        app = stand_in.apps[RESOURCE]
        app.revisions["shop--two"] = Revision(template(OLD, "two"))
        app.mode, app.latest = "Multiple", "shop--two"
        app.traffic = [
            {"latestRevision": True, "weight": 70, "label": "main"},
            {"revisionName": "shop--abc1234", "weight": 30, "label": "last"},
        ]
        before = app.shares()
        snapshot, handle, release = self.start(stand_in)
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert app.traffic == [
            {"latestRevision": True, "weight": 100, "label": "main"},
            {"revisionName": "shop--abc1234", "weight": 0, "label": "last"},
        ]
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert app.shares() == before
        assert {entry["label"] for entry in app.traffic} == {"main", "last"}

    def test_an_inactive_old_revision_is_activated(self, stand_in: AzureContainerAppsStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.apps[RESOURCE].revisions["shop--abc1234"].active = False
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_revisions_of_earlier_releases_without_traffic_are_deactivated(
        self, stand_in: AzureContainerAppsStandIn
    ) -> None:
        app = stand_in.apps[RESOURCE]
        for name in ("shop--r00000000aa", "shop--r00000000aa-2", "shop--theirs"):
            app.revisions = {name: Revision(template(OTHER)), **app.revisions}
        app.mode = "Multiple"
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        assert [name for name, revision in app.revisions.items() if not revision.active] == [
            "shop--r00000000aa-2",
            "shop--r00000000aa",
        ]

    @pytest.mark.parametrize(
        ("states", "state"),
        [
            (("Provisioned", "None", "Running"), State.HEALTHY),
            (("Provisioned", "None", "ScaledToZero"), State.HEALTHY),
            (("Provisioned", "None", "Processing"), State.PROGRESSING),
            (("Provisioning", "None", "Running"), State.PROGRESSING),
            (("Provisioned", "Unhealthy", "Running"), State.FAILED),
        ],
    )
    def test_a_revision_that_is_scaled_to_zero(
        self, stand_in: AzureContainerAppsStandIn, states: tuple[str, str, str], state: State, mode: str
    ) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        stand_in.apps[RESOURCE].revisions[str(handle.revision)].states = states
        assert self.look(self.platform(stand_in), handle, mode).state is state
        stand_in.apps[RESOURCE].revisions["shop--abc1234"].states = ("Provisioned", "None", "Running")
        self.undo(stand_in, release, snapshot, handle, mode)

    def test_what_is_at_rest_without_the_traffic_is_not_healthy(self, stand_in: AzureContainerAppsStandIn) -> None:
        stand_in.world.seconds = 60.0
        _, handle, _ = self.start(stand_in)
        stand_in.apps[RESOURCE].revisions[str(handle.revision)].states = ("Provisioned", "None", "Running")
        assert self.platform(stand_in).observe(handle).state is State.PROGRESSING

    # --- ours, or somebody else's ------------------------------------------------------------------------------------

    def test_an_orphan_does_not_deploy_after_its_rollback(
        self, stand_in: AzureContainerAppsStandIn, world: World
    ) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        writes = len(world.calls_of(stand_in.kind, writes=True))
        with pytest.raises(Drift, match="rolled back here meanwhile"):
            self.platform(stand_in).deploy(release, snapshot)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    def test_a_lost_deploy_is_rolled_back(self, stand_in: AzureContainerAppsStandIn, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="PATCH"))
        with pytest.raises(PlatformError) as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.retryable
        assert stand_in.revisions(RESOURCE) != []
        self.undo(stand_in, self.release(), snapshot, None, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_drift_before_the_deploy_is_refused(self, stand_in: AzureContainerAppsStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, OTHER)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert stand_in.revisions(RESOURCE) == []

    def test_an_operation_in_progress_is_retryable(self, stand_in: AzureContainerAppsStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.busy = 1
        with pytest.raises(PlatformError, match="ContainerAppOperationInProgress") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert (caught.value.retryable, caught.value.retry_after) == (True, 15)

    def test_a_lost_read_is_made_again_at_once(self, stand_in: AzureContainerAppsStandIn, world: World) -> None:
        """So that a sequence of many calls does not start over for each of them."""
        world.call_faults.append(CallFault(stand_in.kind, "reset", operation="^GET .*/containerApps/", times=2))
        assert self.platform(stand_in).snapshot().image == OLD

    @pytest.mark.parametrize(("change", "words"), [({"container": "nope"}, "say which one"), ({"app": "ghost"}, "404")])
    def test_what_is_not_there_is_a_clear_error(
        self, stand_in: AzureContainerAppsStandIn, change: dict[str, str], words: str
    ) -> None:
        platform = self.platform(stand_in, **change)
        with pytest.raises(PlatformError, match=words) as caught:
            platform.deploy(self.release(), self.platform(stand_in).snapshot())
        assert not caught.value.retryable

    def test_the_console_opens_the_app(self, stand_in: AzureContainerAppsStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        url = self.platform(stand_in).console_url(handle)
        assert url is not None
        assert url.endswith("/providers/Microsoft.App/containerApps/shop/containerapp")


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureContainerAppsDeployOperator(
        task_id="azure", conn_id="azure_prod", resource_group="rg", app="shop", version="1.1.0", image=NEW
    )
    AzureContainerAppsConfig.model_validate({"platform": "azure_container_apps", **operator.config})
    own = set(AzureContainerAppsConfig.model_fields) - set(AzureContainerAppsConfig.__bases__[0].model_fields)
    assert own <= set(AzureContainerAppsDeployOperator.__init__.__annotations__)


# --- the official contract -------------------------------------------------------------------------------------------

SDK = Contract("azure.mgmt.appcontainers")
_NAMES = {"resource_group_name": GROUP, "container_app_name": RESOURCE, "subscription_id": SUBSCRIPTION}
_REVISION = {**_NAMES, "revision_name": "REVISION"}
OPERATIONS = {
    SDK.built(name, **names): (request, answer)
    for name, names, request, answer in (
        ("container_apps_get", _NAMES, None, SDK.models.ContainerApp),
        ("container_apps_update", _NAMES, SDK.models.ContainerApp, None),
        ("container_apps_revisions_list_revisions", _NAMES, None, list[SDK.models.Revision]),
        ("container_apps_revisions_get_revision", _REVISION, None, SDK.models.Revision),
        ("container_apps_revisions_activate_revision", _REVISION, None, None),
        ("container_apps_revisions_deactivate_revision", _REVISION, None, None),
        ("container_apps_revision_replicas_list_replicas", _REVISION, None, SDK.models.ReplicaCollection),
    )
}


def check(exchange: Exchange) -> tuple[str, str] | None:
    """Hold one exchange to the contract, and say which operation it was."""
    method, path, query, body, status, answer = exchange
    if path.startswith(f"/{TENANT}/"):
        return None
    head, _, rest = path.partition("/revisions/")
    operation = method, head + (f"/revisions/{'/'.join(['REVISION', *rest.split('/')[1:]])}" if rest else "")
    request, kind = OPERATIONS[operation]  # a KeyError here: no operation of the SDK that we know
    assert query == {"api-version": "2026-07-01"}
    if request is None:
        assert body == b""
    else:
        document = json.loads(body)
        SDK.conforms(request, document)
        assert document["location"]
    if kind is None:
        assert answer is None
    elif status < 400:
        SDK.conforms(kind, answer["value"] if kind == list[SDK.models.Revision] else answer)
    return operation


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stand_in = recording(AzureContainerAppsStandIn)(World(seconds=0.2))
    stand_in.start()
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
    stand_in.seed(RESOURCE, OLD)
    yield stand_in
    stand_in.stop()


class Drive(PlatformContract):
    """Only the drivers of the suite are used here."""

    __test__ = False


def test_all_that_passes_is_in_the_contract(stand_in: Any) -> None:
    drive, app = Drive(), stand_in.apps[RESOURCE]
    app.revisions = {"shop--r00000000aa": Revision(template(OTHER)), **app.revisions}
    app.mode = "Multiple"
    for fault, mode in ((False, "sync"), (True, "async")):
        if fault:
            stand_in.world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = drive.start(stand_in, drive.release(NEW, f"r-{mode}"))
        seen = drive.wait(drive.platform(stand_in), handle, mode)
        assert seen.state is (State.FAILED if fault else State.HEALTHY)
        app.revisions["shop--abc1234"].active = False
        drive.undo(stand_in, release, snapshot, handle, mode)
    assert {operation for exchange in stand_in.passed if (operation := check(exchange))} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"invented": 1}, "unknown to ContainerApp"),
        ({"properties": {"provisioningState": "Odd"}}, "none of ContainerAppProvisioningState"),
        ({"properties": {"template": {"containers": {}}}}, "no array"),
    ],
)
def test_the_checker_refuses_what_is_wrong(stand_in: Any, change: dict[str, Any], words: str) -> None:
    document = stand_in._document(stand_in.apps[RESOURCE])
    SDK.conforms(SDK.models.ContainerApp, document)
    with pytest.raises(AssertionError, match=words):
        SDK.conforms(SDK.models.ContainerApp, {**document, **change})
