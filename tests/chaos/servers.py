"""PostgreSQL and Redis of this machine, started by hand on loopback ports, each with a folder of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from airflow_multideploy.sandbox.airflow import free_port


class Missing(Exception):
    """A server is not installed here, or cannot be started; the message says what to install."""


def program(name: str, package: str) -> str:
    """The path of a program.

    :raises Missing: it is not installed.
    """
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))
    if found is None:
        raise Missing(f"{name} is not installed; apt-get install {package}")
    return found


class Postgres:
    """One PostgreSQL cluster with one empty database ``airflow``."""

    def __init__(self, folder: Path) -> None:
        self.data, self.log = folder / "postgres", folder / "postgres.log"
        self.port, self.password = free_port(), secrets.token_urlsafe(16)
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._ctl = program("pg_ctl", "postgresql")

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg2://airflow:{self.password}@127.0.0.1:{self.port}/airflow"

    def start(self) -> None:
        """Make the cluster and serve.

        :raises Missing: it cannot be made here.
        """
        self.data.mkdir(mode=0o700)
        self.log.touch()
        secret = self.data.with_suffix(".password")
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._user is not None:
            for path in (self.data, self.log, secret):
                shutil.chown(path, self._user)
        auth = ["--auth=scram-sha-256", "--username=airflow", f"--pwfile={secret}"]
        self._run(program("initdb", "postgresql"), "--pgdata", str(self.data), "--no-sync", *auth)
        self._serve("start")
        environment = {**os.environ, "PGPASSWORD": self.password}
        create = ["--host=127.0.0.1", f"--port={self.port}", "--username=airflow", "airflow"]
        subprocess.run([program("createdb", "postgresql-client"), *create], env=environment, check=True)

    def restart(self) -> None:
        """Crash at once, without a word to any client, and serve again."""
        self._serve("restart", "--mode=immediate")

    def stop(self) -> None:
        """Stop serving; nothing happens when it does not serve."""
        if (self.data / "postmaster.pid").exists():
            self._run(self._ctl, "stop", "--pgdata", str(self.data), "--mode=immediate")

    def _serve(self, *what: str) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "''",
            "max_connections": 300,
            # A scheduler that is killed leaves its connection to processes that it forked: with the locks of its last
            # transaction, which the next scheduler would pass over for ever.
            "idle_in_transaction_session_timeout": "15s",
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run(self._ctl, *what, "--wait", "--pgdata", str(self.data), "--log", str(self.log), "--options", options)

    def _run(self, *command: str) -> None:
        # Not captured through a pipe: the server would inherit it, and we would wait for its end for ever.
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, user=self._user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise Missing(f"{Path(command[0]).name}: {self.log.read_text(errors='replace')[-1000:]}")


class Redis:
    """One Redis that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.password = folder, free_port(), secrets.token_urlsafe(16)
        self._program = program("redis-server", "redis-server")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Serve."""
        config = self.folder / "redis.conf"  # a password has no place on a command line
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"dir {self.folder}\nlogfile {self.folder / 'redis.log'}\n"
        )
        self._process = subprocess.Popen([self._program, str(config)], stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """Stop serving."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
