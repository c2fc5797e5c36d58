"""Addresses of our assets, as Airflow normalises every asset's: ``multideploy://service`` and ``multideploy://service/target``."""

from __future__ import annotations

import re
from urllib.parse import SplitResult

_NAME = re.compile(r"[\w.-]+")
"""What DAG and task ids are made of: in a hand-written DAG they name service and target."""


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """The address in its one form: nothing but service and target, without a slash at the end.

    :raises ValueError: it has other parts than these two names.
    """
    names = [uri.netloc, *uri.path.strip("/").split("/")] if uri.path.strip("/") else [uri.netloc]
    if uri.query or len(names) > 2 or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError(
            f"URI format multideploy://service or multideploy://service/target expected, got {uri.geturl()!r}"
        )
    return uri._replace(path="/".join(["", *names[1:]]))
