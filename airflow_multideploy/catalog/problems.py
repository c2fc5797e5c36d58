"""Problems of a document, as lines that name the place, the reason and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError

from airflow_multideploy.catalog.target import NAME_PATTERN

_REMEDIES = {
    "missing": "add it",
    "string_pattern_mismatch": "write it as the pattern says",
    "string_type": "write a string (quote it)",
    "bool_type": "write true or false",
    "literal_error": "take one of those",
    "int_type": "write a number without quotes",
    "float_type": "write a number without quotes",
    "greater_than": "write a larger one",
    "greater_than_equal": "write a larger one",
    "less_than_equal": "write a smaller one",
}


_WORDS = {
    "dict_type": "expected a mapping; write one",
    "model_type": "expected a mapping; write one",
    "model_attributes_type": "expected a mapping; write one",
    "tuple_type": "expected a list; write one",
    "list_type": "expected a list; write one",
    "too_short": "is empty; add an entry, or leave the key out",
}
"""Where pydantic's own words name Python's types."""


_BRANCHES = ("function-", "AtLeast", "literal[")


def lines(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[str]:
    """One line per problem of a pydantic error: path, reason, remedy. Never the input itself."""
    found = []
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    for problem in problems:
        size = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:size] == problem["loc"] != p["loc"] for p in problems):
            continue  # its entries are wrong, which leaves none
        *parents, last = map(str, problem["loc"] or ("(whole)",))
        # A union's branches stand in the path as well; an unknown key may be called like one.
        steps = [s for s in parents if not s.startswith(_BRANCHES)]
        if problem["type"] == "extra_forbidden" or not last.startswith(_BRANCHES):
            steps.append(last)
        path = _shown(".".join([prefix, *map(_shown, steps)] if prefix else map(_shown, steps)))
        if problem["type"] == "extra_forbidden":
            *above, key = steps
            known = _keys(model, above)
            inside = (f"{name}.{key}" for name in known if key in _keys(model, [*above, name]))
            guess = difflib.get_close_matches(key, known, n=1) or [*inside]
            hint = f"did you mean {guess[0]!r}?" if guess else "remove it"
            found.append(f"{path}: unknown key; {hint}")
            continue
        message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        remedy = _REMEDIES.get(problem["type"])
        found.append(f"{path}: {message}" + (f"; {remedy}" if remedy and remedy not in message else ""))
    return found


def _keys(model: type[BaseModel], steps: Iterable[str]) -> list[str]:
    for step in steps:
        info = model.model_fields.get(step)
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())] if info else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _misnamed(name: object) -> str:
    if isinstance(name, bool):
        return "is YAML's word for true or false (on, off, yes, no), unless it is quoted"
    return f"does not match {NAME_PATTERN}"


def _matches(pattern: str, value: str) -> bool:
    return re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value) is not None


def _shown(key: object) -> str:
    """A key as a path shows it: on one line, and to be seen."""
    text = str(key)
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return text if text.strip() and text.isprintable() else repr(text)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
