"""One broker's facts: events go in, every part that learns from them is fed in order, and families come out.

The only lock of the monitor is here. It is held for a batch of events at most, and while numbers are copied.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from .guard import Guard
from .labels import Caps
from .pipeline_families import copy_hosts, copy_table, family, task_families, worker_families
from .restored import Restored
from .rows import Snapshot
from .tasks import TaskTable
from .workers import WorkerWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from .catalog import Metric
    from .events import Event
    from .facts import Family
    from .queues import QueueSnapshot, Topology
    from .restored import Answers
    from .runstore import Observer

logger = logging.getLogger(__name__)

JUDGE_EVERY = 5.0
LAGGING = 2.0
"""Seconds of event lag after which events may have been lost (RabbitMQ keeps them for 5 s)."""


class Schedules(Protocol):
    """What the pipeline asks of the schedule ledger."""

    @property
    def kinds(self) -> Iterable[str]:
        """The task events it takes, without `task-`."""

    @property
    def watched(self) -> Mapping[str, Any]:
        """The task ids that a beat dispatched and whose runs it wants to hear of."""

    @property
    def tasks(self) -> AbstractSet[str]:
        """The names of scheduled tasks: it wants to hear of their receipt, for some run before beat says so."""

    def handlers(self) -> Mapping[str, Callable[[Any, float], None]]:
        """Return what takes each type of beat event."""

    def run_event(self, kind: Any, uuid: str, task: str, at: float, now: float) -> None:
        """Take note that a watched run has started or ended at `at`, by the worker's clock."""

    def tick(self, now: float, hearing: bool = True) -> None:
        """Let time pass; while the monitor hears nothing, silence says nothing."""

    def families(self) -> Iterable[Family]:
        """Return the beat metrics."""

    def dump(self) -> Any:
        """Return the ledger as builtins."""

    def load(self, state: Any, *, crashed: bool = False) -> None:
        """Take back what `dump` gave; after a crash all counts begin at 0."""


