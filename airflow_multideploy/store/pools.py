"""The Airflow pools behind the catalog's locks: what there is, what is missing, and how it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from airflow_multideploy.errors import SpecError
from airflow_multideploy.release.contract import Document
from airflow_multideploy.store import variables
from airflow_multideploy.store.database import database

MADE = "multideploy_pools"
"""Variable: a JSON object of the pools that ``airflow multideploy init`` made, with their slots. Tasks cannot see
pools; without this one, a plan could not refuse a release whose tasks would wait for a pool that does not exist."""
_ABOUT = "a lock of the multideploy catalog; kept by `airflow multideploy init`"


class Step(Document):
    """What is to be done about one pool, or was done.

    :param was: what is wrong with it; empty for one that is new, or good.
    """

    pool: str
    slots: int
    action: Literal["create", "correct", "keep"]
    was: str = ""


def known() -> dict[str, Any]:
    """The pools that were made, as far as a task can tell.

    :raises SpecError: the Variable is no JSON object.
    """
    found = variables.read_json(MADE)
    if not isinstance(found, dict | None):
        raise SpecError(
            f"Variable {MADE}: expected an object, got {type(found).__name__}; run `airflow multideploy init`"
        )
    return found or {}


def existing() -> dict[str, tuple[int, bool]]:
    """Slots of every pool that Airflow has, and whether tasks hold them that are deferred.

    :raises SpecError: the database cannot be read.
    """
    from airflow.models.pool import Pool

    with database() as session:
        return {str(pool.pool): (pool.slots, pool.include_deferred) for pool in Pool.get_pools(session=session)}


def steps(wanted: Mapping[str, int], found: Mapping[str, tuple[int, bool]]) -> list[Step]:
    """What each wanted pool needs.

    A task defers only where it waits for its window, which must keep nobody from the lock.

    :param wanted: their slots.
    """
    result = []
    for pool, slots in wanted.items():
        if pool not in found:
            result.append(Step(pool=pool, slots=slots, action="create"))
            continue
        has, deferred = found[pool]
        wrong = [f"{has} slots"] * (has != slots) + ["held by tasks that are deferred"] * deferred
        action: Literal["correct", "keep"] = "correct" if wrong else "keep"
        result.append(Step(pool=pool, slots=slots, action=action, was=", ".join(wrong)))
    return result


def make(todo: list[Step]) -> None:
    """Create and correct the pools, and say in a Variable that they are there.

    :raises SpecError: the database cannot be written.
    """
    from airflow.models import Variable
    from airflow.models.pool import Pool

    with database() as session:
        for step in todo:
            if step.action != "keep":
                Pool.create_or_update_pool(step.pool, step.slots, _ABOUT, include_deferred=False, session=session)
    try:
        told, there = known(), existing()
    except SpecError:  # spoilt: this is what mends it
        told, there = {}, {}
    others = {pool: slots for pool, slots in told.items() if pool in there}  # of another catalog file
    made = json.dumps({**others, **{step.pool: step.slots for step in todo}})
    if variables.get(MADE) != made:
        Variable.set(MADE, made, description=_ABOUT)
