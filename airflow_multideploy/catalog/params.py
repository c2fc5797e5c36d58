"""A run's own params: what they may be."""

from __future__ import annotations

from airflow_multideploy.catalog.service import Parameter

CONF_KEYS = ("version", "targets", "reason", "dry_run", "force", "rollback", "override")
"""What a run's conf may hold."""


def unfit(value: object, parameter: Parameter) -> str | None:
    """Why a run's param cannot be this, with the remedy; None when it can."""
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
    }
    if value is None:
        return f"missing; give {_article(parameter.type)}"
    if not isinstance(value, kinds[parameter.type]) or (isinstance(value, bool) and parameter.type != "boolean"):
        return f"expected {_article(parameter.type)}"
    if parameter.enum is not None and value not in parameter.enum:
        return f"is none of {', '.join(map(str, parameter.enum))}; take one of those"
    return None


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
