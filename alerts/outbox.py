"""Carries failures from the hook to the broker: bounded memory, one daemon thread, and never a wait for the host.

The hook only counts in memory. A thread, started by the first failure and gone after a minute without one, publishes
what was counted as one message per window. While the broker is away, it retries the same message with capped backoff
and failures go on being counted by fingerprint, so that an outage costs neither memory nor numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import uuid
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..monitor.guard import Guard
from .failure import BATCH_ENTRIES, OTHER, Entry, Failure, encode_batch, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("celeryscope")

WINDOW = 0.2
"""Seconds between the first failure and the message that tells of it."""
KINDS = 1_000
"""Fingerprints kept in memory; failures of further ones are counted together, as `failure.OTHER`."""
BATCH_CHARACTERS = 100_000
FULL_EVERY = 60.0
"""Seconds between two samples of one fingerprint with their traceback; those between are slim."""
SLIM_MESSAGE = 200
IDLE = 60.0
FLUSH = 2.0
"""Seconds that ending a worker may wait for the last failures to leave it."""
BACKOFF = (0.2, 30.0)


class UnsupportedError(Exception):
    """The broker cannot have this queue: reporting is off, with one log line."""


class Publisher(Protocol):
    """Where messages go."""

    def publish(self, body: bytes, message_id: str) -> int:
        """Send one message; return how many old ones were dropped to make room. May block for seconds, may raise."""

    def close(self) -> None:
        """Drop the connection; the next `publish` opens one."""


class Pending:
    """Failures waiting to be sent, counted by fingerprint: its size depends on their kinds and not on their number."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, mark: str, now: float, make: Callable[[], Failure]) -> None:
        """Count a failure of fingerprint `mark`; its sample is made only where it is the first."""
        entry = self._entries.get(mark)
        if entry is None and len(self._entries) >= KINDS:
            mark, make = _OTHER_MARK, _other
            entry = self._entries.get(mark)
        if entry is None:
            self._entries[mark] = Entry(mark, 1, now, now, make())
            return
        entry.count += 1
        entry.last = max(entry.last, now)

    def take(self) -> list[Entry]:
        """Remove and return what fits into one message, oldest first."""
        taken: list[Entry] = []
        size = 0
        for mark in list(self._entries)[:BATCH_ENTRIES]:
            size += _size(self._entries[mark].sample)
            if taken and size > BATCH_CHARACTERS:
                break
            taken.append(self._entries.pop(mark))
        return taken


_OTHER_MARK = fingerprint("failure", OTHER, OTHER, None, "")


def _other() -> Failure:
    return Failure(
        "failure", OTHER, OTHER, f"over {KINDS} kinds of failure were waiting to be sent: this stands for the rest"
    )


def _size(sample: Failure) -> int:
    texts = (sample.message, sample.traceback or "", *sample.args.values(), *sample.kwargs.values())
    return 600 + sum(map(len, texts))


