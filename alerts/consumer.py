"""The outbox's reading end on one broker: batches are handed over, and acknowledged only once they were taken (edge).

On Redis and Valkey the connection keeps its unacknowledged messages under keys of its own: with kombu's defaults it
would sweep the user's, and run their tasks again.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kombu import Consumer, Exchange, Queue
from kombu.message import Message

from ..monitor.broker import BrokerConfig, connect, reason
from . import failure
from .batches import Batch, RejectedError, decode
from .policy import backoff
from .publisher import outbox_queue

logger = logging.getLogger("celeryscope.alerter")

PREFETCH = 20
"""Messages that are held unacknowledged, and taken in one transaction, at most."""
REJECTED_QUEUE = failure.QUEUE + ".rejected"
REJECTED_KEPT = 100
REJECTED_BYTES = 64 * 1024
MEASURE_EVERY = 5.0
_LINGER = 0.02
_IDLE = 0.5
_NOT_FOUND, _PRECONDITION_FAILED = 404, 406

REDIS_OPTIONS = {
    "unacked_key": "celeryscope.unacked",
    "unacked_index_key": "celeryscope.unacked_index",
    "unacked_mutex_key": "celeryscope.unacked_mutex",
    "unacked_mutex_expire": 10,
    "visibility_timeout": 60,
}

Take = Callable[[Sequence[Batch]], Sequence[Batch]]
"""Takes batches for good and returns those that cannot be taken ever; raises where none was taken."""


class OutboxConsumer:
    """Reads the outbox of one broker from `start` to `stop`, over all outages between.

    `take` gets the batches; `rejected` is told the reason for each message that is set aside.
    """

    def __init__(
        self,
        config: BrokerConfig,
        take: Take,
        rejected: Callable[[str], None],
        clock: Callable[[], float],
        *,
        prefetch: int = PREFETCH,
    ) -> None:
        self.config = config
        self.waiting: int | None = None
        self.oldest: float | None = None
        self._take = take
        self._rejected = rejected
        self._clock = clock
        self._prefetch = prefetch
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celeryscope-outbox", daemon=True)
        self._messages: list[Message] = []
        self._measured = 0.0
        self._failures = 0
        self._down_since: float | None = None
        self._rng = random.Random()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what is being taken, give the rest back, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._consume()
            except Exception as error:  # noqa: BLE001 - broker, store, or a message that kombu itself cannot read
                self._broken(error)
                self._stopping.wait(backoff(self._failures, self._rng, 15.0))

    def _broken(self, error: Exception) -> None:
        self._failures += 1
        self.waiting = None
        if isinstance(error, (ValueError, KeyError, TypeError)) and not isinstance(error, UnicodeError):
            # kombu took something from the list that is no message; it is gone from there.
            self._rejected("envelope")
            logger.warning("%s: something in %s is no message and was skipped", self.config.label, failure.QUEUE)
        elif self._down_since is None:
            self._down_since = self._clock()
            logger.warning("%s: failures cannot be fetched: %s", self.config.label, reason(error))

    def _consume(self) -> None:
        options = REDIS_OPTIONS if self.config.connection().transport.driver_type == "redis" else {}
        with self.config.connection(**options) as connection:
            connect(connection)
            self._messages = []
            channel = self._declared(connection)
            consumer = Consumer(
                channel, [outbox_queue()], on_message=self._messages.append, auto_declare=False, no_ack=False
            )
            consumer.qos(prefetch_count=self._prefetch)
            with consumer:
                self._up()
                while not self._stopping.is_set():
                    self._round(connection)

    def _declared(self, connection: Any) -> Any:
        channel = connection.channel()
        try:
            outbox_queue()(channel).declare()
        except connection.channel_errors as problem:
            if getattr(problem, "reply_code", None) != _PRECONDITION_FAILED:
                raise
            # Another version of ours, or a policy, gave it other arguments: it will do.
            channel = connection.channel()
        return channel

    def _up(self) -> None:
        if self._down_since is not None:
            logger.warning("%s: back after %.0f s", self.config.label, self._clock() - self._down_since)
            self._down_since = None

    def _round(self, connection: Any) -> None:
        if self._clock() - self._measured >= MEASURE_EVERY or self.waiting is None:
            self._measure(connection)
        self._drain(connection, _IDLE)
        while self._messages and len(self._messages) < self._prefetch and self._drain(connection, _LINGER):
            pass
        if self._messages:
            self._settle(connection)
        elif not self.waiting:
            self.oldest = None
        # Whatever was wrong is over only when a whole round went well.
        self._failures = 0

    def _drain(self, connection: Any, timeout: float) -> bool:
        before = len(self._messages)
        try:
            connection.drain_events(timeout=timeout)
        except TimeoutError:
            connection.heartbeat_check()
        return len(self._messages) > before

    def _settle(self, connection: Any) -> None:
        messages, self._messages[:] = list(self._messages), []
        read: list[tuple[Message, Batch]] = []
        aside: list[tuple[Message, RejectedError]] = []
        for message in messages:
            try:
                read.append((message, decode(_body(message))))
            except RejectedError as problem:
                aside.append((message, problem))
        batches = [batch for _, batch in read]
        if batches:
            self.oldest = min((entry.first for batch in batches for entry in batch.entries), default=None)
            unusable = {id(batch) for batch in self._take(batches)}
            aside += [(message, RejectedError("store", "")) for message, batch in read if id(batch) in unusable]
        for message, refusal in aside:
            self._set_aside(connection, message, refusal)
        for message in messages:
            message.ack()
        self.waiting = max(0, (self.waiting or 0) - len(messages))

    def _measure(self, connection: Any) -> None:
        self._measured = self._clock()
        try:
            with connection.channel() as channel:
                self.waiting = _size(outbox_queue()(channel).queue_declare(passive=True))
        except connection.channel_errors as error:
            # On Redis an empty list is no list; elsewhere the queue has expired and must be made anew.
            if getattr(error, "reply_code", None) != _NOT_FOUND or connection.transport.driver_type != "redis":
                raise
            self.waiting = 0

    def _set_aside(self, connection: Any, message: Message, problem: RejectedError) -> None:
        """Keep the start of an unreadable message in a queue of its own, as long as there is room."""
        self._rejected(problem.reason)
        logger.warning("%s: a message of %s was set aside: %s", self.config.label, failure.QUEUE, problem)
        body = _body(message)
        text = body[:REJECTED_BYTES].decode("utf-8", "replace")
        note = {"reason": str(problem)[:500], "at": self._clock(), "bytes": len(body), "body": text}
        arguments = {"x-max-length": REJECTED_KEPT, "x-overflow": "drop-head"}
        queue = Queue(REJECTED_QUEUE, Exchange(""), REJECTED_QUEUE, durable=True, queue_arguments=arguments)
        try:
            with connection.channel() as channel:
                if _size(queue(channel).queue_declare()) < REJECTED_KEPT:
                    producer = connection.Producer(channel)
                    producer.publish(json.dumps(note), exchange="", routing_key=REJECTED_QUEUE, retry=False,
                                     content_type=failure.CONTENT_TYPE, content_encoding="utf-8")  # fmt: skip
        except connection.channel_errors as error:
            # Not allowed to make that queue: the count and the log line are what is left of it.
            logger.warning("%s: %s cannot be used: %s", self.config.label, REJECTED_QUEUE, reason(error))


def _size(declared: Any) -> int:
    return int(declared.message_count)


def _body(message: Message) -> bytes:
    body: Any = message.body
    return body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body or b"")
