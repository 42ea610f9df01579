"""What is known about queues, without I/O: which names are queues, the snapshot, and the families made from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

from .catalog import METRICS, Metric
from .facts import Family, Labels
from .labels import LONGEST, OTHER, UNKNOWN

T = TypeVar("T")
COLLECTOR = "queues"
DELAYED = "celery_delayed"
"""The name under which the messages in Celery's delayed-delivery queues (RabbitMQ, quorum queues) are reported."""

_NOISE = re.compile(
    r"""
      \.pidbox$                   # remote control: a queue per worker and per reply
    | ^celeryev(\.|$)             # event receivers
    | ^amq\.                      # the server's own and generated names
    | ^celeryscope(\.|$)          # ours: the failure outbox has a metric of its own
    """,
    re.VERBOSE,
)
_DELAYED_LEVEL = re.compile(r"^celery_delayed_(\d+|delivery)$")


def is_noise(name: str) -> bool:
    """Tell whether an exchange or queue of this name carries something else than tasks."""
    return not name or _NOISE.search(name) is not None


def is_delayed_level(name: str) -> bool:
    """Tell whether this is one of the 28 queues in which RabbitMQ holds ETA tasks for quorum queues."""
    return _DELAYED_LEVEL.match(name) is not None


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """One queue at one moment; None is unknown, which is never the same as 0.

    `ready` counts messages in the broker, `unacked` those delivered, `scheduled` those delivered (or held back by the
    broker) with an ETA in the future; the three are disjoint. `priorities` splits `ready`. `oldest_at` is the unix
    time from which the oldest ready message has been waiting, by `oldest_source`: `stamp` (the producer's clock),
    `task-sent` (the event), `head` (RabbitMQ's head_message_timestamp) or `watched` (at least since then).
    """

    ready: int | None = None
    priorities: Mapping[int, int] = field(default_factory=dict)
    unacked: int | None = None
    scheduled: int | None = None
    oldest_at: float | None = None
    oldest_source: str | None = None
    consumers: int | None = None


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """All queues as of `taken` (unix time by the monitor's clock, 0 before the first sample)."""

    taken: float = 0.0
    queues: Mapping[str, QueueFacts] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Topology:
    """Which worker consumes from which queues, and with how many slots: what workers answered, none of it guessed.

    `silent` are workers that were asked and have never answered (remote control off, or a busy solo pool).
    """

    taken: float = 0.0
    queues: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    concurrency: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    pool: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    silent: frozenset[str] = frozenset()

    def consumers(self) -> Counter[str]:
        """Return how many of the workers that answered consume from each queue."""
        return Counter(queue for names in self.queues.values() for queue in names)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker said of itself; None is what it was not asked or did not say."""

    queues: frozenset[str] | None = None
    concurrency: int | None = None
    pool: str | None = None


def answered(
    before: Topology, answers: Mapping[str, Answer], asked: Collection[str], lapsed: Collection[str], now: float
) -> Topology:
    """Return the topology after a round of questions.

    Who did not answer keeps what it said before, but for the `lapsed`, of whom nothing is known any more.
    """
    queues, concurrency, pool = dict(before.queues), dict(before.concurrency), dict(before.pool)
    for worker, answer in answers.items():
        if answer.queues is not None:
            queues[worker] = answer.queues
        if answer.concurrency is not None:
            concurrency[worker] = answer.concurrency
        if answer.pool is not None:
            pool[worker] = answer.pool
    for worker in lapsed:
        queues.pop(worker, None)
        concurrency.pop(worker, None)
        pool.pop(worker, None)
    silent = frozenset((before.silent | set(asked)) - queues.keys())
    return Topology(now, MappingProxyType(queues), MappingProxyType(concurrency), MappingProxyType(pool), silent)


def without(before: Topology, gone: Collection[str]) -> Topology:
    """Return the topology without workers that are known to be gone."""

    def rest(table: Mapping[str, T]) -> Mapping[str, T]:
        return MappingProxyType({worker: value for worker, value in table.items() if worker not in gone})

    return Topology(
        before.taken,
        rest(before.queues),
        rest(before.concurrency),
        rest(before.pool),
        before.silent.difference(gone),
    )


@dataclass(frozen=True, slots=True)
class Pass:
    """How the sampler's last pass went; `duration` in seconds."""

    success: bool
    duration: float


