"""Runs a program with its words, in a thread or on the event loop, never through a shell, and never for too long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One command, ready to run. Never logged: its environment holds the Connection."""

    name: str
    words: list[str]
    environment: dict[str, str]
    folder: str | None
    timeout: float
    secrets: tuple[str, ...]


def _options(call: Call) -> dict[str, Any]:
    pipe = subprocess.PIPE
    streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe}
    return {"env": call.environment, "cwd": call.folder, "start_new_session": True, **streams}


def _kill(pid: int) -> None:
    """End a command with everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(call: Call) -> tuple[int | None, str, str]:
    """Exit code (None: it took too long, and was killed), standard output and standard error."""
    try:
        process = subprocess.Popen(call.words, **_options(call))  # noqa: S603 - the catalog's own command
    except OSError as error:
        return 127, "", f"{error.strerror}: {error.filename or call.words[0]}"
    with process:
        try:
            out, err = process.communicate(timeout=call.timeout)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            return None, "", ""
        except BaseException:  # the task is being ended: its command must not go on alone
            _kill(process.pid)
            raise
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


async def arun(call: Call) -> tuple[int | None, str, str]:
    """As `run`, on the event loop."""
    try:
        process = await asyncio.create_subprocess_exec(*call.words, **_options(call))
    except OSError as error:
        return 127, "", f"{error.strerror}: {error.filename or call.words[0]}"
    try:
        async with asyncio.timeout(call.timeout):
            out, err = await process.communicate()
    except TimeoutError:
        return None, "", ""
    finally:
        if process.returncode is None:
            _kill(process.pid)
            await process.wait()
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
