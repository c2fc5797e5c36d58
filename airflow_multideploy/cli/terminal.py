"""How our commands take arguments, print and end.

Results go to stdout, errors as one line to stderr; exit code 0: good, 1: problems found, 2: could not be done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.cli.cli_config import ActionCommand, Arg

from airflow_multideploy.errors import MultideployError

if TYPE_CHECKING:
    from argparse import Namespace

PROBLEMS, FAILED = 1, 2


def arg(*flags: str, **options: Any) -> Arg:
    """An argument, as `argparse` takes it."""
    return Arg(flags, **options)  # type: ignore[no-untyped-call]


def output(**more: str) -> Arg:
    """The argument that says how results are printed.

    :param more: further ways, each with what it is for.
    """
    about = ", ".join(["table for people (default), json for machines", *(f"{way} {use}" for way, use in more.items())])
    return arg("-o", "--output", choices=("table", "json", *more), default="table", help=about)


def command(func: Callable[[Namespace], None], about: str, *args: Arg) -> ActionCommand:
    """A command with the function's name.

    :param about: its line of help.
    """
    return ActionCommand(name=func.__name__, help=about, func=_piped(func), args=args)


def _piped(func: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
    """Ends the command quietly, with the shell's code for it, when whoever reads its output (``| head``) has left."""

    @wraps(func)
    def command(args: Namespace) -> None:
        try:
            try:
                func(args)
            finally:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as end:
            # Rich, which prints the tables, makes a SystemExit of it.
            if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            raise SystemExit(128 + signal.SIGPIPE) from None

    return command


def fail(message: object, code: int = FAILED) -> NoReturn:
    """Say what went wrong, on one line, and end."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def told() -> Iterator[None]:
    """Our own errors say all that is needed: one line, no traceback."""
    try:
        yield
    except MultideployError as error:
        fail(error)


def print_json(document: object) -> None:
    """For machines."""
    print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """As Airflow's own commands print them; what stands in brackets is text, and no markup."""
    from airflow.cli.simple_table import AirflowConsole
    from rich.markup import escape

    AirflowConsole().print_as(data=[{key: escape(str(row[key])) for key in row} for row in rows], output="table")
