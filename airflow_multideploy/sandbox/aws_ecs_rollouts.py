"""The service deployments of the ECS stand-in: what happens to a service's tasks as time passes. No I/O, no threads."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import Any

from airflow_multideploy.sandbox.world import Course, World

KIND = "aws_ecs"
BREAKER_THRESHOLD = 3
"""Failed tasks after which ECS's circuit breaker trips for small services."""
Json = dict[str, Any]


@dataclass
class Deployment:
    """One entry of a service's ``deployments``, with the service deployment and revision that ECS keeps for it.

    :param course: how its rollout goes; None: it is done.
    :param ran: tasks of it that ran when its successor started.
    :param sources: service revisions that it replaces.
    :param rollback_of: the service deployment whose way back this is.
    """

    number: int
    definition: str
    started: float
    desired: int
    course: Course | None
    sources: list[Deployment] = field(default_factory=list)
    rollback_of: Deployment | None = None
    id: str = field(default_factory=lambda: f"ecs-svc/{uuid.uuid4().int % 10**19:019d}")
    state: str = "IN_PROGRESS"
    status: str = "IN_PROGRESS"
    reason: str = ""
    status_reason: str = ""
    running: int = 0
    pending: int = 0
    failed: int = 0
    ran: int = 0
    updated: float = 0.0
    finished: float | None = None
    stopped: list[Json] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The last part of its service deployment's and service revision's ARN."""
        return self.id.rpartition("/")[2]

    def end(self, state: str, status: str, reason: str, now: float) -> None:
        """It ended, well or badly."""
        self.state, self.status, self.reason, self.status_reason = state, status, reason, reason
        self.course, self.pending, self.updated, self.finished = None, 0, now, now


@dataclass
class Service:
    """One service: its deployments, newest first, and the history of them all."""

    name: str
    world: World
    desired: int
    breaker: Json = field(default_factory=lambda: {"enable": True, "rollback": False})
    deployments: list[Deployment] = field(default_factory=list)
    history: list[Deployment] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    serving: str | None = None
    """Task definition of the last deployment that completed."""

    @property
    def primary(self) -> Deployment:
        return self.deployments[0]

    def settle(self, definition: str) -> None:
        """This task definition serves at once; whatever was going on is over."""
        now = self.world.now()
        for old in self.history:
            if old.course is not None:
                old.end("FAILED", "STOPPED", "stopped", now)
        done = Deployment(len(self.history), definition, now, self.desired, None, running=self.desired, updated=now)
        done.end("COMPLETED", "SUCCESSFUL", f"ECS deployment {done.id} completed.", now)
        self.history.append(done)
        self.deployments, self.serving = [done], definition

    def start(
        self, definition: str, *, course: Course | None = None, rollback_of: Deployment | None = None
    ) -> Deployment:
        """A rolling deployment begins; the tasks that run now go on until its own are there."""
        now = self.world.now()
        self.advance()
        before = self.primary
        if before.course is not None:
            before.end("IN_PROGRESS", "STOPPED", "superseded by a newer deployment", now)
        for old in self.deployments:
            old.ran, old.desired, old.pending = old.running, 0, 0
        kept = [old for old in self.deployments if old.ran]
        new = Deployment(
            len(self.history),
            definition,
            now,
            self.desired,
            course or self.world.course(KIND, self.name),
            sources=[d for d in [*kept, before] if d.definition == self.serving][:1],
            rollback_of=rollback_of,
            updated=now,
        )
        new.reason = f"ECS deployment {new.id} in progress."
        self.history.append(new)
        self.deployments = [new, *kept]
        self.advance()
        return new

    def scale(self, desired: int) -> None:
        """Another desired count; no new deployment."""
        self.advance()
        self.desired = self.primary.desired = desired
        if self.primary.course is None and self.primary.state == "COMPLETED":
            self.primary.running = desired

    def advance(self) -> None:
        """Bring everything up to now."""
        now, new = self.world.now(), self.primary
        if new.course is None:
            return
        elapsed, course = now - new.started, new.course
        if course.outcome == "fails":
            self._advance_failing(new, course, elapsed, now)
        elif course.done(elapsed):
            self._complete(new, now)
        else:
            share = course.progress(elapsed)
            new.running = max(new.ran, min(math.floor(share * new.desired), max(0, new.desired - 1)))
            new.pending = new.desired - new.running
            for old in self.deployments[1:]:
                old.running = math.ceil(old.ran * (1 - share)) if share else old.ran

    def _complete(self, new: Deployment, now: float) -> None:
        new.running, new.failed = new.desired, 0
        new.end("COMPLETED", "SUCCESSFUL", f"ECS deployment {new.id} completed.", now)
        for old in self.deployments[1:]:
            old.running = 0
        self.deployments, self.serving = [new], new.definition
        if new.rollback_of is not None:
            new.rollback_of.status = "ROLLBACK_SUCCESSFUL"
        self._event(now, f"(service {self.name}) (deployment {new.id}) deployment completed.")

    def _advance_failing(self, new: Deployment, course: Course, elapsed: float, now: float) -> None:
        enabled = bool(self.breaker.get("enable"))
        step = max(course.seconds, 0.001) / BREAKER_THRESHOLD
        failed = int(elapsed / step)
        for _ in range(len(new.stopped), min(failed, 50)):
            new.stopped.append({"id": uuid.uuid4().hex, "at": now, "reason": course.reason})
        new.failed, new.pending, new.updated = failed, max(0, new.desired), now
        if not (enabled and course.failed(elapsed)):
            return
        new.failed = max(failed, BREAKER_THRESHOLD)
        why = "tasks failed to start."
        new.end("FAILED", "STOPPED", f"ECS deployment circuit breaker: {why}", now)
        new.desired = 0 if self.breaker.get("rollback") else new.desired
        self._event(now, f"(service {self.name}) (deployment {new.id}) deployment failed: {why}")
        if new.rollback_of is not None:
            new.rollback_of.status = "ROLLBACK_FAILED"
        elif self.breaker.get("rollback") and new.sources:
            self._turn_back(new, now)

    def _turn_back(self, failed: Deployment, now: float) -> None:
        """ECS's own way back promotes the deployment that still runs. It takes a quarter of a rollout."""
        source = failed.sources[0]
        seconds = self.world.per_platform.get(KIND, self.world.seconds) / 4
        failed.status = "ROLLBACK_IN_PROGRESS"
        source.course, source.started, source.updated = Course("succeeds", seconds), now, now
        source.state, source.desired, source.rollback_of = "IN_PROGRESS", self.desired, failed
        source.reason = f"ECS deployment circuit breaker: rolling back to deploymentId {source.id}."
        self._event(now, f"(service {self.name}) rolling back to deployment {source.id}.")
        self.deployments = [source, failed, *(d for d in self.deployments if d not in (source, failed))]

    def stop(self, number: int) -> None:
        """StopServiceDeployment with ROLLBACK: back to the source revision, as a deployment of its own.

        :raises ValueError: nothing to stop, or nothing to go back to.
        """
        self.advance()
        target = self.history[number]
        if target.status in ("ROLLBACK_REQUESTED", "ROLLBACK_IN_PROGRESS"):
            return
        if target.status not in ("PENDING", "IN_PROGRESS"):
            raise ValueError(f"the service deployment is {target.status}")
        if not target.sources:
            raise ValueError("there is no source service revision to roll back to")
        self.start(target.sources[0].definition, rollback_of=target)
        target.status, target.status_reason = "ROLLBACK_IN_PROGRESS", "Service deployment rolled back by the user."

    def _event(self, now: float, message: str) -> None:
        self.events.insert(0, (now, message))
        del self.events[100:]
