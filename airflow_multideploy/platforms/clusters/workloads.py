"""Calls to a Kubernetes cluster through the official provider's hooks: the same steps in worker and triggerer.

A platform says what to call as a generator (`Steps`) that yields operations of the official client and receives plain
JSON; nothing here knows what a release is. Documents are taken as they are on the wire: the client's typed models would
lose fields that are younger than they.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.connections import KUBERNETES, existing, fitting, missing_extra, refuse_plain_http
from airflow_multideploy.clients.kubernetes_clusters import Cluster, Entrance
from airflow_multideploy.errors import MultideployError, PlatformError
from airflow_multideploy.platforms.clusters.kubernetes_judge import (
    HASH,
    Trouble,
    digest,
    number_of,
    selector_of,
    trouble_of,
)
from airflow_multideploy.release.contract import Platform

Json = dict[str, Any]
T = TypeVar("T")
Steps = Generator[tuple[str, Json], Any, T]
"""Calls to make, one after the other, and a result. What is read and does not exist is None; another refused call is
raised where it was yielded, as `Refused`."""
CALL_SECONDS = 30
AGAIN = 30.0
"""Seconds until the next look at a rollout of somebody else, whose end is waited for."""
_API = {
    "read_namespaced_deployment": "AppsV1Api",
    "create_namespaced_deployment": "AppsV1Api",
    "patch_namespaced_deployment": "AppsV1Api",
    "delete_namespaced_deployment": "AppsV1Api",
    "list_namespaced_replica_set": "AppsV1Api",
    "list_namespaced_pod": "CoreV1Api",
    "list_namespaced_secret": "CoreV1Api",
}

_DNS = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class KubernetesConfig(TargetConfig):
    """What every target on a Kubernetes cluster has.

    :param namespace: where it is.
    :param cluster: a managed cluster, entered with the cloud's own credentials: ``conn_id`` is a Connection of that
        cloud. None: it is one of type ``kubernetes``.
    """

    namespace: Annotated[str, Field(pattern=_DNS)] = "default"
    cluster: Cluster | None = None


class Refused(PlatformError):
    """The API server's answer to a call was no."""

    status: int = 0


C = TypeVar("C", bound=KubernetesConfig)


