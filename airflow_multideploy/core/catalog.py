"""From a document to services: every problem at once, each with place, reason and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError
from typing import Any

from croniter import CroniterBadDateError, croniter
from pydantic import BaseModel, ValidationError

from airflow_multideploy.core.conditions import flaw
from airflow_multideploy.core.environments import KEY as ENVIRONMENTS
from airflow_multideploy.core.environments import Environment, approved, expand
from airflow_multideploy.core.environments import merge as merge  # noqa: PLC0414 - others take it from here
from airflow_multideploy.core.errors import SpecError, UnknownPlatform
from airflow_multideploy.core.models import (
    NAME_PATTERN,
    RESERVED_SERVICES,
    RESERVED_TARGETS,
    AtLeast,
    Service,
    TargetConfig,
    secret_paths,
)
from airflow_multideploy.core.plan import CONF_KEYS, unfit, waves
from airflow_multideploy.core.windows import Scheduled

ConfigType = Callable[[str], type[TargetConfig]]
"""Gives the typed config of a platform kind, or raises `UnknownPlatform`."""

LAYOUT = ("services", "defaults")
"""Keys at the top of a catalog file that has more to say than its services. No service in a file is called so."""

_REMEDIES = {
    "missing": "add it",
    "string_pattern_mismatch": "write it as the pattern says",
    "string_type": "write a string (quote it)",
    "bool_type": "write true or false",
    "literal_error": "take one of those",
    "int_type": "write a number without quotes",
    "float_type": "write a number without quotes",
    "greater_than": "write a larger one",
    "greater_than_equal": "write a larger one",
    "less_than_equal": "write a smaller one",
}
_WORDS = {
    "dict_type": "expected a mapping; write one",
    "model_type": "expected a mapping; write one",
    "model_attributes_type": "expected a mapping; write one",
    "tuple_type": "expected a list; write one",
    "list_type": "expected a list; write one",
    "too_short": "is empty; add an entry, or leave the key out",
}
"""Where pydantic's own words name Python's types."""
UNTIMED = frozenset({"@once", "@continuous"})
"""Schedules that no clock has a part in."""
_PRESETS = UNTIMED | {"@quarterly"}
"""What Airflow takes as a schedule besides what `croniter` knows."""
_BRANCHES = ("function-", "AtLeast", "literal[")


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


def lines(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[str]:
    """One line per problem of a pydantic error: path, reason, remedy. Never the input itself."""
    found = []
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    for problem in problems:
        size = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:size] == problem["loc"] != p["loc"] for p in problems):
            continue  # its entries are wrong, which leaves none
        *parents, last = map(str, problem["loc"] or ("(whole)",))
        # A union's branches stand in the path as well; an unknown key may be called like one.
        steps = [s for s in parents if not s.startswith(_BRANCHES)]
        if problem["type"] == "extra_forbidden" or not last.startswith(_BRANCHES):
            steps.append(last)
        path = _shown(".".join([prefix, *map(_shown, steps)] if prefix else map(_shown, steps)))
        if problem["type"] == "extra_forbidden":
            *above, key = steps
            known = _keys(model, above)
            inside = (f"{name}.{key}" for name in known if key in _keys(model, [*above, name]))
            guess = difflib.get_close_matches(key, known, n=1) or [*inside]
            hint = f"did you mean {guess[0]!r}?" if guess else "remove it"
            found.append(f"{path}: unknown key; {hint}")
            continue
        message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
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


def _misnamed(name: object) -> str:
    if isinstance(name, bool):
        return "is YAML's word for true or false (on, off, yes, no), unless it is quoted"
    return f"does not match {NAME_PATTERN}"


def _matches(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value) is not None


def _shown(key: object) -> str:
    """A key as a path shows it: on one line, and to be seen."""
    text = str(key)
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return text if text.strip() and text.isprintable() else repr(text)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def json_schema(config_types: Mapping[str, type[TargetConfig]]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a catalog file in both of its layouts, for editors.

    Where there are defaults, it asks for no key: what a service lacks may stand in them.
    """
    schema = Service.model_json_schema(mode="validation")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    choices = []
    for kind, config in sorted(config_types.items()):
        inner = config.model_json_schema(mode="validation")
        definitions.update(inner.pop("$defs", {}))
        inner["properties"]["platform"] = {"const": kind}
        inner["required"] = sorted({"platform", *inner.get("required", ())})
        definitions[config.__name__] = inner
        choices.append({"$ref": f"#/$defs/{config.__name__}"})
    schema["properties"]["targets"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"oneOf": choices},
    }
    definitions["Service"] = schema
    definitions |= {f"{_PART}{name}": _part(definition) for name, definition in definitions.items()}
    _add_environments(definitions)
    part, service = {"$ref": f"#/$defs/{_PART}Service"}, {"$ref": "#/$defs/Service"}
    whole = _services({"if": {"required": [ENVIRONMENTS]}, "then": part, "else": service})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "airflow-provider-multideploy service catalog",
        "type": "object",
        "if": {"required": ["defaults"]},
        "then": _layout({"services": _services(part), "defaults": part}),
        "else": {"if": {"required": ["services"]}, "then": _layout({"services": whole}), "else": whole},
        "$defs": definitions,
    }


_PART = "PartOf"


def _add_environments(definitions: dict[str, Any]) -> None:
    """To the part of a service that stands above its environments; each of those is another part, or removes one."""
    part = definitions[f"{_PART}Service"]
    keys: dict[str, Any] = {key: {"anyOf": [value, {"type": "null"}]} for key, value in part["properties"].items()}
    targets = part["properties"]["targets"]
    either = {"anyOf": [targets["additionalProperties"], {"type": "null"}]}
    keys |= {"targets": {**targets, "additionalProperties": either}, "inherits": {"type": "string"}}
    definitions["Environment"] = {**part, "title": "Environment", "properties": keys}
    part["properties"][ENVIRONMENTS] = {**_services({"$ref": "#/$defs/Environment"}), "minProperties": 1}


def _services(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": {"pattern": NAME_PATTERN}, "additionalProperties": entry}


def _layout(properties: dict[str, Any]) -> dict[str, Any]:
    return {"properties": properties, "required": ["services"], "additionalProperties": False}


def _part(schema: Any) -> Any:
    """A schema for part of what the given one describes: it asks for nothing, and refuses what is wrong."""
    if isinstance(schema, list):
        return [_part(each) for each in schema]
    if not isinstance(schema, dict):
        return schema.replace("#/$defs/", f"#/$defs/{_PART}") if isinstance(schema, str) else schema
    part = {key: _part(value) for key, value in schema.items()}
    if isinstance(part.get("required"), list):  # a property may be called so
        del part["required"]
    if isinstance(part.get("oneOf"), list):  # a target without its platform fits several
        part["anyOf"] = part.pop("oneOf")
    return part
