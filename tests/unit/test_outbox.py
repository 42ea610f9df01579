"""The outbox: bounded, never in the way, and nothing lost that was counted, whatever the broker does."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.alerts import failure
from celeryscope.alerts.failure import BATCH_ENTRIES, OTHER, Failure
from celeryscope.alerts.outbox import KINDS, Outbox, Pending, UnsupportedError
from celeryscope.alerts.publisher import outbox_queue
from helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


def sample(message: str = "no", **fields: Any) -> Failure:
    return Failure(failure.FAILURE, "shop.charge", "ValueError", message, **fields)


class Broker:
    """Takes messages, or misbehaves as `trouble` says."""

    def __init__(self, trouble: Callable[[bytes, str], None] = lambda body, message_id: None) -> None:
        self.trouble = trouble
        self.bodies: list[bytes] = []
        self.tries: list[str] = []
        self.opened = self.closed = 0
        self.dropped = 0

    def connect(self) -> Broker:
        self.opened += 1
        return self

    def publish(self, body: bytes, message_id: str) -> int:
        self.tries.append(message_id)
        self.trouble(body, message_id)
        self.bodies.append(body)
        return self.dropped

    def close(self) -> None:
        self.closed += 1

    @property
    def batches(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    def counted(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for batch in self.batches:
            for entry in batch["entries"]:
                found[entry["fingerprint"]] += entry["count"]
        return found


def outbox_on(broker: Broker, **options: Any) -> Outbox:
    return Outbox(broker.connect, **{"host": lambda: "w@h", "finish": lambda sample: sample, "window": 0.01, **options})


def test_failures_of_one_kind_are_one_entry() -> None:
    """100 000 failures cost one entry and one sample."""
    made = 0

    def make() -> Failure:
        nonlocal made
        made += 1
        return sample()

    pending = Pending()
    for number in range(100_000):
        pending.add("f", float(number), make)
    (entry,) = pending.take()
    assert (entry.count, entry.first, entry.last, made) == (100_000, 0.0, 99_999.0, 1)
    assert len(pending) == 0


def test_too_many_kinds_are_counted_together() -> None:
    """No failure is lost from the count when there is no room for its kind."""
    pending = Pending()
    for number in range(KINDS + 500):
        pending.add(f"f{number}", 1.0, sample)
    assert len(pending) == KINDS + 1
    entries = []
    while taken := pending.take():
        assert len(taken) <= BATCH_ENTRIES
        entries += taken
    assert sum(entry.count for entry in entries) == KINDS + 500
    assert entries[-1].sample.task == OTHER
    assert entries[-1].count == 500


def test_a_message_is_bounded_in_size() -> None:
    """100 entries with long tracebacks are several messages."""
    pending = Pending()
    for number in range(BATCH_ENTRIES):
        pending.add(f"f{number}", 1.0, lambda: sample(traceback="x" * 4_000))
    assert 1 < len(pending.take()) < BATCH_ENTRIES


def test_what_is_added_arrives() -> None:
    broker = Broker()
    outbox = outbox_on(broker, clock=lambda: 7.0)
    for number in range(300):
        outbox.add(f"f{number % 3}", float(number), sample)
    assert outbox.flush(30)
    assert broker.counted() == {"f0": 100, "f1": 100, "f2": 100}
    assert {batch["host"] for batch in broker.batches} == {"w@h"}
    assert broker.batches[0]["sent"] == 7.0


def test_samples_are_slim_for_a_minute() -> None:
    """A storm does not repeat its traceback five times a second; after a minute it is told again."""
    now = [1000.0]
    broker = Broker()
    outbox = outbox_on(broker, clock=lambda: now[0])
    for moment in (1000.0, 1010.0, 1070.0):
        now[0] = moment
        outbox.add("f", moment, lambda: sample("m" * 300, traceback="tb", args={"a": "1"}))
        assert outbox.flush(30)
    first, second, third = [batch["entries"][0]["sample"] for batch in broker.batches]
    assert (first["traceback"], first["args"], len(first["message"])) == ("tb", {"a": "1"}, 300)
    assert ("traceback" in second, "args" in second, len(second["message"])) == (False, False, 200)
    assert third["traceback"] == "tb"


def test_an_outage_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The same message is sent until it is taken, under the same id; one log line down, one up."""
    caplog.set_level(logging.INFO, "celeryscope")
    down = [True]

    def trouble(body: bytes, message_id: str) -> None:
        if down[0]:
            raise ConnectionError("redis://:hunter2@host refused")

    broker = Broker(trouble)
    outbox = outbox_on(broker)
    outbox.add("f", 1.0, sample)
    eventually(lambda: len(broker.tries) > 1)
    for _ in range(1_000):
        outbox.add("g", 2.0, sample)
    assert not outbox.flush(0.2)
    down[0] = False
    assert outbox.flush(30)
    assert broker.counted() == {"f": 1, "g": 1_000}
    assert len(set(broker.tries)) == 2
    assert len(broker.bodies) == 2
    assert broker.closed >= 1
    assert caplog.text.count("failures wait") == 1
    assert caplog.text.count("failures flow again") == 1
    assert "hunter2" not in caplog.text


