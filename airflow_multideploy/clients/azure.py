"""One resource's calls: Azure Resource Manager through its SDKs, an app itself through httpx, and their errors.

What is called in which order, and what the answers mean, is decided by the platforms; here the same steps are run on
the synchronous or on the asynchronous client. A reading call that was lost is made again here, so that a sequence of
many calls need not start over for one of them; a writing call never is, as its steps have to look first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from airflow_multideploy import addresses
from airflow_multideploy.clients.azure_login import Access, Astray, AsyncLogin, Login, Seen
from airflow_multideploy.clients.connections import Caller, existing, missing_extra
from airflow_multideploy.errors import PlatformError

HEALTH_SECONDS = 10
HEALTH = "GET health"
EXTRA = "extra of the Connection"
READS = 3
"""How often a reading call is made before its error counts."""
_QUICK = 5
"""Seconds: a reading call that took longer to fail is not made again here."""
_BUSY = 15.0
"""Seconds after which an operation of somebody else may be over, when Azure does not say."""
_PASSES = ("exclusive lock", "in progress", "retry the request", "try again")
"""How Azure says that a 409 heals by itself."""

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """An operation of the SDK with its arguments after those that every call has; `HEALTH` with a URL; or `EXTRA` with
    the name of an entry in the Connection's extra.

    :param group: of the SDK's operation groups; empty: the first one of the `ArmApi`.
    """

    operation: str
    arguments: tuple[Any, ...] = ()
    group: str = ""

    @property
    def reads(self) -> bool:
        """Whether it may be made again without a thought."""
        return self.operation.startswith(("get", "list"))


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


@dataclass(frozen=True)
class ArmApi:
    """Runs steps against one resource.

    :param sdk: module of the SDK and name of its client.
    :param group: operation group of calls that name none.
    :param scope: first arguments of every call, such as the resource group's and the resource's names.
    :param what: the resource, for messages.
    """

    platform: Caller
    sdk: tuple[str, str]
    group: str
    scope: tuple[str, ...]
    what: str
    subscription_id: str | None
    tokens: dict[Any, Any] = field(default_factory=dict, repr=False)

    def run(self, steps: Steps[T]) -> T:
        """The steps' result.

        :raises PlatformError: an answer that the steps do not handle themselves.
        """
        with self._session() as (client, access, seen), self.platform.understanding():
            try:
                call, tries = next(steps), _Tries()
                while True:
                    try:
                        if call.operation == EXTRA:
                            value = access.extra.get(call.arguments[0])
                        else:
                            value = _probe(call, access) if call.operation == HEALTH else self._call(client, call)
                    except Exception as error:  # noqa: BLE001 - a body that is no document makes the SDK raise anything
                        failure = self._error(error, call, access, seen)
                        if pause := tries.pause(call, failure):
                            time.sleep(pause)
                            continue
                        call = steps.throw(failure)
                    else:
                        call = steps.send(Answer(value, seen.at()))
                    tries = _Tries()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def arun(self, steps: Steps[T]) -> T:
        """As `run`, with native async I/O."""
        async with self._asession() as (client, access, seen):
            with self.platform.understanding():
                try:
                    call, tries = next(steps), _Tries()
                    while True:
                        try:
                            if call.operation == EXTRA:
                                value = access.extra.get(call.arguments[0])
                            else:
                                health = call.operation == HEALTH
                                value = await _aprobe(call, access) if health else await self._acall(client, call)
                        except Exception as error:  # noqa: BLE001 - as above
                            failure = self._error(error, call, access, seen)
                            if pause := tries.pause(call, failure):
                                await asyncio.sleep(pause)
                                continue
                            call = steps.throw(failure)
                        else:
                            call = steps.send(Answer(value, seen.at()))
                        tries = _Tries()
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    @contextmanager
    def _session(self) -> Iterator[tuple[Any, Access, Seen]]:
        try:
            from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook
            from airflow.providers.microsoft.azure.utils import get_sync_default_azure_credential
            from azure import identity

            kind = getattr(import_module(self.sdk[0]), self.sdk[1])
        except ImportError as error:
            raise missing_extra("azure", error) from error
        with existing(self.platform.config.conn_id, self.platform.error):
            connection = AzureBaseHook.get_connection(self.platform.config.conn_id)
        access, seen = Access.read(connection, self.subscription_id, self.platform), Seen()
        with (
            access.credential(identity, seen, get_sync_default_azure_credential) as credential,
            access.client(kind, Login(credential, self.tokens, access.identity()), seen) as client,
        ):
            yield client, access, seen

    @asynccontextmanager
    async def _asession(self) -> AsyncIterator[tuple[Any, Access, Seen]]:
        try:
            from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook
            from airflow.providers.microsoft.azure.utils import get_async_default_azure_credential
            from azure.identity import aio as identity

            kind = getattr(import_module(f"{self.sdk[0]}.aio"), self.sdk[1])
        except ImportError as error:
            raise missing_extra("azure", error) from error
        with existing(self.platform.config.conn_id, self.platform.error):
            connection = await AzureBaseHook.aget_connection(self.platform.config.conn_id)
        access, seen = Access.read(connection, self.subscription_id, self.platform), Seen()
        async with (
            access.credential(identity, seen, get_async_default_azure_credential) as credential,
            access.client(kind, AsyncLogin(credential, self.tokens, access.identity()), seen) as client,
        ):
            yield client, access, seen

    def _call(self, client: Any, call: Call) -> Any:
        answer = self._begin(client, call)
        if hasattr(answer, "by_page"):
            return [_plain(item) for item in answer]
        if hasattr(answer, "polling_method"):
            return None  # accepted: whether it came to pass is seen in what is live
        return answer.read().decode(errors="replace") if hasattr(answer, "read") else _plain(answer)

    async def _acall(self, client: Any, call: Call) -> Any:
        answer = self._begin(client, call)
        if hasattr(answer, "by_page"):
            return [_plain(item) async for item in answer]
        answer = await answer
        if hasattr(answer, "polling_method"):
            return None
        return (await answer.read()).decode(errors="replace") if hasattr(answer, "read") else _plain(answer)

    def _begin(self, client: Any, call: Call) -> Any:
        how: dict[str, Any] = {"polling": False} if call.operation.startswith("begin_") else {}
        if "container_logs" in call.operation:
            # The SDK streams the log, and of an empty one (204) it hands out nothing and keeps the connection: take
            # the response itself, whose read() closes it.
            how = {"cls": lambda response, _data, _headers: response.http_response}
        return getattr(getattr(client, call.group or self.group), call.operation)(*self.scope, *call.arguments, **how)

    def _error(self, error: Exception, call: Call, access: Access, seen: Seen) -> PlatformError:
        """Ours, with the platform's words. What has no status was lost on the way, and may be asked again."""
        from azure.core.exceptions import AzureError, HttpResponseError

        if isinstance(error, Astray):
            words = "the answer leads to another server than the Connection's, which our token is not for; refused"
            return self.platform.error(f"{call.operation} of {self.what}: {words}")
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else seen.status
        if status == 401:
            self.tokens.clear()  # it may have been revoked; the next look logs in anew
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
            f"{call.operation} of {self.what} failed with "
            f"{f'HTTP {status}' if status else type(error).__name__}: {access.masked(words)}",
            retryable=passes,
            retry_after=seen.retry_after or (_BUSY if status == 409 and passes else None),
        )

    def refuse(self, reason: str) -> NoReturn:
        """Give up: trying again does not help.

        :raises PlatformError: always.
        """
        raise self.platform.error(f"{self.what} {reason}")


