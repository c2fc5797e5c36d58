"""The deploy task of one target: thin, the steps are in `airflow_multideploy.release.rollout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, NoReturn

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from airflow_multideploy.catalog.checks import Check
from airflow_multideploy.catalog.target import Edge
from airflow_multideploy.errors import (
    InDoubt,
    KnownBad,
    PlatformError,
    RolloutFailed,
    SpecError,
    UnknownPlatform,
    Unreadable,
)
from airflow_multideploy.operators.by_hand import Checked, hurried, named, own_arguments, pinned, templated
from airflow_multideploy.operators.clock import Final, TaskClock
from airflow_multideploy.operators.console import CONSOLE, ConsoleLink
from airflow_multideploy.operators.queue import rollback_behind
from airflow_multideploy.operators.retry import BY_ERROR_CLASS
from airflow_multideploy.operators.run import (
    ROLLOUT,
    cleared_alone,
    decisions,
    journal,
    not_approved,
    outcome_of,
    own_entry,
    pull_plan,
    seen_by_trigger,
    this_run,
)
from airflow_multideploy.operators.trigger import RolloutTrigger, Siblings
from airflow_multideploy.operators.windows import closed, hold, platforms_of
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Observation, Platform, Release, State
from airflow_multideploy.release.journal import GOOD, Entry, Phase
from airflow_multideploy.release.plan import Plan, release_id
from airflow_multideploy.release.rollout import Rollout
from airflow_multideploy.release.status import TargetResult, result_of
from airflow_multideploy.store.assets import journal_asset
from airflow_multideploy.store.variables import OVER

EVERYBODYS = "default_pool"
"""Airflow's own pool, in which a task runs that names none."""
EARLY, IDLE = 3.0, 120.0
"""Seconds between two looks at a deploy that has to end first, and for which one is waited for that does not start."""
UNDER_WAY = frozenset({"running", "deferred", "up_for_retry", "restarting"})
AGAIN: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=5)}
"""Unless task or DAG say otherwise: Airflow can take a task for dead that is resumed quickly, and without another try a
release would go back for that."""
LONG = 60.0
"""Seconds of a bake for which no worker is held, whichever try of the task it is."""


