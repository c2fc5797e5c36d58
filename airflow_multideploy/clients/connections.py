"""The Airflow Connection behind a call, and whose call it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from airflow_multideploy import addresses
from airflow_multideploy.errors import MissingExtra, PlatformError, SpecError

AWS = ("aws",)
AZURE = ("azure", "multideploy_azure", "azure_container_instance")
GOOGLE = ("google_cloud_platform", "multideploy_gcp")
HTTP = ("http", "https")
KUBERNETES = ("kubernetes",)
SSH = ("ssh", "sftp")


class Caller(Protocol):
    """Whose calls a client makes: a target, as far as a client knows it."""

    config: Any

    @property
    def name(self) -> str:
        """``service/target``, as messages name it."""
        ...

    def error(self, message: str, *, retryable: bool = False, retry_after: float | None = None) -> PlatformError:
        """A `PlatformError` that names the target."""
        ...

    def understanding(self) -> AbstractContextManager[None]:
        """Whatever a document makes the block stumble over comes out as a retryable `PlatformError` of the target."""
        ...


def fitting(connection: Any, types: tuple[str, ...], fail: Callable[[str], PlatformError]) -> Any:
    """The Connection, which is of one of these types, or ``generic``, or of none.

    Another type's login and password would be sent to a place that they are not for.

    :param fail: makes the error of the target that this is for.
    """
    found = connection.conn_type
    if found and found not in (*types, "generic"):
        accepted = " or ".join(repr(name) for name in types)
        raise fail(
            f"Connection {connection.conn_id!r} is of type {found!r}; this platform takes one of type {accepted}"
        )
    return connection


def missing_extra(extra: str, error: ImportError) -> MissingExtra:
    """The error for an SDK that is not installed."""
    return MissingExtra(f"{error.name or error} is not installed: pip install 'airflow-provider-multideploy[{extra}]'")


@contextmanager
def existing(conn_id: str, fail: Callable[[str], PlatformError]) -> Iterator[None]:
    """Where the block looks up an Airflow Connection that does not exist, an error says which one to create.

    :param fail: makes the error of the target that this is for.
    """
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        yield
    except AirflowNotFoundException:
        raise fail(f"there is no Airflow Connection {conn_id!r}; create it, or correct the target's conn_id") from None


def refuse_plain_http(url: str, *, target: str) -> None:
    """Credentials go over TLS, or to this machine, and to an address that means the same host to everybody.

    :param url: empty: nowhere.
    :raises SpecError: plain http to an address that is not loopback, or what is no http(s) address.
    """
    if not url:
        return
    try:
        parts = addresses.checked(url)
    except ValueError as error:
        raise SpecError(f"{target}: refusing to send credentials: {error}") from None
    if parts.scheme != "http":
        return
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise SpecError(f"{target}: refusing to send credentials over plain http to {host}; use https")
