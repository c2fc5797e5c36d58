"""``airflow multideploy``: validate, schema, platforms, history, sandbox, demo; and the commands of `commands`.

Airflow imports this module for every one of its commands: everything else is imported inside the functions. Results go
to stdout, errors as one line to stderr; exit code 0: good, 1: problems found, 2: could not be done.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ActionCommand, CLICommand, GroupCommand
from airflow.utils.cli import suppress_logs_and_warning

from airflow_multideploy.cli.terminal import PROBLEMS, arg, command, fail, output, print_json, print_table, told
from airflow_multideploy.errors import MultideployError, UnknownPlatform

if TYPE_CHECKING:
    from argparse import Namespace


def get_cli_commands() -> list[CLICommand]:
    """The group ``multideploy``, for Airflow's command line."""
    from airflow_multideploy.cli.release import commands

    return [
        GroupCommand(
            name="multideploy",
            help="Release services to many platforms",
            subcommands=[*_catalog_commands(), *_release_commands(), *commands(), *_local_commands()],
        )
    ]


def _catalog_commands() -> list[ActionCommand]:
    file = arg(
        "file", nargs="?", help="YAML or JSON catalog; default: option multideploy.catalog_file or the Variables"
    )
    verbose = arg("-v", "--verbose", action="store_true", help="show log lines")
    to_file = arg("--output-file", metavar="FILE", help="write there instead of to stdout")
    return [
        command(validate, "Check a catalog: every problem of every service at once", file, output(), verbose),
        command(schema, "Print the catalog's JSON Schema, for editors", to_file),
        command(
            platforms,
            "List the installed platforms and what they can do",
            output(),
            arg("--docs", metavar="DIR", help="write a Markdown page for each instead"),
        ),
    ]


def _release_commands() -> list[ActionCommand]:
    time = "ISO 8601 date or time; UTC unless it says otherwise"
    return [
        command(
            history,
            "Show what was released: who, when, why, and how it ended",
            arg("service", help="its name"),
            arg("--target", help="only releases in which this target had a part"),
            arg("--since", metavar="TIME", help=f"that began then or later: {time}"),
            arg("--until", metavar="TIME", help="that began before"),
            arg("--limit", type=int, default=20, metavar="N", help="so many at most (default: 20)"),
            output(),
            arg("-v", "--verbose", action="store_true", help="show log lines"),
        ),
    ]


def _local_commands() -> list[ActionCommand]:
    folder = arg("--folder", metavar="DIR", help="where files are kept; default: one that is removed at the end")
    ports = "port of one stand-in (aws_ecs=5001), or of the control API (control=5000); repeatable"
    seed = (
        "create RESOURCE on every stand-in, or on one (KIND/RESOURCE), serving IMAGE or, if empty, nothing; repeatable "
        "(default: shop=registry.example.com/shop:1.0.0)"
    )
    return [
        command(
            sandbox,
            "Serve stand-ins for all platforms on 127.0.0.1 until Ctrl-C, and say how to release to them",
            arg("--seconds", type=float, default=8.0, help="how long a rollout takes (default: 8)"),
            arg("--port", action="append", default=[], metavar="KIND=PORT", help=ports),
            arg("--base-port", type=int, metavar="PORT", help="the control API's; the stand-ins take those after it"),
            arg("--seed", action="append", default=[], metavar="RESOURCE=IMAGE", help=seed),
            folder,
            output(),
        ),
        command(
            demo,
            "Release to four stand-ins on a real Airflow, and show it",
            arg("--ui", action="store_true", help="leave it running, and print the UI's address and login"),
            folder,
        ),
    ]


# --- catalog


