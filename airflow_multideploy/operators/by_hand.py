"""What can be wrong with a DAG that is written by hand, said in one sentence when it is parsed."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NoReturn, Self, TypeVar, cast, get_args

from airflow.sdk import DAG, BaseOperator
from pydantic import BaseModel, ValidationError

from airflow_multideploy.catalog.problems import lines
from airflow_multideploy.catalog.service import VERSION_PATTERN, AtLeast, Policy, Strategy
from airflow_multideploy.errors import SpecError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
"""What task ids are made of, as far as assets, run ids and headers can have it too, and a rollback's id has room."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INNER = ("self", "kwargs", "args")
M = TypeVar("M", bound=BaseModel)


class Checked(BaseOperator):
    """Base of our operators: a misspelt argument is named with the one that was meant, and none of them is mapped."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Before Airflow looks for what is missing: what is missing may be there, and misspelt."""
        asked, own = _arguments(cls)
        if missing := asked - kwargs.keys():
            for key in kwargs.keys() - own:
                if not key.startswith("_") and (meant := difflib.get_close_matches(key, missing, n=1)):
                    raise SpecError(
                        f"{kwargs.get('task_id', cls.__name__)}: {key}: unknown argument; did you mean {meant[0]!r}?"
                    )
        made: Self = super().__new__(cls)
        return made

    @classmethod
    def partial(cls, **kwargs: Any) -> NoReturn:
        """Refused.

        :raises SpecError: always.
        """
        name = cls.__name__
        raise SpecError(
            f"{kwargs.get('task_id', name)}: cannot be mapped, because each target has a journal and a rollback "
            f"task of its own; make one for each: [{name}(task_id=f'deploy_{{region}}', …) for region in REGIONS]"
        )


def own_arguments(operator: type[BaseOperator], kwargs: dict[str, Any]) -> str:
    """Make sure of an operator's arguments that are left for Airflow; returns what messages call the task.

    Airflow's ``execution_timeout`` is switched off, also where the DAG's defaults or Airflow's settings have one: it
    would end a way back in the middle, and rollouts and rollbacks have deadlines of their own.

    :raises SpecError: an unknown one, or one that would break a release.
    """
    task_id = str(kwargs.get("task_id", operator.__name__))
    known(task_id, kwargs, _arguments(operator)[1])
    if kwargs.get("execution_timeout") is not None:
        raise SpecError(
            f"{task_id}: execution_timeout: would end it in the middle, whatever it has written; leave it out: a "
            "deploy's timeout and rollback_timeout (seconds) are deadlines for rollout and way back"
        )
    kwargs["execution_timeout"] = None
    return task_id


def known(place: str, given: Iterable[str], names: frozenset[str]) -> None:
    """Make sure that all of these are arguments.

    :raises SpecError: one is not; with the one that was meant.
    """
    if unknown := sorted(key for key in given if key not in names and not key.startswith("_")):
        meant = {key: difflib.get_close_matches(key, names, n=1) for key in unknown}
        raise SpecError(
            [
                f"{place}: {key}: unknown argument; " + (f"did you mean {near[0]!r}?" if near else "remove it")
                for key, near in meant.items()
            ]
        )


@cache
def airflows() -> frozenset[str]:
    """The arguments of every operator."""
    return frozenset(inspect.signature(BaseOperator.__init__).parameters) - {*_INNER}


@cache
def _arguments(operator: type[BaseOperator]) -> tuple[frozenset[str], frozenset[str]]:
    """An operator's arguments: those that it asks for, and all."""
    parts = [
        vars(each)[name] for each in operator.__mro__ for name in ("__init__", "_init") if name in vars(each)
    ]  # `_init`: see `ReleaseOperator`
    found = {n: p for part in parts for n, p in inspect.signature(part).parameters.items() if n not in _INNER}
    asked = {n for n, p in found.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY}
    return frozenset(asked), frozenset(found)


