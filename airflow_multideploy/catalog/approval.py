"""Where a release waits for a person: who may answer, how long, and what no answer means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from airflow_multideploy.strict import Model, Patience


def _somebody(users: tuple[str, ...]) -> tuple[str, ...]:
    if not users:
        raise ValueError("is empty; name who may answer, or leave it out for whoever may at all")
    return users


Users = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False), AfterValidator(_somebody)]
Choice = Literal["retry", "roll_back_failed", "roll_back_all", "accept"]
"""What a person may pick when the policy is not met, with strategy ``manual``."""


class Gate(Model):
    """Who is asked before a release goes on.

    :param users: who may answer, by the ids that Airflow's auth manager knows them by; None: whoever may at all.
    :param timeout: seconds, at most three days.
    :param default: what no answer in time means.
    """

    users: Users | None = None
    timeout: Patience = 86_400.0
    default: Literal["approve", "reject"] = "reject"
