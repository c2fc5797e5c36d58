"""Who is told how a release ended: any notifier, the events it asked for, and never the outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from airflow.sdk.bases.notifier import BaseNotifier
from pydantic import ValidationError

from airflow_multideploy.errors import SpecError
from airflow_multideploy.operators import notify as notifications
from airflow_multideploy.operators.notify import ReleaseNotifier, notify
from tests.release.conftest import config_type

RELEASE = {"service": "shop", "version": "1.2.0", "message": "shop 1.2.0: degraded"}


class Teller(BaseNotifier):
    """Somebody's own notifier."""

    template_fields: Sequence[str] = ("text",)
    said: ClassVar[list[str]] = []

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        if self.text == "hangs":
            time.sleep(30)
        if self.text == "broken":
            raise OSError("no network")
        self.said.append(self.text)


@pytest.fixture(autouse=True)
def silence() -> None:
    Teller.said.clear()


def settings(text: str = "{{ release.event }}: {{ release.message }}", **more: Any) -> dict[str, Any]:
    return {"notifier": f"{__name__}.Teller", "arguments": {"text": text}, **more}


def test_the_templates_of_the_other_notifier_see_the_release() -> None:
    notify([settings()], {}, "degraded", **RELEASE)
    assert Teller.said == ["degraded: shop 1.2.0: degraded"]


def test_a_success_is_told_to_those_who_ask_for_it() -> None:
    notify([settings("quiet"), settings("all", events=["succeeded"])], {}, "succeeded", **RELEASE)
    assert Teller.said == ["all"]


@pytest.mark.parametrize(("severity", "told"), [("info", 4), ("warning", 3), ("error", 2), ("critical", 1)])
def test_only_what_is_severe_enough_is_told(severity: str, told: int) -> None:
    for event in ("reconciled", "degraded", "rolled_back", "rollback_failed"):
        notify([settings("{{ release.severity }}", severity=severity)], {}, event, **RELEASE)
    assert Teller.said == ["info", "warning", "error", "critical"][-told:]


def test_one_that_hangs_holds_up_neither_the_release_nor_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "PATIENCE", 3.0)
    began = time.monotonic()
    notify([settings("hangs"), settings("told")], {}, "failed", **RELEASE)
    assert time.monotonic() - began < 20
    assert Teller.said == ["told"]
    assert "was not told of failed: no answer within 3 s" in caplog.text


def test_one_that_fails_keeps_nobody_else_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    """And raises nothing: the release has ended as it has ended."""
    missing = {"notifier": "no.such.Notifier", "arguments": {}}
    notify([settings("broken"), missing, settings("told")], {}, "failed", **RELEASE)
    assert Teller.said == ["told"]
    assert "no network" in caplog.text
    assert "No module named 'no'" in caplog.text


@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.run", "sys.exit", "airflow_multideploy.catalog.service.Notify"]
)
def test_what_is_no_notifier_is_never_called(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever may edit the catalog may not run code on the workers."""
    notify([{"notifier": path, "arguments": {"command": "false", "args": "false"}}], {}, "failed", **RELEASE)
    assert f"{path} is no Airflow notifier" in caplog.text


def test_outside_a_release_it_is_silent() -> None:
    ReleaseNotifier(**settings("x"))({})
    assert Teller.said == []


@pytest.mark.parametrize("wrong", [{"events": ["sometimes"]}, {"events": []}, {"notifier": "not a path"}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReleaseNotifier(**{**settings(), **wrong})


def test_the_catalog_refuses_a_secret_in_the_arguments() -> None:
    from airflow_multideploy.catalog.parse import parse_service

    entry = {
        "artifact": {"image": "registry.test/shop"},
        "notify": [{"notifier": "a.B", "arguments": {"password": "hunter22"}}],
        "targets": {"t1": {"platform": "fake", "conn_id": "c"}},
    }
    with pytest.raises(SpecError, match=r"notify\[0\].arguments.password") as caught:
        parse_service("shop", entry, config_type=config_type)
    assert "hunter22" not in str(caught.value)
