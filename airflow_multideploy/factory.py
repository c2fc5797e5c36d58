"""From the catalog to DAGs: one per service."""

from __future__ import annotations

import datetime as dt
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, Param, TaskGroup, TriggerRule, get_parsing_context
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.param import ParamsDict
from airflow.utils.types import DagRunType

from airflow_multideploy import variables
from airflow_multideploy.core.catalog import UNTIMED, is_schedule, parse_service
from airflow_multideploy.core.environments import expand
from airflow_multideploy.core.errors import SpecError
from airflow_multideploy.core.locks import locks
from airflow_multideploy.core.models import VERSION_PATTERN, AtLeast, Parameter, Service, redact
from airflow_multideploy.core.plan import DIGEST_PATTERN, waves
from airflow_multideploy.core.windows import Scheduled
from airflow_multideploy.files import read_file as read_file  # noqa: PLC0414 - others take it from here
from airflow_multideploy.operators.build import BuildImageOperator
from airflow_multideploy.operators.deploy import DeployOperator
from airflow_multideploy.operators.plan import PlanOperator
from airflow_multideploy.operators.reconcile import ReconcileOperator
from airflow_multideploy.operators.state import Final, journal_asset, service_asset
from airflow_multideploy.operators.tail import APPROVE, finish, gates
from airflow_multideploy.platforms import config_type

_log = logging.getLogger(__name__)
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
RECONCILE_DAG, CATALOG_DAG = "multideploy_reconcile", "multideploy_catalog"
"""Stands in the list of DAGs when the catalog as a whole cannot be read."""
PLAN, BUILD = "plan", "build"
RUN_TYPES: Any = [kind for kind in DagRunType if kind is not DagRunType.BACKFILL_JOB]
"""A backfill would run several releases of one service at once, whatever ``max_active_runs`` says."""
RETRY_DELAY = dt.timedelta(seconds=5)


def service_dags(catalog: str | Path | None = None) -> dict[str, DAG]:
    """One DAG per service; ``globals().update(service_dags())`` in a DAG file is all it takes.

    A service that is broken becomes a DAG that shows its error, and harms no other. In a task's process only that
    task's DAG is built, from the config that its run has frozen.

    :param catalog: a YAML or JSON file; default: the file that ``[multideploy] catalog_file`` names, else the Variables
        ``multideploy_services`` and ``multideploy_defaults``.
    """
    catalog = catalog or conf.get("multideploy", "catalog_file", fallback="") or None
    context = get_parsing_context()
    if context.dag_id is not None:
        return _only(context.dag_id, planning=context.task_id == PLAN, catalog=catalog)
    with _uncollected():
        return _all(catalog)


def _all(catalog: str | Path | None) -> dict[str, DAG]:
    try:
        in_flight = _in_flight()
    except SpecError as error:
        return {CATALOG_DAG: error_dag(CATALOG_DAG, error)}  # what was parsed before stands
    try:
        entries, defaults = _entries(catalog)
    except (SpecError, OSError) as error:
        entries, defaults = {CATALOG_DAG: error}, None
    # One DAG for each name: of two that are made, Airflow would take either.
    dags = {name: _dag(name, entry, defaults, catalog) for name, entry in entries.items() if name not in in_flight}
    dags |= {name: _dag(name, service, None) for name, service in in_flight.items() if service is not None}
    if (mode := _reconcile_mode()) != "off":
        dags[RECONCILE_DAG] = _reconcile_dag(mode, entries, defaults)
    return dags


def _in_flight() -> dict[str, Any]:
    """By service the frozen config of its run in flight, which keeps its DAG as it was when it began: the scheduler
    drops the runs of a DAG that vanished. None where it cannot be read: what was parsed before stands, and the run goes
    on.

    :raises Unreadable: which there are is not known.
    """
    found: dict[str, Any] = {}
    for key in variables.keys(variables.FROZEN):
        name = key.removeprefix(variables.FROZEN)
        try:
            kept = variables.frozen(name)
        except SpecError as error:
            _log.error("%s; the DAG of %s is not read this time", error, name)
            found[name] = None
            continue
        if kept is not None and variables.under_way(name, kept.run_id):
            found[name] = kept.service
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: all that is made here stays, and looking at it again and again would take a
    third of the time that a large catalog takes. In the DAG processor it stays off: that process serialises the DAGs of
    this one file, and ends."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on and not variables.supervised():
            gc.enable()


