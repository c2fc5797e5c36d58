"""The stand-ins for slots, packages and functions against azure-mgmt-web: its request builders and its models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.azure_web_app import API_VERSION, GROUP, SUBSCRIPTION, TENANT
from airflow_multideploy.sandbox.world import RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, RESOURCE, PlatformContract
from tests.stand_ins.azure_models import Contract, Exchange, recording
from tests.stand_ins.azure_sites import (
    SLOT,
    AzureFunctionsStandIn,
    AzureWebAppPackageStandIn,
    AzureWebAppSlotStandIn,
)

SDK = Contract("azure.mgmt.web")
_M = SDK.models
_SITE = {"resource_group_name": GROUP, "name": RESOURCE, "subscription_id": SUBSCRIPTION}
_PAGE = "value"
SHAPES: dict[str, tuple[Any, Any]] = {
    "get": (None, _M.Site),
    "get_configuration": (None, _M.SiteConfigResource),
    "update_configuration": (_M.SiteConfigResource, _M.SiteConfigResource),
    "list_application_settings": (None, _M.StringDictionary),
    "update_application_settings": (_M.StringDictionary, _M.StringDictionary),
    "list_metadata": (None, _M.StringDictionary),
    "list_instance_identifiers": (None, list[_M.WebSiteInstanceStatus]),
    "get_web_site_container_logs": (None, None),
    "restart": (None, None),
    "sync_function_triggers": (None, None),
    "list_functions": (None, list[_M.FunctionEnvelope]),
    "swap_slot_with_production": (_M.CsmSlotEntity, None),
}
"""Per operation: model of the request, model of the answer."""
OPERATIONS: dict[tuple[str, str], str] = {
    **{SDK.built(f"web_apps_{name}", **_SITE): name for name in SHAPES},
    **{
        SDK.built(f"web_apps_{name}_slot", slot=SLOT, **_SITE): f"{name}_slot"
        for name in SHAPES
        if name not in ("list_functions", "swap_slot_with_production")
    },
}
COMMON = {"get", "list_application_settings", "update_application_settings", "list_instance_identifiers"}
LOGS = {"get_web_site_container_logs"}
EXPECTED = {
    AzureWebAppPackageStandIn: COMMON | LOGS,
    AzureFunctionsStandIn: COMMON | LOGS | {"sync_function_triggers", "list_functions"},
    AzureWebAppSlotStandIn: {
        "get",
        "get_configuration",
        "list_application_settings",
        "list_instance_identifiers",
        "swap_slot_with_production",
        "get_slot",
        "get_configuration_slot",
        "update_configuration_slot",
        "list_application_settings_slot",
        "update_application_settings_slot",
        "list_instance_identifiers_slot",
        "get_web_site_container_logs_slot",
        "list_metadata_slot",
        "restart_slot",
    },
}


def check(exchange: Exchange) -> str | None:
    """Hold one exchange to the contract, and say which operation it was."""
    method, path, query, body, status, answer = exchange
    if path.startswith((f"/{TENANT}/", "/apps/")):
        return None
    name = OPERATIONS[method, path]  # a KeyError here: no operation of the SDK that we know
    request, kind = SHAPES[name.removesuffix("_slot")]
    assert {key: value for key, value in query.items() if key != "$skiptoken"} == {"api-version": API_VERSION}
    if request is None:
        assert body == b""
    else:
        SDK.conforms(request, json.loads(body))
    if kind is None or status == 204:
        assert answer is None or isinstance(answer, str)
    else:
        SDK.conforms(kind, answer[_PAGE] if getattr(kind, "__origin__", None) is list else answer)
    return name


class Drive(PlatformContract):
    """Only the drivers of the suite are used here."""

    __test__ = False


@pytest.fixture(params=EXPECTED, ids=lambda kind: kind.kind)
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("airflow_multideploy.platforms.azure.web_app_slot.PAUSE", 2.0)
    stand_in = recording(request.param)(World(seconds=0.2))
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
    passed = {name for exchange in stand_in.passed if (name := check(exchange))}
    assert passed >= EXPECTED[type(stand_in).__bases__[0]]


@pytest.mark.parametrize(
    ("model", "document", "words"),
    [
        ("StringDictionary", {"properties": {"A": 1}}, "is no str"),
        ("CsmSlotEntity", {"targetSlot": "staging", "preserveVnet": "yes"}, "is no bool"),
        ("SiteConfigResource", {"properties": {"linuxFx": "DOCKER|x"}}, "unknown to SiteConfig"),
    ],
)
def test_the_checker_refuses_what_is_wrong(model: str, document: dict[str, Any], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        SDK.conforms(getattr(_M, model), document)
