"""Real OpenSSH servers on loopback, on "hosts" whose systemd is a stand-in, and a place that has the packages.

``sshd`` runs each session through a small script that first asks this process whether a fault was scripted for it;
``systemctl`` on the hosts' PATH asks this process too. All else is real: sshd, shell, flock, curl, tar, links.

On its own initiative, beyond systemd's documents: ``status`` prints the scripted reason as the journal's last line, and
a unit is active as soon as its rollout's time is over.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shlex
import shutil
import socketserver
import subprocess
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from airflow_multideploy.sandbox.server import listen
from airflow_multideploy.sandbox.world import Call, Course, Live, World

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
REPOSITORY = "registry.example.com/shop"
READS = ("look",)

_SESSION = r"""#!/bin/bash
export PATH={bin}:/usr/sbin:/usr/bin:/sbin:/bin
exec 3<>/dev/tcp/127.0.0.1/{port}
printf 'call %s\n' "$SSH_ORIGINAL_COMMAND" >&3
read -r answer <&3
exec 3>&-
case $answer in
  run) exec sh -c "$SSH_ORIGINAL_COMMAND";;
  400) echo 'This account is currently not available.'; exit 1;;
  429) echo 'sh: 0: Cannot fork'; exit 254;;
  500) kill -KILL $$;;
  malformed) echo '<html>Bad gateway</html>'; exit 0;;
  lost) sh -c "$SSH_ORIGINAL_COMMAND" >/dev/null 2>&1;;
