"""The whole catalog as commands see it: found, read, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_multideploy.catalog.references import astray
from airflow_multideploy.catalog.service import Service
from airflow_multideploy.errors import SpecError, Unreadable


@dataclass
class Checked:
    """A catalog that was read.

    :param source: where it was found.
    :param services: those that can be parsed.
    :param problems: of each service, also of those that cannot; empty where all is well.
    """

    source: str
    services: dict[str, Service] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)


def check(file: str | None) -> Checked:
    """Every problem of every service.

    :param file: default: the option ``multideploy.catalog_file``, else the Variables.
    :raises SpecError: there is no catalog, or it cannot be read as a whole.
    """
    from airflow_multideploy.catalog.environments import expand
    from airflow_multideploy.catalog.locks import contradictions
    from airflow_multideploy.operators import notify as notifications

    source, entries, defaults = find(file)
    found = Checked(source)
    for name, entry in expand(entries, defaults).items():
        found.problems[str(name)] = _parse(found, name, entry, defaults)
    for name, service in found.services.items():
        found.problems[name] += [
            f"notify[{index}].notifier: {why}"
            for index, each in enumerate(service.notify)
            if (why := notifications.unfit(each.notifier))
        ]
    for name, problems in contradictions(found.services).items():
        found.problems[name] += problems
    for name, problems in astray(found.services, found.problems).items():
        found.problems[name] += problems
    return found


def _parse(found: Checked, name: object, entry: object, defaults: object) -> list[str]:
    from airflow_multideploy.catalog.parse import parse_service
    from airflow_multideploy.platforms.kinds import config_type

    try:
        if isinstance(entry, Exception):
            raise entry
        found.services[str(name)] = parse_service(name, entry, defaults=defaults, config_type=config_type)
    except SpecError as error:
        return list(error.problems)
    except Exception as error:  # noqa: BLE001 - a third party's config may raise anything, and is that service's problem
        return [f"a platform's config raised {type(error).__name__}: {error}; report it to who made the platform"]
    return []


def find(file: str | None) -> tuple[str, Mapping[str, Any], Any]:
    """Where the catalog was found, its entries and its defaults.

    :raises SpecError: there is none, or it cannot be read.
    """
    from airflow.configuration import conf

    from airflow_multideploy.catalog.files import read_file
    from airflow_multideploy.store import database as stored
    from airflow_multideploy.store import variables

    if path := file or conf.get("multideploy", "catalog_file", fallback=""):
        try:
            return str(path), *read_file(path)
        except OSError as error:
            raise SpecError(f"{path}: {error.strerror or error}; name a file that can be read") from error
    try:
        index = variables.get(variables.INDEX)
    except Unreadable as error:
        if why := stored.unreadable():
            raise SpecError(f"Variable {variables.INDEX}: {why}, or name a catalog file") from error
        raise
    if index is None:
        raise SpecError(f"Variable {variables.INDEX}: is not set; set it, or name a catalog file")
    return f"Variable {variables.INDEX}", *variables.read_catalog()
