"""docker-compose.yaml, read: who holds which key. ``make test-compose`` runs it where a Docker Engine can."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_multideploy.sandbox.airflow import LocalAirflow

FILE = Path(__file__).parents[1] / "docker-compose.yaml"
HOLDERS = {
    "AIRFLOW_JWT_SECRET": {"api-server", "scheduler"},
    "AIRFLOW_API_SECRET_KEY": {"api-server"},
    "AIRFLOW_ADMIN_PASSWORD": {"init"},
    "AIRFLOW_FERNET_KEY": {"api-server", "scheduler", "dag-processor", "triggerer", "init", "catalog"},
    "POSTGRES_PASSWORD": {"postgres", "api-server", "scheduler", "dag-processor", "triggerer", "init", "catalog"},
}
"""Which services know a secret of ``.env``. A worker knows the broker's password and nothing else."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The file, with its anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def whole(document: dict[str, Any], service: dict[str, Any]) -> str:
    """Everything that a service is given: also what its secrets and configs stand for."""
    named = [entry["source"] if isinstance(entry, dict) else entry for entry in service.get("secrets", [])]
    named += [entry["source"] if isinstance(entry, dict) else entry for entry in service.get("configs", [])]
    given = [document.get(part, {}).get(name) for part in ("secrets", "configs") for name in named]
    return json.dumps([service, given])


@pytest.mark.parametrize("secret", HOLDERS)
def test_a_secret_is_known_to_those_who_need_it(document: dict[str, Any], secret: str) -> None:
    services = document["services"]
    assert {name for name in services if secret in whole(document, services[name])} == HOLDERS[secret]


def test_the_setting_itself_is_known_to_those_who_sign_and_check(document: dict[str, Any]) -> None:
    """Under whatever name it comes: Airflow also takes it from a command (``_CMD``), a backend or a key's file."""
    services = document["services"]
    holders = {name for name in services if re.search(r"JWT_(SECRET|PRIVATE)", whole(document, services[name]))}
    assert holders == {"api-server", "scheduler"}


def test_the_airflow_of_all_tests_hands_out_its_key_in_the_same_way(tmp_path: Path) -> None:
    """Each release of the system tests, and with Celery's workers of the chaos, shows that nobody else needs it."""
    airflow = LocalAirflow(tmp_path, tmp_path, workers=2)
    key = airflow.environment["AIRFLOW__API_AUTH__JWT_SECRET"]
    holders = {name for name in airflow.components if key in airflow.environment_of(name).values()}
    assert holders == {"api-server", "scheduler"}
    assert {"dag-processor", "triggerer", "worker-1", "worker-2"} < set(airflow.components)


def test_nobody_is_given_all_secrets_at_once(document: dict[str, Any]) -> None:
    for name, service in document["services"].items():
        assert "env_file" not in service, name
        sources = [
            mount.partition(":")[0] if isinstance(mount, str) else mount["source"]
            for mount in service.get("volumes", [])
        ]
        assert not [source for source in sources if source in (".", "./", "..", "/") or ".env" in source], name
    assert "env_file" not in json.dumps({key: part for key, part in document.items() if key.startswith("x-")})


def test_redis_is_not_root_and_keeps_nothing(document: dict[str, Any]) -> None:
    """The image's entry point gives up root for ``redis-server`` alone, and this one begins with a shell."""
    redis = document["services"]["redis"]
    assert redis["user"] not in ("", "0", 0, "root")
    assert "--save '' --appendonly no" in redis["command"][-1], "so that its user needs no folder of its own"
    assert "volumes" not in redis
