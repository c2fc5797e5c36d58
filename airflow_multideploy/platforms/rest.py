"""JSON over HTTP for platforms without an SDK: the same steps in worker and triggerer, and one mapping of errors.

A platform says what to call as a generator (`Steps`) that yields a `Call` and receives its `Reply`; whether that
happens in a thread or on the event loop is decided here. Nothing here knows what a release is.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import httpx

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.connections import HTTP, existing, fitting, refuse_plain_http
from airflow_multideploy.clients.http_messages import Answer, Sent
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.release.contract import Platform

TIMEOUT = 30.0
"""Seconds that one call may take."""
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer that are read at most."""

C = TypeVar("C", bound=TargetConfig)
T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One request.

    :param path: from the Connection's address on, percent-encoded; see `at`.
    :param params: the query; a list is sent as a repeated name.
    :param body: sent as JSON; None: no body.
    :param also: statuses besides 2xx that are an answer, not an error.
    """

    method: str
    path: str
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    body: Json | list[Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reply:
    """The answer to a call: its status, and its JSON document (None: it has none)."""

    status: int
    document: Any = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


Steps = Generator[Call, Reply, T]
"""Calls to make, one after the other, and a result. A refused call is raised where it was yielded."""


class NoEntry(Exception):
    """What an `httpx.Auth` of a platform raises when its login is refused."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__("login refused")
        self.response = response


