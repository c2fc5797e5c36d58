"""Everything that passes between Google's SDK and the Cloud Run stand-in, against Google's own contract.

REST against the discovery document ``run.v2`` (methods, parameters, schemas, enum values, no unknown key, nothing
read-only in a request); gRPC against the SDK's protos (no unknown field), and in its JSON form against the same
schemas. A contract checks shape, not behaviour.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, Observation, Release
from airflow_multideploy.sandbox import _cloud_run_grpc
from airflow_multideploy.sandbox.gcp_cloud_run import LOCATION, PROJECT, GcpCloudRunStandIn
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World

Json = dict[str, Any]
OLD, NEW = "registry.example.com/shop:1", "registry.example.com/shop:2"
PARENT = f"projects/{PROJECT}/locations/{LOCATION}"
SERVICE = f"{PARENT}/services/shop"
TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "number": (int, float), "integer": int}
SYSTEM_PARAMETERS = {"$alt"}  # https://cloud.google.com/apis/docs/system-parameters; the document lists "alt" only


class Violation(AssertionError):
    """Something that the contract does not allow."""


def _methods(resource: Json) -> Iterator[Json]:
    yield from resource.get("methods", {}).values()
    for child in resource.get("resources", {}).values():
        yield from _methods(child)


class Checker:
    """Google's discovery document as a judge."""

    def __init__(self) -> None:
        import googleapiclient.discovery_cache

        path = Path(googleapiclient.discovery_cache.__file__).parent / "documents" / "run.v2.json"
        self.document: Json = json.loads(path.read_text())
        self.schemas: Json = self.document["schemas"]
        self.methods = list(_methods({"resources": self.document["resources"]}))

    def method(self, verb: str, path: str) -> Json:
        """The method of a request.

        :raises Violation: there is none.
        """
        for method in self.methods:
            pattern = re.sub(r"\{[^}]+\}", "[^/:]+", method["flatPath"])
            if method["httpMethod"] == verb and re.fullmatch(f"/{pattern}", path):
                return method
        raise Violation(f"no method {verb} {path}")

    def request(self, verb: str, path: str, query: dict[str, str], body: Any) -> Json:
        """Judge a request; returns its method."""
        method = self.method(verb, path)
        known = {n for n, p in method["parameters"].items() if p["location"] == "query"}
        for name, value in query.items():
            if name not in known | set(self.document["parameters"]) | SYSTEM_PARAMETERS:
                raise Violation(f"{method['id']}: unknown query parameter {name}")
            if name in known:
                self.scalar(method["parameters"][name], value, name, text=True)
        if (body is not None) != ("request" in method):
            raise Violation(f"{method['id']}: body {'without' if 'request' not in method else 'missing for'} a schema")
        if body is not None:
            self.value(method["request"], body, method["id"], request=True, numeric=True)
        return method

    def value(self, schema: Json, value: Any, at: str, *, request: bool = False, numeric: bool = False) -> None:
        """Judge a value. With ``numeric`` an enum may be its number (``$alt=json;enum-encoding=int``)."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]]
        kind = schema.get("type")
        if kind == "any":
            return
        if isinstance(value, int) and not isinstance(value, bool) and "enum" in schema and numeric:
            if value not in range(len(schema["enum"]) + 40):
                raise Violation(f"{at}: {value} is no number of an enum")
            return
        if not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool)):
            raise Violation(f"{at}: expected {kind}, got {value!r}")
        if kind == "array":
            for index, item in enumerate(value):
                self.value(schema["items"], item, f"{at}[{index}]", request=request, numeric=numeric)
        elif kind == "object":
            self.object(schema, value, at, request=request, numeric=numeric)
        else:
            self.scalar(schema, value, at)

    def object(self, schema: Json, value: Json, at: str, *, request: bool, numeric: bool) -> None:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        if "@type" in value:  # google.protobuf.Any: judged by what it says it is
            name = value["@type"].rsplit(".", 1)[-1]
            typed = {"$ref": f"GoogleCloudRunV2{name}"}
            inner = {k: v for k, v in value.items() if k != "@type"}
            self.value(typed, inner, f"{at}<{name}>", numeric=numeric)
            return
        for key, item in value.items():
            if key in properties:
                if request and properties[key].get("readOnly"):
                    raise Violation(f"{at}.{key}: read-only, in a request")
                self.value(properties[key], item, f"{at}.{key}", request=request, numeric=numeric)
            elif more is not None:
                self.value(more, item, f"{at}.{key}", request=request, numeric=numeric)
            else:
                raise Violation(f"{at}.{key}: unknown")

    def scalar(self, schema: Json, value: Any, at: str, *, text: bool = False) -> None:
        if "enum" in schema and value not in schema["enum"]:
            raise Violation(f"{at}: {value!r} is none of {schema['enum']}")
        form = schema.get("format", "")
        if form == "int64" and not re.fullmatch(r"-?\d+", str(value)):
            raise Violation(f"{at}: {value!r} is no int64")
        if form == "google-datetime":
            datetime.fromisoformat(value)
        if form == "google-duration" and not re.fullmatch(r"\d+(\.\d+)?s", value):
            raise Violation(f"{at}: {value!r} is no duration")
        if form == "google-fieldmask" and not re.fullmatch(r"[a-zA-Z.]+(,[a-zA-Z.]+)*", value):
            raise Violation(f"{at}: {value!r} is no field mask in JSON form")
        if text and schema["type"] == "boolean" and value not in ("true", "false"):
            raise Violation(f"{at}: {value!r} is no boolean")

    def message(self, message: Any, schema: str | None) -> None:
        """Judge a protobuf message: no unknown field, and its JSON form by the schema."""
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.unknown_fields import UnknownFieldSet

        if len(UnknownFieldSet(message)):
            raise Violation(f"{message.DESCRIPTOR.full_name}: unknown fields")
        if schema is not None:
            self.value({"$ref": schema}, MessageToDict(message), message.DESCRIPTOR.full_name)


ERROR = {"code", "message", "status"}
"""What an error body holds: https://cloud.google.com/apis/design/errors#http_mapping."""


