"""The queue sampler: reads the broker on its own timer into a snapshot; a scrape only looks at the snapshot (edge)."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from .broker import reason
from .labels import OTHER, UNKNOWN
from .queues import (
    Directory,
    Pass,
    QueueFacts,
    QueueReader,
    QueueSnapshot,
    Topology,
    collector_families,
    snapshot_families,
    with_consumers,
)

if TYPE_CHECKING:
    from .broker import BrokerConfig
    from .facts import Family
    from .inspect import Inspector
    from .queues_redis import SentTimes

logger = logging.getLogger(__name__)

INTERVAL = 10.0
DISCOVER_EVERY = 60.0
FIRST_DISCOVERY = 1.0
"""Seconds for which the first sample waits for discovery."""
PACE = 0.005
"""Seconds between two steps of discovery: looking through a million keys is not worth a busy server."""


class QueueSampler:
    """One broker's queues. `sample` and `discover` belong to one thread; all else may be used from any."""

    def __init__(
        self,
        reader: QueueReader,
        inspector: Inspector | None = None,
        *,
        queues: Iterable[str] = (),
        limit: int = 500,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.snapshot = QueueSnapshot()
        self._reader = reader
        self._inspector = inspector
        self._directory = Directory(queues, limit)
        self._monotonic = monotonic
        self._last: Pass | None = None
        self._down_since: float | None = None
        self._lock = threading.Lock()
        self._heard: set[str] = set()
        self._came: set[str] = set()
        self._again: set[str] = set()
        self._went: set[str] = set()

    @property
    def topology(self) -> Topology:
        """What the workers last said about their queues and slots."""
        return self._inspector.topology if self._inspector is not None else Topology()

    @property
    def overflow(self) -> int:
        """How often a queue name was turned away because there were too many, for celeryscope_label_overflow_total."""
        return self._directory.overflow

    def know(self, queue_names: Iterable[str]) -> None:
        """Take in queue names seen elsewhere (events); sampled from the next sample on."""
        with self._lock:
            self._heard.update(queue_names)

    def know_workers(self, names: Iterable[str], *, again: Iterable[str] = ()) -> None:
        """Take in workers that are alive; those not known yet, or started `again`, are asked for their queues soon."""
        with self._lock:
            names = set(names)
            self._went -= names
            self._came |= names
            self._again.update(again)

    def forget_workers(self, names: Iterable[str]) -> None:
        """Take out workers that are gone: they consume from nothing any more, and are asked anew when they return."""
        with self._lock:
            names = set(names)
            self._came -= names
            self._again -= names
            self._went |= names

    def sample(self, now: float) -> None:
        """Read the broker; never raises. A failed sample keeps the last snapshot and says so in the families."""
        started = self._monotonic()
        try:
            self._sample(now)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: the next sample connects anew
            self._failed(error, started)
        else:
            self._last = Pass(True, self._monotonic() - started)
            if self._down_since is not None:
                logger.info("queues can be sampled again after %.0f s", started - self._down_since)
                self._down_since = None

    def discover(self, now: float) -> Iterator[None]:
        """Look for queues, a small step at a time; never raises."""
        try:
            for names in self._reader.discover():
                self._directory.see(names, now)
                yield
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error, self._monotonic())

    def inspect(self, now: float) -> bool:
        """Ask workers where it is time, and tell whether it was; may wait seconds for answers; never raises."""
        if self._inspector is None:
            return False
        with self._lock:
            came, self._came = self._came, set()
            went, self._went = self._went, set()
            again, self._again = self._again, set()
        asked = self._inspector.round(came, went, self._monotonic(), now, again=again)
        if asked:
            self.know(name for names in self._inspector.topology.queues.values() for name in names)
        return asked

    def families(self, now: float) -> list[Family]:
        """Return the families of the newest snapshot and about the sampler itself."""
        del now  # ages are as of the sample: later nobody knows whether the message is still there
        snapshot = self.snapshot
        return [
            *snapshot_families(snapshot),
            *collector_families(self._last, snapshot.taken, dict(self._reader.problems.counts)),
        ]

    def close(self) -> None:
        """Give up the connection."""
        self._reader.close()

    def _sample(self, now: float) -> None:
        with self._lock:
            heard, self._heard = self._heard, set()
        topology = self.topology
        self._directory.see(heard, now)
        self._directory.see(topology.consumers(), now)
        facts = self._reader.read(self._directory.names(), now)
        self._directory.see((name for name in facts if name != UNKNOWN), now)
        facts = bounded(facts, {*self._directory.names(), UNKNOWN})
        self.snapshot = QueueSnapshot(now, MappingProxyType(with_consumers(facts, topology)))
        self._directory.forget(self.snapshot, now)

    def _failed(self, error: Exception, started: float) -> None:
        self._last = Pass(False, self._monotonic() - started)
        if self._down_since is None:
            self._down_since = started
            logger.warning("queues cannot be sampled: %s", reason(error))
        try:
            self._reader.close()
        except Exception as again:  # noqa: BLE001 - closing what is broken
            logger.debug("closing the sampler's connection: %s", again)


