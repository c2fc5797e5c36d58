"""The Azure stand-in against azure-mgmt-web: its request builders, its models, its serialiser.

The SDK is generated from the official API description, so what its models know is what the description says. Required
members, which the models do not tell, are in the small schemas below.
"""

from __future__ import annotations

import json
import ssl
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from typing import Any
from urllib.parse import parse_qs, urlsplit

import azure.identity
import azure.mgmt.web.aio
import httpx
import jsonschema
import pytest
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401
from azure.core.exceptions import HttpResponseError
from azure.mgmt.web import WebSiteManagementClient, models
from azure.mgmt.web._utils.model_base import Model, SdkJSONEncoder, _deserialize
from azure.mgmt.web.models import _models
from azure.mgmt.web.operations import _operations

from airflow_multideploy.release.contract import State
from airflow_multideploy.sandbox.azure_web_app import (
    API_VERSION,
    CLIENT,
    GROUP,
    SUBSCRIPTION,
    TENANT,
    AzureWebAppStandIn,
)
from airflow_multideploy.sandbox.world import RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, RESOURCE, PlatformContract

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}


def needs(*names: str, **properties: Any) -> dict[str, Any]:
    """A schema for an object with at least these members."""
    return {"type": "object", "required": [*names, *properties], "properties": properties}


def resource(kind: str, properties: dict[str, Any]) -> dict[str, Any]:
    return needs(
        id={"type": "string", "pattern": "^/subscriptions/"}, name=TEXT, type={"const": kind}, properties=properties
    )


OPERATIONS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "get": (None, models.Site, resource("Microsoft.Web/sites", needs(state=TEXT, defaultHostName=TEXT))),
    "get_configuration": (
        None,
        models.SiteConfigResource,
        resource(
            "Microsoft.Web/sites/config", needs(linuxFxVersion={"type": "string"}, numberOfWorkers={"type": "integer"})
        ),
    ),
    "update_configuration": (
        models.SiteConfigResource,
        models.SiteConfigResource,
        resource("Microsoft.Web/sites/config", needs(linuxFxVersion={"type": "string"})),
    ),
    "list_metadata": (None, models.StringDictionary, resource("Microsoft.Web/sites/config", needs())),
    "list_instance_identifiers": (
        None,
        list[models.WebSiteInstanceStatus],
        needs(value={"type": "array", "items": resource("Microsoft.Web/sites/instances", needs(state=TEXT))}),
    ),
    "get_web_site_container_logs": (None, None, {}),
    "restart": (None, None, {}),
}
"""Per operation: model of the request, model of the answer, what the answer has to have."""
WRITABLE = needs(
    properties={
        "type": "object",
        "required": ["linuxFxVersion", "metadata"],
        "additionalProperties": False,
        "properties": {
            "linuxFxVersion": {"type": "string", "pattern": r"^(DOCKER\|\S+)?$"},
            "metadata": {"type": "array", "items": needs(name=TEXT, value={"type": "string"})},
        },
    }
)
TOKEN = needs(token_type={"const": "Bearer"}, expires_in={"type": "integer"}, access_token=TEXT)
DISCOVERY = needs(token_endpoint=TEXT, authorization_endpoint=TEXT, issuer=TEXT)


# --- the checker -----------------------------------------------------------------------------------------------------


