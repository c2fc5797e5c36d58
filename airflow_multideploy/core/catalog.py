"""From a document to services: every problem at once, each with place, reason and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError
from typing import Any

from croniter import croniter
from pydantic import BaseModel, ValidationError

from airflow_multideploy.core.errors import SpecError, UnknownPlatform
from airflow_multideploy.core.models import (
    NAME_PATTERN,
    RESERVED_TARGETS,
    AtLeast,
    Service,
    TargetConfig,
    secret_paths,
)
from airflow_multideploy.core.plan import waves

ConfigType = Callable[[str], type[TargetConfig]]
"""Gives the typed config of a platform kind, or raises `UnknownPlatform`."""

_REMEDIES = {
    "missing": "add it",
    "string_pattern_mismatch": "write it as the pattern says",
    "string_type": "write a string (quote it)",
    "bool_type": "write true or false",
    "dict_type": "write a mapping",
    "model_type": "write a mapping",
    "model_attributes_type": "write a mapping",
    "literal_error": "take one of those",
}
_PRESETS = frozenset({"@once", "@continuous", "@quarterly"})
"""What Airflow takes as a schedule besides what `croniter` knows."""
_BRANCHES = ("function-", "AtLeast", "literal[")


@dataclass
class Catalog:
    """Services that are good, and for each of the others what is wrong with it."""

    services: dict[str, Service] = field(default_factory=dict)
    errors: dict[str, SpecError] = field(default_factory=dict)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new document: ``over`` laid over ``base``, mappings merged, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        under = result.get(key)
        result[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_catalog(document: object, *, defaults: object = None, config_type: ConfigType) -> Catalog:
    """All services of a catalog; one that is broken harms no other.

    :param document: service name → service, both as JSON or YAML gives them.
    :param defaults: merged under each service.
    :raises SpecError: the document as a whole is no mapping.
    """
    if not isinstance(document, Mapping):
        raise SpecError(f"the catalog: expected a mapping of service name to service, got {_kind(document)}")
    catalog = Catalog()
    for name, entry in document.items():
        try:
            catalog.services[str(name)] = parse_service(name, entry, defaults=defaults, config_type=config_type)
        except SpecError as error:
            catalog.errors[str(name)] = error
    return catalog


def parse_service(name: object, entry: object, *, defaults: object = None, config_type: ConfigType) -> Service:
    """One service.

    :raises SpecError: with every problem found, each naming its path; never with a secret's value.
    """
    shown = str(name)
    if not isinstance(name, str) or not _matches(NAME_PATTERN, name):
        raise SpecError(f"name: does not match {NAME_PATTERN}; rename the service", service=shown)
    if defaults is not None and not isinstance(defaults, Mapping):
        raise SpecError(f"defaults: expected a mapping, got {_kind(defaults)}", service=shown)
    if not isinstance(entry, Mapping):
        raise SpecError(f"(whole): expected a mapping, got {_kind(entry)}; write the service's settings", service=shown)
    try:
        merged = merge(defaults or {}, entry)
        problems = [
            f"{path}: looks like a secret (not shown); keep it in an Airflow Connection and name its conn_id"
            for path in secret_paths(merged)
        ]
    except RecursionError:
        raise SpecError("(whole): nested too deeply, or holds itself; write it out", service=shown) from None
    targets, target_problems = _targets(merged.pop("targets", None), config_type)
    service: Service | None = None
    try:
        service = Service.model_validate({**merged, "targets": targets})
    except ValidationError as error:
        problems += lines(error, Service)
    problems += target_problems
    problems += _graph(targets)
    if service is not None:
        problems += _cross(service, whole=not target_problems)
    if problems or service is None:
        raise SpecError(problems, service=shown)
    return service


def _targets(document: object, config_type: ConfigType) -> tuple[dict[str, TargetConfig], list[str]]:
    if not isinstance(document, Mapping) or not document:
        return {}, [f"targets: expected a mapping with at least one target, got {_kind(document)}; add a target"]
    targets: dict[str, TargetConfig] = {}
    problems: list[str] = []
    for name, entry in document.items():
        path = f"targets.{_shown(name)}"
        if not isinstance(name, str) or not _matches(NAME_PATTERN, name):
            problems.append(f"{path}: the name does not match {NAME_PATTERN}; rename the target")
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


def _graph(targets: Mapping[str, TargetConfig]) -> list[str]:
    problems = []
    for name, target in targets.items():
        for index, edge in enumerate(target.depends_on):
            if edge.target not in targets:
                known = ", ".join(sorted(targets))
                problems.append(
                    f"targets.{name}.depends_on[{index}]: no valid target {edge.target!r}; there are: {known}"
                )
    if not problems:
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
        if not (service.schedule in _PRESETS or croniter.is_valid(service.schedule)):
            problems.append("schedule: is no cron expression; five fields, such as '0 10 * * 2-4'")
        if service.version is None:
            problems.append("version: missing; a scheduled release has nobody to ask which version: add it")
    if service.build is not None and service.artifact.registry_conn_id is None:
        problems.append("artifact.registry_conn_id: missing; a build pushes to a registry: name its Connection")
    return problems


def lines(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[str]:
    """One line per problem of a pydantic error: path, reason, remedy. Never the input itself."""
    found = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        *parents, last = map(str, problem["loc"] or ("(whole)",))
        # A union's branches stand in the path as well; an unknown key may be called like one.
        steps = [s for s in parents if not s.startswith(_BRANCHES)]
        if problem["type"] == "extra_forbidden" or not last.startswith(_BRANCHES):
            steps.append(last)
        path = ".".join([prefix, *map(_shown, steps)] if prefix else map(_shown, steps))
        if problem["type"] == "extra_forbidden":
            guess = difflib.get_close_matches(steps[-1], _keys(model, steps[:-1]), n=1)
            hint = f"did you mean {guess[0]!r}?" if guess else "remove it"
            found.append(f"{path}: unknown key; {hint}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        remedy = _REMEDIES.get(problem["type"])
        found.append(f"{path}: {message}" + (f"; {remedy}" if remedy and remedy not in message else ""))
    return found


def _keys(model: type[BaseModel], steps: Iterable[str]) -> list[str]:
    for step in steps:
        info = model.model_fields.get(step)
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())] if info else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _matches(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value) is not None


def _shown(key: object) -> str:
    """A key as a path shows it: on one line, and to be seen."""
    text = str(key)
    return text if text.strip() and text.isprintable() else repr(text)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def json_schema(config_types: Mapping[str, type[TargetConfig]]) -> dict[str, Any]:
    """The catalog's JSON Schema (2020-12), for editors."""
    schema = Service.model_json_schema(mode="validation")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    choices = []
    for kind, config in sorted(config_types.items()):
        inner = config.model_json_schema(mode="validation")
        definitions.update(inner.pop("$defs", {}))
        inner["properties"]["platform"] = {"const": kind}
        definitions[config.__name__] = inner
        choices.append({"$ref": f"#/$defs/{config.__name__}"})
    schema["properties"]["targets"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"oneOf": choices},
    }
    definitions["Service"] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "airflow-provider-multideploy service catalog",
        "type": "object",
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"$ref": "#/$defs/Service"},
        "$defs": definitions,
    }
