"""The Cloud Run stand-in over gRPC: the same calls, call log and call faults as over REST.

A fault is what the wire of gRPC has for it: ``500`` is INTERNAL, ``429`` RESOURCE_EXHAUSTED with ``RetryInfo``,
``reset`` and ``lost`` UNAVAILABLE (before and after the effect; the connection itself stays up), ``malformed`` bytes
that are no message. The server is grpc's own, with threads: an event loop of its own beside the client's in one
process is what ``grpc.aio`` does not take well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from airflow_multideploy.sandbox._cloud_run_calls import WRITES, CloudRun
from airflow_multideploy.sandbox._cloud_run_state import KIND, ApiError, Json
from airflow_multideploy.sandbox.world import Call, CallFault

RUN, OPERATIONS = "google.cloud.run.v2", "google.longrunning.Operations"
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}
"""Canonical codes by name, and their HTTP status (google/rpc/code.proto)."""


def messages() -> dict[str, tuple[str, Any, Any]]:
    """By full gRPC method: the call, its request's and its answer's message class (the SDK's own)."""
    from google.cloud import run_v2
    from google.longrunning import operations_pb2

    operation = operations_pb2.Operation
    service, revision = run_v2.Service.pb(), run_v2.Revision.pb()
    services, revisions = f"/{RUN}.Services", f"/{RUN}.Revisions"
    return {
        f"{services}/GetService": ("services.get", run_v2.GetServiceRequest.pb(), service),
        f"{services}/ListServices": (
            "services.list",
            run_v2.ListServicesRequest.pb(),
            run_v2.ListServicesResponse.pb(),
        ),
        f"{services}/CreateService": ("services.create", run_v2.CreateServiceRequest.pb(), operation),
        f"{services}/UpdateService": ("services.patch", run_v2.UpdateServiceRequest.pb(), operation),
        f"{services}/DeleteService": ("services.delete", run_v2.DeleteServiceRequest.pb(), operation),
        f"{revisions}/GetRevision": ("revisions.get", run_v2.GetRevisionRequest.pb(), revision),
        f"{revisions}/ListRevisions": (
            "revisions.list",
            run_v2.ListRevisionsRequest.pb(),
            run_v2.ListRevisionsResponse.pb(),
        ),
        f"{revisions}/DeleteRevision": ("revisions.delete", run_v2.DeleteRevisionRequest.pb(), operation),
        f"/{OPERATIONS}/GetOperation": ("operations.get", operations_pb2.GetOperationRequest, operation),
        f"/{OPERATIONS}/WaitOperation": ("operations.wait", operations_pb2.WaitOperationRequest, operation),
    }


def _hold(fault: CallFault) -> None:
    for pause in fault.hold():
        time.sleep(pause)


class GrpcServer:
    """The calls on a loopback port.

    :param allowed: whether an Authorization header's value is good.
    :param tls: (certificate chain, key) in PEM, or None for plain text.
    """

    def __init__(
        self, run: CloudRun, allowed: Callable[[str], bool], *, port: int = 0, tls: tuple[bytes, bytes] | None = None
    ) -> None:
        import grpc

        self.run, self.allowed, self.methods = run, allowed, messages()
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="sandbox:grpc"))
        self._server.add_generic_rpc_handlers((self._handler(),))
        where = f"127.0.0.1:{port}"
        if tls is None:
            self.port: int = self._server.add_insecure_port(where)
        else:
            credentials = grpc.ssl_server_credentials([(tls[1], tls[0])])
            self.port = self._server.add_secure_port(where, credentials)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve."""
        self._server.start()

    def stop(self) -> None:
        """Stop serving, at once."""
        self._server.stop(None).wait(10)

    def _handler(self) -> Any:
        import grpc

        owner = self

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:
                if details.method not in owner.methods:
                    return None  # grpc answers UNIMPLEMENTED
                method = details.method

                def answer(request: bytes, context: Any) -> bytes:
                    return owner.answer(method, request, context)

                return grpc.unary_unary_rpc_method_handler(answer)

        return Handler()

    def answer(self, method: str, request: bytes, context: Any) -> bytes:
        """One call: log, fault, credentials, then the call itself."""
        name, request_type, answer_type = self.methods[method]
        world = self.run.world
        service, _, short = method.strip("/").partition("/")
        operation = f"{short} /{service}"
        fault = world.call_fault(KIND, operation)
        call = world.record(
            Call(world.now(), KIND, operation, name in WRITES, fault=None if fault is None else fault.answer)
        )
        if fault is not None and fault.answer == "held":
            _hold(fault)
        if fault is not None and (fault.dropped or fault.answer not in ("lost", "held", "held_after")):
            return self._fault(fault, call, context)
        try:
            headers = dict(context.invocation_metadata())
            if not self.allowed(headers.get("authorization", "")):
                raise ApiError("UNAUTHENTICATED", "Request had invalid authentication credentials.")
            answer = self._call(name, request_type, answer_type, request)
        except ApiError as error:
            call.status = HTTP_STATUS[error.code]
            self._abort(context, error.code, error.message)
        call.status = 200
        if fault is not None and fault.answer == "held_after":
            _hold(fault)
        if fault is not None and fault.answer == "lost":
            self._abort(context, "UNAVAILABLE", "Socket closed")
        return answer

    def _call(self, name: str, request_type: Any, answer_type: Any, request: bytes) -> bytes:
        from google.protobuf.json_format import MessageToDict, ParseDict

        params: Json = MessageToDict(request_type.FromString(request))
        raw: bytes = ParseDict(self.run.call(name, params), answer_type()).SerializeToString()
        return raw

    def _fault(self, fault: CallFault, call: Call, context: Any) -> bytes:
        if fault.answer == "malformed":
            call.status = 200
            return b"<html>Bad gateway</html>"
        if fault.answer == "hang":
            time.sleep(fault.seconds)
        codes = {"400": "INVALID_ARGUMENT", "500": "INTERNAL", "429": "RESOURCE_EXHAUSTED"}
        code = codes.get(fault.answer, "UNAVAILABLE")
        call.status = HTTP_STATUS[code] if fault.answer in codes else None
        said = {"INTERNAL": "Internal error.", "RESOURCE_EXHAUSTED": "Quota exceeded.", "UNAVAILABLE": "Socket closed"}
        self._abort(
            context, code, said.get(code, "Not now."), fault.retry_after if code == "RESOURCE_EXHAUSTED" else None
        )

    @staticmethod
    def _abort(context: Any, code: str, message: str, retry_after: float | None = None) -> NoReturn:
        from google.protobuf.any_pb2 import Any as AnyMessage
        from google.protobuf.duration_pb2 import Duration
        from google.rpc import code_pb2, error_details_pb2, status_pb2
        from grpc_status import rpc_status  # type: ignore[import-untyped]

        status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
        if retry_after is not None:
            detail = AnyMessage()
            detail.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=int(retry_after))))
            status.details.append(detail)
        context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort raises")