class Recorded(GcpCloudRunStandIn):
    """The stand-in, every request and response of it judged as it passes."""

    def __init__(self, world: World, checker: Checker) -> None:
        super().__init__(world)
        self.checker = checker
        self.seen: set[str] = set()
        self.errors: set[int] = set()
        self.violations: list[Exception] = []
        answer = self._grpc.answer

        def judged(method: str, request: bytes, context: Any) -> bytes:
            return self._guard(lambda: self._grpc_call(method, request, answer(method, request, context)))

        self._grpc.answer = judged  # type: ignore[method-assign]

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Violation, ValueError, KeyError) as error:
            self.violations.append(error)
            raise

    def _grpc_call(self, method: str, request: bytes, answer: bytes) -> bytes:
        _, request_type, answer_type = _cloud_run_grpc.messages()[method]
        self.checker.message(request_type.FromString(request), None)
        schema = {"Operation": "GoogleLongrunningOperation"}.get(
            answer_type.DESCRIPTOR.name, f"GoogleCloudRunV2{answer_type.DESCRIPTOR.name}"
        )
        self.checker.message(answer_type.FromString(answer), schema)
        self.seen.add(method)
        return answer

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body, status, raw = message.get("body", b""), 0, b""

        async def again() -> Any:
            return message

        async def keep(part: Any) -> None:
            nonlocal status, raw
            status, raw = part.get("status", status), raw + part.get("body", b"")
            await send(part)

        await super()._app(scope, again, keep)
        self._guard(lambda: self._rest_call(scope, body, status, raw))

    def _rest_call(self, scope: Any, body: bytes, status: int, raw: bytes) -> None:
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        method = self.checker.request(scope["method"], scope["path"], query, json.loads(body) if body else None)
        answer = json.loads(raw)
        if body and method["request"]["$ref"] == "GoogleCloudRunV2Service":
            self._by_name("GoogleCloudRunV2Service", json.loads(body), self._answer_type("x.services.get"))
        if status >= 400:
            if set(answer) != {"error"} or set(answer["error"]) != ERROR or answer["error"]["code"] != status:
                raise Violation(f"{method['id']}: no error body: {answer}")
            self.errors.add(status)
            return
        self.checker.value(method["response"], answer, method["id"], numeric="enum-encoding=int" in str(query))
        self._by_name(method["response"]["$ref"], answer, self._answer_type(method["id"]))
        self.seen.add(method["id"])

    def _by_name(self, schema: str, document: Json, message: Any) -> None:
        """Judge once more with enums by name, through the SDK's protos: these refuse unknown keys, and leave the number
        of an unknown enum value, which the schema then refuses."""
        from google.protobuf.json_format import MessageToDict, ParseDict

        self.checker.value({"$ref": schema}, MessageToDict(ParseDict(document, message())), schema)

    @staticmethod
    def _answer_type(method: str) -> Any:
        types = {name: message for name, _, message in _cloud_run_grpc.messages().values()}
        return next(message for name, message in types.items() if method.endswith(f".{name}"))


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker()