def problems(kind: Any, value: Any, path: str = "$") -> Iterator[str]:
    """Where a document is not what a type of the SDK says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        yield from _union_problems(arguments, value, path)
    elif origin in (list, dict):
        if not isinstance(value, origin):
            yield f"{path}: no {'array' if origin is list else 'object'}"
            return
        for name, item in enumerate(value) if origin is list else value.items():
            yield from problems(arguments[-1], item, f"{path}.{name}")
    elif isinstance(kind, type) and issubclass(kind, Model):
        yield from _model_problems(kind, value, path)
    elif kind is datetime:
        datetime.fromisoformat(value)
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        yield f"{path}: {value!r} is no {kind.__name__}"


def _union_problems(arguments: tuple[Any, ...], value: Any, path: str) -> Iterator[str]:
    enums = [a for a in arguments if isinstance(a, type) and issubclass(a, Enum)]
    if value is None:
        if type(None) not in arguments:
            yield f"{path}: null"
    elif enums:
        if value not in {member.value for enum in enums for member in enum}:
            yield f"{path}: {value!r} is none of {enums[0].__name__}"
    elif all(list(problems(a, value, path)) for a in arguments):
        yield from problems(arguments[0], value, path)


def _model_problems(kind: type[Model], value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: no object"
        return
    kind({})  # the SDK fills in a model's fields when it is first made
    hints = typing.get_type_hints(kind, vars(_models), {"_models": models})
    fields = {field._rest_name: hints[name] for name, field in kind._attr_to_rest_field.items()}
    for name, item in value.items():
        if name not in fields:
            yield f"{path}.{name}: unknown to {kind.__name__}"
        else:
            yield from problems(fields[name], item, f"{path}.{name}")


def conforms(kind: Any, document: Any, schema: dict[str, Any]) -> None:
    """The document is of this type, has what it has to have, and survives the SDK unchanged."""
    jsonschema.validate(document, schema)
    if kind is None:
        return
    document = document["value"] if typing.get_origin(kind) is list else document
    found = list(problems(kind, document))
    assert found == []
    again = json.loads(json.dumps(_deserialize(kind, document), cls=SdkJSONEncoder))
    assert again == document


def built(operation: str) -> tuple[str, str, dict[str, list[str]]]:
    """Method, path and query of an operation as the SDK builds them."""
    build = getattr(_operations, f"build_web_apps_{operation}_request")
    request = build(resource_group_name=GROUP, name=RESOURCE, subscription_id=SUBSCRIPTION)
    parts = urlsplit(request.url)
    return request.method, parts.path, parse_qs(parts.query)


class Recording(AzureWebAppStandIn):
    """Keeps all that passes."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.passed: list[tuple[str, str, dict[str, str], bytes, int, Any]] = []

    def _route(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Any:
        status, answer = super()._route(method, path, query, headers, body)
        self.passed.append((method, path, query, body, status, answer))
        return status, answer


def check(passed: tuple[str, str, dict[str, str], bytes, int, Any]) -> str:
    """Hold one exchange to the contract, and say which operation it was."""
    method, path, query, body, status, answer = passed
    if path.startswith("/apps/"):
        return "app"
    if path.startswith(f"/{TENANT}/"):
        jsonschema.validate(answer, TOKEN if method == "POST" else DISCOVERY)
        return "login"
    by_request = {built(name)[:2]: name for name in OPERATIONS}
    name = by_request[method, path]  # a KeyError here: no operation of the SDK that we know
    asked = {key: values[0] for key, values in built(name)[2].items()}
    assert {key: value for key, value in query.items() if key != "$skiptoken"} == asked
    request, response, schema = OPERATIONS[name]
    if request is None:
        assert body == b""
    else:
        conforms(request, json.loads(body), WRITABLE)
    if status == 204 or response is None:
        assert answer is None or isinstance(answer, str)
    else:
        assert status == 200
        conforms(response, answer, schema)
    return name


# --- the tests -------------------------------------------------------------------------------------------------------


class Drive(PlatformContract):
    """Only the drivers of the suite are used here."""

    __test__ = False


@pytest.fixture
def world() -> World:
    return World(seconds=0.3)


@pytest.fixture
def stand_in(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    stand_in = Recording(world)
    stand_in.start()
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
    stand_in.seed(RESOURCE, OLD)
    yield stand_in
    stand_in.stop()


def test_all_that_passes_is_in_the_contract(stand_in: Recording, world: World) -> None:
    drive = Drive()
    for fault, mode in ((False, "sync"), (True, "async")):
        if fault:
            world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = drive.start(stand_in, drive.release(NEW, f"r-{mode}"))
        seen = drive.wait(drive.platform(stand_in), handle, mode)
        assert seen.state is (State.FAILED if fault else State.HEALTHY)
        drive.undo(stand_in, release, snapshot, handle, mode)
    _, handle, _ = drive.start(stand_in, drive.release(OLD, "r-force", force=True))
    assert drive.wait(drive.platform(stand_in), handle, "sync").state is State.HEALTHY
    assert {check(exchange) for exchange in stand_in.passed} == {*OPERATIONS, "app", "login"}


def test_errors_have_the_form_of_the_contract(stand_in: Recording) -> None:
    def client(**changes: Any) -> WebSiteManagementClient:
        secret = changes.pop("secret", "sandbox-secret")
        common = {"connection_verify": stand_in.ca_file, "retry_total": 0}
        credential = azure.identity.ClientSecretCredential(
            TENANT, CLIENT, secret, authority=stand_in.url, disable_instance_discovery=True, **common
        )
        return WebSiteManagementClient(credential, SUBSCRIPTION, base_url=stand_in.url, **common, **changes)

    cases = [
        (client(), "ghost", 404, "ResourceNotFound"),
        (client(api_version="2001-01-01"), RESOURCE, 400, "NoRegisteredProviderFound"),
    ]
    for sdk, site, status, code in cases:
        with sdk, sdk._config.credential, pytest.raises(HttpResponseError) as caught:
            sdk.web_apps.get(GROUP, site)
        assert (caught.value.status_code, caught.value.error.code) == (status, code)
        document = json.loads(caught.value.response.text())
        conforms(models.DefaultErrorResponse, document, needs(error=needs(code=TEXT, message=TEXT)))


def test_a_token_and_an_api_version_are_required(stand_in: Recording) -> None:
    address = f"{stand_in.url}{built('get')[1]}"
    with httpx.Client(verify=ssl.create_default_context(cafile=stand_in.ca_file)) as client:
        assert client.get(address, params={"api-version": API_VERSION}).status_code == 401
        token = client.post(
            f"{stand_in.url}/{TENANT}/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "scope": "x",
                "client_id": CLIENT,
                "client_secret": stand_in.secret,
            },
        ).json()["access_token"]
        answer = client.get(address, headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "MissingApiVersionParameter")


SITE = {
    "id": "/subscriptions/x",
    "name": "shop",
    "type": "Microsoft.Web/sites",
    "properties": {"state": "Running", "defaultHostName": "shop.example.com", "usageState": "Normal"},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"invented": 1}, r"\$\.invented: unknown to Site"),
        ({"properties": {**SITE["properties"], "enabled": "yes"}}, "'yes' is no bool"),
        ({"properties": {**SITE["properties"], "usageState": "Odd"}}, "is none of UsageState"),
        ({"properties": {**SITE["properties"], "hostNames": "shop"}}, "no array"),
        ({"properties": {"state": "Running"}}, "defaultHostName"),
    ],
)
def test_the_checker_refuses_what_is_wrong(change: dict[str, Any], words: str) -> None:
    _, kind, schema = OPERATIONS["get"]
    conforms(kind, SITE, schema)
    with pytest.raises((AssertionError, jsonschema.ValidationError), match=words):
        conforms(kind, {**SITE, **change}, schema)
