"""One site's calls: Azure Resource Manager through its official SDK, the app itself through httpx, and their errors.

What is called in which order, and what the answers mean, is decided in `airflow_multideploy.platforms.azure_web_app`;
here the same steps are run on the synchronous or on the asynchronous client.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from airflow_multideploy.core.contract import Platform
from airflow_multideploy.core.errors import PlatformError
from airflow_multideploy.platforms import existing, missing_extra, refuse_plain_http

CALL_SECONDS = 30
HEALTH_SECONDS = 10
HEALTH = "GET health"
_LOG, _LIST = "get_web_site_container_logs", "list_instance_identifiers"
_CLOUDS = {
    "AzurePublicCloud": ("https://login.microsoftonline.com", "https://management.azure.com"),
    "AzureUSGovernment": ("https://login.microsoftonline.us", "https://management.usgovcloudapi.net"),
    "AzureChinaCloud": ("https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn"),
}
_PASSES = ("exclusive lock", "in progress", "retry the request", "try again")
"""How Azure says that a 409 heals by itself."""

_QUIET = logging.getLogger(f"{__name__}.http")
_QUIET.setLevel(logging.WARNING)

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """An operation of the SDK's ``web_apps`` with its arguments after group and site, or `HEALTH` with a URL."""

    operation: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came back: plain JSON or text, and the platform's own clock."""

    value: Any
    at: datetime


Steps = Generator[Call, Answer, T]


@dataclass(frozen=True)
class Health:
    """What the app itself answered."""

    status: int | None
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was a 2xx."""
        return self.status is not None and 200 <= self.status < 300

    def words(self) -> str:
        """For a person."""
        return f"answers HTTP {self.status}" if self.status is not None else f"does not answer ({self.error})"


@dataclass
class _Seen:
    """The last response on the wire: azure-identity hides status and Retry-After of a failed token request."""

    status: int | None = None
    retry_after: float | None = None
    date: str | None = None

    def sent(self, request: Any) -> None:
        self.status = self.retry_after = self.date = None

    def received(self, response: Any) -> None:
        http = response.http_response
        self.status, self.date = http.status_code, http.headers.get("Date")
        after = http.headers.get("Retry-After") or ""
        self.retry_after = float(after) if after.replace(".", "", 1).isdecimal() else None

    def at(self) -> datetime:
        """The platform's clock, one second coarse; ours when it does not tell."""
        return parsedate_to_datetime(self.date) if self.date else datetime.now(UTC)


class _Login:
    """A credential whose token lives as long as the adapter, so that not every look logs in anew."""

    def __init__(self, credential: Any, tokens: dict[Any, Any], key: Any) -> None:
        self.credential, self.tokens, self.key = credential, tokens, key

    def _known(self) -> Any:
        token = self.tokens.get(self.key)
        return token if token is not None and token.expires_on - time.time() > 300 else None

    def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        token = self._known() or self.credential.get_token_info(*scopes, options=options)
        self.tokens[self.key] = token
        return token


class _AsyncLogin(_Login):
    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        token = self._known() or await self.credential.get_token_info(*scopes, options=options)
        self.tokens[self.key] = token
        return token

    async def close(self) -> None:
        """The session closes the credential itself."""


