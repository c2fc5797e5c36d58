"""What everything that people write in a catalog is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Model(BaseModel):
    """Strict: unknown keys and wrong types are errors; frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def number(value: object) -> object:
    """The value, if it is a number; for a field that takes whole ones too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number of seconds")
    return value


DAY = 86_400
Seconds = Annotated[float, Field(gt=0, le=DAY, strict=False), BeforeValidator(number)]
SecondsOrZero = Annotated[float, Field(ge=0, le=DAY, strict=False), BeforeValidator(number)]
"""As `Seconds`; 0: not at all."""
Patience = Annotated[float, Field(gt=0, le=3 * DAY, strict=False), BeforeValidator(number)]
"""Seconds that a question to a person stands; less than the week for which a run's config is kept."""
