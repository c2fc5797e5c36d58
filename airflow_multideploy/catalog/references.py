"""What the services of one catalog say about each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_multideploy.catalog.service import Service


def astray(services: Mapping[str, Service], known: Collection[str]) -> dict[str, list[str]]:
    """What is wrong with what services say about each other, by service.

    :param services: those that can be parsed.
    :param known: the names of all.
    """
    found: dict[str, list[str]] = {}
    sources = {name: service.promote.source for name, service in services.items() if service.promote is not None}
    for name, service in services.items():
        places = {"promote.from": sources.get(name), **{f"requires.{other}": other for other in service.requires}}
        for place, other in places.items():
            if other is not None and other not in known:
                found.setdefault(name, []).append(
                    f"{place}: the catalog has no service {other!r}; name one that it has"
                )
    needs = {name: list(service.requires) for name, service in services.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        problem = f"requires: runs in a circle: {' → '.join(error.args[1])}; none of them can be released first"
        found.setdefault(error.args[1][0], []).append(problem)
    for name in sources:
        way = [name]
        while (after := sources.get(way[-1])) is not None and after not in way:
            way.append(after)
        if after == name:
            circle = " → ".join([*way, name])
            problem = f"promote.from: runs in a circle: {circle}; remove one of these edges"
            found.setdefault(name, []).append(problem)
    return found
