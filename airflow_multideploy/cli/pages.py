"""The docs page of a platform, written from its code: config, capabilities and manual."""

from __future__ import annotations

import re
from collections.abc import Iterable
from inspect import getdoc
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.release.contract import Platform

_PARAM = re.compile(r"^:param (\w+): (.*?)(?=^:param |\Z)", re.MULTILINE | re.DOTALL)


def page(platform: type[Platform[Any]]) -> str:
    """The page as Markdown."""
    able, manual = platform.capabilities, platform.manual
    parts = [f"# {platform.kind}", _prose(platform)]
    if manual is not None:
        extra = f"\n\nNeeds the extra `[{manual.extra}]`." if manual.extra else ""
        parts += ["## Example", f"```yaml\n{manual.example.strip()}\n```", "## Connection", manual.connection + extra]
    parts += ["## Config", _tables(platform.config_type), "What every target has: see [the catalog](../catalog.md)."]
    if manual is not None:
        parts += ["## Protocol", manual.protocol.strip(), "## Permissions", manual.permissions.strip()]
    parts += [
        "## Rollback",
        f"*Snapshot*: {able.snapshot}.\n\n*Restores*: {able.restores}."
        + (f"\n\n*Not undone*: {manual.not_undone}" if manual is not None else ""),
        "## Verification",
        f"*Early failure*: {able.early_failure}.\n\n"
        f"*Waits*: {'asynchronously' if able.asynchronous else 'in a worker'}.\n\n"
        f"*Tested against*: {able.tested_against}.",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def pages(platforms: Iterable[type[Platform[Any]]]) -> dict[str, str]:
    """File name to page, with ``README.md`` as the table of all."""
    found = sorted(platforms, key=lambda platform: platform.kind)
    return {f"{platform.kind}.md": page(platform) for platform in found} | {"README.md": _index(found)}


def _index(platforms: Iterable[type[Platform[Any]]]) -> str:
    rows = ["| kind | what it is | seen early | a rollback restores | tested against |", "|---|---|---|---|---|"]
    for platform in platforms:
        able, what = platform.capabilities, _prose(platform).partition("\n\n")[0].replace("\n", " ")
        link = f"[`{platform.kind}`]({platform.kind}.md)"
        cells = [link, what, able.early_failure, able.restores, able.tested_against]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return f"# Platforms\n\n{_NOTE}\n\n" + "\n".join(rows) + "\n"


_NOTE = """Written by `make docs` from the code. Nothing here has been run against the real clouds: the adapters are
tested with the official SDKs, unmodified, against real servers where there are any, else against stand-ins that are
held to the official contracts."""


def undocumented(platform: type[Platform[Any]]) -> list[str]:
    """Keys of a platform's config that its docstrings do not explain."""
    models = [("", platform.config_type), *_nested(platform.config_type)]
    return [
        f"{path}.{name}".lstrip(".") for path, model in models for name in _own(model) if name not in _explained(model)
    ]


def _prose(platform: type[Platform[Any]]) -> str:
    return (getdoc(platform) or "").replace("``", "`")


def _own(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """Its keys, as they are written in a catalog, without those that every target has."""
    return {
        field.alias or name: field
        for name, field in config.model_fields.items()
        if name not in TargetConfig.model_fields
    }


def _explained(config: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a config and its bases say about each key."""
    said: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        for name, words in _PARAM.findall(getdoc(cls) or "" if cls.__doc__ else ""):
            said[name] = " ".join(words.split()).replace("``", "`").rstrip(".")
    return said


def _nested(config: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """The models that a config's keys hold, by path; one that several keys share comes once."""
    found: dict[type[BaseModel], str] = {}
    for name, field in _own(config).items():
        for model in _models(field.annotation):
            found[model] = f"{found[model]}, {name}" if model in found else name
    return [(words, model) for model, words in found.items()]


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tables(config: type[BaseModel]) -> str:
    parts = [_config(config)]
    for path, model in _nested(config):
        prose = (getdoc(model) or "").partition(":param ")[0].replace("``", "`").strip()
        parts += [f"### {path}", prose, _config(model)]
    return "\n\n".join(part for part in parts if part)


def _config(config: type[BaseModel]) -> str:
    explained, rows = _explained(config), ["| key | default | meaning |", "|---|---|---|"]
    for name, field in _own(config).items():
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        rows.append(f"| `{name}` | {default} | {explained.get(name, '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    if value is None or value is PydanticUndefined or value in ("", (), [], {}):
        return ""
    shown = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    return f"`{shown}`"
