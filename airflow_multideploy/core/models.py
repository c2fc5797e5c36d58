"""The service catalog: what people write in Variables or Git-kept files, validated strictly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    JsonValue,
    SerializeAsAny,
    field_validator,
)

from airflow_multideploy.core.checks import Verify
from airflow_multideploy.core.gate import Gate, Users
from airflow_multideploy.core.promotion import Promote, Requirement
from airflow_multideploy.core.strict import Model as Model  # noqa: PLC0414 - others take it from here
from airflow_multideploy.core.strict import Patience
from airflow_multideploy.core.strict import Seconds as Seconds  # noqa: PLC0414
from airflow_multideploy.core.windows import Schedule, Windows
from airflow_multideploy.core.words import SECRET
from airflow_multideploy.core.words import redact as redact  # noqa: PLC0414

VERSION_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
"""What a version may look like: what an image tag may look like (OCI distribution specification), nothing else."""

NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,39}$"
RESERVED_SERVICES = frozenset({"multideploy_reconcile", "multideploy_catalog"})
RESERVED_TARGETS = frozenset(
    {"plan", "build", "approve", "deploys_ended", "aggregate_status", "decide", "rollback", "finalize", "journal"}
)

_SECRET_KEY = re.compile(
    r"(password|passwd|secret|token|api[_-]?key|private[_-]?key|access[_-]?key|authorization)", re.I
)


def looks_secret(key: str, value: object) -> bool:
    """Whether a catalog entry looks like a secret, which belongs in a Connection."""
    if not isinstance(value, str) or not value:
        return False
    return _secret_value(value) or _secret_key(key)


@lru_cache(2048)  # a large catalog says the same again and again
def _secret_value(value: str) -> bool:
    return SECRET.search(value) is not None


@lru_cache(2048)
def _secret_key(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None and not key.endswith(("_id", "_name", "_path"))


def secret_paths(document: object, path: str = "", key: str = "") -> Iterator[str]:
    """Dotted paths of all values in a document that look like secrets."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from secret_paths(value, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from secret_paths(value, f"{path}[{index}]", key)
    elif looks_secret(key, document):
        yield path


Name = Annotated[str, Field(pattern=NAME_PATTERN, description="lower-case letters, digits, - and _; at most 40")]


class Edge(Model):
    """A dependency on another target of the same service, with the outcome it waits for."""

    target: Name
    when: Literal["succeeded", "failed", "completed", "skipped"] = "succeeded"


class Lock(Model):
    """What only so many rollouts hold at once, of whatever services: the Airflow pool ``multideploy_<name>``.

    :param slots: how many; None: what another target says about the same name, else one.
    """

    name: Name
    slots: Annotated[int, Field(ge=1)] | None = None

    @property
    def pool(self) -> str:
        """The name of the pool."""
        return f"multideploy_{self.name}"


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


_Lock = Annotated[Lock, BeforeValidator(_named, json_schema_input_type=Name | Lock)]


def _edges(value: object) -> object:
    if not isinstance(value, list):
        return value
    return [{"target": item} if isinstance(item, str) else item for item in value]


class TargetConfig(Model):
    """What every target has, whatever its platform. A platform's own config derives from it.

    :param conn_id: Airflow Connection with the credentials; secrets live nowhere else.
    :param depends_on: targets that come first.
    :param when: a condition over the run's params, such as ``params.region == "eu"``; the target is skipped where it is
        false.
    :param critical: counts for the policies ``critical`` and ``at_least``; None: critical unless another one is marked.
    :param timeout: seconds from the first write until the rollout has to be healthy.
    :param rollback_timeout: seconds that the way back may take.
    :param poll_interval: most seconds between looks; early ones come sooner.
    :param first_deploy: a first-ever release that is to go back: ``remove`` what was created, or ``leave`` it there.
    :param approval: who is asked before this target's rollout starts; None: nobody.
    :param lock: what a rollout and a rollback hold while they last; None: the service's.
    :param verify: smoke checks and a bake time, once the platform calls the rollout healthy.
    """

    platform: str
    conn_id: Annotated[str, Field(min_length=1)]
    depends_on: Annotated[
        tuple[Edge, ...],
        BeforeValidator(_edges, json_schema_input_type=list[Name | Edge]),
        Field(strict=False),
    ] = ()
    when: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    critical: bool | None = None
    timeout: Seconds = 600.0
    rollback_timeout: Seconds = 300.0
    poll_interval: Seconds = 5.0
    first_deploy: Literal["remove", "leave"] = "remove"
    approval: Gate | None = None
    lock: _Lock | None = None
    verify: Verify | None = None


