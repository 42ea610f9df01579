"""The source's own decisions, with subscriptions that break on command (real brokers: tests/integration)."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.echo import Echo
from celeryscope.monitor.events import Decoder, Event, TaskEvent
from celeryscope.monitor.sources import ECHOES_LATE, ECHOES_LOST, FEED, Source
from helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = BrokerConfig.from_url("memory://unit", name="test")


def task(number: int) -> TaskEvent:
    return TaskEvent(type="task-started", hostname="celery@a", timestamp=1.0, uuid=str(number))


class Sink:
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.ticks: list[float] = []
        self.states: list[bool] = []

    def feed(self, events: list[Event], now: float) -> None:
        self.batches.append(events)

    def tick(self, now: float) -> None:
        self.ticks.append(now)

    def connection(self, up: bool, now: float) -> None:
        self.states.append(up)


class Wire:
    """A broker in a test's hands: what `pending` holds is delivered; an exception in `faults` is raised."""

    def __init__(self) -> None:
        self.pending: list[list[Event]] = []
        self.faults: list[Exception] = []
        self.refuse: Exception | None = None
        self.opened = self.closed = 0

    def subscribe(self, config: BrokerConfig, decoder: Decoder) -> Wire:
        if self.refuse:
            raise self.refuse
        self.opened += 1
        return self

    def take(self) -> list[Event]:
        if self.faults:
            raise self.faults.pop()
        if self.pending:
            return self.pending.pop(0)
        threading.Event().wait(0.01)
        return []

    def close(self) -> None:
        self.closed += 1
        raise OSError("closing fails as well")


@pytest.fixture(name="sink")
def _sink() -> Sink:
    return Sink()


@pytest.fixture(name="wire")
def _wire() -> Wire:
    return Wire()


@pytest.fixture(name="source")
def _source(sink: Sink, wire: Wire) -> Iterator[Source]:
    source = Source(CONFIG, sink, echo_every=3600, silent_after=3600, subscribe=wire.subscribe)
    yield source
    source.stop()


def test_events_reach_the_sink_in_order_and_in_small_batches(source: Source, sink: Sink, wire: Wire) -> None:
    """A message with thousands of events does not hold the sink's lock for long."""
    wire.pending.append([task(n) for n in range(3 * FEED + 1)])
    source.start()
    eventually(lambda: len(sink.batches) >= 4)
    assert [len(batch) for batch in sink.batches[:4]] == [FEED, FEED, FEED, 1]
    assert [event.uuid for batch in sink.batches for event in batch if isinstance(event, TaskEvent)] == [
        str(n) for n in range(3 * FEED + 1)
    ]


def test_it_ticks_while_nothing_comes_and_while_the_broker_is_away(source: Source, sink: Sink, wire: Wire) -> None:
    """Gauges and time-outs must go on without events."""
    wire.refuse = ConnectionError("away")
    source.start()
    eventually(lambda: len(sink.ticks) >= 2)
    assert not source.subscribed
    wire.refuse = None
    eventually(lambda: source.subscribed)
    seen = len(sink.ticks)
    eventually(lambda: len(sink.ticks) >= seen + 2)


def test_an_outage_is_logged_once_down_and_once_up(
    source: Source, sink: Sink, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """However many attempts fail in between; the line up tells the length, and the reconnect is counted."""
    with caplog.at_level(logging.WARNING):
        source.start()
        eventually(lambda: source.subscribed)
        wire.refuse = ConnectionError("still nobody there")
        wire.faults.append(ConnectionError("cut off"))
        eventually(lambda: not source.subscribed)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 1.5)
        wire.refuse = None
        eventually(lambda: source.subscribed)
    lines = [record.getMessage() for record in caplog.records if record.name == "celeryscope.sources"]
    assert len(lines) == 2
    assert lines[0] == "broker test (memory://unit): cut off; trying again until it answers"
    assert lines[1].startswith("broker test (memory://unit) is back after ")
    assert source.reconnects == 1
    assert sink.states == [True, False, True]
    assert wire.opened == 2
    assert wire.closed == 1