class KubernetesPlatform(Platform[C]):
    """Base of the platforms on Kubernetes."""

    _entrance: Entrance | None = None

    def _run(self, steps: Steps[T]) -> T:
        """Make the calls here and now."""
        with self._client() as client, self.understanding():
            try:
                call = next(steps)
                while True:
                    try:
                        answer = self._call(client, *call)
                    except PlatformError as error:
                        call = steps.throw(error)
                    else:
                        call = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def _arun(self, steps: Steps[T]) -> T:
        """Make the calls without blocking the event loop."""
        async with self._aclient() as client:
            with self.understanding():
                try:
                    call = next(steps)
                    while True:
                        try:
                            answer = await self._acall(client, *call)
                        except PlatformError as error:
                            call = steps.throw(error)
                        else:
                            call = steps.send(answer)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _sets(self, live: Json) -> Steps[list[Json]]:
        """A Deployment's ReplicaSets, the oldest revision first."""
        place = {"namespace": live["metadata"]["namespace"]}
        listed = yield "list_namespaced_replica_set", {**place, "label_selector": selector_of(live)}
        uid = live["metadata"]["uid"]
        mine = [s for s in listed["items"] if any(o["uid"] == uid for o in s["metadata"].get("ownerReferences", []))]
        return sorted(mine, key=number_of)

    def _trouble(self, live: Json, restarts: int) -> Steps[Trouble]:
        """What the pods of a Deployment's present template say."""
        wanted = digest(live["spec"]["template"])
        mine = [s for s in (yield from self._sets(live)) if digest(s["spec"]["template"]) == wanted]
        if not mine:
            return Trouble(replica_set="")
        selector = f"{selector_of(live)},{HASH}={mine[-1]['metadata']['labels'][HASH]}"
        place = {"namespace": live["metadata"]["namespace"]}
        listed = yield "list_namespaced_pod", {**place, "label_selector": selector}
        return trouble_of(mine[-1]["metadata"]["name"], listed["items"], restarts, datetime.now(UTC))

    # --- clients ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self) -> Iterator[Any]:
        hooks, client, _ = _sdk()
        with self._connecting():
            # A configuration of our own: the hook's default is one for the whole process, and tries again by itself.
            configuration = client.Configuration()
            configuration.retries = False
            # The hook would ignore our configuration in a cluster, unless it finds out by itself that it is in one.
            how = self._managed()
            if not how:
                fitting(hooks.KubernetesHook.get_connection(self.config.conn_id), KUBERNETES, self.error)
                how = {"conn_id": self.config.conn_id, "in_cluster": False}
            made = hooks.KubernetesHook(client_configuration=configuration, **how).get_conn()
            refuse_plain_http(made.configuration.host, target=self.name)
        with made:
            yield made

    @asynccontextmanager
    async def _aclient(self) -> AsyncIterator[Any]:
        hooks, _, client = await asyncio.to_thread(_sdk)
        with self._connecting():
            how = await asyncio.to_thread(self._managed) or {"conn_id": self.config.conn_id}
            hook = hooks.AsyncKubernetesHook(client_configuration=client.Configuration(), **how)
            door = hook.get_conn()
            made = await door.__aenter__()
        try:
            refuse_plain_http(made.configuration.host, target=self.name)
            yield made
        finally:
            await door.__aexit__(None, None, None)

    def _managed(self) -> Json:
        """The hook's arguments for a managed cluster; none for another."""
        if self.config.cluster is None:
            return {}
        self._entrance = self._entrance or Entrance(self.config.cluster, self)
        return {"conn_id": None, "kubernetes_conn_id": None, "config_dict": self._entrance.kubeconfig()}

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """An error never shows what the Connection holds: parsers quote what they stumble over."""
        try:
            with existing(self.config.conn_id, self.error):
                yield
        except MultideployError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a kubeconfig that is none makes the SDK raise
            what = f"Connection {self.config.conn_id!r} gives no access to a Kubernetes cluster"
            raise self.error(f"{what} ({type(error).__name__}); check its kubeconfig") from None

    # --- one call -----------------------------------------------------------------------------------------------------

    def _call(self, client: Any, operation: str, arguments: Json) -> Any:
        from kubernetes import client as sdk
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        api = getattr(sdk, _API[operation])(client)
        try:
            answer = getattr(api, operation)(**self._arguments(arguments))
            status, headers, body = answer.status, answer.headers, answer.data
        except ApiException as error:
            status, headers, body = error.status, error.headers or {}, error.body or b""
            if not status:  # of urllib3's SSLError
                raise self.error(f"{operation}: no secure connection: {error.reason}") from error
        except HTTPError as error:
            raise self.error(f"{operation}: no usable answer: {error}", retryable=True) from error
        return self._answer(operation, status, headers, body)

    async def _acall(self, client: Any, operation: str, arguments: Json) -> Any:
        import aiohttp
        from kubernetes_asyncio import client as sdk

        api = getattr(sdk, _API[operation])(client)
        try:
            answer = await getattr(api, operation)(**self._arguments(arguments))
            body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            retryable = not isinstance(error, aiohttp.ClientSSLError)
            what = f"no usable answer: {type(error).__name__}: {error}"
            raise self.error(f"{operation}: {what}", retryable=retryable) from error
        return self._answer(operation, answer.status, answer.headers, body)

    def _arguments(self, arguments: Json) -> Json:
        # Not preloaded: the document itself, not the client's model of it.
        how = {"_preload_content": False, "_request_timeout": CALL_SECONDS}
        return {"namespace": self.config.namespace, **arguments, **how}

    def _answer(self, operation: str, status: int, headers: Mapping[str, str], body: bytes | str) -> Any:
        """The document, or the error that the API server's Status says.

        https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
        """
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if status < 300:
            if not isinstance(document, dict) or "kind" not in document:
                raise self.error(f"{operation}: the answer is no document of the API", retryable=True)
            return document
        if status == 404 and operation.startswith("read_") and isinstance(document, dict):
            return None
        said = document if isinstance(document, dict) else {}
        after = headers.get("Retry-After") or str((said.get("details") or {}).get("retryAfterSeconds", ""))
        error = Refused(
            f"{operation}: HTTP {status} {said.get('reason', '')}: {said.get('message', 'no document of the API')}",
            target=self.name,
            retryable=status in (408, 409, 429) or status >= 500,  # 409: somebody wrote meanwhile; look again
            retry_after=float(after) if after.replace(".", "", 1).isdecimal() else None,
        )
        error.status = status
        error.no_effect = status in (400, 401, 403, 404, 405, 415, 422)
        raise error


def _sdk() -> tuple[Any, Any, Any]:
    """The provider's hooks, and both official clients: seconds to import."""
    try:
        import kubernetes.client
        import kubernetes_asyncio.client
        from airflow.providers.cncf.kubernetes.hooks import kubernetes as hooks
    except ImportError as error:
        raise missing_extra("kubernetes", error) from error
    return hooks, kubernetes.client, kubernetes_asyncio.client
