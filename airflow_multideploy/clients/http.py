"""Carries the http platform's requests with an Airflow Connection's credentials, in a thread or on the event loop.

Nothing here knows what a release is; the decisions are in `airflow_multideploy.platforms.onprem.http`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_multideploy import addresses
from airflow_multideploy.clients.connections import HTTP, Caller, existing, fitting, refuse_plain_http
from airflow_multideploy.clients.http_messages import Answer, Sent
from airflow_multideploy.errors import PlatformError

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import requests

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read at most."""

Send = Callable[[Sent], Answer]
AsyncSend = Callable[[Sent], Awaitable[Answer]]


@dataclass(frozen=True)
class _Door:
    """A connection, resolved. Never logged: it holds the credentials."""

    base: str
    credentials: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def clean(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class Client:
    """Sends with an Airflow Connection's credentials: basic with a login, else the password as bearer token.

    Follows no redirects, sends credentials to the connection's own origin only, reads at most `MAX_ANSWER` bytes,
    and retries nothing.

    :param auth_header: sends the bare password in this header instead (API keys).
    :param timeout: seconds that one call may take.
    """

    def __init__(self, platform: Caller, *, auth_header: str | None, timeout: float) -> None:
        self.conn_id, self.target, self.auth_header = platform.config.conn_id, platform.name, auth_header
        self.timeout, self.fail, self.understanding = timeout, platform.error, platform.understanding

    @contextmanager
    def open(self) -> Iterator[Send]:
        """A function that sends in this thread, on `HttpHook`'s session."""
        import requests
        from airflow.providers.http.hooks.http import HttpHook

        hook = HttpHook(http_conn_id=self.conn_id)
        with existing(self.conn_id, self.fail):
            session = hook.get_conn()
            door = self._door(hook.get_connection(self.conn_id), hook.base_url, session.headers)
        session.auth = _bare  # credentials are in the headers; anything set keeps ~/.netrc out
        with session, requests.Session() as stranger, self.understanding():
            stranger.auth = _bare
            yield lambda sent: self._send(session, stranger, door, sent)

    @asynccontextmanager
    async def aopen(self) -> AsyncIterator[AsyncSend]:
        """As `open`, on the event loop."""
        import aiohttp
        from airflow.providers.http.hooks.http import HttpAsyncHook
        from airflow.sdk import BaseHook

        with existing(self.conn_id, self.fail):
            connection = await BaseHook.aget_connection(self.conn_id)
            config = await HttpAsyncHook(http_conn_id=self.conn_id).config()
        headers = {str(name): str(value) for name, value in (config.headers or {}).items()}
        door = self._door(connection, config.base_url, headers)
        options = config.extra_options or {}
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:

            async def send(sent: Sent) -> Answer:
                return await self._asend(session, door, headers, options, sent)

            with self.understanding():
                yield send

    def _door(self, connection: Any, base: str, headers: Mapping[str, str | bytes]) -> _Door:
        fitting(connection, HTTP, self.fail)
        try:
            addresses.checked(base)
        except ValueError:
            raise self.fail(
                f"connection {self.conn_id!r}: its host is no http(s) address without login in it"
            ) from None
        if connection.extra_dejson.get("srv_lookup"):
            raise self.fail(f"connection {self.conn_id!r}: srv_lookup is not supported here; name the host")
        password, login = (connection.password or "").strip(), connection.login
        if re.search(r"[\x00-\x1f\x7f]", password) or not (password.isascii() or login):
            raise self.fail(f"connection {self.conn_id!r}: its password cannot stand in a header")
        credentials: dict[str, str] = {}
        pair = base64.b64encode(f"{login}:{password}".encode()).decode()
        if self.auth_header and password:
            credentials[self.auth_header] = password
        elif login:
            credentials["Authorization"] = f"Basic {pair}"
        elif password:
            credentials["Authorization"] = f"Bearer {password}"
        extra = [str(value) for name, value in headers.items() if name in connection.extra_dejson]
        if credentials or extra:
            refuse_plain_http(base, target=self.target)
        secrets = (pair if login else "", password, *extra)
        return _Door(base, credentials, tuple(secret for secret in secrets if len(secret) >= 4))

    def _send(self, session: requests.Session, stranger: requests.Session, door: _Door, sent: Sent) -> Answer:
        import requests

        url, ours = self._address(door, sent)
        until = time.monotonic() + self.timeout
        try:
            with (session if ours else stranger).request(
                sent.method,
                url,
                headers={**sent.headers, **(door.credentials if ours else {})},
                data=sent.content,
                timeout=self.timeout,
                allow_redirects=False,
                stream=True,
                verify=_verify(session.verify if ours else True),
            ) as response:
                body = b""
                for chunk in response.iter_content(65536):
                    body += chunk
                    self._check(sent, len(body), late=time.monotonic() > until)
                return _answer(sent, response.status_code, response.headers, body, door)
        except requests.RequestException as error:
            never = isinstance(error, requests.exceptions.SSLError | ValueError)
            # Without the cause: its text may hold a header's value, and a traceback would show it.
            raise self._lost(sent, door, error, retryable=not never) from None

    async def _asend(
        self, session: aiohttp.ClientSession, door: _Door, headers: dict[str, str], options: dict[str, Any], sent: Sent
    ) -> Answer:
        import aiohttp

        url, ours = self._address(door, sent)
        try:
            proxy, context = await asyncio.to_thread(_transport, url, options if ours else {})
            async with session.request(
                sent.method,
                url,
                headers={**(headers if ours else {}), **sent.headers, **(door.credentials if ours else {})},
                data=sent.content,
                allow_redirects=False,
                proxy=proxy,
                ssl=context,
            ) as response:
                body = b""
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    self._check(sent, len(body))
                return _answer(sent, response.status, response.headers, body, door)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            never = isinstance(error, aiohttp.ClientSSLError | ValueError)
            # Without the cause: its text may hold a header's value, and a traceback would show it.
            raise self._lost(sent, door, error, retryable=not never) from None

    def _address(self, door: _Door, sent: Sent) -> tuple[str, bool]:
        """The whole URL, and whether credentials may go there: to the connection's own origin only."""
        url = sent.path if "://" in sent.path else door.base.rstrip("/") + sent.path
        try:
            ours = addresses.origin(url) == addresses.origin(door.base)
        except ValueError as error:
            raise self.fail(f"{sent.called}: refused: {error}") from None
        if sent.own_host and not ours:
            raise self.fail(f"{sent.called}: not on the host of connection {self.conn_id!r}; refused")
        return url, ours

    def _check(self, sent: Sent, size: int, *, late: bool = False) -> None:
        if size > MAX_ANSWER:
            raise self.fail(f"{sent.called}: its answer is larger than {MAX_ANSWER} bytes")
        if late:
            raise self.fail(f"{sent.called}: no whole answer in {self.timeout:g} s", retryable=True)

    def _lost(self, sent: Sent, door: _Door, error: Exception, *, retryable: bool) -> PlatformError:
        words = addresses.without_queries(door.clean(str(error))) or f"no answer in {self.timeout:g} s"
        return self.fail(f"{sent.called}: {type(error).__name__}: {words}", retryable=retryable)

    def refused(self, answer: Answer) -> PlatformError:
        """The error for an answer that is not 2xx."""
        status, what = answer.status, f"{answer.request.called}: HTTP {answer.status}"
        if 300 <= status < 400:
            return self.fail(f"{what}: a redirect, and none is followed; name the final address in connection or path")
        said = f": {answer.words}" if answer.words else ""
        if status in (401, 403):
            said += f"; check login, password and rights of connection {self.conn_id!r}"
        asked = answer.retry_after
        retryable = status in (408, 425, 429) or status >= 500 or (status in (409, 423) and asked is not None)
        error = self.fail(what + said, retryable=retryable, retry_after=asked)
        error.no_effect = status in (400, 401, 403, 404, 405, 412, 415, 422)
        return error


def _verify(value: bool | str | None) -> bool | str | None:
    """The connection's own setting, given with the request: else ``REQUESTS_CA_BUNDLE`` would override it."""
    return None if value is True else value


def _bare(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _answer(sent: Sent, status: int, headers: Mapping[str, str], body: bytes, door: _Door) -> Answer:
    lower = {name.lower(): value for name, value in headers.items()}
    return Answer(sent, status, lower, body.decode("utf-8", "replace"), door.clean)


def _transport(url: str, options: dict[str, Any]) -> tuple[str | None, ssl.SSLContext | bool]:
    """Proxy and TLS as requests would take them from connection and environment, so that both ways agree."""
    import ssl

    import requests
    from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy

    with requests.Session() as session:
        session.trust_env = options.get("trust_env", True)
        session.cert = options.get("cert")
        verify = _verify(options.get("verify_ssl", True))
        merged = session.merge_environment_settings(url, options.get("proxy") or {}, None, verify, None)
    proxy = select_proxy(url, merged["proxies"])
    if not url.startswith("https:"):
        return proxy, True
    if merged["verify"] is False:
        return proxy, False
    bundle = DEFAULT_CA_BUNDLE_PATH if merged["verify"] is True else str(merged["verify"])
    folder = os.path.isdir(bundle)
    context = ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    if cert := merged["cert"]:
        context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
    return proxy, context
