"""What passes between a release and other people's pipelines: the config that all of them have, and their runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter, model_validator

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.rest import Json
from airflow_multideploy.release.contract import Release

_TEXT: TypeAdapter[str] = TypeAdapter(Located)


def _checked(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {name: _checked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_checked(item) for item in value]
    return _TEXT.validate_python(value) if isinstance(value, str) else value


def filled(template: JsonValue, release: Release) -> JsonValue:
    """The template with the release's values in its strings, at any depth."""
    if isinstance(template, dict):
        return {name: filled(item, release) for name, item in template.items()}
    if isinstance(template, list):
        return [filled(item, release) for item in template]
    return located(template, release) if isinstance(template, str) else template


Parameters = Annotated[dict[str, JsonValue], AfterValidator(_checked)]
"""What a run is given: JSON with ``${image}``, ``${version}`` and so on in its strings."""
Address = Annotated[str, AfterValidator(addresses.written), Field(pattern=r"^https?://[^?#]*$")]


class DelegateConfig(TargetConfig):
    """What every target has that is another system's pipeline.

    :param scope: parameters, with their values, by which a run belongs to this target: needed where one pipeline
        deploys several things. Runs with other values are not looked at.
    :param console: address of the system's web page, which the UI links to.
    """

    scope: dict[str, JsonValue] = Field(default_factory=dict)
    console: Address | None = None

    @property
    def given(self) -> Json:
        """What a run is given."""
        raise NotImplementedError

    @property
    def pipelines(self) -> tuple[str, str, str | None]:
        """The pipelines that deploy, roll back and remove."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _fits(self) -> DelegateConfig:
        if not re.search(r"\$\{?(image|version|digest)\b", str(self.given)):
            raise ValueError("names neither ${image} nor ${version} nor ${digest}: every release would be the same run")
        deploys, rollbacks, removes = self.pipelines
        if removes in (deploys, rollbacks):
            raise ValueError(f"{removes!r} cannot remove: it is the one that deploys or rolls back")
        return self


@dataclass(frozen=True)
class Run:
    """One run of a pipeline.

    :param key: the deterministic name under which we start one; a run that is not ours has any other, or none.
    :param since: epoch seconds of its start; infinite: it waits for it.
    :param words: what the system says about its state.
    :param stopping: it was told to stop.
    """

    id: str
    key: str
    pipeline: str
    state: Literal["active", "succeeded", "failed"]
    since: float
    parameters: Json = field(repr=False)
    words: str = ""
    progress: float | None = None
    stopping: bool = False

    def __str__(self) -> str:
        return f"run {self.key or self.id} of {self.pipeline}"


def moment(text: str | None) -> float:
    """Epoch seconds of an ISO 8601 time; infinite when there is none yet."""
    return datetime.fromisoformat(text).timestamp() if text else float("inf")