@dataclass
class _Tries:
    """How often one call was made, and since when."""

    began: float = field(default_factory=time.monotonic)
    made: int = 1

    def pause(self, call: Call, failure: PlatformError) -> float:
        """Seconds until it is made again here; 0: its error counts."""
        spent = self.made >= READS or time.monotonic() - self.began > _QUICK
        if spent or not (call.reads and failure.retryable) or failure.retry_after:
            return 0.0
        self.made += 1
        return 0.1 * self.made


def _plain(answer: Any) -> Any:
    """A document as it came: newer SDKs keep it so, older ones put it together again."""
    if answer is None:
        return None
    return answer.serialize(keep_readonly=True) if hasattr(answer, "serialize") else answer.as_dict()


def _probe(call: Call, access: Access) -> Health:
    import httpx

    try:
        with httpx.Client(verify=access.tls(), timeout=HEALTH_SECONDS) as client:
            addresses.checked(str(call.arguments[0]))
            return _health(client.get(str(call.arguments[0])))
    except (httpx.HTTPError, ValueError) as error:  # an app that is starting does not answer: no error of the platform
        return Health(None, error=f"{type(error).__name__}: {error}")


async def _aprobe(call: Call, access: Access) -> Health:
    import httpx

    try:
        async with httpx.AsyncClient(verify=access.tls(), timeout=HEALTH_SECONDS) as client:
            addresses.checked(str(call.arguments[0]))
            return _health(await client.get(str(call.arguments[0])))
    except (httpx.HTTPError, ValueError) as error:
        return Health(None, error=f"{type(error).__name__}: {error}")


def _health(response: Any) -> Health:
    return Health(response.status_code, response.text[:65_536], dict(response.headers))