class Outbox:
    """Takes failures at once and sends them soon.

    `connect` makes a `Publisher`, on the sending thread. `finish` redacts a sample, there too, so that the hook itself
    stays cheap. After a fork the child starts empty, with nothing of the parent's.
    """

    def __init__(
        self,
        connect: Callable[[], Publisher],
        *,
        host: Callable[[], str],
        finish: Callable[[Failure], Failure],
        clock: Callable[[], float] = time.time,
        window: float = WINDOW,
    ) -> None:
        self._connect, self._host, self._finish = connect, host, finish
        self._clock, self._window = clock, window
        self.dropped = 0
        self.off = False
        self._publisher: Publisher | None = None
        self._reset()
        _outlive_forks(self)

    def _reset(self) -> None:
        # A lock held by another thread during a fork stays locked in the child: everything is made anew.
        self._changed = threading.Condition(threading.Lock())
        self._hurry = threading.Event()
        self._pending = Pending()
        self._thread: threading.Thread | None = None
        self._sending = False
        self._full: dict[str, float] = {}

    def after_fork_in_child(self) -> None:
        """Forget the parent's failures, thread and connection, without closing what the parent still uses."""
        if self._publisher is not None:
            _inherited.append(self._publisher)  # collecting it would shut the parent's socket down (py-amqp)
            self._publisher = None
        self._reset()

    def add(self, mark: str, now: float, make: Callable[[], Failure]) -> None:
        """Count one failure; `make` builds its sample and is called only for the first of its fingerprint."""
        if self.off:
            return
        fresh: threading.Thread | None = None
        with self._changed:
            self._pending.add(mark, now, make)
            if self._thread is None:
                fresh = self._thread = threading.Thread(target=self._run, name="celeryscope-outbox", daemon=True)
            self._changed.notify_all()
        if fresh is not None:
            self._start(fresh)

    def _start(self, thread: threading.Thread) -> None:
        # Not with the lock held: under gevent `start` runs the thread's beginning at once, which takes the lock, and
        # where the patches came after us the lock is a real one, which would hang the whole process.
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:  # the process may have no more threads: the next failure tries again
                self._thread = None
            raise

    def flush(self, timeout: float = FLUSH) -> bool:
        """Send what is there now; wait for it at most `timeout` seconds, and tell whether everything left."""
        self._hurry.set()
        try:
            with self._changed:
                return self._changed.wait_for(self._empty, timeout)
        finally:
            self._hurry.clear()

    def _empty(self) -> bool:
        return self.off or not (self._sending or len(self._pending))

    # Below: on the sending thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: len(self._pending) > 0, IDLE) or self.off:
                    self._thread = None
                    break
            self._hurry.wait(self._window)
            with Guard("failure outbox"):
                self._send_pending()
        self._close()

    def _send_pending(self) -> None:
        while True:
            with self._changed:
                entries = self._pending.take()
                self._sending = bool(entries)
                self._changed.notify_all()
            if not entries:
                return
            try:
                self._send(entries)
            finally:
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()

    def _send(self, entries: list[Entry]) -> None:
        message_id = uuid.uuid4().hex
        finished = [self._finished(entry) for entry in entries]
        dropped, self.dropped = self.dropped, 0
        body = encode_batch(finished, id=message_id, host=self._host(), sent=self._clock(), dropped=dropped)
        self._deliver(body, message_id)

    def _finished(self, entry: Entry) -> Entry:
        sample = entry.sample
        try:
            sample = self._finish(sample)
        except Exception:  # noqa: BLE001 - what could not be redacted must not leave
            Guard.errors["failure redaction"] += 1
            sample = replace(sample, message="(withheld: redaction failed)", traceback=None, args={}, kwargs={})
        now = self._clock()
        if now - self._full.get(entry.fingerprint, 0.0) < FULL_EVERY:
            short = sample.message[:SLIM_MESSAGE]
            sample = replace(sample, message=short, traceback=None, args={}, kwargs={})
        else:
            if len(self._full) >= KINDS:
                self._full.clear()
            self._full[entry.fingerprint] = now
        return replace(entry, sample=sample)

    def _deliver(self, body: bytes, message_id: str) -> None:
        """Publish one message, the same until it is taken: a copy sent in doubt has the same id."""
        delay, down_since = BACKOFF[0], 0.0
        while True:
            try:
                if self._publisher is None:
                    self._publisher = self._connect()
                self.dropped += self._publisher.publish(body, message_id)
            except UnsupportedError as reason:
                self._switch_off(reason)
                return
            except Exception as error:  # noqa: BLE001 - whatever a broker's client raises: the broker is away
                self._close()
                if not down_since:
                    down_since = time.monotonic()
                    _log(
                        logging.WARNING, "celeryscope: failures wait, the broker does not take them: %s", _brief(error)
                    )
            else:
                if down_since:
                    _log(logging.INFO, "celeryscope: failures flow again after %.0f s", time.monotonic() - down_since)
                return
            self._pause(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, BACKOFF[1])

    def _pause(self, seconds: float) -> None:
        if self._hurry.is_set():
            time.sleep(min(seconds, BACKOFF[0]))
        else:
            self._hurry.wait(seconds)

    def _switch_off(self, reason: UnsupportedError) -> None:
        _log(logging.WARNING, "celeryscope: failures are not reported: %s", reason)
        with self._changed:
            self.off = True
            self._pending = Pending()
            self._changed.notify_all()

    def _close(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.suppress(Exception):
                publisher.close()


def _brief(error: Exception) -> str:
    """The class alone: an error of a client may hold the broker's address with its password."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _log(level: int, text: str, *args: Any) -> None:
    with contextlib.suppress(Exception):  # a broken log handler of the host's
        logger.log(level, text, *args)


_outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()
_inherited: list[object] = []
_state = {"registered": False}


def _outlive_forks(outbox: Outbox) -> None:
    _outboxes.add(outbox)
    if not _state["registered"] and hasattr(os, "register_at_fork"):
        _state["registered"] = True
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    with Guard("outbox after fork"):
        for outbox in list(_outboxes):
            outbox.after_fork_in_child()