@dataclass(frozen=True, repr=False)
class Access:
    """Where and as whom, read from a Connection of type ``azure``.

    Extra: ``tenantId``, ``subscriptionId``, ``cloud_environment``, ``managed_identity_client_id`` and
    ``workload_identity_tenant_id`` as the official provider has them; ``base_url``, ``authority`` and ``ca_file`` lead
    to another Resource Manager (Azure Stack, a stand-in).
    """

    login: str | None
    password: str | None
    extra: Mapping[str, Any]
    subscription_id: str
    target: str

    @classmethod
    def read(cls, connection: Any, subscription_id: str | None, platform: Platform[Any]) -> Access:
        """From the Connection; the catalog's subscription wins over the Connection's."""
        extra = connection.extra_dejson
        subscription = subscription_id or extra.get("subscriptionId")
        if not subscription:
            raise platform.error(
                f"connection {platform.config.conn_id!r} names no subscription: set subscriptionId in its extra, or "
                "subscription_id of the target"
            )
        for key in ("base_url", "authority"):
            refuse_plain_http(str(extra.get(key) or ""), target=platform.name)
        return cls(connection.login, connection.password, extra, str(subscription), platform.name)

    @property
    def _cloud(self) -> tuple[str, str]:
        return _CLOUDS.get(str(self.extra.get("cloud_environment")), _CLOUDS["AzurePublicCloud"])

    def _common(self, seen: _Seen) -> dict[str, Any]:
        common: dict[str, Any] = {
            "retry_total": 0,  # our own engine retries, with the reason in the journal
            "connection_timeout": CALL_SECONDS,
            "read_timeout": CALL_SECONDS,
            "raw_request_hook": seen.sent,
            "raw_response_hook": seen.received,
            "logger": _QUIET,  # else two entries of ten lines in the task's log for each call
        }
        if self.extra.get("ca_file"):
            common["connection_verify"] = self.extra["ca_file"]
        return common

    def credential(self, kinds: Any, seen: _Seen, default: Any) -> Any:
        """A credential of azure-identity, its sync or its async kind; without a secret the default chain."""
        if not (self.login and self.password and self.extra.get("tenantId")):
            names = ("managed_identity_client_id", "workload_identity_tenant_id")
            return default(**{name: self.extra.get(name) for name in names})
        own = {"disable_instance_discovery": True} if self.extra.get("authority") else {}
        return kinds.ClientSecretCredential(
            tenant_id=self.extra["tenantId"],
            client_id=self.login,
            client_secret=self.password,
            authority=self.extra.get("authority") or self._cloud[0],
            **own,
            **self._common(seen),
        )

    def client(self, kind: Any, credential: Any, seen: _Seen) -> Any:
        """The SDK's client; `AzureBaseHook.get_conn` passes ``credentials``, which this SDK does not know."""
        return kind(
            credential,
            self.subscription_id,
            base_url=self.extra.get("base_url") or self._cloud[1],
            credential_scopes=[f"{self._cloud[1]}/.default"],
            **self._common(seen),
        )

    def identity(self) -> tuple[Any, ...]:
        """What a token depends on."""
        return self.login, self.password, json.dumps(dict(self.extra), sort_keys=True)

    def tls(self) -> ssl.SSLContext:
        """For the app's own address: the system's authorities and the Connection's."""
        context = ssl.create_default_context()
        if self.extra.get("ca_file"):
            context.load_verify_locations(self.extra["ca_file"])
        return context

    def masked(self, text: str) -> str:
        """Without the password, whoever quoted it, and cut to one line's length."""
        return " ".join((text.replace(self.password, "***") if self.password else text).split())[:400]


