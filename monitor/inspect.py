"""Asks workers, rarely, which queues they consume from and how many slots they have (edge)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from .broker import connect, reason
from .labels import LONGEST
from .queues import Answer, Topology, answered, is_noise, without

if TYPE_CHECKING:
    from .broker import BrokerConfig

logger = logging.getLogger(__name__)

EVERY = 300.0
DEBOUNCE = 3.0
"""Seconds of quiet after a new worker before it is asked: a deployment starts many, and one question is for all."""
PATIENCE = 15.0
"""Seconds after which new workers are asked although more keep coming."""
RETRY = 15.0
SILENCES = 3
"""Rounds without an answer after which what a worker said before no longer counts."""
AT_A_TIME = 200
MOST = 2_000
MOST_QUEUES = 500
MOST_SLOTS = 100_000
"""Of one worker: one that claims more lies, and would drown what the others of its queues say."""


class Rounds:
    """Decides when to ask whom (pure); the times given are of any one monotonic clock."""

    def __init__(self, every: float = EVERY, debounce: float = DEBOUNCE, patience: float = PATIENCE) -> None:
        self._every = every
        self._debounce = debounce
        self._patience = patience
        self._known: dict[str, int] = {}
        self._fresh: set[str] = set()
        self._first_fresh = self._last_fresh = 0.0
        self._asked_at: float | None = None
        self._again: tuple[float, list[str]] | None = None

    def know(self, workers: Iterable[str], now: float) -> None:
        """Take in live workers; the ones not known yet will be asked soon."""
        for worker in workers:
            if worker in self._known or len(self._known) >= MOST:
                continue
            self._known[worker] = 0
            self._first_fresh = self._first_fresh if self._fresh else now
            self._last_fresh = now
            self._fresh.add(worker)

    def forget(self, workers: Iterable[str]) -> None:
        """Drop workers that are gone; they are asked again when they come back."""
        for worker in workers:
            self._known.pop(worker, None)
            self._fresh.discard(worker)

    def due(self, now: float) -> list[str] | None:
        """Return whom to ask now: None is nobody, an empty list everybody (at the start, nobody is known)."""
        if self._asked_at is None or now - self._asked_at >= self._every:
            everybody = self._asked_at is None or not self._known
            self._asked_at = now
            if everybody:
                return []  # who is known already and does not answer will still be asked by name
            self._fresh.clear()
            return sorted(self._known)
        if self._again is not None and now >= self._again[0]:
            (_, again), self._again = self._again, None
            return again
        if self._fresh and (now - self._last_fresh >= self._debounce or now - self._first_fresh >= self._patience):
            asked, self._fresh = sorted(self._fresh), set()
            return asked
        return None

    def failed(self, asked: Sequence[str], now: float) -> None:
        """Note that the question could not be put: it is put again soon."""
        self._again = now + RETRY, list(asked)

    def answered(self, asked: Sequence[str], answers: Iterable[str]) -> list[str]:
        """Note who answered; return the workers of which, after a long silence, nothing is known any more."""
        for worker in answers:
            self._fresh.discard(worker)
            if worker in self._known or len(self._known) < MOST:
                self._known[worker] = 0
        lapsed = []
        for worker in set(asked).difference(answers):
            if worker in self._known:
                self._known[worker] += 1
                if self._known[worker] >= SILENCES:
                    lapsed.append(worker)
        return lapsed


class Inspector:
    """Keeps a `Topology`: `round` asks whoever is due, by name, and takes what comes back within `timeout` seconds."""

    def __init__(self, ask: Callable[[Sequence[str]], Mapping[str, Answer]], rounds: Rounds | None = None) -> None:
        self.topology = Topology()
        self._ask = ask
        self._rounds = rounds or Rounds()
        self._failing = False

    def round(
        self, came: Iterable[str], went: Iterable[str], monotonic: float, now: float, *, again: Iterable[str] = ()
    ) -> bool:
        """Take in who came, went and was started again, and ask where it is time; tell whether it was. Never raises.

        What is known of a worker that was started again holds until it has answered.
        """
        went, again = frozenset(went), frozenset(again)
        self._rounds.forget(went | again)
        self._rounds.know([*came, *again], monotonic)
        if went:
            self.topology = without(self.topology, went)
        asked = self._rounds.due(monotonic)
        if asked is None:
            return False
        try:
            answers = self._ask(asked)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises: the next round tries again
            if not self._failing:
                logger.warning("workers cannot be asked for their queues and slots: %s", reason(error))
            self._failing = True
            self._rounds.failed(asked, monotonic)
            return True
        self._failing = False
        lapsed = self._rounds.answered(asked, answers)
        self.topology = answered(self.topology, answers, asked, lapsed, now)
        return True


def asker(config: BrokerConfig, timeout: float = 2.0) -> Callable[[Sequence[str]], dict[str, Answer]] | None:
    """Return how to ask the workers of this broker; None where it has no remote control (SQS and the like).

    `timeout` is how long to wait for another answer, in seconds.
    """
    with config.connection() as probe:
        if "fanout" not in probe.transport.implements.exchange_type:
            return None

    def ask(workers: Sequence[str]) -> dict[str, Answer]:
        with config.connection() as connection:
            connect(connection)
            queues, stats = (
                replies(connection, config.control_exchange, command, workers, timeout)
                for command in ("active_queues", "stats")
            )
        return {worker: Answer(_queues(queues.get(worker)), *_pool(stats.get(worker))) for worker in {*queues, *stats}}

    return ask


def tasks_held(config: BrokerConfig, timeout: float = 2.0) -> dict[str, frozenset[str]]:
    """Return the ids of the tasks that each worker executes or holds ready, from those that answer within `timeout` s.

    Raises:
        Exception: whatever the transport raises; a broker without remote control gives no answers instead.
    """
    with config.connection() as connection:
        if "fanout" not in connection.transport.implements.exchange_type:
            return {}
        connect(connection)
        # In this order: what begins to run between the two is in both answers, not in neither.
        reserved, active = (
            replies(connection, config.control_exchange, command, (), timeout) for command in ("reserved", "active")
        )
    # Both or none: what a worker did not say in full proves nothing.
    return {worker: _ids(active[worker]) | _ids(reserved[worker]) for worker in active.keys() & reserved.keys()}


def _ids(said: object) -> frozenset[str]:
    requests = said if isinstance(said, list) else []
    return frozenset(str(request["id"]) for request in requests if isinstance(request, dict) and "id" in request)


def replies(
    connection: Any,
    namespace: str,
    command: str,
    workers: Sequence[str],
    timeout: float,
    **arguments: Any,
) -> dict[str, Any]:
    """Send one command, to everybody where nobody is named, and collect the answers that come within `timeout` s.

    Kombu deletes the reply queue and its binding afterwards.
    """
    from .replies import Mailbox

    mailbox: Any = Mailbox(namespace)(connection)
    if not workers:
        return dict(mailbox.multi_call(command, arguments, timeout=timeout))
    came: dict[str, Any] = {}
    for start in range(0, len(workers), AT_A_TIME):
        mailbox.asked = workers[start : start + AT_A_TIME]
        came.update(mailbox.call(list(mailbox.asked), command, arguments, timeout=timeout))
    return came


def _queues(said: object) -> frozenset[str] | None:
    if not isinstance(said, list):
        return None
    names = (queue.get("name") for queue in said if isinstance(queue, dict))
    good = (name for name in names if isinstance(name, str) and not is_noise(name) and len(name) <= LONGEST)
    return frozenset(islice(good, MOST_QUEUES))


def _pool(said: object) -> tuple[int | None, str | None]:
    pool = said.get("pool") if isinstance(said, dict) else None
    if not isinstance(pool, dict):
        return None, None
    slots, kind = pool.get("max-concurrency"), pool.get("implementation")
    return (
        slots if isinstance(slots, int) and not isinstance(slots, bool) and 0 <= slots <= MOST_SLOTS else None,
        # "prefork" of what reads celery.concurrency.prefork:TaskPool
        kind.partition(":")[0].rpartition(".")[2][:LONGEST] if isinstance(kind, str) else None,
    )