def named(task_id: str, **names: str) -> None:
    """Make sure that service and target are called as tasks may be: tasks, journals and assets bear these names.

    :raises SpecError: one is not.
    """
    for key, name in names.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            why = f"{name!r:.250} is no name; give letters (a-z), digits, '_', '-', '.', at most 200: {key}='eu'"
        elif key == "target" and name == "journal":
            why = "'journal' is where the journals of all targets are; give another name"
        else:
            continue
        raise SpecError(f"{task_id}: {key}: {why}")


def hurried(dag: DAG) -> str:
    """Why no release can be made in runs of this DAG; an empty text when it can."""
    if dag.dagrun_timeout is None:
        return ""
    return (
        f"{dag.dag_id}: dagrun_timeout: a run that it ends skips its rollbacks; leave it out: a deploy's timeout and "
        "rollback_timeout (seconds) are deadlines for rollout and way back"
    )


def templated(*values: object) -> bool:
    """Whether one of them is known only when it is rendered."""
    return any(not isinstance(value, str) or "{{" in value or "{%" in value for value in values)


def pinned(place: str, image: object, version: object) -> tuple[str, str, str | None]:
    """The full image reference of a release, its version, and its digest where the reference has one.

    An image without tag and digest is that of the version; a version that nobody gives is the tag, else the digest.

    :raises SpecError: they are no image and no version, say different things, or do not say which image it is.
    """
    for key, given in (("image", image), ("version", version)):
        if not isinstance(given, str):
            kind = type(given).__name__
            raise SpecError(
                f"{place}: {key}: is a {kind}, not a text; quote it, or give the task "
                "render_template_as_native_obj=False"
            )
    image, version = str(image).strip(), str(version).strip()
    if not image:
        raise SpecError(
            f"{place}: image: missing; give the full image reference, such as registry.example.com/shop:5.1"
        )
    name, at, digest = image.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    repository = f"{head}{slash}{last}"
    if not _REPOSITORY.fullmatch(repository) or not last or (at and not _DIGEST.fullmatch(digest)):
        raise SpecError(f"{place}: image: {image!r:.250} is none; write it as registry.example.com/shop:5.1")
    for key, given in (("version", version), ("image: the tag", tag)):
        if (given or (colon and key != "version")) and not re.fullmatch(VERSION_PATTERN[1:-1], given):
            raise SpecError(
                f"{place}: {key}: {given!r:.150} is no image tag; give letters, digits, '_', '.' and '-', such as 5.1"
            )
    if tag and version and tag != version:
        raise SpecError(
            f"{place}: image: has the tag {tag!r}, and version is {version!r}; leave one of them out, or make "
            "them equal"
        )
    if not (tag or digest or version):
        raise SpecError(
            f"{place}: image: {image!r} has no tag, and there is no version; add version, or write {image}:5.1"
        )
    full = image if tag or digest else f"{image}:{version}"
    return full, version or tag or digest.partition(":")[2], digest or None


def policy_of(place: str, policy: object) -> Policy:
    """A policy as it is written in a DAG.

    :raises SpecError: there is no such policy.
    """
    if isinstance(policy, AtLeast):
        return policy
    if isinstance(policy, Mapping):
        return model(place, AtLeast, policy, prefix="policy")
    if policy in ("all", "critical"):
        return cast("Policy", policy)
    raise SpecError(f"{place}: policy: {_none_of(policy, ('all', 'critical'))} or {{'at_least': 2}}")


def strategy_of(place: str, strategy: object) -> Strategy:
    """A strategy as it is written in a DAG.

    :raises SpecError: there is no such strategy.
    """
    if strategy in get_args(Strategy):
        return cast("Strategy", strategy)
    raise SpecError(f"{place}: strategy: {_none_of(strategy, get_args(Strategy))}")


def _none_of(value: object, words: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), words, n=1)
    guess = f"did you mean {near[0]!r}? There are" if near else "give one of"
    return f"there is no {value!r:.100}; {guess} " + ", ".join(map(repr, words))


def model(place: str, kind: type[M], document: Any, *, prefix: str = "") -> M:
    """A document of ours that is given as an argument.

    :raises SpecError: it is none; as with a catalog.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise SpecError([f"{place}: {line}" for line in lines(error, kind, prefix=prefix)]) from None
