"""The build step with real builders and a real registry, where there are some; the operator around it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_multideploy.errors import BuildFailed, SpecError
from airflow_multideploy.images import registry
from airflow_multideploy.images.builder import find_builder
from airflow_multideploy.operators.build import BuildImageOperator
from tests.images.conftest import AUTH, PASSWORD, PRINT_DIGEST, builder, program
from tests.images.registry_server import docker_registry

HTPASSWD = "robot:$2y$05$abcdefghijklmnopqrstuuSnF5tLPqPFqc0z9CY0HcSLFbSRlL67u"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [p for p in programs if shutil.which(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (Debian packages)")


@pytest.fixture(scope="module")
def real_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on loopback, with a login; its ``host:port``."""
    with docker_registry(tmp_path_factory.mktemp("registry"), HTPASSWD) as host:
        yield host


@pytest.fixture
def connection(real_registry: str, monkeypatch: pytest.MonkeyPatch) -> str:
    document = {"conn_type": "docker", "host": f"http://{real_registry}", "login": "robot", "password": PASSWORD}
    monkeypatch.setenv("AIRFLOW_CONN_REG", json.dumps(document))
    return "reg"


@pytest.fixture
def buildah_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buildah without user namespaces or overlay mounts, as in a container, set through the worker's environment."""
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")


# --- the real path


@needs("docker-registry", "skopeo")
@pytest.mark.parametrize("kind", ["buildah", "docker", "podman"])
def test_builds_pushes_and_skips_the_second_time(
    *,
    kind: str,
    real_registry: str,
    connection: str,
    buildah_here: None,
    context_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask = {"docker": ["docker", "info"], "podman": ["podman", "--version"], "buildah": ["buildah", "--version"]}[kind]
    if shutil.which(kind) is None or subprocess.run(ask, check=False, capture_output=True).returncode:
        pytest.skip(f"no working {kind} on this machine")
    image = f"{real_registry}/team/{kind}"
    document = {"context": str(context_folder), "builder": kind, "args": {"greeting": "good morning; $(id)"}}
    arguments = {"image": image, "version": "1.0", "build": document, "registry_conn_id": connection}
    first = BuildImageOperator(task_id="build", **arguments).execute({})
    assert first["built"]
    assert first["image"] == f"{image}@{first['digest']}"
    seen = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--creds", f"robot:{PASSWORD}", f"docker://{image}:1.0"],
        check=True,
        capture_output=True,
        text=True,
    )
    inspected = json.loads(seen.stdout)
    assert inspected["Digest"] == first["digest"], "another program sees the same digest"
    assert inspected["Labels"]["greeting"] == "good morning; $(id)"
    second = BuildImageOperator(task_id="build", **arguments).execute({})
    assert second | {"skipped_reason": None} == first | {"built": False}
    assert second["skipped_reason"] == f"{image}:1.0 is already in the registry"
    printed = capsys.readouterr()
    assert "COPY index.html" in printed.out, "the builder's output is in the task's log"
    assert PASSWORD not in printed.out + printed.err
    assert AUTH not in printed.out + printed.err
    assert registry.resolve(image, "1.0", Conn(real_registry)) == first["digest"]


@needs("docker-registry")
def test_an_image_without_host_is_built_tagged_and_pinned_with_the_connections(
    real_registry: str, connection: str, programs: Path, context_folder: Path
) -> None:
    program(programs, "docker", f'printf "%s\\n" "$@" >> {programs}/argv\n{PRINT_DIGEST}')
    result = BuildImageOperator(
        task_id="build",
        image="team/hostless",
        version="1.0",
        build={"context": str(context_folder), "builder": "docker"},
        registry_conn_id=connection,
    ).execute({})
    assert result["built"]
    assert result["image"] == f"{real_registry}/team/hostless@sha256:{'a' * 64}"
    argv = (programs / "argv").read_text().splitlines()
    assert argv[argv.index("--tag") + 1] == f"{real_registry}/team/hostless:1.0"
    assert argv[-2:] == ["push", f"{real_registry}/team/hostless:1.0"]


