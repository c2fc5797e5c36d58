"""Releases that are no container image: a package in a bucket, a bundle behind an address, a folder.

A config names it by a template, such as ``s3://releases/shop-${version}.zip``.
"""

from __future__ import annotations

import re
from string import Template
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from airflow_multideploy import addresses
from airflow_multideploy.release.contract import Release

PLACES = ("service", "version", "image", "digest", "release_id", "reason")


def _known(text: str) -> str:
    template = Template(text)
    said = ", ".join(f"${{{name}}}" for name in PLACES)
    if not template.is_valid():
        raise ValueError(f"holds a lone $; write $$ for one, or one of {said}")
    if unknown := set(template.get_identifiers()) - set(PLACES):
        raise ValueError(f"holds unknown {', '.join(sorted(unknown))}; there are {said}")
    return text


Located = Annotated[str, AfterValidator(_known)]
"""A text with ``${version}`` and the other values of a release in it."""


def _all_known(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return _known(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _all_known(part)
    return value


LocatedJson = Annotated[JsonValue, AfterValidator(_all_known)]
"""A JSON value each of whose texts is `Located`."""


def filled(value: JsonValue, release: Release) -> JsonValue:
    """The value with the release's values in each of its texts."""
    if isinstance(value, dict):
        return {key: filled(part, release) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, release) for part in value]
    return located(value, release) if isinstance(value, str) else value


def located(text: str, release: Release) -> str:
    """The text with the release's values filled in; one that the release does not have is empty."""
    return Template(text).substitute({name: getattr(release, name) or "" for name in PLACES})


def fetchable(package: str, checksum: str | None) -> str | None:
    """The checksum of a package in its one spelling: a SHA-256, or the https address of one; None: there is none.

    :raises ValueError: it is neither (an empty one is no leave to go without), or an address is none. While a value of
        the release still has to be filled in, that is not known.
    """
    for key, text in (("package", package), ("checksum", checksum or "")):
        try:
            if text.startswith(("http:", "https:")):
                addresses.written(text)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    if checksum is None or "$" in checksum or checksum.startswith("https://"):
        return checksum
    plain = checksum.removeprefix("sha256:").lower()
    if not re.fullmatch("[0-9a-f]{64}", plain):
        raise ValueError(f"checksum: {checksum!r} is neither 64 hexadecimal digits nor an https address")
    return plain