@pytest.fixture
def recorded(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    stand_in = Recorded(World(seconds=0.2), checker)
    stand_in.start()
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(stand_in.connection()))
    yield stand_in
    stand_in.stop()
    assert stand_in.violations == []


def platform(stand_in: Recorded, **changes: Any) -> Any:
    return adapter({**stand_in.target("shop"), "conn_id": "contract", **changes}, service="shop", target="t1")


def wait(stand_in: Recorded, handle: Handle) -> Observation:
    until = time.time() + 10
    while time.time() < until:
        seen: Observation = platform(stand_in).observe(handle)
        assert asyncio.run(platform(stand_in).aobserve(handle)) is not None
        if seen.ended:
            return seen
        time.sleep(0.05)
    raise AssertionError("no end")


def release(number: int) -> Release:
    return Release(service="shop", version=str(number), image=NEW, release_id=f"r{number}")


def test_deploys_failures_rollbacks_and_removal_keep_to_the_contract(recorded: Recorded) -> None:
    first = platform(recorded).deploy(release(1), platform(recorded).snapshot())  # creates
    assert wait(recorded, first).state == "healthy"
    before = platform(recorded).snapshot()
    recorded.world.rollout_faults.append(RolloutFault("gcp_cloud_run", "fails"))
    failing = platform(recorded, smoke_path="/").deploy(Release(**{**release(2).dump(), "image": OLD}), before)
    assert wait(recorded, failing).state == "failed"
    back = platform(recorded).rollback(release(2), before, failing)
    assert wait(recorded, back).state == "healthy"
    recorded.seed("shop", None)
    nothing = platform(recorded).snapshot()
    assert wait(recorded, platform(recorded).deploy(release(3), nothing)).state == "healthy"
    assert wait(recorded, platform(recorded).rollback(release(3), nothing, None)).state == "healthy"
    calls = ["get", "create", "patch", "delete"]
    expected = {f"run.projects.locations.services.{call}" for call in calls} | {
        "run.projects.locations.services.revisions.get",
        "/google.cloud.run.v2.Services/GetService",
    }
    assert recorded.seen == expected, "a call passed unseen, or an unexpected one was made"
    assert recorded.errors == {404}


def test_the_rest_of_the_api_keeps_to_the_contract(recorded: Recorded) -> None:
    """Calls that the adapter does not make, by the SDK alone, over both transports."""
    from google.cloud import run_v2
    from google.longrunning import operations_pb2

    api = platform(recorded)._api
    recorded.seed("shop", OLD)
    recorded.meddle("shop", NEW)
    for client in (api._services(), _over_grpc(api, run_v2.ServicesClient)):
        with client:
            assert [s.name for s in client.list_services(parent=PARENT)] == [SERVICE]
            image = f"{NEW}-{client.transport.kind}"
            service = run_v2.Service(name=SERVICE, template={"containers": [{"image": image}]})
            operation = client.update_service(service=service, update_mask={"paths": ["template"]}).operation
            client.wait_operation(operations_pb2.WaitOperationRequest(name=operation.name))  # the SDK drops its answer
            asked = operations_pb2.GetOperationRequest(name=operation.name)
            while not (ended := client.get_operation(asked)).done:
                time.sleep(0.05)
            assert ended.response.type_url.endswith("google.cloud.run.v2.Service")
    for revisions in (api._revisions(), _over_grpc(api, run_v2.RevisionsClient)):
        with revisions:
            names = [r.name for r in revisions.list_revisions(parent=SERVICE)]
            revisions.delete_revision(name=names[-1])
            with pytest.raises(Exception, match="in use"):
                revisions.delete_revision(name=names[0])
    assert len(recorded.seen) == 12
    assert recorded.errors == {400}


