"""The order that the dependencies of targets give."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import TopologicalSorter

from airflow_multideploy.catalog.target import TargetConfig


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