class Artifact(Model):
    """What is released.

    :param image: image repository without tag, such as ``registry.example.com/shop``.
    :param registry_conn_id: Connection of the registry; with it, the tag is resolved to a digest before anything is
        deployed, so that every platform gets the same bits.
    """

    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}$")]
    registry_conn_id: str | None = None

    @field_validator("image")
    @classmethod
    def _no_tag(cls, value: str) -> str:
        if ":" in value.rsplit("/", 1)[-1]:
            raise ValueError("holds a tag; the tag is the release's version: give the repository alone")
        return value


class Build(Model):
    """How the image is built, when this package builds it.

    :param context: folder of the build context on the worker.
    :param dockerfile: path of the Dockerfile, relative to the context.
    :param builder: which program; ``auto`` takes the first of docker, buildah, podman found on the worker.
    :param args: build arguments (never secrets).
    :param timeout: seconds for build and push together.
    """

    context: Annotated[str, Field(min_length=1)]
    dockerfile: str = "Dockerfile"
    builder: Literal["auto", "docker", "buildah", "podman"] = "auto"
    args: dict[str, str] = Field(default_factory=dict)
    timeout: Seconds = 1800.0


class AtLeast(Model):
    """A quorum: this many selected targets have to succeed, and every critical one when any is marked."""

    at_least: Annotated[int, Field(ge=1)]


Policy = Literal["all", "critical"] | AtLeast
Strategy = Literal["all", "failed", "dependents", "manual", "none"]


class Success(Model):
    """When the release counts as done."""

    policy: Policy = "all"


class Rollback(Model):
    """What is undone when the policy is not met.

    :param cancel: what marking the run failed does to touched targets: ``rollback`` or ``keep`` them.
    :param in_doubt: what the next release does about a target that a run, now over, left unsettled: ``stop``, or
        ``reconcile`` it (back to its snapshot, verified) and go on.
    :param users: with strategy ``manual``, who may pick, as in an ``approval``.
    :param timeout: with strategy ``manual``, seconds that a person has for it; default: 3600.
    :param default: with strategy ``manual``, what no answer in time means; default: ``roll_back_all``.
    """

    strategy: Strategy = "all"
    cancel: Literal["rollback", "keep"] = "rollback"
    in_doubt: Literal["stop", "reconcile"] = "stop"
    users: Users | None = None
    timeout: Patience | None = None
    default: Literal["roll_back_all", "roll_back_failed", "accept"] | None = None


Event = Literal[
    "started",
    "approval_needed",
    "succeeded",
    "degraded",
    "rolled_back",
    "partially_rolled_back",
    "failed",
    "rollback_failed",
    "unknown",
    "not_started",
    "in_doubt",
    "reconciled",
]
"""What people can be told about: a release's start, that it waits for them, how it ended, and what became of a target
that a dead run left in doubt."""

Severity = Literal["info", "warning", "error", "critical"]
SEVERITIES: Mapping[Event, Severity] = {
    **dict.fromkeys(("started", "succeeded", "reconciled"), "info"),
    **dict.fromkeys(("approval_needed", "degraded", "not_started"), "warning"),
    **dict.fromkeys(("rolled_back", "partially_rolled_back", "failed", "in_doubt"), "error"),
    **dict.fromkeys(("unknown", "rollback_failed"), "critical"),
}
"""How much each event asks of people."""