class QueueReader(Protocol):
    """One kind of broker. All methods are called from the sampler's thread alone and may raise on an outage."""

    problems: Problems

    def discover(self) -> Iterator[frozenset[str]]:
        """Yield after each small step of looking for queues, with the names that it found."""
        ...

    def read(self, queues: Sequence[str], now: float) -> dict[str, QueueFacts]:
        """Return the facts of these queues (and of what cannot be attributed, as `unknown`)."""
        ...

    def close(self) -> None:
        """Give up the connection; the next call makes a new one."""
        ...


class Problems:
    """Counts the facts that could not be learned, by reason, and says each (reason, subject) once in the log."""

    REASONS = ("wrong_type", "not_json", "permission", "gone", "too_big", "unsupported", "refused")
    REMEMBERED = 1_000

    def __init__(self, log: Log) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(self.REASONS, 0))
        self._log = log
        self._said: set[tuple[str, str]] = set()

    def note(self, reason: str, subject: str, text: str) -> None:
        """Count one unknown fact: `reason` is a label value, `subject` a queue or command, `text` for the log."""
        self.counts[reason] += 1
        key = (reason, subject)
        if key in self._said or len(self._said) >= self.REMEMBERED:
            return
        self._said.add(key)
        self._log("queues: %s: %s", subject[:LONGEST], text)


class Log(Protocol):
    """How a line gets into the log: `logging.Logger.warning` fits."""

    def __call__(self, msg: str, *args: object) -> None:
        """Write one line."""
        ...


class Directory:
    """The queues to sample: bounded, so that queues made by the thousand cannot grow the page or the sample.

    A queue found by discovery stays while discovery finds it; one seen in an event or in a worker's answer stays for
    `linger` seconds after that, or for as long as it holds messages; one that the user named stays for ever.
    """

    def __init__(self, named: Iterable[str] = (), limit: int = 500, linger: float = 3_600.0) -> None:
        self.limit = limit
        self.linger = linger
        self.overflow = 0
        self._named = dict.fromkeys(name for name in named if name)
        self._seen: dict[str, float] = {}

    def see(self, names: Iterable[str], now: float) -> None:
        """Take names in; those over the limit are counted in `overflow` and not sampled."""
        for name in names:
            if name in self._named:
                continue
            if name in self._seen:
                self._seen[name] = now
            elif is_noise(name) or is_delayed_level(name) or len(name) > LONGEST:
                continue
            elif len(self._seen) + len(self._named) >= self.limit:
                self.overflow += 1
            else:
                self._seen[name] = now

    def names(self) -> list[str]:
        """Return what to sample now."""
        return [*self._named, *self._seen]

    def forget(self, snapshot: QueueSnapshot, now: float) -> None:
        """Drop queues that nothing has named for `linger` seconds and that are empty."""
        for name, last in list(self._seen.items()):
            facts = snapshot.queues.get(name)
            busy = facts is not None and bool(facts.ready or facts.unacked or facts.scheduled or facts.consumers)
            if now - last > self.linger and not busy:
                del self._seen[name]


def with_consumers(queues: Mapping[str, QueueFacts], topology: Topology) -> dict[str, QueueFacts]:
    """Fill in the consumers where the broker cannot tell them, from what the workers answered.

    Nobody consuming is claimed only when every worker that was asked has answered.
    """
    if not topology.taken:
        return dict(queues)
    counted = topology.consumers()
    filled = {}
    for name, facts in queues.items():
        known = counted[name] if counted[name] or not topology.silent else None
        if facts.consumers is None and known is not None and name != UNKNOWN:
            facts = QueueFacts(  # noqa: PLW2901 - dataclasses.replace costs four times as much
                facts.ready,
                facts.priorities,
                facts.unacked,
                facts.scheduled,
                facts.oldest_at,
                facts.oldest_source,
                known,
            )
        filled[name] = facts
    return filled


