"""Azure Web Apps: the conformance suite, and what only this platform does."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.clients.azure import HEALTH, Health
from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.operators.azure import AzureWebAppDeployOperator
from airflow_multideploy.platforms.azure.site import AGAIN
from airflow_multideploy.platforms.azure.site_judge import Looks, Rules, disagrees, failure, judge, read_marker
from airflow_multideploy.platforms.azure.web_app import AzureWebApp, AzureWebAppConfig
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.sandbox.azure_web_app import AzureWebAppStandIn
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract


class TestAzureWebApp(PlatformContract):
    def make_stand_in(self, world: World) -> AzureWebAppStandIn:
        return AzureWebAppStandIn(world)

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

    # --- one write, in the site's metadata ---------------------------------------------------------------------------

    def test_one_write_each_way_and_metadata_of_others_is_kept(
        self, stand_in: AzureWebAppStandIn, world: World
    ) -> None:
        site = stand_in.sites[RESOURCE]
        site.metadata["VSTSRM_Secret"] = "others-canary-51c0"
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        back = self.platform(stand_in).rollback(release, snapshot, handle)
        writes = [call.operation for call in world.calls_of(stand_in.kind, writes=True)]
        assert [operation.split(" ")[0] for operation in writes] == ["PATCH", "PATCH"]
        assert site.metadata["VSTSRM_Secret"] == "others-canary-51c0"
        assert site.metadata["CURRENT_STACK"] == "docker"
        for document in (snapshot, handle, back):
            assert "others-canary-51c0" not in document.model_dump_json()

    def test_a_retry_gets_the_same_handle(self, stand_in: AzureWebAppStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        assert self.platform(stand_in).deploy(release, snapshot) == handle

    def test_a_lost_deploy_is_rolled_back_from_its_marker(self, stand_in: AzureWebAppStandIn, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        world.call_faults.append(CallFault(stand_in.kind, "lost", operation="PATCH"))
        with pytest.raises(PlatformError) as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.retryable
        self.undo(stand_in, self.release(), snapshot, None, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_an_orphan_does_not_deploy_after_its_rollback(self, stand_in: AzureWebAppStandIn, world: World) -> None:
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        writes = len(world.calls_of(stand_in.kind, writes=True))
        with pytest.raises(Drift, match="rolled back here meanwhile"):
            self.platform(stand_in).deploy(release, snapshot)
        assert len(world.calls_of(stand_in.kind, writes=True)) == writes

    def test_the_same_image_by_another_release_is_not_ours(self, stand_in: AzureWebAppStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.meddle(RESOURCE, NEW)
        with pytest.raises(Drift, match="somebody else"):
            self.platform(stand_in).rollback(self.release(), snapshot, None)

    def test_force_pulls_a_live_image_again(self, stand_in: AzureWebAppStandIn) -> None:
        before = stand_in.sites[RESOURCE].generation
        snapshot, handle, release = self.start(stand_in, self.release(OLD, force=True))
        assert handle.changed
        assert self.wait(self.platform(stand_in), handle, "sync").state is State.HEALTHY
        assert stand_in.sites[RESOURCE].generation == before + 1
        assert stand_in.revisions(RESOURCE) == []
        assert self.platform(stand_in).deploy(release, snapshot) == handle

    def test_a_live_image_is_left_alone(self, stand_in: AzureWebAppStandIn, world: World) -> None:
        _, handle, _ = self.start(stand_in, self.release(OLD))
        assert not handle.changed
        assert world.calls_of(stand_in.kind, writes=True) == []

    # --- what counts as healthy --------------------------------------------------------------------------------------

    def test_new_containers_are_evidence_when_the_app_tells_nothing(self, stand_in: AzureWebAppStandIn) -> None:
        quiet = {"version_json_path": None}
        snapshot = self.platform(stand_in, **quiet).snapshot()
        handle = self.platform(stand_in, **quiet).deploy(self.release(), snapshot)
        early = self.platform(stand_in, **quiet).observe(handle)
        if stand_in.live(RESOURCE).image == OLD:
            assert early.state is State.PROGRESSING
            assert "2 of 2 instances" in early.reason
        seen = self.wait(self.platform(stand_in, **quiet), handle, "sync")
        assert (seen.state, seen.verified) == (State.HEALTHY, True)
        assert stand_in.live(RESOURCE).image == NEW

    def test_without_any_evidence_it_waits_and_says_unverified(self, stand_in: AzureWebAppStandIn) -> None:
        stand_in.lists_containers = False
        quiet = {"version_json_path": None, "settle": 2.0}
        snapshot = self.platform(stand_in, **quiet).snapshot()
        started = time.monotonic()
        handle = self.platform(stand_in, **quiet).deploy(self.release(), snapshot)
        seen = self.wait(self.platform(stand_in, **quiet), handle, "sync")
        assert (seen.state, seen.verified) == (State.HEALTHY, False)
        assert time.monotonic() - started > 1  # the platform's clock has whole seconds
        assert "version_json_path" in seen.reason

    def test_a_wrong_version_is_not_healthy(self, stand_in: AzureWebAppStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        other = handle.model_copy(update={"data": {**handle.data, "expect": ["1.2.0"]}})
        seen = self.platform(stand_in).observe(other)
        assert seen.state is State.PROGRESSING
        assert "'1.1.0', not '1.2.0'" in seen.reason

    def test_a_stopped_site_fails_early(self, stand_in: AzureWebAppStandIn, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        stand_in.sites[RESOURCE].state = "Stopped"
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason) == (State.FAILED, "the site is Stopped")

    def test_a_failure_is_seen_although_the_log_is_forbidden(
        self, stand_in: AzureWebAppStandIn, world: World, mode: str
    ) -> None:
        stand_in.forbidden.add("/containerlogs")
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert seen.state is State.FAILED
        assert "STOPPED" in seen.reason

    def test_looks_of_one_adapter_log_in_once(self, stand_in: AzureWebAppStandIn, world: World, mode: str) -> None:
        _, handle, _ = self.start(stand_in)
        world.calls.clear()
        self.wait(self.platform(stand_in), handle, mode)
        logins = [call for call in world.calls_of(stand_in.kind) if call.operation.endswith("/token")]
        assert len(logins) == 1

    def test_a_site_that_tells_another_version_is_no_snapshot(self, stand_in: AzureWebAppStandIn) -> None:
        site = stand_in.sites[RESOURCE]
        site.fx = f"DOCKER|{OTHER}"  # somebody's, whose container has not started
        with pytest.raises(PlatformError, match=r"told to run .*9\.9\.9.*but tells '1\.0\.0'") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, AGAIN)
        assert self.platform(stand_in, version_json_path=None).snapshot().image == OTHER, "it has no way to tell"
        site.fx = "DOCKER|registry.example.com/shop:latest"
        assert self.platform(stand_in).snapshot().exists

    # --- where there is nothing, or something else --------------------------------------------------------------------

    def test_a_missing_site_is_a_clear_error(self, stand_in: AzureWebAppStandIn) -> None:
        with pytest.raises(PlatformError, match=r"shop/t1: get of site 'ghost'.*404.*ResourceNotFound") as caught:
            self.platform(stand_in, site="ghost").snapshot()
        assert not caught.value.retryable

    def test_no_subscription_is_a_clear_error(
        self, stand_in: AzureWebAppStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = stand_in.connection()
        del connection["extra"]["subscriptionId"]
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(PlatformError, match="names no subscription"):
            self.platform(stand_in).snapshot()

    def test_plain_http_is_refused(self, stand_in: AzureWebAppStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = stand_in.connection()
        connection["extra"]["authority"] = "http://login.example.com"
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
        with pytest.raises(SpecError, match="plain http"):
            self.platform(stand_in).snapshot()

    def test_several_containers_are_refused(self, stand_in: AzureWebAppStandIn) -> None:
        stand_in.sites[RESOURCE].fx = "COMPOSE|c2VydmljZXM="
        with pytest.raises(PlatformError, match="not one image"):
            self.platform(stand_in).snapshot()

    def test_the_portals_placeholder_counts_as_never_deployed_and_comes_back(
        self, stand_in: AzureWebAppStandIn
    ) -> None:
        placeholder = "mcr.microsoft.com/appsvc/staticsite:latest"
        stand_in.seed(RESOURCE, placeholder)
        snapshot, handle, release = self.start(stand_in)
        assert not snapshot.exists
        self.undo(stand_in, release, snapshot, handle, "sync")
        assert stand_in.sites[RESOURCE].fx == f"DOCKER|{placeholder}"

    def test_an_operation_in_progress_is_retryable_and_nothing_else_is_written(
        self, stand_in: AzureWebAppStandIn
    ) -> None:
        snapshot = self.platform(stand_in).snapshot()
        stand_in.busy = 1
        with pytest.raises(PlatformError, match="another operation is in progress") as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.retryable
        assert stand_in.revisions(RESOURCE) == []

    def test_an_image_that_azure_refuses_is_not_retryable(self, stand_in: AzureWebAppStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="LinuxFxVersion has an invalid value") as caught:
            self.platform(stand_in).deploy(self.release("not an image"), snapshot)
        assert not caught.value.retryable

    def test_the_console_opens_the_site(self, stand_in: AzureWebAppStandIn) -> None:
        _, handle, _ = self.start(stand_in)
        url = self.platform(stand_in).console_url(handle)
        assert url is not None
        assert url.endswith("/resourceGroups/sandbox/providers/Microsoft.Web/sites/shop/appServices")
        assert self.platform(stand_in).console_url() is None


# --- judging, without any server -------------------------------------------------------------------------------------

FX = f"DOCKER|{NEW}"
HANDLE = Handle(
    action="deploy",
    revision=FX,
    data={
        "fx": FX,
        "since": "2026-01-01T00:00:00+00:00",
        "old": ["shop_0_aaaa0000"],
        "log": "2026-01-01T00:00:00.100",
        "expect": ["1.1.0"],
        "reject": [],
        "state": "Running",
    },
)
QUIET, TELLS = Rules(None, None, 240), Rules("build.version", None, 240)


def looks(**changes: Any) -> Looks:
    at = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    return Looks(fx=FX, state="Running", instances=[], health=Health(503), log="", at=at)._replace(**changes)


def log(text: str, stamp: str = "2026-01-01T00:00:30.000Z") -> str:
    return f"{stamp} {text}"


@pytest.mark.parametrize(
    "line",
    [
        "ERROR - Container shop_0_bbbb1111 for site shop has exited, failing site start",
        "ERROR - Container shop_0_bbbb1111 didn't respond to HTTP pings on port: 80, failing site start. See logs.",
        "INFO  - Stopping site shop because it failed during startup.",
        "ERROR - Image pull failed: Verify docker image configuration and credentials",
        "Site startup probe failed after 12.3 seconds.",
        "State: Stopping, Action: StoppingSiteContainers, LastError: ContainerTimeout, LastErrorTimestamp: 01/01/2026",
    ],
)
def test_both_wordings_of_a_failed_start_are_understood(line: str) -> None:
    seen = judge(HANDLE, looks(log=log(line)), QUIET)
    assert seen.state is State.FAILED
    assert seen.reason in line or line.endswith(seen.reason) or seen.reason.endswith(line)


@pytest.mark.parametrize(
    "line",
    [
        log("ERROR - Container shop_0_9999 for site shop has exited, failing site start", "2026-01-01T00:00:00.100Z"),
        log("ERROR - Container shop_0_aaaa0000 for site shop has exited, failing site start"),
        log("INFO  - Container shop_0_bbbb1111 for site shop initialized successfully and is ready"),
        log("State: Started, Action: None, LastError: None"),
        "no time stamp, failing site start",
    ],
)
def test_yesterdays_and_the_old_containers_failures_are_no_news(line: str) -> None:
    assert failure(line, "2026-01-01T00:00:00.100", ["shop_0_aaaa0000"]) is None


def test_the_old_container_answering_is_not_the_new_one() -> None:
    old = {"properties": {"state": "READY", "containers": {"shop_0_aaaa0000": {}}}}
    new = {"properties": {"state": "READY", "containers": {"shop_0_bbbb1111": {}}}}
    assert judge(HANDLE, looks(health=Health(200), instances=[old, new]), QUIET).state is State.PROGRESSING
    assert judge(HANDLE, looks(health=Health(200), instances=[new, new]), QUIET).state is State.HEALTHY


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ('{"build": {"version": "1.1.0"}}', State.HEALTHY),
        ('{"build": {"version": "1.0.0"}}', State.PROGRESSING),
        ('{"build": "1.1.0"}', State.PROGRESSING),
        ("<html>", State.PROGRESSING),
    ],
)
def test_what_the_app_tells_decides(text: str, state: State) -> None:
    assert judge(HANDLE, looks(health=Health(200, text)), TELLS).state is state


@pytest.mark.parametrize(
    ("told", "fx", "differs"),
    [
        ("1.0.0", "DOCKER|registry.example.com:5000/v2.0/shop:2.0.0", True),
        ("2.0.0", "DOCKER|registry.example.com/shop:2.0.0-slim@sha256:1.0", False),
        ("1.0.0", "DOCKER|registry.example.com/shop:latest", False),
        ("1.0.0", "DOCKER|registry.example.com/shop@sha256:2.0", False),
        ("main", "DOCKER|registry.example.com/shop:2.0.0", False),
        (None, "DOCKER|registry.example.com/shop:2.0.0", False),
        ("1.0.0", "https://packages.example.com/1.0.0/shop-py3.12-2.0.0.zip?sig=1.0.0", True),
        ("2.0.0", "https://packages.example.com/shop-py3.12-2.0.0.zip", False),
        ("1.0.0", "", False),
    ],
)
def test_only_another_version_disagrees(told: str | None, fx: str, differs: bool) -> None:
    assert disagrees(told, fx) is differs


def test_a_version_can_be_told_in_a_header() -> None:
    health = Health(204, headers={"x-app-version": "1.1.0"})
    assert judge(HANDLE, looks(health=health), Rules(None, "X-App-Version", 240)).state is State.HEALTHY


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "x", '{"release_id": 1}'])
def test_a_marker_of_somebody_else_is_none(text: str) -> None:
    assert read_marker({"MULTIDEPLOY_RELEASE": text}) is None


def test_the_default_health_address_is_the_sites_own() -> None:
    config = AzureWebAppConfig(conn_id="c", resource_group="rg", site="shop", health_path="/up")
    call = next(AzureWebApp(config, service="shop", target="t")._health("shop.azurewebsites.net"))
    assert (call.operation, call.arguments) == (HEALTH, ("https://shop.azurewebsites.net/up",))


@pytest.mark.parametrize("wrong", [{"site": "a/b"}, {"resource_group": "../x"}, {"health_url": "ftp://x/"}, {"x": 1}])
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    config = {"platform": "azure_web_app", "conn_id": "c", "resource_group": "rg", "site": "shop", **wrong}
    with pytest.raises(SpecError, match=next(iter(wrong))):
        adapter(config, service="shop", target="t")


def test_the_operators_arguments_are_the_configs_fields() -> None:
    operator = AzureWebAppDeployOperator(
        task_id="azure", conn_id="azure_prod", resource_group="rg", site="shop", version="1.1.0", image=NEW
    )
    config = AzureWebAppConfig.model_validate({"platform": "azure_web_app", **operator.config})
    assert (config.conn_id, config.resource_group, config.site) == ("azure_prod", "rg", "shop")
    own = set(AzureWebAppConfig.model_fields) - set(AzureWebAppConfig.__bases__[0].model_fields)
    assert own <= set(AzureWebAppDeployOperator.__init__.__annotations__)
