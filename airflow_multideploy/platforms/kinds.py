"""The kinds of platform that are installed, and how an adapter is made."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from airflow_multideploy.catalog.problems import lines
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import SpecError, UnknownPlatform
from airflow_multideploy.release.contract import Capabilities, Manual, Platform

ENTRY_POINT_GROUP = "airflow_multideploy.platforms"


@cache
def kinds() -> dict[str, Any]:
    """Entry points of all installed platforms by kind; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name)}


@cache
def platform_type(kind: str) -> type[Platform[Any]]:
    """The adapter class of a kind: it has all that a platform declares, and can be made.

    :raises UnknownPlatform: not installed, its plugin does not load, or what it names is no whole platform.
    """
    point = kinds().get(kind)
    if point is None:
        raise UnknownPlatform(f"platform {kind!r} is not installed; installed: {', '.join(kinds())}")
    try:
        loaded: type[Platform[Any]] = point.load()
    except (Exception, SystemExit) as error:  # a third party's plugin may raise anything, and may end the process
        raise UnknownPlatform(f"platform {kind!r} ({point.value}) cannot be loaded: {error!r}") from error
    if why := _unfit(loaded, kind):
        raise UnknownPlatform(f"platform {kind!r}: {point.value} {why}")
    return loaded


def _unfit(loaded: Any, kind: str) -> str | None:
    """Why that is no adapter class of the kind, with the remedy; None: it is one."""
    if not (isinstance(loaded, type) and issubclass(loaded, Platform)):
        return "is no subclass of Platform; name one in the entry point"
    found, config = getattr(loaded, "kind", None), getattr(loaded, "config_type", None)
    typed = isinstance(config, type) and issubclass(config, TargetConfig)
    able = isinstance(getattr(loaded, "capabilities", None), Capabilities)
    missing = ", ".join(sorted(loaded.__abstractmethods__))
    checks = (
        (found == kind, f"has the kind {found!r}, its entry point the name {kind!r}; make them equal"),
        (able, "does not say what it can do; set capabilities = Capabilities(…)"),
        (typed, "has no typed config; set config_type to a subclass of TargetConfig"),
        (
            isinstance(loaded.manual, Manual | None),
            "has a manual that is none; set manual = Manual(…), or leave it out",
        ),
        (not missing, f"lacks {missing}; write what the contract asks for"),
    )
    return next((why for good, why in checks if not good), None)


def config_type(kind: str) -> type[TargetConfig]:
    """The typed config of a kind. See `platform_type`."""
    return platform_type(kind).config_type


def adapter(config: TargetConfig | dict[str, Any], *, service: str, target: str) -> Platform[Any]:
    """The adapter of one target, from its config or that config's JSON form.

    :raises UnknownPlatform: no such kind.
    :raises SpecError: the config does not fit the kind.
    """
    if isinstance(config, dict):
        cls = platform_type(str(config.get("platform")))
        try:
            config = cls.config_type.model_validate(config)
        except ValidationError as error:
            raise SpecError(lines(error, cls.config_type, prefix=f"targets.{target}"), service=service) from None
    else:
        cls = platform_type(config.platform)
    return cls(config, service=service, target=target)