@needs("docker-registry", "buildah")
@pytest.mark.usefixtures("buildah_here")
def test_a_failing_build_ends_with_the_builders_own_words(
    real_registry: str, connection: str, context_folder: Path
) -> None:
    (context_folder / "Dockerfile").write_text("FROM scratch\nCOPY missing.html /\n")
    operator = BuildImageOperator(
        task_id="build",
        image=f"{real_registry}/team/broken",
        version="1.0",
        build={"context": str(context_folder), "builder": "buildah"},
        registry_conn_id=connection,
    )
    with pytest.raises(BuildFailed, match=r"(?s)team/broken:1.0: buildah build ended with \d+.*missing.html"):
        operator.execute({})


@needs("docker-registry")
def test_a_wrong_password_is_told_before_a_build(
    real_registry: str, connection: str, programs: Path, context_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = programs / "ran"
    program(programs, "docker", f"touch {ran}")
    document = {"conn_type": "docker", "host": f"http://{real_registry}", "login": "robot", "password": "wrong-battery"}
    monkeypatch.setenv("AIRFLOW_CONN_REG", json.dumps(document))
    operator = BuildImageOperator(
        task_id="build",
        image=f"{real_registry}/team/shop",
        version="9",
        build={"context": str(context_folder)},
        registry_conn_id=connection,
    )
    with pytest.raises(BuildFailed, match="401") as caught:
        operator.execute({})
    assert "wrong-battery" not in str(caught.value)
    assert not ran.exists()


class Conn:
    """A Connection to the real registry."""

    conn_id, schema, port, login, password = "reg", None, None, "robot", PASSWORD

    def __init__(self, host: str) -> None:
        self.host = f"http://{host}"


# --- arguments


def test_a_version_that_is_no_tag_runs_nothing(programs: Path, context_folder: Path) -> None:
    ran = programs / "ran"
    program(programs, "docker", f"touch {ran}")
    operator = BuildImageOperator(
        task_id="build", image="127.0.0.1:1/shop", version="1.0; rm -rf /", build={"context": str(context_folder)}
    )
    with pytest.raises(SpecError, match="version"):
        operator.execute({})
    assert not ran.exists()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"args": {"x y": "1"}}, "not a name"),
        ({"args": {"API_TOKEN": "hunter22hunter22"}}, "looks like a secret"),
    ],
)
def test_bad_build_arguments_are_refused_without_showing_their_values(
    context_folder: Path, build: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        builder(context_folder, **build)
    assert "hunter22" not in str(caught.value)


def test_missing_paths_are_named(tmp_path: Path, context_folder: Path, programs: Path) -> None:
    program(programs, "docker", "exit 0")
    with pytest.raises(BuildFailed, match=r"build\.context: no folder"):
        builder(tmp_path / "nowhere").run()
    with pytest.raises(BuildFailed, match=r"build\.dockerfile: no file"):
        builder(context_folder, dockerfile="docker/Other").run()


def test_auto_takes_the_first_builder_and_a_missing_one_is_named(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(BuildFailed, match="no docker or buildah or podman on this worker"):
        find_builder()
    podman = program(programs, "podman", "")
    assert find_builder() == ("podman", str(podman))
    docker = program(programs, "docker", "")
    assert find_builder() == ("docker", str(docker))
    with pytest.raises(BuildFailed, match="no buildah on this worker"):
        find_builder("buildah")


def test_arguments_come_from_the_plan_task() -> None:
    plan = {
        "service": {"artifact": {"image": "registry.example.com/shop", "registry_conn_id": None}, "build": None},
        "release": {"version": "1.2.3"},
    }

    class TaskInstance:
        def xcom_pull(self, *, task_ids: str, map_indexes: int) -> Any:
            return plan if task_ids == "plan" else None

    operator = BuildImageOperator(task_id="build", plan_task_id="plan")
    assert operator.execute({"ti": TaskInstance()}) == {
        "image": "registry.example.com/shop:1.2.3",
        "digest": None,
        "built": False,
        "skipped_reason": "the service has no 'build' and no 'registry_conn_id'; the tag was not resolved",
    }
    operator = BuildImageOperator(task_id="build", plan_task_id="other")
    with pytest.raises(SpecError, match="no plan"):
        operator.execute({"ti": TaskInstance()})


def test_an_operator_without_image_or_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="plan_task_id"):
        BuildImageOperator(task_id="build", image="shop")
