"""What the stand-ins of pipeline systems share: runs that take time, fail and are stopped, and what they leave live."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_multideploy.sandbox.world import Course, Live, World

State = Literal["running", "succeeded", "failed", "stopped"]
SEEDED = 60.0
"""Seconds ago that a seeded run began."""


@dataclass
class Run:
    """One run; ``ended`` is set when somebody first looks after its end."""

    key: str
    pipeline: str
    parameters: dict[str, Any]
    course: Course
    started: float
    asked: bool
    state: State = "running"
    ended: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Pipelines:
    """Three pipelines for each resource, ``deploy_…``, ``rollback_…`` and ``remove_…``; the last success is live.

    :param separator: between those words and the resource.
    """

    def __init__(self, world: World, kind: str, *, separator: str = "_") -> None:
        self.world, self.kind, self.separator = world, kind, separator
        self.lock = threading.RLock()
        self.runs: list[Run] = []
        self.known: set[str] = set()
        self._number = 0

    def names(self, resource: str) -> tuple[str, str, str]:
        """The pipelines that deploy, roll back and remove."""
        deploy, rollback, remove = (f"{verb}{self.separator}{resource}" for verb in ("deploy", "rollback", "remove"))
        return deploy, rollback, remove

    def seed(self, resource: str, image: str | None) -> None:
        """Forget its runs; with an image, one that ended well a minute ago."""
        with self.lock:
            self.runs = [run for run in self.runs if run.pipeline not in self.names(resource)]
            self.known |= set(self.names(resource))
            if image is not None:
                self._by_hand(resource, image, self.world.now() - SEEDED)

    def meddle(self, resource: str, image: str) -> Run:
        """A run by somebody else that ends well at once."""
        with self.lock:
            self.all()
            return self._by_hand(resource, image, self.world.now())

    def _by_hand(self, resource: str, image: str, at: float) -> Run:
        self._number += 1
        run = Run(f"manual-{self._number}", self.names(resource)[0], {"image": image}, Course("succeeds", 0), at, False)
        run.state, run.ended = "succeeded", at
        self.runs.append(run)
        return run

    def start(self, pipeline: str, key: str, parameters: dict[str, Any]) -> Run:
        """A run that somebody asked for by the API."""
        with self.lock:
            resource = pipeline.partition(self.separator)[2]
            course = self.world.course(self.kind, resource)
            run = Run(key, pipeline, parameters, course, self.world.now(), True)
            self.runs.append(run)
            return run

    def stop(self, run: Run) -> None:
        """End it here and now, unless it has ended."""
        with self.lock:
            if run.state == "running":
                run.state, run.ended = "stopped", self.world.now()

    def all(self) -> list[Run]:
        """All runs as they stand now, the oldest first."""
        with self.lock:
            for run in self.runs:
                elapsed = self.world.now() - run.started
                if run.state == "running" and run.course.done(elapsed):
                    run.state = "failed" if run.course.failed(elapsed) else "succeeded"
                    run.ended = run.started + run.course.seconds
            return sorted(self.runs, key=lambda run: run.started)

    def live(self, resource: str) -> Live:
        """What the resource serves: what the success that ended last left there."""
        runs = [run for run in self.all() if run.pipeline in self.names(resource)]
        done = [run for run in runs if run.state == "succeeded"]
        last = max(done, key=lambda run: run.ended or 0.0, default=None)
        settled = all(run.state != "running" for run in runs)
        if last is None or last.pipeline == self.names(resource)[2]:
            return Live(image=None, revision=None, settled=settled)
        return Live(image=str(last.parameters.get("image")), revision=last.key, settled=settled)

    def asked(self, resource: str) -> list[str]:
        """Keys of the runs that the API was asked for, the oldest first."""
        return [run.key for run in self.all() if run.asked and run.pipeline in self.names(resource)]
