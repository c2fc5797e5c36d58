"""The wire of the stand-ins for AWS: signatures, the service's protocol, and botocore's model as the judge of it.

A stand-in names botocore's services and gives one function per operation: parameters in, document out, or `AwsError`.
Requests are read and answers are written by moto's protocol code, from the same model that the SDK speaks by. Every
exchange is kept, and `problems` says what in one of them the model does not know.

What is ours: which status and code a wrong signature has, and that an injected 429 has status 429 where AWS throttles
some APIs with 400 and the same code.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.loaders import JSONFileLoader, Loader
from botocore.model import ListShape, MapShape, Shape, StructureShape
from botocore.validate import ParamValidator
from moto.core.errors import COMMON_ERROR_CODES
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.serialize import get_serializer_class
from moto.core.utils import get_service_model
from werkzeug.datastructures import Headers, MultiDict

from airflow_multideploy.sandbox.server import Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import World

REGION, ACCESS_KEY, ACCOUNT = "eu-central-1", "sandbox-key", "123456789012"
Json = dict[str, Any]
Operation = Callable[[Json], Json]
COMMON_ERRORS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "MissingAuthenticationTokenException",
        "ThrottlingException",
        "Throttling",
        "ValidationException",
        "ValidationError",
        "InvalidParameterValue",
        "InternalFailure",
    }
)
"""Errors that every service knows and no model declares, as its page on common errors has them."""
COMMON_ERROR_CODES.extend(sorted(COMMON_ERRORS))  # moto warns of a code that neither it nor the model knows
_READS = ("Get", "List", "Describe", "Head", "DryRun", "Check")


class AwsError(Exception):
    """An error of an AWS API: its code decides the status, as in the model; 400 when that does not say."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


@dataclass
class Exchange:
    """One call as it passed: parameters and document, or the error's code."""

    service: str
    operation: str
    params: Json
    answer: Json = field(default_factory=dict)
    error: str | None = None


class AwsStandIn:
    """AWS on loopback over plain http; derive a class, and say which ``services`` and ``operations`` it has."""

    kind: ClassVar[str]
    services: ClassVar[tuple[str, ...]]
    unauthorized: ClassVar[tuple[str, str]] = ("UnrecognizedClientException", "InvalidSignatureException")
    """Error codes for an unknown key, and for a signature that does not fit."""
    injected: ClassVar[Mapping[int, str]] = {400: "ValidationException", 429: "ThrottlingException"}
    """Error codes of call faults; 500 is ``InternalFailure``."""
    statuses: ClassVar[Mapping[str, int]] = {"UnrecognizedClientException": 403, "InvalidSignatureException": 403}
    """Statuses of codes that the model does not have."""

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.secret = world, secret
        self.exchanges: list[Exchange] = []
        self.operations: dict[str, Operation] = {}
        self._lock = threading.RLock()
        app = Faults(self._app, world, self.kind, describe=self._describe, error_body=self._error_body)
        self._server = Server(app, port=port)
        self.url = self._server.url

    def start(self) -> None:
        """Serve on loopback."""
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    def connection(self) -> Json:
        """An Airflow Connection that leads here."""
        extra = {"region_name": REGION, "endpoint_url": self.url}
        return {"conn_type": "aws", "login": ACCESS_KEY, "password": self.secret, "extra": extra}

    def client(self, service: str | None = None) -> Any:
        """What an administrator of the account would use."""
        import boto3

        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": self.secret}
        return boto3.client(service or self.services[0], region_name=REGION, endpoint_url=self.url, **keys)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive()).get("body", b"")
        headers = Headers([(name.decode(), value.decode()) for name, value in scope["headers"]])
        with self._lock:
            status, kind, answer = self._answer(scope, headers, body)
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})

    def _answer(self, scope: Scope, headers: Headers, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        service, name, values = self._resolve(scope, headers, body)
        operation = get_service_model(service).operation_model(name)
        text = body.decode() if operation.service_model.protocol == "query" else scope["query_string"].decode()
        query = MultiDict(parse_qsl(text, keep_blank_values=True))
        request = {"values": query, "headers": headers, "body": body, "url_params": values}
        parser = PROTOCOL_PARSERS[operation.service_model.protocol](operation)
        params = parser.parse({**request, "method": scope["method"], "url_path": scope["path"]})
        params = {name: value for name, value in params.items() if value is not None and value != []}
        exchange = Exchange(service, name, params)
        self.exchanges.append(exchange)
        result: Json | AwsError
        try:
            self._authenticate(scope, headers, body)
            report = ParamValidator().validate(params, operation.input_shape)
            if report.has_errors():
                raise AwsError(self.injected[400], report.generate_report())
            result = exchange.answer = self.operations[name](params)
        except AwsError as error:
            result, exchange.error = error, error.code
        return self._written(operation, result)

    def _written(self, operation: Any, result: Json | AwsError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        model = operation.service_model
        written = get_serializer_class(model.service_name, model.protocol)(operation).serialize(result)
        status, body = written["status_code"], written["body"]
        if isinstance(result, AwsError):
            status = self.statuses.get(result.code, status)
        raw = [(name.encode(), str(value).encode()) for name, value in written["headers"].items()]
        return status, raw, body.encode() if isinstance(body, str) else body

    def _error_body(self, status: int) -> tuple[bytes, dict[str, str]]:
        """An injected fault in the service's own words."""
        model = get_service_model(self.services[0])
        code = self.injected.get(status, "InternalFailure")
        words = {400: "a value is not accepted", 429: "Rate exceeded"}.get(status, "internal failure")
        operation = model.operation_model(model.operation_names[0])
        _, headers, body = self._written(operation, AwsError(code, words))
        return body, {name.decode().lower(): value.decode() for name, value in headers}

    def _resolve(self, scope: Scope, headers: Headers, body: bytes) -> tuple[str, str, dict[str, str]]:
        """Service, operation and what the path says; the service is the one that the signature is for."""
        signed = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", headers.get("authorization", ""))
        service = signed.group(1) if signed and signed.group(1) in self.services else self.services[0]
        protocol = get_service_model(service).protocol
        if protocol == "json":
            return service, headers["x-amz-target"].rpartition(".")[2], {}
        if protocol == "query":
            return service, dict(parse_qsl(body.decode()))["Action"], {}
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        for name, method, pattern, wanted in _routes(service):
            if method != scope["method"] or name not in self.operations:
                continue
            found = re.fullmatch(pattern, scope["path"])
            if found and all(key in query and value in ("", query[key]) for key, value in wanted.items()):
                return service, name, {key: unquote(value) for key, value in found.groupdict().items()}
        raise LookupError(f"{scope['method']} {scope['path']}: no operation of {service} that this stand-in has")

    def _describe(self, scope: Scope, body: bytes) -> tuple[str, bool]:
        """The operation, as in ``UpdateService``."""
        headers = Headers([(name.decode(), value.decode()) for name, value in scope["headers"]])
        name = self.called(self._resolve(scope, headers, body)[1], body)
        return name, not name.startswith(_READS)

    def called(self, operation: str, body: bytes) -> str:
        """What the call log says of a call."""
        return operation

    def _authenticate(self, scope: Scope, headers: Headers, body: bytes) -> None:
        """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-signing-elements.html"""
        parts = dict(part.strip().split("=", 1) for part in headers["authorization"].partition(" ")[2].split(","))
        key, _, region, service, _ = parts["Credential"].split("/")
        unknown, unfit = self.unauthorized
        if key != ACCESS_KEY:
            raise AwsError(unknown, "The security token included in the request is invalid.")
        names = parts["SignedHeaders"].split(";")
        query = scope["query_string"].decode()
        url = self.url + scope["raw_path"].decode() + (f"?{query}" if query else "")
        request = AWSRequest(scope["method"], url, headers={name: headers.get(name, "") for name in names}, data=body)
        request.context["timestamp"] = headers["x-amz-date"]
        signer = S3SigV4Auth if service == "s3" else SigV4Auth
        auth = signer(Credentials(ACCESS_KEY, self.secret), service, region)
        expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        if expected != parts["Signature"]:
            raise AwsError(unfit, "The request signature we calculated does not match the signature you provided.")


@contextmanager
def models_read_once() -> Iterator[None]:
    """Sessions made in the block share what they read from botocore's data files: most of what a client costs."""
    get_service_model("s3")  # a copy of its own, as a client of S3 changes the paths in the one that it reads
    load_file, listed = JSONFileLoader.load_file, Loader.list_available_services
    read = cache(lambda path: load_file(JSONFileLoader(), path))
    services = cache(lambda type_name: listed(Loader(), type_name))
    JSONFileLoader.load_file = lambda self, path: read(path)
    Loader.list_available_services = lambda self, type_name: services(type_name)
    try:
        yield
    finally:
        JSONFileLoader.load_file, Loader.list_available_services = load_file, listed


@cache
def _routes(service: str) -> list[tuple[str, str, str, dict[str, str]]]:
    """Operation, method, path and constant parts of the query, the most particular first."""
    model, routes = get_service_model(service), []
    for name in model.operation_names:
        http = model.operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))
        pattern = re.sub(r"\\{(\w+)\\\+\\}", r"(?P<\1>.+)", pattern)
        wanted = dict(parse_qsl(query, keep_blank_values=True))
        routes.append((name, http["method"], pattern + "/?", wanted))
    return sorted(routes, key=lambda route: -len(route[3]))


