"""The service catalog: what people write in Variables or Git-kept files, validated strictly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    InstanceOf,
    SerializeAsAny,
    field_validator,
)

from airflow_multideploy.catalog.approval import Gate, Users
from airflow_multideploy.catalog.notify import Notify
from airflow_multideploy.catalog.promotion import Promote, Requirement
from airflow_multideploy.catalog.target import Name, TargetConfig, _Lock
from airflow_multideploy.catalog.windows import Schedule, Windows
from airflow_multideploy.strict import Model, Patience, Seconds

VERSION_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
"""What a version may look like: what an image tag may look like (OCI distribution specification), nothing else."""

RESERVED_SERVICES = frozenset({"multideploy_reconcile", "multideploy_catalog"})


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
