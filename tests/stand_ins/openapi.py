"""Holds what passes through a stand-in to an OpenAPI 3 document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from airflow_multideploy.sandbox.server import App, Receive, Scope, Send


@dataclass
class Exchange:
    """One request with its answer."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"


@dataclass
class Recorder:
    """Keeps what passes through an application."""

    app: App
    exchanges: list[Exchange] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
        kept = Exchange(scope["method"], scope["path"], query, headers, message.get("body", b""))
        self.exchanges.append(kept)

        async def watch(answer: Any) -> None:
            if answer["type"] == "http.response.start":
                kept.status = answer["status"]
            else:
                kept.answer += answer.get("body", b"")
            await send(answer)

        async def again() -> Any:
            return message

        await self.app(scope, again, watch)


@dataclass(frozen=True)
class Document:
    """An OpenAPI 3 document, or as much of one as is used."""

    content: dict[str, Any]

    def check(self, exchange: Exchange) -> str:
        """The operation's id.

        :raises ValidationError: request or answer is not what the document says.
        """
        for template, item in self.content["paths"].items():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
            match = re.fullmatch(pattern, exchange.path)
            if match and exchange.method.lower() in item:
                operation = item[exchange.method.lower()]
                given = {name: unquote(value) for name, value in match.groupdict().items()}
                self._check_parameters(exchange, [*item.get("parameters", []), *operation.get("parameters", [])], given)
                self._check_body(exchange, operation)
                self._check_answer(exchange, operation)
                return str(operation["operationId"])
        raise ValidationError(f"{exchange}: no such operation")

    def _check_parameters(self, exchange: Exchange, parameters: list[Any], in_path: dict[str, str]) -> None:
        declared = {parameter["name"]: parameter for parameter in parameters if parameter["in"] == "query"}
        for name, _ in exchange.query:
            if name not in declared:
                raise ValidationError(f"{exchange}: no query parameter {name!r}")
        for parameter in parameters:
            name, schema = parameter["name"], parameter.get("schema", {})
            values: list[str] = [value for key, value in exchange.query if key == name]
            if parameter["in"] == "path":
                values = [in_path[name]]
            if parameter["in"] in ("header", "cookie"):
                continue
            if not values and parameter.get("required"):
                raise ValidationError(f"{exchange}: {name} is missing")
            if values and not any(self._fits(given, schema) for given in _readings(values)):
                raise ValidationError(f"{exchange}: {name}={values} is not {schema}")

    def _check_body(self, exchange: Exchange, operation: Any) -> None:
        if "requestBody" not in operation:
            if exchange.body:
                raise ValidationError(f"{exchange}: has a body")
            return
        kind = exchange.headers.get("content-type", "")
        if kind != "application/json":
            raise ValidationError(f"{exchange}: content type {kind!r}")
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        self._validate(json.loads(exchange.body), schema, exchange)

    def _check_answer(self, exchange: Exchange, operation: Any) -> None:
        answers = operation["responses"]
        answer = answers.get(str(exchange.status), answers.get("default"))
        if answer is None:
            raise ValidationError(f"{exchange}: no such answer; there are {', '.join(answers)}")
        if content := answer.get("content"):
            self._validate(json.loads(exchange.answer), content["application/json"]["schema"], exchange)
        elif exchange.answer:
            raise ValidationError(f"{exchange}: answers with a body")

    def _validate(self, value: Any, schema: Any, exchange: Exchange) -> None:
        try:
            self._validator(schema).validate(value)
        except ValidationError as error:
            raise ValidationError(f"{exchange}: {error.json_path}: {error.message}") from error

    def _fits(self, value: Any, schema: Any) -> bool:
        return bool(self._validator(schema).is_valid(value))

    def _validator(self, schema: Any) -> Draft202012Validator:
        whole = {**schema, "components": self.content.get("components", {})}
        return Draft202012Validator(whole, format_checker=FormatChecker())


def _readings(values: list[str]) -> Iterator[Any]:
    """What a query's text may stand for."""
    yield from ([values], values) if len(values) > 1 else (values, values[0])
    if len(values) == 1:
        try:
            yield json.loads(values[0])
        except ValueError:
            return