esac
kill -KILL $PPID
"""
_SYSTEMCTL = r"""#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf 'systemctl %s\n' "$*" >&3
read -r code <&3
cat <&3
exit $code
"""
_FLAGS = {
    "restart": ("--no-block",),
    "reset-failed": (),
    "stop": (),
    "status": ("--no-pager", "--lines=3", "--output=cat"),
}
"""What systemctl(1) is asked for, and nothing else: the sudoers line of the manual allows just this."""
_SUDO = """#!/bin/sh
[ "$1" = -n ] || exit 1
shift
exec "$@"
"""


@cache
def keys() -> dict[str, str]:
    """A host key and a stranger's, a client key with a passphrase and a stranger's: made once."""
    with tempfile.TemporaryDirectory() as folder:
        for name, phrase in (("host", ""), ("other", ""), ("client", "sandbox-secret"), ("stranger", "")):
            form = (
                ["-t", "ed25519"] if name in ("host", "other") else ["-t", "ecdsa", "-m", "PEM"]
            )  # the cheap ones to open
            made = ["ssh-keygen", "-q", *form, "-C", name, "-N", phrase, "-f", f"{folder}/{name}"]
            subprocess.run(made, check=True, stdin=subprocess.DEVNULL)
        return {file.name: file.read_text() for file in Path(folder).iterdir()}


@dataclass
class _Unit:
    """One unit: what its process, if it has one, was started from."""

    runs: str | None = None
    course: Course = field(default_factory=lambda: Course("succeeds", 0.0))
    started: float = 0.0
    invocation: str = ""
    restarts: int = 0
    automatic: int = 0

    def state(self) -> tuple[str, str]:
        elapsed = time.clock_gettime(time.CLOCK_BOOTTIME) - self.started
        if self.runs is None:
            return "inactive", "dead"
        if self.course.failed(elapsed):
            return "failed", "failed"
        return ("active", "running") if self.course.done(elapsed) else ("activating", "start")


class SshStandIn:
    """One host with one unit for each resource.

    :param copies: packages come from the worker, not from the package server.
    """

    kind = "ssh"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret", copies: bool = False) -> None:
        self.world, self.secret, self.copies, self.url = world, secret, copies, ""
        self.folder = Path(tempfile.mkdtemp(prefix="ssh-"))
        self.units: dict[str, _Unit] = {}
        self.packages: dict[str, bytes] = {}
        self._port, self._lock, self._count = port, threading.RLock(), 0
        self._sshd: subprocess.Popen[bytes] | None = None
        self.serve = threading.Event()
        """Cleared: the package server keeps everybody waiting."""
        self.serve.set()

    # --- StandIn ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve on loopback."""
        assert SSHD is not None
        made, run = keys(), self.folder
        self._door = _serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._answering()))
        self._files = _serve(ThreadingHTTPServer(("127.0.0.1", 0), self._serving()))
        scripts = {"session": _SESSION, "systemctl": _SYSTEMCTL, "sudo": _SUDO}
        for name, text in scripts.items():
            file = run / "bin" / name
            file.parent.mkdir(exist_ok=True)
            port = self._door.server_address[1]
            file.write_text(text.replace("{port}", str(port)).replace("{bin}", str(run / "bin")))
            file.chmod(0o755)
        for name, mode in (("host", 0o600), ("client.pub", 0o644)):
            (run / name).write_text(made[name])
            (run / name).chmod(mode)
        Path("/run/sshd").mkdir(exist_ok=True)
        sock = listen(self._port)
        self._port = sock.getsockname()[1]
        sock.close()
        config = {
            "ListenAddress": f"127.0.0.1:{self._port}",
            "HostKey": run / "host",
            "AuthorizedKeysFile": run / "client.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "MaxStartups": "100",
            "SetEnv": "SHLVL=5",  # or bash, run by sshd, reads this machine's .bashrc each time
            "KexAlgorithms": "curve25519-sha256,curve25519-sha256@libssh.org",
            "ForceCommand": run / "bin" / "session",
        }
        (run / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
        with (run / "log").open("w") as log:
            self._sshd = subprocess.Popen([SSHD, "-D", "-e", "-r", "-f", str(run / "sshd_config")], stderr=log)
        _until_it_listens(self._port, run / "log")
        self.url = f"ssh://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Stop serving."""
        if self._sshd is not None:
            self._sshd.terminate()
            self._sshd.wait(10)
        for server in (self._door, self._files):
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection(self) -> dict[str, Any]:
        """An Airflow Connection whose key is protected by the secret."""
        extra = {
            "private_key": keys()["client"],
            "private_key_passphrase": self.secret,
            "host_key": " ".join(keys()["host.pub"].split()[:2]),
            "look_for_keys": "false",
        }
        login = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        return {"conn_type": "ssh", "host": "127.0.0.1", "port": self._port, "login": login, "extra": extra}

    def target(self, resource: str) -> dict[str, Any]:
        """The catalog entry of an application on the host."""
        base = f"http://127.0.0.1:{self._files.server_address[1]}"
        package = (
            f"{self.folder}/worker/{resource}-${{version}}.tar.gz" if self.copies else f"{base}/${{version}}.tar.gz"
        )
        target = {"platform": self.kind, "root": str(self.root(resource)), "unit": f"{resource}.service"}
        target |= {"package": package, "check": ["cat", "VERSION"], "settle": 0.05}
        return target if self.copies else {**target, "checksum": "${digest}"}

    def seed(self, resource: str, image: str | None) -> None:
        """A root folder as it was made by hand, and its unit."""
        root = self.root(resource)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.units[resource] = _Unit()
        if image is not None:
            self._by_hand(resource, image)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else switches the link by hand, under the host's lock, and restarts."""
        lock = self.root(resource) / ".multideploy" / "lock"
        lock.parent.mkdir(exist_ok=True)
        with lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self._by_hand(resource, image)

    def live(self, resource: str) -> Live:
        """What the unit's process was started from."""
        with self._lock:
            unit = self.units[resource]
            state, _ = unit.state()
            image = None
            if state == "active" and unit.runs is not None:
                image = f"{REPOSITORY}:{(self.root(resource) / unit.runs / 'VERSION').read_text().strip()}"
            return Live(image, unit.runs, state in ("active", "failed", "inactive"))

    def revisions(self, resource: str) -> list[str]:
        """Release folders that were not made by hand."""
        folder = self.root(resource) / "releases"
        names = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
        return [path.name for path in names if not path.name.startswith(("hand-", "."))]

    # --- the host ----------------------------------------------------------------------------------------------------

    def root(self, resource: str) -> Path:
        return self.folder / "srv" / resource

    def package(self, version: str) -> bytes:
        """The archive of a version, made on demand, the same each time."""
        if version not in self.packages:
            buffer, text = io.BytesIO(), f"{version}\n".encode()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                info = tarfile.TarInfo("VERSION")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
            self.packages[version] = buffer.getvalue()
        return self.packages[version]

    def digest(self, version: str) -> str:
        """``sha256:…`` of the archive."""
        return f"sha256:{hashlib.sha256(self.package(version)).hexdigest()}"

    def keep(self, resource: str, version: str) -> None:
        """Put the archive where the worker has it."""
        file = self.folder / "worker" / f"{resource}-{version}.tar.gz"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(self.package(version))

    def _by_hand(self, resource: str, image: str) -> None:
        self._count += 1
        version, root = image.rpartition(":")[2], self.root(resource)
        folder = root / "releases" / f"hand-{self._count}"
        folder.mkdir(parents=True)
        (folder / "VERSION").write_text(f"{version}\n")
        link = root / "by-hand"
        link.symlink_to(f"releases/hand-{self._count}")
        link.rename(root / "current")
        self._start(resource, Course("succeeds", 0.0))

    def _start(self, resource: str, course: Course) -> None:
        with self._lock:
            self._count += 1
            unit = self.units[resource]
            unit.runs = os.readlink(self.root(resource) / "current")
            unit.course, unit.started = course, time.clock_gettime(time.CLOCK_BOOTTIME)
            unit.invocation, unit.automatic = f"{self._count:032x}", 0

    def systemctl(self, words: list[str]) -> tuple[int, str]:
        """What ``systemctl`` answers: exit code and output."""
        name, flags = words[-1], tuple(word for word in words[1:-1] if word.startswith("--"))
        if _FLAGS.get(words[0]) != flags and not (words[0] == "show" and flags in ((), ("--value",))):
            return 1, f"Unknown command verb or option: {' '.join(words)}\n"
        unit = self.units.get(name.removesuffix(".service"))
        if words[0] == "show":
            return 0, _shown(unit, words)
        if unit is None:
            return 5, f"Failed to {words[0]} {name}: Unit {name} not found.\n"
        if words[0] == "restart":
            unit.restarts += 1
            self._start(name.removesuffix(".service"), self.world.course(self.kind, name.removesuffix(".service")))
        elif words[0] == "stop":
            unit.runs = None
        elif words[0] == "status":
            return 3, f"{name}: Main process exited, code=exited\n{unit.course.reason}\n"
        return 0, ""

    # --- servers -----------------------------------------------------------------------------------------------------

    def _answering(self) -> type[socketserver.StreamRequestHandler]:
        stand_in = self

        class Answering(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                verb, _, rest = self.rfile.readline().decode().strip().partition(" ")
                if verb == "call":
                    self.wfile.write(f"{stand_in._fault(rest)}\n".encode())
                    return
                code, text = stand_in.systemctl(rest.split())
                self.wfile.write(f"{code}\n{text}".encode())

        return Answering

    def _fault(self, line: str) -> str:
        """How a session goes on."""
        words = shlex.split(line)
        name = words[3]
        fault = self.world.call_fault(self.kind, name)
        writes = name not in READS
        self.world.record(Call(self.world.now(), self.kind, name, writes, fault=fault.answer if fault else None))
        if fault is None:
            return "run"
        if fault.answer == "hang":
            time.sleep(fault.seconds)
        return fault.answer

    def _serving(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Serving(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.serve.wait(10)
                body = stand_in.packages.get(self.path.strip("/").removesuffix(".tar.gz"))
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        return Serving


def _shown(unit: _Unit | None, words: list[str]) -> str:
    if "--value" in words:
        return f"{unit.invocation if unit else ''}\n"
    known = {"LoadState": "loaded" if unit else "not-found", "ActiveState": "inactive", "SubState": "dead"}
    known |= {"NRestarts": "0", "Result": "success", "ExecMainStatus": "0", "InvocationID": ""}
    known |= {"ActiveEnterTimestampMonotonic": "0"}
    if unit is not None:
        known["ActiveState"], known["SubState"] = unit.state()
        known |= {"InvocationID": unit.invocation, "NRestarts": str(unit.automatic)}
        if known["ActiveState"] == "failed":
            known |= {"Result": "exit-code", "ExecMainStatus": "1"}
        if known["ActiveState"] == "active":
            known["ActiveEnterTimestampMonotonic"] = str(int((unit.started + unit.course.seconds) * 1e6))
    return "".join(f"{key}={value}\n" for key, value in known.items())


def _serve(server: Any) -> Any:
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def _until_it_listens(port: int, log: Path) -> None:
    import socket

    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.01)