def test_an_echo_that_never_comes_back_is_an_error_and_not_silence(
    source: Source, sink: Sink, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """The subscription is made anew; the outage lasts, on one log line, until an echo arrives."""
    with caplog.at_level(logging.WARNING):
        source.start()
        eventually(lambda: source.subscribed)
        source._echo.unanswered = ECHOES_LOST
        eventually(lambda: wire.opened == 2)
        assert not source.subscribed
        assert not source.connected
        source._echo.unanswered = ECHOES_LOST
        eventually(lambda: wire.opened == 3)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "celeryscope.sources"]
        assert "own events do not come back" in line
        echo = source.decoder.decode(
            "celeryscope.echo",
            f'{{"type": "celeryscope-echo", "hostname": "h", "timestamp": {time.time() - 2}, "boot": "{source.boot}"}}',
        )
        wire.pending.append(echo)
        eventually(lambda: source.connected)
    assert source.subscribed
    assert source.echo_lag is not None
    assert 2 <= source.echo_lag < 30
    assert sink.states == [True, False, True]


def test_an_echo_is_late_and_not_lost_where_events_come(source: Source, wire: Wire) -> None:
    """A new subscription would lose all that is on its way; the lag says how late, and it does not last for ever."""
    wire.pending.append([task(0)])
    source.start()
    eventually(lambda: not wire.pending)
    source._echo.unanswered, source._echo.unanswered_since = ECHOES_LATE - 1, time.time() - 40
    wire.pending += [[], []]
    eventually(lambda: not wire.pending)  # it has looked at the echo since
    assert wire.opened == 1
    assert source.subscribed
    assert 40 <= (source.lag or 0) < 70
    source._echo.unanswered = ECHOES_LATE
    eventually(lambda: wire.opened == 2)


@pytest.mark.guard_swallows
def test_a_sink_that_raises_does_not_stop_ingestion(source: Source, sink: Sink, wire: Wire) -> None:
    """A bug in one batch costs that batch."""
    feed = sink.feed

    def broken(events: list[Event], now: float) -> None:
        if events[0] == task(0):
            raise ZeroDivisionError
        feed(events, now)

    sink.feed = broken  # type: ignore[method-assign]
    wire.pending += [[task(0)], [task(1)]]
    source.start()
    eventually(lambda: sink.batches == [[task(1)]])
    assert sink.states == [True]


def test_stop_ends_the_threads_also_while_the_broker_is_away(source: Source, wire: Wire) -> None:
    """Waiting for the next attempt must not hold up the exit; after stop nothing is fed."""
    wire.refuse = ConnectionError("away")
    source.start()
    eventually(lambda: source._down_since is not None)
    source.stop()
    eventually(lambda: not any(thread.is_alive() for thread in source._threads), timeout=5)
    assert wire.opened == 0


def test_silence_is_one_warning(sink: Sink, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """It names the broker and what may be wrong."""
    source = Source(CONFIG, sink, echo_every=3600, silent_after=0.1, subscribe=wire.subscribe)
    try:
        with caplog.at_level(logging.WARNING):
            source.start()
            eventually(lambda: caplog.records)
            ticks = len(sink.ticks)
            eventually(lambda: len(sink.ticks) >= ticks + 3)
    finally:
        source.stop()
    (record,) = caplog.records
    assert record.getMessage().startswith("broker test (memory://unit): no event of any worker within")


def test_a_publish_that_keeps_failing_is_said_once() -> None:
    """Two failures may be the start of an outage; the third in a row is a fault of its own, until it works again."""
    echo = Echo(BrokerConfig.from_url("memory://"), "boot", time.time)
    connect = echo.config.connection
    echo.config = dataclasses.replace(echo.config, url="foo://host")
    said = []
    for _ in range(6):
        echo._turn()
        said.append(echo.complaint())
    assert [bool(text) for text in said] == [False, False, True, False, False, False]
    assert "cannot publish the monitor's own event" in str(said[2])
    assert echo.unanswered == 0
    echo._connection = connect()
    echo._turn()
    assert echo.complaint() is None
    assert (echo.failing, echo.unanswered) == (None, 1)
    echo._disconnect()
    said = [(echo._turn(), echo.complaint())[1] for _ in range(3)]
    assert [bool(text) for text in said] == [False, False, True]
