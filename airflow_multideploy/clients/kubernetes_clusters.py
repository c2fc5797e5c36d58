"""Into managed Kubernetes clusters with the cloud's own credentials: EKS, GKE and AKS.

Each gives a kubeconfig with a token of minutes. What is asked for it is small and rare, so it is asked by the clouds'
blocking SDKs; the triggerer does that in a thread.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from airflow_multideploy.clients.aws import THROTTLED
from airflow_multideploy.clients.connections import (
    AWS,
    AZURE,
    GOOGLE,
    Caller,
    existing,
    fitting,
    missing_extra,
    refuse_plain_http,
)
from airflow_multideploy.errors import MultideployError
from airflow_multideploy.strict import Model

Json = dict[str, Any]
Some = Annotated[str, Field(min_length=1)]
_SECONDS = 600.0
"""How long a token is used; EKS accepts one for 15 minutes, and Google hands out ones that may end in 5."""
_AKS_SERVER = "6dae42f8-4368-4678-94ff-3960e28e3630/.default"
"""Scope of the Microsoft Entra server application of every AKS cluster."""
_LOST = {
    "OSError",
    "ConnectionError",
    "HTTPClientError",
    "TransportError",
    "ServiceRequestError",
    "ServiceResponseError",
}
"""Bases of the SDKs' errors for a call that got no answer."""


class Eks(Model):
    """Amazon EKS, with a Connection of type ``aws``.

    :param eks: name of the cluster.
    :param region: None takes the Connection's.
    """

    eks: Some
    region: Some | None = None


class Gke(Model):
    """Google Kubernetes Engine, with a Connection of type ``google_cloud_platform``.

    :param gke: name of the cluster.
    :param location: its region or zone.
    :param project: None takes the Connection's.
    """

    gke: Some
    location: Some
    project: Some | None = None


class Aks(Model):
    """Azure Kubernetes Service, with a Connection of type ``azure``.

    :param aks: name of the cluster.
    :param resource_group: where the cluster is.
    :param subscription_id: None takes the Connection's.
    """

    aks: Some
    resource_group: Some
    subscription_id: Some | None = None


_CLOUDS = ("eks", "gke", "aks")


def _cloud(cluster: Any) -> str | None:
    """Which of the three a target's ``cluster`` is; None: not one alone."""
    if isinstance(cluster, Model):
        return type(cluster).__name__
    named = [cloud for cloud in _CLOUDS if isinstance(cluster, dict) and cloud in cluster]
    return named[0].capitalize() if len(named) == 1 else None


Cluster = Annotated[
    Annotated[Eks, Tag("Eks")] | Annotated[Gke, Tag("Gke")] | Annotated[Aks, Tag("Aks")],
    Discriminator(
        _cloud,
        custom_error_type="cluster",
        custom_error_message="has to name one cluster: with eks, with gke and location, or with aks and resource_group",
    ),
]