def _only(name: str, *, planning: bool, catalog: str | Path | None) -> dict[str, DAG]:
    if name == RECONCILE_DAG:
        return {name: _reconcile_dag(_reconcile_mode(), *_entries(catalog))}
    if not planning and (kept := variables.frozen(name)) is not None:
        return {name: _dag(name, kept.service, None)}
    entry, defaults = _entry(name, catalog)
    if entry is None and planning:  # a run that waited while its service was taken out: its plan says so
        with DAG(name, schedule=None) as dag:
            PlanOperator(task_id=PLAN, name=name, service=None)
        return {name: dag}
    return {} if entry is None else {name: _dag(name, entry, defaults, catalog)}


def _entries(catalog: str | Path | None) -> tuple[dict[str, Any], Any]:
    entries, defaults = variables.read_catalog() if catalog is None else read_file(catalog)
    return expand(entries, defaults), defaults


def _entry(name: str, catalog: str | Path | None) -> tuple[Any, Any]:
    if catalog is None:
        return variables.read_entry(name)
    entries, defaults = read_file(catalog)
    return expand(entries, defaults, only=name).get(name), defaults


def _targets_of(catalog: str | Path | None, name: str) -> tuple[str, ...]:
    """The targets of another service of the catalog.

    :raises SpecError: there is no such service, or it is broken.
    """
    entry, defaults = _entry(name, catalog)
    if entry is None:
        raise SpecError(f"requires.{name}: the catalog has no such service; name one that it has")
    return tuple(parse_service(name, entry, defaults=defaults, config_type=config_type).targets)


def _dag(name: str, entry: Any, defaults: Any, catalog: str | Path | None = None) -> DAG:
    try:
        if isinstance(entry, Exception):
            raise entry
        service = parse_service(name, entry, defaults=defaults, config_type=config_type)
        return service_dag(name, service, catalog)
    except (SpecError, OSError) as error:
        return error_dag(name, error)
    except Exception as error:  # noqa: BLE001 - any error in a DAG file makes every DAG in it stale
        return error_dag(name, error)


def service_dag(name: str, service: Service, catalog: str | Path | None = None) -> DAG:
    """The release DAG of one service: plan → build → deploys → aggregate_status → rollbacks → finalize.

    :param catalog: the file with the services that this one requires; default: the Variables.
    """
    order, held = waves(service.targets), locks(service)
    with DAG(
        dag_id=name,
        description=service.description or f"Releases {name} to {len(service.targets)} targets",
        schedule=_schedule(service),
        start_date=START,
        catchup=False,
        allowed_run_types=RUN_TYPES,
        max_active_runs=1,
        max_active_tasks=max(16, len(service.targets)),
        tags=["multideploy", *([f"env:{service.environment}"] if service.environment else []), *service.tags],
        doc_md=describe(name, service, order),
    ) as dag:
        # Not as default_args, which Airflow copies for every class of every task.
        common: dict[str, Any] = {"owner": service.owner, "retries": service.retries, "retry_delay": RETRY_DELAY}
        first: BaseOperator = PlanOperator(
            task_id=PLAN, name=name, service=service, targets_of=partial(_targets_of, catalog), **common
        )
        if service.build is not None:
            build = BuildImageOperator(task_id=BUILD, plan_task_id=PLAN, service_name=name, **common)
            first >> build
            first = build
        build_id = BUILD if service.build is not None else None
        deploys: dict[str, DeployOperator] = {}
        for wave in order:
            for target in wave:
                pool = {"pool": held[target].pool, "weight_rule": "absolute"} if target in held else {}
                deploys[target] = _deploy(name, service, target, build_task_id=build_id, **pool, **common)
        roots = [d for target, d in deploys.items() if not service.targets[target].depends_on]
        gates(service, first, deploys, service_name=name, plan_task_id=PLAN, build_task_id=build_id, **common) >> roots
        for target, config in service.targets.items():
            for edge in config.depends_on:
                deploys[edge.target] >> deploys[target]
        _lanes(service, [deploys[target] for wave in order for target in wave])
        finish(
            [deploys[target] for target in service.targets],
            plan_task_id=PLAN,
            build_task_id=build_id,
            approve_task_id=APPROVE if service.approval else None,
            strategy=service.rollback.strategy,
            manual=service.rollback.model_dump(include={"users", "timeout", "default"}),
            notify=[settings.model_dump(mode="json") for settings in service.notify],
            deferrable=service.deferrable,
            pools={target: lock.pool for target, lock in held.items()},
            **common,
        )
    # Last: each task would copy the params that its DAG has by then, and Airflow validates and serialises every copy.
    dag.params = ParamsDict(_params(service))
    return dag


