"""Which dispatch a run came from: as beat writes it on the message and a worker tells it."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.signals import task_received
from celeryscope.monitor import beat_runs
from celeryscope.monitor.beat_runs import ENTRY_HEADER, RUN_HEADER, read, write

TEXT = write("my app", "b00t", (3, 1, 2), (1900000001.25, None, 1900000000.125))


class Dispatcher:
    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


@pytest.fixture(name="app")
def _app() -> Celery:
    app = Celery("mine", broker="memory://", set_as_current=False)
    beat_runs.connect(app)
    return app


class Consumer:
    """A worker's; signals need a sender that can be hashed."""

    def __init__(self, app: Any, event_dispatcher: Any) -> None:
        self.app = app
        self.event_dispatcher = event_dispatcher


def received(app: Any, dispatcher: Dispatcher | None, *, send_events: bool = True, **headers: Any) -> None:
    """A worker of the app receives a message."""
    request = SimpleNamespace(id="u", request_dict=headers, task=SimpleNamespace(send_events=send_events))
    task_received.send(sender=Consumer(app, dispatcher), request=request)


def run(text: object = TEXT) -> dict[str, Any]:
    return {ENTRY_HEADER: "nightly", RUN_HEADER: text}


def test_what_is_written_is_read():
    assert read(TEXT) == {
        "app": "my app", "boot": "b00t", "dispatched": 3, "failed": 1, "skipped": 2,
        "sent": 1900000001.25, "first": None, "due": 1900000000.125,
    }  # fmt: skip


def test_a_worker_tells_which_run_it_received(app):
    dispatcher = Dispatcher()
    beat_runs.connect(app)  # a second time
    received(app, dispatcher, **run())
    assert dispatcher.sent == [("beat-received", {"entry": "nightly", "uuid": "u", **read(TEXT)})]


@pytest.mark.parametrize("text", [None, "", "b00t 3 1", "b00t x 1 2 - - - app", "b00t 1 1 2 yesterday - - app"])
def test_what_beat_did_not_write_is_not_told(app, text):
    dispatcher = Dispatcher()
    received(app, dispatcher, **run(text))
    received(app, dispatcher)
    assert dispatcher.sent == []


def test_where_events_are_off_nothing_is_sent(app):
    dispatcher, disabled = Dispatcher(), Dispatcher(enabled=False)
    received(app, disabled, **run())
    received(app, None, **run())
    received(app, dispatcher, send_events=False, **run())
    assert dispatcher.sent == disabled.sent == []


def test_another_apps_worker_tells_nothing(app):
    dispatcher = Dispatcher()
    received(Celery("other", broker="memory://", set_as_current=False), dispatcher, **run())
    assert dispatcher.sent == []


def test_the_app_may_be_known_by_its_proxy(app):
    dispatcher = Dispatcher()
    received(SimpleNamespace(_get_current_object=lambda: app), dispatcher, **run())
    assert len(dispatcher.sent) == 1


@pytest.mark.guard_swallows
def test_a_worker_does_not_notice_an_error_of_ours(app):
    received(app, Dispatcher(), **run(text=7))
    dispatcher: Any = SimpleNamespace(enabled=True)
    received(app, dispatcher, **run())


def test_an_app_that_is_gone_is_not_kept_alive():
    app = Celery("gone", broker="memory://", set_as_current=False)
    beat_runs.connect(app)
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None
