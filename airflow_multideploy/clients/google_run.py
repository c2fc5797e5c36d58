"""What the Cloud Run API says: its calls, its errors, and how to read a service's document. It decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import JsonValue

from airflow_multideploy.clients.connections import GOOGLE, existing, fitting, missing_extra, refuse_plain_http
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.secrets import redact

if TYPE_CHECKING:
    from google.cloud import run_v2

    Service: TypeAlias = run_v2.Service

CALL_TIMEOUT = 30.0
Json = dict[str, Any]

_LATEST = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
_REVISION = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"


def document(service: Service) -> Json:
    """The service in the API's JSON form, enums by name."""
    from google.protobuf.json_format import MessageToDict

    converted: Json = MessageToDict(type(service).pb(service))
    return converted


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def _shares(targets: list[Json], document: Json) -> dict[str, int]:
    """Percent by revision; "latest" counts for the revision it stands for."""
    latest = short(document.get("latestReadyRevision", ""))
    shares: dict[str, int] = {}
    for target in targets:
        revision = short(target.get("revision", "")) or latest
        if target.get("percent") and revision:
            shares[revision] = shares.get(revision, 0) + int(target["percent"])
    return shares


def serving(document: Json) -> dict[str, int]:
    """What answers requests now: percent by revision; empty when nothing ever became ready."""
    return _shares(document.get("trafficStatuses", []), document)


def wanted(document: Json) -> dict[str, int]:
    """What is asked to answer requests: percent by revision."""
    return _shares(document.get("traffic") or [{"type": _LATEST, "percent": 100}], document)


def by_name(document: Json) -> list[JsonValue]:
    """The traffic as it is served, each target pinned by its revision's name, tags kept."""
    latest = short(document.get("latestReadyRevision", ""))
    pinned: list[JsonValue] = []
    for status in document.get("trafficStatuses", []):
        if not (revision := short(status.get("revision", "")) or latest):
            continue
        target: dict[str, JsonValue] = {"type": _REVISION, "revision": revision}
        pinned.append(target | {key: status[key] for key in ("percent", "tag") if status.get(key)})
    return pinned


def main(shares: Mapping[str, int]) -> str | None:
    """The revision with the largest share."""
    return max(shares, key=lambda revision: shares[revision]) if shares else None


def words(document: Json, state: str) -> str:
    """What the platform says about everything that is in this state, without repetitions."""
    said: list[str] = []
    heard = ""
    for condition in [document.get("terminalCondition", {}), *document.get("conditions", [])]:
        reason = next((condition[k] for k in ("revisionReason", "reason", "executionReason") if k in condition), "")
        message = condition.get("message", "")
        new = [text for text in (reason, message) if text and text not in heard]
        if condition.get("state") == state and new:
            said.append(": ".join(new))
            heard = "; ".join(said)
    return heard


def routed(document: Json) -> bool:
    """Whether the routes are as asked. The service as a whole may not be ready: after a rollback its template still
    is that of the failed revision."""
    conditions: Json = {c.get("type"): c.get("state") for c in document.get("conditions", [])}
    terminal = document.get("terminalCondition", {}).get("state")
    return bool(conditions.get("RoutesReady", terminal) == "CONDITION_SUCCEEDED")


