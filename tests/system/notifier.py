"""A notifier as a team may have one: writes into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk.bases.notifier import BaseNotifier


class FileNotifier(BaseNotifier):
    """Appends one line."""

    template_fields: Sequence[str] = ("line",)

    def __init__(self, path: str, line: str) -> None:
        super().__init__()
        self.path, self.line = path, line

    def notify(self, context: Any) -> None:
        with Path(self.path).open("a") as file:
            file.write(self.line + "\n")
