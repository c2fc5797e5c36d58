"""A catalog as a YAML or JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from airflow_multideploy.catalog.parse import split
from airflow_multideploy.errors import SpecError

_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError)
"""What the YAML library raises about a file: the last ones about values such as ``2026-99-99`` or ``!!bool maybe``."""
_UNFOLDED = 500_000
"""Values that a catalog file may hold, each alias counted as what it stands for: a few lines can unfold to billions."""


def read_file(path: str | Path) -> tuple[dict[str, Any], Any]:
    """The entries of a catalog file and its ``defaults`` (None where it has none).

    :raises SpecError: no YAML or JSON mapping, or something unknown beside ``services`` and ``defaults``.
    :raises OSError: the file cannot be read.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_loader())  # noqa: S506 - a safe one
    except _UNREADABLE as error:
        # The mark's own text would show a piece of the file, and with it perhaps a secret.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        why = f": {place}{problem}" if problem else ""
        raise SpecError(f"{path}: is no YAML or JSON that can be read{why}; mend it") from None
    if not isinstance(document, Mapping):
        raise SpecError(f"{path}: expected a mapping of service name to service, got {type(document).__name__}")
    try:
        return split(document)
    except SpecError as error:
        raise SpecError([f"{path}: {problem}" for problem in error.problems]) from None


@cache
def _loader() -> type[yaml.SafeLoader]:
    """YAML's safe loader, which also refuses a key that is given twice: the first would be lost without a word.

    And aliases of aliases that unfold without end.
    """

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            node = super().compose_node(parent, index)
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            pairs = isinstance(node, yaml.MappingNode)
            inner = (part for item in parts for part in (item if pairs else (item,)))
            self.sizes[id(node)] = 1 + sum(self.sizes.get(id(part), 0) for part in inner)
            if node is not None and self.sizes[id(node)] > _UNFOLDED:
                raise yaml.composer.ComposerError(None, None, "its aliases unfold to too much", node.start_mark)
            return node

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.sizes: dict[int, int] = {}

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for twice in {key for key in keys if keys.count(key) > 1}:
                raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep=deep)

    return Loader
