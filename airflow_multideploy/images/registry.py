"""Image registries: from a tag to the digest of the bits behind it, over the OCI distribution API.

A tag can be moved between two targets of one release; a digest cannot. Hence every tag is resolved once, before
anything is deployed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from airflow_multideploy import addresses
from airflow_multideploy.catalog.service import VERSION_PATTERN
from airflow_multideploy.clients.connections import refuse_plain_http
from airflow_multideploy.errors import BuildFailed, PlatformError, SpecError
from airflow_multideploy.secrets import MOST_READ, redact

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""What a tag may stand for. Without it as Accept header a registry may convert the manifest: another digest."""

TIMEOUT = 30.0
"""Seconds that one call may take."""

_MANIFEST_LIMIT = 4 * 1024 * 1024  # the size up to which the specification wants manifests to be accepted
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_CHALLENGE = re.compile(r'\b(basic|bearer)((?:[\s,]*[a-z_]+=(?:"[^"]*"|[^\s",]+))*)', re.I)
_PARAMETER = re.compile(r'([a-z_]+)=(?:"([^"]*)"|([^\s",]+))', re.I)


class RegistryError(BuildFailed, PlatformError):
    """A registry refuses or does not answer. ``target`` is the registry, ``retryable`` as for a platform."""


class Credentials(Protocol):
    """What is read of an Airflow Connection. ``host`` and ``schema`` may be empty."""

    conn_id: str
    host: str | None
    schema: str | None
    port: int | None
    login: str | None
    password: str | None


@dataclass(frozen=True)
class Repository:
    """Where an image lives.

    :param host: registry, with its port when it has one.
    :param path: repository within the registry.
    """

    host: str
    path: str

    @property
    def name(self) -> str:
        """The image with its host: what it is pushed and deployed as."""
        return f"{self.host}/{self.path}"

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine."""
        try:
            refuse_plain_http(f"http://{self.host}", target=self.host)
        except SpecError:
            return False
        return True


@dataclass(frozen=True, repr=False)
class Registry:
    """A repository's registry and how to speak to it. Has no ``repr``: it holds a password."""

    repository: Repository
    url: str
    login: str = ""
    password: str = ""

    @property
    def insecure(self) -> bool:
        """Whether it is spoken to without TLS."""
        return self.url.startswith("http:")

    @property
    def known(self) -> bool:
        """Whether there are credentials for it."""
        return bool(self.login or self.password)

    def auth_document(self) -> dict[str, Any] | None:
        """The document that docker, buildah and podman read credentials from, or None without credentials."""
        if not self.known:
            return None
        return {"auths": {self.repository.host: {"auth": self.basic()}}}

    def basic(self) -> str:
        """Login and password as HTTP's Basic scheme sends them."""
        return base64.b64encode(f"{self.login}:{self.password}".encode()).decode()


def parse_image(image: str, host: str = "") -> Repository:
    """The registry and repository that an image name without tag means.

    The first part is a host when it has a dot or a colon or is ``localhost``, as for docker.

    :param host: registry of an image that names none.
    :raises SpecError: it is no image name, holds a tag or a digest, or nothing names its registry.
    """
    first, slash, rest = image.partition("/")
    own = bool(slash) and _is_host(first)
    path = rest if own else image
    if "@" in path or ":" in path:
        raise SpecError(f"image {image!r}: holds a tag or digest; give the repository alone, the version is the tag")
    if not _REPOSITORY.fullmatch(path) or (own and not _HOST.fullmatch(first)):
        raise SpecError(f"image {image!r}: not an image name; expected host/folder/name in lower case")
    if own:
        return Repository(first, path)
    if not host:
        raise SpecError(
            f"image {image!r} names no registry; write registry.example.com/{image}, or name the host in the Connection"
        )
    # Another program would take a plain word in front of the path for a folder, and push somewhere else.
    if not _is_host(host) or not _HOST.fullmatch(host):
        raise SpecError(f"image {image!r}: {host!r} is no registry's host; it needs a dot or a port (host:443)")
    return Repository(host, path)


def _is_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"


def check_version(version: str) -> str:
    """The version, when it can be an image tag.

    :raises SpecError: it cannot.
    """
    if not re.fullmatch(VERSION_PATTERN, version) or version.endswith("\n"):
        raise SpecError(f"version {version!r}: expected an image tag: letters, digits, '_', '.' and '-', at most 128")
    return version


