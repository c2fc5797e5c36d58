"""Into managed clusters: what EKS, GKE and AKS are asked, and that the kubeconfig made of it opens a cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from moto import mock_aws

from airflow_multideploy.clients.kubernetes_clusters import Entrance
from airflow_multideploy.errors import PlatformError, SpecError
from airflow_multideploy.platforms.clusters.kubernetes import Kubernetes
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Platform, State
from airflow_multideploy.sandbox.server import Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import World
from airflow_multideploy.testing.contract import OLD, RESOURCE, SECRET, PlatformContract
from tests.stand_ins.kube import cluster
from tests.stand_ins.kubernetes import KubernetesStandIn

Json = dict[str, Any]
KEY = "canary-key-7f3a"


@pytest.fixture(scope="module")
def kube() -> Iterator[KubernetesStandIn]:
    stand_in = KubernetesStandIn(World(seconds=0), cluster())
    stand_in.start()
    stand_in.seed(RESOURCE, OLD)
    yield stand_in
    stand_in.stop()


class Cloud:
    """One HTTPS server that answers by path; it keeps what it was asked."""

    def __init__(self, folder: Path, answers: dict[str, Callable[[str], tuple[int, Json]]]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers = answers
        ca = trustme.CA()
        self.ca_file, chain = str(folder / "ca.pem"), str(folder / "chain.pem")
        ca.cert_pem.write_to_path(self.ca_file)
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
        app = Faults(self._app, World(), "cloud")
        self.servers = [Server(app, tls=(chain, chain)), Server(app)]
        self.https, self.http = (server.start().url for server in self.servers)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"].decode()
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.asked.append((f"{scope['method']} {scope['path']}", headers.get("authorization", "")))
        answer = next((a for path, a in self.answers.items() if path in scope["path"]), None)
        status, document = answer(body) if answer else (404, {"error": {"code": "NotFound", "message": scope["path"]}})
        kind = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def platform(kube: KubernetesStandIn, where: Json) -> Platform[Any]:
    config = {**kube.target(RESOURCE), "conn_id": "contract", "cluster": where}
    return adapter(config, service="shop", target="t1")


def both_look(made: Platform[Any]) -> None:
    """Worker and triggerer get in."""
    suite, revision = PlatformContract(), made.snapshot().revision
    uid = made.snapshot().data["uid"]
    handle = Handle(action="deploy", revision=revision, data={"uid": uid})
    assert {suite.look(made, handle, mode).state for mode in ("sync", "async")} == {State.HEALTHY}


# --- EKS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = {"conn_type": "aws", "login": "AKEXAMPLE", "password": KEY, "extra": {"region_name": "eu-west-1"}}
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(known))
    with mock_aws():
        yield


def eks(name: str = "prod", **given: str) -> Json:
    config = {"platform": "kubernetes", "conn_id": "contract", "deployment": "shop", "cluster": {"eks": name, **given}}
    made = adapter(config, service="shop", target="t1")
    assert isinstance(made, Kubernetes)
    assert made.config.cluster is not None
    return Entrance(made.config.cluster, made).kubeconfig()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("region", ["eu-west-1", "us-east-1"])
def test_eks_gives_address_authority_and_a_token_that_says_who_we_are(region: str) -> None:
    role, vpc = "arn:aws:iam::123456789012:role/eks", {"subnetIds": ["subnet-1"]}
    client = boto3.client("eks", region_name=region, aws_access_key_id="a", aws_secret_access_key="b")
    made = client.create_cluster(name="prod", roleArn=role, resourcesVpcConfig=vpc)["cluster"]
    kubeconfig = eks(region=region) if region == "us-east-1" else eks()
    assert kubeconfig["clusters"][0]["cluster"] == {
        "server": made["endpoint"],
        "certificate-authority-data": made["certificateAuthority"]["data"],
    }
    token = kubeconfig["users"][0]["user"]["token"]
    text = token.removeprefix("k8s-aws-v1.")
    url = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    query = parse_qs(urlsplit(url).query)
    assert urlsplit(url).hostname == f"sts.{region}.amazonaws.com"
    assert query["Action"] == ["GetCallerIdentity"]
    assert query["X-Amz-SignedHeaders"] == ["host;x-k8s-aws-id"]
    assert query["X-Amz-Credential"][0].startswith("AKEXAMPLE/")
    assert KEY not in url


@pytest.mark.usefixtures("aws")
def test_an_eks_cluster_that_does_not_exist_is_named() -> None:
    with pytest.raises(PlatformError, match=r"cannot enter the cluster 'nobody'.*HTTP 404") as caught:
        eks("nobody")
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("ThrottlingException", 400, "it may pass"),
        ("ServerException", 500, "it may pass"),
        ("AccessDeniedException", 403, "check the Connection, its rights, and the target's cluster"),
    ],
)
def test_what_eks_refuses_is_classified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, remedy: str
) -> None:
    cloud = Cloud(tmp_path, {"/clusters/prod": lambda _: (status, {"__type": code, "code": code, "message": SECRET})})
    at_cloud(monkeypatch, cloud.http)
    with pytest.raises(PlatformError, match=rf"HTTP {status}: {code}; {remedy}") as caught:
        eks()
    assert caught.value.retryable is (remedy == "it may pass")
    assert SECRET not in str(caught.value)
    cloud.stop()
    with pytest.raises(PlatformError, match="it may pass") as caught:
        eks()
    assert caught.value.retryable, "nobody answers"


def at_cloud(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    extra = {"region_name": "eu-west-1", "endpoint_url": url}
    known = {"conn_type": "aws", "login": "AKEXAMPLE", "password": KEY, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(known))


# --- GKE --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gcp(tmp_path: Path, kube: KubernetesStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    ca = base64.b64encode(Path(kube.ca_file).read_bytes()).decode()
    found = {"endpoint": kube.url.removeprefix("https://"), "masterAuth": {"clusterCaCertificate": ca}}
    token = {"access_token": SECRET, "expires_in": 3600, "token_type": "Bearer"}
    cloud = Cloud(tmp_path, {"/token": lambda _: (200, token), "/clusters/prod": lambda _: (200, found)})
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "p1",
        "client_email": "a@p1.example.com",
        "private_key": key.decode(),
        "token_uri": f"{cloud.http}/token",
    }
    extra = {"keyfile_dict": json.dumps(account), "api_endpoint": cloud.http}
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
    yield cloud
    cloud.stop()


def test_gke_gives_address_authority_and_access_token(gcp: Cloud, kube: KubernetesStandIn) -> None:
    both_look(platform(kube, {"gke": "prod", "location": "europe-west1"}))
    place = "GET /v1/projects/p1/locations/europe-west1/clusters/prod"
    assert gcp.asked == [("POST /token", ""), (place, f"Bearer {SECRET}")], "asked once for a whole wait"


@pytest.mark.parametrize("astray", [r"127.0.0.1:1\@{}", "user@{}", "127.0.0.1:1 {}"])
def test_a_cluster_whose_address_leads_astray_is_not_entered(gcp: Cloud, kube: KubernetesStandIn, astray: str) -> None:
    _, found = gcp.answers["/clusters/prod"]("")
    there = {**found, "endpoint": astray.format(kube.url.removeprefix("https://"))}
    gcp.answers["/clusters/prod"] = lambda _: (200, there)
    with pytest.raises(SpecError, match="shop/t1: refusing to send credentials"):
        platform(kube, {"gke": "prod", "location": "europe-west1"}).snapshot()


@pytest.mark.parametrize(("status", "retryable"), [(403, False), (429, True), (503, True)])
def test_what_gke_refuses_is_classified(gcp: Cloud, kube: KubernetesStandIn, status: int, retryable: bool) -> None:
    gcp.answers["/clusters/prod"] = lambda _: (status, {"error": {"message": SECRET}})
    with pytest.raises(PlatformError, match=rf"shop/t1: .*HTTP {status}") as caught:
        platform(kube, {"gke": "prod", "location": "europe-west1"}).snapshot()
    assert caught.value.retryable is retryable
    assert SECRET not in str(caught.value)


def test_a_google_that_does_not_answer_is_asked_again(gcp: Cloud, kube: KubernetesStandIn) -> None:
    gcp.stop()
    with pytest.raises(PlatformError) as caught:
        platform(kube, {"gke": "prod", "location": "europe-west1"}).snapshot()
    assert caught.value.retryable


# --- AKS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def azure(tmp_path: Path, kube: KubernetesStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    document = kube.connection()["extra"]["kube_config"]

    def token(body: str) -> tuple[int, Json]:
        aks = "6dae42f8" in body
        return 200, {"access_token": SECRET if aks else "arm", "expires_in": 3600, "token_type": "Bearer"}

    def credential(_: str) -> tuple[int, Json]:
        text = base64.b64encode(yaml.safe_dump(document).encode()).decode()
        return 200, {"kubeconfigs": [{"name": "clusterUser", "value": text}]}

    cloud = Cloud(tmp_path, {"/token": token, "/listClusterUserCredential": credential})
    cloud.answers["openid-configuration"] = lambda _: (
        200,
        {
            "token_endpoint": f"{cloud.https}/t1/oauth2/v2.0/token",
            "authorization_endpoint": f"{cloud.https}/t1/authorize",
            "issuer": f"{cloud.https}/t1/v2.0",
        },
    )
    extra = {
        "tenantId": "t1",
        "subscriptionId": "s1",
        "base_url": cloud.https,
        "authority": cloud.https,
        "ca_file": cloud.ca_file,
    }
    connection = {"conn_type": "azure", "login": "me", "password": KEY, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
    yield cloud
    cloud.stop()


@pytest.mark.parametrize("login", ["local", "entra"])
def test_aks_gives_a_kubeconfig(azure: Cloud, kube: KubernetesStandIn, login: str) -> None:
    if login == "entra":
        given = azure.answers["/listClusterUserCredential"]

        def through_entra(body: str) -> tuple[int, Json]:
            status, document = given(body)
            kubeconfig = yaml.safe_load(base64.b64decode(document["kubeconfigs"][0]["value"]))
            kubeconfig["users"][0]["user"] = {"exec": {"command": "kubelogin", "apiVersion": "v1"}}
            text = base64.b64encode(yaml.safe_dump(kubeconfig).encode()).decode()
            return status, {"kubeconfigs": [{"name": "clusterUser", "value": text}]}

        azure.answers["/listClusterUserCredential"] = through_entra
    both_look(platform(kube, {"aks": "prod", "resource_group": "rg"}))
    place = "/subscriptions/s1/resourceGroups/rg/providers/Microsoft.ContainerService/managedClusters/prod"
    asked = [call for call in azure.asked if "managedClusters" in call[0]]
    assert asked == [(f"POST {place}/listClusterUserCredential", "Bearer arm")]


def test_a_login_that_azure_refuses_is_not_tried_again(azure: Cloud, kube: KubernetesStandIn) -> None:
    azure.answers["/token"] = lambda _: (401, {"error": "invalid_client", "error_description": f"AADSTS7000215 {KEY}"})
    with pytest.raises(PlatformError, match="cannot enter the cluster 'prod'") as caught:
        platform(kube, {"aks": "prod", "resource_group": "rg"}).snapshot()
    assert not caught.value.retryable
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("where", [{}, {"eks": ""}, {"gke": "prod"}, {"eks": "prod", "aks": "prod"}])
def test_a_cluster_that_is_none_is_refused(where: Json) -> None:
    config = {"platform": "kubernetes", "conn_id": "contract", "deployment": "shop", "cluster": where}
    with pytest.raises(SpecError, match=r"targets\.t1\.cluster"):
        adapter(config, service="shop", target="t1")