class Header(httpx.Auth):
    """Puts a credential into a header."""

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with it."""
        request.headers[self.name] = self.value
        yield request


@dataclass(frozen=True)
class Door:
    """An Airflow Connection, resolved. Never logged: it holds the credentials."""

    base: str
    login: str = field(repr=False)
    password: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    verify: bool | str = True

    def clean(self, text: str) -> str:
        """The text without the credentials."""
        for secret in (self.password, *self.headers.values()):
            text = text.replace(secret, "***") if len(secret) >= 4 else text
        return text


def at(*parts: str) -> str:
    """A path of these parts, each percent-encoded, so that none can leave its place."""
    return "".join("/" + quote(part, safe="").replace(".", "%2E" if part in (".", "..") else ".") for part in parts)


class RestPlatform(Platform[C]):
    """Base of the platforms that are spoken to in JSON over HTTP.

    Address and credentials come from a Connection of type ``http``: ``host`` with scheme, port and path; with a login
    basic authentication, else the password as bearer token. In its extra, ``verify`` is false or the path of a CA
    bundle, and ``headers`` are sent with every call. No redirect is followed, nothing is tried again.
    """

    api: ClassVar[str]
    """What messages call the server."""
    connections: ClassVar[tuple[str, ...]] = HTTP
    """Types of the Connections that it takes."""

    def authentication(self, door: Door) -> httpx.Auth | None:
        """How a request shows who we are; None: not at all."""
        if door.login:
            return httpx.BasicAuth(door.login, door.password)
        return Header("Authorization", f"Bearer {door.password}") if door.password else None

    def _run(self, steps: Steps[T]) -> T:
        """Make the calls here and now."""
        from airflow.sdk import BaseHook

        with existing(self.config.conn_id, self.error):
            door = self._door(self._fitting(BaseHook.get_connection(self.config.conn_id)))
        client = httpx.Client(**self._options(door))
        with client, self.understanding():
            try:
                call, wrote = next(steps), False
                while True:
                    try:
                        reply = self._send(client, door, call)
                    except PlatformError as error:
                        wrote = _wrote(wrote, call, error)
                        call = steps.throw(error)
                    else:
                        wrote = _wrote(wrote, call)
                        call = steps.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def _arun(self, steps: Steps[T]) -> T:
        """Make the calls without blocking the event loop."""
        from airflow.sdk import BaseHook

        with existing(self.config.conn_id, self.error):
            door = self._door(self._fitting(await BaseHook.aget_connection(self.config.conn_id)))
        options = await asyncio.to_thread(self._options, door)
        async with httpx.AsyncClient(**options) as client:
            with self.understanding():
                try:
                    call, wrote = next(steps), False
                    while True:
                        try:
                            reply = await self._asend(client, door, call)
                        except PlatformError as error:
                            wrote = _wrote(wrote, call, error)
                            call = steps.throw(error)
                        else:
                            wrote = _wrote(wrote, call)
                            call = steps.send(reply)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    # --- the connection ----------------------------------------------------------------------------------------------

    def _fitting(self, connection: Any) -> Any:
        return fitting(connection, self.connections, self.error)

    def _door(self, connection: Any) -> Door:
        host, extra = (connection.host or "").strip().rstrip("/"), connection.extra_dejson
        base = host if "://" in host else f"{connection.schema or 'http'}://{host}"
        base += f":{connection.port}" if connection.port else ""
        fail = f"connection {self.config.conn_id!r}: "
        try:
            parts = addresses.checked(base)
            fits = not (parts.query or parts.fragment)
        except ValueError:
            fits = False
        if not fits:
            raise self.error(fail + "its host is no http(s) address without login in it")
        login, password = (connection.login or "").strip(), (connection.password or "").strip()
        headers = extra.get("headers") or {}
        texts = [*headers.values(), "" if login else password] if isinstance(headers, Mapping) else [None]
        if not all(isinstance(text, str) and text.isascii() and text.isprintable() for text in texts):
            raise self.error(fail + "its password, or a value of headers in its extra, cannot stand in a header")
        if password or headers:
            refuse_plain_http(base, target=self.name)
        verify = extra.get("verify", True)
        return Door(base, login, password, dict(headers), verify if isinstance(verify, bool | str) else True)

    def _options(self, door: Door) -> Json:
        try:
            trust = _trust(door.verify)
        except (OSError, ssl.SSLError) as error:
            raise self.error(f"connection {self.config.conn_id!r}: verify in its extra: {error}") from None
        limits = httpx.Limits(max_connections=1)
        return {
            "auth": self.authentication(door),
            "headers": {"Accept": "application/json", **door.headers},
            "timeout": TIMEOUT,
            "verify": trust,
            "limits": limits,
        }

    # --- one call ----------------------------------------------------------------------------------------------------

    def _send(self, client: httpx.Client, door: Door, call: Call) -> Reply:
        until = time.monotonic() + TIMEOUT
        with self._errors(door, call), client.stream(**_arguments(door, call)) as response:
            body = b""
            for chunk in response.iter_bytes():
                body = self._grown(body, chunk, call)
                if time.monotonic() > until:
                    raise TimeoutError
            return self._reply(door, call, response, body)

    async def _asend(self, client: httpx.AsyncClient, door: Door, call: Call) -> Reply:
        with self._errors(door, call):
            async with asyncio.timeout(TIMEOUT), client.stream(**_arguments(door, call)) as response:
                body = b""
                async for chunk in response.aiter_bytes():
                    body = self._grown(body, chunk, call)
                return self._reply(door, call, response, body)

    def _grown(self, body: bytes, chunk: bytes, call: Call) -> bytes:
        if len(body) + len(chunk) > MAX_ANSWER:
            raise self.error(f"{self._what(call)}: its answer is larger than {MAX_ANSWER} bytes")
        return body + chunk

    def _reply(self, door: Door, call: Call, response: httpx.Response, body: bytes) -> Reply:
        status, text = response.status_code, body.decode("utf-8", "replace")
        headers = {name.lower(): value for name, value in response.headers.items()}
        answer = Answer(Sent(call.method, call.path), status, headers, text, door.clean)
        if not answer.ok and status not in call.also:
            raise self._refused(call, answer)
        try:
            return Reply(status, json.loads(text) if text.strip() else None, headers)
        except (ValueError, RecursionError):
            if not answer.ok:  # a proxy's word, not the API's
                raise self._refused(call, answer) from None
            raise self.error(f"{self._what(call)}: the answer is no document of the API", retryable=True) from None

    @contextmanager
    def _errors(self, door: Door, call: Call) -> Iterator[None]:
        """Maps what httpx raises. Without the cause: its text may hold a credential, and a traceback would show it."""
        try:
            yield
        except NoEntry as error:
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.items()}
            login = Call(response.request.method, response.request.url.path)
            raise self._refused(
                login, Answer(Sent(login.method, login.path), response.status_code, headers, response.text, door.clean)
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            words = addresses.without_queries(door.clean(str(error))) or f"no whole answer in {TIMEOUT:g} s"
            never = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.ProxyError) or _tls(error)
            said = f"{self._what(call)}: {type(error).__name__}: {words}"
            raise self.error(said, retryable=not never) from None

    def _refused(self, call: Call, answer: Answer) -> PlatformError:
        status, said = answer.status, f"{self._what(call)}: HTTP {answer.status}"
        said += f": {answer.words}" if answer.words else ""
        if 300 <= status < 400:
            said += "; no redirect is followed: name the final address in the Connection"
        if status in (401, 403):
            said += f"; check login, password and rights of connection {self.config.conn_id!r}"
        retryable = status in (408, 425, 429) or status >= 500
        error = self.error(said, retryable=retryable, retry_after=answer.retry_after)
        error.no_effect = status in (400, 401, 403, 404, 405, 422)
        return error

    def _what(self, call: Call) -> str:
        return f"{self.api} {call.method} {call.path}"


def _wrote(before: bool, call: Call, error: PlatformError | None = None) -> bool:
    """Whether these steps may have changed something by now: then no refusal of a later call says that nothing was."""
    if error is not None:
        error.no_effect = error.no_effect and not before
    return before or (call.method not in ("GET", "HEAD") and not (error and error.no_effect))


def _arguments(door: Door, call: Call) -> Json:
    body = {} if call.body is None else {"json": call.body}
    return {
        "method": call.method,
        "url": door.base + call.path,
        "params": dict(call.params) or None,
        "headers": dict(call.headers),
        **body,
    }


@cache
def _trust(verify: bool | str) -> ssl.SSLContext | bool:
    """Made once: reading the certificates takes longer than a call."""
    if verify is False:
        return False
    return httpx.create_ssl_context() if verify is True else ssl.create_default_context(cafile=verify)


def _tls(error: BaseException | None) -> bool:
    """Whether it is about certificates, which no second try mends."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