def connect(image: str, conn: Credentials | None = None) -> Registry:
    """How to speak to an image's registry, with a Connection's credentials.

    An image without a host lives in the registry that the Connection's host names.

    https, unless the Connection says ``http`` (schema, or in front of its host) or the registry is on this machine
    and the Connection does not say ``https``.

    :param conn: host (``registry.example.com``, optional port), login, password; None: anonymous.
    :raises SpecError: neither image nor Connection names a registry, the Connection belongs to another one, or its
        credentials would go over plain http.
    """
    scheme, host, login, password = "", "", "", ""
    if conn is not None:
        written = conn.host or ""
        scheme = urlsplit(written).scheme if "://" in written else conn.schema if conn.schema else ""
        host = written.split("://", 1)[-1].split("/", 1)[0]
        if host and conn.port and ":" not in host:
            host = f"{host}:{conn.port}"
        login, password = conn.login or "", conn.password or ""
    repository = parse_image(image, host)
    if conn is not None and host and host.lower() != repository.host.lower():
        raise SpecError(
            f"connection {conn.conn_id!r} is for the registry {host}, but the image {image!r} lives on "
            f"{repository.host}; its credentials were not sent"
        )
    if scheme not in ("http", "https"):
        scheme = "http" if repository.loopback else "https"
    url = f"{scheme}://{repository.host}"
    if login or password:
        refuse_plain_http(url, target=f"registry {repository.host}")
    return Registry(repository, url, login, password)


def find(image: str, version: str, conn: Credentials | None = None) -> str | None:
    """The digest (``sha256:…``) behind a tag now, or None when the registry has no such tag.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests

    :raises SpecError: image, version or Connection are not what they have to be.
    :raises RegistryError: refused, no answer, or an answer that is no manifest.
    """
    check_version(version)
    return _Session(connect(image, conn)).digest(version)


def resolve(image: str, version: str, conn: Credentials | None = None) -> str:
    """The digest (``sha256:…``) behind a tag now. Asks the registry, writes nothing.

    :raises RegistryError: as `find`, and when there is no such tag.
    """
    digest = find(image, version, conn)
    if digest is None:
        host = connect(image, conn).repository.host
        raise RegistryError(
            f"has no {image}:{version}; push it first, or give the service a 'build'", target=f"registry {host}"
        )
    return digest


