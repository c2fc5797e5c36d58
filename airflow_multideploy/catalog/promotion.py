"""What a release waits for beside its own service: the environment before it, and other services."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from airflow_multideploy.catalog.approval import Gate
from airflow_multideploy.strict import Model, Patience

if TYPE_CHECKING:
    pass

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
