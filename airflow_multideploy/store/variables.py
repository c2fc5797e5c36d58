"""The catalog in Airflow Variables, and the frozen config of runs in flight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from airflow_multideploy.catalog.environments import bases, expand
from airflow_multideploy.catalog.parse import split
from airflow_multideploy.errors import SpecError, Unreadable

INDEX = "multideploy_services"
"""JSON: service name → service, or → name of its shard; or a list of names with one Variable
``multideploy_service_<name>`` each."""
DEFAULTS = "multideploy_defaults"
ONE = "multideploy_service_"
SHARD = "multideploy_services_"
"""JSON: service name → service, for the services that the index says are in this shard: those of one team, perhaps."""
FROZEN = "multideploy_frozen_"
OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of a task that has ended."""


def supervised() -> bool:
    """Whether Airflow runs this process: a task's, or the DAG processor's; not ``dags test`` or a command."""
    from airflow.sdk.execution_time import task_runner

    return getattr(task_runner, "SUPERVISOR_COMMS", None) is not None


def get(key: str) -> str | None:
    """A Variable's text, or None where there certainly is none; works in tasks, in the DAG processor, under
    ``dags test`` and on the command line.

    :raises Unreadable: a secrets backend, or Airflow's API, did not say whether there is one.
    """
    try:
        if supervised():
            from airflow.sdk import Variable

            value = Variable.get(key, default=None)
        else:
            from airflow.models import Variable as Stored

            value = Stored.get(key, default_var=None)
        value = _asked_again(key) if value is None else value
    except Exception as error:
        why = f"cannot be read ({type(error).__name__}; Airflow's log has more), so whether it is set is not known"
        raise Unreadable(f"Variable {key}: {why}; see that secrets backends and Airflow's API answer") from error
    return None if value is None else str(value)


def _asked_again(key: str) -> str | None:
    """As Airflow's own look-up, which takes a backend that does not answer for one that has no such Variable."""
    for backend in _backends():
        found = _asked_of_api(key) if type(backend).__name__ == "ExecutionAPISecretsBackend" else None
        found = backend.get_variable(key=key) if found is None else found
        if found is not None:
            return str(found)
    return None


def _backends() -> Iterable[Any]:
    if supervised():
        from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

        return ensure_secrets_backend_loaded()
    from airflow.configuration import ensure_secrets_loaded

    return ensure_secrets_loaded()


def _asked_of_api(key: str) -> str | None:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable

    answer: Any = task_runner.SUPERVISOR_COMMS.send(GetVariable(key=key))
    if not isinstance(answer, ErrorResponse):
        return None if answer.value is None else str(answer.value)
    if answer.error is ErrorType.VARIABLE_NOT_FOUND:
        return None
    raise AirflowRuntimeError(answer)


def keys(prefix: str) -> list[str]:
    """Keys of Variables in the metadata database; empty outside tasks and the DAG processor.

    :raises Unreadable: they cannot be listed.
    """
    if not supervised():
        return []
    from airflow.sdk import Variable

    try:
        return [str(key) for key in Variable.keys(prefix=prefix)]
    except Exception as error:
        why = f"cannot be listed ({type(error).__name__}; Airflow's log has more)"
        raise Unreadable(f"Variables {prefix}…: {why}; see that Airflow's API answers") from error


def read_json(key: str) -> Any:
    """A Variable's JSON document, or None when there is no such Variable.

    :raises SpecError: it is no JSON, or `Unreadable`.
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

    :raises SpecError: the index Variable is neither a mapping nor a list of names, or it or the defaults are
        `Unreadable`.
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


@dataclass(frozen=True)
class Frozen:
    """The resolved config of a service's run in flight."""

    service: dict[str, Any]
    run_id: str


def freeze(name: str, service: Mapping[str, Any], run_id: str) -> None:
    """Keep the resolved config while a run lasts: workers build its DAG from it, whatever becomes of the catalog."""
    from airflow.sdk import Variable

    document = {"service": service, "run_id": run_id}
    Variable.set(
        FROZEN + name, json.dumps(document), description=f"config of {name}'s run in flight; kept by multideploy"
    )


def thaw(name: str, run_id: str) -> None:
    """The run is over: forget its config; that of another run stays.

    :raises Unreadable: whose it is cannot be read.
    """
    from airflow.sdk import Variable

    kept = frozen(name)
    if kept is not None and kept.run_id == run_id:
        Variable.delete(FROZEN + name)


def frozen(name: str) -> Frozen | None:
    """The frozen config of a service's run, or None; `under_way` tells whether that run is a leftover.

    A spoilt one counts as none: the catalog's config is the next best for that run, and no other service suffers.

    :raises Unreadable: whether there is one is not known.
    """
    try:
        document = read_json(FROZEN + name)
    except Unreadable:
        raise
    except SpecError:
        return None
    known = document if isinstance(document, dict) else {}
    service, run_id = known.get("service"), known.get("run_id")
    return Frozen(service, run_id) if isinstance(service, dict) and isinstance(run_id, str) else None


def under_way(dag_id: str, run_id: str) -> bool:
    """Whether a task of the run is still to end; also where Airflow does not say. False of a run that was deleted."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    try:
        states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id])
        return any(state not in OVER for state in states.get(run_id, {}).values())
    except Exception:  # noqa: BLE001 - whatever it is, the run may be under way
        return True
