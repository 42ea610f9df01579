"""The outbox's reading end on one broker: batches are handed over, and acknowledged only once taken (edge)."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kombu import Connection, Exchange, Queue

from ..monitor.broker import BrokerConfig, connect, reason
from . import failure
from .batches import Batch, RejectedError, decode
from .feeds import KEPT, Feed, Received, feed
from .policy import backoff
from .store import StoreError

logger = logging.getLogger("celeryscope.alerter")

PREFETCH = 20
"""Messages that are held unacknowledged, and taken in one transaction, at most."""
REJECTED_QUEUE = failure.QUEUE + ".rejected"
REJECTED_KEPT = 100
MEASURE_EVERY = 5.0

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
            except Exception as error:  # noqa: BLE001 - whatever a transport or the store raises
                self._broken(error)
                self._stopping.wait(backoff(self._failures, self._rng, 15.0))

    def _broken(self, error: Exception) -> None:
        self._failures += 1
        if not isinstance(error, StoreError):
            self.waiting = None  # where the store is away, the broker has answered, and failures do wait
        if self._down_since is None:
            self._down_since = self._clock()
            logger.warning("%s: failures cannot be fetched: %s", self.config.label, reason(error))

    def _consume(self) -> None:
        with self.config.connection() as connection:
            connect(connection)
            source = feed(connection, self._prefetch)
            try:
                while not self._stopping.is_set():
                    self._round(connection, source)
                    self._fine()
            finally:
                source.close()

    def _fine(self) -> None:
        # Whatever was wrong is over only when a whole round went well.
        self._failures = 0
        if self._down_since is not None:
            logger.warning("%s: back after %.0f s", self.config.label, self._clock() - self._down_since)
            self._down_since = None

    def _round(self, connection: Connection, source: Feed) -> None:
        if self._clock() - self._measured >= MEASURE_EVERY or self.waiting is None:
            self._measured = self._clock()
            source.measure()
        received = source.take(self._prefetch, self._stopping.wait)
        self.waiting = source.waiting
        if received:
            self._settle(connection, received)
            source.ack(received)
            self.waiting = source.waiting = max(0, (source.waiting or 0) - len(received))
        elif not self.waiting:
            self.oldest = None

    def _settle(self, connection: Connection, received: Sequence[Received]) -> None:
        read: list[tuple[Received, Batch]] = []
        aside: list[tuple[Received, RejectedError]] = []
        for message in received:
            try:
                if message.problem is not None:
                    raise message.problem
                read.append((message, decode(message.body)))
            except RejectedError as problem:
                aside.append((message, problem))
        batches = [batch for _, batch in read]
        if batches:
            self.oldest = min((entry.first for batch in batches for entry in batch.entries), default=None)
            unusable = {id(batch) for batch in self._take(batches)}
            aside += [(message, RejectedError("store", "refused")) for message, batch in read if id(batch) in unusable]
        for message, refusal in aside:
            self._set_aside(connection, message, refusal)

    def _set_aside(self, connection: Connection, message: Received, problem: RejectedError) -> None:
        """Keep the start of an unreadable message in a queue of its own, as long as there is room."""
        self._rejected(problem.reason)
        logger.warning("%s: a message of %s was set aside: %s", self.config.label, failure.QUEUE, problem)
        text = message.body[:KEPT].decode("utf-8", "replace")
        note = {"reason": str(problem)[:500], "at": self._clock(), "body": text}
        arguments = {"x-max-length": REJECTED_KEPT, "x-overflow": "drop-head"}
        queue = Queue(REJECTED_QUEUE, Exchange(""), REJECTED_QUEUE, durable=True, queue_arguments=arguments)
        try:
            with connection.channel() as channel:
                declared: Any = queue(channel).queue_declare()
                if declared.message_count < REJECTED_KEPT:
                    producer = connection.Producer(channel)
                    producer.publish(json.dumps(note), exchange="", routing_key=REJECTED_QUEUE, retry=False,
                                     content_type=failure.CONTENT_TYPE, content_encoding="utf-8")  # fmt: skip
        except connection.channel_errors as error:
            # Not allowed to make that queue: the count and the log line are what is left of it.
            logger.warning("%s: %s cannot be used: %s", self.config.label, REJECTED_QUEUE, reason(error))
