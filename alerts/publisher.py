"""The durable queue of failures on the app's own broker, through kombu: its declaration, and the sending side.

Needs what Celery itself needs. The connection is the outbox's own and every socket has a timeout: a broker that hangs
must cost a daemon thread a few seconds and nobody else anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kombu import Exchange, Queue

from . import failure
from .outbox import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_TIMEOUT = 3.0
SOCKET_TIMEOUT = 5.0
DECLARE_EVERY = 3600.0
"""Publishing does not count as use of a queue, declaring does: without it RabbitMQ expires the queue under us."""
MEASURE_EVERY = 32
"""Messages between two looks at the queue's size in bytes on Redis."""
DROP_AT_ONCE = 500

_TIMEOUTS: dict[str, dict[str, Any]] = {
    "redis": {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT, "retry_on_timeout": False},
    "amqp": {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": SOCKET_TIMEOUT,
        "write_timeout": SOCKET_TIMEOUT,
        "confirm_publish": True,
    },
}


def outbox_queue() -> Queue:
    """Return the queue as both sides must declare it: durable, capped (oldest dropped), expiring.

    Redis knows none of the arguments; there the sender sees to the cap and the expiry.
    """
    return Queue(
        failure.QUEUE,
        exchange=Exchange("", type="direct"),
        routing_key=failure.QUEUE,
        durable=True,
        auto_delete=False,
        queue_arguments={
            "x-max-length": failure.QUEUE_MESSAGES,
            "x-max-length-bytes": failure.QUEUE_BYTES,
            "x-overflow": "drop-head",
            "x-message-ttl": failure.QUEUE_SECONDS * 1000,
            "x-expires": failure.QUEUE_SECONDS * 1000,
        },
    )


class QueuePublisher:
    """Sends messages to the queue `celeryscope.failures` of `app`'s broker, on one connection of its own."""

    def __init__(self, app: Any, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._connection = app.connection_for_write(connect_timeout=CONNECT_TIMEOUT)
        driver = self._connection.transport.driver_type
        options = dict(self._connection.transport_options or {})
        if driver == "sqs" and failure.QUEUE not in options.get("predefined_queues", {failure.QUEUE: None}):
            raise UnsupportedError(f"the broker's predefined_queues have no queue {failure.QUEUE!r}")
        self._connection.transport_options = {**options, **_TIMEOUTS.get(driver, {})}
        self._redis = driver == "redis"
        self._producer: Any = None
        self._declared = 0.0
        self._sent = 0

    def publish(self, body: bytes, message_id: str) -> int:
        """Send one message, durably; return how many of the oldest were dropped from a full Redis list."""
        if self._producer is None:
            self._open()
        elif self._monotonic() - self._declared > DECLARE_EVERY:
            self._declare()
        self._producer.publish(
            body,
            exchange="",
            routing_key=failure.QUEUE,
            content_type=failure.CONTENT_TYPE,
            content_encoding="utf-8",
            delivery_mode=2,
            message_id=message_id,
            retry=False,
        )
        self._sent += 1
        if not self._redis:
            return 0
        try:
            return self._trim()
        except Exception:  # noqa: BLE001 - the message is out: an error here must not send it again
            return 0

    def close(self) -> None:
        """Drop the connection."""
        self._producer = None
        self._connection.release()

    def _open(self) -> None:
        # Once round the alternatives of a broker list; the outbox is who retries and waits.
        self._connection.ensure_connection(max_retries=max(len(self._connection.alt), 1), interval_start=0.1)
        self._declare()

    def _declare(self) -> None:
        channel = self._connection.channel()
        try:
            outbox_queue()(channel).declare()
        except self._connection.channel_errors as problem:
            if getattr(problem, "reply_code", None) != _PRECONDITION_FAILED:
                raise
            # Another version of ours, or an administrator's policy, gave it other arguments: it will do.
            channel = self._connection.channel()
        if self._producer is not None:
            self._producer.channel.close()
        self._producer = self._connection.Producer(channel, serializer=None)
        self._declared = self._monotonic()

    def _trim(self) -> int:
        client = self._producer.channel.client
        key = self._producer.channel.global_keyprefix + failure.QUEUE  # kombu's client adds it to some commands only
        client.execute_command("EXPIRE", key, failure.QUEUE_SECONDS)
        length = client.llen(failure.QUEUE)
        surplus = length - failure.QUEUE_MESSAGES
        if self._sent % MEASURE_EVERY == 1:
            surplus = max(surplus, self._too_heavy(client, key, length))
        if surplus <= 0:
            return 0
        return self._drop(client, min(surplus, DROP_AT_ONCE))

    def _drop(self, client: Any, count: int) -> int:
        try:
            return len(client.rpop(failure.QUEUE, count) or ())
        except self._connection.channel_errors:  # Redis before 6.2 takes one at a time
            with client.pipeline(transaction=False) as pipe:
                for _ in range(count):
                    pipe.rpop(failure.QUEUE)
                return sum(message is not None for message in pipe.execute())

    def _too_heavy(self, client: Any, key: str, length: int) -> int:
        try:
            size = client.execute_command("MEMORY USAGE", key, "SAMPLES", 20) or 0
        except self._connection.channel_errors:  # not allowed to, or unknown to this server: the count alone caps
            return 0
        return length - int(length * failure.QUEUE_BYTES / size) if size > failure.QUEUE_BYTES else 0


_PRECONDITION_FAILED = 406