def _schedule(service: Service) -> Any:
    """What starts releases beside people: a release elsewhere that is promoted, a window that opens, or a cron."""
    if service.promote:
        return service_asset(service.promote.source)
    if isinstance(service.schedule, Scheduled):
        from airflow_multideploy.timetables import WindowTimetable

        return WindowTimetable(service.schedule.windows.model_dump(mode="json"))
    if service.schedule is None or service.schedule in UNTIMED:
        return service.schedule
    from airflow_multideploy.timetables import CronTimetable

    return CronTimetable(service.schedule, timezone="UTC")


def _lanes(service: Service, deploys: Sequence[DeployOperator]) -> None:
    """At most ``max_parallel`` at once: each deploy also waits for the end, good or bad, of the one so many before it.

    And so do the rollbacks, which go the same way in reverse.
    """
    if service.max_parallel is not None:
        for before, after in zip(deploys, deploys[service.max_parallel :], strict=False):
            before >> after
            after.trigger_rule = TriggerRule.ALL_DONE


def reconcile_dag(services: Mapping[str, Service], *, schedule: str, settle: bool) -> DAG:
    """The DAG that looks after targets whose run is over and which nobody answered for.

    :param settle: send them back to their snapshots; False only reports them.
    """
    with DAG(
        dag_id=RECONCILE_DAG,
        description=f"{'Sends back' if settle else 'Reports'} what dead runs left in doubt",
        schedule=schedule,
        start_date=START,
        catchup=False,
        max_active_runs=1,
        tags=["multideploy"],
        doc_md="Finds unsettled journals whose run is over. Fails while a target stays in doubt, and says why.",
    ) as dag:
        ReconcileOperator(task_id="reconcile", services=services, settle=settle, retries=0)
    return dag


def _reconcile_mode() -> str:
    return str(conf.get("multideploy", "reconcile", fallback="") or "off")


def _reconcile_dag(mode: str, entries: Mapping[str, Any], defaults: Any) -> DAG:
    if mode not in ("report", "rollback"):
        return error_dag(RECONCILE_DAG, SpecError(f"[multideploy] reconcile: is {mode!r}; set off, report or rollback"))
    schedule = str(conf.get("multideploy", "reconcile_schedule", fallback="*/10 * * * *"))
    if not is_schedule(schedule):
        return error_dag(
            RECONCILE_DAG,
            SpecError(
                f"[multideploy] reconcile_schedule: is {schedule!r}; set a cron expression, such as */10 * * * *"
            ),
        )
    if isinstance(unreadable := entries.get(CATALOG_DAG), Exception):
        return error_dag(RECONCILE_DAG, unreadable)  # of no service it could say that nothing is in doubt
    services = {}
    for name, entry in entries.items():
        with suppress(Exception):  # a broken service has a DAG of its own that shows its error
            services[name] = parse_service(name, entry, defaults=defaults, config_type=config_type)
    return reconcile_dag(services, schedule=schedule, settle=mode == "rollback")


def _deploy(name: str, service: Service, target: str, **common: Any) -> DeployOperator:
    config = service.targets[target]
    with TaskGroup(target, tooltip=config.platform):
        return DeployOperator(
            task_id="deploy",
            service_name=name,
            target=target,
            depends_on=config.depends_on,
            trigger_rule="all_done" if config.depends_on else "all_success",
            deferrable=service.deferrable,
            plan_task_id=PLAN,
            custom_name=config.platform,
            **common,
        )


