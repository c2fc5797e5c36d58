"""Stand-in for Azure Web Apps: Microsoft Entra's token endpoint, Resource Manager for sites, the sites' own answers.

Held to azure-mgmt-web's request builders and models by ``tests/sandbox/test_azure_web_app_contract.py``. What it does
on its own initiative, because no contract says it:

- A change of ``linuxFxVersion`` and a restart start new containers on all instances at once; the old ones serve until
  then. When the start fails, nothing serves any more: instances are STOPPED, the app answers 503, and the container log
  says why in App Service's wording. (The real platform tries again and again; this one stays down.)
- ``metadata`` in a PATCH of the configuration replaces all metadata, as ``appSettings`` does.
- The apps answer below ``/apps/NAME/`` of the same address, as there is no DNS for host names.
- ``nextLink`` splits the list of instances into pages of one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from airflow_multideploy.sandbox._azure_site import Site, iso
from airflow_multideploy.sandbox.server import Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Live, World

if TYPE_CHECKING:
    import trustme

KIND = "azure_web_app"
API_VERSION = "2025-05-01"
TENANT, CLIENT, SUBSCRIPTION = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))
GROUP = "sandbox"
_SITE = re.compile(
    r"^/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.Web/sites/"
    r"(?P<name>[^/]+)(?P<rest>/.*)?$",
    re.I,
)
_FX = re.compile(r"^(DOCKER|COMPOSE)\|[^\s|]+$|^$")

Json = dict[str, Any]


class Refused(Exception):
    """An error answer in Resource Manager's format."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)

    def document(self) -> Json:
        """The body."""
        return {"error": {"code": self.code, "message": str(self)}}


