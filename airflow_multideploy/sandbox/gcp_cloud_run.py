"""A stand-in for Google Cloud Run: the Admin API v2 over REST and over gRPC, one state behind both.

Held to the contract (discovery document ``run.v2`` and the SDK's protos): resources, methods, parameters, enums,
long-running operations, error bodies. What it does on its own initiative, because no contract says how:

- A rollout takes the time, and the outcome, that `World.course` says. Routes move at its end, all at once.
- A failed rollout: the revision's and the service's conditions are CONDITION_FAILED with ``revisionReason``
  HEALTH_CHECK_CONTAINER_ERROR; ``trafficStatuses``, ``observedGeneration`` and ``latestReadyRevision`` keep the last
  serving state, as ``Service.reconciling`` is described. The operation ends with error code 9.
- After the traffic went back from a failed (or never ready) revision, ``RoutesReady`` succeeds while
  ``ConfigurationsReady``, and with it the service, stays failed (or reconciling): the template still is its own.
- A stale etag is 409 ABORTED (AIP-154). The etag changes with each write and each end of a reconciliation.
- A revision's name that exists with another template is 409 ALREADY_EXISTS; traffic to an unknown revision is refused
  at once (the platform takes the call and fails the operation).
- A "latest" target in ``trafficStatuses`` names no revision. Deleting takes a quarter of a rollout's time.
- Tagged revisions answer plain http under ``/tagged/SERVICE/TAG/…``, with `smoke_status`.
- Credentials are a service account's self-signed JWT (AIP-4111), which the SDK makes without any other server; key id,
  signature and expiry are checked. An unknown key id is 401 UNAUTHENTICATED.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from airflow_multideploy.sandbox._cloud_run_calls import CloudRun
from airflow_multideploy.sandbox._cloud_run_grpc import HTTP_STATUS, GrpcServer, messages
from airflow_multideploy.sandbox._cloud_run_state import KIND, LATEST, ApiError, Json, Service
from airflow_multideploy.sandbox.server import Faults, Message, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Course, Live, World

if TYPE_CHECKING:
    import trustme

PROJECT, LOCATION, UNIVERSE = "sandbox-project", "europe-west1", "sandbox.test"
ACCOUNT = f"sandbox@{PROJECT}.iam.{UNIVERSE}"

_PLACE = r"projects/[^/]+/locations/[^/]+"
_ROUTES: tuple[tuple[str, str, str, set[str]], ...] = (
    ("GET", rf"(?P<parent>{_PLACE})/services", "services.list", {"pageSize", "pageToken", "showDeleted"}),
    ("POST", rf"(?P<parent>{_PLACE})/services", "services.create", {"serviceId", "validateOnly"}),
    ("GET", rf"(?P<name>{_PLACE}/services/[^/]+)", "services.get", set()),
    (
        "PATCH",
        rf"(?P<name>{_PLACE}/services/[^/]+)",
        "services.patch",
        {"allowMissing", "forceNewRevision", "updateMask", "validateOnly"},
    ),
    ("DELETE", rf"(?P<name>{_PLACE}/services/[^/]+)", "services.delete", {"etag", "validateOnly"}),
    (
        "GET",
        rf"(?P<parent>{_PLACE}/services/[^/]+)/revisions",
        "revisions.list",
        {"pageSize", "pageToken", "showDeleted"},
    ),
    ("GET", rf"(?P<name>{_PLACE}/services/[^/]+/revisions/[^/]+)", "revisions.get", set()),
    ("DELETE", rf"(?P<name>{_PLACE}/services/[^/]+/revisions/[^/]+)", "revisions.delete", {"etag", "validateOnly"}),
    ("GET", rf"(?P<name>{_PLACE})/operations", "operations.list", {"filter", "pageSize", "pageToken"}),
    ("GET", rf"(?P<name>{_PLACE}/operations/[^/]+)", "operations.get", set()),
    ("POST", rf"(?P<name>{_PLACE}/operations/[^/]+):wait", "operations.wait", set()),
)
_COMMON = {"$alt", "alt", "fields", "key", "prettyPrint", "quotaUser", "$.xgafv"}


def route(method: str, path: str) -> tuple[str, Json, set[str]] | None:
    """The call that a request makes: (name, path parameters, query parameters it may have)."""
    for verb, pattern, name, query in _ROUTES:
        if verb == method and (found := re.fullmatch(f"/v2/{pattern}", path)):
            return name, found.groupdict(), query
    return None


def _describe(scope: Scope, body: bytes) -> tuple[str, bool]:
    writes = scope["method"] != "GET" and not scope["path"].endswith(":wait")
    return f"{scope['method']} {scope['path']}", writes


def _error_body(status: int, code: str | None = None, message: str = "") -> tuple[bytes, dict[str, str]]:
    code = code or {400: "INVALID_ARGUMENT", 500: "INTERNAL", 429: "RESOURCE_EXHAUSTED"}.get(status, "UNKNOWN")
    error = {"code": status, "message": message or f"{code.replace('_', ' ').capitalize()}.", "status": code}
    return json.dumps({"error": error}).encode(), {}


@cache
def _key() -> tuple[str, str]:
    """An RSA key pair in PEM, made once per process."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


