"""Notifiers as a team may have them: one writes into a file, one is in trouble."""

from __future__ import annotations

import time
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


class Troubled(BaseNotifier):
    """Raises, or hangs for so many seconds."""

    def __init__(self, seconds: float = 0) -> None:
        super().__init__()
        self.seconds = seconds

    def notify(self, context: Any) -> None:
        if not self.seconds:
            raise OSError("no network")
        time.sleep(self.seconds)
