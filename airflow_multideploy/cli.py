"""``airflow multideploy``: validate, schema, platforms, sandbox, demo.

Airflow imports this module for every one of its commands: everything else is imported inside the functions. Results go
to stdout, errors as one line to stderr; exit code 0: good, 1: problems found, 2: could not be done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand
from airflow.utils.cli import suppress_logs_and_warning

from airflow_multideploy.core.errors import MultideployError, SpecError, UnknownPlatform

if TYPE_CHECKING:
    from argparse import Namespace

PROBLEMS, FAILED = 1, 2


def get_cli_commands() -> list[CLICommand]:
    """The group ``multideploy``, for Airflow's command line."""
    return [
        GroupCommand(
            name="multideploy",
            help="Release services to many platforms",
            subcommands=[*_catalog_commands(), *_local_commands()],
        )
    ]


def _catalog_commands() -> list[ActionCommand]:
    file = _arg(
        "file", nargs="?", help="YAML or JSON catalog; default: option multideploy.catalog_file or the Variables"
    )
    output, verbose = _output(), _arg("-v", "--verbose", action="store_true", help="show log lines")
    to_file = _arg("--output-file", metavar="FILE", help="write there instead of to stdout")
    return [
        _command(validate, "Check a catalog: every problem of every service at once", file, output, verbose),
        _command(schema, "Print the catalog's JSON Schema, for editors", to_file),
        _command(
            platforms,
            "List the installed platforms and what they can do",
            output,
            _arg("--docs", metavar="DIR", help="write a Markdown page for each instead"),
        ),
    ]


def _local_commands() -> list[ActionCommand]:
    folder = _arg("--folder", metavar="DIR", help="where files are kept; default: one that is removed at the end")
    ports = "port of one stand-in (aws_ecs=5001), or of the control API (control=5000); repeatable"
    seed = (
        "create RESOURCE on every stand-in, or on one (KIND/RESOURCE), serving IMAGE or, if empty, nothing; repeatable "
        "(default: shop=registry.example.com/shop:1.0.0)"
    )
    return [
        _command(
            sandbox,
            "Serve stand-ins for all platforms on 127.0.0.1 until Ctrl-C, and say how to release to them",
            _arg("--seconds", type=float, default=8.0, help="how long a rollout takes (default: 8)"),
            _arg("--port", action="append", default=[], metavar="KIND=PORT", help=ports),
            _arg("--base-port", type=int, metavar="PORT", help="the control API's; the stand-ins take those after it"),
            _arg("--seed", action="append", default=[], metavar="RESOURCE=IMAGE", help=seed),
            folder,
            _output(),
        ),
        _command(
            demo,
            "Release to four stand-ins on a real Airflow, and show it",
            _arg("--ui", action="store_true", help="leave it running, and print the UI's address and login"),
            folder,
        ),
    ]


def _arg(*flags: str, **options: Any) -> Arg:
    return Arg(flags, **options)  # type: ignore[no-untyped-call]


def _output() -> Arg:
    about = "table for people (default), json for machines"
    return _arg("-o", "--output", choices=("table", "json"), default="table", help=about)


def _command(func: Callable[[Namespace], None], about: str, *args: Arg) -> ActionCommand:
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


def _fail(message: object, code: int = FAILED) -> NoReturn:
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def _told() -> Iterator[None]:
    """Our own errors say all that is needed: one line, no traceback."""
    try:
        yield
    except MultideployError as error:
        _fail(error)


# --- catalog


@suppress_logs_and_warning
def validate(args: Namespace) -> None:
    """Print every problem of every service; exit with 1 if there is one, with 2 if there is no catalog to read."""
    with _told():
        source, entries, defaults = _catalog(args.file)
    services = [_check(name, entry, defaults) for name, entry in entries.items()]
    bad = [found for found in services if not found["ok"]]
    if args.output == "json":
        _print_json({"ok": not bad, "source": source, "services": services})
    else:
        rows = [
            {
                "service": found["service"],
                "targets": ", ".join(found["targets"]),
                "problems": len(found["problems"]) or "none",
            }
            for found in services
        ]
        _print_table(rows)
        for found in bad:
            for problem in found["problems"]:
                print(f"{found['service']}: {problem}")
        print(f"{source}: {len(services)} services, {len(bad)} with problems")
    if bad:
        raise SystemExit(PROBLEMS)


def _check(name: object, entry: object, defaults: object) -> dict[str, Any]:
    from airflow_multideploy import notifications
    from airflow_multideploy.core.catalog import parse_service
    from airflow_multideploy.platforms import config_type

    targets, problems = [], []
    try:
        if isinstance(entry, Exception):
            raise entry
        service = parse_service(name, entry, defaults=defaults, config_type=config_type)
        targets = list(service.targets)
        problems = [
            f"notify[{index}].notifier: {why}"
            for index, each in enumerate(service.notify)
            if (why := notifications.unfit(each.notifier))
        ]
    except SpecError as error:
        problems = list(error.problems)
    except Exception as error:  # noqa: BLE001 - a third party's config may raise anything, and is that service's problem
        problems = [f"a platform's config raised {type(error).__name__}: {error}; report it to who made the platform"]
    return {"service": str(name), "ok": not problems, "targets": targets, "problems": problems}


