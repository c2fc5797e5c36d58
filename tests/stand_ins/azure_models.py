"""Holds what passes between an Azure SDK and its stand-in to that SDK's own models.

The SDKs are generated from the official API descriptions, so what their models know is what the description says.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from importlib import import_module
from typing import Any

Exchange = tuple[str, str, dict[str, str], bytes, int, Any]
"""Method, path, query, body, status, answer."""


def recording(kind: type[Any]) -> type[Any]:
    """The stand-in, with all that passes kept in ``passed``."""

    class Recording(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.passed: list[Exchange] = []

        def _route(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Any:
            status, answer = super()._route(method, path, query, headers, body)
            self.passed.append((method, path, query, body, status, answer))
            return status, answer

    return Recording


class Contract:
    """An SDK's models (of the generation that keeps documents as they came)."""

    def __init__(self, sdk: str) -> None:
        self.sdk = sdk
        self.models = import_module(f"{sdk}.models")
        self._models = import_module(f"{sdk}.models._models")
        self.base = import_module(f"{sdk}._utils.model_base")
        self.operations = import_module(f"{sdk}.operations._operations")

    def built(self, operation: str, **named: str) -> tuple[str, str]:
        """Method and path of an operation as the SDK builds them."""
        request = getattr(self.operations, f"build_{operation}_request")(**named)
        return request.method, request.url.partition("?")[0]

    def conforms(self, kind: Any, document: Any) -> None:
        """The document is of this type, and survives the SDK unchanged."""
        found = list(self.problems(kind, document))
        assert not found, "; ".join(found)
        again = self.base._deserialize(kind, document)
        assert json.loads(json.dumps(again, cls=self.base.SdkJSONEncoder)) == document

    def problems(self, kind: Any, value: Any, path: str = "$") -> Iterator[str]:
        """Where a document is not what a type of the SDK says."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            yield from self._union(arguments, value, path)
        elif origin in (list, dict):
            if not isinstance(value, origin):
                yield f"{path}: no {'array' if origin is list else 'object'}"
                return
            for name, item in enumerate(value) if origin is list else value.items():
                yield from self.problems(arguments[-1], item, f"{path}.{name}")
        elif isinstance(kind, type) and issubclass(kind, self.base.Model):
            yield from self._model(kind, value, path)
        elif kind is datetime:
            datetime.fromisoformat(value)
        elif kind is float and isinstance(value, int):
            return
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {kind.__name__}"

    def _union(self, arguments: tuple[Any, ...], value: Any, path: str) -> Iterator[str]:
        enums = [a for a in arguments if isinstance(a, type) and issubclass(a, Enum)]
        if value is None:
            if type(None) not in arguments:
                yield f"{path}: null"
        elif enums:
            if value not in {member.value for enum in enums for member in enum}:
                yield f"{path}: {value!r} is none of {enums[0].__name__}"
        elif all(list(self.problems(a, value, path)) for a in arguments):
            yield from self.problems(arguments[0], value, path)

    def _model(self, kind: Any, value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path}: no object"
            return
        kind({})  # the SDK fills in a model's fields when it is first made
        hints = typing.get_type_hints(kind, vars(self._models), {"_models": self.models})
        fields = {field._rest_name: hints[name] for name, field in kind._attr_to_rest_field.items()}
        for name, item in value.items():
            if name not in fields:
                yield f"{path}.{name}: unknown to {kind.__name__}"
            else:
                yield from self.problems(fields[name], item, f"{path}.{name}")
