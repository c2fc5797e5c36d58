"""Calls to Google's REST APIs for the platforms on Google Cloud: addresses, access tokens, errors, operations.

The APIs are called as their discovery documents say, on `RestPlatform`: an SDK would add a package for each API, and
its asynchronous clients speak gRPC only.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import AfterValidator, Field

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.connections import GOOGLE, existing, missing_extra, refuse_plain_http
from airflow_multideploy.clients.http_messages import Answer
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.artifact import Located
from airflow_multideploy.platforms.rest import TIMEOUT, Call, Door, Json, RestPlatform, Steps

KEPT = 600.0
"""Seconds after which a Connection's credentials are loaded anew."""
CONNECTION = (
    "A Connection of type `google_cloud_platform`, as the Google provider reads it. One extra of its own is read "
    "beside the provider's: `api_endpoint`, the base URL instead of `https://API.googleapis.com`, for every API that "
    "the target calls."
)


def _bucket_url(text: str) -> str:
    if not re.fullmatch(r"gs://[^/\s$]+/\S+", text):
        raise ValueError("is no gs://BUCKET/OBJECT")
    return text


Package = Annotated[Located, AfterValidator(_bucket_url)]
"""A package in a bucket, such as ``gs://releases/shop-${version}.zip``."""
Project = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9:.-]{0,61}[a-z0-9])?$")]

C = TypeVar("C", bound=TargetConfig)


def begun(operation: Json) -> str:
    """When a long-running operation began, as the API's metadata says it; it sorts."""
    metadata = operation.get("metadata", {})
    return str(metadata.get("createTime") or metadata.get("insertTime") or "")


def failure(operation: Json) -> str | None:
    """Why a long-running operation failed, in the platform's words; None when it did not."""
    error = operation.get("error")
    return f"{error.get('message') or 'no message'} (code {error.get('code')})" if error is not None else None


