"""A secrets backend as a team may have one: Variables as files of a folder; for some keys it is throttled."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk.bases.secrets_backend import BaseSecretsBackend

FOLDER = "TEST_SECRETS_FOLDER"
"""Environment variable: a folder with a file for each Variable, and ``throttled``, a file with the keys for which it
raises."""


class Throttled(BaseSecretsBackend):
    """Gives what is in the folder."""

    def get_variable(self, key: str, team_name: str | None = None) -> str | None:
        """The file's text, or None.

        :raises RuntimeError: the key is one of those that are throttled.
        """
        folder = Path(os.environ[FOLDER])
        if key in (folder / "throttled").read_text().split():
            raise RuntimeError("ThrottlingException: rate exceeded")
        file = folder / key
        return file.read_text() if file.is_file() else None
