"""What the monitor publishes: its own echo event, and (opt-in) the broadcast that switches workers' events on."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from kombu import Connection, Producer
from kombu.pidbox import Mailbox

from .broker import BrokerConfig, connect, event_exchange, reason

logger = logging.getLogger("celeryscope.echo")

ECHO_TYPE = "celeryscope-echo"
ECHO_KEY = "celeryscope.echo"
ECHO_EVERY = 5.0
ENABLE_EVERY = 60.0
ENABLE_AT_MOST = 5.0
"""Least seconds between two broadcasts, however many workers come online."""
COMPLAIN_AFTER = 3
"""Failures in a row."""


class Publisher:
    """A thread that publishes now and then on a connection of its own, so that it never holds up ingestion.

    A failure closes the connection; the next turn makes a new one. `failing` says why, until a publish succeeds again.
    """

    what = "publish"
    every = ECHO_EVERY
    at_most = 0.0

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self.failing: str | None = None
        self._failures = 0
        self._complained = False
        self._connection: Connection | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"celeryscope-{self.what}", daemon=True)

    def start(self) -> None:
        """Start the thread; its first publish is when it is poked, or after `every` seconds."""
        self._thread.start()

    def poke(self) -> None:
        """Publish now, or as soon as `at_most` allows."""
        self._wake.set()

    def complaint(self) -> str | None:
        """Return, once, what keeps failing; a failure or two may begin an outage, which is told of as such."""
        if not self._failures:
            self._complained = False
        if self._failures < COMPLAIN_AFTER or self._complained:
            return None
        self._complained = True
        return self.failing

    def rest(self) -> float:
        """Return after how many seconds to publish again when nobody pokes."""
        return self.every

    def stop(self) -> None:
        """Ask the thread to end; it may be in a socket operation that takes its timeout."""
        self._stopping.set()
        self._wake.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self.rest())
            self._wake.clear()
            if self._stopping.is_set():
                break
            self._turn()
            self._stopping.wait(self.at_most)
        self._disconnect()

    def _turn(self) -> None:
        try:
            if self._connection is None:
                self._connection = self.config.connection(**self._options())
                connect(self._connection)
            self.publish(self._connection)
        except Exception as error:  # noqa: BLE001 - transports raise what they like, and none may end this thread
            self._disconnect()
            self.failing = f"cannot {self.what}: {reason(error)}"
            self._failures += 1
        else:
            self.failing = None
            self._failures = 0

    def _options(self) -> dict[str, Any]:
        # Without confirms RabbitMQ refuses a publish by closing the channel some time later.
        return {"confirm_publish": True} if self.config.url.startswith(("amqp", "pyamqp")) else {}

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.collect(socket_timeout=0.5)
            except Exception:
                logger.debug("closing a broken connection failed", exc_info=True)

    def publish(self, connection: Connection) -> None:
        """Publish what this publisher is for."""
        raise NotImplementedError


class Echo(Publisher):
    """Publishes `celeryscope-echo`, in Celery's own wire format, on the exchange that events come from.

    `unanswered` counts the echoes published since one came back, the first of them at `unanswered_since`.
    """

    what = "publish the monitor's own event"

    def __init__(self, config: BrokerConfig, boot: str, clock: Callable[[], float], every: float = ECHO_EVERY) -> None:
        super().__init__(config)
        self.every = every
        self.boot = boot
        self.unanswered = 0
        self.unanswered_since: float | None = None
        self._clock = clock
        self._seq = 0
        self._hostname = f"celeryscope@{socket.gethostname()}"

    def answered(self) -> None:
        """Take note that an echo came back, or that none of those before can any more."""
        self.unanswered, self.unanswered_since = 0, None

    def publish(self, connection: Connection) -> None:
        """Publish one echo; its `timestamp` is now."""
        exchange = event_exchange(self.config, connection)
        self._seq += 1
        now = self._clock()
        event = {
            "hostname": self._hostname,
            "utcoffset": utc_offset(),
            "pid": os.getpid(),
            "clock": self._seq,
            "boot": self.boot,
            "seq": self._seq,
            "timestamp": now,
            "type": ECHO_TYPE,
        }
        self.unanswered += 1
        self.unanswered_since = self.unanswered_since or now
        try:
            Producer(connection.default_channel, exchange=exchange, serializer="json", auto_declare=False).publish(
                event,
                routing_key=ECHO_KEY,
                declare=[exchange],
                headers={"hostname": self._hostname},
                delivery_mode=1,
                retry=False,
            )
        except BaseException:
            self.unanswered -= 1  # a publish that failed cannot come back
            if self.unanswered <= 0:
                self.answered()
            raise


class EventsEnabler(Publisher):
    """Broadcasts `enable_events` (no reply asked): when poked, and every minute for workers that missed it.

    A worker says `worker-online` some time before it listens to broadcasts, so a poke causes several.
    """

    what = "switch workers' events on"
    every = ENABLE_EVERY
    at_most = ENABLE_AT_MOST
    repeats = 3
    _left = 0

    def poke(self) -> None:
        """Broadcast now and `repeats` times more, `at_most` seconds apart."""
        self._left = self.repeats + 1
        super().poke()

    def rest(self) -> float:
        """Return after how many seconds to broadcast again when nobody pokes."""
        return 0.0 if self._left else self.every

    def publish(self, connection: Connection) -> None:
        """Tell all workers to send events."""
        self._left = max(0, self._left - 1)
        Mailbox(self.config.control_exchange, type="fanout", connection=connection).abcast("enable_events", {})


def utc_offset() -> float:
    """Return how many hours west of UTC this machine is, as events carry it (`celery.utils.time.utcoffset`)."""
    return -time.localtime().tm_gmtoff / 3600
