"""Asks what a smoke check asks: an HTTP server, or a program on the worker.

What is a good answer is decided in `airflow_multideploy.catalog.checks`.
"""

from __future__ import annotations

import base64
import os
import shlex
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import requests
import urllib3

from airflow_multideploy import addresses
from airflow_multideploy.catalog.checks import PLACES, CommandCheck, HttpCheck, Values, fill
from airflow_multideploy.clients.command import Call, run
from airflow_multideploy.clients.connections import existing, refuse_plain_http
from airflow_multideploy.clients.http_messages import Answer, Sent
from airflow_multideploy.errors import MultideployError
from airflow_multideploy.release.contract import Platform, Release
from airflow_multideploy.secrets import redact

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read at most."""
MAX_OUTPUT = 64 * 1024
"""Characters at the end of a command's output in which secrets are looked for, and its last lines."""

_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


def ask(check: HttpCheck | CommandCheck, release: Release, platform: Platform[Any]) -> str:
    """Why a check is not good now, in the words of what it asked; empty: it is good.

    :param platform: of the target that runs the release.
    """
    values = {place: getattr(release, place) for place in PLACES}
    try:
        why = _run(check, values) if isinstance(check, CommandCheck) else _get(check, values, platform)
    except (MultideployError, ValueError) as error:
        why = f"{addresses.shown(check.http) if isinstance(check, HttpCheck) else check.command[0]}: {error}"
    return redact(why)


def _run(check: CommandCheck, values: Values) -> str:
    words = [check.command[0], *(fill(word, values) for word in check.command[1:])]
    environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    code, out, err = run(Call("check", words, environment, None, check.timeout, ()))
    if code == 0:
        return ""
    how = f"no end in {check.timeout:g} s" if code is None else f"exit code {code}"
    # Cut after the secrets are gone: half of one would no longer look like it.
    read = redact(f"{out}\n{err}"[-MAX_OUTPUT:], MAX_OUTPUT)
    lines = [line.strip() for line in read.splitlines() if line.strip()]
    return f"{redact(shlex.join(words), 200)}: {how}" + "".join(f"; {redact(line, 200)}" for line in lines[-3:])


def _get(check: HttpCheck, values: Values, platform: Platform[Any]) -> str:
    url = fill(check.http, values, lambda value: quote(value, safe=""))
    addresses.checked(url)
    header, clean = _credentials(check, url, platform)
    try:
        answer = _answer(check, url, header, clean)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        # Without the cause: its text may hold a header's value, and a traceback would show it.
        said = addresses.without_queries(clean(str(error)))
        return f"GET {addresses.shown(url)}: {type(error).__name__}: {said}"
    if not (flaw := check.flaw(answer.status, answer.text, values)):
        return ""
    said = f": {answer.words}" if answer.words and flaw.startswith("HTTP") else ""
    return clean(f"GET {addresses.shown(url)}: {flaw}{said}")


def _answer(check: HttpCheck, url: str, header: str, clean: Callable[[str], str]) -> Answer:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if header:
            request.headers["Authorization"] = header
        return request  # also without one: anything that is set keeps ~/.netrc out

    until = time.monotonic() + check.timeout
    options: dict[str, Any] = {"auth": authorize, "timeout": check.timeout, "allow_redirects": False, "stream": True}
    with requests.get(url, **options) as response:  # noqa: S113 - it is in the options
        body = b""
        while chunk := response.raw.read1(65536, decode_content=True):  # iter_content would wait until it has as much
            body += chunk
            if len(body) > MAX_ANSWER:
                raise requests.RequestException(f"its answer is larger than {MAX_ANSWER} bytes")
            if time.monotonic() > until:
                raise requests.Timeout(f"no whole answer in {check.timeout:g} s")
        return Answer(Sent("GET", url), response.status_code, {}, body.decode("utf-8", "replace"), clean)


def _credentials(check: HttpCheck, url: str, platform: Platform[Any]) -> tuple[str, Callable[[str], str]]:
    """The Authorization header, and what takes its secrets out of a text.

    :raises PlatformError: no such Connection, or it is another host's.
    """
    if check.conn_id is None:
        return "", str
    from airflow.sdk import BaseHook

    with existing(check.conn_id, platform.error):
        connection = BaseHook.get_connection(check.conn_id)
    named = connection.host or ""
    try:
        host = named and addresses.checked(named if "://" in named else f"https://{named}").hostname
    except ValueError:
        raise platform.error(f"connection {check.conn_id!r}: its host is no http(s) address without login") from None
    if host and host != addresses.checked(url).hostname:
        raise platform.error(f"connection {check.conn_id!r} is for {host}; its credentials go nowhere else")
    login, password = connection.login or "", (connection.password or "").strip()
    if not login and not password:
        return "", str
    refuse_plain_http(url, target=platform.name)
    pair = base64.b64encode(f"{login}:{password}".encode()).decode()

    def clean(text: str) -> str:
        for secret in (pair, password):
            text = text.replace(secret, "***") if len(secret) >= 4 else text
        return text

    return f"Basic {pair}" if login else f"Bearer {password}", clean
