"""Which dispatch a run came from: as beat writes it on the message and a worker tells it, from a thread of its own."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.signals import task_received, worker_shutdown
from celeryscope.monitor import beat_runs, beat_sender
from celeryscope.monitor.beat_runs import ENTRY_HEADER, RUN_HEADER, read, write
from celeryscope.monitor.beat_sender import UnsupportedError
from celeryscope.monitor.guard import Guard
from helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = write("my app", "b00t", (3, 1, 2), (1900000001.25, None, 1900000000.125))
ON = SimpleNamespace(enabled=True, groups=set())


class Broker:
    """What a thread's connections end in: it can refuse, lack events, and hang as a paused one does."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.lines: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.closed = 0
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.sending = threading.Event()

    def open(self, app: Celery, hostname: str) -> Any:
        self.threads.add(threading.current_thread())
        if self.error is not None:
            raise self.error
        self.lines.append(f"{app.main} {hostname}")
        return self

    def send(self, kind: str, fields: dict[str, Any]) -> None:
        self.sending.set()
        assert self.free.wait(30)
        if self.error is not None:
            raise self.error
        self.sent.append((kind, fields))

    def close(self) -> None:
        self.closed += 1

    def counts(self) -> list[int]:
        return [fields["dispatched"] for _, fields in self.sent]


@pytest.fixture(name="broker")
def _broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker()
    monkeypatch.setattr(beat_runs, "Line", broker.open)
    monkeypatch.setattr(beat_sender, "WAKE", 0.02)
    monkeypatch.setattr(beat_sender, "RETRY", (0.01, 0.05))
    yield broker
    broker.free.set()
    for _, ended in list(beat_runs._receivers.values()):
        for app in list(beat_runs._receivers):
            ended(SimpleNamespace(app=app))
    eventually(lambda: not any(thread.is_alive() for thread in broker.threads))


@pytest.fixture(name="app")
def _app(broker: Broker) -> Celery:
    app = Celery("mine", broker="memory://", set_as_current=False)
    beat_runs.connect(app)
    return app


class Consumer:
    """A worker's; signals need a sender that can be hashed."""

    hostname = "worker@here"

    def __init__(self, app: Any, event_dispatcher: Any) -> None:
        self.app = app
        self.event_dispatcher = event_dispatcher


def received(app: Any, dispatcher: Any = ON, *, send_events: Any = True, **headers: Any) -> None:
    """A worker of the app receives a message, and notices nothing."""
    request = SimpleNamespace(id="u", request_dict=headers, task=SimpleNamespace(send_events=send_events))
    responses = task_received.send(sender=Consumer(app, dispatcher), request=request)
    assert responses
    assert all(response is None for _, response in responses)


def numbered(number: int, boot: str = "b00t", entry: str = "nightly", **more: Any) -> dict[str, Any]:
    times = (1900000000.0 + number, None, None)
    return {ENTRY_HEADER: entry, RUN_HEADER: write("my app", boot, (number, 0, 0), times), **more}


def told_after(app: Celery, broker: Broker) -> list[tuple[str, dict[str, Any]]]:
    """Return what was told before a last run that certainly is; the thread tells in the order of the first arrival."""
    received(app, **numbered(77, entry="the last"))
    eventually(lambda: broker.counts()[-1:] == [77])
    return broker.sent[:-1]


def run(text: object = TEXT) -> dict[str, Any]:
    return {ENTRY_HEADER: "nightly", RUN_HEADER: text}


def test_what_is_written_is_read():
    assert read(TEXT) == {
        "app": "my app", "boot": "b00t", "dispatched": 3, "failed": 1, "skipped": 2,
        "sent": 1900000001.25, "first": None, "due": 1900000000.125,
    }  # fmt: skip


def test_a_worker_tells_which_run_it_received(app, broker):
    beat_runs.connect(app)  # a second time
    received(app, **run())
    assert told_after(app, broker) == [("beat-received", {"entry": "nightly", "uuid": "u", **read(TEXT)})]
    assert broker.lines == ["mine worker@here"]


@pytest.mark.parametrize(
    "text", ["", "b00t 3 1", "b00t x 1 2 - - - app", "b00t 1 1 2 yesterday - - app", TEXT + "x" * beat_runs.LONGEST]
)
def test_what_beat_did_not_write_is_not_told(app, broker, text):
    received(app, **run(text))
    received(app)
    received(app, **{**run(), ENTRY_HEADER: "x" * 5_000})
    assert not broker.threads
    assert told_after(app, broker) == []


@pytest.mark.parametrize("groups", [{"worker", "task"}, {"task"}, set()])
def test_events_that_were_switched_on_later_are_events(app, broker, groups):
    """`enable_events` makes the worker's own dispatcher drop every group but these two, `beat` among them."""
    received(app, SimpleNamespace(enabled=True, groups=groups), **run())
    assert len(told_after(app, broker)) == 1


def test_where_events_are_off_nothing_is_sent(app, broker):
    received(app, SimpleNamespace(enabled=False, groups=set()), **run())
    received(app, SimpleNamespace(enabled=True, groups={"worker"}), **run())
    received(app, None, **run())
    received(app, send_events=False, **run())
    assert not broker.threads
    assert told_after(app, broker) == []


def test_a_retry_is_not_told_again(app, broker):
    received(app, **numbered(1))
    eventually(lambda: broker.counts() == [1])
    received(app, **numbered(1, retries=1))
    assert len(told_after(app, broker)) == 1


