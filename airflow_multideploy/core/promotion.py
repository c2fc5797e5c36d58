"""What a release waits for beside its own service: the environment before it, and other services."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from airflow_multideploy.core.gate import Gate
from airflow_multideploy.core.strict import Model, Patience

if TYPE_CHECKING:
    from airflow_multideploy.core.models import Service

_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


Approve = Annotated[
    # The tags stand in an error's path, like pydantic's own names of a union's branches, and are left out likewise.
    Annotated[bool, Tag("function-bool")] | Annotated[Gate, Tag("function-gate")],
    Discriminator(lambda value: "function-gate" if isinstance(value, Mapping | Gate) else "function-bool"),
]


class Promote(Model):
    """Releases what another environment has verified, whenever it has: the same version and digest.

    ``from``: that environment; in a service without environments, that service.

    :param bake: seconds, at most three days, for which it has to have been live there; it is not released when
        something else is live by then.
    :param degraded: also a release that not every target of the source took.
    :param approve: it is asked for first: true, or an approval's settings.
    """

    source: Annotated[str, Field(min_length=1, alias="from")]
    bake: Patience | None = None
    degraded: bool = False
    approve: Approve = False

    model_config = {"serialize_by_alias": True}


def _short(value: object) -> object:
    return {"version": value} if isinstance(value, str) else value


class Required(Model):
    """The version of another service that has to be live on all of its targets before this one is released.

    :param version: a version specifier such as ``>=1.4,<2``, or the text of exactly one version.
    :param wait: seconds, at most three days, that a release waits for it, counted from its own beginning; None: it is
        refused at once.
    """

    version: Annotated[str, Field(min_length=1, max_length=200)]
    wait: Patience | None = None

    @field_validator("version")
    @classmethod
    def _readable(cls, value: str) -> str:
        if _specifiers(value) is None and not re.fullmatch(_PLAIN, value):
            raise ValueError("is neither a version nor a specifier; write one such as 1.4.2 or >=1.4,<2")
        return value

    def met_by(self, version: str) -> bool:
        """Whether that version is one of those; one that cannot be compared is, when the text is the same."""
        from packaging.version import InvalidVersion, Version

        specifiers = _specifiers(self.version)
        try:
            return version == self.version or (
                specifiers is not None and specifiers.contains(Version(version), prereleases=True)
            )
        except InvalidVersion:
            return False


def _specifiers(text: str) -> Any:
    """The specifiers that a text consists of, or None."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(text) if text.strip(" ,") else None
    except InvalidSpecifier:
        return None


Requirement = Annotated[Required, BeforeValidator(_short, json_schema_input_type=str | Required)]


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