class Entrance:
    """A way into one managed cluster."""

    def __init__(self, cluster: Eks | Gke | Aks, platform: Caller) -> None:
        self.cluster, self.platform = cluster, platform
        self._known: tuple[float, Json] = (0.0, {})

    def kubeconfig(self) -> Json:
        """A kubeconfig that works for some minutes."""
        until, known = self._known
        if time.monotonic() < until:
            return known
        with self._asking(), existing(self.platform.config.conn_id, self.platform.error):
            if isinstance(self.cluster, Eks):
                made = self._eks(self.cluster)
            elif isinstance(self.cluster, Gke):
                made = self._gke(self.cluster)
            else:
                made = self._aks(self.cluster)
            for each in made["clusters"]:  # as an answer named it
                refuse_plain_http(each["cluster"]["server"], target=self.platform.name)
        self._known = (time.monotonic() + _SECONDS, made)
        return made

    def _eks(self, cluster: Eks) -> Json:
        """https://docs.aws.amazon.com/eks/latest/APIReference/API_DescribeCluster.html"""
        try:
            from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
            from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
            from airflow.providers.amazon.aws.utils.eks_get_token import fetch_access_token_for_cluster
            from airflow.sdk import BaseHook
            from botocore.config import Config
        except ImportError as error:
            raise missing_extra("aws", error) from error
        hook = AwsBaseHook(client_type="eks")
        # Given, not looked up by the hook: that one takes the machine's own credentials when the Connection is missing.
        connection = fitting(BaseHook.get_connection(self.platform.config.conn_id), AWS, self.platform.error)
        hook.conn_config = AwsConnectionWrapper(conn=connection, region_name=cluster.region)
        limits = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 1})
        hook.conn_config.botocore_config = (hook.conn_config.botocore_config or Config()).merge(limits)
        client = hook.get_client_type()
        refuse_plain_http(client.meta.endpoint_url, target=self.platform.name)
        found = client.describe_cluster(name=cluster.eks)["cluster"]
        region = client.meta.region_name
        sts = hook.get_session(region_name=region).client("sts", region_name=region).meta.endpoint_url
        token = fetch_access_token_for_cluster(
            cluster.eks,
            # Regional: EKS takes no other. The cluster itself sends this signed request, to learn who we are.
            f"{sts}/?Action=GetCallerIdentity&Version=2011-06-15",
            region_name=region,
            session=hook.get_session(region_name=region),
        )
        return _kubeconfig(found["endpoint"], found["certificateAuthority"]["data"], {"token": token})

    def _gke(self, cluster: Gke) -> Json:
        """https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters/get"""
        try:
            from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
            from google.auth.transport.requests import AuthorizedSession
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        fitting(GoogleBaseHook.get_connection(self.platform.config.conn_id), GOOGLE, self.platform.error)
        hook = GoogleBaseHook(gcp_conn_id=self.platform.config.conn_id)
        credentials, project = hook.get_credentials_and_project_id()
        base = hook.extras.get("api_endpoint") or f"https://container.{credentials.universe_domain}"
        refuse_plain_http(base, target=self.platform.name)
        place = f"projects/{cluster.project or project}/locations/{cluster.location}/clusters/{cluster.gke}"
        with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
            answer = session.get(f"{base}/v1/{place}", timeout=30)
        answer.raise_for_status()
        found = answer.json()
        server, ca = f"https://{found['endpoint']}", found["masterAuth"]["clusterCaCertificate"]
        return _kubeconfig(server, ca, {"token": credentials.token})

    def _aks(self, cluster: Aks) -> Json:
        """https://learn.microsoft.com/en-us/rest/api/aks/managed-clusters/list-cluster-user-credentials"""
        try:
            from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook
            from airflow.providers.microsoft.azure.utils import get_sync_default_azure_credential
            from azure import identity
        except ImportError as error:
            raise missing_extra("azure", error) from error
        import httpx
        import yaml

        from airflow_multideploy.clients.azure_login import Access, Seen

        connection = fitting(AzureBaseHook.get_connection(self.platform.config.conn_id), AZURE, self.platform.error)
        access = Access.read(connection, cluster.subscription_id, self.platform)
        base, scope = access.client(_place, None, Seen())
        path = (
            f"/subscriptions/{access.subscription_id}/resourceGroups/{cluster.resource_group}/providers/"
            f"Microsoft.ContainerService/managedClusters/{cluster.aks}/listClusterUserCredential"
        )
        with access.credential(identity, Seen(), get_sync_default_azure_credential) as credential:
            headers = {"Authorization": f"Bearer {credential.get_token(scope).token}"}
            with httpx.Client(base_url=base, headers=headers, verify=access.tls(), timeout=30) as http:
                answer = http.post(path, params={"api-version": "2025-05-01"})
            answer.raise_for_status()
            text = base64.b64decode(answer.json()["kubeconfigs"][0]["value"])
            found: Json = yaml.safe_load(text)
            user = found["users"][0]
            if "exec" in user["user"] or "auth-provider" in user["user"]:  # a login through Entra: we do it ourselves
                user["user"] = {"token": credential.get_token(_AKS_SERVER).token}
        return found

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Three SDKs' errors as ours. What an answer was refused with is said; what a Connection holds is not."""
        try:
            yield
        except MultideployError:
            raise
        except Exception as error:  # noqa: BLE001 - each SDK has a tree of its own, and wrong settings make any
            status, code = _status(error), _code(error)
            bases = {base.__name__ for base in type(error).__mro__}
            lost = bool(bases & _LOST) and "SSLError" not in bases
            lost = lost or bool(getattr(error, "retryable", False))  # google-auth's say so themselves
            name = next(iter(self.cluster.model_dump().values()))
            words = f"{f'HTTP {status}: ' if status else ''}{code or type(error).__name__}"
            passes = code in THROTTLED or status in (408, 429) or status >= 500 or (not status and lost)
            remedy = "it may pass" if passes else "check the Connection, its rights, and the target's cluster"
            what = f"cannot enter the cluster {name!r} with Connection {self.platform.config.conn_id!r}"
            raise self.platform.error(f"{what}: {words}; {remedy}", retryable=passes) from None


def _code(error: Exception) -> str:
    """AWS's code of a refused call; empty for another SDK's error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _status(error: Exception) -> int:
    """HTTP status of an SDK's error; 0: it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return int(getattr(response, "status_code", 0) or getattr(error, "status_code", 0) or 0)


def _place(_credential: object, _subscription: str, *, base_url: str, credential_scopes: list[str], **_: Any) -> Any:
    """Where Resource Manager is, and the scope of its tokens: all that `Access` tells a client."""
    return base_url, credential_scopes[0]


def _kubeconfig(server: str, ca: str, user: Json) -> Json:
    cluster = {"server": server, "certificate-authority-data": ca}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "managed",
        "contexts": [{"name": "managed", "context": {"cluster": "managed", "user": "managed"}}],
        "clusters": [{"name": "managed", "cluster": cluster}],
        "users": [{"name": "managed", "user": user}],
    }