def test_another_apps_worker_tells_nothing(app, broker):
    received(Celery("other", broker="memory://", set_as_current=False), **run())
    assert told_after(app, broker) == []


def test_the_app_may_be_known_by_its_proxy(app, broker):
    received(SimpleNamespace(_get_current_object=lambda: app), **run())
    assert len(told_after(app, broker)) == 1


def test_a_broker_that_hangs_costs_the_worker_nothing_and_a_burst_is_one_event(app, broker):
    broker.free.clear()
    received(app, **numbered(1))
    assert broker.sending.wait(30)
    for number in range(2, 500):
        received(app, **numbered(number))
        received(app, **numbered(number, boot="other"))
    received(app, **numbered(7))  # overtaken on its way
    broker.free.set()
    eventually(lambda: broker.counts() == [1, 499, 499])
    assert threading.current_thread() not in broker.threads
    assert all(thread.daemon for thread in broker.threads)


def test_a_worker_ends_without_waiting_for_a_broker_that_hangs(app, broker):
    received(app, **numbered(1))
    eventually(lambda: broker.counts() == [1])
    broker.free.clear()
    broker.sending.clear()
    received(app, **numbered(2))
    assert broker.sending.wait(30)
    received(app, **numbered(3))
    responses = worker_shutdown.send(sender=Consumer(app, None))
    assert all(response is None for _, response in responses)
    assert all(thread.is_alive() and thread.daemon for thread in broker.threads)
    broker.free.set()  # in time, after all: what is left is told
    eventually(lambda: broker.counts() == [1, 2, 3])


def test_a_broker_that_refuses_is_told_the_latest_when_it_is_back(app, broker):
    received(app, **numbered(1))
    eventually(lambda: broker.counts() == [1])
    broker.error = ConnectionResetError("reset")
    for number in range(2, 50):
        received(app, **numbered(number))
    eventually(lambda: broker.closed)
    broker.error = None
    eventually(lambda: broker.counts()[-1] == 49)
    assert len(broker.sent) <= 3  # one may have been on its way when the broker came back


def test_what_waits_is_bounded(app, broker, monkeypatch):
    monkeypatch.setattr(beat_runs, "PENDING", 10)
    broker.error = ConnectionRefusedError("refused")
    for number in range(25):
        received(app, **numbered(1, entry=f"entry {number}"))
    broker.error = None
    eventually(lambda: len(broker.sent) == 10)
    assert [fields["entry"] for _, fields in broker.sent] == [f"entry {number}" for number in range(10)]


def test_a_broker_without_events_is_asked_once(app, broker):
    broker.error = UnsupportedError("sqs")
    received(app, **numbered(1))
    eventually(lambda: broker.threads and not any(thread.is_alive() for thread in broker.threads))
    for number in range(2, 9):
        received(app, **numbered(number))
    assert len(broker.threads) == 1


def test_the_thread_ends_when_beat_sends_nothing_any_more_and_comes_back(app, broker, monkeypatch):
    monkeypatch.setattr(beat_runs, "IDLE", 0.1)
    for number in range(1, 4):
        received(app, **numbered(number))
        eventually(lambda number=number: broker.counts() == list(range(1, number + 1)))
        eventually(lambda: not any(thread.is_alive() for thread in broker.threads))
        assert broker.closed == len(broker.lines) == number


def test_the_thread_ends_with_its_worker_and_not_with_another_apps(app, broker):
    received(app, **numbered(1))
    eventually(lambda: broker.counts() == [1])
    (thread,) = broker.threads
    worker_shutdown.send(sender=Consumer(Celery("other", broker="memory://", set_as_current=False), None))
    assert len(told_after(app, broker)) == 1
    assert thread.is_alive()
    worker_shutdown.send(sender=Consumer(app, None))
    eventually(lambda: not thread.is_alive())
    assert broker.closed == 1


def test_a_forked_process_begins_anew(app, broker, monkeypatch):
    """Nothing of the parent's is sent, closed or collected in the child."""
    received(app, **numbered(1))
    eventually(lambda: broker.counts() == [1])
    monkeypatch.setattr(beat_runs, "_inherited", [])
    parent = os.getpid()
    monkeypatch.setattr(beat_runs.os, "getpid", lambda: parent + 1)
    received(app, **numbered(2))
    eventually(lambda: broker.counts() == [1, 2])
    assert len(broker.lines) == 2
    assert broker.closed == 0
    (sender,) = beat_runs._inherited
    sender.leave()


@pytest.mark.guard_swallows
@pytest.mark.parametrize("broken", ["text", "events", "threads"])
def test_a_worker_does_not_notice_an_error_of_ours(app, broker, monkeypatch, broken):
    step = "beat probe: a run's descent"
    before = Guard.errors[step]
    if broken == "text":
        received(app, **run(text=7))
    elif broken == "events":
        received(app, SimpleNamespace(enabled=True), **run())
    else:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_more_threads)
            received(app, **numbered(1))
    assert Guard.errors[step] == before + 1
    assert len(told_after(app, broker)) == (broken == "threads")


def _no_more_threads(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_an_app_that_is_gone_is_not_kept_alive():
    app = Celery("gone", broker="memory://", set_as_current=False)
    beat_runs.connect(app)
    reference = weakref.ref(app)
    del app
    gc.collect()
    assert reference() is None