class DeployOperator(Checked):
    """Releases one version to one target, waits until that version serves, and journals all of it.

    Each platform derives a class with typed arguments. In a hand-written DAG give ``version`` and ``image``; in a DAG
    of the factory both, and the config, come from the run's frozen plan. A failed rollout is not retried; a platform
    that does not answer is.

    :param config: the target's settings as in the catalog.
    :param version: what is released; default: the image's tag, else its digest.
    :param image: image reference; without tag and digest, the version is its tag. Default: the plan's.
    :param service_name: name of the service in journal and messages; default: the DAG's id.
    :param target: name of the target; default: the task's id, with those of its TaskGroups.
    :param force: write even when the release is live, in doubt, or known as bad.
    :param deferrable: wait in the triggerer (default) or in the worker. A rollout in a pool is waited for in the worker
        in any case: Airflow gives the slot of a deferred task away when it resumes.
    :param plan_task_id: the task that froze the plan.
    :param build_task_id: the task that built the image, when one did.
    :param gates: tasks that have to approve, see `ApproveOperator`.
    :param custom_name: what the UI calls this kind of task; default: the class.
    """

    kind: ClassVar[str] = ""
    template_fields: Sequence[str] = ("version", "image", "reason", "config")
    ui_color = "#e8f4ea"
    config: dict[str, Any]
    version: str
    image: str
    reason: str
    force: bool
    service_name: str
    target: str
    deferrable: bool
    plan_task_id: str | None
    build_task_id: str | None
    edges: tuple[Edge, ...]
    gates: tuple[str, ...]
    _clock: TaskClock
    _clear: float | None = None
    _plan: Plan | None = None
    operator_extra_links = (ConsoleLink(),)

    def __init__(
        self,
        *,
        config: dict[str, Any] | None = None,
        version: str = "",
        image: str = "",
        reason: str = "",
        service_name: str | None = None,
        target: str | None = None,
        force: bool = False,
        timeout: float | None = None,
        rollback_timeout: float | None = None,
        poll_interval: float | None = None,
        first_deploy: str | None = None,
        critical: bool | None = None,
        verify: dict[str, Any] | None = None,
        depends_on: Sequence[Edge] = (),
        deferrable: bool = True,
        plan_task_id: str | None = None,
        build_task_id: str | None = None,
        gates: Sequence[str] = (),
        custom_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        own_arguments(type(self), kwargs)
        kwargs.setdefault("retry_policy", BY_ERROR_CLASS)
        of_the_dag = kwargs.get("default_args") or {}
        kwargs |= {key: value for key, value in AGAIN.items() if key not in kwargs and key not in of_the_dag}
        super().__init__(**kwargs)
        if self.get_closest_mapped_task_group() is not None:
            self.partial(task_id=self.task_id)
        service_name, target = service_name or self.dag_id, target or self.task_id
        named(self.task_id, service_name=service_name, target=target)
        if plan_task_id is None and image and not templated(image, version):
            pinned(self.task_id, image, version)
        common = {
            "timeout": timeout,
            "rollback_timeout": rollback_timeout,
            "poll_interval": poll_interval,
            "first_deploy": first_deploy,
            "critical": critical,
            "verify": verify,
        }
        given = {"platform": self.kind, **(config or {}), **common} if self.kind else {**(config or {}), **common}
        own = {key: value for key, value in given.items() if value is not None}
        if own and "{{" not in str(own):
            adapter(own, service=service_name, target=target)
        # Past Airflow's own __setattr__, for which a large catalog pays when it is parsed.
        vars(self).update(
            config=own,
            version=version,
            image=image,
            reason=reason,
            force=force,
            service_name=service_name,
            target=target,
            deferrable=deferrable,
            plan_task_id=plan_task_id,
            build_task_id=build_task_id,
            edges=tuple(depends_on),
            gates=tuple(gates),
            _clock=TaskClock(),
        )
        if plan_task_id is not None:
            self.template_fields = ()  # all comes from the plan; each field costs the DAG processor a config look-up
        if custom_name:
            self.custom_operator_name = custom_name
        self.inlets = [*self.inlets, journal_asset(self.service_name)]

    def prepare_template(self) -> None:
        """Airflow asks for it once the DAG is whole.

        :raises SpecError: nothing says what is released.
        """
        if self.plan_task_id is None and not self.image:
            pinned(self.task_id, self.image, self.version)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the rollout, wait for it, and return the target's result document."""
        return self.begin(context)()

    def repeated(self, clear: float) -> DeployOperator:
        """A copy that rolls out anew, whatever its siblings came to, and waits in its own process.

        :param clear: see `Rollout`; higher than that of the rollout before.
        """
        again = copy(self)
        again._clear, again.deferrable = clear, False
        return again

    def begin(self, context: Context) -> Callable[[], dict[str, Any]]:
        """Start the rollout; what is returned waits for its end, and gives the target's result document."""
        found: Any = ((task.task_id, getattr(task, "tasks", None)) for task in self.dag.tasks)
        after = [task_id for task_id, tasks in found if isinstance(tasks, dict) and self.task_id in tasks.values()]
        if after and (why := hurried(self.dag)):  # by a cluster's policy, which comes after all checks
            self._refuse(context, why)
        if self._clear is None and (why := cleared_alone(self, context, after)):
            self._refuse(context, why, "else nobody judges this rollout, or takes it back")
        try:
            release, config = self._resolve(context)
        except Unreadable as error:
            self._push(context, self._failed(str(error)))
            raise  # another try may read it
        except SpecError as error:
            self._refuse(context, str(error))
        try:
            platform = adapter(config, service=self.service_name, target=self.target)
            rollout = self._rollout(context, platform)
            self.log.info("%s: releasing %s as %s", platform.name, release.image, release.release_id)
            context["ti"].xcom_push(CONSOLE, platform.console_url())
            entry = rollout.begin(release)
        except (SpecError, UnknownPlatform, InDoubt, KnownBad, RolloutFailed) as error:
            self._push(context, self._failed(str(error)))
            raise Final(str(error)) from error
        except PlatformError as error:
            self._push(context, self._result(context))
            if error.retryable:
                raise
            raise Final(str(error)) from error
        except Exception as error:
            # A bug, or Airflow's own error. Its text may hold anything, so it stays in the task's log.
            reason = f"{type(error).__name__} before the rollout was under way; the log of {self.task_id} has it"
            self._push(context, self._result(context).model_copy(update={"reason": reason}))
            raise
        context["ti"].xcom_push(CONSOLE, platform.console_url(entry.handle))
        self._clock.check()
        if entry.phase is not Phase.VERIFYING:
            return partial(self._report, context, entry)
        return partial(self._finish, context, rollout, entry)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Journal what the triggerer saw, and return the target's result document."""
        entry = own_entry(context, self.dag_id, self.service_name, self.target)
        if entry is None or entry.phase is not Phase.VERIFYING:
            state = "nothing of this run" if entry is None else entry.phase
            raise Final(f"{self.service_name}/{self.target}: the journal says {state}; somebody else took over")
        platform = adapter(dict(entry.config), service=self.service_name, target=self.target)
        return self._finish(context, self._rollout(context, platform), entry, seen_by_trigger(event, platform.name))

    def on_kill(self) -> None:
        """Stop waiting; what was written is undone by the rollback task, from the journal."""
        self._clock.stop()

    def _rollout(self, context: Context, platform: Platform[Any]) -> Rollout:
        run = this_run(context, self.dag_id, self._clear)
        return Rollout(platform, journal(context, self.service_name, self.target), self._clock, run)

    def _finish(
        self, context: Context, rollout: Rollout, entry: Entry, seen: Observation | None = None
    ) -> dict[str, Any]:
        """Wait for the platform and for the bake, in the triggerer or here, and report how the rollout ended.

        :param seen: what the triggerer saw.
        """
        siblings: Siblings | None = None

        def look() -> Observation:
            stop = siblings and siblings.why()
            return Observation(state=State.FAILED, reason=stop) if stop else rollout.platform.observe(_handle(entry))

        def ask(check: Check) -> str:
            from airflow_multideploy.operators import checks  # what it imports, a release without checks does not need

            why = checks.ask(check, entry.release, rollout.platform)
            self.log.info("%s: %s", rollout.platform.name, why or "a check is good")
            self._clock.check()
            return why

        try:
            if seen is not None:
                entry = rollout.advance(entry, seen, ask)
            while entry.phase is Phase.VERIFYING:
                siblings = self._siblings(context)
                if self.deferrable and self.pool == EVERYBODYS and self._defers(rollout, entry):
                    self._defer(rollout, entry, siblings)
                entry = rollout.wait(entry, look, ask)
        except RolloutFailed as error:
            raise Final(str(error)) from error
        return self._report(context, entry)

    def _defers(self, rollout: Rollout, entry: Entry) -> bool:
        """Whether the triggerer is to wait: on a task's first try, and for the long rest of a bake.

        A later try waits here: Airflow takes a task for dead that is deferred and back too soon, and would take every
        try so.
        """
        _, baked = rollout.waits(entry)
        return baked > self._clock.time() + LONG or (_handle(entry).changed and entry.attempt == 1)

    def _defer(self, rollout: Rollout, entry: Entry, siblings: Siblings | None) -> NoReturn:
        deadline, earliest = rollout.waits(entry)
        self.defer(
            trigger=RolloutTrigger(
                service=self.service_name,
                target=self.target,
                config=dict(entry.config),
                handle=_handle(entry).dump(),
                deadline=deadline,
                earliest=earliest,
                siblings=siblings.dump() if siblings else None,
            ),
            method_name="resume",
            # Only for a triggerer that is gone: the deadline itself is the trigger's.
            timeout=timedelta(seconds=max(deadline - self._clock.time(), 0.0) + 120),
        )
        raise AssertionError("unreachable: defer raises")

    def _report(self, context: Context, entry: Entry) -> dict[str, Any]:
        """Push the result of a rollout that has ended, and fail when it ended badly."""
        result = result_of(entry, critical=True)
        self._push(context, result)
        message = f"{entry.service}/{entry.target}: version {entry.release.version} {entry.phase}: {entry.reason}"
        if entry.phase not in GOOD:
            raise Final(message) from RolloutFailed(message)
        self.log.info(message)
        return result.dump()

    def _resolve(self, context: Context) -> tuple[Release, dict[str, Any]]:
        """The release and the config: from the frozen plan, or from the arguments."""
        if self.plan_task_id is None:
            return self._own_release(context), self.config
        plan = self._plan = pull_plan(context, self.service_name, self.plan_task_id, strict=True)
        if plan is None:
            raise AirflowSkipException("the plan was refused; nothing is deployed")
        held = self.held(context, plan)
        if held is None and (why := not_approved(context, self.service_name, self.gates) or self._hold(context, plan)):
            held = TargetResult(target=self.target, reason=why)
        if held is not None:
            self._push(context, held)
            raise AirflowSkipException(held.reason or "not selected in this run")
        release = plan.release
        if self.build_task_id is not None:
            built = decisions(context, self.service_name).built()
            if built is None:
                raise AirflowSkipException("the build did not end well; nothing is deployed")
            release = release.model_copy(update=built.model_dump())
        return release, plan.config(self.target)

    def _hold(self, context: Context, plan: Plan) -> str:
        """Wait for the service's window and for the end of a freeze; why it does not, or an empty text.

        Not once this target was written to, and once another was only for freezes of this platform.
        """
        platform = str(plan.config(self.target)["platform"])
        if closed(plan, self._clock.time(), platforms=platforms_of(plan)) is None:
            return ""
        tasks = {t.target: t.task_id for t in self._of_this_service()}
        ends = {t: outcome_of(context, self.dag_id, self.service_name, t, task_id) for t, task_id in tasks.items()}
        # What was put back, in a run that a person has cleared since, begins anew.
        begun = {target for target, end in ends.items() if end.touched and end.phase is not Phase.ROLLED_BACK}
        if self.target in begun:
            return ""

        def useless() -> str:
            failed = [target for target, end in ends.items() if end.phase in (Phase.FAILED, Phase.UNKNOWN)]
            if plan.fail_fast().why(failed):
                return f"not waited for: {', '.join(failed)} failed, and the policy can no longer be reached"
            return "" if begun else rollback_behind(context)

        began = getattr(context["dag_run"], "start_date", None)
        since = began.timestamp() if began is not None else self._clock.time()
        again = "reopened" if self.deferrable else ""
        return hold(self, plan, platform, self._clock, begun=bool(begun), since=since, again=again, useless=useless)

    def reopened(self, context: Context, event: object) -> dict[str, Any]:
        """Go on after a wait for a window."""
        return self.execute(context)

    def _of_this_service(self) -> list[DeployOperator]:
        tasks = self.dag.tasks if self.dag else [self]
        return [t for t in tasks if isinstance(t, DeployOperator) and t.service_name == self.service_name]

    def _own_release(self, context: Context) -> Release:
        try:
            image, version, digest = pinned(self.task_id, self.image, self.version)
        except SpecError as error:
            said = TargetResult(target=self.target, phase=Phase.FAILED, deployed=Phase.FAILED, reason=str(error))
            self._push(context, said)
            raise Final(str(error)) from error
        return Release(
            service=self.service_name,
            version=version,
            image=image,
            digest=digest,
            release_id=release_id(self.dag_id, context["run_id"]),
            reason=self.reason,
            force=self.force,
        )

    def _siblings(self, context: Context) -> Siblings | None:
        """The other rollouts of this run, whose failure stops this one; None without ``fail_fast``."""
        plan = self._plan
        if plan is None and self.plan_task_id is not None:
            plan = pull_plan(context, self.service_name, self.plan_task_id)
        if plan is None or not plan.service.get("fail_fast") or self.dag is None or self._clear is not None:
            return None
        return Siblings(
            dag_id=self.dag_id,
            run_id=context["run_id"],
            tasks={t.target: t.task_id for t in self._of_this_service() if t is not self},
            rule=plan.fail_fast(),
        )

    def held(self, context: Context, plan: Plan) -> TargetResult | None:
        """What this target comes to without a rollout, by the plan and the other targets; None where it may start.

        A target that was not selected counts as live for those that depend on it.
        """
        skipped = partial(TargetResult, target=self.target, phase=Phase.SKIPPED, deployed=Phase.SKIPPED)
        if self.target not in plan.selected:
            return skipped(reason=plan.skipped.get(self.target, ""))
        if plan.dry_run:
            return skipped(reason="dry run")
        for edge in self.edges:
            if edge.target not in (*plan.selected, *plan.skipped):
                continue
            task_id = next(t.task_id for t in self.upstream_list if getattr(t, "target", None) == edge.target)
            if not self._await(context, task_id):
                why = f"waits for {edge.target}, which Airflow has not started: by a catalog before this one, perhaps"
                return TargetResult(target=self.target, reason=why)
            ended = outcome_of(context, self.dag_id, self.service_name, edge.target, task_id).phase
            outcome = "succeeded" if ended in GOOD else "skipped" if ended is Phase.SKIPPED else "failed"
            if edge.when == outcome or (edge.when == "completed" and outcome != "skipped"):
                continue
            why = f"waits for {edge.target} {edge.when}, which is {outcome}"
            pending = edge.when == "succeeded" and outcome == "failed"
            return TargetResult(target=self.target, reason=why) if pending else skipped(reason=why)
        siblings = self._siblings(context)
        why = siblings.why() if siblings else ""
        return TargetResult(target=self.target, reason=why) if why else None

    def _await(self, context: Context, task_id: str) -> bool:
        """Whether a deploy that this one depends on has ended, waited for: Airflow may have started this one too early,
        by a catalog that had no such edge yet. One that does not start is not waited for without end: it may wait for
        the slot of a lock that this one holds."""
        run_id, ask = context["run_id"], context["ti"].get_task_states
        until = self._clock.time() + IDLE
        while True:
            state = str(ask(dag_id=self.dag_id, task_ids=[task_id], run_ids=[run_id])[run_id].get(task_id))
            if state in OVER or (state not in UNDER_WAY and self._clock.time() > until):
                return state in OVER
            self.log.info("waiting for %s, on which this target depends by the catalog of now", task_id)
            self._clock.sleep(EARLY)

    def _result(self, context: Context) -> TargetResult:
        entry = own_entry(context, self.dag_id, self.service_name, self.target)
        return self._failed() if entry is None else result_of(entry, critical=True)

    def _failed(self, reason: str = "") -> TargetResult:
        return TargetResult(target=self.target, phase=Phase.FAILED, deployed=Phase.FAILED, reason=reason)

    def _refuse(self, context: Context, why: str, more: str = "") -> NoReturn:
        """Fail before anything is written."""
        self._push(context, self._failed(why))
        raise Final(f"{self.service_name}/{self.target}: {': '.join(filter(None, (why, more)))}")

    def _push(self, context: Context, result: TargetResult) -> None:
        context["ti"].xcom_push(ROLLOUT, result.dump())


def _handle(entry: Entry) -> Any:
    if entry.handle is None:
        raise AssertionError("a rollout that is being verified has a handle")
    return entry.handle
