"""The one thread that sends a beat probe's events: bounded, late rather than never, and never in the host's way.

Runs inside the user's beat process, and in workers that receive what beat sends. The host's thread only ever puts
into a queue; all that can block is done here, on a connection of its own.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kombu.exceptions import EncodeError

from .guard import Guard

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger("celeryscope")

BACKLOG = 10_000
TIMEOUT = 5.0
"""Seconds that one operation on the broker's socket may take."""
WAKE = 1.0
RETRY = (1.0, 15.0)
FAREWELL = 0.8
"""Most seconds that the end of beat is held up for the last reports."""
NO_BROKER = 0.1

# What each kind of transport calls its socket timeouts; an unknown one goes without.
_TIMEOUTS: dict[str, dict[str, float]] = {
    "redis": {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT},
    "amqp": {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT},
}

Fields = dict[str, Any]
Message = tuple[str, Fields]


class UnsupportedError(Exception):
    """The broker has no fanout exchanges, hence no events."""


class Line:
    """A connection for events alone."""

    def __init__(self, app: Celery, hostname: str) -> None:
        connection: Any = app.connection_for_write()
        if not connection.supports_exchange_type("fanout"):
            connection.release()
            raise UnsupportedError(connection.transport_cls)
        driver = connection.get_transport_cls().driver_type
        connection.transport_options = {**_TIMEOUTS.get(driver, {}), **(connection.transport_options or {})}
        connection.connect_timeout = min(connection.connect_timeout or TIMEOUT, TIMEOUT)
        self._connection = connection
        try:
            connection.connect()
            events: Any = app.events
            # Given a channel, the dispatcher does not go through `default_channel`, which retries for many seconds.
            self._dispatcher = events.Dispatcher(
                connection, channel=connection.channel(), hostname=hostname, buffer_while_offline=False
            )
        except BaseException:
            self.close()
            raise

    def send(self, kind: str, fields: Fields) -> None:
        """Publish one event.

        Raises:
            Exception: whatever the transport raises; the line is of no more use then.
        """
        # Blind: the app's logical clock has a lock, and a pool child forked while we hold it would hang on it for ever.
        self._dispatcher.send(kind, blind=True, Event=_clockless, retry=False, **fields)

    def close(self) -> None:
        """Close the connection, never mind in which state it is."""
        try:
            self._connection.release()
        except Exception as error:  # noqa: BLE001 - it is most often closed because it is broken
            logger.debug("celeryscope: closing the event connection: %s", _brief(error))


def _clockless(name: str, /, **fields: Any) -> Fields:
    from celery.events.event import Event

    del fields["clock"]  # None is more than Celery's receivers take; without one they set their own
    event: Fields = Event(name, **fields)
    return event