@suppress_logs_and_warning
def validate(args: Namespace) -> None:
    """Print every problem of every service; exit with 1 if there is one, with 2 if there is no catalog to read."""
    from airflow_multideploy.cli.catalog import check

    with told():
        found = check(args.file)
    services = [
        {
            "service": name,
            "ok": not problems,
            "targets": list(found.services[name].targets) if name in found.services else [],
            "problems": problems,
        }
        for name, problems in found.problems.items()
    ]
    bad = {name: problems for name, problems in found.problems.items() if problems}
    if args.output == "json":
        print_json({"ok": not bad, "source": found.source, "services": services})
    else:
        print_table(
            [
                {
                    "service": name,
                    "targets": ", ".join(found.services[name].targets) if name in found.services else "",
                    "problems": len(problems) or "none",
                }
                for name, problems in found.problems.items()
            ]
        )
        for name, problems in bad.items():
            for problem in problems:
                print(f"{name}: {problem}")
        print(f"{found.source}: {len(services)} services, {len(bad)} with problems")
    if bad:
        raise SystemExit(PROBLEMS)


def schema(args: Namespace) -> None:
    """Print the catalog's JSON Schema over all installed platforms, or write it to a file."""
    from airflow_multideploy.catalog.schema import json_schema
    from airflow_multideploy.platforms.kinds import config_type, kinds

    types = {}
    for kind in kinds():
        try:
            types[kind] = config_type(kind)
        except UnknownPlatform as error:
            print(f"left out: {error}", file=sys.stderr)
    document = json_schema(types)
    if args.output_file is None:
        print_json(document)
        return
    try:
        Path(args.output_file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"{args.output_file}: {error.strerror or error}; name a file that can be written")


def platforms(args: Namespace) -> None:
    """List the installed platforms; one that cannot be loaded shows why, and makes the exit code 1."""
    from airflow_multideploy.platforms.kinds import kinds

    if args.docs:
        _write_pages(Path(args.docs))
        return
    rows = [_platform(kind, point) for kind, point in kinds().items()]
    if args.output == "json":
        print_json(rows)
    else:
        print_table([_cells(row) for row in rows])
        for row in rows:
            if row["error"]:
                print(f"{row['kind']}: {row['error']}")
    if any(row["error"] for row in rows):
        raise SystemExit(PROBLEMS)


def _write_pages(folder: Path) -> None:
    """A page for each platform that can be loaded; the others are told, and make the exit code 1."""
    from airflow_multideploy.cli.pages import pages
    from airflow_multideploy.platforms.kinds import kinds, platform_type

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
        fail(f"{folder}: {error.strerror or error}; name a folder that can be written")
    if errors:
        fail("; ".join(map(str, errors)), PROBLEMS)


def _platform(kind: str, point: Any) -> dict[str, Any]:
    from airflow_multideploy.platforms.kinds import platform_type
    from airflow_multideploy.release.contract import Capabilities

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


# --- releases


@suppress_logs_and_warning
def history(args: Namespace) -> None:
    """Print a service's releases, newest first; exit with 1 if one cannot be read, with 2 if none can be."""
    from airflow_multideploy.release.ledger import Spoilt, row
    from airflow_multideploy.store import database as stored

    with told():
        since, until = stored.moment(args.since, "--since"), stored.moment(args.until, "--until")
        found = stored.history(args.service, target=args.target, since=since, until=until, limit=max(args.limit, 0))
    if args.output == "json":
        print_json([each.dump() for each in found])
    else:
        print_table([row(each) for each in found])
    if any(isinstance(each, Spoilt) for each in found):
        raise SystemExit(PROBLEMS)


# --- sandbox and demo


def sandbox(args: Namespace) -> None:
    """Serve the sandbox until SIGINT or SIGTERM, then stop it; exit with 0."""
    from airflow_multideploy.sandbox.command import document, guide, serve
    from airflow_multideploy.sandbox.laptop import write_laptop

    options = {"seconds": args.seconds, "ports": args.port, "base_port": args.base_port, "seeds": args.seed}
    with (
        told(),
        _signals(signal.SIGINT, signal.SIGTERM) as wait,
        serve(**options, folder=_folder(args)) as running,
    ):
        if args.output == "json":
            print_json(document(running))
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
    from airflow_multideploy.clients.connections import missing_extra

    with told():
        try:
            from airflow_multideploy.cli.demo import main

            code = main(ui=args.ui, folder=_folder(args))
        except MultideployError:
            raise
        except ImportError as error:
            raise missing_extra("sandbox", error) from error
        except KeyboardInterrupt:
            code = 130
    raise SystemExit(code)