def bounded(facts: dict[str, QueueFacts], admitted: set[str]) -> dict[str, QueueFacts]:
    """Put the messages of queues that are not admitted together under `__other__`."""
    outside = facts.keys() - admitted
    if not outside:
        return facts
    total: Counter[str] = Counter()
    for name in outside:
        total["unacked"] += facts[name].unacked or 0
        total["scheduled"] += facts[name].scheduled or 0
    kept = {name: fact for name, fact in facts.items() if name not in outside}
    kept[OTHER] = replace(QueueFacts(), unacked=total["unacked"], scheduled=total["scheduled"])
    return kept


class QueueSamplerThread:
    """Runs a sampler: samples on a fixed grid, discovers in between, and asks workers on a thread apart."""

    def __init__(
        self, sampler: QueueSampler, interval: float = INTERVAL, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._sampler = sampler
        self._interval = interval
        self._clock = clock
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start sampling; the first sample is taken at once, or after a second's discovery."""
        for name, run in (("celeryscope-queues", self._run), ("celeryscope-inspect", self._inspect)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float = 0.8) -> None:
        """Stop within `timeout` seconds; a thread that still waits for the broker ends by itself, as a daemon."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        due = time.monotonic()
        discovery, discovered = self._sampler.discover(self._clock()), due
        ended = self._step(discovery, due + FIRST_DISCOVERY)
        while not self._stop.is_set():
            self._sampler.sample(self._clock())
            # On a grid: a slow sample shifts none of the later ones, and what was missed is not made up for.
            due += self._interval * (1 + int(max(0.0, time.monotonic() - due) / self._interval))
            if ended and time.monotonic() - discovered >= DISCOVER_EVERY:
                discovery, discovered = self._sampler.discover(self._clock()), time.monotonic()
            ended = self._step(discovery, due)
            self._stop.wait(max(0.0, due - time.monotonic()))
        self._sampler.close()

    def _step(self, discovery: Iterator[object], until: float) -> bool:
        """Go on with discovery until it is time for a sample; tell whether it has come to its end."""
        while time.monotonic() < until and not self._stop.is_set():
            if next(discovery, self) is self:
                return True
            self._stop.wait(PACE)
        return False

    def _inspect(self) -> None:
        while not self._stop.is_set():
            self._sampler.inspect(self._clock())
            self._stop.wait(1.0)


def open_sampler(
    config: BrokerConfig,
    *,
    queues: Iterable[str] = (),
    limit: int = 500,
    management_url: str | None = None,
    sent_times: SentTimes | None = None,
    inspect: bool = True,
) -> QueueSampler:
    """Return the sampler for a broker, not yet connected.

    `queues` are names from the user; `management_url` is RabbitMQ's management API, credentials included where they
    differ from the broker's; `sent_times` tells when a task id was last sent, for messages without a stamp.

    Raises:
        BrokerError: the broker's URL is none that kombu knows.
    """
    from .inspect import Inspector, asker

    ask = asker(config) if inspect else None
    return QueueSampler(
        _reader(config, management_url, sent_times),
        Inspector(ask) if ask is not None else None,
        queues=queues,
        limit=limit,
    )


def _reader(config: BrokerConfig, management_url: str | None, sent_times: SentTimes | None) -> QueueReader:
    with config.connection() as connection:
        driver = connection.transport.driver_type
    if driver == "redis":
        from .queues_redis import RedisReader, redis_link
        from .queues_redis_wire import Options

        return RedisReader(lambda: redis_link(config), Options.of(config.transport_options), sent_times=sent_times)
    if driver == "amqp":
        from .queues_rabbitmq import Management, RabbitReader

        management = Management.of(management_url, connection) if management_url else None
        return RabbitReader(config.connection, management)
    from .queues_kombu import KombuReader

    return KombuReader(config.connection)
