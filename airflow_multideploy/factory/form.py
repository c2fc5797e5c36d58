"""The form with which a release is triggered."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from airflow_multideploy.catalog.service import VERSION_PATTERN, Parameter, Service
from airflow_multideploy.release.plan import DIGEST_PATTERN


def _params(service: Service) -> dict[str, Param]:
    names = list(service.targets)
    pattern = f"^({DIGEST_PATTERN}|{VERSION_PATTERN[1:-1]})$"
    version: dict[str, Any] = {"type": "string", "pattern": pattern, "title": "Version"}
    if service.version is not None:
        version["default"] = service.version
    elif service.promote is not None:  # it comes with the event that starts the run
        version |= {"default": None, "type": ["null", "string"]}
    return {
        "version": Param(description="image tag to release: letters, digits, _ . and -, at most 128", **version),
        "targets": Param(
            default=names,
            type="array",
            items={"type": "string", "enum": names},
            examples=names,
            minItems=1,
            uniqueItems=True,
            title="Targets",
            description="where to release",
        ),
        "reason": Param(
            default=None,
            type=["null", "string"],
            maxLength=500,
            title="Reason",
            description="why; kept with the release",
        ),
        "dry_run": Param(default=False, type="boolean", title="Dry run", description="plan only, write nothing"),
        "force": Param(
            default=False,
            type="boolean",
            title="Force",
            description="write even where the version is live, known as bad, or another run is in doubt",
        ),
        "rollback": Param(
            default=False,
            type="boolean",
            title="Roll back",
            description="release an earlier version again, exactly as it was: `previous`, a version or a digest",
        ),
        "override": Param(
            default=None,
            type=["null", "string"],
            maxLength=500,
            title="Override windows and freezes",
            description="the reason for which they do not count this time; kept with the release",
        ),
        **{name: _param(name, parameter) for name, parameter in service.params.items()},
    }


def _param(name: str, parameter: Parameter) -> Param:
    schema: dict[str, Any] = {"type": parameter.type, "title": name, "description": parameter.description}
    if parameter.enum is not None:
        schema["enum"] = list(parameter.enum)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return Param(**schema)
