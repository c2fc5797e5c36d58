"""Other people's words: what of them is shown and kept. No pattern ever sees a text of any length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

MOST_WORDS = 1000
"""Characters of one problem, or of one answer's words: the rest is no help to a person, and fills logs and stores."""
MOST_READ = 16 * 1024
"""Characters of an answer in which a pattern looks for something."""
_HIDDEN = "(from here on it looks like a secret: not shown; keep it in an Airflow Connection)"

_NAMED = r"(?:password|passwd|secret|token|api[_-]?key)="
_ASKED = r"[?&](?:token|key|secret|password|sig|api_key|access_token)="
SECRET = re.compile(
    r"(AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    # A JWT is looked for once in each run of its characters, not from each of its beginnings to the run's end.
    r"|(?<![A-Za-z0-9_-])(?>[A-Za-z0-9_-]*?eyJ)[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{10,}+\.|AIza[0-9A-Za-z_-]{35}"
    r"|(?:bearer|basic)\s+[A-Za-z0-9+/._=-]{12,}|://[^/\s:@]+:[^/\s@]+@"
    rf"|{_ASKED}[^$&\s]|{_NAMED}[^${{&\s]{{4,}}|hooks\.slack\.com/services/\w)",
    re.I,
)
"""What the value of a secret looks like."""
_CUT_OFF = re.compile(
    r"(AKIA[0-9A-Z]*|-----BEGIN [A-Z ]*|gh[pousr]_[A-Za-z0-9]*|xox[abprs]-[A-Za-z0-9-]*|eyJ[A-Za-z0-9_.-]*"
    rf"|AIza[0-9A-Za-z_-]*|(?:bearer|basic)\s+[A-Za-z0-9+/._=-]*|://[^/\s@]*|{_NAMED}[^${{&\s]*)\Z",
    re.I,
)
"""What is left of one when the text ends within it."""


def redact(text: str, most: int = MOST_WORDS) -> str:
    """At most so many characters of the text, up to what looks like a secret's value: whatever stands after its
    beginning may belong to it. A secret that the cut goes through is hidden too.

    Texts that are put together of others' are cut in here, not before: half a secret no longer looks like one.
    """
    head = text if len(text) <= most else text[: most - 1]
    found = SECRET.search(head)
    if found is None and len(text) > most:
        found = _CUT_OFF.search(head)
    if found is not None:
        return head[: min(found.start(), max(0, most - len(_HIDDEN)))] + _HIDDEN
    return head if len(text) <= most else f"{head}…"


def last_words(text: str, most: int) -> str:
    """As `redact`, but the end of the text, on one line: where programs say what went wrong.

    Secrets are looked for in all of it that is read, as their ends do not look like any.
    """
    words = " ".join(redact(text[-MOST_READ:], MOST_READ).split())
    return words if len(words) <= most else f"…{words[1 - most :]}"


_SECRET_KEY = re.compile(
    r"(password|passwd|secret|token|api[_-]?key|private[_-]?key|access[_-]?key|authorization)", re.I
)


def looks_secret(key: str, value: object) -> bool:
    """Whether a catalog entry looks like a secret, which belongs in a Connection."""
    if not isinstance(value, str) or not value:
        return False
    return _secret_value(value) or _secret_key(key)


@lru_cache(2048)  # a large catalog says the same again and again
def _secret_value(value: str) -> bool:
    return SECRET.search(value) is not None


@lru_cache(2048)
def _secret_key(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None and not key.endswith(("_id", "_name", "_path"))


def secret_paths(document: object, path: str = "", key: str = "") -> Iterator[str]:
    """Dotted paths of all values in a document that look like secrets."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from secret_paths(value, f"{path}.{name}" if path else str(name), str(name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from secret_paths(value, f"{path}[{index}]", key)
    elif looks_secret(key, document):
        yield path
