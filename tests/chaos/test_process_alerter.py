"""The alerter killed with SIGKILL: between Slack's acceptance and its own commit, and at random under a stream."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from alerting import batch, entry, publish, quick_alerter, told
from celeryscope.demo.inbox import LOST_ANSWER, Fault, Inbox
from chaos_process_tools import Stream, stored
from helpers import Process, RedisServer, eventually, running
from ordeal import empty, kill


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Inbox]:
    with Inbox(["general"]).serving() as inbox:
        yield inbox


def killed_once_accepted(inbox: Inbox, processes: list[Process]) -> None:
    """Let Slack accept the next message, and let its answer find nobody."""

    def script(method: str) -> Fault | None:
        if method != "chat.postMessage" or not processes:
            return None
        kill(processes.pop())  # before the call is carried out: nothing of the answer can arrive
        return LOST_ANSWER

    inbox.script = script


@pytest.mark.parametrize("history", [True, False])
def test_killed_between_slacks_acceptance_and_its_own_commit(
    history: bool, valkey: RedisServer, inbox: Inbox, tmp_path: Path
) -> None:
    """With the history scope the message is adopted and stays the only one; without, it comes twice and that is said.

    Either way no failure is lost and none counted twice.
    """
    if not history:
        inbox.scopes = "chat:write,channels:read"
    deaths: list[Process] = []
    killed_once_accepted(inbox, deaths)
    with running(quick_alerter(tmp_path, valkey.url, inbox, name="first")) as first:
        deaths.append(first)
        publish(valkey.url, [batch(entry(count=3))])
        eventually(lambda: not first.running() and inbox.top())
    assert inbox.accepted["chat.postMessage"] == 1
    with running(quick_alerter(tmp_path, valkey.url, inbox, name="second")) as second:
        eventually(lambda: len(inbox.top()) == (1 if history else 2))
        publish(valkey.url, [batch(entry(count=4))])
        eventually(lambda: told(inbox.top()[-1]) == 7, 40)
        assert ("a message may be posted twice" in second.output) == (not history)
    assert inbox.accepted["chat.postMessage"] == len(inbox.top()) == (1 if history else 2)
    assert stored(f"sqlite:///{tmp_path}/incidents.db") == {"f1": 7}


def overdue(url: str) -> None:
    """Let the minute pass after which messages that a dead alerter held are given to the next one."""
    with redis.Redis.from_url(url) as client:
        for tag in client.zrange("celeryscope.unacked_index", 0, -1):
            client.zadd("celeryscope.unacked_index", {tag: 1}, xx=True)


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.soak)])
def test_killed_at_random_under_a_stream_it_counts_each_failure_once(
    kills: int, valkey: RedisServer, inbox: Inbox, tmp_path: Path
) -> None:
    """The store and what people see hold exactly what was published, of every kind, in one message each."""
    dice = random.Random(kills)
    stream = Stream(valkey.url, kinds=10)
    with stream.flowing():
        for number in range(kills):
            with running(quick_alerter(tmp_path, valkey.url, inbox, name=f"life-{number}")) as process:
                time.sleep(dice.uniform(0.0, 1.0))  # the moment is random: there is nothing to wait for
                kill(process)
            assert "Traceback" not in process.output
            overdue(valkey.url)
    with running(quick_alerter(tmp_path, valkey.url, inbox, name="last")) as last:
        eventually(lambda: empty(valkey.url), 60)
        eventually(lambda: stream.told_once(inbox), 60)
        assert "Traceback" not in last.output
    assert stored(f"sqlite:///{tmp_path}/incidents.db") == stream.made