class AzureWebAppStandIn:
    """Resource Manager, Entra and the sites behind one TLS address.

    :param ca: signs the server's certificate; None: one of its own.
    :param ca_file: where other processes find the certificate of ``ca``; None: written to a temporary folder.
    :param secret: the client secret that Entra accepts.
    """

    kind = KIND
    api_version = API_VERSION

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        ca: trustme.CA | None = None,
        ca_file: Path | None = None,
        secret: str = "sandbox-secret",
    ) -> None:
        import trustme

        self.world, self.secret = world, secret
        self.sites: dict[str, Site] = {}
        self.lists_containers = True
        """Whether the list of instances holds containers; the real platform does not promise it."""
        self.forbidden: set[str] = set()
        """Ends of paths that the role of the caller does not allow."""
        self.busy = 0
        """How many of the next writes find somebody else's operation in progress."""
        self._token = secrets.token_urlsafe(24)
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="sandbox-azure-")
        ca = ca or trustme.CA()
        own, chain = (str(Path(self._folder.name) / name) for name in ("ca.pem", "server.pem"))
        self.ca_file = str(ca_file or own)
        if ca_file is None:
            ca.cert_pem.write_to_path(own)
        ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(chain)
        app = Faults(self._app, world, self.kind, describe=_describe, error_body=_error_body)
        self._server = Server(app, port=port, tls=(chain, chain))
        self.url = self._server.url

    def start(self) -> None:
        """Serve on loopback."""
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()
        self._folder.cleanup()

    def connection(self) -> Json:
        """A Connection of type ``azure`` that leads here."""
        extra = {
            "tenantId": TENANT,
            "subscriptionId": SUBSCRIPTION,
            "base_url": self.url,
            "authority": self.url,
            "ca_file": self.ca_file,
        }
        return {"conn_type": "azure", "login": CLIENT, "password": self.secret, "extra": extra}

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this site."""
        return {
            "platform": self.kind,
            "resource_group": GROUP,
            "site": resource,
            "health_url": f"{self.url}/apps/{resource}/health",
            "version_json_path": "version",
        }

    def seed(self, resource: str, image: str | None) -> None:
        """Create the site, at once, serving this image; None: with an empty ``linuxFxVersion``."""
        fx = f"DOCKER|{image}" if image else ""
        with self._lock:
            self.sites[resource] = Site(resource, fx=fx, serving=fx or None)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody deploys by hand in the portal: our metadata stays."""
        with self._lock:
            site = self.sites[resource]
            site.fx = site.serving = f"DOCKER|{image}"
            site.start, site.generation = None, site.generation + 2

    def live(self, resource: str) -> Live:
        """What answers requests now."""
        with self._lock:
            site = self._settled(self.sites[resource])
            image = site.serving.partition("|")[2] if site.serving else None
            return Live(image=image, revision=site.serving, settled=site.start is None)

    def revisions(self, resource: str) -> list[str]:
        """Every value of ``linuxFxVersion`` that came through the API, oldest first."""
        return list(self.sites[resource].revisions)

    def _settled(self, site: Site) -> Site:
        site.settle(self.world.now())
        return site

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        headers = {key.decode().lower(): value.decode() for key, value in scope["headers"]}
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
        try:
            with self._lock:
                status, answer = self._route(scope["method"], scope["path"], query, headers, body)
        except Refused as refused:
            status, answer = refused.status, refused.document()
        text = isinstance(answer, str)
        raw = b"" if answer is None else answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        kind = ("text/html" if status >= 400 else "application/octet-stream") if text else "application/json"
        extra = [(b"content-type", kind.encode()), (b"x-ms-request-id", secrets.token_hex(8).encode())]
        if status == 401:
            extra.append((b"www-authenticate", f'Bearer authorization_uri="{self.url}/{TENANT}"'.encode()))
        await send({"type": "http.response.start", "status": status, "headers": extra})
        await send({"type": "http.response.body", "body": raw})

    def _route(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Json | str | None]:
        if path.startswith("/apps/"):
            return self._app_answer(path.split("/")[2])
        if path == f"/{TENANT}/v2.0/.well-known/openid-configuration" and method == "GET":
            base = f"{self.url}/{TENANT}"
            return 200, {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "issuer": f"{base}/v2.0",
            }
        if path == f"/{TENANT}/oauth2/v2.0/token" and method == "POST":
            return self._login(parse_qs(body.decode()))
        if headers.get("authorization") != f"Bearer {self._token}":
            raise Refused(401, "InvalidAuthenticationToken", "The access token is missing, invalid or expired.")
        if "api-version" not in query:
            text = "The api-version query parameter (?api-version=) is required for all requests."
            raise Refused(400, "MissingApiVersionParameter", text)
        if query["api-version"] != self.api_version:
            raise Refused(400, "NoRegisteredProviderFound", f"No API version {query['api-version']!r} here.")
        if any(path.endswith(end) for end in self.forbidden):
            text = f"The client {CLIENT!r} does not have authorization to perform action on {path!r}."
            raise Refused(403, "AuthorizationFailed", text)
        return self._resource(method, path, query, body)

    def _login(self, form: dict[str, list[str]]) -> tuple[int, Json]:
        given = {key: values[0] for key, values in form.items()}
        if given.get("grant_type") != "client_credentials" or not given.get("scope"):
            text = "AADSTS900144: The request body must contain the parameters 'grant_type' and 'scope'."
            return 400, {"error": "invalid_request", "error_description": text, "error_codes": [900144]}
        if given.get("client_id") != CLIENT or given.get("client_secret") != self.secret:
            text = f"AADSTS7000215: Invalid client secret provided for app {CLIENT!r}."
            return 401, {"error": "invalid_client", "error_description": text, "error_codes": [7000215]}
        life = {"expires_in": 3599, "ext_expires_in": 3599}
        return 200, {"token_type": "Bearer", "access_token": self._token, **life}

    def _app_answer(self, name: str) -> tuple[int, Json | str]:
        site = self.sites.get(name)
        serving = self._settled(site).serving if site and site.state == "Running" else None
        if serving is None:
            return 503, "<html><body>:( Application Error</body></html>"
        image = serving.partition("|")[2]
        version = image.partition("@")[2] or image.rpartition(":")[2]
        return 200, {"status": "ok", "image": image, "version": version}

    def _resource(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Json | str | None]:
        found = _SITE.match(path)
        if not found or found["subscription"] != SUBSCRIPTION:
            raise Refused(404, "SubscriptionNotFound", f"The subscription of {path!r} could not be found.")
        if found["group"].lower() != GROUP:
            raise Refused(404, "ResourceGroupNotFound", f"Resource group '{found['group']}' could not be found.")
        site = self.sites.get(found["name"])
        if site is None:
            text = f"The Resource 'Microsoft.Web/sites/{found['name']}' under resource group '{GROUP}' was not found."
            raise Refused(404, "ResourceNotFound", text)
        operation = self._operations(self._settled(site), path, query, body).get((method, found["rest"] or ""))
        if operation is None:
            raise Refused(404, "NotFound", f"{method} {path} is no operation of this stand-in.")
        return operation()

    def _operations(
        self, site: Site, path: str, query: dict[str, str], body: bytes
    ) -> dict[tuple[str, str], Callable[[], tuple[int, Json | str | None]]]:
        return {
            ("GET", ""): lambda: (200, self._site_document(site)),
            ("GET", "/config/web"): lambda: (200, self._config_document(site)),
            ("PATCH", "/config/web"): lambda: self._patch(site, body),
            ("POST", "/config/metadata/list"): lambda: (200, self._metadata_document(site)),
            ("GET", "/instances"): lambda: (200, self._instances(site, path, int(query.get("$skiptoken", "0")))),
            ("POST", "/containerlogs"): lambda: (200, "\n".join(site.log)) if site.log else (204, None),
            ("POST", "/restart"): lambda: self._restart(site),
        }

    def _patch(self, site: Site, body: bytes) -> tuple[int, Json]:
        if self.busy:
            self.busy -= 1
            raise Refused(409, "Conflict", "Cannot modify this site because another operation is in progress.")
        try:
            changes = json.loads(body)["properties"]
            fx = str(changes.get("linuxFxVersion", site.fx))
            metadata = {str(i["name"]): str(i["value"]) for i in changes["metadata"]} if "metadata" in changes else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "BadRequest", f"The request content is invalid: {error!r}") from None
        if not _FX.match(fx):
            raise Refused(400, "BadRequest", "The parameter LinuxFxVersion has an invalid value.")
        if metadata is not None:
            site.metadata = metadata
        if fx != site.fx:
            site.fx = fx
            site.revisions.append(fx)
            site.begin(self.world.course(self.kind, site.name), self.world.now())
        return 200, self._config_document(site)

    def _restart(self, site: Site) -> tuple[int, None]:
        site.begin(self.world.course(self.kind, site.name), self.world.now())
        return 200, None

    # --- documents ---------------------------------------------------------------------------------------------------

    def _id(self, site: Site, rest: str = "") -> str:
        return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Web/sites/{site.name}{rest}"

    def _site_document(self, site: Site) -> Json:
        host = f"{site.name}.azurewebsites.invalid"
        return {
            "id": self._id(site),
            "name": site.name,
            "type": "Microsoft.Web/sites",
            "kind": "app,linux,container",
            "location": "West Europe",
            "tags": {},
            "properties": {
                "state": site.state,
                "hostNames": [host],
                "enabled": True,
                "enabledHostNames": [host],
                "usageState": "Normal",
                "availabilityState": "Normal",
                "reserved": True,
                "lastModifiedTimeUtc": iso(site.modified),
                "defaultHostName": host,
                "httpsOnly": True,
                "resourceGroup": GROUP,
            },
        }

    def _config_document(self, site: Site) -> Json:
        properties = {
            "numberOfWorkers": site.workers,
            "linuxFxVersion": site.fx,
            "alwaysOn": True,
            "ftpsState": "FtpsOnly",
        }
        name = {"id": self._id(site, "/config/web"), "name": site.name, "type": "Microsoft.Web/sites/config"}
        return {**name, "properties": properties}

    def _metadata_document(self, site: Site) -> Json:
        name = {"id": self._id(site, "/config/metadata"), "name": "metadata", "type": "Microsoft.Web/sites/config"}
        return {**name, "properties": dict(site.metadata)}

    def _instances(self, site: Site, path: str, page: int) -> Json:
        workers = site.workers if site.state == "Running" else 0
        more = f"{self.url}{path}?api-version={self.api_version}&$skiptoken={page + 1}" if page + 1 < workers else None
        value = [self._instance(site, page)] if page < workers else []
        return {"value": value, **({"nextLink": more} if more else {})}

    def _instance(self, site: Site, number: int) -> Json:
        name = hashlib.sha256(f"{site.name}/{number}".encode()).hexdigest()
        properties: Json = {"state": "READY" if site.serving else "UNKNOWN" if site.start else "STOPPED"}
        if self.lists_containers and site.serving:
            container = site.container(number, site.generation)
            now = iso(self.world.now())
            properties["containers"] = {container: {"name": container, "id": container[-8:], "currentTimeStamp": now}}
        address = {"id": self._id(site, f"/instances/{name}"), "name": name, "type": "Microsoft.Web/sites/instances"}
        return {**address, "properties": properties}


def _describe(scope: Scope, body: bytes) -> tuple[str, bool]:
    """Reads are also sent as POST in this API."""
    reads = ("/list", "/containerlogs", "/token")
    writes = scope["method"] != "GET" and not scope["path"].endswith(reads)
    return f"{scope['method']} {scope['path']}", writes


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    code = {400: "BadRequest", 429: "TooManyRequests"}.get(status, "InternalServerError")
    return json.dumps(Refused(status, code, "The request could not be served now.").document()).encode(), {}
