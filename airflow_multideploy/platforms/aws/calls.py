"""Calls to AWS for the platforms on it: the same steps on boto3 and on aiobotocore, and one mapping of errors.

A platform says what to call as a generator (`Steps`) that yields operations and receives answers; whether that happens
in a worker or in the triggerer is decided here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.aws import THROTTLED, _seconds
from airflow_multideploy.clients.connections import AWS, existing, fitting, missing_extra, refuse_plain_http
from airflow_multideploy.errors import MultideployError, PlatformError
from airflow_multideploy.release.contract import Platform

Json = dict[str, Any]
T = TypeVar("T")
Steps = Generator[tuple[str, Json], Json, T]
"""Calls to make, one after the other, and a result. A refused call is raised where it was yielded."""


class AwsConfig(TargetConfig):
    """What every target on AWS has.

    :param region: None takes the Connection's.
    """

    region: Annotated[str, Field(min_length=1)] | None = None


C = TypeVar("C", bound=AwsConfig)


class AwsPlatform(Platform[C]):
    """Base of the platforms on AWS. Credentials, region and endpoint come from a Connection of type ``aws``."""

    client_type: ClassVar[str]
    answers: ClassVar[Mapping[str, str]]
    """Per operation the member without which an answer is none: botocore reads a body that is no JSON as empty."""

    def _run(self, steps: Steps[T]) -> T:
        """Make the calls here and now."""
        from airflow.sdk import BaseHook

        clients: dict[str, Any] = {}
        with ExitStack() as stack:

            def client(service: str) -> Any:
                with self._errors(None), existing(self.config.conn_id, self.error):
                    made = self._hook(BaseHook.get_connection(self.config.conn_id), service).get_client_type()
                clients[service] = stack.enter_context(closing(made))
                refuse_plain_http(made.meta.endpoint_url, target=self.name)
                return made

            client(self.client_type)
            stack.enter_context(self.understanding())
            try:
                call = next(steps)
                while True:
                    service, operation = self._called(call[0])
                    asked = clients.get(service) or client(service)
                    try:
                        with self._errors(call[0]):
                            answer = self._answer(call[0], getattr(asked, operation)(**call[1]))
                    except PlatformError as error:
                        call = steps.throw(error)
                    else:
                        call = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def _arun(self, steps: Steps[T]) -> T:
        """Make the calls without blocking the event loop."""
        from airflow.sdk import BaseHook

        clients: dict[str, Any] = {}
        async with AsyncExitStack() as stack:

            async def client(service: str) -> Any:
                with self._errors(None), existing(self.config.conn_id, self.error):
                    hook = self._hook(await BaseHook.aget_connection(self.config.conn_id), service)
                    made = clients[service] = await stack.enter_async_context(await hook.get_async_conn())
                refuse_plain_http(made.meta.endpoint_url, target=self.name)
                return made

            await client(self.client_type)
            stack.enter_context(self.understanding())
            try:
                call = next(steps)
                while True:
                    service, operation = self._called(call[0])
                    asked = clients.get(service) or await client(service)
                    try:
                        with self._errors(call[0]):
                            answer = self._answer(call[0], await getattr(asked, operation)(**call[1]))
                    except PlatformError as error:
                        call = steps.throw(error)
                    else:
                        call = steps.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def _called(self, call: str) -> tuple[str, str]:
        """Service and operation of a call: ``logs:get_log_events`` is a call to another service than its own."""
        service, _, operation = call.rpartition(":")
        return service or self.client_type, operation

    def _hook(self, connection: Any, service: str) -> Any:
        """The provider's hook for this Connection: no retries of its own, 30 s per call."""
        try:
            from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
            from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
            from botocore.config import Config

            if find_spec("aiobotocore") is None:  # the triggerer's: told before anything is written
                raise ModuleNotFoundError(name="aiobotocore")
        except ImportError as error:
            raise missing_extra("aws", error) from error
        fitting(connection, AWS, self.error)
        limits = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 1})

        class Hook(AwsBaseHook):
            def get_session(self, *arguments: Any, **named: Any) -> Any:
                made = super().get_session(*arguments, **named)
                getattr(made, "_session", made).register_component("data_loader", _models())
                return made

        hook = Hook(client_type=service)
        # Given, not looked up by the hook: that one takes the machine's own credentials when the Connection is missing.
        wrapper = AwsConnectionWrapper(conn=connection, region_name=self.config.region)
        wrapper.botocore_config = (wrapper.botocore_config or Config()).merge(limits)
        hook.conn_config = wrapper
        refuse_plain_http(wrapper.get_service_endpoint_url("sts", sts_connection_assume=True) or "", target=self.name)
        return hook

    def _answer(self, operation: str, answer: Json) -> Json:
        if self.answers[operation] not in answer:
            raise self.error(f"{self._what(operation)}: the answer is no document of the API", retryable=True)
        return answer

    @contextmanager
    def _errors(self, operation: str | None) -> Iterator[None]:
        """Maps what botocore raises in an operation, or (None) what making a client from the Connection raises.

        No message repeats a credential: botocore's own name hosts, parameters and key ids at most.
        """
        try:
            from airflow.sdk.exceptions import AirflowException
            from botocore.exceptions import (
                BotoCoreError,
                ClientError,
                ConnectionError,
                HTTPClientError,
                ParamValidationError,
                SSLError,
            )
            from botocore.parsers import ResponseParserError
        except ImportError as error:
            raise missing_extra("aws", error) from error
        what = self._what(operation) if operation else f"AWS Connection {self.config.conn_id!r}"
        # A role or region that does not fit is the hook's ValueError or NotImplementedError.
        unfit = (AirflowException, NotImplementedError, ValueError) if operation is None else ()
        try:
            yield
        except MultideployError:
            raise
        except ImportError as error:
            raise missing_extra("aws", error) from error
        except ClientError as error:
            code, words = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
            meta = error.response.get("ResponseMetadata", {})
            status = int(meta.get("HTTPStatusCode", 0))
            raise self.error(
                f"{what} refused: {code}: {words}",
                retryable=code in THROTTLED or status == 429 or status >= 500,
                retry_after=_seconds(meta.get("HTTPHeaders", {}).get("retry-after")),
            ) from error
        except (ConnectionError, HTTPClientError, ResponseParserError) as error:
            retryable = not isinstance(error, SSLError)
            raise self.error(f"{what}: no usable answer: {error}", retryable=retryable) from error
        except ParamValidationError as error:
            # The values may be anybody's: what AWS said of a task definition, say, which we hand back to it.
            found = [line.partition(", value: ")[0] for line in str(error).splitlines()]
            raise self.error(f"{what}: {' '.join(found)}") from None
        except (BotoCoreError, *unfit) as error:
            raise self.error(f"{what}: {error}") from error

    def _what(self, operation: str) -> str:
        service, name = self._called(operation)
        return f"{service.upper()} {''.join(word.capitalize() for word in name.split('_'))}"


@cache
def _models() -> Any:
    """botocore's loader of its service models, shared: each session has one, and reading the models takes longer than a
    call; a triggerer that looks at 200 targets would do nothing else."""
    from botocore.loaders import create_loader

    return create_loader()