def _params(service: Service) -> dict[str, Param]:
    names = list(service.targets)
    pattern = f"^({DIGEST_PATTERN}|{VERSION_PATTERN[1:-1]})$"
    version: dict[str, Any] = {"type": "string", "pattern": pattern, "title": "Version"}
    if service.version is not None:
        version["default"] = service.version
    elif service.promote is not None:  # it comes with the event that starts the run
        version |= {"default": None, "type": ["null", "string"]}
    return {
        "version": Param(description="image tag to release: letters, digits, _ . and -, at most 128", **version),
        "targets": Param(
            default=names,
            type="array",
            items={"type": "string", "enum": names},
            examples=names,
            minItems=1,
            uniqueItems=True,
            title="Targets",
            description="where to release",
        ),
        "reason": Param(
            default=None,
            type=["null", "string"],
            maxLength=500,
            title="Reason",
            description="why; kept with the release",
        ),
        "dry_run": Param(default=False, type="boolean", title="Dry run", description="plan only, write nothing"),
        "force": Param(
            default=False,
            type="boolean",
            title="Force",
            description="write even where the version is live, known as bad, or another run is in doubt",
        ),
        "rollback": Param(
            default=False,
            type="boolean",
            title="Roll back",
            description="release an earlier version again, exactly as it was: `previous`, a version or a digest",
        ),
        "override": Param(
            default=None,
            type=["null", "string"],
            maxLength=500,
            title="Override windows and freezes",
            description="the reason for which they do not count this time; kept with the release",
        ),
        **{name: _param(name, parameter) for name, parameter in service.params.items()},
    }


def _param(name: str, parameter: Parameter) -> Param:
    schema: dict[str, Any] = {"type": parameter.type, "title": name, "description": parameter.description}
    if parameter.enum is not None:
        schema["enum"] = list(parameter.enum)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return Param(**schema)


def describe(name: str, service: Service, order: Sequence[Sequence[str]]) -> str:
    """The DAG's documentation: targets, order and policies, as Markdown."""
    policy = service.success.policy
    success = f"at least {policy.at_least} targets" if isinstance(policy, AtLeast) else f"{policy} targets"
    lines = [
        f"# {name}",
        service.description,
        f"Releases `{service.artifact.image}`. Succeeds with **{success}**; otherwise rolls back "
        f"**{service.rollback.strategy}**. Marking a run failed: **{service.rollback.cancel}**.",
        "",
        "| wave | target | platform | after | critical | time-out |",
        "|---|---|---|---|---|---|",
    ]
    for number, wave in enumerate(order, start=1):
        for target in wave:
            config = service.targets[target]
            edges = [e.target if e.when == "succeeded" else f"{e.target} {e.when}" for e in config.depends_on]
            after = ", ".join([*edges, *([f"when `{config.when}`"] if config.when else [])])
            critical = "" if config.critical is None else str(config.critical).lower()
            lines.append(f"| {number} | {target} | {config.platform} | {after} | {critical} | {config.timeout:g} s |")
    return "\n".join(lines)


class CatalogErrorOperator(BaseOperator):
    """Fails with the error of a service that is broken in the catalog."""

    def __init__(self, *, error: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error = error

    def execute(self, context: Context) -> None:
        """Raise the error."""
        raise Final(self.error)


def error_dag(name: str, error: Exception) -> DAG:
    """What a broken service shows instead of its DAG: the error, with every problem on a line.

    It goes on naming the service's journals, which Airflow would delete, with ledger and all, once no DAG names them.
    """
    import re

    name = redact(str(name))  # a key of the catalog, which may be anything
    dag_id = name if re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name) else CATALOG_DAG
    problems = error.problems if isinstance(error, SpecError) else (f"{type(error).__name__}: {error}",)
    with DAG(
        dag_id=dag_id,
        dag_display_name=f"{dag_id} (broken)",
        description=f"BROKEN: {problems[0]}"[:500],
        schedule=None,
        start_date=START,
        tags=["multideploy", "broken"],
        doc_md="\n".join([f"# {name}: broken in the catalog", "", *(f"- {problem}" for problem in problems)]),
        max_active_runs=1,
    ) as dag:
        shown = CatalogErrorOperator(task_id="show_error", error=str(error), retries=0)
        if dag_id == name and name not in (CATALOG_DAG, RECONCILE_DAG):
            shown.inlets = [journal_asset(name)]
    return dag
