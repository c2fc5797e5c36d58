"""One site of the Azure stand-in: what it serves, what is starting, and what its container log says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from airflow_multideploy.sandbox.world import Course, World


@dataclass
class Start:
    """Containers that are starting."""

    course: Course
    at: float
    fx: str
    generation: int


@dataclass
class Site:
    """One site's state.

    :param serving: ``linuxFxVersion`` of the containers that answer; None: none do.
    """

    name: str
    fx: str = ""
    state: str = "Running"
    workers: int = 2
    metadata: dict[str, str] = field(default_factory=lambda: {"CURRENT_STACK": "docker"})
    settings: dict[str, str] = field(default_factory=dict)
    serving: str | None = None
    generation: int = 0
    start: Start | None = None
    modified: float = field(default_factory=World.now)
    log: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)

    def container(self, instance: int, generation: int) -> str:
        """Name of a container as App Service makes it."""
        digest = hashlib.sha256(f"{self.name}/{instance}/{generation}".encode()).hexdigest()[:8]
        return f"{self.name}_{generation}_{digest}"

    def say(self, at: float, level: str, text: str) -> None:
        """A line in the container log."""
        self.log.append(f"{iso(at)} {level:<5} - {text}")

    def begin(self, course: Course, at: float) -> None:
        """New containers start."""
        self.settle(at)
        number = (self.start.generation if self.start else self.generation) + 1
        self.start, self.modified = Start(course, at, self.fx, number), at
        if not self.fx:
            self.start, self.serving = None, None
            return
        name = self.container(0, number)
        self.say(at, "INFO", f"Pulling image: {self.fx.partition('|')[2]}")
        self.say(at, "INFO", f"Initiating warmup request to container {name} for site {self.name}")

    def settle(self, now: float) -> None:
        """Catch up with time."""
        start = self.start
        if start is None or not start.course.done(now - start.at):
            return
        end, name = start.at + start.course.seconds, self.container(0, start.generation)
        self.start, self.generation = None, start.generation
        if start.course.outcome == "succeeds":
            self.serving = start.fx
            text = f"Container {name} for site {self.name} initialized successfully and is ready to serve requests."
            self.say(end, "INFO", text)
            return
        self.serving = None
        self.say(end, "ERROR", start.course.reason)
        self.say(end, "ERROR", f"Container {name} for site {self.name} has exited, failing site start")
        self.say(end, "INFO", f"Stopping site {self.name} because it failed during startup.")


def iso(at: float) -> str:
    """A moment as Azure writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
