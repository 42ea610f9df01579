"""Events from any broker that kombu speaks to (RabbitMQ first): a consumer on an event queue of our own."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kombu import Consumer, Queue

from .broker import BrokerConfig, BrokerSilentError, connect, event_exchange

if TYPE_CHECKING:
    from .events import Decoder, Event

logger = logging.getLogger("celeryscope.sources")

BATCH = 256
IDLE = 0.25
HEARTBEAT_CHECK = 1.0


class KombuSubscription:
    """A consumer of all events of one broker, made on construction, on an exclusive queue that goes when we go.

    Exclusive, because RabbitMQ 4.3 refuses transient queues that are not. Messages need no acknowledgement.

    Raises:
        BrokerError: the URL or the TLS files are wrong.
        Exception: what the transport raises where it cannot connect, declare or consume.
    """

    def __init__(
        self, config: BrokerConfig, decoder: Decoder, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._decoder = decoder
        self._monotonic = monotonic
        self._events: list[Event] = []
        self._connection = config.connection()
        self._checked = monotonic()
        try:
            connect(self._connection)
            self._beats = bool(self._connection.get_heartbeat_interval())
            self._consume(config)
        except BaseException:
            self.close()
            raise

    def _consume(self, config: BrokerConfig) -> None:
        channel = self._connection.channel()
        queue = Queue(
            f"{config.event_queue_prefix}.celeryscope.{uuid.uuid4()}",
            exchange=event_exchange(config, self._connection),
            routing_key="#",
            auto_delete=True,
            durable=False,
            exclusive=True,
            message_ttl=config.event_queue_ttl,
            expires=config.event_queue_expires,
        )
        self._consumer = Consumer(channel, [queue], no_ack=True, on_message=self._on_message)
        self._consumer.consume()

    def take(self) -> list[Event]:
        """Return about `BATCH` events, or none after up to `IDLE` seconds; raise when the broker is gone."""
        wait = IDLE
        try:
            while len(self._events) < BATCH:
                self._connection.drain_events(timeout=wait)
                wait = 0
        except TimeoutError:
            pass
        except Exception:
            if not self._events:  # first what had come; the next call fails again
                raise
        events, self._events = self._events, []
        if not self._alive() and not events:
            raise BrokerSilentError("too many heartbeats missed")
        return events

    def _alive(self) -> bool:
        """Send a heartbeat where one is due, and say whether the broker's own came."""
        if not self._beats or self._monotonic() - self._checked < HEARTBEAT_CHECK:
            return True
        try:
            self._connection.heartbeat_check()
        except Exception:
            logger.debug("the heartbeat failed", exc_info=True)
            return False
        self._checked = self._monotonic()
        return True

    def close(self) -> None:
        """Close the connection, without waiting for a broker that does not answer."""
        self._connection.collect(socket_timeout=0.5)

    def _on_message(self, message: Any) -> None:
        body = message.body
        self._events += self._decoder.decode(
            (message.delivery_info or {}).get("routing_key") or "",
            body if isinstance(body, str | bytes) else bytes(body),
            message.content_type or "",
            message.content_encoding or "",
        )