class CloudRunApi:
    """Calls on one service, one attempt each: who calls decides what is tried again.

    :param conn_id: a Google Cloud Connection.
    :param path: ``projects/…/locations/…/services/…``.
    :param fail: makes a `PlatformError` that names the target.
    :param target: the target's name.
    """

    def __init__(self, conn_id: str, path: str, *, fail: Callable[..., PlatformError], target: str) -> None:
        self.conn_id, self.path, self.fail, self.target = conn_id, path, fail, target
        # Loading a private key takes 70 ms: once per rollout, not once per look.
        self._access: tuple[Json, Any, str] | None = None

    # https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/get
    def get(self) -> Service | None:
        """The service, None when it does not exist.

        :raises PlatformError: refused, or no answer.
        """
        with self._calling("services.get"), self._services() as client, suppress(_not_found()):
            return cast("Service", client.get_service(name=self.path, retry=None, timeout=CALL_TIMEOUT))
        return None

    async def aget(self) -> Service | None:
        """As `get`, over gRPC, the only transport that the asynchronous client has."""
        found = None
        with self._calling("services.get"):
            async with await self._aservices() as client:
                try:
                    found = await client.get_service(name=self.path, retry=None, timeout=CALL_TIMEOUT)
                except _not_found():
                    return None
        if found is None:  # so grpc.aio says, after a line in its log, that the answer could not be read
            raise self._malformed("services.get")
        return cast("Service", found)

    # https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/create
    def create(self, service: Service) -> None:
        """Create the service; returns when the platform has accepted it."""
        parent, _, name = self.path.rpartition("/services/")
        with self._calling("services.create", conflict_heals=True), self._services() as client:
            client.create_service(parent=parent, service=service, service_id=name, retry=None, timeout=CALL_TIMEOUT)

    # https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/patch
    def patch(self, service: Service, fields: list[str]) -> None:
        """Write these fields; ``service.etag`` decides whether it still is what was read."""
        from google.protobuf.field_mask_pb2 import FieldMask

        with self._calling("services.patch"), self._services() as client:
            client.update_service(
                service=service, update_mask=FieldMask(paths=fields), retry=None, timeout=CALL_TIMEOUT
            )

    # https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/delete
    def delete(self, etag: str) -> None:
        """Delete the service if it still is what was read."""
        with self._calling("services.delete"), self._services() as client:
            client.delete_service(request={"name": self.path, "etag": etag}, retry=None, timeout=CALL_TIMEOUT)

    # https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services.revisions/get
    def images(self, revision: str) -> dict[str, str] | None:
        """Images of a revision by container name, in order; None when the revision is gone."""
        name = f"{self.path}/revisions/{revision}"
        with self._calling("revisions.get"), self._revisions() as client, suppress(_not_found()):
            found = client.get_revision(name=name, retry=None, timeout=CALL_TIMEOUT)
            return {container.name: container.image for container in found.containers}
        return None

    # --- clients

    def _services(self) -> Any:
        from google.cloud import run_v2

        return self._client(run_v2.ServicesClient)

    def _revisions(self) -> Any:
        from google.cloud import run_v2

        return self._client(run_v2.RevisionsClient)

    def _client(self, cls: Any) -> Any:
        """A client for the worker, closed by its ``with``."""
        if self._access is None:
            with self._connecting():
                from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

                fitting(GoogleBaseHook.get_connection(self.conn_id), GOOGLE, self.fail)
                self._access = _access_of(GoogleBaseHook(gcp_conn_id=self.conn_id))
        transport = self._access[0].get("transport") or "rest"
        if transport not in ("rest", "grpc"):
            raise self.fail(f"connection {self.conn_id!r}: extra `transport` is 'rest' or 'grpc', not {transport!r}")
        return self._build(cls, transport, *self._access)

    async def _aservices(self) -> Any:
        """A client for the triggerer, closed by its ``async with``."""
        if self._access is None:
            with self._connecting():
                from airflow.providers.google.common.hooks.base_google import GoogleBaseAsyncHook, GoogleBaseHook

                asynchronous = GoogleBaseAsyncHook(gcp_conn_id=self.conn_id)
                asynchronous.sync_hook_class = GoogleBaseHook
                hook = await asynchronous.get_sync_hook()
                # A key file, a metadata server or an identity provider may be read here: not in the event loop.
                self._access = await asyncio.to_thread(_access_of, hook)
        from google.cloud import run_v2

        return self._build(run_v2.ServicesAsyncClient, "grpc_asyncio", *self._access)

    def _build(self, cls: Any, transport: str, extras: Json, credentials: Any, universe: str) -> Any:
        from google.api_core.client_options import ClientOptions

        endpoint = extras.get("api_endpoint")
        if transport != "rest":
            endpoint = extras.get("grpc_endpoint") or endpoint
        if not endpoint:
            options = ClientOptions(universe_domain=universe)
            return cls(credentials=credentials, transport=transport, client_options=options)
        url = endpoint if "://" in endpoint else f"https://{endpoint}"
        refuse_plain_http(url, target=self.target)
        if transport == "rest":
            options = ClientOptions(api_endpoint=url, universe_domain=universe)
            return cls(credentials=credentials, transport=transport, client_options=options)
        how = self._channel(url, extras, credentials, asynchronous=transport == "grpc_asyncio")
        made = partial(cls.get_transport_class(transport), **how)
        options = ClientOptions(api_endpoint=urlsplit(url).netloc, universe_domain=universe)
        return cls(credentials=credentials, transport=made, client_options=options)

    def _channel(self, url: str, extras: Json, credentials: Any, *, asynchronous: bool) -> Json:
        """How a gRPC transport connects to an endpoint that is not Google's."""
        import grpc
        from google.auth.credentials import AnonymousCredentials

        if url.startswith("https://"):
            pem = extras.get("grpc_ca")
            return {"ssl_channel_credentials": grpc.ssl_channel_credentials(pem.encode() if pem else None)}
        if not isinstance(credentials, AnonymousCredentials):
            raise self.fail(
                f"connection {self.conn_id!r}: gRPC sends credentials over TLS only: `grpc_endpoint` https://…"
            )
        insecure = grpc.aio.insecure_channel if asynchronous else grpc.insecure_channel
        return {"channel": lambda host, **_: insecure(host)}

    # --- errors

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """The Connection and its credentials; an error never shows what the Connection holds."""
        try:
            from airflow.sdk.exceptions import AirflowException
            from google.auth.exceptions import GoogleAuthError
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        try:
            with existing(self.conn_id, self.fail):
                yield
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        except (AirflowException, GoogleAuthError, ValueError, KeyError, OSError) as error:
            retryable = isinstance(error, GoogleAuthError) and error.retryable
            what = f"connection {self.conn_id!r} gives no Google credentials ({type(error).__name__}); check it"
            raise self.fail(what, retryable=retryable) from None

    @contextmanager
    def _calling(self, operation: str, *, conflict_heals: bool = False) -> Iterator[None]:
        """What the SDK raises, as a `PlatformError`.

        :param conflict_heals: "already exists" is worth another look: it may be our own earlier write.
        """
        try:
            import requests
            from google.api_core.exceptions import GoogleAPICallError
            from google.auth.exceptions import GoogleAuthError, TransportError
            from google.cloud import run_v2  # noqa: F401  # fails here, with the extra's name, or never
            from google.protobuf.json_format import ParseError
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        where = f"{operation} {self.path}"
        try:
            yield
        except GoogleAPICallError as error:
            code, status = int(error.code or 500), _status(error)
            retryable = code in (408, 429) or code >= 500 or status == "ABORTED" or (conflict_heals and code == 409)
            message = f"{where}: {code} {status}: {redact(str(error.message), 500)}"
            raise self.fail(message, retryable=retryable, retry_after=_retry_after(error)) from error
        except (requests.RequestException, TransportError) as error:
            raise self.fail(f"{where}: no answer ({type(error).__name__})", retryable=True) from error
        except GoogleAuthError as error:
            message = f"{where}: no access token ({type(error).__name__}); check the Connection {self.conn_id!r}"
            raise self.fail(message, retryable=error.retryable) from error
        except (ParseError, UnicodeDecodeError):
            raise self._malformed(operation) from None  # the cause quotes the answer

    def _malformed(self, operation: str) -> PlatformError:
        return self.fail(f"{operation} {self.path}: the answer is no document of the API", retryable=True)


def _not_found() -> type[Exception]:
    from google.api_core.exceptions import NotFound

    return cast(type[Exception], NotFound)


def _access_of(hook: Any) -> tuple[Json, Any, str]:
    """The Connection's extras, its credentials, and whose cloud they are for (``googleapis.com`` or a partner's)."""
    credentials = hook.get_credentials()
    return hook.extras, credentials, credentials.universe_domain


def _status(error: Any) -> str:
    """The canonical code's name, such as ABORTED; it tells one 409 from another."""
    if error.grpc_status_code is not None and not _rest(error):
        return str(error.grpc_status_code.name)
    try:
        return str(error.response.json()["error"]["status"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return type(error).__name__


def _rest(error: Any) -> bool:
    return hasattr(error.response, "headers")


def _retry_after(error: Any) -> float | None:
    """Seconds that the platform asks to wait: the header over REST, `RetryInfo` over gRPC."""
    if _rest(error):
        asked = error.response.headers.get("retry-after", "")
        return float(asked) if asked.isdecimal() else None
    from google.rpc.error_details_pb2 import RetryInfo

    infos = [detail for detail in error.details if isinstance(detail, RetryInfo)]
    return infos[0].retry_delay.ToTimedelta().total_seconds() if infos else None