class Sender:
    """Sends what is `put`, in order, and what `poll` yields whenever the thread wakes.

    `open_line` connects and may raise; `poll` yields what is to be sent now, and is not asked while there is no
    connection. What overflows is dropped, oldest first, and counted in `dropped`. After `idle` seconds in which nothing
    was sent the thread ends and its connection with it.
    """

    def __init__(
        self,
        open_line: Callable[[], Line],
        poll: Callable[[], Iterable[Message]],
        *,
        backlog: int = BACKLOG,
        name: str = "celeryscope-beat",
        idle: float = math.inf,
    ) -> None:
        self._open_line = open_line
        self._poll = poll
        self._limit = backlog
        # Its put() is reentrant: beat's signal handler may interrupt beat's own put() and put the last report.
        self._queue: queue.SimpleQueue[Callable[[], Message] | None] = queue.SimpleQueue()
        self._backlog: deque[Callable[[], Message]] = deque()
        self._line: Line | None = None
        self._retry_at = 0.0
        self._failures = 0
        self._down_since: float | None = None
        self._stopping = False
        self._idle = idle
        self._sent_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.dropped = 0
        self.unsupported = False
        """The broker cannot have events, ever: another sender would fare no better."""

    def start(self) -> None:
        """Start the thread; it connects at once."""
        self._queue.put(None)
        self._thread.start()

    def put(self, make: Callable[[], Message] | None) -> None:
        """Hand over a report, to be made in the thread; None only wakes it. Never blocks."""
        if self._stopping:
            return
        if self._queue.qsize() >= self._limit:
            self.dropped += make is not None
            return
        self._queue.put(make)

    @property
    def over(self) -> bool:
        """Whether its thread has ended, or will not look again at what comes from now on."""
        return self._stopping or not self._thread.is_alive()

    def leave(self) -> None:
        """Let the thread send what is left, and end; nobody waits for it."""
        self._stopping = True
        self._queue.put(None)

    def close(self) -> None:
        """Send what is left and what `poll` still has, in bounded time; a second call does nothing."""
        if self._stopping:
            return
        self._stopping = True
        self._queue.put(None)
        self._thread.join(FAREWELL if self._line is not None else NO_BROKER)

    def _run(self) -> None:
        while not self._stopping:
            self._collect(WAKE)
            try:
                self._work()
            except UnsupportedError as error:
                logger.warning("celeryscope: no beat events: the %s broker has no fanout exchanges", error)
                self.unsupported = self._stopping = True
                return
            except Exception as error:  # noqa: BLE001 - kombu's transports each raise errors of their own
                self._failed(error)
            # Not during an outage. What is polled after this is asked for once more, in the farewell.
            if self._line is not None and time.monotonic() - self._sent_at > self._idle:
                self._stopping = True
        with Guard("beat probe: farewell"):
            self._farewell()

    def _collect(self, timeout: float) -> None:
        """Take over what has been put, after waiting for the first of it."""
        try:
            item = self._queue.get(timeout=timeout)
            while True:
                if item is not None:
                    self._backlog.append(item)
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        while len(self._backlog) > self._limit:
            self._backlog.popleft()
            self.dropped += 1

    def _work(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        if self._line is None:
            self._line = self._open_line()
        line = self._line
        self._send_backlog(line)
        for kind, fields in self._poll():
            self._collect(0.0)
            self._send_backlog(line)
            self._send(line, kind, fields)
        self._recovered()

    def _send_backlog(self, line: Line) -> None:
        while self._backlog:
            message: Message | None = None
            with Guard("beat probe: making a report"):
                message = self._backlog[0]()
            if message is not None:
                self._send(line, *message)
            self._backlog.popleft()

    def _send(self, line: Line, kind: str, fields: Fields) -> None:
        try:
            line.send(kind, fields)
        except EncodeError as error:  # no outage: the user's serializer would refuse it the next time as well
            self.dropped += 1
            logger.warning("celeryscope: a %s event cannot be serialized: %s", kind, _brief(error))
        self._sent_at = time.monotonic()

    def _failed(self, error: Exception) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            logger.warning("celeryscope: beat events wait for the broker: %s", _brief(error))
        self._retry_at = now + min(RETRY[0] * 2**self._failures, RETRY[1])
        self._failures = min(self._failures + 1, 10)

    def _recovered(self) -> None:
        if self._down_since is not None:
            logger.info("celeryscope: beat events flow again after %.0f s", time.monotonic() - self._down_since)
        self._down_since, self._failures = None, 0

    def _farewell(self) -> None:
        line = self._line
        if line is None:
            return
        try:
            self._collect(0.0)
            self._send_backlog(line)
            for kind, fields in self._poll():
                self._send(line, kind, fields)
        except Exception as error:  # noqa: BLE001 - the broker may go together with beat
            logger.debug("celeryscope: last beat events not sent: %s", _brief(error))
        finally:
            self._line = None
            line.close()


def _brief(error: Exception) -> str:
    """Return the class alone: an error of a client may hold the broker's address with its password."""
    return f"{type(error).__module__}.{type(error).__qualname__}"