class GcpPlatform(RestPlatform[C]):
    """Base of the platforms on Google's REST APIs. No call is made twice."""

    name_of_api: ClassVar[str]
    """As in ``https://NAME.googleapis.com``."""
    connections: ClassVar[tuple[str, ...]] = GOOGLE
    _extras: Json
    _credentials: Any

    def _google(
        self,
        method: str,
        path: str,
        *,
        api: str | None = None,
        params: Mapping[str, str | list[str]] | None = None,
        body: Json | None = None,
        absent: bool = False,
    ) -> Steps[Json | None]:
        """A call's document.

        :param path: from the API's host on.
        :param api: another API than the platform's own.
        :param absent: "not found" is an answer, None, and not an error.
        """
        base = self._extras.get("api_endpoint")
        base = base or f"https://{api or self.name_of_api}.{self._credentials.universe_domain}"
        call = Call(method, base.rstrip("/") + path, params or {}, body, also=(404,) if absent else ())
        reply = yield call
        document = reply.document
        if not isinstance(document, dict) or (reply.status == 404 and "error" not in document):
            raise self.error(f"{self._what(call)}: the answer is no document of the API", retryable=True)
        return None if reply.status == 404 else document

    def _found(self, method: str, path: str, **given: Any) -> Steps[Json]:
        """A call's document, for one that always has one."""
        return (yield from self._google(method, path, **given)) or {}

    def _operations(self, collection: str, *targets: str) -> Steps[list[Json]]:
        """The operations on these resources that the API still remembers, the latest first.

        :param targets: the resources' names, as the operations' metadata says them.
        """
        found: list[Json] = []
        params: dict[str, str | list[str]] = {"pageSize": "100"}
        while True:
            page = yield from self._found("GET", collection, params=params)
            found += [o for o in page.get("operations", []) if o.get("metadata", {}).get("target") in targets]
            if not page.get("nextPageToken"):
                return sorted(found, key=begun, reverse=True)
            params = {**params, "pageToken": str(page["nextPageToken"])}

    def _generation(self, package: str) -> Steps[str]:
        """Generation of the object that the package is now, which pins it.

        https://cloud.google.com/storage/docs/json_api/v1/objects/get
        """
        bucket, _, name = package.removeprefix("gs://").partition("/")
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        kept = yield from self._google("GET", path, api="storage", params={"fields": "generation"}, absent=True)
        if kept is None:
            raise self.error(f"there is no package {package}; upload it before its release")
        return str(kept["generation"])

    # --- the connection ----------------------------------------------------------------------------------------------

    def _door(self, connection: Any) -> Door:
        self._extras = connection.extra_dejson
        return Door(base="", login="", password="", headers={})  # each call names its own address

    def authentication(self, door: Door) -> httpx.Auth:
        """Google's access token, from the Connection's credentials."""
        with self._connecting():
            document = json.dumps(self._extras, sort_keys=True)
            self._credentials = _credentials(self.config.conn_id, document, int(time.time() // KEPT))
        endpoint = self._extras.get("api_endpoint") or ""
        try:
            addresses.checked(endpoint or "https://googleapis.com")
        except ValueError as error:
            raise self.error(f"connection {self.config.conn_id!r}: api_endpoint in its extra: {error}") from None
        if not self._extras.get("is_anonymous"):
            refuse_plain_http(endpoint, target=self.name)
        return _Token(self._credentials, self._connecting)

    @contextmanager
    def _connecting(self) -> Iterator[None]:
        """The Connection, its credentials and their token; an error never shows what the Connection holds."""
        try:
            from airflow.sdk.exceptions import AirflowException
            from google.auth.exceptions import GoogleAuthError, TransportError
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        try:
            with existing(self.config.conn_id, self.error):
                yield
        except ImportError as error:
            raise missing_extra("gcp", error) from error
        except (AirflowException, GoogleAuthError, ValueError, KeyError, OSError) as error:
            retryable = isinstance(error, TransportError) or (isinstance(error, GoogleAuthError) and error.retryable)
            what = f"connection {self.config.conn_id!r} gives no access to Google ({type(error).__name__}); check it"
            raise self.error(what, retryable=retryable) from None

    # --- errors

    def _refused(self, call: Call, answer: Answer) -> PlatformError:
        """See https://cloud.google.com/apis/design/errors: one 409 is a conflict that passes, another never does."""
        error = super()._refused(call, answer)
        status = _status(answer.text)
        passes = status in ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        said = f"{self._what(call)}: HTTP {answer.status} {status}: {answer.words}".replace("  ", " ")
        refused = self.error(said, retryable=error.retryable or passes, retry_after=error.retry_after)
        refused.no_effect = error.no_effect
        return refused

    def _what(self, call: Call) -> str:
        return f"{self.api} {call.method} {urlsplit(call.path).path}"


def _status(text: str) -> str:
    """The canonical name of an error, such as ABORTED."""
    try:
        return str(json.loads(text)["error"]["status"])
    except (KeyError, TypeError, ValueError):
        return ""


@lru_cache(maxsize=64)
def _credentials(conn_id: str, extras: str, period: int) -> Any:
    """Shared by all rollouts of a process: loading a key takes 70 ms, and a token of a rollout is good for the next.

    :param period: of `KEPT` seconds; a key file that was exchanged is seen in the next one.
    """
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    from airflow.sdk import Connection

    class Given(GoogleBaseHook):
        """The provider's hook for a Connection that was looked up already, which cannot be done from everywhere."""

        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            return Connection(conn_id=conn_id, conn_type="google_cloud_platform", extra=extras)

    credentials = Given(gcp_conn_id=conn_id).get_credentials()
    if credentials.universe_domain != "googleapis.com" and hasattr(credentials, "with_always_use_jwt_access"):
        return credentials.with_always_use_jwt_access(True)  # a partner's cloud has no token endpoint: AIP-4111
    return credentials


class _Token(httpx.Auth):
    """Puts an access token into a request, and gets a new one when it has expired."""

    def __init__(self, credentials: Any, connecting: Callable[[], Any]) -> None:
        self.credentials, self.connecting = credentials, connecting

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with it."""
        self._apply(request)
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """As `sync_auth_flow`; google-auth gets its tokens in a blocking way, and signing one takes its time."""
        await asyncio.to_thread(self._apply, request)
        yield request

    def _apply(self, request: httpx.Request) -> None:
        import requests
        from google.auth.transport.requests import Request

        headers: dict[str, str] = {}
        with self.connecting(), requests.Session() as session:
            ask = partial(Request(session), timeout=TIMEOUT)
            self.credentials.before_request(ask, request.method, str(request.url), headers)
        request.headers.update(headers)
