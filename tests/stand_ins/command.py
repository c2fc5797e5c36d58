"""A team's own deploy script, for real: a program with sub-commands that keeps its state in a file.

The program is a few lines of shell that hand their environment and words to this process, which plays the scripted
faults, writes the state file, and says what to print and how to end. Rich: ``deploy``, ``snapshot``, ``status`` and
``remove``, with revisions and release ids. Poor: ``deploy IMAGE`` alone, which prints what it likes.
"""

from __future__ import annotations

import base64
import json
import shutil
import socketserver
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from airflow_multideploy.sandbox.world import Call, Live, World

_PROGRAM = r"""#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\n' "$(printf '%s\0' "$@" | base64 -w0) $(env -0 | base64 -w0)" >&3
read -r code <&3
cat <&3
[ "$code" -ge 0 ] || kill -KILL $$
exit "$code"
"""


@dataclass
class _Place:
    """What one application's state file holds."""

    image: str | None = None
    release_id: str = ""
    revision: int = 0
    serving: str | None = None
    started: float = 0.0
    course: dict[str, Any] = field(default_factory=dict)

    def state(self) -> str:
        elapsed = time.time() - self.started
        if self.course.get("outcome") == "hangs" or elapsed < self.course.get("seconds", 0.0):
            return "progressing"
        if self.course.get("outcome") == "fails":
            return "failed"
        self.serving = self.image
        return "healthy"


class CommandStandIn:
    """The program, its state files and the process that it asks.

    :param manner: which catalog entry `target` gives.
    """

    kind = "command"

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        secret: str = "sandbox-secret",
        manner: Literal["rich", "poor"] = "rich",
    ) -> None:
        self.world, self.secret, self.manner, self.url = world, secret, manner, ""
        self.folder = Path(tempfile.mkdtemp(prefix="command-"))
        self.calls: list[tuple[list[str], dict[str, str]]] = []
        """Words and environment of every run."""
        self.tells = ("exists", "revision", "image", "release_id", "state")
        """What ``snapshot`` prints."""
        self._port, self._lock, self._made = port, threading.RLock(), dict[str, list[str]]()

    # --- StandIn ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve on loopback."""
        stand_in = self

        class Answering(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words, environment = (base64.b64decode(part).decode() for part in self.rfile.readline().split(b" "))
                code, text = stand_in._asked(words.rstrip("\0").split("\0"), environment.rstrip("\0").split("\0"))
                self.wfile.write(f"{code}\n{text}".encode())

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self._port), Answering)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._port = self._server.server_address[1]
        self.url = f"tcp://127.0.0.1:{self._port}"
        program = self.folder / "shipit"
        program.write_text(_PROGRAM.replace("{port}", str(self._port)))
        program.chmod(0o755)

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection(self) -> dict[str, Any]:
        """The token that the program checks."""
        return {"conn_type": "generic", "host": "deploy.example.com", "password": self.secret}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of an application."""
        words = {"deploy": ["./shipit", "deploy", resource, "${image}"]}
        if self.manner == "rich":
            words |= {name: ["./shipit", name, resource] for name in ("snapshot", "status", "remove")}
        return {"platform": self.kind, "folder": str(self.folder), **words}

    def seed(self, resource: str, image: str | None) -> None:
        """Its state file."""
        self._made[resource] = []
        self._write(resource, _Place(image=image, serving=image, revision=1 if image else 0))

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else ran the program."""
        with self._lock:
            place = self._read(resource)
            self._write(resource, _Place(image=image, serving=image, revision=place.revision + 1))

    def live(self, resource: str) -> Live:
        """What the state file says."""
        with self._lock:
            place = self._read(resource)
            state = place.state()
            return Live(place.serving, str(place.revision), state != "progressing")

    def revisions(self, resource: str) -> list[str]:
        """Revisions that the program made."""
        return list(self._made[resource])

    # --- the program -------------------------------------------------------------------------------------------------

    def _asked(self, words: list[str], environment: list[str]) -> tuple[int, str]:
        env = dict(line.split("=", 1) for line in environment)
        verb, writes = words[0], words[0] in ("deploy", "remove")
        self.calls.append((words, env))
        fault = self.world.call_fault(self.kind, verb)
        call = Call(self.world.now(), self.kind, verb, writes, fault=fault.answer if fault else None)
        self.world.record(call)
        if fault is None:
            return self._done(words, env)
        if fault.answer == "lost":
            self._done(words, env)
        if fault.answer == "hang":
            time.sleep(fault.seconds)
        known = {
            "400": (64, "usage: shipit deploy APP IMAGE\n"),
            "500": (75, "the deploy server does not answer\n"),
            "429": (75, json.dumps({"retry_after": fault.retry_after, "reason": "too many deploys"})),
            "malformed": (0, "<html>Bad gateway</html>\n"),
        }
        return known.get(fault.answer, (-1, ""))

    def _done(self, words: list[str], env: dict[str, str]) -> tuple[int, str]:
        """Exit code and output of a run without a fault."""
        if env.get("CONNECTION_PASSWORD") != self.secret:
            return 77, f"the deploy server refuses the token {env.get('CONNECTION_PASSWORD')}\n"
        with self._lock:
            verb, app = words[0], words[1]
            place = self._read(app)
            state = place.state()
            if verb == "deploy":
                return 0, self._deployed(app, place, words[2], env)
            if verb == "remove":
                self._write(app, _Place(release_id=env["MULTIDEPLOY_RELEASE_ID"], revision=0))
                return 0, json.dumps({"revision": "0"})
            if verb == "snapshot":
                told: dict[str, Any] = {
                    "exists": place.image is not None,
                    "revision": str(place.revision),
                    "image": place.image,
                }
                told |= {"release_id": place.release_id, "state": state}
                return 0, json.dumps({name: value for name, value in told.items() if name in self.tells})
            reason = place.course.get("reason") if state == "failed" else ""
            return 0, json.dumps({"state": state, "reason": reason, "revision": str(place.revision)}) + "\n"

    def _deployed(self, app: str, place: _Place, image: str, env: dict[str, str]) -> str:
        id_ = env["MULTIDEPLOY_RELEASE_ID"]
        if place.release_id != id_ or place.state() == "failed" or self.manner == "poor":
            course = self.world.course(self.kind, app)
            serving, revision = place.serving, place.revision + 1
            self._write(app, _Place(image, id_, revision, serving, time.time(), asdict(course)))
            self._made[app].append(str(revision))
        if self.manner == "poor":
            return f"shipped {image}\n"
        return f"shipping {image}\n" + json.dumps({"revision": str(self._read(app).revision)})

    def _read(self, app: str) -> _Place:
        return _Place(**json.loads((self.folder / f"{app}.json").read_text()))

    def _write(self, app: str, place: _Place) -> None:
        (self.folder / f"{app}.json").write_text(json.dumps(asdict(place)))
