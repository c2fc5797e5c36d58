"""``airflow multideploy``: plan, rollback, init, doctor: Airflow's database; ``init``, ``rollback`` write there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ActionCommand
from airflow.utils.cli import suppress_logs_and_warning

from airflow_multideploy.cli.terminal import FAILED, PROBLEMS, arg, command, fail, output, print_json, print_table, told
from airflow_multideploy.errors import MultideployError, SpecError
from airflow_multideploy.store import database as stored

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_multideploy.catalog.service import Service
    from airflow_multideploy.cli.catalog import Checked
    from airflow_multideploy.release.preview import Preview


def commands() -> list[ActionCommand]:
    """Those of this module."""
    verbose = arg("-v", "--verbose", action="store_true", help="show log lines")
    file = arg("--file", help="YAML or JSON catalog; default: option multideploy.catalog_file or the Variables")
    return [
        command(
            plan,
            "Show what a release would do, and write nothing",
            arg("service", help="its name"),
            arg("--version", help="which one; default: the service's"),
            arg("--targets", metavar="A,B", help="where; default: everywhere"),
            arg("--param", action="append", default=[], metavar="KEY=VALUE", help="of the run; repeatable"),
            file,
            output(markdown="for a merge request"),
            verbose,
        ),
        command(
            init,
            "Create the pools behind the catalog's locks, and correct them",
            arg("-y", "--yes", action="store_true", help="do not ask"),
            arg("--check", action="store_true", help="only tell; exit with 1 if something is to be done"),
            file,
            output(),
            verbose,
        ),
        command(
            rollback,
            "Release an earlier version again, exactly as it was",
            arg("service", help="its name"),
            arg("--to", default="previous", metavar="VERSION", help="a version or a digest; default: previous"),
            arg("--targets", metavar="A,B", help="where; default: everywhere"),
            arg("--reason", help="why; kept with the release"),
            arg("--force", action="store_true", help="also to a release that was not good there"),
            output(),
            verbose,
        ),
        command(doctor, "Check all that could make a release fail or hang", file, output(), verbose),
    ]


@suppress_logs_and_warning
def rollback(args: Namespace) -> None:
    """Start a run that rolls back, and print its id; exit with 2 if it could not be started."""
    from getpass import getuser

    from airflow.api.client import get_current_api_client
    from airflow.exceptions import DagNotFound
    from airflow.models import DagRun
    from airflow.sdk.exceptions import AirflowException
    from airflow.utils.state import DagRunState

    conf: dict[str, Any] = {"version": args.to, "rollback": True, "force": args.force}
    conf |= {"targets": _names(args.targets)} if args.targets is not None else {}
    conf |= {"reason": args.reason} if args.reason is not None else {}
    with told(), _at_the_database():
        if stored.paused([args.service]):
            raise SpecError(f"{args.service}: its DAG is paused; type `airflow dags unpause {args.service}` first")
        _possible(args.service, conf)
    try:
        run = get_current_api_client().trigger_dag(dag_id=args.service, conf=conf, triggering_user_name=getuser())
    except DagNotFound:
        fail(
            f"{args.service}: Airflow knows no such DAG; correct the name, or wait until the DAG processor has seen it"
        )
    except (AirflowException, ValueError, OSError) as error:
        fail(f"{args.service}: {error}")
    before = [each.run_id for each in DagRun.find(dag_id=args.service, state=DagRunState.RUNNING)]
    found = {"service": args.service, "run_id": (run or {}).get("dag_run_id"), "conf": conf, "after": before}
    if args.output == "json":
        print_json(found)
        return
    print(f"{args.service}: rolling back to {args.to} in run {found['run_id']}")
    for each in before:
        print(f"it begins when run {each} has ended; if that one waits for a person, mark it failed")


def _possible(name: str, conf: dict[str, Any]) -> None:
    """Refuse what the run would refuse, where the catalog is known here.

    :raises MultideployError: there is nothing to go back to, or no such target.
    """
    from airflow_multideploy.cli.catalog import check
    from airflow_multideploy.operators.preview import resolved
    from airflow_multideploy.release.plan import make_plan

    try:
        service = check(None).services[name]
    except (SpecError, KeyError):
        return
    resolved(make_plan(name, service, conf, dag_id=name, run_id=""), service, stored.StoredState(name))


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",")]


@contextmanager
def _at_the_database() -> Iterator[None]:
    """Connections are read as Airflow's own commands read them: also from its database."""
    before = os.environ.get("_AIRFLOW_PROCESS_CONTEXT")
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        yield
    finally:
        os.environ.pop("_AIRFLOW_PROCESS_CONTEXT")
        if before is not None:
            os.environ["_AIRFLOW_PROCESS_CONTEXT"] = before


