"""What a release will do: the frozen, resolved document that every later step of a run reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import Annotated, Any, Self

from pydantic import AfterValidator, JsonValue, ValidationError, model_validator

from airflow_multideploy.core.contract import Document, Release
from airflow_multideploy.core.errors import SpecError
from airflow_multideploy.core.models import VERSION_PATTERN, AtLeast, Rollback, Service, Success, TargetConfig

CONF_KEYS = ("version", "targets", "reason", "dry_run", "force")
"""What a run's conf may hold."""


def waves(targets: Mapping[str, TargetConfig]) -> tuple[tuple[str, ...], ...]:
    """Targets in the order of their dependencies; those of one wave have none between them.

    :raises graphlib.CycleError: the dependencies run in a circle.
    """
    sorter = TopologicalSorter({name: {edge.target for edge in t.depends_on} for name, t in targets.items()})
    sorter.prepare()
    found = []
    while sorter.is_active():
        ready = sorter.get_ready()
        found.append(tuple(name for name in targets if name in ready))
        sorter.done(*ready)
    return tuple(found)


def dependents(targets: Mapping[str, TargetConfig], of: set[str]) -> set[str]:
    """The given targets and everything that depends on them, transitively."""
    found = set(of)
    for wave in waves(targets):
        found |= {name for name in wave if any(edge.target in found for edge in targets[name].depends_on)}
    return found


def release_id(dag_id: str, run_id: str, rollout: int = 1) -> str:
    """Id of a rollout, the same on every machine: ``r`` and ten hexadecimal digits, ``-2`` and so on for a repeat."""
    digest = hashlib.sha256(f"{dag_id}\0{run_id}".encode()).hexdigest()[:10]
    return f"r{digest}" if rollout == 1 else f"r{digest}-{rollout}"


def _resolved(service: dict[str, Any]) -> dict[str, Any]:
    """Checks what later tasks of a run read of the service."""
    try:
        Success.model_validate(service.get("success"))
        Rollback.model_validate(service.get("rollback"))
    except ValidationError:
        raise ValueError("success or rollback is not what a service has there") from None
    targets = service.get("targets")
    if not isinstance(targets, dict) or not all(isinstance(config, dict) for config in targets.values()):
        raise ValueError("targets is no mapping of targets")
    return service


class Plan(Document):
    """One run, resolved: it does not change while the run lasts, whatever happens to the catalog.

    :param service: the service's resolved config as JSON.
    :param selected: targets of this run, in catalog order.
    :param waves: selected targets in deployment order.
    """

    name: str
    service: Annotated[dict[str, JsonValue], AfterValidator(_resolved)]
    release: Release
    selected: tuple[str, ...]
    waves: tuple[tuple[str, ...], ...]
    dry_run: bool = False

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := {*self.selected, *(name for wave in self.waves for name in wave)}.difference(self._targets):
            raise ValueError(f"selected: no target {', '.join(sorted(unknown))}")
        return self

    @property
    def _targets(self) -> dict[str, Any]:
        targets: Any = self.service["targets"]
        return dict(targets)

    def config(self, target: str) -> dict[str, Any]:
        """The frozen config of one target."""
        return dict(self._targets[target])


def make_plan(
    name: str, service: Service, conf: Mapping[str, Any], *, dag_id: str, run_id: str, digest: str | None = None
) -> Plan:
    """The plan of a run.

    :param conf: the run's params (``version``, ``targets``, ``reason``, ``dry_run``, ``force``).
    :raises SpecError: an unknown key, a bad version, an unknown target: all of them at once.
    """
    problems = [
        f"conf.{key!s:.80}: unknown key; known: {', '.join(CONF_KEYS)}"
        for key in sorted(set(conf) - set(CONF_KEYS), key=str)
    ]
    version = service.version if conf.get("version") in (None, "") else conf["version"]
    if version is None:
        problems.append('conf.version: missing; say which version to release, e.g. {"version": "1.4.2"}')
    elif not isinstance(version, str) or not re.fullmatch(VERSION_PATTERN[1:-1], version):
        problems.append(f"conf.version: does not match {VERSION_PATTERN}; give an image tag such as 1.4.2")
    chosen = list(service.targets) if conf.get("targets") is None else conf["targets"]
    problems += _selection(service, chosen)
    for key in ("dry_run", "force"):
        if not isinstance(conf.get(key, False), bool):
            problems.append(f"conf.{key}: expected true or false")
    if not isinstance(conf.get("reason"), str | None):
        problems.append("conf.reason: expected a string")
    if problems:
        raise SpecError(problems, service=name)
    release = Release(
        service=name,
        version=str(version),
        image=f"{service.artifact.image}@{digest}" if digest else f"{service.artifact.image}:{version}",
        digest=digest,
        release_id=release_id(dag_id, run_id),
        reason=str(conf.get("reason") or ""),
        force=bool(conf.get("force", False)),
    )
    selected = tuple(t for t in service.targets if t in chosen)
    ordered = [tuple(t for t in wave if t in selected) for wave in waves(service.targets)]
    return Plan(
        name=name,
        service=service.model_dump(mode="json"),
        release=release,
        selected=selected,
        waves=tuple(wave for wave in ordered if wave),
        dry_run=bool(conf.get("dry_run", False)),
    )


def _selection(service: Service, chosen: object) -> list[str]:
    """What is wrong with the targets that a run asks for."""
    if not isinstance(chosen, list | tuple) or not all(isinstance(t, str) for t in chosen):
        return ["conf.targets: expected a list of target names"]
    if not chosen:
        return ["conf.targets: empty; name at least one target, or leave it out for all"]
    known = ", ".join(service.targets)
    problems = [f"conf.targets: no target {t!r:.80}; there are: {known}" for t in chosen if t not in service.targets]
    policy = service.success.policy
    if isinstance(policy, AtLeast) and not problems and policy.at_least > len(set(chosen)):
        problems.append(
            f"conf.targets: success.policy.at_least is {policy.at_least}, more than the {len(set(chosen))} selected; "
            "select more"
        )
    return problems
