"""What a release will do: the frozen, resolved document that every later step of a run reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from airflow_multideploy.catalog.conditions import holds
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.params import CONF_KEYS, unfit
from airflow_multideploy.catalog.service import VERSION_PATTERN, AtLeast, Rollback, Service, Success
from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.contract import Document, Release
from airflow_multideploy.release.promotion import Released
from airflow_multideploy.release.status import FailFast, critical_targets

PREVIOUS = "previous"
"""As the version of a rollback: the last good release before the one that is live."""
DIGEST_PATTERN = r"sha256:[0-9a-f]{64}"


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
    :param skipped: targets whose condition is not met, with the reason.
    :param source: the release that is promoted, when it is one.
    :param rollback: an earlier release is released again, as it was: no window and no freeze holds it.
    :param override: why windows and freezes do not count for this run; empty: they do.
    """

    name: str
    service: Annotated[dict[str, JsonValue], AfterValidator(_resolved)]
    release: Release
    selected: tuple[str, ...]
    waves: tuple[tuple[str, ...], ...]
    skipped: dict[str, str] = Field(default_factory=dict)
    dry_run: bool = False
    source: Released | None = None
    rollback: bool = False
    override: str = ""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := {*self.selected, *(name for wave in self.waves for name in wave)}.difference(self._targets):
            raise ValueError(f"selected: no target {', '.join(sorted(unknown))}")
        return self

    @property
    def environment(self) -> str | None:
        """Of the service's environments the one that this release goes to; None when it has none."""
        found = self.service.get("environment")
        return None if found is None else str(found)

    @property
    def _targets(self) -> dict[str, Any]:
        targets: Any = self.service["targets"]
        return dict(targets)

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits that tell two resolved services apart, whatever the order of their keys."""
        return hashlib.sha256(json.dumps(self.service, sort_keys=True).encode()).hexdigest()[:12]

    def config(self, target: str) -> dict[str, Any]:
        """The frozen config of one target."""
        return dict(self._targets[target])

    def fail_fast(self) -> FailFast:
        """When this run stops before its end, if its service wants it to."""
        marks = {target: config.get("critical") for target, config in self._targets.items()}
        critical = critical_targets(marks)
        return FailFast(
            policy=Success.model_validate(self.service["success"]).policy,
            critical={target: critical[target] for target in self.selected},
            any_marked=any(mark is True for mark in marks.values()),
        )


def make_plan(
    name: str, service: Service, conf: Mapping[str, Any], *, dag_id: str, run_id: str, digest: str | None = None
) -> Plan:
    """The plan of a run.

    :param conf: the run's params (``version``, ``targets``, ``reason``, ``dry_run``, ``force``, and the service's own).
    :raises SpecError: an unknown key, a bad version, an unknown target: all of them at once.
    """
    known = (*CONF_KEYS, *service.params)
    problems = [
        f"conf.{key!s:.80}: unknown key; known: {', '.join(known)}" for key in sorted(set(conf) - set(known), key=str)
    ]
    rollback = conf.get("rollback") is True
    params = {key: conf.get(key, parameter.default) for key, parameter in service.params.items()}
    problems += [
        f"conf.{key}: {why}"
        for key, given in params.items()
        if not (rollback and given is None) and (why := unfit(given, service.params[key]))
    ]
    version = service.version if conf.get("version") in (None, "") else conf["version"]
    if version is None:
        problems.append('conf.version: missing; say which version to release, e.g. {"version": "1.4.2"}')
    elif version == PREVIOUS and not rollback:
        problems.append(f"conf.version: {PREVIOUS} is what a rollback goes to; set rollback: true, or name a version")
    elif not isinstance(version, str) or not re.fullmatch(_asked(rollback), version):
        problems.append(f"conf.version: does not match {VERSION_PATTERN}; give an image tag such as 1.4.2")
    chosen = list(service.targets) if conf.get("targets") is None else conf["targets"]
    problems += _selection(service, chosen, rollback=rollback)
    for key in ("dry_run", "force", "rollback"):
        if not isinstance(conf.get(key, False), bool):
            problems.append(f"conf.{key}: expected true or false")
    for key in ("reason", "override"):
        if not isinstance(conf.get(key), str | None):
            problems.append(f"conf.{key}: expected a string")
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
        rollback=rollback,
    )
    params |= {"version": release.version, "reason": release.reason, "force": release.force}
    # What is to go back is said by the run's targets alone: its conditions were about another release.
    skipped = {} if rollback else _not_met(service, chosen, params)
    selected = tuple(t for t in service.targets if t in chosen and t not in skipped)
    if problems := _selection(service, selected) if skipped else []:
        raise SpecError([*(f"targets.{t}: {why}" for t, why in skipped.items()), *problems], service=name)
    ordered = [tuple(t for t in wave if t in selected) for wave in waves(service.targets)]
    frozen = service.model_dump(mode="json")
    if rollback and isinstance(service.success.policy, AtLeast):
        frozen["success"]["policy"]["at_least"] = min(service.success.policy.at_least, len(selected))
    return Plan(
        name=name,
        service=frozen,
        release=release,
        selected=selected,
        waves=tuple(wave for wave in ordered if wave),
        skipped=skipped,
        dry_run=bool(conf.get("dry_run", False)),
        rollback=rollback,
        override=str(conf.get("override") or "").strip(),
    )


def _asked(rollback: bool) -> str:
    """What a run may name as its version: a rollback also goes to a digest."""
    return f"{DIGEST_PATTERN}|{VERSION_PATTERN[1:-1]}" if rollback else VERSION_PATTERN[1:-1]


def _not_met(service: Service, chosen: Iterable[str], params: Mapping[str, Any]) -> dict[str, str]:
    """Chosen targets whose condition is false, with the reason."""
    conditions = {t: service.targets[t].when for t in service.targets if t in chosen}
    return {t: f"not when {when}" for t, when in conditions.items() if when is not None and not holds(when, params)}


def _selection(service: Service, chosen: object, *, rollback: bool = False) -> list[str]:
    """What is wrong with the targets that a run asks for; a rollback may ask for fewer than a release needs."""
    if not isinstance(chosen, list | tuple) or not all(isinstance(t, str) for t in chosen):
        return ["conf.targets: expected a list of target names"]
    if not chosen:
        return ["conf.targets: empty; name at least one target, or leave it out for all"]
    known = ", ".join(service.targets)
    problems = [f"conf.targets: no target {t!r:.80}; there are: {known}" for t in chosen if t not in service.targets]
    policy = service.success.policy
    if isinstance(policy, AtLeast) and not (problems or rollback) and policy.at_least > len(set(chosen)):
        problems.append(
            f"conf.targets: success.policy.at_least is {policy.at_least}, more than the {len(set(chosen))} selected; "
            "select more"
        )
    return problems
