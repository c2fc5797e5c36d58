"""The docker platform's Engine: a client of Docker's SDK with our errors. Nothing here decides about a release."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from airflow_multideploy import addresses
from airflow_multideploy.clients.connections import Caller, existing, missing_extra, refuse_plain_http
from airflow_multideploy.errors import MultideployError, PlatformError, SpecError

CALL_TIMEOUT = 30
OLDEST = "1.24"
"""The API version that the SDK still speaks: it makes a client that asks for nothing by itself."""
_SILENT = ("start", "stop", "restart", "rename")
"""Calls that the Engine answers with 204 or 304, and a proxy's page with 200."""
_NEVER = ("not found", "unknown", "unauthorized", "denied", "authentication required", "invalid reference")
"""Words of the pulls that will not work later either."""


def refuse_open(url: str, *, tls: bool) -> None:
    """An Engine that is not on this machine is spoken to with TLS keys.

    :raises ValueError: this address is elsewhere, and there are none; or it is no address.
    """
    if not url.startswith("tcp://"):
        return
    address = url.replace("tcp://", "https://" if tls else "http://", 1)
    addresses.checked(address)
    try:
        refuse_plain_http(address, target="url")
    except SpecError as error:
        keys = "set tls_ca_cert, and tls_client_cert with tls_client_key"
        raise ValueError(f"{error}, as the Engine has it: {keys}") from None


class Host:
    """The Engine that a target's config names, and the Connection with the image registry's login."""

    def __init__(self, platform: Caller) -> None:
        self.config, self.name = platform.config, platform.name
        self.error, self.understanding = platform.error, platform.understanding

    def connection(self) -> Any:
        """The Airflow Connection."""
        from airflow.sdk import BaseHook

        with existing(self.config.conn_id, self.error):
            return BaseHook.get_connection(self.config.conn_id)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """A client, which asks the Engine for its API version first."""
        try:
            from docker.api.client import APIClient
            from docker.tls import TLSConfig
        except ImportError as error:
            raise missing_extra("docker", error) from error
        config, tls = self.config, None
        if config.tls_ca_cert or config.tls_client_cert:
            pair = (config.tls_client_cert, config.tls_client_key)
            with self._errors():
                tls = TLSConfig(client_cert=pair if all(pair) else None, ca_cert=config.tls_ca_cert, verify=True)

        def client(version: str) -> Any:
            return closing(APIClient(base_url=config.url, version=version, timeout=CALL_TIMEOUT, tls=tls or False))

        with self.understanding(), self._errors():
            with client(OLDEST) as engine:
                version = engine.version(api_version=False)["ApiVersion"]
            with client(version) as engine:
                engine.hooks["response"].append(_accepted)
                yield engine

    def pulled(self, engine: Any, image: str) -> str:
        """The image's id, once it is on the host. One pinned by digest is pulled only when it is not there.

        https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Image/operation/ImageCreate
        """
        from docker.errors import APIError, ImageNotFound

        if "@" in image:
            try:
                return str(engine.inspect_image(image)["Id"])
            except ImageNotFound:
                pass
        connection = self.connection()
        auth = {"username": connection.login, "password": connection.password} if connection.login else None
        until = time.monotonic() + self.config.pull_timeout
        try:
            lines = engine.pull(image, stream=True, decode=True, auth_config=auth)
        except APIError as error:
            if _never(error.explanation or ""):  # the Engine answers what the registry refuses with 500
                raise self.error(f"pull of {image}: {error.explanation}") from None
            raise
        for line in lines:
            if words := line.get("error"):
                raise self.error(f"pull of {image}: {words}", retryable=not _never(words))
            if time.monotonic() > until:
                raise self.error(f"pull of {image}: not done after {self.config.pull_timeout:g} s")
        return str(engine.inspect_image(image)["Id"])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from docker.errors import DockerException
        from requests import RequestException

        try:
            yield
        except MultideployError:
            raise
        except (DockerException, RequestException, OSError) as error:
            raise self._mapped(error) from None

    def _mapped(self, error: Any) -> PlatformError:
        from docker.errors import APIError, TLSParameterError
        from requests.exceptions import SSLError

        if isinstance(error, APIError) and error.response is not None:
            status, asked = error.response.status_code, error.response.headers.get("Retry-After", "")
            what = f"{error.response.request.method} {error.response.request.path_url.partition('?')[0]}"
            return self.error(
                f"Docker Engine: {what}: HTTP {status}: {error.explanation or error.response.reason}",
                retryable=status == 429 or status >= 500,
                retry_after=float(asked) if asked.isdecimal() else None,
            )
        never = isinstance(error, TLSParameterError | SSLError)
        return self.error(f"Docker Engine at {self.config.url}: {type(error).__name__}: {error}", retryable=not never)


def _never(words: str) -> bool:
    return any(word in words.lower() for word in _NEVER)


def _accepted(response: Any, *args: Any, **kwargs: Any) -> None:
    """The SDK looks at no answer to these calls but for its being no error."""
    path = response.request.path_url.partition("?")[0]
    silent = response.request.method == "DELETE" or path.rsplit("/", 1)[-1] in _SILENT
    if silent and response.status_code == 200:
        raise ValueError("not the Engine's answer")
