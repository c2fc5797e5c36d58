"""Builds an image on this machine and pushes it, with docker, buildah or podman.

Programs get argument vectors, never a shell; credentials reach them in a file that only this user can read and that
is gone when they end. What the programs need beyond `models.Build` is set in the worker's environment, which they
inherit (``BUILDAH_ISOLATION``, ``STORAGE_DRIVER``, ``DOCKER_HOST``, ``SSL_CERT_FILE``, …).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from airflow_multideploy.catalog.service import Build
from airflow_multideploy.errors import BuildFailed, SpecError
from airflow_multideploy.images import registry
from airflow_multideploy.secrets import secret_paths

Kind = Literal["docker", "buildah", "podman"]
KINDS: tuple[Kind, ...] = ("docker", "buildah", "podman")
GRACE = 5.0
"""Seconds between the polite signal to a builder's process group and the one that cannot be ignored."""

_LAST_LINES = 15
_AUTH_FILE = "config.json"  # the name that docker wants; buildah and podman take any
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def find_builder(wanted: Literal["auto", "docker", "buildah", "podman"] = "auto") -> tuple[Kind, str]:
    """The builder's kind and the path of its program.

    :raises BuildFailed: it is not on this machine.
    """
    candidates = KINDS if wanted == "auto" else (wanted,)
    for kind in candidates:
        if path := shutil.which(kind):
            return kind, path
    raise BuildFailed(
        f"no {' or '.join(candidates)} on this worker ({os.uname().nodename}): install one there, or route the build "
        "to a worker that has it (queue=…)"
    )