def problems(exchange: Exchange) -> list[str]:
    """What in one exchange does not fit botocore's model: unknown or missing members, types, values, errors."""
    model = get_service_model(exchange.service)
    if exchange.operation not in model.operation_names:
        return [f"unknown operation {exchange.operation}"]
    operation = model.operation_model(exchange.operation)
    found = _misfits(operation.input_shape, exchange.params, f"{exchange.operation} request")
    if exchange.error is None:
        return found + _misfits(operation.output_shape, exchange.answer, f"{exchange.operation} answer")
    known = {shape.error_code for shape in operation.error_shapes} | {shape.name for shape in operation.error_shapes}
    if exchange.error not in known | COMMON_ERRORS:
        found.append(f"{exchange.operation}: {exchange.error} is no error of this operation")
    return found


def _misfits(shape: Shape | None, document: Any, where: str) -> list[str]:
    if shape is None:
        return [f"{where}: {document} where nothing is expected"] if document else []
    report = ParamValidator().validate(document, shape)
    return [f"{where}: {line}" for line in report.generate_report().splitlines()] + [
        f"{where}{line}" for line in (*_unknown(shape, document), *_enums(shape, document))
    ]


def _unknown(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """Members that the model does not have: botocore's validator looks for them in some structures only."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for name, member in value.items():
            if name not in shape.members:
                yield f"{path}.{name}: unknown"
            else:
                yield from _unknown(shape.members[name], member, f"{path}.{name}")
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for item in value:
            yield from _unknown(shape.member, item, f"{path}[]")


def _enums(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """Values that the model's enumerations do not know; botocore's validator does not look at them."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for name, member in value.items():
            if name in shape.members:
                yield from _enums(shape.members[name], member, f"{path}.{name}")
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for item in value:
            yield from _enums(shape.member, item, f"{path}[]")
    elif isinstance(shape, MapShape) and isinstance(value, dict):
        for item in value.values():
            yield from _enums(shape.value, item, f"{path}{{}}")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value!r} is none of {shape.enum}"