@dataclass(frozen=True)
class SiteApi:
    """Runs steps against one site."""

    platform: Platform[Any]
    resource_group: str
    site: str
    subscription_id: str | None
    tokens: dict[Any, Any] = field(default_factory=dict, repr=False)

    def run(self, steps: Steps[T]) -> T:
        """The steps' result.

        :raises PlatformError: an answer that the steps do not handle themselves.
        """
        with self._session() as (client, access, seen), self.platform.understanding():
            try:
                call = next(steps)
                while True:
                    try:
                        value = _probe(call, access) if call.operation == HEALTH else self._call(client, call)
                    except Exception as error:  # noqa: BLE001 - a body that is no document makes the SDK raise anything
                        call = steps.throw(self._error(error, call, access, seen))
                    else:
                        call = steps.send(Answer(value, seen.at()))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def arun(self, steps: Steps[T]) -> T:
        """As `run`, with native async I/O."""
        async with self._asession() as (client, access, seen):
            with self.platform.understanding():
                try:
                    call = next(steps)
                    while True:
                        try:
                            health = call.operation == HEALTH
                            value = await _aprobe(call, access) if health else await self._acall(client, call)
                        except Exception as error:  # noqa: BLE001 - as above
                            call = steps.throw(self._error(error, call, access, seen))
                        else:
                            call = steps.send(Answer(value, seen.at()))
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    @contextmanager
    def _session(self) -> Iterator[tuple[Any, Access, _Seen]]:
        try:
            from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook
            from airflow.providers.microsoft.azure.utils import get_sync_default_azure_credential
            from azure import identity
            from azure.mgmt.web import WebSiteManagementClient
        except ImportError as error:
            raise missing_extra("azure", error) from error
        with existing(self.platform.config.conn_id, self.platform.error):
            connection = AzureBaseHook.get_connection(self.platform.config.conn_id)
        access, seen = Access.read(connection, self.subscription_id, self.platform), _Seen()
        with (
            access.credential(identity, seen, get_sync_default_azure_credential) as credential,
            access.client(WebSiteManagementClient, _Login(credential, self.tokens, access.identity()), seen) as client,
        ):
            yield client, access, seen

    @asynccontextmanager
    async def _asession(self) -> AsyncIterator[tuple[Any, Access, _Seen]]:
        try:
            from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook
            from airflow.providers.microsoft.azure.utils import get_async_default_azure_credential
            from azure.identity import aio as identity
            from azure.mgmt.web.aio import WebSiteManagementClient
        except ImportError as error:
            raise missing_extra("azure", error) from error
        with existing(self.platform.config.conn_id, self.platform.error):
            connection = await AzureBaseHook.aget_connection(self.platform.config.conn_id)
        access, seen = Access.read(connection, self.subscription_id, self.platform), _Seen()
        async with (
            access.credential(identity, seen, get_async_default_azure_credential) as credential,
            access.client(
                WebSiteManagementClient, _AsyncLogin(credential, self.tokens, access.identity()), seen
            ) as client,
        ):
            yield client, access, seen

    def _call(self, client: Any, call: Call) -> Any:
        answer = self._begin(client, call)
        if call.operation == _LIST:
            return [item.as_dict() for item in answer]
        if call.operation == _LOG:
            return answer.read().decode(errors="replace")
        return None if answer is None else answer.as_dict()

    async def _acall(self, client: Any, call: Call) -> Any:
        answer = self._begin(client, call)
        if call.operation == _LIST:
            return [item.as_dict() async for item in answer]
        answer = await answer
        if call.operation == _LOG:
            return (await answer.read()).decode(errors="replace")
        return None if answer is None else answer.as_dict()

    def _begin(self, client: Any, call: Call) -> Any:
        # The SDK streams the log, and of an empty one (204) it hands out nothing and keeps the connection: take the
        # response itself, whose read() closes it.
        how = {"cls": lambda response, _data, _headers: response.http_response} if call.operation == _LOG else {}
        return getattr(client.web_apps, call.operation)(self.resource_group, self.site, *call.arguments, **how)

    def _error(self, error: Exception, call: Call, access: Access, seen: _Seen) -> PlatformError:
        """Ours, with the platform's words. What has no status was lost on the way, and may be asked again."""
        from azure.core.exceptions import AzureError, HttpResponseError

        self.tokens.clear()  # it may have been revoked; the next look logs in anew
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else seen.status
        detail = error.error if isinstance(error, HttpResponseError) else None
        # What the SDK quotes of an answer that it does not understand may be a token, or other people's settings.
        strange = not isinstance(error, AzureError) or (status is not None and status < 400)
        words = "the answer is no document of the API" if strange else str(error).partition("Content: ")[0]
        if detail is not None and detail.code:
            words = f"{detail.code}: {detail.message}"
        passes = (
            status is None
            or status < 400  # an answer, but no document of the API
            or status in (408, 429)
            or status >= 500
            or (status == 409 and any(text in words.lower() for text in _PASSES))
        )
        return self.platform.error(
            f"{call.operation} of site {self.site!r} failed with "
            f"{f'HTTP {status}' if status else type(error).__name__}: {access.masked(words)}",
            retryable=passes,
            retry_after=seen.retry_after,
        )

    def refuse(self, reason: str) -> NoReturn:
        """Give up: trying again does not help.

        :raises PlatformError: always.
        """
        raise self.platform.error(f"site {self.site!r} {reason}")


def _probe(call: Call, access: Access) -> Health:
    import httpx

    try:
        with httpx.Client(verify=access.tls(), timeout=HEALTH_SECONDS) as client:
            return _health(client.get(str(call.arguments[0])))
    except httpx.HTTPError as error:  # an app that is starting does not answer: that is no error of the platform
        return Health(None, error=f"{type(error).__name__}: {error}")


async def _aprobe(call: Call, access: Access) -> Health:
    import httpx

    try:
        async with httpx.AsyncClient(verify=access.tls(), timeout=HEALTH_SECONDS) as client:
            return _health(await client.get(str(call.arguments[0])))
    except httpx.HTTPError as error:
        return Health(None, error=f"{type(error).__name__}: {error}")


def _health(response: Any) -> Health:
    return Health(response.status_code, response.text[:65_536], dict(response.headers))