class ImageBuilder:
    """Builds one image and pushes it; usable once.

    :param build: what to build, and how.
    :param target: the repository it goes to, with credentials.
    :param version: the tag.
    :param log: gets every line of the builder's output, without secrets.
    :raises SpecError: version, build arguments or paths are not what they have to be; nothing was run.
    """

    def __init__(self, build: Build, target: registry.Registry, *, version: str, log: Callable[[str], None]) -> None:
        self.reference = f"{target.repository.name}:{registry.check_version(version)}"
        problems = [f"build.args.{name}: not a name" for name in build.args if not _ARGUMENT_NAME.fullmatch(name)]
        problems += [
            f"build.args.{path}: looks like a secret, and build arguments stay in the image; use the builder's secrets"
            for path in secret_paths(build.args)
        ]
        if problems:
            raise SpecError(problems)
        self.build, self.target, self.log = build, target, log
        self._secrets = tuple(s for s in (target.password, target.basic() if target.known else "") if s)
        self._child: subprocess.Popen[str] | None = None
        self._cancelled = threading.Event()

    def run(self) -> str:
        """Build and push; the digest (``sha256:…``) that the registry got.

        :raises BuildFailed: a builder is missing, failed, was cancelled or took longer than ``build.timeout`` seconds;
            the message ends with its last words. A pushed tag is not removed.
        """
        deadline = time.monotonic() + self.build.timeout
        kind, program = find_builder(self.build.builder)
        context, dockerfile = self._paths()
        with _private_folder(self.target, kind) as (folder, environment):
            argv = [program, "build", "--file", str(dockerfile), "--tag", self.reference]
            argv += [f"--build-arg={name}={value}" for name, value in sorted(self.build.args.items())]
            # No --tls-verify=false here: it would also cover the registries of the base images.
            argv += self._auth_options(folder, kind)
            self._call([*argv, str(context)], environment, deadline, f"{kind} build")
            if kind == "docker":
                printed = self._call([program, "push", self.reference], environment, deadline, "docker push")
                digests = _DIGEST.findall("\n".join(line for line in printed if " digest: " in line))
            else:
                digestfile = folder / "digest"
                push = [program, "push", *self._auth_options(folder, kind), "--digestfile", str(digestfile)]
                push += ["--tls-verify=false"] if self.target.insecure else []
                push += [self.reference, f"docker://{self.reference}"]
                self._call(push, environment, deadline, f"{kind} push")
                digests = _DIGEST.findall(digestfile.read_text()) if digestfile.is_file() else []
        if not digests:
            raise BuildFailed(f"{self.reference}: {kind} push ended well but named no digest")
        return str(digests[-1])

    def cancel(self) -> None:
        """Kill the builder with all its processes, and start no further one. Safe from any thread, repeatedly."""
        # No lock: a signal handler may run this in the middle of `_call`. First the flag here and the child there:
        # whoever comes second sees what the other one wrote.
        self._cancelled.set()
        if (child := self._child) is not None:
            _kill_group(child)

    def _paths(self) -> tuple[Path, Path]:
        context = Path(self.build.context).absolute()
        if not context.is_dir():
            raise BuildFailed(f"{self.reference}: build.context: no folder {context} on this worker")
        dockerfile = context / self.build.dockerfile
        if not dockerfile.is_file():
            raise BuildFailed(f"{self.reference}: build.dockerfile: no file {dockerfile} on this worker")
        return context, dockerfile

    def _auth_options(self, folder: Path, kind: Kind) -> list[str]:
        # docker has no such option: it reads the folder that DOCKER_CONFIG names.
        return ["--authfile", str(folder / _AUTH_FILE)] if self.target.known and kind != "docker" else []

    def _call(self, argv: Sequence[str], environment: dict[str, str], deadline: float, name: str) -> list[str]:
        """Run one program to its end; its last lines."""
        lines: deque[str] = deque(maxlen=200)
        if self._cancelled.is_set():
            raise BuildFailed(f"{self.reference}: cancelled before {name}")
        # A session of its own, so that one signal reaches everything the builder started.
        child = subprocess.Popen(  # noqa: S603 - an argument vector of validated parts, no shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._child = child
        reader = threading.Thread(target=self._pump, args=(child, lines), daemon=True, name=name)
        reader.start()
        timed_out = False
        try:
            if self._cancelled.is_set():
                _kill_group(child)
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # Also when this thread is interrupted, and for what a builder that ended by itself left behind.
            _kill_group(child)
            reader.join(GRACE)
            self._child = None
        last = "\n".join(list(lines)[-_LAST_LINES:]) or "(it said nothing)"
        if self._cancelled.is_set():
            raise BuildFailed(f"{self.reference}: {name} was cancelled; its last words:\n{last}")
        if timed_out:
            raise BuildFailed(
                f"{self.reference}: {name} did not end within build.timeout ({self.build.timeout:g} s for build and "
                f"push) and was killed; its last words:\n{last}"
            )
        if child.returncode != 0:
            raise BuildFailed(f"{self.reference}: {name} ended with {child.returncode}; its last words:\n{last}")
        return list(lines)

    def _pump(self, child: subprocess.Popen[str], lines: deque[str]) -> None:
        assert child.stdout is not None  # noqa: S101 - Popen was asked for a pipe
        with child.stdout as output:
            for raw in output:
                line = _masked(_TERMINAL_CODES.sub("", raw.rstrip()), self._secrets)
                if line:
                    lines.append(line)
                    self.log(line)


def _masked(line: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        line = line.replace(secret, "***")
    return line


def _kill_group(child: subprocess.Popen[str]) -> None:
    """End the child's whole process group: politely first, for certain after `GRACE` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)


@contextmanager
def _private_folder(target: registry.Registry, kind: Kind) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder only this user can read, with the credentials in it, and the builder's environment. Gone afterwards."""
    environment = os.environ | {"NO_COLOR": "1", "BUILDKIT_PROGRESS": "plain"}
    with tempfile.TemporaryDirectory(prefix="multideploy-") as name:
        folder = Path(name)  # mode 0700
        if (document := target.auth_document()) is not None:
            if kind == "docker":
                document = _docker_settings(folder) | document
                environment["DOCKER_CONFIG"] = str(folder)
            descriptor = os.open(folder / _AUTH_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(document, file)
        yield folder, environment


def _docker_settings(folder: Path) -> dict[str, object]:
    """What the worker's own docker configuration says apart from credentials: contexts, proxies, plugins."""
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    for name in ("cli-plugins", "contexts", "buildx"):
        if (own / name).is_dir():
            (folder / name).symlink_to((own / name).absolute())
    try:
        document = json.loads((own / "config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BuildFailed(f"{own / 'config.json'} is not JSON: {error}") from error
    return {k: v for k, v in document.items() if k not in ("auths", "credsStore", "credHelpers", "HttpHeaders")}
