"""What the http platform sends and reads: request templates, and readers of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from string import Template
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from airflow_multideploy import addresses
from airflow_multideploy.secrets import MOST_READ, redact
from airflow_multideploy.strict import Model

NAMES = ("image", "version", "digest", "release_id", "service", "target", "reason")
"""What a request template may name."""

_ASCII = "".join(map(chr, range(0x20, 0x7F)))
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "authorization", "cookie"})
_JSON_PATH = re.compile(r"(?:[^.\[\]\s]+|\[\d+\])(?:\.[^.\[\]\s]+|\[\d+\])*")


def _names(*allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        template = Template(text)
        if not template.is_valid():
            raise ValueError("a '$' stands alone; write ${version} for a value, or $$ for a dollar sign")
        if unknown := sorted(set(template.get_identifiers()) - set(allowed)):
            raise ValueError(f"unknown name {', '.join(unknown)}; there are {', '.join(allowed)}")
        return text

    return check


def _absolute(text: str) -> str:
    if "://" in text:
        return addresses.written(text)
    if not re.match(r"/(?![/\\])", text):
        raise ValueError("expected /a/path or a whole http(s) address without login")
    return text


def _local(text: str) -> str:
    if not re.match(r"/(?![/\\])", text):
        raise ValueError("expected /a/path: what carries credentials goes to the connection's own host")
    return text


def _status_path(text: str) -> str:
    return text if text in ("${operation}", "$operation") else _local(text)


def _header_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("no header name")
    return name


def _no_controls(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("a header holds no line breaks or control characters")
    return text


def _json_texts(document: JsonValue) -> JsonValue:
    _mapped(document, _names(*NAMES))
    return document


def _json_path(path: str) -> str:
    if not _JSON_PATH.fullmatch(path.removeprefix("$").removeprefix(".")):
        raise ValueError("expected a JSON path such as data.items[0].state")
    return path


def _mapped(document: JsonValue, change: Callable[[str], str]) -> JsonValue:
    if isinstance(document, str):
        return change(document)
    if isinstance(document, list):
        return [_mapped(item, change) for item in document]
    if isinstance(document, dict):
        return {key: _mapped(item, change) for key, item in document.items()}
    return document


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Text = Annotated[str, AfterValidator(_names(*NAMES))]
HeaderName = Annotated[str, AfterValidator(_header_name)]
LookPath = Annotated[str, AfterValidator(_absolute), AfterValidator(_names("service", "target"))]
StatusPath = Annotated[str, AfterValidator(_status_path), AfterValidator(_names("service", "target", "operation"))]
JsonPath = Annotated[str, AfterValidator(_json_path)]


def fill(text: str, values: Mapping[str, str], change: Callable[[str], str] = str) -> str:
    """The text with its ``${names}`` replaced.

    :raises ValueError: a name has no value here.
    """
    try:
        return Template(text).substitute({name: change(value) for name, value in values.items()})
    except KeyError as error:
        raise ValueError(f"${{{error.args[0]}}} has no value here") from None


def fill_path(path: str, values: Mapping[str, str]) -> str:
    """As `fill`, each value percent-encoded, so that none can leave its place in the path.

    :raises ValueError: a name has no value here, or its value is ``.`` or ``..``.
    """

    def encode(value: str) -> str:
        if value in (".", ".."):
            raise ValueError(f"{value!r} cannot stand in a path")
        return quote(value, safe="")

    return fill(
        path, {name: value for name, value in values.items() if name in Template(path).get_identifiers()}, encode
    )


class _Aliased(Model):
    model_config = ConfigDict(serialize_by_alias=True)


class Request(_Aliased):
    """A request template: ``${image}``, ``${version}``, ``${digest}``, ``${release_id}``, ``${service}``, ``${target}``
    and ``${reason}`` are replaced in the values of path, headers and body; ``$$`` is a dollar sign.

    :param method: of the request.
    :param path: on the connection's host.
    :param headers: beside those that we send.
    :param json: JSON body; names are replaced inside its strings.
    :param form: form body.
    """

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: Annotated[str, AfterValidator(_local), AfterValidator(_names(*NAMES))]
    headers: dict[HeaderName, Annotated[Text, AfterValidator(_no_controls)]] = Field(default_factory=dict)
    json_: Annotated[JsonValue, AfterValidator(_json_texts)] = Field(default=None, alias="json")
    form: dict[str, Text] | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Request:
        if self.json_ is not None and self.form is not None:
            raise ValueError("json and form: give one of them")
        if taken := sorted(name for name in self.headers if name.lower() in _OURS):
            raise ValueError(f"headers: {', '.join(taken)}: set by the connection (credentials belong there)")
        return self

    def filled(self, values: Mapping[str, str]) -> Sent:
        """The request with its values in place.

        :raises ValueError: it names something that has no value here.
        """
        headers = {
            name: quote(" ".join(fill(text, values).split()), safe=_ASCII) for name, text in self.headers.items()
        }
        content: bytes | None = None
        if self.json_ is not None:
            content = json.dumps(_mapped(self.json_, lambda text: fill(text, values))).encode()
            headers.setdefault("Content-Type", "application/json")
        elif self.form is not None:
            content = urlencode({name: fill(text, values) for name, text in self.form.items()}).encode()
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        return Sent(self.method, fill_path(self.path, values), headers, content)


@dataclass(frozen=True)
class Sent:
    """A request as it goes out; credentials are added by the client.

    :param own_host: refuse to send it anywhere but to the connection's own host.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    own_host: bool = True

    @property
    def called(self) -> str:
        """How messages name it."""
        return f"{self.method} {addresses.shown(self.path)}"