@suppress_logs_and_warning
def plan(args: Namespace) -> None:
    """Print what a release would do; exit with 1 if it would be refused, with 2 if that cannot be told."""
    with told(), _at_the_database():
        found = _preview(args)
    if args.output == "json":
        print_json(found.dump())
    elif args.output == "markdown":
        from airflow_multideploy.release.preview import markdown

        print(markdown(found), end="")
    else:
        from airflow_multideploy.release.preview import rows, summary

        print("\n".join(summary(found)))
        if found.targets:
            print_table(rows(found))
    if found.refusals or not found.whole:
        raise SystemExit(PROBLEMS if found.refusals else FAILED)


def _preview(args: Namespace) -> Preview:
    from airflow_multideploy.cli.catalog import check
    from airflow_multideploy.operators import preview
    from airflow_multideploy.release.plan import make_plan
    from airflow_multideploy.release.preview import Preview
    from airflow_multideploy.store import pools

    found = check(args.file)
    service = _known(args.service, found)
    conf = {**_params(args.param, service), "dry_run": True}
    conf |= {"version": args.version} if args.version is not None else {}
    conf |= {"targets": _names(args.targets)} if args.targets is not None else {}
    try:
        wanted = make_plan(args.service, service, conf, dag_id=args.service, run_id="")
    except SpecError as error:
        return Preview(service=args.service, version=args.version, refusals=error.problems)
    store = stored.StoredState(args.service)
    try:
        wanted = preview.resolved(wanted, service, store)
    except MultideployError as error:
        return Preview(service=args.service, version=args.version, refusals=(str(error),))
    made = pools.existing().keys() & pools.known().keys()  # the plan task goes by what `init` said
    lacking = preview.lacking(service, lambda name: _known(name, found).targets, stored.StoredState)
    return preview.preview(wanted, service, store, made=made, lacking=lacking)


def _known(name: str, found: Checked) -> Service:
    if name in found.services and not [each for each in found.problems[name] if not each.startswith("notify[")]:
        return found.services[name]
    known = ", ".join(sorted(found.services)) or "none"
    problems = found.problems.get(name, [f"is not in {found.source}; there are: {known}"])
    raise SpecError(problems, service=name)


def _params(given: list[str], service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise SpecError(f"--param {each!r:.100}: expected KEY=VALUE")
        parameter = service.params.get(key)
        text = key in ("reason", "override") if parameter is None else parameter.type == "string"
        found[key] = value if text else _read(value)
    return found


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


@suppress_logs_and_warning
def init(args: Namespace) -> None:
    """Create the pools that the catalog's locks need; exit with 1 if that was refused, or is only to be checked."""
    from airflow_multideploy.catalog import locks
    from airflow_multideploy.cli.catalog import check
    from airflow_multideploy.store import pools

    with told():
        services = check(args.file).services  # `validate` and `doctor` tell of the others
        todo = pools.steps(locks.pools(services.values()), pools.existing())
    clashes = [f"{name}: {each}" for name, found in locks.contradictions(services).items() for each in found]
    if clashes:
        fail("; ".join(clashes), PROBLEMS)
    work = [step for step in todo if step.action != "keep"]
    if args.output == "json":
        print_json([step.dump() for step in todo])
    else:
        print_table([step.dump() for step in todo])
        print(f"{len(todo)} pools, {len(work)} to be created or corrected")
    if args.check:
        raise SystemExit(PROBLEMS if work or not _told_tasks(todo) else 0)
    if work and not args.yes and not _agreed():
        raise SystemExit(PROBLEMS)
    with told():
        pools.make(todo)


def _told_tasks(todo: list[Any]) -> bool:
    from airflow_multideploy.store import pools

    try:
        return {step.pool: step.slots for step in todo}.items() <= pools.known().items()
    except SpecError:
        return False


def _agreed() -> bool:
    print("Do it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@suppress_logs_and_warning
def doctor(args: Namespace) -> None:
    """Print what could make a release fail or hang; exit with 1 if there is something."""
    from airflow_multideploy.cli.catalog import check
    from airflow_multideploy.cli.doctor import examine

    with told(), _at_the_database():
        findings = examine(check(args.file))
    if args.output == "json":
        print_json([each.dump() for each in findings])
    elif findings:
        print_table([each.dump() for each in findings])
    else:
        print("nothing found")
    if any(each.severity == "error" for each in findings):
        raise SystemExit(PROBLEMS)
