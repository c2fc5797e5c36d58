from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_multideploy.catalog.service import Artifact
from airflow_multideploy.catalog.target import Edge
from airflow_multideploy.secrets import looks_secret, redact, secret_paths
from airflow_multideploy.testing.fake import FakeConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("password", "hunter2"),
        ("API-Key", "x"),
        ("Authorization", "anything"),
        ("note", "AKIAABCDEFGHIJKLMNOP"),
        ("note", "-----BEGIN RSA PRIVATE KEY-----"),
        ("note", "ghp_" + "a" * 36),
        ("note", "xoxb-1234567890-abc"),
        ("note", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig"),
        ("note", "Bearer 0123456789abcdef"),
        ("url", "https://joe:hunter2@host/"),
        ("note", "--password=hunter2hunter2"),
        ("url", "https://hooks.slack.com/services/T000/B000/x"),
    ],
)
def test_secrets_are_seen_by_key_or_by_value(key: str, value: str) -> None:
    assert looks_secret(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("password", ""),
        ("password", 5),
        ("secret_name", "x"),
        ("token_path", "/x"),
        ("image", "a/b"),
        ("url", "http://h/"),
        ("note", "--token=${TOKEN}"),
        ("note", "password: looks like a secret"),
    ],
)
def test_what_only_names_a_secret_is_none(key: str, value: object) -> None:
    assert not looks_secret(key, value)


def test_paths_of_secrets_lead_through_mappings_and_lists() -> None:
    document = {"a": [{"token": "x"}, "ok"], "password": ["p", "q"], "b": {"c": "Bearer 0123456789abcdef"}}
    assert list(secret_paths(document)) == ["a[0].token", "password[0]", "password[1]", "b.c"]


def test_redact_keeps_what_stands_before_the_secret() -> None:
    assert redact("nothing here") == "nothing here"
    assert (
        redact("key AKIAABCDEFGHIJKLMNOP and its other half")
        == "key (from here on it looks like a secret: not shown; keep it in an Airflow Connection)"
    )


def config(**changes: Any) -> FakeConfig:
    return FakeConfig.model_validate({"platform": "fake", "conn_id": "c", **changes})


def test_a_target_survives_json_as_the_journal_keeps_it() -> None:
    made = config(depends_on=["aws", {"target": "gcp", "when": "failed"}], critical=False, timeout=30)
    assert made.depends_on == (Edge(target="aws"), Edge(target="gcp", when="failed"))
    assert FakeConfig.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout": 0},
        {"timeout": True},
        {"timeout": "30"},
        {"timeout": float("nan")},
        {"timeout": 86_401},
        {"conn_id": ""},
        {"critical": "yes"},
        {"depends_on": "aws"},
        {"depends_on": [{"target": "aws", "when": "maybe"}]},
        {"depends_on": ["Aws"]},
        {"first_deploy": "keep"},
        {"platfrom": "x"},
    ],
)
def test_a_target_that_is_not_what_it_has_to_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**changes)


def test_an_image_is_a_repository_without_a_tag() -> None:
    assert Artifact(image="localhost:5000/shop").image == "localhost:5000/shop"
    with pytest.raises(ValidationError, match="give the repository alone"):
        Artifact(image="localhost:5000/shop:1")