class GcpCloudRunStandIn:
    """Cloud Run on two loopback ports.

    :param grpc_port: 0 takes a free one.
    :param secret: id of the service account's key, which every call has to be signed with; "" accepts anonymous
        calls, and then gRPC is plain text.
    :param smoke_status: what tagged revisions answer.
    """

    kind = KIND

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        grpc_port: int = 0,
        ca: trustme.CA | None = None,
        secret: str = "sandbox-secret",
        smoke_status: int = 200,
    ) -> None:
        self.world, self.secret, self.smoke_status = world, secret, smoke_status
        faults = Faults(self._app, world, KIND, describe=_describe, error_body=_error_body)
        self._server = Server(faults, port=port)
        self.url = self._server.url
        self.run = CloudRun(world, f"{self.url}/tagged")
        tls = None
        if secret:
            import trustme

            authority = ca or trustme.CA()
            issued = authority.issue_cert("127.0.0.1", "localhost")
            chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            tls = (chain, issued.private_key_pem.bytes())
            self._ca = authority.cert_pem.bytes().decode()
        self._grpc = GrpcServer(self.run, self._allowed, port=grpc_port, tls=tls)
        self.grpc_url = self._grpc.url

    def start(self) -> None:
        """Serve on loopback."""
        self._server.start()
        self._grpc.start()

    def stop(self) -> None:
        """Stop serving."""
        self._grpc.stop()
        self._server.stop()

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection that leads here."""
        extra: Json = {"project": PROJECT, "api_endpoint": self.url, "grpc_endpoint": self.grpc_url}
        if not self.secret:
            return {"conn_type": "google_cloud_platform", "extra": extra | {"is_anonymous": True}}
        key = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": self.secret,
            "private_key": _key()[0],
            "client_email": ACCOUNT,
            "client_id": "100000000000000000001",
            "token_uri": f"{self.url}/token",
            # Not googleapis.com: for that one, google-auth looks up the account's region at Google in the background.
            "universe_domain": UNIVERSE,
        }
        return {"conn_type": "google_cloud_platform", "extra": extra | {"keyfile_dict": key, "grpc_ca": self._ca}}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of a target on this service, without ``conn_id``."""
        return {"platform": KIND, "project": PROJECT, "location": LOCATION, "service": resource}

    def _path(self, resource: str) -> str:
        return f"projects/{PROJECT}/locations/{LOCATION}/services/{resource}"

    def seed(self, resource: str, image: str | None) -> None:
        """Create the service, at once, serving this image; None: it does not exist."""
        path = self._path(resource)
        with self.run.lock:
            self.run.services.pop(path, None)
            if image is not None:
                self.run.services[path] = Service(path, {}, self.world.now(), f"{self.run.tagged_url}/{resource}")
                self.meddle(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else deploys this image by hand, at once, with the traffic on "latest"."""
        with self.run.lock:
            service = self.run.services[self._path(resource)]
            old = service.spec.get("template", {"containers": [{"name": f"{resource}-1"}]})
            containers = [{**old["containers"][0], "image": image}, *old["containers"][1:]]
            template = {k: v for k, v in old.items() if k != "revision"} | {"containers": containers}
            spec = {**service.spec, "template": template, "traffic": [{"type": LATEST, "percent": 100}]}
            self.run.write(service, spec, course=Course("succeeds", 0), by_api=False)

    def live(self, resource: str) -> Live:
        """What the service really serves."""
        with self.run.lock:
            service = self.run.services.get(self._path(resource))
            if service is None or service.deleted is not None:
                return Live(None, None, settled=service is None)
            service.settle(self.world.now())
            shares = {service.resolve(t): t.get("percent", 0) for t in service.serving}
            if not shares:
                return Live(None, None, settled=service.rollout is None)
            revision = max(shares, key=lambda name: shares[name])
            return Live(service.revisions[revision].image, revision, settled=service.rollout is None)

    def revisions(self, resource: str) -> list[str]:
        """Every revision that API calls created for it, oldest first."""
        with self.run.lock:
            service = self.run.services.get(self._path(resource))
            return [r.name for r in service.revisions.values() if r.by_api] if service else []

    # --- REST

    def _allowed(self, authorization: str) -> bool:
        if not self.secret:
            return True
        from google.auth import jwt
        from google.auth.exceptions import GoogleAuthError

        scheme, _, token = authorization.partition(" ")
        try:
            claims: Json = jwt.decode(token, certs={self.secret: _key()[1]})  # type: ignore[no-untyped-call]
        except (ValueError, GoogleAuthError):
            return False
        return scheme == "Bearer" and claims["iss"] == ACCOUNT

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        if scope["path"].startswith("/tagged/"):
            await self._answer(send, self.smoke_status, b"ok", "text/plain")
            return
        try:
            answer = self._rest(scope, message.get("body", b""))
        except ApiError as error:
            body, _ = _error_body(HTTP_STATUS[error.code], error.code, error.message)
            await self._answer(send, HTTP_STATUS[error.code], body)
        else:
            await self._answer(send, 200, json.dumps(answer).encode())

    def _rest(self, scope: Scope, body: bytes) -> Json:
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        if not self._allowed(headers.get("authorization", "")):
            raise ApiError("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        found = route(scope["method"], scope["path"])
        if found is None:
            raise ApiError("NOT_FOUND", f"no method {scope['method']} {scope['path']}")
        name, params, known = found
        query = dict(parse_qsl(scope["query_string"].decode()))
        for key in query.keys() - known - _COMMON:
            raise ApiError("INVALID_ARGUMENT", f'Unknown name "{key}": Cannot bind query parameter.')
        params |= query
        if name in ("services.create", "services.patch"):
            params["service"] = self._parse(body)
        answer = self.run.call(name, params)
        numeric = "enum-encoding=int" in query.get("$alt", "")
        return self._numbered(name, answer) if numeric else answer

    @staticmethod
    def _parse(body: bytes) -> Json:
        """A Service from its JSON form, enums by name; an unknown key or enum value is refused, as there."""
        from google.cloud import run_v2
        from google.protobuf.json_format import MessageToDict, Parse, ParseError

        try:
            parsed: Json = MessageToDict(Parse(body, run_v2.Service.pb()()))
        except (ParseError, UnicodeDecodeError) as error:
            raise ApiError("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
        return parsed

    @staticmethod
    def _numbered(name: str, answer: Json) -> Json:
        """The answer with enums as numbers, which the SDK asks for over REST."""
        from google.protobuf.json_format import MessageToDict, ParseDict

        kinds = {call: message for call, _, message in messages().values()}
        if name not in kinds:
            return answer
        numbered: Json = MessageToDict(ParseDict(answer, kinds[name]()), use_integers_for_enums=True)
        return numbered

    @staticmethod
    async def _answer(send: Send, status: int, body: bytes, kind: str = "application/json") -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