def _catalog(file: str | None) -> tuple[str, dict[str, Any], Any]:
    """Where the catalog was found, its entries and its defaults.

    :raises SpecError: there is none, or it cannot be read.
    """
    from airflow.configuration import conf

    from airflow_multideploy import variables
    from airflow_multideploy.factory import read_file

    if path := file or conf.get("multideploy", "catalog_file", fallback=""):
        try:
            return str(path), *read_file(path)
        except OSError as error:
            raise SpecError(f"{path}: {error.strerror or error}; name a file that can be read") from error
    if variables.get(variables.INDEX) is None:
        raise SpecError(f"Variable {variables.INDEX}: {_why_absent()}")
    return f"Variable {variables.INDEX}", *variables.read_catalog()


def _why_absent() -> str:
    """A Variable that Airflow cannot read looks like one that is not there: ask the database itself."""
    from airflow.models import Variable
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            session.scalars(select(Variable.key).limit(1)).first()
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        return f"Airflow's database cannot be read ({cause}); run `airflow db migrate`, or name a catalog file"
    return "is not set; set it, or name a catalog file"


def schema(args: Namespace) -> None:
    """Print the catalog's JSON Schema over all installed platforms, or write it to a file."""
    from airflow_multideploy.core.catalog import json_schema
    from airflow_multideploy.platforms import config_type, kinds

    types = {}
    for kind in kinds():
        try:
            types[kind] = config_type(kind)
        except UnknownPlatform as error:
            print(f"left out: {error}", file=sys.stderr)
    document = json_schema(types)
    if args.output_file is None:
        _print_json(document)
        return
    try:
        Path(args.output_file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{args.output_file}: {error.strerror or error}; name a file that can be written")


def platforms(args: Namespace) -> None:
    """List the installed platforms; one that cannot be loaded shows why, and makes the exit code 1."""
    from airflow_multideploy.platforms import kinds

    if args.docs:
        _write_pages(Path(args.docs))
        return
    rows = [_platform(kind, point) for kind, point in kinds().items()]
    if args.output == "json":
        _print_json(rows)
    else:
        _print_table([_cells(row) for row in rows])
        for row in rows:
            if row["error"]:
                print(f"{row['kind']}: {row['error']}")
    if any(row["error"] for row in rows):
        raise SystemExit(PROBLEMS)


def _write_pages(folder: Path) -> None:
    """A page for each platform that can be loaded; the others are told, and make the exit code 1."""
    from airflow_multideploy.manual import pages
    from airflow_multideploy.platforms import kinds, platform_type

    found, errors = [], []
    for kind in kinds():
        try:
            found.append(platform_type(kind))
        except UnknownPlatform as error:
            errors.append(error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(found).items():
            (folder / name).write_text(text)
    except OSError as error:
        _fail(f"{folder}: {error.strerror or error}; name a folder that can be written")
    if errors:
        _fail("; ".join(map(str, errors)), PROBLEMS)


def _platform(kind: str, point: Any) -> dict[str, Any]:
    from airflow_multideploy.core.contract import Capabilities
    from airflow_multideploy.platforms import platform_type

    row: dict[str, Any] = {
        "kind": kind,
        "distribution": f"{point.dist.name} {point.dist.version}" if point.dist else None,
    }
    try:
        able = platform_type(kind).capabilities.dump()
    except UnknownPlatform as error:
        return row | dict.fromkeys(Capabilities.model_fields) | {"error": str(error)}
    return row | able | {"error": None}


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {**row, "asynchronous": {True: "yes", False: "no", None: ""}[row["asynchronous"]]}
    titles = {"early_failure": "early failure", "tested_against": "tested against", "asynchronous": "async"}
    return {titles.get(key, key): value or "" for key, value in shown.items() if key != "error"}


# --- sandbox and demo


def sandbox(args: Namespace) -> None:
    """Serve the sandbox until SIGINT or SIGTERM, then stop it; exit with 0."""
    from airflow_multideploy.sandbox.command import document, guide, serve
    from airflow_multideploy.sandbox.laptop import write_laptop

    options = {"seconds": args.seconds, "ports": args.port, "base_port": args.base_port, "seeds": args.seed}
    with (
        _told(),
        _signals(signal.SIGINT, signal.SIGTERM) as wait,
        serve(**options, folder=_folder(args)) as running,
    ):
        if args.output == "json":
            _print_json(document(running))
        else:
            print(guide(running, write_laptop(running)), flush=True)
        wait()


@contextmanager
def _signals(*signals: signal.Signals) -> Iterator[Callable[[], object]]:
    """Gives a function that waits for one of the signals, also for one that came before it was called.

    They are blocked before the servers' threads start, which inherit that. The handlers do nothing: they replace
    "ignore", which a shell sets for what it starts in the background, and the kernel for a container's first process.
    """
    handlers = {each: signal.signal(each, lambda *_: None) for each in signals}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield lambda: signal.sigwait(signals)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in handlers.items():
            signal.signal(each, handler)


def _folder(args: Namespace) -> Path | None:
    return Path(args.folder).expanduser().resolve() if args.folder else None


def demo(args: Namespace) -> None:
    """Run the demo; the exit code is its own, 130 after Ctrl-C."""
    from airflow_multideploy.platforms import missing_extra

    with _told():
        try:
            from airflow_multideploy.demo import main

            code = main(ui=args.ui, folder=_folder(args))
        except MultideployError:
            raise
        except ImportError as error:
            raise missing_extra("sandbox", error) from error
        except KeyboardInterrupt:
            code = 130
    raise SystemExit(code)


# --- output


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


def _print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """As Airflow's own commands print them."""
    from airflow.cli.simple_table import AirflowConsole

    AirflowConsole().print_as(data=[dict(row) for row in rows], output="table")
