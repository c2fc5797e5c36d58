"""One service in several environments: each of them is a service, and a DAG, of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from airflow_multideploy.catalog.target import NAME_PATTERN
from airflow_multideploy.errors import SpecError

KEY = "environments"
_OWN = ("inherits", "promote")
"""Keys that say where an environment stands among the others; nobody inherits them."""


@dataclass(frozen=True)
class Environment:
    """One environment's service as the catalog means it.

    :param document: base, what it inherits and its own keys, merged.
    :param layers: what was merged, the nearest first, each with the environment that wrote it; None: the base.
    """

    document: dict[str, Any]
    layers: tuple[tuple[str | None, Mapping[str, Any]], ...] = ()

    def placed(self, problem: str) -> str:
        """A problem of the merged document, with the path at which its cause was written."""
        path, rest = problem.partition(": ")[::2]
        steps = [step.rstrip("]") for step in re.split(r"[.\[]", path)]
        for depth in range(len(steps), 0, -1):
            for name, layer in self.layers:
                if _holds(layer, steps[:depth]):
                    return problem if name is None else f"{KEY}.{name}.{path}: {rest}"
        return problem


def _holds(document: object, steps: list[str]) -> bool:
    for step in steps:
        if isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        elif isinstance(document, Mapping) and step in document:
            document = document[step]
        else:
            return False
    return True


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new document: ``over`` laid over ``base``, mappings merged, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        under = result.get(key)
        result[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As `merge`; what ``over`` says is null is removed."""
    result = dict(base)
    for key, value in over.items():
        under = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(under, Mapping) and isinstance(value, Mapping):
            result[key] = _overlay(under, value)
        else:
            result[key] = value
    return result


def bases(name: str) -> Iterator[tuple[str, str]]:
    """Every service and environment that a service of that name may come from."""
    for index, letter in enumerate(name):
        if letter == "-":
            yield name[:index], name[index + 1 :]


def expand(entries: Mapping[Any, Any], defaults: object = None, *, only: str | None = None) -> dict[Any, Any]:
    """The entries of a catalog with each environment as an entry of its own, ``<service>-<environment>``.

    What cannot be expanded has a `SpecError` in its place.

    :param defaults: merged under each service; entries without environments are left as they are.
    :param only: the one name that is wanted; what cannot be called so is left out.
    """
    if only is not None:
        wanted = {only, *(base for base, _ in bases(only))}
        entries = {name: entry for name, entry in entries.items() if name in wanted}
    found: dict[Any, Any] = {}
    for name, entry in entries.items():
        for each, part in _environments(name, entry, defaults).items():
            twice = f"name: {each!r} is twice in the catalog, as a service and as an environment; rename one of them"
            found[each] = SpecError(twice, service=each) if each in found else part
    return found if only is None else {only: found[only]} if only in found else {}


def _environments(name: Any, entry: Any, defaults: object) -> dict[Any, Any]:
    """What an entry of the catalog stands for: itself, or its environments."""
    inherited = defaults if isinstance(defaults, Mapping) else {}
    if not isinstance(name, str) or not isinstance(entry, Mapping) or (KEY not in entry and KEY not in inherited):
        return {name: entry}
    try:
        base = merge(inherited, entry)
        named = base.pop(KEY)
        if named is None:
            return {name: Environment(base)}
        problems = _flaws(name, base, named)
        known = {f"{name}-{env}": env for env in named} if isinstance(named, Mapping) else {}
        if problems:
            error = SpecError(problems, service=name)
            return dict.fromkeys((each for each in known if re.fullmatch(NAME_PATTERN[1:-1], each)), error) or {
                name: error
            }
        return {each: _environment(name, env, base, named) for each, env in known.items()}
    except RecursionError:
        return {name: SpecError("(whole): nested too deeply, or holds itself; write it out", service=name)}


def _environment(service: str, env: str, base: Mapping[str, Any], named: Mapping[str, Any]) -> Environment:
    layers: list[tuple[str | None, Mapping[str, Any]]] = []
    at: str | None = env
    while at is not None:
        layers.append((at, {key: value for key, value in named[at].items() if at == env or key not in _OWN}))
        at = named[at].get("inherits")
    document = dict(base)
    for _, layer in reversed(layers):
        document = _overlay(document, layer)
    layers.append((None, base))
    document.pop("inherits", None)
    document["environment"] = env
    promote = document.get("promote")
    if isinstance(promote, Mapping) and "from" in promote:
        document["promote"] = {**promote, "from": f"{service}-{promote['from']}"}
        document.pop("build", None)  # it releases what was built already
    return Environment(document, tuple(layers))


def approved(document: dict[str, Any]) -> dict[str, Any]:
    """A service's document with the approval for which its ``promote`` asks."""
    promote = document.get("promote")
    asked = promote.get("approve") if isinstance(promote, Mapping) else None
    if asked is not True and not isinstance(asked, Mapping):
        return document
    own = document.get("approval") or {}
    return {**document, "approval": merge(own, asked) if isinstance(asked, Mapping) else own}


def _flaws(service: str, base: Mapping[str, Any], named: object) -> list[str]:
    """What is wrong with a service's environments, as far as it keeps them from being made."""
    if not isinstance(named, Mapping) or not named:
        return [f"{KEY}: expected a mapping with at least one environment; add one, or remove the key"]
    problems = [
        f"{key}: belongs to one environment; move it to {KEY}.<environment>.{key}" for key in _OWN if key in base
    ]
    edges: dict[str, dict[str, str]] = {"inherits": {}, "promote.from": {}}
    for env, document in named.items():
        path = f"{KEY}.{env!s:.100}"
        names = (env, f"{service}-{env}") if isinstance(env, str) else ("",)
        if not all(re.fullmatch(NAME_PATTERN[1:-1], each) for each in names):
            called = f"'{service:.100}-{env!s:.100}'"
            problems.append(f"{path}: it and the DAG's name {called} have to match {NAME_PATTERN}; rename it")
        if not isinstance(document, Mapping):
            problems.append(f"{path}: expected a mapping; write what is different there, {{}} when nothing is")
            continue
        problems += [f"{path}.{key}: is set by {KEY}; remove it" for key in ("environment",) if key in document]
        promote = document.get("promote")
        points = {
            "inherits": document.get("inherits"),
            "promote.from": promote.get("from") if isinstance(promote, Mapping) else None,
        }
        for key, to in points.items():
            if to is not None and (not isinstance(to, str) or to not in named):
                problems.append(f"{path}.{key}: no environment {to!r:.100}; there are: {', '.join(map(str, named))}")
            elif isinstance(to, str):
                edges[key][str(env)] = to
        if edges["promote.from"].get(str(env)) and document.get("build") is not None:
            problems.append(f"{path}.build: a promoted release is not built again; remove it")
    return problems + _circles(edges)


def _circles(edges: Mapping[str, Mapping[str, str]]) -> list[str]:
    problems = []
    for key, pairs in edges.items():
        try:
            TopologicalSorter({env: [to] for env, to in pairs.items()}).prepare()
        except CycleError as error:
            problems.append(f"{KEY}: {key} runs in a circle: {' → '.join(error.args[1])}; remove one of these edges")
    return problems
