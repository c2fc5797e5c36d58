"""Conditions over params: what they may say, and what they come to."""

from __future__ import annotations

import pytest

from airflow_multideploy.catalog.conditions import flaw, holds
from airflow_multideploy.errors import SpecError

PARAMS = {"region": "eu", "canary": True, "size": 3, "reason": None}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('params.region == "eu"', True),
        ('params.region != "eu"', False),
        ('params.region in ["eu", "us"]', True),
        ('params.region not in ("eu",)', False),
        ("params.canary", True),
        ("not params.canary", False),
        ('params.size > 2 and params.region == "eu"', True),
        ("2 < params.size < 3", False),
        ("params.size == -1 or params.canary", True),
        ("params.reason == None", True),
        ("  params.canary\n", True),
    ],
)
def test_holds(expression: str, expected: bool) -> None:
    assert holds(expression, PARAMS) is expected


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "is no expression"),
        ("params.region = 'eu'", "is no expression"),
        ("__import__('os').system('x')", "more than comparisons"),
        ("params.region.upper() == 'EU'", "more than comparisons"),
        ("params['region'] == 'eu'", "more than comparisons"),
        ("[p for p in params]", "more than comparisons"),
        ("2 ** 99999999 > 1", "more than comparisons"),
        ("params.__class__ == 1", "no param '__class__'"),
        ("params.regoin == 'eu'", "no param 'regoin'; there are: canary"),
        ("params.region.x == 1", "no param 'x'"),
        ("region == 'eu'", "write params.region"),
        ("True", "does not depend on any param"),
        ("params", "does not depend on any param"),
    ],
)
def test_what_else_it_holds_is_refused_at_the_door(expression: str, said: str) -> None:
    assert said in str(flaw(expression, PARAMS))
    with pytest.raises(SpecError, match="when: "):
        holds(expression, PARAMS)


@pytest.mark.parametrize("name", ["copy", "values", "items", "keys", "clear", "update", "real", "count"])
def test_a_param_is_read_whatever_its_name(name: str) -> None:
    assert holds(f"params.{name} == 'eu'", {name: "eu"}) is True
    assert holds(f"params.{name} == 'eu'", {name: "us"}) is False


@pytest.mark.parametrize("name", ["format", "mro", "func_code", "_own"])
def test_a_name_that_the_library_does_not_read_is_refused_at_the_door(name: str) -> None:
    assert f"cannot read a param called {name!r}" in str(flaw(f"params.{name} == 1", {name: 1}))


def test_what_comes_to_no_truth_value_is_an_error() -> None:
    with pytest.raises(SpecError, match="comes to str"):
        holds("params.region", PARAMS)
    with pytest.raises(SpecError, match="TypeError"):
        holds("params.region > 3", PARAMS)
