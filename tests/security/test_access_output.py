"""Names come from whoever can publish: on a terminal and in a log they are letters, whatever they are made of."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from alerting import batch, entry
from celeryscope.alerts.batches import decode, sample_text
from celeryscope.exporters.reading import Page, fetch
from celeryscope.exporters.report import report
from celeryscope.exporters.status_screen import render as screen
from celeryscope.monitor import control_run, logs
from celeryscope.monitor.doctor.report import Item
from celeryscope.monitor.flower_actions import FlowerError, revoke
from celeryscope.monitor.flower_settings import ControlSettings
from celeryscope.monitor.printable import printable
from rich.console import Console

ORDERS = {
    "title": "\x1b]0;pwned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b2J",
    "return": "real\rfake",
    "backspace": "real\b\b\b\bfake",
    "link": "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "backwards": "a\u202egpj.exe",
    "isolate": "a\u2066b\u2069",
    "nul": "a\0b",
}
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(name="name", params=ORDERS.values(), ids=ORDERS.keys())
def _name(request: pytest.FixtureRequest) -> str:
    """A name that gives orders to a terminal."""
    return f"shop.{request.param}"


def shown(thing: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200, highlight=False, color_system=None).print(thing)
    return stream.getvalue()


def test_status_shows_names_as_letters(name: str) -> None:
    """As tables and as JSON; the page may be anybody's."""
    text = name.replace("\\", "\\\\")
    labels = f'task="{text}",queue="{text}"'
    lines = [f"celery_task_{what}_total{{{labels}}} 3" for what in ("started", "failed", "received")]
    lines += [f'celery_worker_up{{worker="{text}"}} 1', f'celery_queue_messages{{queue="{text}",state="ready"}} 5', ""]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text="\n".join(lines)))
    page = Page(fetch("http://monitor.example", transport=transport))
    printed = shown(screen(report(page, 0.0), 20))
    assert "shop." in printed
    assert COMMANDS.search(printed) is None


def test_the_doctor_shows_names_as_letters(name: str) -> None:
    printed = shown(Item("  seen  ", f"the queue {name} has no consumer"))
    assert "shop." in printed
    assert COMMANDS.search(printed) is None


def test_control_shows_what_flower_says_as_letters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        control_run.Step(revoke(name), note=name, said=f"revoked {name}"),
        control_run.Step(revoke("x"), error=FlowerError(f"no worker is called {name}")),
    ]
    control_run._report(ControlSettings(), steps, as_json=False)
    said = capsys.readouterr()
    assert "shop." in said.out
    assert "shop." in said.err
    assert COMMANDS.search(said.out + said.err) is None


def test_the_incident_store_takes_names_as_letters(name: str) -> None:
    """So `incidents show` and its JSON are safe, too."""
    (told,) = decode(batch(entry(task=name, message=name, worker=name, kwargs={name: name}))).entries
    assert COMMANDS.search(told.sample.task + told.sample.message + str(told.sample.worker)) is None
    assert COMMANDS.search("".join([*told.sample.kwargs, *told.sample.kwargs.values()])) is None
    assert re.search(r"\\u00(9b|1b)", sample_text(told.sample)) is None


@contextmanager
def logging_to(form: Any) -> Iterator[io.StringIO]:
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = root.handlers[:], root.level, ours.level, logs.START.level
    stream = io.StringIO()
    logs.configure("debug", form, stream=stream)
    try:
        yield stream
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        logs.START.setLevel(before[3])
        logging.captureWarnings(capture=False)


def test_logs_hold_names_as_letters(name: str) -> None:
    for form in ("text", "json"):
        with logging_to(form) as stream:
            logging.getLogger("celeryscope.x").warning("unknown queue %s", name)
        assert "shop." in stream.getvalue()
        assert COMMANDS.search(stream.getvalue()) is None


def test_a_name_cannot_forge_a_line_of_the_log() -> None:
    forged = "x\n2026-11-21T00:00:00Z WARNING monitor: all is well"
    with logging_to("text") as stream:
        logging.getLogger("celeryscope.x").warning("unknown queue %s", forged)
    first, *others = stream.getvalue().splitlines()
    assert "unknown queue x" in first
    assert all(line.startswith("  ") for line in others)
    with logging_to("json") as stream:
        logging.getLogger("celeryscope.x").warning("unknown queue %s", forged)
    (line,) = stream.getvalue().splitlines()
    assert forged in json.loads(line)["message"]


@pytest.mark.parametrize("text", ["plain", "two\nlines\tand a tab", "mörk 🐍 中文", "عربي"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
