"""One target of a service: what all platforms share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
)

from airflow_multideploy.catalog.approval import Gate
from airflow_multideploy.catalog.checks import Verify
from airflow_multideploy.strict import Model, Seconds

NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,39}$"


RESERVED_TARGETS = frozenset(
    {"plan", "build", "approve", "deploys_ended", "aggregate_status", "decide", "rollback", "finalize", "journal"}
)


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