class Notify(Model):
    """Who is told about releases, and when.

    :param notifier: import path of an Airflow notifier.
    :param arguments: what it is made with (never secrets: those live in its Connection); templates see ``release``.
    :param events: which ones; default: all that somebody should look at.
    :param severity: of those, the ones that are at least so severe: ``info``, ``warning``, ``error``, ``critical``.
    """

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    events: Annotated[tuple[Event, ...], Field(strict=False, min_length=1)] = tuple(
        event for event in get_args(Event) if event not in ("started", "succeeded")
    )
    severity: Severity = "info"

    def wants(self, event: Event) -> bool:
        """Whether it is told of that."""
        order: tuple[Severity, ...] = get_args(Severity)
        return event in self.events and order.index(SEVERITIES[event]) >= order.index(self.severity)


class Parameter(Model):
    """What a run may be asked for beside its version: a field of the trigger form, and a name in conditions.

    :param default: what it is when a run does not say; without one, each run has to.
    :param enum: the only values that it may have.
    """

    type: Literal["string", "integer", "number", "boolean"] = "string"
    default: str | int | float | bool | None = None
    enum: Annotated[tuple[str | int | float, ...] | None, Field(strict=False, min_length=1)] = None
    description: str = ""


class Service(Model):
    """One entry of the catalog: one service, one DAG.

    :param version: released when a run names none; needed with ``schedule``.
    :param schedule: cron expression in UTC, or windows: whenever one opens; None: only when asked.
    :param windows: when a release may make its first write; None: at any time, or in the windows of its schedule.
    :param approval: who is asked before the first wave; None: nobody.
    :param params: what else a run may be asked for, by name; conditions (``when``) look at it.
    :param max_parallel: most rollouts at once; None: all that no dependency holds back.
    :param lock: of each target that names none.
    :param when_busy: what a release does that was asked for while another one ran: wait for its turn (``queue``), then
        give way to a newer one that waits behind it (``supersede``), or end there (``reject``).
    :param fail_fast: as soon as the policy can no longer be reached, start nothing more and stop what is under way.
    :param environment: which one it is, for freezes and for whoever hears of its releases.
    :param promote: releases what another environment has verified.
    :param requires: other services by name, with the version that has to be live there first.
    :param environment: which one it is, for freezes and for whoever hears of its releases.
    :param promote: releases what another environment has verified.
    :param requires: other services by name, with the version that has to be live there first.
    :param notify: who is told how a release ended.
    :param retries: how often Airflow tries a deploy or rollback task again.
    :param deferrable: wait in the triggerer (True) or in the worker (False).
    """

    owner: Annotated[str, Field(min_length=1)] = "airflow"
    description: str = ""
    artifact: Artifact
    build: Build | None = None
    version: Annotated[str, Field(pattern=VERSION_PATTERN)] | None = None
    schedule: Schedule | None = None
    windows: Windows | None = None
    tags: tuple[Annotated[str, Field(max_length=100)], ...] = Field(default=(), strict=False)
    notify: Annotated[tuple[Notify, ...], Field(strict=False)] = ()
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    deferrable: bool = True
    success: Success = Success()
    rollback: Rollback = Rollback()
    approval: Gate | None = None
    params: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], Parameter] = Field(default_factory=dict)
    max_parallel: Annotated[int, Field(ge=1)] | None = None
    fail_fast: bool = False
    lock: _Lock | None = None
    when_busy: Literal["queue", "supersede", "reject"] = "queue"
    environment: Name | None = None
    promote: Promote | None = None
    requires: dict[Name, Requirement] = Field(default_factory=dict)
    targets: dict[str, SerializeAsAny[InstanceOf[TargetConfig]]]
