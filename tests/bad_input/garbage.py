"""Documents bent out of shape: what goes wrong in a catalog, a store or on a wire, drawn from a `random.Random`."""

from __future__ import annotations

import copy
import datetime as dt
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

CANARIES = (
    "AKIAIOSFODNN7CANARY0",
    "ghp_" + "CanaryCanaryCanaryCanaryCanaryCanary",
    "postgres://shop:canary-pw-51c0@db.test/shop",
    "Bearer canary-tok-7f3a9d2e4b",
)
"""Texts that look like a secret: none may stand in a message."""
HIDDEN = "canary-of-others-4d1e"
"""A secret that looks like nothing: it is planted where a platform keeps other people's values."""
PASSWORD = "sandbox-secret"
"""In every stand-in's Connection."""
KEYS = (
    "password",
    "token",
    "schlüssel",
    "ключ",
    "a b",
    "",
    "\x00",
    "\u202egnp",
    "platform",
    "targets",
    "😀",
    "x" * 3000,
)


@dataclass
class Tally:
    """What a kind of document came to.

    :param taken: how many were read without an error, as bent as they were.
    """

    documents: int = 0
    taken: int = 0
    violation: str = ""


def hold(check: Callable[[random.Random], bool], *, documents: int, seed: int, shrink: bool = True) -> Tally:
    """Let Hypothesis make so many documents; ends at the first violation, told with the smallest document found.

    :param shrink: False where a document costs a conversation over the network.
    """
    tally = Tally()

    def one(rng: random.Random) -> None:
        tally.documents += 1
        tally.taken += check(rng)

    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    quiet = settings(
        max_examples=documents, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    try:
        hypothesis_seed(seed)(quiet(given(st.randoms(use_true_random=False))(one)))()
    except Exception as error:
        tally.violation = f"{type(error).__name__}: {error}"
    return tally


def leaks(text: str) -> str | None:
    """The canary that stands in a text, if one does."""
    return next(
        (c for c in (*CANARIES, HIDDEN, PASSWORD, "canary-pw-51c0", "canary-tok-7f3a9d2e4b") if c in text), None
    )


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a JSON document that is not too deep, the document itself first."""
    yield path
    if len(path) > 20:
        return
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path."""
    for key in path:
        document = document[key]
    return document


def value(rng: random.Random, *, json_only: bool = False) -> Any:
    """Something that is not what was expected there."""
    plain: list[Any] = [
        None, True, False, 0, -1, 3, 10**30, 1e308, 0.5, "", " ", "x", "0", "null", "a\nb\x07", "é😀\u202e",
        [], {}, [None], {"": None}, ["x", 1], {"target": "aws"}, "${version}", "{{ var.value.x }}", "../..", "∞", "²",
        rng.choice(CANARIES), [rng.choice(CANARIES)], {rng.choice(KEYS): rng.choice(CANARIES)},
        "x" * 20_000, deep(rng.choice((5, 60, 400))),
    ]  # fmt: skip
    strange: list[Any] = [
        float("nan"), float("inf"), 10**400, "\ud800", b"\xff\x00", {1, 2}, (1, 2), {1: 2, None: 3}, {("a",): 1},
        dt.date(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), object, itself(),
    ]  # fmt: skip
    return rng.choice(plain if json_only else plain + strange)


def deep(levels: int) -> Any:
    """A document in a document in a document."""
    found: Any = "x"
    for level in range(levels):
        found = [found] if level % 2 else {"k": found}
    return found


def itself() -> dict[str, Any]:
    """A document that holds itself."""
    document: dict[str, Any] = {}
    document["self"] = document
    return document


def bent(rng: random.Random, document: Any, *, json_only: bool = False) -> Any:
    """The document with one to four changes: dropped, emptied, another type, moved, repeated, renamed, added to."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = _changed(rng, document, json_only)
    return document


def _changed(rng: random.Random, document: Any, json_only: bool) -> Any:
    known = list(places(document))
    path = known[rng.randrange(len(known))]
    if not path:
        # The whole of it, but seldom: what is inside is more of a test.
        path = known[rng.randrange(len(known))]
        if not path:
            return value(rng, json_only=json_only)
    parent, key = at(document, path[:-1]), path[-1]
    change = rng.choice(("drop", "value", "value", "value", "wrap", "text", "move", "repeat", "rename", "add"))
    if change == "drop":
        del parent[key]
    elif change == "value":
        parent[key] = value(rng, json_only=json_only)
    elif change == "wrap":
        parent[key] = rng.choice(([parent[key]], {"k": parent[key]}, [parent[key], parent[key]]))
    elif change == "text":
        parent[key] = str(parent[key]) + rng.choice(("", "\n", "²", "\x00", "é", "/../x", " " * 300))
    elif change == "move":
        source = at(document, known[rng.randrange(len(known))])
        parent[key] = copy.deepcopy(source) if isinstance(source, str | int | list) else value(rng, json_only=json_only)
    elif change == "repeat" and isinstance(parent, list):
        parent.extend([parent[key]] * rng.choice((1, 5, 200)))
    elif isinstance(parent, dict):
        parent[rng.choice(KEYS)] = parent.pop(key) if change == "rename" else value(rng, json_only=json_only)
    return document


def bent_text(rng: random.Random, text: bytes, pieces: tuple[bytes, ...]) -> bytes:
    """The text cut, torn, doubled, in another encoding, or with a foreign piece in it."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        here = rng.randrange(len(text) + 1)
        change = rng.choice(("cut", "tear", "piece", "piece", "piece", "double", "byte", "encode"))
        if change == "cut":
            text = text[:here]
        elif change == "tear":
            text = text[:here] + text[here + rng.choice((1, 7, 40)) :]
        elif change == "piece":
            text = text[:here] + rng.choice(pieces) + text[here:]
        elif change == "double":
            text = text + text[here:]
        elif change == "byte":
            text = text[:here] + bytes([rng.randrange(256)]) + text[here:]
        else:
            text = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08")) + text
    return text
