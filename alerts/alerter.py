"""The alerter: outbox consumers, incident store and Slack put together, and the threads that keep them going."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from ..monitor.broker import BrokerConfig
from ..monitor.masking import masked
from . import queries, views
from .batches import Batch, Sample
from .consumer import OutboxConsumer
from .delivery import Delivery
from .dispatcher import Dispatcher
from .facts import AlerterFacts
from .intake import REJECTED, Intake
from .mailbox import CHANGES, Mailbox, Pace
from .policy import GuardLimits, Plan, Rule, backoff, plan
from .store import Database, StoreError
from .successes import Successes
from .views import Composer, Links

logger = logging.getLogger("celeryscope.alerter")

IDLE = 0.5
SETTLE_EVERY = 5.0
REGISTER_EVERY = 15.0
PRUNE_EVERY = 3_600.0


@dataclass(frozen=True)
class Config:
    """What the alerter goes by. Times are in seconds."""

    default: Plan
    rules: tuple[Rule, ...] = ()
    links: Links = field(default_factory=Links)
    limits: GuardLimits = field(default_factory=GuardLimits)
    pace: Pace = field(default_factory=Pace)
    fallback: str = ""
    quiet: float = 600.0
    digest_every: float = 600.0
    settle_every: float = SETTLE_EVERY
    retention: float = 30 * 86_400.0

    def plan(self, sample: Sample) -> Plan:
        """Return what is to be done with a failure."""
        return plan(
            self.rules,
            self.default,
            task=sample.task,
            queue=sample.queue or "",
            exception=sample.exception,
            own=sample.settings,
        )


class Alerter:
    """Runs from `start` to `stop`. `failed` is set, and says why, when it cannot go on at all."""

    def __init__(
        self,
        config: Config,
        database: Database,
        delivery: Callable[[Callable[[str], None]], Delivery],
        brokers: Sequence[BrokerConfig],
        successes: Successes,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.database = database
        self.clock = clock
        self.failed: StoreError | None = None
        self.stopping = threading.Event()
        self._successes = successes
        self._work = threading.Event()
        self.intake = Intake(database, config.plan)
        self.mailbox = Mailbox(database, config.plan, config.pace, config.limits)
        composer = Composer(config.plan, config.links)
        requests: Dispatcher
        delivered = delivery(lambda status: requests.requests.update([status]))
        requests = self.dispatcher = Dispatcher(
            self.mailbox, delivered, composer, clock, fallback=config.fallback or config.default.channel
        )
        self.mailbox.editable = delivered.editable
        self.consumers = [OutboxConsumer(broker, self._take, self._rejected, clock) for broker in brokers]
        self.facts = AlerterFacts(clock, self.intake.results, self.dispatcher.requests, self.consumers)
        self._due: dict[str, float] = {}
        self._rng = random.Random()
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=f"celeryscope-{name}", daemon=True)
            for name, step in (("deliver", self.deliver), ("keep", self.keep))
        ]

    def start(self) -> None:
        """Open the store and begin.

        Raises:
            StoreError: the store cannot be used.
        """
        self.database.open()
        self.facts.states = queries.states(self.database, self.clock())
        for thread in self._threads:
            thread.start()
        for consumer in self.consumers:
            consumer.start()

    def stop(self) -> None:
        """End: what was taken is in the store, what was not goes back to the broker."""
        self.stopping.set()
        self._work.set()
        for consumer in self.consumers:
            consumer.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(15.0)
        self.database.close()

    def _take(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        try:
            refused = self.intake.take(batches, self.clock())
        except SQLAlchemyError as error:
            raise StoreError(f"the incident store cannot be used: {_brief(error)}") from None
        dropped = sum(batch.dropped for batch in batches)
        if dropped:
            logger.warning("workers dropped %d messages of failures: the outbox was full", dropped)
        self._work.set()
        return refused

    def _rejected(self, reason: str) -> None:  # noqa: ARG002 - the log line says it
        self.intake.results[REJECTED] += 1

    def _loop(self, step: Callable[[], bool]) -> None:
        failures = 0
        while not self.stopping.is_set():
            try:
                busy = step()
                failures = 0
            except StoreError as error:
                logger.error("the alerter ends: %s", error)  # noqa: TRY400 - one line says it
                self.failed = error
                self.stopping.set()
                return
            except SQLAlchemyError as error:
                failures += 1
                if failures == 1:
                    logger.warning("the incident store cannot be used: %s", _brief(error))
                self.stopping.wait(backoff(failures, self._rng, 15.0))
            except Exception:  # a bug of ours must not end the alerting
                failures += 1
                logger.exception("the alerter stumbled")
                self.stopping.wait(backoff(failures, self._rng))
            else:
                if not busy:
                    self._work.wait(IDLE)

    def deliver(self) -> bool:
        """Make one call to Slack if one is due."""
        return self.dispatcher.step()

    def keep(self) -> bool:
        """Give messages to incidents, and do what is due of the rest."""
        now = self.clock()
        self._work.clear()
        self.mailbox.assign(now)
        if self._is_due("settle", now, self.config.settle_every):
            self._settle(now)
        if self._is_due("register", now, REGISTER_EVERY):
            self.database.register()
        if self._is_due("prune", now, PRUNE_EVERY):
            queries.prune(self.database, now, self.config.retention)
        self._work.wait(IDLE)
        return True

    def _settle(self, now: float) -> None:
        tasks = queries.open_tasks(self.database)
        self._successes.watch(tasks)
        known = {task: at for task in tasks if (at := self._successes.last_success(task)) is not None}
        self.mailbox.settle(now, known, self.config.quiet)
        if not self.mailbox.editable:
            compose = self.dispatcher.composer
            self.mailbox.collect_changes(
                now,
                self.config.digest_every,
                lambda incidents, more: views.encoded(compose.view(CHANGES, incidents, more, now)),
            )
        self.facts.states = queries.states(self.database, now)

    def _is_due(self, name: str, now: float, every: float) -> bool:
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + every
        return True


def _brief(error: SQLAlchemyError) -> str:
    return masked(str(getattr(error, "orig", None) or error).strip().split("\n")[0])[:300]
