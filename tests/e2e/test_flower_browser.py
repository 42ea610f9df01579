"""From a message in Slack to the task in Flower, in a browser: log in, look, and stop the task there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from celeryscope.alerts.batches import Sample
from celeryscope.alerts.incidents import Incident
from celeryscope.alerts.policy import Plan
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.views import Links, View, told
from celeryscope.demo.inbox import TOKEN, Inbox
from celeryscope.monitor.flower import FlowerLinks
from celeryscope.monitor.flower_client import FlowerClient
from flowers import LOGIN, environment, flower
from helpers import Process, RedisServer, eventually, running, system_command, worker_argv
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydantic import SecretStr

pytestmark = pytest.mark.system

LONG = 60.0
WAIT = LONG * 1000
WORKER = "shop@browser"
AT = 1_790_000_000.0
# No network but this machine's, whatever the browser would like to look up.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
]


@pytest.fixture(scope="module", name="plant")
def _plant(valkey_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Celery, str]]:
    """An app with a worker, and the address of the Flower that sees it."""
    folder = tmp_path_factory.mktemp("browser")
    broker = valkey_server.url.replace("/0", "/8")
    app = Celery("controlled", broker=broker, backend=broker, set_as_current=False)
    # Nobody waits for results here; one that is let go after its server has ended would look for that server.
    app.backend.result_consumer.consume_from = lambda *_: None
    argv = worker_argv("control_app", "-n", WORKER, "-Q", "plain", "-c", "2")
    worker = Process(argv, log=folder / "worker.log", cwd=folder, env=environment(broker))
    with running(worker), flower(folder, broker, "-A", "control_app", prefix="tools/ops") as (url, _):
        worker.wait_for(" ready.", LONG)
        with contextlib.closing(FlowerClient(url, user=LOGIN[0], password=LOGIN[1])) as client:
            eventually(lambda: client.online().get(WORKER), LONG)  # its heartbeats: Flower listens by now
        yield app, url
    app.close()


@pytest.fixture(scope="module", name="browser")
def _browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or system_command("chromium-browser")
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(name="known")
def _known(browser: Browser) -> Iterator[Page]:
    """A page of somebody who has the password."""
    with contextlib.closing(
        browser.new_context(
            http_credentials={"username": LOGIN[0], "password": LOGIN[1]}, viewport={"width": 1280, "height": 860}
        )
    ) as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        yield page


def seen(url: str, uuid: str, fact: str) -> None:
    """Wait until Flower has heard this of the task: `started`, `retried`."""

    def there() -> bool:
        answer = httpx.get(f"{url}/api/task/info/{uuid}", auth=LOGIN, timeout=LONG, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json().get(fact) is not None

    eventually(there, LONG, 0.2)


def alert(inbox: Inbox, url: str, uuid: str) -> None:
    """Post the incident of a failed attempt as the alerter would."""
    sample = Sample(uuid=uuid, worker=WORKER, queue="plain", message="not yet")
    incident = Incident(
        id="i1", key="k1", fingerprint="f1", environment="", task="controlled.patient", exception="ValueError",
        sample=sample, count=1, first=AT, last=AT, opened_at=AT,
    )  # fmt: skip
    plan = Plan(channel="#alerts")
    slack = SlackWeb(SecretStr(TOKEN), base_url=inbox.api_url, noted=lambda _status: None)
    slack.post("#alerts", View("incident", [told(incident, plan, Links(flower=url), AT)]), "m1")


def picture(page: Page, name: str) -> None:
    """Keep what is shown for the docs, where somebody asks for it: SCREENSHOTS=folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_from_the_message_to_the_task_which_is_revoked_there(plant: tuple[Celery, str], known: Page) -> None:
    """A task that waits for its next attempt: it has failed, so it is in Slack, and it can still be stopped."""
    app, url = plant
    sent = app.send_task("controlled.patient", queue="plain")
    seen(url, sent.id, "retried")
    with Inbox(["alerts"]).serving() as inbox:
        alert(inbox, url, sent.id)
        known.goto(inbox.url)
        picture(known, "inbox-link")
        known.get_by_role("link", name="Task in Flower").click()
        known.wait_for_url(FlowerLinks(url).task(sent.id))
        expect(known.locator("#taskid")).to_have_text(sent.id)
        picture(known, "flower-task")
        known.locator("#task-revoke").click()
        expect(known.get_by_text(f"Revoked '{sent.id}'")).to_be_visible(timeout=WAIT)
        eventually(lambda: sent.id in told_by_worker(app, "revoked"), LONG)
        known.goto(inbox.url)
        known.get_by_role("link", name="All failures in Flower").click()
        known.wait_for_url(re.compile(re.escape(f"{url}/tasks?name=controlled.patient")))
        expect(known.locator("#tasks-table")).to_be_visible(timeout=WAIT)


def test_a_running_task_is_terminated_in_the_page(plant: tuple[Celery, str], known: Page) -> None:
    app, url = plant
    sent = app.send_task("controlled.slow", queue="plain")
    seen(url, sent.id, "started")
    known.goto(FlowerLinks(url).task(sent.id))
    known.locator("#task-terminate").click()
    expect(known.get_by_text(f"Revoked '{sent.id}'")).to_be_visible(timeout=WAIT)
    eventually(lambda: sent.state == "REVOKED", LONG)
    known.goto(FlowerLinks(url).worker(WORKER))
    expect(known.get_by_text(WORKER).first).to_be_visible(timeout=WAIT)
    known.goto(FlowerLinks(url).tasks(name="controlled.slow"))
    expect(known.get_by_text(sent.id[:8]).first).to_be_visible(timeout=WAIT)
    picture(known, "flower-tasks")


def test_a_stranger_sees_nothing(plant: tuple[Celery, str], browser: Browser) -> None:
    _, url = plant
    with contextlib.closing(browser.new_context(http_credentials={"username": "ops", "password": "no"})) as context:
        answer: Any = context.new_page().goto(FlowerLinks(url).tasks(), timeout=WAIT)
        assert answer.status == 401


def told_by_worker(app: Celery, what: str) -> list[Any]:
    answer = getattr(app.control.inspect([WORKER], timeout=5), what)()
    assert answer, "the worker does not answer"
    found: list[Any] = answer[WORKER]
    return found
