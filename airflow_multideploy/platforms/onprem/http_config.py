"""What a target on the http platform is told in the catalog; the least is its connection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.http_messages import HeaderName, LookPath, Reader, Request, Source, StatusPath, Text
from airflow_multideploy.strict import Model, Seconds

Words = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


def _address(text: str) -> str:
    if "://" not in text:
        raise ValueError("expected a whole http(s) address")
    return text


class Status(Model):
    """Where the state of an operation is.

    :param path: ``/operations/${operation}``; ``${operation}`` alone when the API gives a whole address or path;
        without that name: one state for the whole target.
    :param state: where in the answer; a plain string is a JSON path.
    :param succeeded: states that mean done.
    :param failed: states that mean it will not get there; all others: under way.
    :param reason: where the API says why.
    :param progress: where it says how far it is, 0 to 1.
    """

    path: StatusPath
    state: Source
    succeeded: Words = ("succeeded",)
    failed: Words = ("failed",)
    reason: Source | None = None
    progress: Source | None = None

    @property
    def fixed(self) -> bool:
        """Whether it needs no operation's id."""
        return "operation" not in self.path


class Current(Model):
    """Where the API says what it was told to run, and the ETag that guards a write. 404: nothing was deployed yet.

    :param path: what is asked.
    :param image: where the image is.
    :param version: where the version is.
    :param release_id: where the id is that the deploy request left (``${release_id}``): how our own write is
        recognised after a lost answer.
    :param operation: where the id of the latest operation is.
    """

    path: LookPath
    image: Source | None = None
    version: Source | None = None
    release_id: Source | None = None
    operation: Source | None = None


class Version(Reader):
    """Where the live version is, and what it has to be.

    :param path: on the connection's host, or a whole address elsewhere, which gets no credentials.
    :param equals: the template that it has to equal: ``${version}``, ``${image}``, ``${digest}``, ``v${version}``.
    :param absent: statuses that mean that nothing serves, unless ``health`` answers 2xx; add 503 when a proxy says so
        before the first deploy.
    """

    path: LookPath
    equals: Text = "${version}"
    absent: Annotated[tuple[int, ...], Field(strict=False)] = (404, 410)


class Health(Model):
    """An address that answers 2xx when the application is well.

    :param path: on the connection's host, or a whole address elsewhere, which gets no credentials.
    """

    path: LookPath


class HttpConfig(TargetConfig):
    """A target behind a deploy API of one's own.

    :param deploy: the request that deploys.
    :param operation: where in its answer the operation's id is.
    :param status: where the operation's state is read.
    :param current: where the API tells what it was told.
    :param version: where the live version is read, and what it has to equal.
    :param health: what has to answer 2xx.
    :param rollback: the request that restores; default: ``deploy`` with the snapshot's values.
    :param remove: the request that takes down a first-ever deploy.
    :param etag: send ``If-Match`` when ``current`` gives an ETag (auto), insist on one (True), never (False).
    :param idempotency_header: carries the write's id, so that a retry is recognised; False: not sent.
    :param auth_header: sends the connection's password bare in this header (API keys).
    :param call_timeout: seconds that one call may take.
    :param console: address that the UI links to.
    """

    platform: Literal["http"]
    deploy: Request = Request(path="/deploy", form={"image": "${image}"})
    operation: Source | None = None
    status: Status | None = None
    current: Current | None = None
    version: Version | None = None
    health: Health | None = None
    rollback: Request | None = None
    remove: Request | None = None
    etag: Literal["auto"] | bool = "auto"
    idempotency_header: HeaderName | Literal[False] = "Idempotency-Key"
    auth_header: HeaderName | None = None
    call_timeout: Seconds = 30.0
    console: Annotated[LookPath, AfterValidator(_address)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> HttpConfig:
        known = self.operation or (self.current and self.current.operation)
        if self.status and not self.status.fixed and not known:
            raise ValueError("status.path names ${operation}: say in operation: where the deploy answer has its id")
        if self.etag is True and self.current is None:
            raise ValueError("etag: needs current: (where the ETag is read)")
        return self
