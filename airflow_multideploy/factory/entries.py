"""Where the factory finds the services of the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow_multideploy.catalog.environments import expand
from airflow_multideploy.catalog.files import read_file
from airflow_multideploy.catalog.parse import parse_service
from airflow_multideploy.errors import SpecError
from airflow_multideploy.platforms.kinds import config_type
from airflow_multideploy.store import variables


def _entries(catalog: str | Path | None) -> tuple[dict[str, Any], Any]:
    entries, defaults = variables.read_catalog() if catalog is None else read_file(catalog)
    return expand(entries, defaults), defaults


def _entry(name: str, catalog: str | Path | None) -> tuple[Any, Any]:
    if catalog is None:
        return variables.read_entry(name)
    entries, defaults = read_file(catalog)
    return expand(entries, defaults, only=name).get(name), defaults


def _targets_of(catalog: str | Path | None, name: str) -> tuple[str, ...]:
    """The targets of another service of the catalog.

    :raises SpecError: there is no such service, or it is broken.
    """
    entry, defaults = _entry(name, catalog)
    if entry is None:
        raise SpecError(f"requires.{name}: the catalog has no such service; name one that it has")
    return tuple(parse_service(name, entry, defaults=defaults, config_type=config_type).targets)
