"""The builder's process: its secrets, its output and its end, with builders that misbehave."""

from __future__ import annotations

import json
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from airflow_multideploy.errors import BuildFailed
from airflow_multideploy.operators.build import BuildImageOperator
from tests.images.conftest import AUTH, PASSWORD, PRINT_DIGEST, builder, program


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- secrets


def test_docker_gets_credentials_in_a_private_file_that_is_gone_afterwards(
    programs: Path, context_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    (own / "contexts").mkdir(parents=True)
    (own / "config.json").write_text(
        json.dumps(
            {"currentContext": "build-host", "credsStore": "desktop", "auths": {"other.example": {"auth": "b3RoZXI="}}}
        )
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(own))
    copy, seen = tmp_path / "copy.json", tmp_path / "seen"
    program(
        programs,
        "docker",
        f'cp "$DOCKER_CONFIG/config.json" {copy}; ls "$DOCKER_CONFIG" > {seen}.ls\n'
        f'stat -c "%a %n" "$DOCKER_CONFIG" "$DOCKER_CONFIG/config.json" > {seen}; printf "%s\\n" "$@" >> {seen}.argv\n'
        + PRINT_DIGEST,
    )
    assert builder(context_folder).run() == "sha256:" + "a" * 64
    assert json.loads(copy.read_text()) == {
        "currentContext": "build-host",
        "auths": {"127.0.0.1:1": {"auth": AUTH}},
    }
    (folder_mode, folder), (file_mode, _) = (line.split() for line in seen.read_text().splitlines())
    assert (folder_mode, file_mode) == ("700", "600")
    assert not Path(folder).exists()
    assert "contexts" in Path(f"{seen}.ls").read_text().split()
    argv = Path(f"{seen}.argv").read_text()
    assert PASSWORD not in argv
    assert AUTH not in argv
    assert stat.S_ISDIR((own / "contexts").stat().st_mode), "the worker's own folder is untouched"


def test_without_credentials_the_workers_own_docker_login_is_used(
    programs: Path, context_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    program(programs, "docker", f'echo "$DOCKER_CONFIG" > {tmp_path}/seen\n{PRINT_DIGEST}')
    builder(context_folder, known=False).run()
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path)


def test_secrets_in_the_builders_output_are_masked(programs: Path, context_folder: Path) -> None:
    program(programs, "docker", f'printf "\\033[31mlogin robot:{PASSWORD} {AUTH}\\033[0m\\n" >&2; exit 3')
    log: list[str] = []
    with pytest.raises(BuildFailed) as caught:
        builder(context_folder, log=log).run()
    assert log == ["login robot:*** ***"]
    assert "docker build ended with 3; its last words:\nlogin robot:*** ***" in str(caught.value)


def test_the_message_holds_the_last_lines_only(programs: Path, context_folder: Path) -> None:
    program(programs, "docker", "for i in $(seq 1 500); do echo line-$i; done; exit 1")
    log: list[str] = []
    with pytest.raises(BuildFailed) as caught:
        builder(context_folder, log=log).run()
    assert len(log) == 500
    assert str(caught.value).splitlines()[1:] == [f"line-{i}" for i in range(486, 501)]


# --- the end of processes

FAMILY = 'sleep 300 & echo $! > {pids}; (trap "" TERM; sleep 300) & echo $! >> {pids}; echo started; wait\n'


def test_a_time_out_kills_the_whole_process_group(
    programs: Path, context_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_multideploy.images.builder.GRACE", 0.3)
    program(programs, "docker", FAMILY.format(pids=tmp_path / "pids"))
    started = time.monotonic()
    with pytest.raises(BuildFailed, match=r"(?s)did not end within build.timeout \(3 s.*started"):
        builder(context_folder, timeout=3).run()
    assert time.monotonic() - started < 20
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_on_kill_ends_the_build_and_starts_no_push(
    programs: Path, context_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_multideploy.images.builder.GRACE", 0.3)
    program(
        programs, "docker", f'echo "$1" >> {tmp_path}/ran; trap "exit 0" TERM\n' + FAMILY.format(pids=tmp_path / "pids")
    )
    operator = BuildImageOperator(task_id="build", image="127.0.0.1:1/team/shop", version="1.0")
    operator._builder = builder(context_folder)

    def kill() -> None:
        while not (pids := tmp_path / "pids").exists() or len(pids.read_text().split()) < 2:
            time.sleep(0.02)
        operator.on_kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(BuildFailed, match="cancelled"):
        operator._builder.run()
    killer.join()
    assert all(gone(int(line)) for line in (tmp_path / "pids").read_text().split())
    assert (tmp_path / "ran").read_text().split() == ["build"], (
        "the builder said success when it was killed, yet no push"
    )
    with pytest.raises(BuildFailed, match="cancelled before"):
        operator._builder.run()


def test_an_interrupt_leaves_no_builder_behind(programs: Path, context_folder: Path, tmp_path: Path) -> None:
    program(programs, "docker", f"echo $$ > {tmp_path}/pid; (sleep 1; kill -ALRM $PPID) & exec sleep 300")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            builder(context_folder).run()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gone(int((tmp_path / "pid").read_text()))