@dataclass(frozen=True)
class Answer:
    """An answer. ``clean`` takes the connection's secrets out of a text."""

    request: Sent
    status: int
    headers: dict[str, str]
    text: str
    clean: Callable[[str], str] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the API accepted."""
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """What the API said, in one short line without secrets."""
        try:
            document = json.loads(self.text)
        except (ValueError, RecursionError):
            document = None
        said = ""
        while isinstance(document, dict):
            keys = ("detail", "message", "error", "reason", "title", "description")
            document = next((document[key] for key in keys if document.get(key)), None)
            said = document if isinstance(document, str) else ""
        text = self.clean(said or self.text)[:MOST_READ]
        return redact(" ".join((text if said else re.sub(r"<[^<>]*>", " ", text)).split()), 300)

    @property
    def retry_after(self) -> float | None:
        """Seconds the API asks to wait, when it does."""
        value = self.headers.get("retry-after", "").strip()
        if value.isdecimal():
            return float(value)
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - datetime.now(UTC)).total_seconds())


class Reader(_Aliased):
    """Where in an answer a value is.

    :param json: JSON path (``data.items[0].state``).
    :param header: a header; neither of the two: the body's text.
    :param regex: what of that, in its first 16,384 characters; its first group when it has one.
    """

    json_: JsonPath | None = Field(default=None, alias="json")
    header: HeaderName | None = None
    regex: Annotated[str, AfterValidator(_regex)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Reader:
        if self.json_ and self.header:
            raise ValueError("json and header: give one of them")
        return self

    def read(self, answer: Answer) -> str | None:
        """The value, or None when a JSON document or the headers hold none.

        :raises ValueError: the body is not what the reader expects (a proxy's error page, cut off).
        """
        if self.header:
            text = answer.headers.get(self.header.lower())
        elif self.json_:
            text = _found(_parsed(answer.text), self.json_)
        else:
            text = answer.text.strip()
            if not self.regex and not re.fullmatch(r"[^\s<>{}]{1,300}", text):
                raise ValueError("its body is not one word; say json: or regex:")
        if text is None or not self.regex:
            return text
        match = re.search(self.regex, text[:MOST_READ])
        if not match:
            raise ValueError(f"its answer does not match {self.regex!r}")
        return match.group(1 if match.re.groups else 0)


Source = Annotated[Reader, BeforeValidator(lambda value: {"json": value} if isinstance(value, str) else value)]
"""A reader; a plain string is a JSON path."""


def _parsed(text: str) -> JsonValue:
    try:
        document: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("its body is not JSON") from None
    return document


def _found(document: JsonValue, path: str) -> str | None:
    for name, index in re.findall(r"([^.\[\]]+)(?![^\[]*\])|\[(\d+)\]", path.removeprefix("$").removeprefix(".")):
        if isinstance(document, dict):
            document = document.get(name or index)
        elif isinstance(document, list) and (index or name.isdecimal()):
            number = int(index or name)
            document = document[number] if number < len(document) else None
        else:
            return None
    if isinstance(document, bool | int | float):
        return json.dumps(document)
    return document if isinstance(document, str) else None