def test_a_copy_sent_in_doubt_has_the_same_id() -> None:
    """Where the broker took a message and the answer was lost, the alerter can tell."""
    lose = [True]
    broker = Broker()

    def trouble(body: bytes, message_id: str) -> None:
        if lose[0]:
            lose[0] = False
            broker.bodies.append(body)
            raise TimeoutError

    broker.trouble = trouble
    outbox = outbox_on(broker)
    outbox.add("f", 1.0, sample)
    assert outbox.flush(30)
    assert len(broker.bodies) == 2
    assert broker.bodies[0] == broker.bodies[1]


def test_a_broker_that_hangs_blocks_nobody() -> None:
    """While `publish` hangs, `add` returns and `flush` gives up at its deadline."""
    release = threading.Event()
    broker = Broker(lambda body, message_id: release.wait(60) and None)
    outbox = outbox_on(broker)
    outbox.add("f", 1.0, sample)
    eventually(lambda: broker.tries)
    for number in range(5_000):
        outbox.add(f"f{number}", 1.0, sample)
    assert outbox.flush(0.1) is False
    release.set()
    assert outbox.flush(30) is True
    assert sum(broker.counted().values()) == 5_001


def test_the_thread_may_run_before_its_start_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a greenlet does: started with the lock held, it hung a process that gevent had patched after `install`."""
    broker = Broker()

    class Greenlet(threading.Thread):
        def start(self) -> None:
            super().start()
            eventually(lambda: broker.bodies)

    monkeypatch.setattr(threading, "Thread", Greenlet)
    outbox = outbox_on(broker)
    outbox.add("f", 1.0, sample)
    assert outbox.flush(30)
    assert broker.counted() == {"f": 1}


def test_where_no_thread_can_be_started_the_next_failure_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMore(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    broker = Broker()
    outbox = outbox_on(broker)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoMore)
        with pytest.raises(RuntimeError):
            outbox.add("f", 1.0, sample)
    outbox.add("f", 1.0, sample)
    assert outbox.flush(30)
    assert broker.counted() == {"f": 2}


def test_dropped_messages_are_told_with_the_next() -> None:
    broker = Broker()
    broker.dropped = 3
    outbox = outbox_on(broker)
    for mark in ("f", "g", "h"):
        outbox.add(mark, 1.0, sample)
        assert outbox.flush(30)
    assert [batch["dropped"] for batch in broker.batches] == [0, 3, 3]


def test_a_broker_without_such_queues_switches_it_off(caplog: pytest.LogCaptureFixture) -> None:
    """One log line with the reason, and nothing is kept."""

    def trouble(body: bytes, message_id: str) -> None:
        raise UnsupportedError("no such queue")

    broker = Broker(trouble)
    outbox = outbox_on(broker)
    outbox.add("f", 1.0, sample)
    assert outbox.flush(30)
    outbox.add("g", 1.0, sample)
    assert outbox.flush(30)
    assert len(broker.tries) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "celeryscope: failures are not reported: no such queue"
    ]


def test_what_cannot_be_redacted_is_withheld() -> None:
    """The failure is told; its words are not."""

    def finish(sample: Failure) -> Failure:
        raise ZeroDivisionError

    broker = Broker()
    outbox = outbox_on(broker, finish=finish)
    outbox.add("f", 1.0, lambda: sample("password=hunter2", traceback="hunter2", args={"a": "hunter2"}))
    assert outbox.flush(30)
    assert b"hunter2" not in broker.bodies[0]
    assert broker.counted() == {"f": 1}


def test_redaction_runs_before_publishing() -> None:
    broker = Broker()
    outbox = outbox_on(broker, finish=lambda sample: replace(sample, message="redacted"))
    outbox.add("f", 1.0, sample)
    assert outbox.flush(30)
    assert broker.batches[0]["entries"][0]["sample"]["message"] == "redacted"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # a worker's children are forked so, too
def test_a_forked_child_starts_empty() -> None:
    """A lock held elsewhere, a half-sent message, the parent's connection: nothing of it reaches the child."""
    release = threading.Event()
    broker = Broker(lambda body, message_id: release.wait(60) and None)
    outbox = outbox_on(broker)
    outbox.add("parents", 1.0, sample)
    eventually(lambda: broker.tries)
    reader, writer = os.pipe()
    with outbox._changed:  # as if another thread were inside
        child = os.fork()
        if child == 0:
            broker.trouble = lambda body, message_id: None
            outbox.add("childs", 1.0, sample)
            told = outbox.flush(30) and broker.counted() == {"childs": 1} and broker.closed == 0
            os.write(writer, b"yes" if told else repr(broker.bodies).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"yes"
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    assert outbox.flush(30)
    assert broker.counted() == {"parents": 1}


def test_the_queue_is_capped_and_expires() -> None:
    """Without an alerter it cannot fill the user's broker."""
    queue = outbox_queue()
    assert (queue.name, queue.exchange.name, queue.routing_key) == (failure.QUEUE, "", failure.QUEUE)
    assert queue.durable
    assert queue.queue_arguments == {
        "x-max-length": 10_000,
        "x-max-length-bytes": 64 * 2**20,
        "x-overflow": "drop-head",
        "x-message-ttl": 7 * 86_400 * 1000,
        "x-expires": 7 * 86_400 * 1000,
    }
