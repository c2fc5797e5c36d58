"""A folder to build, and builders of our own making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.catalog.service import Build
from airflow_multideploy.images import registry
from airflow_multideploy.images.builder import ImageBuilder

PASSWORD = "correct-horse-battery"
AUTH = "cm9ib3Q6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"
PRINT_DIGEST = 'case "$*" in *push*) echo "1.0: digest: sha256:' + "a" * 64 + ' size: 1";; esac\n'


@pytest.fixture
def context_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        "FROM scratch\nARG greeting\nLABEL greeting=$greeting\nCOPY index.html /index.html\n"
    )
    (folder / "index.html").write_text("hello\n")
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH but for the system's, first: builders of our own making go here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/bash\n" + script)
    path.chmod(0o755)
    return path


def builder(
    context: Path,
    *,
    version: str = "1.0",
    log: list[str] | None = None,
    image: str = "127.0.0.1:1/team/shop",
    known: bool = True,
    **build: Any,
) -> ImageBuilder:
    """A builder whose registry nobody listens on: only what is in front of the push is looked at."""
    target = registry.Registry(
        registry.parse_image(image), "http://127.0.0.1:1", *(("robot", PASSWORD) if known else ())
    )
    lines = [] if log is None else log
    return ImageBuilder(Build(context=str(context), **build), target, version=version, log=lines.append)
