"""From a document to services: every problem at once, each with place, reason and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError
from typing import Any

from croniter import CroniterBadDateError, croniter
from pydantic import ValidationError

from airflow_multideploy.catalog.conditions import flaw
from airflow_multideploy.catalog.environments import Environment, approved, expand, merge
from airflow_multideploy.catalog.order import waves
from airflow_multideploy.catalog.params import CONF_KEYS, unfit
from airflow_multideploy.catalog.problems import _kind, _matches, _misnamed, _shown, lines
from airflow_multideploy.catalog.service import RESERVED_SERVICES, AtLeast, Service
from airflow_multideploy.catalog.target import NAME_PATTERN, RESERVED_TARGETS, TargetConfig
from airflow_multideploy.catalog.windows import Scheduled
from airflow_multideploy.errors import SpecError, UnknownPlatform
from airflow_multideploy.secrets import secret_paths

ConfigType = Callable[[str], type[TargetConfig]]
"""Gives the typed config of a platform kind, or raises `UnknownPlatform`."""

LAYOUT = ("services", "defaults")
"""Keys at the top of a catalog file that has more to say than its services. No service in a file is called so."""

UNTIMED = frozenset({"@once", "@continuous"})
"""Schedules that no clock has a part in."""
_PRESETS = UNTIMED | {"@quarterly"}
"""What Airflow takes as a schedule besides what `croniter` knows."""


@dataclass
class Catalog:
    """Services that are good, and for each of the others what is wrong with it."""

    services: dict[str, Service] = field(default_factory=dict)
    errors: dict[str, SpecError] = field(default_factory=dict)


def is_schedule(text: str) -> bool:
    """Whether Airflow takes it as a schedule: a cron expression or one of its presets."""
    return text in _PRESETS or (croniter.is_valid(text) and _ticks(text))


def _ticks(text: str) -> bool:
    """Whether it ever comes: 30 February does not."""
    try:
        croniter(text).get_next()
    except CroniterBadDateError:
        return False
    return True


def split(document: Mapping[Any, Any]) -> tuple[dict[Any, Any], Any]:
    """The entries of a catalog file, and its defaults (None where it has none).

    :raises SpecError: one of the keys of `LAYOUT` stands at the top, with something else beside it or no services.
    """
    if document.keys().isdisjoint(LAYOUT):
        return dict(document), None
    problems = []
    for key in (key for key in document if key not in LAYOUT):
        guess = difflib.get_close_matches(str(key), LAYOUT, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else "put a service under 'services'"
        problems.append(f"{_shown(key)}: unknown key beside 'services' and 'defaults'; {hint}")
    services = document.get("services")
    if isinstance(services, Mapping) and not problems:
        return dict(services), document.get("defaults")
    if not isinstance(services, Mapping):
        problems.append(f"services: expected a mapping of service name to service, got {_kind(services)}; add it")
    raise SpecError(problems)


def parse_catalog(document: object, *, defaults: object = None, config_type: ConfigType) -> Catalog:
    """All services of a catalog; one that is broken harms no other.

    :param document: service name → service, both as JSON or YAML gives them.
    :param defaults: merged under each service.
    :raises SpecError: the document as a whole is no mapping.
    """
    if not isinstance(document, Mapping):
        raise SpecError(f"the catalog: expected a mapping of service name to service, got {_kind(document)}")
    catalog = Catalog()
    for name, entry in expand(document, defaults).items():
        try:
            catalog.services[str(name)] = parse_service(name, entry, defaults=defaults, config_type=config_type)
        except SpecError as error:
            catalog.errors[str(name)] = error
    return catalog


def parse_service(name: object, entry: object, *, defaults: object = None, config_type: ConfigType) -> Service:
    """One service.

    :param entry: a mapping, or what `expand` made of it: also an error, which is raised.
    :raises SpecError: with every problem found, each naming its path; never with a secret's value.
    """
    shown = str(name)
    if isinstance(entry, SpecError):
        raise entry
    if isinstance(entry, Environment):
        try:
            wrong = None if isinstance(defaults, Mapping) else defaults
            return parse_service(name, entry.document, defaults=wrong, config_type=config_type)
        except SpecError as error:
            raise SpecError([entry.placed(problem) for problem in error.problems], service=shown) from None
    if not isinstance(name, str) or not _matches(NAME_PATTERN, name):
        raise SpecError(f"name: {_misnamed(name)}; rename the service", service=shown)
    if name in RESERVED_SERVICES:
        raise SpecError("name: is taken by a DAG of this package; rename the service", service=shown)
    if defaults is not None and not isinstance(defaults, Mapping):
        raise SpecError(f"defaults: expected a mapping, got {_kind(defaults)}", service=shown)
    if not isinstance(entry, Mapping):
        raise SpecError(f"(whole): expected a mapping, got {_kind(entry)}; write the service's settings", service=shown)
    try:
        merged = approved(merge(defaults or {}, entry))
        problems = [
            f"{_shown(path)}: looks like a secret (not shown); keep it in an Airflow Connection and name its conn_id"
            for path in secret_paths(merged)
        ]
    except RecursionError:
        raise SpecError("(whole): nested too deeply, or holds itself; write it out", service=shown) from None
    named = merged.pop("targets", None)
    targets, target_problems = _targets(named, config_type)
    service: Service | None = None
    try:
        service = Service.model_validate({**merged, "targets": targets})
    except ValidationError as error:
        problems += lines(error, Service)
    problems += target_problems
    problems += _graph(targets, broken=set(named) - targets.keys() if isinstance(named, Mapping) else set())
    if service is not None:
        problems += _cross(service, whole=not target_problems) + _neighbours(name, service)
    if problems or service is None:
        raise SpecError(problems, service=shown)
    return service


def _targets(document: object, config_type: ConfigType) -> tuple[dict[str, TargetConfig], list[str]]:
    if not isinstance(document, Mapping):
        return {}, [f"targets: expected a mapping with at least one target, got {_kind(document)}; add a target"]
    if not document:
        return {}, ["targets: is empty; add a target"]
    targets: dict[str, TargetConfig] = {}
    problems: list[str] = []
    for name, entry in document.items():
        path = f"targets.{_shown(name)}"
        if not isinstance(name, str) or not _matches(NAME_PATTERN, name):
            problems.append(f"{path}: the name {_misnamed(name)}; rename the target")
        elif name in RESERVED_TARGETS:
            problems.append(f"{path}: the name is taken by a task of every release; rename the target")
        elif not isinstance(entry, Mapping):
            problems.append(f"{path}: expected a mapping, got {_kind(entry)}")
        elif not isinstance(entry.get("platform"), str):
            problems.append(f"{path}.platform: missing; name a kind (`airflow multideploy platforms` lists them)")
        else:
            try:
                cls = config_type(entry["platform"])
                targets[name] = cls.model_validate(dict(entry))
            except UnknownPlatform as error:
                problems.append(f"{path}.platform: {error}")
            except ValidationError as error:
                problems += lines(error, cls, prefix=path)
    return targets, problems


def _graph(targets: Mapping[str, TargetConfig], *, broken: set[object]) -> list[str]:
    """What is wrong with the edges; one to a target that is broken itself is not held against the edge."""
    problems = []
    for name, target in targets.items():
        before: set[str] = set()
        for index, edge in enumerate(target.depends_on):
            path = f"targets.{name}.depends_on[{index}]"
            if edge.target not in {*targets, *broken}:
                problems.append(f"{path}: no target {edge.target!r}; there are: {', '.join(sorted(targets))}")
            elif edge.target in before:
                problems.append(f"{path}: names {edge.target!r} again; keep one (`completed` is either end)")
            before.add(edge.target)
    if not problems and not broken and any(target.depends_on for target in targets.values()):
        try:
            waves(targets)
        except CycleError as error:
            circle = " → ".join(error.args[1])
            problems.append(f"targets: depends_on runs in a circle: {circle}; remove one of these edges")
    return problems


def _cross(service: Service, *, whole: bool) -> list[str]:
    problems = []
    policy = service.success.policy
    if whole and isinstance(policy, AtLeast) and policy.at_least > len(service.targets):
        problems.append(
            f"success.policy.at_least: {policy.at_least} is more than the {len(service.targets)} targets; lower it"
        )
    if whole and policy == "critical" and all(target.critical is False for target in service.targets.values()):
        problems.append("success.policy: critical, but every target is marked 'critical: false'; mark one true")
    if service.schedule is not None:
        if isinstance(service.schedule, str) and not is_schedule(service.schedule):
            problems.append("schedule: is no cron expression; five fields, such as '0 10 * * 2-4'")
        own = service.windows is not None and isinstance(service.schedule, Scheduled) and service.schedule.windows
        if own and own.when_closed != "wait":
            problems.append("schedule.windows.when_closed: says nothing beside 'windows'; set it there")
        if service.version is None:
            problems.append("version: missing; a scheduled release has nobody to ask which version: add it")
    if service.build is not None and service.artifact.registry_conn_id is None:
        problems.append("artifact.registry_conn_id: missing; a build pushes to a registry: name its Connection")
    if service.rollback.strategy != "manual":
        asked = [key for key in ("users", "timeout", "default") if getattr(service.rollback, key)]
        problems += [f"rollback.{key}: nobody is asked with this strategy; set strategy: manual" for key in asked]
    return [*problems, *_params(service)]


def _neighbours(name: str, service: Service) -> list[str]:
    """What is wrong with what a service says about others."""
    promote, problems = service.promote, []
    if promote is not None:
        if promote.source == name or not _matches(NAME_PATTERN, promote.source):
            problems.append("promote.from: is no other service; name the one whose releases are to be taken")
        if service.schedule is not None:
            problems.append(
                "schedule: a promoted release comes when its source is ready; remove one of schedule and promote"
            )
        if service.build is not None:
            problems.append("build: a promoted release is not built again; remove it")
    if name in service.requires:
        problems.append(f"requires.{name}: is the service itself; remove it")
    return problems


def _params(service: Service) -> list[str]:
    """What is wrong with a service's own params, and with the conditions over them."""
    problems = []
    for name, parameter in service.params.items():
        if name in CONF_KEYS:
            problems.append(f"params.{name}: every run has one of that name; rename it")
        if parameter.default is not None and (why := unfit(parameter.default, parameter)) is not None:
            problems.append(f"params.{name}.default: {why}")
        if parameter.default is None and (service.schedule is not None or service.promote is not None):
            problems.append(
                f"params.{name}.default: missing; a scheduled or promoted release has nobody to ask: add it"
            )
    known = {*service.params, "version", "reason", "force"}
    for name, target in service.targets.items():
        if target.when is not None and (why := flaw(target.when, known)) is not None:
            problems.append(f"targets.{name}.when: {why}")
    return problems
