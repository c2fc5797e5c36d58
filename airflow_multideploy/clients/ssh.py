"""The ssh platform's host: the scripts that run there, and two ways to run one, in a thread and on the event loop.

Nothing here decides about a release. Values reach a script as quoted arguments, never as part of its text.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from airflow_multideploy.clients.connections import SSH, Caller, existing, fitting, missing_extra
from airflow_multideploy.errors import MultideployError, PlatformError
from airflow_multideploy.secrets import last_words

CALL_TIMEOUT = 30.0
_PASSING = frozenset({75, 254})
"""Exit codes that pass by themselves: EX_TEMPFAIL of sysexits.h, and a shell that could not fork."""

NO_LINK = "."
"""Where ``current`` leads when it is there and no link: nowhere that a release could lead it back to."""

_WHERE = r"""
where() { live=$(readlink "$root/current") || [ ! -e "$root/current" ] || live=.; live=${live#"$root"/}; }
"""

LOOK = (
    _WHERE
    + r"""
exec 2>&1; export LC_ALL=C
root=$1 unit=$2 ctl=$3 ids=$4; shift 4
own=$root/.multideploy
say() { said=; [ ! -f "$2" ] || IFS= read -r said <"$2"; echo "$1=$said"; }
echo multideploy
where
echo "live=$live"; if [ -d "$root/current" ]; then echo folder=yes; fi
case $live in releases/*) for key in image package sum; do say $key "$own/${live#releases/}/$key"; done;; esac
for id in $ids; do
  [ -d "$own/$id" ] || continue
  # First whether it runs, then its step: a step that was read after the end is the last one.
  if flock -ns "$own/$id/running" true; then echo "running.$id=no"; else echo "running.$id=yes"; fi
  for key in step reason before switched; do say $key.$id "$own/$id/$key"; done
done
show=$($ctl show -p LoadState,ActiveState,SubState,NRestarts,Result,ExecMainStatus,InvocationID \
  -p ActiveEnterTimestampMonotonic "$unit") || { echo "$show"; exit 69; }
echo "$show"
case $show in *ActiveState=failed*|*SubState=auto-restart*)
  echo "status=$($ctl status --no-pager --lines=3 --output=cat "$unit" | tail -n 3 | tr '\n' ' ')";;
esac
say uptime /proc/uptime
if [ $# != 0 ]; then
  said=$(cd "$root/current" && timeout 10 "$@" 2>&1); echo "check.code=$?"
  printf '%s\n' "$said" | { IFS= read -r said; echo "check=$said"; }
fi
echo end
"""
)
"""Tells what is live, how far our steps came, and what systemd says. Writes nothing."""

RECEIVE = (
    'exec 2>&1; umask 022; cd "$1" && mkdir -p ".multideploy/$2" && cat >".multideploy/$2/archive.part" || exit 73; '
    """[ "$(sha256sum <".multideploy/$2/archive.part" | cut -d' ' -f1)" = "$3" ] || { echo 'cut off'; exit 75; }; """
    'mv -f ".multideploy/$2/archive.part" ".multideploy/$2/archive" && echo multideploy && echo end'
)
"""Keeps a package that the worker sends."""

GO = (
    _WHERE
    + r"""
exec 2>&1; export LC_ALL=C; umask 022
root=$1 unit=$2 ctl=$3 run=$4 id=$5 mode=$6 target=$7 image=$8 package=$9; shift 9
sum=$1 strip=$2 keep=$3; shift 3  # the rest: what `current` may lead to before
d=.multideploy/$id
cd "$root" && mkdir -p releases "$d" || exit 73
exec 9>>"$d/running"
flock -w 2 9 || { printf 'multideploy\nend\n'; exit 0; }  # the steps of an earlier call still run
put() { printf '%s\n' "$2" >"$d/$1.new" && mv -f "$d/$1.new" "$d/$1"; }
fail() { put reason "$(printf %s "$1" | tail -c 700 | tr '\n' ' ')"; put step failed; exit 1; }
get() { curl -fsSL --proto '=https,http' --proto-redir '=https' --connect-timeout 10 --retry 2 -o "$1" -- "$2" 2>&1; }

fetch() {
  shown=${package%%[?#]*}  # what is behind that may be somebody's token
  case $package in http*)
    put step fetching
    out=$(get "$d/archive" "$package") || fail "cannot fetch $shown: $out";;
  esac
  case $sum in http*)
    from=$sum
    out=$(get "$d/sum.file" "$from") || fail "cannot fetch ${from%%[?#]*}: $out"
    sum=$(head -c 9999 "$d/sum.file" | head -n 1 | cut -d' ' -f1 | tr A-F a-f)
    [ ${#sum} = 64 ] && case $sum in *[!0-9a-f]*) false;; esac ||
      fail "cannot check $shown: what ${from%%[?#]*} says does not begin with a SHA-256 of 64 hexadecimal digits";;
  esac
  put step verifying
  real=$(sha256sum <"$d/archive" | cut -d' ' -f1)
  [ -z "$sum" ] || [ "$real" = "$sum" ] || fail "checksum of $shown is $real, not $sum"
  put step unpacking
  rm -rf "releases/.$id" && mkdir "releases/.$id" &&
    out=$(tar -xf "$d/archive" -C "releases/.$id" --no-same-owner --strip-components="$strip" 2>&1) ||
    fail "cannot unpack $shown: $out"
  rm -f "$d/archive"
  put sum "$real"
  mv -T "releases/.$id" "releases/$id" || fail "cannot make releases/$id"
}

steps() {
  [ "$mode" != deploy ] || [ -d "releases/$id" ] || fetch
  exec 8>>.multideploy/lock
  flock -w 60 8 || fail "another release holds $root/.multideploy/lock"
  [ ! -e "$d/cancelled" ] || fail "cancelled: its way back began"
  where; ours=
  for known; do [ "$live" != "$known" ] || ours=yes; done
  [ "$ours" ] || { put reason "current leads to ${live:-nothing}"; put step superseded; exit 1; }
  if [ "$live" = "$target" ] && [ "$mode" = back ] && [ ! -e ".multideploy/$run/switched" ]; then
    put step started; exit 0  # nothing was switched, so nothing is restarted
  fi
  put before "$($ctl show -p InvocationID --value "$unit")"
  put step switching
  put switched yes
  if [ "$mode" = remove ]; then
    if [ "$live" ] && [ -e ".multideploy/${live#releases/}/switched" ]; then  # else we had not come that far
      out=$($sudo$ctl stop "$unit" 2>&1) || fail "systemctl stop $unit: $out"
      rm -f current
    fi
    rm -rf "releases/$run" || fail "cannot remove releases/$run"
    put step started; exit 0
  fi
  [ -d "$target" ] || fail "$root/$target is gone"
  ln -sfn "$target" .multideploy/link && mv -fT .multideploy/link current || fail "cannot switch current"
  put step restarting
  $sudo$ctl reset-failed "$unit" 2>/dev/null  # or systemd counts the old revision's restarts against the new one
  out=$($sudo$ctl restart --no-block "$unit" 2>&1) || fail "systemctl restart $unit: $out"
  put step started
  n=0
  for old in $(ls -1t .multideploy); do
    [ -d "releases/$old" ] && n=$((n+1)) && [ $n -gt "$keep" ] || continue
    case " $live $target $* " in *" releases/$old "*) ;; *) rm -rf "releases/$old" ".multideploy/$old";; esac
  done
}

sudo=
case $ctl in sudo*) sudo='sudo -n ' ctl=${ctl#sudo };; esac
if [ "$mode" = deploy ]; then
  rm -f "$d/cancelled" "$d/switched"; put image "$image"; put package "$package"
else
  [ ! -d ".multideploy/$run" ] || : >".multideploy/$run/cancelled"
fi
put reason ''; put step waiting
( exec >/dev/null 2>&1; steps "$@" ) &  # not "steps >/dev/null": the shell would keep the session open
printf 'multideploy\nend\n'
"""
)
"""Starts the steps to a release or back, which go on when the session is over: fetch, verify and unpack beside what
runs; then, under the lock, switch and restart, if `current` still leads to where it may."""


@dataclass(frozen=True)
class Steps:
    """How far our steps with one id came."""

    running: bool
    step: str
    reason: str
    before: str
    switched: bool


@dataclass(frozen=True)
class Seen:
    """What the host told of itself.

    :param live: where ``current`` leads; None: there is none.
    :param folder: whether it leads to a folder.
    :param unit: systemd's properties among the rest, and the last lines of its status when the unit failed.
    """

    live: str | None
    folder: bool
    image: str | None
    package: str | None
    checksum: str | None
    unit: dict[str, str]
    uptime: float
    check: tuple[int, str] | None
    steps: dict[str, Steps] = field(default_factory=dict)


def seen(told: dict[str, str]) -> Seen:
    """The host's document, understood."""
    steps = {
        id_: Steps(
            running == "yes",
            told[f"step.{id_}"].strip(),
            told[f"reason.{id_}"].strip(),
            told[f"before.{id_}"].strip(),
            bool(told[f"switched.{id_}"].strip()),
        )
        for id_, running in ((key.partition(".")[2], value) for key, value in told.items() if "running." in key)
    }
    return Seen(
        live=told["live"] or None,
        folder="folder" in told,
        image=told.get("image") or None,
        package=told.get("package") or None,
        checksum=told.get("sum") or None,
        unit=told,
        uptime=float(told["uptime"].split()[0]),
        check=(int(told["check.code"]), told["check"].strip()) if "check" in told else None,
        steps=steps,
    )


def command(name: str, script: str, words: Sequence[str]) -> tuple[str, str]:
    """What the login shell of the host is given, every word quoted, and what the script's shell reads.

    A long script is read from standard input: both SSH libraries write the command itself into the log.
    """
    if "\n" not in script:
        return shlex.join(["sh", "-c", script, name, *words]), ""
    return shlex.join(
        ["sh", "-s", "--", name, *words]
    ), f'main() {{ shift; exec </dev/null\n{script}}}\nmain "$@"; exit\n'


class Host:
    """The host behind an Airflow Connection of type ``ssh``."""

    def __init__(self, platform: Caller) -> None:
        self.conn_id, self.error, self.understanding = platform.config.conn_id, platform.error, platform.understanding

    @contextmanager
    def open(self) -> Iterator[Callable[..., dict[str, str]]]:
        """Runs scripts over one session: ``run(name, script, words, file=None)``, its document."""
        with self._errors("connect"):
            try:
                from airflow.providers.ssh.hooks.ssh import SSHHook
                from airflow.sdk import BaseHook

                if find_spec("asyncssh") is None:  # the triggerer's: told before anything is written
                    raise ModuleNotFoundError(name="asyncssh")
            except ImportError as error:
                raise missing_extra("ssh", error) from error
            with existing(self.conn_id, self.error):
                fitting(BaseHook.get_connection(self.conn_id), SSH, self.error)
                hook = SSHHook(ssh_conn_id=self.conn_id, conn_retry_attempts=1)
            hook.conn_timeout, hook.banner_timeout = hook.conn_timeout or 10, 15
            hook.auth_timeout = 15
            client = hook.get_conn()

        def run(name: str, script: str, words: Sequence[str], file: Path | None = None) -> dict[str, str]:
            with self._errors(name):
                line, text = command(name, script, words)
                stdin, stdout, _ = client.exec_command(line, timeout=CALL_TIMEOUT)
                with suppress(OSError), BytesIO(text.encode()) if file is None else file.open("rb") as source:
                    while chunk := source.read(1 << 17):  # a refusal closes it; its words come below
                        stdin.write(chunk)
                stdin.channel.shutdown_write()
                text = stdout.read().decode("utf-8", "replace")
                return self._document(name, stdout.channel.recv_exit_status(), text)

        with closing(client), self.understanding():
            yield run

    async def arun(self, name: str, script: str, words: Sequence[str]) -> dict[str, str]:
        """A script's document, on the event loop."""
        hooks = await asyncio.to_thread(self._hooks)
        with self._errors(name):
            async with asyncio.timeout(CALL_TIMEOUT):
                with existing(self.conn_id, self.error):
                    connection = await hooks.SSHHookAsync(ssh_conn_id=self.conn_id).get_conn()
                async with connection:
                    line, text = command(name, script, words)
                    done = await connection.run(line, input=text, check=False, encoding="utf-8", errors="replace")
            code = -1 if done.exit_status is None or done.exit_signal is not None else done.exit_status
            return self._document(name, code, str(done.stdout or ""))

    def _hooks(self) -> Any:
        try:
            import asyncssh  # noqa: F401 - here, so that it is not loaded on the event loop
            from airflow.providers.ssh.hooks import ssh
        except ImportError as error:
            raise missing_extra("ssh", error) from error
        return ssh

    def _document(self, name: str, code: int, text: str) -> dict[str, str]:
        head, mark, told = text.partition("multideploy\n")
        if code == 0 and mark and told.endswith("end\n"):
            return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        words = last_words(told or head, 500) or "nothing"
        if code == 0:
            raise self.error(f"{name}: the host's answer is none of ours: {words}", retryable=True)
        if code < 0 or code > 128 or code in _PASSING:
            raise self.error(f"{name}: the session ended early (exit code {code}): {words}", retryable=True)
        raise self.error(f"{name}: the host refused (exit code {code}): {words}")

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Maps what paramiko, asyncssh and the hooks raise. No message holds a key or a password."""
        try:
            yield
        except MultideployError:
            raise
        except Exception as error:  # noqa: BLE001 - two SSH libraries, with their cryptography's errors
            raise self._mapped(what, error) from None

    def _mapped(self, what: str, error: Exception) -> PlatformError:
        name = type(error).__name__
        if name in (
            "AuthenticationException",
            "PermissionDenied",
            "BadAuthenticationType",
            "PasswordRequiredException",
        ):
            return self.error(f"{what}: {name}: the host refuses the login of connection {self.conn_id!r}; check it")
        if name in ("BadHostKeyException", "HostKeyNotVerifiable") or "not found in known_hosts" in str(error):
            said = f"{what}: {name}: the host's key is not the expected one; set extra host_key in {self.conn_id!r}"
            return self.error(said)
        lost = isinstance(error, OSError | EOFError) or name in _LOST
        if lost:
            return self.error(f"{what}: no answer from the host: {name}: {error}", retryable=True)
        return self.error(f"{what}: connection {self.conn_id!r} cannot be used: {name}: {error}")


_LOST = frozenset(
    {"SSHException", "ChannelException", "ConnectionLost", "DisconnectError", "ChannelOpenError", "ProtocolError"}
)
