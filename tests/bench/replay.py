"""A recorded stream taken in by our own code and by the `raw` yardstick, in this process and by its processor time.

Everything from the socket to the counters is what the monitor runs; Redis and the second core are left out, and so is
most of what another job on the machine does to a measurement. Time is the stream's own, so that two runs do the same.
"""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from unittest import mock

import wire
from baseline import Fast, Wire
from celeryscope.monitor import redis_source
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.schedules import Ledger

PIECE = 96 << 10
"""Bytes written to the socket at a time: less than its buffer, or the only thread would wait for itself."""
PACE = 2e-5  # seconds between two events of wire.stream
TICK = 50_000  # events between two ticks: a quarter of a second at 200 000 a second
PATTERN = b"/0.celeryev/*"
SUBSCRIBED = b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(PATTERN), PATTERN)


class Stream:
    """The bytes of a stream as Redis pushes them, in pieces of whole messages, each with the number of its events."""

    def __init__(self, spec: wire.Spec, *, underway: bool = False) -> None:
        """With `underway` it stops where the last task would start: as many are unfinished as there were throughout."""
        self.start = time.time()
        self.pieces: list[tuple[bytes, int]] = []
        frames, size, events, self.tasks = [], 0, 0, 0
        for channel, payload, kinds in wire.stream(spec):
            c, p = channel.encode(), payload.encode()
            frame = b"*4\r\n$8\r\npmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                len(PATTERN), PATTERN, len(c), c, len(p), p,
            )  # fmt: skip
            if frames and size + len(frame) > PIECE:
                self.pieces.append((b"".join(frames), events))
                frames, size, events = [], 0, 0
            frames.append(frame)
            size += len(frame)
            events += sum(kinds.values())
            self.tasks += sum(n for kind, n in kinds.items() if kind.startswith("task-"))
            if underway and self.tasks >= spec.events - spec.batch * spec.workers:
                break
        self.pieces.append((b"".join(frames), events))

    def split(self, share: float) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
        """Return the first part of the pieces, to warm up with, and the rest."""
        border = int(len(self.pieces) * share)
        return self.pieces[:border], self.pieces[border:]


class Ours:
    """The monitor's subscription and pipeline, at the end of a socket that `take_in` fills."""

    def __init__(self, start: float, **options: object) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.sendall(SUBSCRIBED)
        link = SimpleNamespace(_sock=self.ours, send_command=lambda *_, **__: None, disconnect=self.ours.close)
        with mock.patch.object(redis_source, "_connected", return_value=(link, [PATTERN])):
            self.subscription = redis_source.RedisSubscription(
                BrokerConfig.from_url("redis://127.0.0.1:1/0"), Decoder(boot="bench")
            )
        caps = Caps()
        self.pipeline = Pipeline(METRICS, caps, ledger=Ledger(METRICS, caps), clock=lambda: self.now, **options)
        self.start = self.now = start
        self.pipeline.connection(True, start)
        self.events = 0
        self._ticked = 0

    def take_in(self, pieces: list[tuple[bytes, int]]) -> float:
        """Take in the pieces; return the seconds of processor time that it took."""
        used = 0.0
        take, feed, clock = self.subscription.take, self.pipeline.feed, time.thread_time
        for data, events in pieces:
            self.theirs.sendall(data)
            self.now = self.start + self.events * PACE + 0.01
            started, left = clock(), events
            while left > 0:
                batch = take()
                if not batch:
                    raise RuntimeError(f"{left} events of a piece did not come out")
                left -= len(batch)
                feed(batch, self.now)
            self.events += events
            if self.events - self._ticked >= TICK:
                self._ticked = self.events
                self.pipeline.tick(self.now)
            used += clock() - started
        return used

    def close(self) -> None:
        self.subscription.close()
        self.theirs.close()


class Raw:
    """The `raw` yardstick at the end of such a socket."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.wire = Wire(Fast())

    def take_in(self, pieces: list[tuple[bytes, int]]) -> float:
        used, clock = 0.0, time.thread_time
        for data, _ in pieces:
            self.theirs.sendall(data)
            started, left = clock(), len(data)
            while left:
                chunk = self.ours.recv(1 << 18)
                left -= len(chunk)
                self.wire.data_received(chunk)
            used += clock() - started
        return used

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
