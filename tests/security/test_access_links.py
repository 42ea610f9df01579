"""Links that come with failures are shown and never followed; what is no web page is not even shown."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alerting import alerter_process, batch, entry, publish, task_of
from celeryscope.alerts.views import Links
from celeryscope.demo.inbox import Inbox
from helpers import RedisServer, eventually, running


@contextmanager
def trap() -> Iterator[tuple[str, list[bytes]]]:
    """A listening port; gives its address and what anybody who came said first."""
    came: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with closing(connection):
                connection.settimeout(1)
                came.append(connection.recv(1000))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", came
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def buttons(body: dict[str, Any]) -> dict[str, str]:
    blocks = [block for attachment in body["attachments"] for block in attachment["blocks"]]
    elements = [element for block in blocks if block["type"] == "actions" for element in block["elements"]]
    return {element["text"]["text"]: element["url"] for element in elements}


def test_no_link_is_fetched(valkey: RedisServer, tmp_path: Path) -> None:
    """Neither a task's runbook, nor an address in an exception, nor Flower's and Grafana's. Slack is told not to."""
    with trap() as (address, came), Inbox(["general"]).serving() as inbox:
        more = ("--flower-url", f"{address}/flower", "--grafana-url", f"{address}/grafana", "--runbook-url", address)
        with running(alerter_process(tmp_path, valkey.url, inbox, *more)) as alerter:
            hostile = f"see {address}/text or <{address}/markup|here>"
            told = entry("f1", task="shop.pays", message=hostile, settings={"runbook": f"{address}/runbook?id=169.254"})
            publish(valkey.url, [batch(told)])
            publish(valkey.url, [batch(entry("f2", task="shop.ships", settings={"runbook": "ships.md"}))])
            eventually(lambda: {task_of(message) for message in inbox.top()} == {"shop.pays", "shop.ships"}, 60)
            shown = {task_of(message): message.body for message in inbox.top()}
            assert alerter.stop() == 0
        assert came == []
        assert buttons(shown["shop.pays"])["Runbook"] == f"{address}/runbook?id=169.254"
        assert buttons(shown["shop.ships"])["Runbook"] == f"{address}/ships.md"
        for body in shown.values():
            assert (body["unfurl_links"], body["unfurl_media"]) == (False, False)
        assert f"<{address}/markup" not in json.dumps(shown)


def incident() -> Any:
    sample = SimpleNamespace(uuid=None, queue=None)
    return SimpleNamespace(task="shop.pays", sample=sample, first=1_000.0, last=2_000.0)


def runbook(given: str, base: str = "https://wiki.example/runbooks/") -> list[str]:
    return [link.url for link in Links(runbooks=base).of(incident(), given, 3_000.0)]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("payments.md", "https://wiki.example/runbooks/payments.md"),
        ("https://other.example/a?b=c#d", "https://other.example/a?b=c#d"),
        ("how to pay.md", "https://wiki.example/runbooks/how%20to%20pay.md"),
        ("https://wiki.example/Don't panic", "https://wiki.example/Don%27t%20panic"),
        # Without :// it is a name, which cannot leave the site that the alerter's settings name.
        ("javascript:alert(1)", "https://wiki.example/runbooks/javascript:alert(1)"),
        ("//evil.example", "https://wiki.example/runbooks///evil.example"),
        ("@evil.example", "https://wiki.example/runbooks/@evil.example"),
        ("a|b>c<d", "https://wiki.example/runbooks/a%7Cb%3Ec%3Cd"),
    ],
)
def test_a_runbook_is_a_page_or_a_name_on_the_runbooks_site(given: str, shown: str) -> None:
    assert runbook(given) == [shown]


@pytest.mark.parametrize(
    "given",
    [
        "javascript://evil.example/%0aalert(1)",
        "file:///etc/passwd",
        "ftp://evil.example/",
        "data://text/html,x",
        "slack://channel?team=T&id=C",
        "https://",
        "https:///path",
        "https://wiki.example@evil.example/",
        "https://user:pw@wiki.example/",
        "https://wiki.example\\@evil.example/",
        "https://evil.example/|Flower>",
        "https://evil.example/ <!channel>",
        "https://evil.example/\u202egnp.exe",
        "https://[::1/",
        "http://evil.example/`x`",
    ],
)
def test_what_is_no_page_of_the_web_or_looks_like_another_is_not_shown(given: str) -> None:
    assert runbook(given) == []


@pytest.mark.parametrize("given", ["payments.md", "javascript:alert(1)", "//evil.example/"])
def test_without_a_runbooks_site_a_name_is_no_link(given: str) -> None:
    assert runbook(given, base="") == []