def _over_grpc(api: Any, cls: Any) -> Any:
    extras, credentials, universe = api._access
    return api._build(cls, "grpc", extras, credentials, universe)


def test_error_bodies_are_googles(recorded: Recorded) -> None:
    import requests

    url = f"{recorded.url}/v2/{SERVICE}"
    assert requests.get(url, timeout=5).json()["error"] == {
        "code": 401,
        "message": "Request had invalid authentication credentials.",
        "status": "UNAUTHENTICATED",
    }
    for answer, status in (("500", "INTERNAL"), ("429", "RESOURCE_EXHAUSTED")):
        recorded.world.call_faults.append(CallFault("gcp_cloud_run", answer))  # type: ignore[arg-type]
        error = requests.get(url, timeout=5).json()["error"]
        assert set(error) == ERROR
        assert (error["code"], error["status"]) == (int(answer), status)


def _good() -> Json:
    return {
        "name": SERVICE,
        "generation": "3",
        "createTime": "2026-01-02T03:04:05.000006Z",
        "template": {"revision": "shop-r1", "containers": [{"image": NEW}], "timeout": "300s"},
        "traffic": [{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": "shop-r1", "percent": 100}],
        "terminalCondition": {"type": "Ready", "state": "CONDITION_SUCCEEDED"},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"madeUp": 1},
        {"generation": 3},
        {"generation": "three"},
        {"createTime": "yesterday"},
        {"template": {"containers": [{"image": NEW, "imagePullPolicy": "Always"}]}},
        {"template": {"timeout": "5 minutes"}},
        {"traffic": [{"type": "LATEST", "percent": 100}]},
        {"traffic": [{"percent": "100"}]},
        {"terminalCondition": {"state": "READY"}},
    ],
)
def test_a_bad_answer_is_refused(checker: Checker, change: Json) -> None:
    checker.value({"$ref": "GoogleCloudRunV2Service"}, _good(), "good")
    with pytest.raises((Violation, ValueError)):
        checker.value({"$ref": "GoogleCloudRunV2Service"}, _good() | change, "bad")


@pytest.mark.parametrize(
    ("verb", "path", "query", "body"),
    [
        ("PUT", f"/v2/{SERVICE}", {}, {}),
        ("PATCH", f"/v1/{SERVICE}", {}, {}),
        ("PATCH", f"/v2/{SERVICE}", {"mask": "traffic"}, {}),
        ("PATCH", f"/v2/{SERVICE}", {"updateMask": "template.revision, traffic"}, {}),
        ("PATCH", f"/v2/{SERVICE}", {"allowMissing": "yes"}, {}),
        ("PATCH", f"/v2/{SERVICE}", {}, {"reconciling": True}),
        ("PATCH", f"/v2/{SERVICE}", {}, None),
        ("GET", f"/v2/{SERVICE}", {}, {}),
    ],
)
def test_a_bad_request_is_refused(checker: Checker, verb: str, path: str, query: Any, body: Any) -> None:
    checker.request("PATCH", f"/v2/{SERVICE}", {"updateMask": "template.revision,traffic"}, {"etag": "x"})
    with pytest.raises(Violation):
        checker.request(verb, path, query, body)


def test_a_bad_message_is_refused(checker: Checker) -> None:
    from google.cloud import run_v2

    message = run_v2.Service.pb().FromString(b"\xf2\x7f\x03abc")  # field 2046
    with pytest.raises(Violation, match="unknown fields"):
        checker.message(message, "GoogleCloudRunV2Service")
