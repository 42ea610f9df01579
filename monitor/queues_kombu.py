"""Queues on any other kombu transport: how many messages wait, and nothing else (edge)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .broker import connect, reason
from .queues import Problems, QueueFacts

if TYPE_CHECKING:
    from kombu import Connection

logger = logging.getLogger(__name__)


class KombuReader:
    """Asks kombu's channel for the size of each queue, over one connection of its own."""

    def __init__(self, connection: Callable[[], Connection], *, problems: Problems | None = None) -> None:
        self.problems = problems or Problems(logger.warning)
        self._open = connection
        self._connection: Connection | None = None
        self._channel: Any = None
        self._told = False

    def close(self) -> None:
        """Give up the connection."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.release()

    def discover(self) -> Iterator[frozenset[str]]:
        """Find nothing: these transports have no common way to list queues."""
        yield frozenset()

    def read(self, queues: Sequence[str], now: float) -> dict[str, QueueFacts]:
        """Return the sizes; a queue whose size cannot be read is left out and counted."""
        del now
        channel = self._open_channel()
        size = self._size(channel)
        facts: dict[str, QueueFacts] = {}
        for queue in queues if size is not None else ():
            try:
                facts[queue] = QueueFacts(ready=int(channel._size(queue)))  # noqa: SLF001 - kombu has no public one
            except channel.connection.client.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001 - each transport has its own errors for a queue that is not there
                self.problems.note("gone", queue, f"its size is unknown: {reason(error)}")
        return facts

    def _open_channel(self) -> Any:
        if self._channel is None:
            self._connection = self._open()
            connect(self._connection)
            self._channel = self._connection.channel()
        return self._channel

    def _size(self, channel: Any) -> object | None:
        from kombu.transport import virtual

        kind = self._connection.transport.driver_name if self._connection is not None else ""
        # kombu's base class answers 0 where a transport does not know.
        known = getattr(type(channel), "_size", virtual.Channel._size)  # noqa: SLF001 - as above
        if known is virtual.Channel._size:  # noqa: SLF001 - as above
            self.problems.note("unsupported", kind, "this transport does not tell how many messages wait in a queue")
            return None
        if not self._told:
            self._told = True
            logger.warning(
                "queues: the %s transport tells how many messages wait; unacknowledged and scheduled messages, "
                "priorities and ages cannot be known, and queues are those seen in events and named with --queue",
                kind,
            )
        return known
