"""The alerter between a real broker and a Slack that misbehaves over HTTP: nothing lost, nothing said twice."""

from __future__ import annotations

import itertools
import json
import signal
from collections import Counter

import pytest
import redis
from alerting import alerter_process, batch, entry, publish, quick_alerter, task_of, told
from celeryscope.alerts.consumer import REJECTED_QUEUE
from celeryscope.demo.inbox import DOWN, LOST_ANSWER, Inbox
from helpers import eventually, running

KINDS = 30


@pytest.fixture(name="inbox")
def _inbox():
    with Inbox(["general", "payments", "ops"]).serving() as inbox:
        yield inbox


def storm(rounds: int) -> list[bytes]:
    """So many failures of each of 30 kinds, as workers would send them: few messages, each about many kinds."""
    return [
        batch(*(entry(f"f{kind}", count=rounds // 4, task=f"shop.task{kind}") for kind in range(KINDS)))
        for _ in range(4)
    ]


def empty(url: str) -> bool:
    """Whether the outbox is empty and nothing of it is unacknowledged."""
    with redis.Redis.from_url(url) as client:
        return client.llen("celeryscope.failures") == 0 and client.hlen("celeryscope.unacked") == 0


def one_in(every: int):
    """A Slack that accepts calls and loses the answer, for one chat call in so many."""
    numbers = itertools.count(1)
    return lambda method: LOST_ANSWER if method.startswith("chat.") and next(numbers) % every == 0 else None


def test_every_failure_is_told_once_whatever_slack_and_the_alerter_go_through(valkey, inbox, tmp_path):
    """3 000 failures of 30 kinds; Slack down, then slow, then losing answers; the alerter killed twice."""
    inbox.script = lambda _method: DOWN
    with running(quick_alerter(tmp_path, valkey.url, inbox)) as first:
        publish(valkey.url, storm(40))
        eventually(lambda: empty(valkey.url) and inbox.refused["503"])
        first.send(signal.SIGKILL)
        first.popen.wait(5)
    publish(valkey.url, storm(40))
    with running(quick_alerter(tmp_path, valkey.url, inbox, name="second")) as second:
        inbox.per_second = 8
        inbox.script = lambda _method: None
        eventually(lambda: len(inbox.top()) >= 5, 40)
        inbox.script = one_in(4)
        eventually(lambda: len(inbox.top()) >= 12, 40)
        second.send(signal.SIGKILL)
        second.popen.wait(5)
    publish(valkey.url, storm(20))
    with running(quick_alerter(tmp_path, valkey.url, inbox, name="third")):
        eventually(lambda: len(inbox.top()) >= 25, 60)
        inbox.script = lambda _method: None

        def complete() -> bool:
            messages = inbox.top()
            assert Counter(map(task_of, messages)) == Counter({f"shop.task{kind}": 1 for kind in range(KINDS)})
            assert Counter(map(told, messages)) == {100: KINDS}
            return True

        eventually(complete, 60)
    assert sum(inbox.accepted.values()) < 150


def test_two_alerters_share_a_store_and_one_dies(valkey, inbox, tmp_path):
    """Each failure is counted once and told once, also of those that the dead one held unacknowledged or leased."""
    inbox.per_second = 10
    inbox.script = one_in(5)
    with (
        running(quick_alerter(tmp_path, valkey.url, inbox, name="one")) as one,
        running(quick_alerter(tmp_path, valkey.url, inbox, name="two")),
    ):
        publish(valkey.url, storm(40))
        eventually(lambda: len(inbox.top()) >= 5, 40)
        one.send(signal.SIGKILL)
        publish(valkey.url, storm(60))
        eventually(lambda: len(inbox.top()) >= 28, 60)
        inbox.script = lambda _method: None
        eventually(lambda: len(inbox.top()) == KINDS and {told(m) for m in inbox.top()} == {100}, 60)
        assert len({task_of(message) for message in inbox.top()}) == KINDS


def test_unreadable_messages_are_set_aside_and_the_rest_is_told(valkey, inbox, tmp_path):
    """Not JSON, another version, 50 MB, and something that is no message at all: counted, kept, and in nobody's way."""
    huge = b'{"v": 1, "id": "x", "entries": [], "pad": "' + b"x" * 50_000_000 + b'"}'
    with redis.Redis.from_url(valkey.url) as client, running(alerter_process(tmp_path, valkey.url, inbox)) as alerter:
        publish(valkey.url, [b"\xff not json", batch().replace(b'"v":1', b'"v":9'), huge, b'{"v": 1, "id": 7}'])
        client.lpush("celeryscope.failures", "no message")
        publish(valkey.url, [batch(entry())])
        eventually(lambda: len(inbox.top()) == 1, 60)
        kept = [
            json.loads(json.loads(raw)["body"]) if False else json.loads(raw)
            for raw in client.lrange(REJECTED_QUEUE, 0, -1)
        ]
        assert len(kept) == 4
        assert "50000045 bytes" in alerter.output or "size:" in alerter.output
        assert client.hlen("celeryscope.unacked") == 0
