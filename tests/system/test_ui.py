"""Airflow's own UI in a real Chromium, used as a person uses it: the trigger form, a run's links, a DAG's docs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from tests.system.conftest import Stage

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.system, pytest.mark.long]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but loopback: the rest is what a browser does on its own account.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 20_000  # milliseconds; one api-server with one worker, next to a scheduler


@pytest.fixture(scope="session")
def program() -> str:
    """Path of a Chromium; asked for before ``stage``, so that a skip does not start an Airflow."""
    pytest.importorskip("playwright.sync_api", reason="the Python package playwright is missing: pip install it")
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine ({', '.join(PROGRAMS)}): apt-get install chromium")
    return found


@pytest.fixture
def page(program: str, stage: Stage) -> Iterator[Page]:
    """A fresh browser, logged in."""
    from playwright.sync_api import sync_playwright

    # Per test: as long as it is open, Playwright's event loop runs in this thread, and asyncio's tests could not.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 1100}, locale="en-GB")
            page.set_default_timeout(PATIENCE)
            page.goto(stage.airflow.url)
            page.locator("input[name=username]").fill(stage.airflow.user)
            page.locator("input[name=password]").fill(stage.airflow.password)
            page.locator("button[type=submit]").click()
            page.get_by_role("link", name="Dags", exact=True).wait_for()
            yield page
        finally:
            browser.close()


def open_form(page: Page, stage: Stage, service: str) -> Locator:
    """The service's trigger form."""
    stage.airflow.wait_for_dag(service)
    page.goto(f"{stage.airflow.url}/dags/{service}")
    page.get_by_label("Trigger Dag").click()
    form = page.get_by_role("dialog")
    form.locator("#element_version").wait_for()
    return form


def runs(stage: Stage, service: str) -> int:
    return int(stage.airflow.api("GET", f"/dags/{service}/dagRuns")["total_entries"])


def test_the_form_shows_its_fields_and_refuses_a_bad_version(page: Page, stage: Stage) -> None:
    form = open_form(page, stage, "shop")
    labels = [text.strip(" *\n") for text in form.get_by_role("region").locator("label").all_inner_texts()]
    fields = ["Version", "Targets", "Reason", "Dry run", "Force", "Roll back", "Override windows and freezes"]
    assert [text for text in labels if text] == fields
    assert [field.input_value() for field in form.locator("[name=element_targets]").all()] == [
        "aws",
        "azure",
        "gcp",
        "onprem",
    ]
    before = (runs(stage, "shop"), stage.writes())
    form.locator("#element_version").fill("1.0; rm -rf /")
    form.locator("#element_reason").fill("an attack")
    form.get_by_role("button", name="Trigger", exact=True).click()
    refusal = form.get_by_text("Invalid input for param version: '1.0; rm -rf /' does not match")
    refusal.wait_for(state="visible")
    assert form.get_by_text("400").is_visible()
    assert (runs(stage, "shop"), stage.writes()) == before


def test_a_version_is_all_that_the_form_asks_for(page: Page, stage: Stage) -> None:
    from playwright.sync_api import expect

    form = open_form(page, stage, "shop")
    trigger = form.get_by_role("button", name="Trigger", exact=True)
    expect(trigger).to_be_disabled()
    form.locator("#element_version").fill("2.1.0")
    # Airflow counts every empty field whose type is not also "null" as missing, whatever its default is.
    expect(trigger).to_be_enabled()


def test_selected_targets_are_released_from_the_form(page: Page, stage: Stage) -> None:
    before = stage.live("shop")
    form = open_form(page, stage, "shop")
    form.locator("#element_version").fill("2.2.0")
    for target in ("azure", "gcp"):
        form.get_by_label(f"Remove {target}").click()
    form.locator("#element_reason").fill("from the form")
    form.get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url(re.compile(r"/dags/shop/runs/[^/]+$"))
    run_id = unquote(page.url.rpartition("/")[2])
    page.get_by_role("heading", name=run_id).wait_for()

    assert stage.airflow.finish("shop", run_id, timeout=120) == "success"
    assert stage.live("shop") == {**before, "aws": "2.2.0", "onprem": "2.2.0"}
    result = stage.airflow.xcom("shop", run_id, "finalize")
    assert (result["status"], result["version"]) == ("succeeded", "2.2.0"), result
    conf = stage.airflow.api("GET", f"/dags/shop/dagRuns/{run_id}")["conf"]
    assert (conf["targets"], conf["reason"]) == (["aws", "onprem"], "from the form")

    # What the person looks at next: the run's colour without a reload, and the way to the platform's console.
    page.get_by_text("Success", exact=True).first.wait_for()
    page.goto(f"{stage.airflow.url}/dags/shop/runs/{run_id}/tasks/aws.deploy/details")
    console = page.get_by_role("link", name="Platform console")
    console.wait_for()
    assert "console.aws.amazon.com/ecs/" in (console.get_attribute("href") or "")


def test_a_broken_service_says_why(page: Page, stage: Stage) -> None:
    page.goto(f"{stage.airflow.url}/dags/broken")
    page.get_by_label("Dag Docs").click()
    docs = page.get_by_role("dialog")
    docs.get_by_role("heading", name="broken: broken in the catalog").wait_for()
    docs.get_by_text("targets.aws.clutser: unknown key; did you mean 'cluster'?").wait_for()
