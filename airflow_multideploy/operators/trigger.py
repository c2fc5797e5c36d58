"""The one trigger: waits for any platform's rollout or rollback."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Document, Handle, Observation, State
from airflow_multideploy.release.status import FailFast
from airflow_multideploy.release.wait import Watch

LOOKS_AT_ONCE = 16
"""How many targets of one Connection a triggerer looks at in the same moment: each look opens a client, and closes it.

Of one Connection, so that a platform that does not answer delays nobody else's looks.
"""
_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Semaphore]] = WeakKeyDictionary()


def _gate(conn_id: str) -> asyncio.Semaphore:
    gates = _gates.setdefault(asyncio.get_running_loop(), {})
    return gates.setdefault(conn_id, asyncio.Semaphore(LOOKS_AT_ONCE))


class Siblings(Document):
    """The other rollouts of a run, for a service that wants to fail fast.

    :param tasks: id of the deploy task by target.
    """

    dag_id: str
    run_id: str
    tasks: dict[str, str]
    rule: FailFast

    def why(self) -> str:
        """Why this rollout is to stop now, or an empty text; asks Airflow for the states of the other tasks."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        found = RuntimeTaskInstance.get_task_states(
            dag_id=self.dag_id, task_ids=list(self.tasks.values()), run_ids=[self.run_id]
        )
        states = found.get(self.run_id, {})
        return self.rule.why(t for t, task_id in self.tasks.items() if str(states.get(task_id)) == "failed")


class RolloutTrigger(BaseTrigger):
    """Fires once, with the final `Observation` of a rollout as JSON.

    :param config: the target's resolved config.
    :param handle: what ``deploy`` or ``rollback`` returned, as JSON.
    :param deadline: epoch seconds; absolute, so that a triggerer's restart does not extend it.
    :param earliest: epoch seconds; healthy counts only from then on.
    :param siblings: whose failure ends the waiting, as JSON; None: nobody's.
    """

    def __init__(
        self,
        *,
        service: str,
        target: str,
        config: dict[str, Any],
        handle: dict[str, Any],
        deadline: float,
        earliest: float = 0.0,
        siblings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.earliest, self.siblings = earliest, siblings
        self.service, self.target, self.config, self.handle, self.deadline = service, target, config, handle, deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where this class is, and its arguments."""
        return (
            "airflow_multideploy.operators.trigger.RolloutTrigger",
            {
                "service": self.service,
                "target": self.target,
                "config": self.config,
                "handle": self.handle,
                "deadline": self.deadline,
                "earliest": self.earliest,
                "siblings": self.siblings,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look, wait, look again; ends with the final observation at the deadline at the latest."""
        # Loading an SDK takes up to seconds; in a thread, so that the other triggers' polls go on meanwhile.
        platform = await asyncio.to_thread(adapter, self.config, service=self.service, target=self.target)
        handle = Handle.model_validate(self.handle)
        watch = Watch(deadline=self.deadline, interval=platform.config.poll_interval, earliest=self.earliest)
        siblings = Siblings.model_validate(self.siblings) if self.siblings else None
        reported = ""
        # The rollout has only just begun; after a restart of the triggerer all begin at once, so the looks are spread.
        await asyncio.sleep(min(platform.config.poll_interval, random.uniform(0.7, 1.3)))  # noqa: S311 - jitter
        while True:
            seen: Observation | PlatformError
            if siblings is not None and (why := await sync_to_async(siblings.why)()):
                yield TriggerEvent(Observation(state=State.FAILED, reason=why).dump())  # type: ignore[no-untyped-call]
                return
            try:
                # The time at the gate counts too: else a deadline would pass unseen behind targets that hang.
                async with asyncio.timeout(max(platform.config.poll_interval, 60.0)), _gate(platform.config.conn_id):
                    seen = await platform.aobserve(handle)
            except PlatformError as error:
                seen = error
            except TimeoutError:
                seen = platform.error("no answer within 60 seconds", retryable=True)
            judged = watch.judge(seen, now=time.time())
            if isinstance(judged, Observation):
                yield TriggerEvent(judged.dump())  # type: ignore[no-untyped-call]
                return
            if (said := str(seen if isinstance(seen, PlatformError) else seen.reason)) != reported:
                reported = said
                self.log.info("%s: %s", platform.name, said)
            await asyncio.sleep(judged)

    async def on_kill(self) -> None:
        """Say so; nothing is undone here, because a kill is too late and not certain: the rollback task does it."""
        self.log.info("%s/%s: no longer waited for; the rollback continues from the journal", self.service, self.target)
