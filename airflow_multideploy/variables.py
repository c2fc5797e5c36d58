"""The catalog in Airflow Variables, and the frozen config of runs in flight."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from airflow_multideploy.core.catalog import split
from airflow_multideploy.core.environments import bases, expand
from airflow_multideploy.core.errors import SpecError

INDEX = "multideploy_services"
"""JSON: service name → service, or → name of its shard; or a list of names with one Variable
``multideploy_service_<name>`` each."""
DEFAULTS = "multideploy_defaults"
ONE = "multideploy_service_"
SHARD = "multideploy_services_"
"""JSON: service name → service, for the services that the index says are in this shard: those of one team, perhaps."""
FROZEN = "multideploy_frozen_"
FROZEN_SECONDS = 7 * 86_400.0
"""After so long a frozen config is a leftover of a run that was deleted, and no longer counts."""


def supervised() -> bool:
    """Whether Airflow runs this process: a task's, or the DAG processor's; not ``dags test`` or a command."""
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None) is not None


def get(key: str) -> str | None:
    """A Variable's text, or None; works in tasks, in the DAG processor, under ``dags test`` and on the command line."""
    if supervised():
        from airflow.sdk import Variable

        value = Variable.get(key, default=None)
    else:
        from airflow.models import Variable as Stored

        value = Stored.get(key, default_var=None)
    return None if value is None else str(value)


def keys(prefix: str) -> list[str]:
    """Keys of Variables in the metadata database; empty where they cannot be listed."""
    if not supervised():
        return []
    from airflow.sdk import Variable

    return [str(key) for key in Variable.keys(prefix=prefix)]


def read_json(key: str) -> Any:
    """A Variable's JSON document, or None when there is no such Variable.

    :raises SpecError: it is no JSON.
    """
    text = get(key)
    if text is None:
        return None
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"Variable {key}: is no JSON ({error}); mend it") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is given twice is refused, because the first would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return found


def read_catalog() -> tuple[dict[str, Any], Any]:
    """The catalog's entries by service name, and the defaults.

    :raises SpecError: the index Variable is neither a mapping nor a list of names.
    """
    index, defaults = _index()
    document = cache(_document)
    return {name: _resolve(name, entry, document) for name, entry in index.items()}, defaults


def read_entry(name: str) -> tuple[Any, Any]:
    """One service's entry (None when there is none), by itself or as an environment of another, and the defaults."""
    index, defaults = _index()
    names = (name, *(base for base, _ in bases(name)))
    entries = {each: _resolve(each, index[each], _document) for each in names if each in index}
    return expand(entries, defaults, only=name).get(name), defaults


_MEND = f"set it, or mend {INDEX}"
_OWN = object()
"""Stands in the index for a service that has a Variable of its own."""


def _index() -> tuple[dict[str, Any], Any]:
    index = read_json(INDEX)
    if index is None:
        return {}, None
    if isinstance(index, list):
        return {str(name): _OWN for name in index}, read_json(DEFAULTS)
    if not isinstance(index, Mapping):
        raise SpecError(f"Variable {INDEX}: expected a mapping or a list of names, got {type(index).__name__}")
    try:
        entries, defaults = split(index)  # a file's layout, which people put into the Variable as it is
    except SpecError as error:
        raise SpecError([f"Variable {INDEX}: {problem}" for problem in error.problems]) from None
    return entries, read_json(DEFAULTS) if defaults is None else defaults


def _resolve(name: str, entry: Any, document: Callable[[str], Any]) -> Any:
    """The service's entry, wherever the index says that it is, or the error that stands in its place."""
    if entry is _OWN:
        own = document(ONE + name)
        return own if own is not None else SpecError(f"Variable {ONE + name}: is not set; {_MEND}", service=name)
    return _in_shard(document(SHARD + entry), name, entry) if isinstance(entry, str) else entry


def _in_shard(document: Any, name: str, shard: str) -> Any:
    """The service's entry, or the error that stands in its place."""
    if isinstance(document, Exception):
        return document
    if document is None:
        return SpecError(f"Variable {SHARD + shard}: is not set; {_MEND}", service=name)
    if not isinstance(document, Mapping) or name not in document:
        kind = "no service of that name" if isinstance(document, Mapping) else f"no mapping ({type(document).__name__})"
        return SpecError(f"Variable {SHARD + shard}: {kind}; add it there, or mend {INDEX}", service=name)
    return document[name]


def _document(key: str) -> Any:
    """A Variable's JSON, or the error that stands in its place."""
    try:
        return read_json(key)
    except SpecError as error:
        return error


def freeze(name: str, service: Mapping[str, Any], run_id: str) -> None:
    """Keep the resolved config while a run lasts: workers build its DAG from it, whatever becomes of the catalog."""
    from airflow.sdk import Variable

    document = {"service": service, "run_id": run_id, "at": time.time()}
    Variable.set(
        FROZEN + name, json.dumps(document), description=f"config of {name}'s run in flight; kept by multideploy"
    )


def thaw(name: str) -> None:
    """The run is over."""
    from airflow.sdk import Variable

    Variable.delete(FROZEN + name)


def frozen(name: str) -> dict[str, Any] | None:
    """The frozen config of a service's run in flight, or None.

    A spoilt one counts as none: the catalog's config is the next best for that run, and no other service suffers.
    """
    try:
        document = read_json(FROZEN + name)
    except SpecError:
        return None
    at = document.get("at") if isinstance(document, dict) else None
    if not isinstance(at, int | float) or time.time() - at > FROZEN_SECONDS:
        return None
    service = document.get("service")
    return service if isinstance(service, dict) else None
