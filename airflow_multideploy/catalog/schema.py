"""The catalog as JSON Schema, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_multideploy.catalog.environments import KEY as ENVIRONMENTS
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.catalog.target import NAME_PATTERN, TargetConfig


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
