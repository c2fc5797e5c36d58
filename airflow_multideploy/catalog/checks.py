"""Smoke checks: what is asked of a release once its platform calls it healthy, and when the answer is good.

Nothing here asks anybody; that is done in `airflow_multideploy.operators.checks`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from airflow_multideploy import addresses
from airflow_multideploy.secrets import redact
from airflow_multideploy.strict import Model, Seconds, SecondsOrZero

PLACES = ("version", "digest", "image", "release_id")
"""What a check may name of the release, as ``{version}``."""

_PLACE = re.compile(r"\$?\{([a-z_]+)\}")
_JSON_PATH = re.compile(r"(?:[^.\[\]\s]+|\[\d+\])(?:\.[^.\[\]\s]+|\[\d+\])*")
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_GUARDED = re.compile(r"https://|http://(localhost|127(\.\d+){3}|\[::1\])([:/?#]|$)")
"""Where credentials may go: over TLS, or to this machine."""

Values = Mapping[str, str | None]
"""What a release has for each of `PLACES`."""


def fill(text: str, values: Values, change: Callable[[str], str] = str) -> str:
    """The text with ``{version}`` and the other `PLACES` filled in (``${version}`` is the same).

    :raises ValueError: the release has no such value.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in PLACES:
            return found[0]
        if (known := values.get(name)) is None:
            raise ValueError(f"the release has no {name}; a digest is known with artifact.registry_conn_id or a build")
        return change(known)

    return _PLACE.sub(value, text)


def _placed(value: Any) -> Any:
    if isinstance(value, str) and (unknown := sorted({*_PLACE.findall(value)} - {*PLACES})):
        said = ", ".join(f"{{{place}}}" for place in PLACES)
        raise ValueError(f"nothing is called {{{unknown[0]}}} here; there are {said}")
    return value


def _scalar(value: object) -> object:
    if isinstance(value, list | dict):
        raise ValueError("expected one text, number, boolean or null; compare a part of it, by a longer path")
    return value


def _json_path(path: str) -> str:
    if not _JSON_PATH.fullmatch(path.removeprefix("$").removeprefix(".")):
        raise ValueError("expected a JSON path such as data.items[0].state")
    return path


def _found(document: JsonValue, path: str) -> JsonValue:
    """What is there.

    :raises LookupError: nothing is.
    """
    for index, name in _STEP.findall(path.removeprefix("$").removeprefix(".")):
        if isinstance(document, dict) and name:
            document = document[name]
        elif isinstance(document, list) and index:
            document = document[int(index)]
        else:
            raise LookupError(path)
    return document


class JsonCheck(Model):
    """A value that has to stand in a JSON answer.

    :param path: names joined by dots, with an index of a list in brackets: ``items[0].state``.
    :param equals: a text (in which ``{version}`` and so on are filled in), number, boolean or null; ``"1"`` is not 1.
    """

    path: Annotated[str, AfterValidator(_json_path)]
    equals: Annotated[str | int | float | bool | None, BeforeValidator(_scalar), AfterValidator(_placed)]

    def flaw(self, text: str, values: Values) -> str:
        """What is wrong with an answer's body; empty: nothing."""
        wanted = fill(self.equals, values) if isinstance(self.equals, str) else self.equals
        try:
            found = _found(json.loads(text), self.path)
        except LookupError:
            return f"its JSON has no {self.path}"
        except (ValueError, RecursionError):
            return "its body is not JSON"
        if found == wanted and isinstance(found, bool) is isinstance(wanted, bool):
            return ""
        return f"{self.path} is {redact(json.dumps(found), 200)}, not {json.dumps(wanted)}"


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


Status = Annotated[int, Field(ge=100, le=599)]


class HttpCheck(Model):
    """A GET that has to be answered as expected. No redirect is followed.

    :param http: the address; ``{version}``, ``{digest}``, ``{image}`` and ``{release_id}`` are filled in.
    :param status: the status, or a list of them, that is good; default: 200 to 299.
    :param json: what has to stand in the answer.
    :param conn_id: Connection whose login and password are sent (basic), or whose password alone (bearer token).
    :param timeout: seconds that one try may take.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    http: Annotated[str, AfterValidator(addresses.written), AfterValidator(_placed)]
    status: (
        Annotated[
            tuple[Status, ...],
            Field(strict=False, min_length=1),
            BeforeValidator(_listed, json_schema_input_type=Status | Annotated[list[Status], Field(min_length=1)]),
        ]
        | None
    ) = None
    json_: JsonCheck | None = Field(default=None, alias="json")
    conn_id: Annotated[str, Field(min_length=1)] | None = None
    timeout: Seconds = 10.0

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.conn_id is not None and not _GUARDED.match(self.http):
            raise ValueError("conn_id: credentials over plain http are refused; use https in 'http'")
        return self

    def flaw(self, status: int, text: str, values: Values) -> str:
        """What is wrong with an answer; empty: nothing."""
        if not (200 <= status <= 299 if self.status is None else status in self.status):
            return f"HTTP {status}, not {'200 to 299' if self.status is None else ' or '.join(map(str, self.status))}"
        return self.json_.flaw(text, values) if self.json_ is not None else ""


class CommandCheck(Model):
    """A program on the worker that has to end with exit code 0. No shell sees its words.

    :param command: the program and its words; ``{version}``, ``{digest}``, ``{image}`` and ``{release_id}`` are filled
        in, not in the program's name. Of the worker's environment it gets PATH, HOME, LANG, LC_ALL, TZ and TMPDIR.
    :param timeout: seconds that one try may take.
    """

    command: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    timeout: Seconds = 60.0

    @model_validator(mode="after")
    def _program(self) -> Self:
        if not self.command[0].strip() or _PLACE.search(self.command[0]):
            raise ValueError("command: its first word is the program, and holds no value of the release; name one")
        return self


Check = Annotated[
    # The tags stand in an error's path, like pydantic's own names of a union's branches, and are left out likewise.
    Annotated[HttpCheck, Tag("function-http")] | Annotated[CommandCheck, Tag("function-command")],
    Discriminator(
        lambda value: (
            "function-command"
            if isinstance(value, CommandCheck) or (isinstance(value, Mapping) and "command" in value)
            else "function-http"
        )
    ),
]


class Verify(Model):
    """What a rollout has to stand, once its platform calls it healthy, before it counts as succeeded.

    :param checks: asked in order, in the worker; all of them have to be good.
    :param within: seconds after healthy in which they have to be good, and again after the bake; until then they are
        asked again.
    :param bake: seconds for which the release is observed on, once the checks were good.
    """

    checks: Annotated[tuple[Check, ...], Field(strict=False)] = ()
    within: Seconds = 60.0
    bake: SecondsOrZero = 0.0

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.checks and not self.bake:
            raise ValueError("asks for nothing; give checks, or bake, or leave verify out")
        return self
