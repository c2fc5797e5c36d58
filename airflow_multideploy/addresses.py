"""Addresses that others wrote: a catalog, a Connection, an API's answer."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]")
_PLACE = re.compile(r"\$?\{\w+\}|\$\w+")


def checked(text: str) -> SplitResult:
    """The parts of an http(s) address about whose host all HTTP clients agree.

    In ``http://evil\\@api/`` Python and urllib3 find different ones: one is compared, the other gets the token.

    :raises ValueError: it is none.
    """
    if re.search(r"[\s\\\x00-\x20\x7f]", text):
        raise ValueError("expected an http(s) address; this one holds a backslash, a blank or a control character")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.netloc.removesuffix(_port(parts))):
        raise ValueError("expected a whole http(s) address without login, such as https://shop.example.com/up")
    return parts


def _port(parts: SplitResult) -> str:
    return "" if parts.port is None else f":{parts.netloc.rpartition(':')[2]}"


def written(text: str) -> str:
    """The address that stands in a catalog, in which ``${version}`` and such may stand.

    :raises ValueError: it is none.
    """
    checked(_PLACE.sub("x", text))
    return text


def origin(text: str) -> tuple[str, str, int]:
    """What two addresses have in common that lead to the same server.

    :raises ValueError: it is no address, see `checked`.
    """
    parts = checked(text)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def shown(text: str) -> str:
    """The address as a message may repeat it: without the query and the login, which may be somebody's secrets."""
    plain = re.split(r"[?#]", text, maxsplit=1)[0]
    scheme, mark, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}" if mark else plain


def without_queries(words: str) -> str:
    """A library's words about a request, without the query of the address in them."""
    return re.sub(r"\?[^\s'\"()]+", "?…", words)
