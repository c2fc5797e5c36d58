"""Where Azure Resource Manager is, and as whom we come: an Airflow Connection of type ``azure``, read for its SDKs."""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from airflow_multideploy import addresses
from airflow_multideploy.clients.connections import AZURE, Caller, fitting, refuse_plain_http
from airflow_multideploy.secrets import redact

CALL_SECONDS = 30
_CLOUDS = {
    "AzurePublicCloud": ("https://login.microsoftonline.com", "https://management.azure.com"),
    "AzureUSGovernment": ("https://login.microsoftonline.us", "https://management.usgovcloudapi.net"),
    "AzureChinaCloud": ("https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn"),
}

_QUIET = logging.getLogger(f"{__name__}.http")
_QUIET.setLevel(logging.WARNING)


class Astray(Exception):
    """An answer led to another server than the one that our token is for."""


@dataclass
class Seen:
    """The last response on the wire: azure-identity hides status and Retry-After of a failed token request."""

    status: int | None = None
    retry_after: float | None = None
    date: str | None = None

    def sent(self, request: Any) -> None:
        self.status = self.retry_after = self.date = None

    def sent_to(self, base: str) -> Callable[[Any], None]:
        """As `sent`, for requests that carry our token: the SDKs follow any ``nextLink`` and redirect with it.

        :raises Astray: when one goes to another server.
        """

        def sent(request: Any) -> None:
            self.sent(request)
            try:
                ours = addresses.origin(request.http_request.url) == addresses.origin(base)
            except ValueError:
                ours = False
            if not ours:
                raise Astray

        return sent

    def received(self, response: Any) -> None:
        http = response.http_response
        self.status, self.date = http.status_code, http.headers.get("Date")
        after = http.headers.get("Retry-After") or ""
        self.retry_after = float(after) if after.replace(".", "", 1).isdecimal() else None

    def at(self) -> datetime:
        """The platform's clock, one second coarse; ours when it does not tell."""
        return parsedate_to_datetime(self.date) if self.date else datetime.now(UTC)


class Login:
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


class AsyncLogin(Login):
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
    def read(cls, connection: Any, subscription_id: str | None, platform: Caller) -> Access:
        """From the Connection; the catalog's subscription wins over the Connection's."""
        extra = fitting(connection, AZURE, platform.error).extra_dejson
        subscription = subscription_id or extra.get("subscriptionId")
        if not subscription:
            raise platform.error(
                f"connection {platform.config.conn_id!r} names no subscription: set subscriptionId in its extra, or "
                "subscription_id of the target"
            )
        for key in ("base_url", "authority"):
            if address := str(extra.get(key) or ""):
                address = address if "://" in address else f"https://{address}"
            refuse_plain_http(address, target=platform.name)
        return cls(connection.login, connection.password, extra, str(subscription), platform.name)

    @property
    def _cloud(self) -> tuple[str, str]:
        return _CLOUDS.get(str(self.extra.get("cloud_environment")), _CLOUDS["AzurePublicCloud"])

    def _common(self, seen: Seen) -> dict[str, Any]:
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

    def credential(self, kinds: Any, seen: Seen, default: Any) -> Any:
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

    def client(self, kind: Any, credential: Any, seen: Seen) -> Any:
        """The SDK's client; `AzureBaseHook.get_conn` passes ``credentials``, which this SDK does not know."""
        base = self.extra.get("base_url") or self._cloud[1]
        return kind(
            credential,
            self.subscription_id,
            base_url=base,
            credential_scopes=[f"{self._cloud[1]}/.default"],
            **{**self._common(seen), "raw_request_hook": seen.sent_to(base)},
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
        return redact(" ".join((text.replace(self.password, "***") if self.password else text).split()), 400)
