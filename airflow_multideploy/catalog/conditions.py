"""Conditions over a run's params, such as ``params.region == "eu"``: evaluated by a library, never by ``eval``."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

from airflow_multideploy.errors import MissingExtra, SpecError

_ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Attribute, ast.Constant, ast.List, ast.Tuple),
    *(ast.boolop, ast.Not, ast.USub, ast.cmpop, ast.Load),
)


_NO_NAMES = ("format", "format_map", "mro")
"""What the library reads of nothing."""


def flaw(expression: str, known: Collection[str]) -> str | None:
    """What is wrong with a condition, and the remedy; None when it can be evaluated.

    :param known: names of the params that a run has.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is no expression; write one such as params.region == 'eu'"
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            return "holds more than comparisons with and, or, not, in; keep to those"
        if isinstance(node, ast.Name) and node.id != "params":
            return f"knows nothing called {node.id!r}; write params.{node.id}, or quote it when it is a text"
        if isinstance(node, ast.Attribute) and (why := _unreadable(node, known)):
            return why
    if not isinstance(tree.body, ast.BoolOp | ast.UnaryOp | ast.Compare | ast.Attribute):
        return "does not depend on any param; write one such as params.region == 'eu'"
    return None


def _unreadable(node: ast.Attribute, known: Collection[str]) -> str:
    if not (isinstance(node.value, ast.Name) and node.attr in known):
        return f"there is no param {node.attr!r}; there are: {', '.join(sorted(known))}"
    if node.attr in _NO_NAMES or node.attr.startswith(("_", "func_")):
        return f"cannot read a param called {node.attr!r}; rename it"
    return ""


def holds(expression: str, params: Mapping[str, Any]) -> bool:
    """Whether a condition is true for a run with these params.

    :raises SpecError: it cannot be evaluated, or comes to something else than true or false.
    :raises MissingExtra: the library is not installed.
    """
    try:
        from simpleeval import EvalWithCompoundTypes
    except ImportError:
        remedy = "pip install 'airflow-provider-multideploy[conditions]'"
        raise MissingExtra(f"when: conditions are evaluated by the library simpleeval; {remedy}") from None

    if (why := flaw(expression, params)) is not None:
        raise SpecError(f"when: {expression!r}: {why}")
    try:
        found = EvalWithCompoundTypes(names={"params": SimpleNamespace(**params)}, functions={}).eval(
            expression.strip()
        )
    except Exception as error:  # noqa: BLE001 - comparing a text with a number, for instance
        raise SpecError(f"when: {expression!r}: {type(error).__name__}: {error}; mend it") from None
    if not isinstance(found, bool):
        raise SpecError(f"when: {expression!r}: comes to {type(found).__name__}, not to true or false; compare it")
    return found