class Pipeline:
    """Feeds the task table, the worker watch and the schedule ledger of one broker.

    Args:
        catalog: the metrics, with the buckets in force.
        caps: the label caps.
        most: live tasks at most.
        expire: seconds after which a task that nobody took is forgotten.
        worker_timeout: seconds of silence after which a worker is lost.
        forget_worker_after: seconds after which a worker that is gone is forgotten.
        ledger: the schedule ledger, where there is one.
        observer: somebody who wants to hear of each task event (the celery-exporter names).
        clock: unix time, for the ages of what goes on.
    """

    def __init__(
        self,
        catalog: Mapping[str, Metric],
        caps: Caps | None = None,
        *,
        most: int = 200_000,
        expire: float = 86_400.0,
        worker_timeout: float = 60.0,
        forget_worker_after: float = 3_600.0,
        ledger: Schedules | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.catalog = catalog
        self.caps = caps or Caps()
        self.lock = threading.Lock()
        self.workers = WorkerWatch(self.caps, timeout=worker_timeout, forget=forget_worker_after)
        self.tasks = TaskTable(catalog, self.caps, self.workers, most=most, expire=expire)
        self.tasks.observer = observer
        self.ledger = ledger
        self.failures: Counter[str] = Counter()
        self.connected = False
        self.restored: Restored | None = None
        self._clock = clock
        self._judged = 0.0
        self._was_down = False
        self._queues: Callable[[], tuple[Topology, QueueSnapshot]] | None = None
        self._introduce(observer)
        handlers: dict[str, Callable[[Any, float], None]] = {**self.tasks.handlers(), **self.workers.handlers()}
        if ledger is not None:
            handlers.update(ledger.handlers())
            for kind in ledger.kinds:
                handlers[f"task-{kind}"] = self._watching(kind, handlers[f"task-{kind}"], ledger)
        # [events so far, handler]: one look-up an event.
        self._slots: dict[str, list[Any]] = {kind: [0, handler] for kind, handler in handlers.items()}
        self._slots.setdefault("celeryscope-echo", [0, lambda *_: None])

    def _introduce(self, observer: Observer | None) -> None:
        """Let the worker watch tell the task table what becomes of workers."""
        self.workers.on_gone = self.tasks.worker_gone
        self.workers.on_back = self.tasks.worker_back
        self.workers.silently_over = self.tasks.silently_over
        self.workers.end_silently = self.tasks.end_silently
        self.workers.holds_tasks = self.tasks.holds_tasks
        if observer is not None:
            self.workers.on_forgotten = observer.forget

    def _watching(
        self, kind: str, handler: Callable[[Any, float], None], ledger: Schedules
    ) -> Callable[[Any, float], None]:
        """Tell the ledger of the runs that a beat dispatched, after the table."""

        def handle(e: Any, now: float) -> None:
            handler(e, now)
            if (ledger.tasks or ledger.watched) and (e.uuid in ledger.watched or e.name in ledger.tasks):
                ledger.run_event(kind, e.uuid, e.name or "", e.timestamp, now)

        return handle

    # --- the sink of a source ---------------------------------------------------------------------------------------

    def feed(self, events: Sequence[Event], now: float) -> None:
        """Take a batch of events in the order of arrival; `now` is unix time by the monitor's clock."""
        slots = self._slots
        with self.lock:
            for event in events:
                slot = slots.get(event.type)
                if slot is None:
                    slot = slots["other"] = slots.get("other") or [0, lambda *_: None]
                slot[0] += 1
                try:
                    slot[1](event, now)
                except Exception as error:  # noqa: BLE001 - one event must not cost the batch its others
                    self._failed(event.type, error)

    def _failed(self, kind: str, error: Exception) -> None:
        if Guard.reraise:
            raise error
        self.failures["internal"] += 1
        with Guard(f"the monitor's handling of {kind}"):
            raise error

    def tick(self, now: float) -> None:
        """Let time pass: holds, ETAs, silence of workers, silent ends, overdue schedules."""
        with self.lock:
            self.tasks.tick(now)
            self.workers.tick(now, connected=self.connected)
            if self.ledger is not None:
                self.ledger.tick(now, self.connected)
            if now - self._judged >= JUDGE_EVERY:
                self._judged = now
                self._judge(now)

    def connection(self, up: bool, now: float) -> None:
        """Events come (again), or stop coming: what is missed from here on was lost on the way."""
        with self.lock:
            self.connected = up
            # The first connection after a restart ends the time that the monitor was down.
            self.workers.gap(now, down=self._was_down)
            self._was_down = False

    def judge_restored(self, answers: Answers, *, last: bool = False) -> None:
        """Take out what was open before a restart and is over, as workers and queues say; a part of it each time.

        With `last`, what they leave undecided is not judged again.
        """
        with self.lock:
            if self.restored is not None:
                self.restored.judge(answers)
                self.restored = (not last and self.restored) or None

    def lag(self, seconds: float, now: float) -> None:
        """Take note of the event lag; with much of it events may be dropped on the way."""
        if seconds > LAGGING:
            with self.lock:
                self.workers.gap(now)

    def watch_queues(self, look: Callable[[], tuple[Topology, QueueSnapshot]]) -> None:
        """Let the worker watch know, by `look`, who serves which queue and what lies in them."""
        self._queues = look

    def _judge(self, now: float) -> None:
        if self._queues is None:
            return
        topology, snapshot = self._queues()
        full = {name for name, facts in snapshot.queues.items() if facts.ready}
        waiting = {worker: bool(full.intersection(queues)) for worker, queues in topology.queues.items()}
        self.workers.judge_wedged(waiting, topology.concurrency, now)

    # --- facts ------------------------------------------------------------------------------------------------------

    def families(self) -> Iterable[Family]:
        """Return everything that the events told; copies under the lock, builds outside of it."""
        now = self._clock()
        with self.lock:
            snapshot = Snapshot(self.tasks.rows.names)
            table = copy_table(self.tasks, now)
            hosts = copy_hosts(self.workers)
            counts = [((kind,), slot[0]) for kind, slot in self._slots.items()]
            sizes = (len(self.tasks.live), self.tasks.evicted, self.tasks.unseen)
            overflow = [((label,), n) for label, n in self.caps.overflow.items()]
            schedules = list(self.ledger.families()) if self.ledger is not None else []
        topology, queues = self._queues() if self._queues is not None else (None, None)
        yield from self.tasks.rows.families(snapshot)
        yield from task_families(self.catalog, table)
        yield from worker_families(self.catalog, hosts, topology, queues.queues if queues is not None else ())
        yield from schedules
        yield family(self.catalog, "celeryscope_events_total", counts)
        yield family(self.catalog, "celeryscope_task_table_size", [((), sizes[0])])
        yield family(self.catalog, "celeryscope_task_table_evicted_total", [((), sizes[1])])
        yield family(self.catalog, "celeryscope_task_outcomes_missed_total", [((), sizes[2])])
        yield family(self.catalog, "celeryscope_label_overflow_total", overflow)
        failures = [((kind,), n) for kind, n in list(self.failures.items())]
        yield family(self.catalog, "celeryscope_events_malformed_total", failures)

    # --- state ------------------------------------------------------------------------------------------------------

    def dump(self, *, clean: bool) -> dict[str, Any]:
        """Return what must survive a restart, as builtins.

        Counters survive a clean stop only. After a crash the last save is older than the last scrape: counters that
        start from it would go backwards, which Prometheus reads as a restart from 0 and adds in full.
        """
        with self.lock:
            return {
                "clean": clean,
                "rows": self.tasks.rows.dump() if clean else None,
                "runs": self.tasks.dump(),
                "workers": self.workers.dump(),
                "events": {kind: slot[0] for kind, slot in self._slots.items()} if clean else None,
                "ledger": self.ledger.dump() if self.ledger is not None else None,
            }

    def load(self, state: dict[str, Any], now: float, *, crashed: bool = False) -> None:
        """Take back what `dump` gave, before the first event; `crashed` says that more was counted after a clean stop.

        All counters then begin at 0, as after any crash.
        """
        crashed = crashed or not state["clean"]
        if crashed:
            state = {**state, "rows": None, "events": None}
        with self.lock:
            self._was_down = True
            self.workers.load(state["workers"], now, crashed=crashed)
            if state["rows"] is not None:
                self.tasks.rows.load(state["rows"])
            self.tasks.load(state["runs"], now)
            self.restored = Restored(self.tasks, now)
            for kind, n in (state["events"] or {}).items():
                self._slots.setdefault(kind, [0, lambda *_: None])[0] += n
            if self.ledger is not None and state["ledger"] is not None:
                self.ledger.load(state["ledger"], crashed=crashed)
