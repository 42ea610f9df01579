"""The sender's thread: in order, late rather than never, bounded, and never in beat's way."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

import pytest
import redis
from celery import Celery
from celeryscope.monitor import beat_sender
from celeryscope.monitor.beat_sender import Line, Sender, UnsupportedError
from helpers import eventually
from kombu.exceptions import EncodeError


class FakeLine:
    """A broker that can refuse, hang, and remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.opened = self.closed = 0
        self.refuses = False
        self.free = threading.Event()
        self.free.set()

    def open(self) -> Any:
        if self.refuses:
            raise ConnectionRefusedError("redis://:hunter2@broker refused")
        self.opened += 1
        return self

    def send(self, kind: str, fields: dict[str, Any]) -> None:
        self.free.wait(30)
        if self.refuses:
            raise ConnectionResetError("reset")
        self.sent.append((kind, fields))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(name="line")
def _line(monkeypatch):
    monkeypatch.setattr(beat_sender, "RETRY", (0.01, 0.05))
    monkeypatch.setattr(beat_sender, "WAKE", 0.05)
    return FakeLine()


@pytest.fixture(name="make")
def _make(line):
    made: list[Sender] = []

    def make(poll: Any = lambda: iter(()), **options: Any) -> Sender:
        made.append(Sender(line.open, poll, **options))
        made[-1].start()
        return made[-1]

    yield make
    line.free.set()
    for sender in made:
        sender.close()
        eventually(lambda sender=sender: not sender._thread.is_alive())


def numbers(line: FakeLine) -> list[int]:
    return [fields["n"] for _, fields in line.sent]


def report(number: int) -> Any:
    return lambda: ("beat-dispatched", {"n": number})


def test_reports_are_sent_in_order(line, make):
    sender = make()
    for number in range(100):
        sender.put(report(number))
    eventually(lambda: numbers(line) == list(range(100)))


def test_what_cannot_be_serialized_is_dropped_and_holds_up_nothing(line, make, caplog):
    """A serializer of the user's own choice may refuse a value, and would refuse it each time."""
    sender = make()
    plain = line.send

    def picky(kind: str, fields: dict[str, Any]) -> None:
        if fields["n"] == 1:
            raise EncodeError("hunter2 cannot be written")
        plain(kind, fields)

    line.send = picky
    for number in range(3):
        sender.put(report(number))
    eventually(lambda: numbers(line) == [0, 2])
    assert (sender.dropped, line.opened, line.closed) == (1, 1, 0)
    assert "hunter2" not in caplog.text


def test_what_a_broken_broker_did_not_take_is_sent_later(line, make):
    sender = make()
    eventually(lambda: line.opened == 1)
    line.refuses = True
    for number in range(5):
        sender.put(report(number))
    eventually(lambda: line.closed >= 1)
    line.refuses = False
    eventually(lambda: numbers(line) == list(range(5)))
    assert sender.dropped == 0


def test_an_outage_is_told_without_what_the_client_says_of_it(line, make, caplog):
    """A client's error may hold the broker's address with its password."""
    line.refuses = True
    with caplog.at_level("DEBUG"):
        make().put(report(1))
        eventually(lambda: "beat events wait for the broker: builtins.ConnectionRefusedError" in caplog.text)
    assert "hunter2" not in caplog.text


def test_a_hanging_broker_holds_up_neither_put_nor_close(line, make, monkeypatch):
    monkeypatch.setattr(beat_sender, "FAREWELL", 0.2)
    sender = make(backlog=10)
    eventually(lambda: line.opened == 1)
    line.free.clear()
    for number in range(1000):
        sender.put(report(number))
    assert sender.dropped >= 980
    sender.close()
    assert sender._thread.is_alive()
    assert sender._thread.daemon


def test_a_long_outage_keeps_the_newest_and_counts_the_rest(line, make):
    line.refuses = True
    sender = make(backlog=10)
    for number in range(50):
        sender.put(report(number))
        eventually(lambda: sender._queue.empty())
    line.refuses = False
    eventually(lambda: len(line.sent) == 10)
    assert numbers(line) == list(range(40, 50))
    assert sender.dropped == 40


def test_the_last_word_is_sent_at_close_and_only_once(line, make):
    words = ["beat-heartbeat", "beat-offline"]
    ending = threading.Event()

    def poll() -> Any:
        while words and ending.is_set():
            yield words.pop(0), {"n": 0}

    sender = make(poll)
    eventually(lambda: sender._line is not None)
    line.free.clear()
    sender.put(report(7))
    ending.set()
    line.free.set()
    sender.close()
    sender.close()
    sender.put(report(8))
    eventually(lambda: line.closed == 1)
    assert [kind for kind, _ in line.sent] == ["beat-dispatched", "beat-heartbeat", "beat-offline"]


@pytest.mark.guard_swallows
def test_a_report_that_cannot_be_made_does_not_stop_the_others(line, make):
    sender = make()
    sender.put(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    sender.put(report(1))
    eventually(lambda: numbers(line) == [1])


def test_poll_is_not_asked_without_a_connection(line, make):
    asked: list[int] = []

    def poll() -> Any:
        asked.append(1)
        return iter(())

    line.refuses = True
    sender = make(poll)
    eventually(lambda: sender._failures >= 3)
    assert not asked
    line.refuses = False
    eventually(lambda: bool(asked))


def test_a_broker_without_fanout_ends_the_thread(line, make):
    def unsupported() -> Any:
        raise UnsupportedError("sqs")

    line.open = unsupported
    sender = make()
    eventually(lambda: not sender._thread.is_alive())
    sender.put(report(1))
    assert sender._queue.empty()


def test_a_line_gives_up_soon_and_leaves_the_users_options_alone(valkey):
    options = {"visibility_timeout": 77, "socket_timeout": 3}
    app = Celery("line", broker=valkey.url, set_as_current=False)
    app.conf.broker_transport_options = dict(options)
    line = Line(app, "line@here")
    try:
        line.send("beat-online", {"app": "line"})
        assert line._connection.transport_options["socket_connect_timeout"] == 5.0
        assert line._connection.transport_options["socket_timeout"] == 3
        assert app.conf.broker_transport_options == options
    finally:
        line.close()
        line.close()


def test_a_line_sends_fields_of_any_name_and_leaves_the_apps_clock_alone(valkey, monkeypatch):
    """The clock's lock is one that the app's pool children take: they may be forked while it is held."""
    app = Celery("line", broker=valkey.url, set_as_current=False)
    monkeypatch.setattr(app.clock, "forward", None)
    fields = {"app": "line", "kind": "interval", "name": "two", "event": 1}
    with redis.Redis.from_url(valkey.url) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("*celeryev*")
        eventually(lambda: pubsub.get_message(timeout=1))
        line = Line(app, "line@here")
        line.send("beat-dispatched", fields)
        message = eventually(lambda: pubsub.get_message(timeout=1))
        line.close()
    body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    assert body.items() >= {**fields, "type": "beat-dispatched", "hostname": "line@here"}.items()
    assert body["timestamp"] > 1e9
    assert "clock" not in body


def test_a_transport_without_fanout_is_refused_at_once(monkeypatch):
    app = Celery("nofan", broker="memory://", set_as_current=False)
    monkeypatch.setattr("kombu.connection.Connection.supports_exchange_type", lambda self, kind: kind == "direct")
    with pytest.raises(UnsupportedError):
        Line(app, "x@y")
