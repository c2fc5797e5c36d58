"""What is wrong before anything was written is said then: a Connection's type, a config's value, a missing SDK."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_multideploy.clients.connections import AZURE, GOOGLE, fitting
from airflow_multideploy.errors import MissingExtra, PlatformError, SpecError
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle

SITE = {"resource_group": "rg", "site": "shop"}
TARGETS: dict[str, dict[str, Any]] = {
    "aws_ecs": {"cluster": "main", "service": "shop"},
    "azure_web_app": SITE,
    "gcp_app_engine": {"project": "my-project", "service": "shop"},
    "gcp_cloud_run": {"project": "my-project", "location": "europe-west1", "service": "shop"},
    "http": {"deploy": {"path": "/deploy"}, "version": {"path": "/version"}},
    "nomad": {"job": "shop"},
    "kubernetes": {"deployment": "shop"},
    "ssh": {"root": "/srv/shop", "unit": "shop.service", "package": "https://example.com/${version}.tgz"},
}


def made(kind: str, **changes: Any) -> Any:
    config = {"platform": kind, "conn_id": "prod", **TARGETS.get(kind, {}), **changes}
    return adapter(config, service="shop", target="t1")


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    def known(conn_type: str) -> None:
        document = {"conn_type": conn_type, "host": "127.0.0.1", "port": 1, "login": "me", "password": "canary-7f3a"}
        monkeypatch.setenv("AIRFLOW_CONN_PROD", json.dumps(document))

    return known


@pytest.mark.parametrize(
    ("kind", "changes", "accepted"),
    [
        ("aws_ecs", {}, "'aws'"),
        ("azure_web_app", {}, "'azure' or 'multideploy_azure'"),
        ("gcp_app_engine", {}, "'google_cloud_platform' or 'multideploy_gcp'"),
        ("gcp_cloud_run", {}, "'google_cloud_platform' or 'multideploy_gcp'"),
        ("http", {}, "'http'"),
        ("nomad", {}, "'http'"),
        ("kubernetes", {}, "'kubernetes'"),
        ("kubernetes", {"cluster": {"eks": "prod"}}, "'aws'"),
        ("kubernetes", {"cluster": {"gke": "prod", "location": "europe-west1"}}, "'google_cloud_platform'"),
        ("kubernetes", {"cluster": {"aks": "prod", "resource_group": "rg"}}, "'azure'"),
        ("ssh", {}, "'ssh'"),
    ],
)
def test_a_connection_of_another_type_is_named(connection: Any, kind: str, changes: Any, accepted: str) -> None:
    connection("postgres")
    with pytest.raises(PlatformError, match=rf"shop/t1: Connection 'prod' is of type 'postgres'.*{accepted}") as caught:
        made(kind, **changes).snapshot()
    assert not caught.value.retryable
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("conn_type", "types"),
    [("generic", GOOGLE), ("multideploy_gcp", GOOGLE), ("multideploy_azure", AZURE), (None, AZURE)],
)
def test_our_own_types_and_untyped_ones_fit(conn_type: Any, types: tuple[str, ...]) -> None:
    given = Connection(conn_id="prod", conn_type=conn_type)
    assert fitting(given, types, lambda words: PlatformError(words, target="t")) is given


@pytest.mark.parametrize(("kind", "sdk"), [("aws_ecs", "aiobotocore"), ("ssh", "asyncssh")])
def test_the_triggerers_sdk_is_missed_before_the_first_write(
    connection: Any, monkeypatch: pytest.MonkeyPatch, kind: str, sdk: str
) -> None:
    connection("aws" if kind == "aws_ecs" else "ssh")
    monkeypatch.setitem(sys.modules, sdk, None)
    with pytest.raises(MissingExtra, match=rf"{sdk} is not installed: pip install"):
        made(kind).snapshot()


def test_a_broken_sdk_in_the_triggerer_names_the_extra(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection("aws")
    monkeypatch.setitem(sys.modules, "aiobotocore.session", None)
    with pytest.raises(MissingExtra, match=r"airflow-provider-multideploy\[aws\]"):
        asyncio.run(made("aws_ecs", region="eu-west-1").aobserve(Handle(action="deploy", revision="x")))


POD = {"spec": {"containers": [{"name": "app"}]}}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("ssh", {"package": "shop.tgz"}, "neither an https address nor an absolute path"),
        ("ssh", {"package": "s3://releases/shop.tgz"}, "neither an https address nor an absolute path"),
        ("ssh", {"package": "http://example.com/shop.tgz"}, "give its checksum"),
        ("docker", {"container": "shop", "url": "tcp://10.0.0.1:2376"}, "set tls_ca_cert"),
        ("kubernetes", {"manifest": {"foo": 1}}, r"manifest: .*it has no spec\.selector"),
        ("kubernetes", {"manifest": {"spec": {"selector": {"a": "b"}}}}, r"no spec\.template\.spec\.containers"),
        (
            "kubernetes",
            {"manifest": {"spec": {"selector": {"a": "b"}, "template": {"spec": {"containers": [{}]}}}}},
            r"containers\[\]\.name",
        ),
        ("aws_lambda", {"function": "shop:live"}, "without version, and the alias in 'alias'"),
        ("aws_lambda", {"function": "arn:aws:lambda:eu-west-1:123456789012:function:shop:3"}, "without version"),
    ],
)
def test_a_config_that_cannot_work_is_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        made(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ssh", {"package": "/releases/shop.tgz"}),
        ("ssh", {"package": "http://example.com/shop.tgz", "checksum": "${digest}"}),
        ("docker", {"container": "shop", "url": "tcp://127.0.0.1:2375"}),
        ("kubernetes", {"manifest": {"spec": {"selector": {"a": "b"}, "template": POD}}}),
        ("aws_lambda", {"function": "arn:aws:lambda:eu-west-1:123456789012:function:shop"}),
        ("aws_lambda", {"function": "123456789012:function:shop"}),
    ],
)
def test_a_config_that_can_work_is_taken(kind: str, changes: dict[str, Any]) -> None:
    assert made(kind, **changes).kind == kind


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({"eks": "prod", "gke": "prod"}, "has to name one cluster"),
        ({}, "has to name one cluster"),
        ({"gke": "prod"}, "location"),
        ({"eks": "prod", "regoin": "eu-west-1"}, "unknown key"),
    ],
)
def test_a_wrong_cluster_is_one_problem(cluster: dict[str, str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem) as caught:
        made("kubernetes", cluster=cluster)
    assert len(caught.value.problems) == 1