def age(facts: QueueFacts, taken: float) -> float | None:
    """Return how long the oldest ready message has been waiting at `taken`, in seconds; 0 for an empty queue.

    A message whose ETA is in the future is not waiting yet: 0. Unknown: None.
    """
    if facts.ready == 0:
        return 0.0
    if facts.oldest_at is None:
        return None
    return max(0.0, taken - facts.oldest_at)


def snapshot_families(snapshot: QueueSnapshot) -> list[Family]:
    """Return the four families about queues; a fact that is unknown has no series."""
    messages: list[tuple[Labels, float]] = []
    priorities: list[tuple[Labels, float]] = []
    ages: list[tuple[Labels, float]] = []
    consumers: list[tuple[Labels, float]] = []
    for name, facts in snapshot.queues.items():
        states = (("ready", facts.ready), ("unacked", facts.unacked), ("scheduled", facts.scheduled))
        messages += [((name, state), count) for state, count in states if count is not None]
        priorities += [((name, str(priority)), count) for priority, count in facts.priorities.items()]
        waiting = age(facts, snapshot.taken)
        if waiting is not None:
            ages.append(((name,), waiting))
        if facts.consumers is not None:
            consumers.append(((name,), facts.consumers))
    return [
        Family(METRICS["celery_queue_messages"], messages),
        Family(METRICS["celery_queue_priority_messages"], priorities),
        Family(METRICS["celery_queue_oldest_message_age_seconds"], ages),
        Family(METRICS["celery_queue_consumers"], consumers),
    ]


def collector_families(last: Pass | None, taken: float, problems: Mapping[str, int]) -> list[Family]:
    """Return what the sampler says about itself; nothing before its first pass."""
    families = []
    labels = (COLLECTOR,)
    if last is not None:
        families += [
            Family(METRICS["celeryscope_collector_success"], [(labels, float(last.success))]),
            Family(METRICS["celeryscope_collector_duration_seconds"], [(labels, last.duration)]),
        ]
    if taken:
        families.append(Family(METRICS["celeryscope_sample_timestamp_seconds"], [(labels, taken)]))
    unknown: Metric = METRICS["celeryscope_sample_unknown_total"]
    families.append(Family(unknown, [((COLLECTOR, reason), count) for reason, count in sorted(problems.items())]))
    return families


def slot_families(topology: Topology, active: Mapping[str, int], queues: Iterable[str] = ()) -> Iterable[Family]:
    """Return slots and busy slots per queue from `active` (executing tasks by worker; only live workers in it).

    A worker that serves two queues counts in both. A worker whose queues or slots are unknown counts in none; those
    of `queues` that nobody serves have no slots, which is claimed only when every worker that was asked has answered.
    """
    slots: Counter[str] = Counter()
    if topology.taken and not topology.silent:
        slots.update(dict.fromkeys((queue for queue in queues if queue not in {UNKNOWN, OTHER, DELAYED}), 0))
    busy: Counter[str] = Counter()
    for worker, running in active.items():
        capacity = topology.concurrency.get(worker)
        if capacity is None:
            continue
        for queue in topology.queues.get(worker, ()):
            slots[queue] += capacity
            # Right after a shrink, or by a heartbeat older than the answer, more may run than there are slots.
            busy[queue] += min(running, capacity)
    return [
        Family(METRICS["celery_queue_busy_slots"], [((queue,), busy[queue]) for queue in slots]),
        Family(METRICS["celery_queue_slots"], [((queue,), slots[queue]) for queue in slots]),
    ]
