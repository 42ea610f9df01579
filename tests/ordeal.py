"""What the alerter must come through with every failure told once: Slack in all its moods, and two sudden deaths."""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from alerting import quick_alerter, task_of, told
from celeryscope.demo.inbox import DOWN, LOST_ANSWER, Fault, Inbox
from helpers import Process, eventually, running

KINDS = 30
MOST_CALLS = 150


def one_in(every: int) -> Callable[[str], Fault | None]:
    """A Slack that accepts calls and loses the answer, for one chat call in so many."""
    numbers = itertools.count(1)
    return lambda method: LOST_ANSWER if method.startswith("chat.") and next(numbers) % every == 0 else None


def empty(url: str) -> bool:
    """Whether the outbox is empty and nothing of it is unacknowledged."""
    with redis.Redis.from_url(url) as client:
        return client.llen("celeryscope.failures") == 0 and client.hlen("celeryscope.unacked") == 0


def kill(process: Process) -> None:
    process.send(signal.SIGKILL)
    process.popen.wait(5)


def kill_holding_messages(process: Process, url: str) -> None:
    """Kill an alerter at a moment when it has taken messages off the queue and not acknowledged them."""

    def caught() -> bool:
        process.send(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if client.hlen("celeryscope.unacked"):
            return True
        process.send(signal.SIGCONT)
        return False

    with redis.Redis.from_url(url) as client:
        with suppress(ChildProcessError):
            eventually(caught, 60, interval=0.003)
        assert client.hlen("celeryscope.unacked")
    kill(process)


@dataclass
class Ordeal:
    """`fail` makes so many failures of each kind, of tasks named `prefix` and a number.

    Where failures take time, `at_work` tells whether some are still to come; then alerters are killed while they hold
    messages, which come back a minute later.
    """

    folder: Path
    url: str
    inbox: Inbox
    fail: Callable[[int], None]
    prefix: str
    calls_a_second: float
    update: float = 2.0
    at_work: Callable[[], bool] | None = None
    patience: float = 60.0

    def run(self, rounds: int) -> None:
        """Make `rounds` failures of each kind, two fifths of them before each death and one after; check the end."""
        inbox, part = self.inbox, rounds // 5
        inbox.script = lambda _method: DOWN
        with running(self._alerter("first")) as first:
            self.fail(2 * part)
            if self.at_work:
                kill_holding_messages(first, self.url)
            else:
                eventually(lambda: empty(self.url) and inbox.refused["503"])
                kill(first)
        self.fail(2 * part)
        with running(self._alerter("second")) as second:
            eventually(lambda: inbox.refused["503"] and not (self.at_work and self.at_work()), self.patience)
            inbox.per_second = self.calls_a_second
            inbox.script = lambda _method: None
            eventually(lambda: len(inbox.top()) >= 5, self.patience)
            inbox.script = one_in(6)
            eventually(lambda: len(inbox.top()) >= 12, self.patience)
            if self.at_work:
                self.fail(part)
                kill_holding_messages(second, self.url)
            else:
                kill(second)
                self.fail(part)
        with running(self._alerter("third")):
            eventually(lambda: len(inbox.top()) >= 25, self.patience)
            if not self.at_work:
                inbox.script = lambda _method: None
            eventually(lambda: self._complete(5 * part), 2 * self.patience)
        assert empty(self.url)
        assert inbox.refused["503"]
        calls = sum(inbox.accepted.values())
        print(f"{5 * part * KINDS:,} failures, {len(inbox.top())} messages, {calls} calls {dict(inbox.accepted)}")
        assert calls < MOST_CALLS

    def _alerter(self, name: str) -> Process:
        return quick_alerter(self.folder, self.url, self.inbox, name=name, update=self.update)

    def _complete(self, count: int) -> bool:
        messages = self.inbox.top()
        assert Counter(map(task_of, messages)) == Counter({f"{self.prefix}{kind}": 1 for kind in range(KINDS)})
        assert Counter(map(told, messages)) == {count: KINDS}
        return True