class _Session:
    """One conversation with a registry: at most one challenge is answered."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.target = f"registry {registry.repository.host}"
        self.authorization: str | None = None

    def error(self, message: str, *, retryable: bool = False, retry_after: float | None = None) -> RegistryError:
        return RegistryError(message, target=self.target, retryable=retryable, retry_after=retry_after)

    def digest(self, tag: str) -> str | None:
        path = f"/v2/{self.registry.repository.path}/manifests/{tag}"
        with self._client() as client:
            # HEAD first: a registry may count a GET as a pull, and limit pulls.
            response = self._ask(client, "HEAD", path)
            if response.status_code == 404:
                return None
            claimed = response.headers.get("docker-content-digest", "")
            if response.status_code == 200 and self._manifest(response) and _DIGEST.fullmatch(claimed):
                return str(claimed)
            response = self._ask(client, "GET", path)
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise self._refused(response, f"GET {path}")
        if not self._manifest(response):
            kind = response.headers.get("content-type", "none")
            raise self.error(f"answered GET {path} with content type {kind}, no image manifest", retryable=True)
        return self._verified(response, path)

    def _verified(self, response: httpx.Response, path: str) -> str:
        digest = "sha256:" + hashlib.sha256(response.content).hexdigest()
        claimed = response.headers.get("docker-content-digest", "")
        if claimed.startswith("sha256:") and claimed != digest:
            raise self.error(
                f"said {claimed} for {path}, but the manifest it sent is {digest}; something between here and the "
                "registry alters answers"
            )
        return digest

    @staticmethod
    def _manifest(response: httpx.Response) -> bool:
        return response.headers.get("content-type", "").split(";")[0].strip().lower() in MANIFEST_TYPES

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        # Redirects are not followed: a tag's answer decides what is deployed, and it comes from the registry itself.
        with httpx.Client(timeout=TIMEOUT, follow_redirects=False) as client:
            yield client

    def _ask(self, client: httpx.Client, method: str, path: str) -> httpx.Response:
        url = self.registry.url + path
        response = self._send(client, method, url, authorization=self.authorization, accept=", ".join(MANIFEST_TYPES))
        if response.status_code == 401 and self.authorization is None:
            self.authorization = self._answer_challenge(client, response)
            response = self._send(
                client, method, url, authorization=self.authorization, accept=", ".join(MANIFEST_TYPES)
            )
        # 405: a registry without HEAD is asked by GET.
        if response.status_code not in (200, 404, 405) or (response.status_code == 405 and method == "GET"):
            raise self._refused(response, f"{method} {path}")
        return response

    def _send(
        self,
        client: httpx.Client,
        method: str,
        url: str,
        *,
        authorization: str | None,
        accept: str = "application/json",
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        headers = {"Accept": accept, "User-Agent": "airflow-provider-multideploy"}
        if authorization:
            headers["Authorization"] = authorization
        try:
            with client.stream(method, url, headers=headers, params=params) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MANIFEST_LIMIT:
                        raise self.error(f"answered {method} {urlsplit(url).path} with more than 4 MiB")
        except httpx.InvalidURL as error:
            raise self.error(f"cannot be asked: {error}") from error
        except httpx.HTTPError as error:
            words = str(error) or type(error).__name__
            raise self.error(f"does not answer {method} {urlsplit(url).path}: {words}", retryable=True) from error
        # iter_bytes has decoded the body already
        kept = [(k, v) for k, v in response.headers.raw if k.lower() not in (b"content-encoding", b"content-length")]
        return httpx.Response(response.status_code, headers=kept, content=bytes(body), request=response.request)

    def _answer_challenge(self, client: httpx.Client, refused: httpx.Response) -> str:
        """The Authorization header that a 401 asks for: https://distribution.github.io/distribution/spec/auth/token/"""
        challenges = {
            scheme.lower(): {key.lower(): quoted or bare for key, quoted, bare in _PARAMETER.findall(parameters)}
            for value in refused.headers.get_list("www-authenticate")
            for scheme, parameters in _CHALLENGE.findall(value[:MOST_READ])
        }
        if "bearer" in challenges:
            return f"Bearer {self._token(client, challenges['bearer'])}"
        if "basic" in challenges and self.registry.known:
            return f"Basic {self.registry.basic()}"
        raise self._refused(refused, refused.request.method + " " + refused.request.url.path)

    def _token(self, client: httpx.Client, challenge: dict[str, str]) -> str:
        realm = challenge.get("realm", "")
        where = addresses.shown(realm)
        try:
            addresses.checked(realm)
        except ValueError as error:
            raise self.error(f"asks for a token from {where!r}, which is no address: {error}", retryable=True) from None
        scope = challenge.get("scope") or f"repository:{self.registry.repository.path}:pull"
        params = {"scope": scope} | ({"service": challenge["service"]} if "service" in challenge else {})
        authorization = None
        if self.registry.known:
            refuse_plain_http(realm, target=self.target)
            authorization = f"Basic {self.registry.basic()}"
        response = self._send(client, "GET", realm, authorization=authorization, params=params)
        if response.status_code != 200:
            raise self._refused(response, f"GET {where}")
        try:
            document = response.json()
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.error(
                f"answered GET {where} with something that is no token document", retryable=True
            ) from error
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self.error(f"answered GET {where} without a token", retryable=True)
        return token

    def _refused(self, response: httpx.Response, operation: str) -> RegistryError:
        status = response.status_code
        words = _words(response)
        said = f"answered {operation} with {status}" + (f": {words}" if words else "")
        if status in (401, 403):
            who = f"the login {self.registry.login!r} of" if self.registry.known else "no login in"
            said += f"; it was asked with {who} the registry's connection (registry_conn_id): check that"
        elif 300 <= status < 400:
            where = addresses.shown(response.headers.get("location", "?"))
            said += f", a redirect to {where}; name that registry in the image"
        after = response.headers.get("retry-after", "")
        return self.error(
            said,
            retryable=status in (408, 425, 429) or status >= 500,
            retry_after=float(after) if after.isdecimal() else None,
        )


def _words(response: httpx.Response) -> str:
    """The registry's own words in an error document, at most 300 characters; empty when it said nothing."""
    try:
        errors = response.json()["errors"]
        text = "; ".join(f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return redact(text, 300)
