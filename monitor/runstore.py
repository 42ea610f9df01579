"""Where runs are kept: live, held back for a second, delayed by an ETA, orphaned, remembered; bounded and expiring.

Pure, like the task table that is built on it: time is a parameter.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from . import rows as r
from . import runstate
from .labels import UNKNOWN
from .rows import Row, Rows
from .runs import (
    ENDED,
    EXPIRED,
    ORPHANED,
    RECEIVED,
    SILENT,
    STARTED,
    SUPERSEDED,
    UNKNOWN_RETRIES,
    UNSEEN,
    WAITING,
    Run,
    chain,
    leave_line,
    line_up,
    link,
    parse_eta,
)
from .silent_ends import likely_over, started_by

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .catalog import Metric
    from .labels import Caps
    from .workers import Host, WorkerWatch

HOLD = 1.0
"""Seconds that a run without a queue (or name) waits for a `task-sent` that its other events overtook."""

UNSENT_STREAK = 64
"""So many runs of a task in a row without a `task-sent`: its producers do not send any, holding is no use."""

UNSENT_AT_ALL = 1_000
"""So many runs of whatever tasks in a row: no producer sends any, also not for names that are new."""

MOST_HELD = 50_000
SWEEP_EVERY = 60.0


class Observer(Protocol):
    """Somebody who is told of each event once its task and queue are known (the celery-exporter names)."""

    def observe(
        self,
        kind: str,
        task: str,
        queue: str,
        hostname: str,
        *,
        exception: str | None = None,
        runtime: float | None = None,
        wait: float | None = None,
    ) -> None:
        """`kind` is the event's type without `task-`; times are in seconds."""
        ...

    def forget(self, worker: str) -> None:
        """Hear that the worker is gone for good."""
        ...


class RunStore:
    """The runs of one broker's tasks, and `rows`, their numbers.

    Args:
        catalog: the metrics, with the buckets in force.
        caps: the label caps, shared by the parts of one monitor.
        workers: the worker watch, whose hosts the runs are attributed to.
        most: live tasks at most; when more come the oldest are dropped and counted in `evicted`.
        expire: seconds after which a task that nobody took, or an orphan, is forgotten.
        remember: ended tasks that are remembered by count (up to twice as many).
    """

    def __init__(
        self,
        catalog: Mapping[str, Metric],
        caps: Caps,
        workers: WorkerWatch,
        *,
        most: int = 200_000,
        expire: float = 86_400.0,
        remember: int = 10_000,
    ) -> None:
        self.rows = Rows(catalog, caps)
        self.workers = workers
        self.most = most
        self.expire = expire
        self.remember = remember
        self.live: dict[str, Run] = {}
        self.orphans: dict[Run, None] = {}
        self.evicted = 0
        self.unseen = 0
        self.restored_at = 0.0
        self.observer: Observer | None = None
        self._done: dict[str, Run] = {}
        self._done_before: dict[str, Run] = {}
        self._held: deque[tuple[float, Run]] = deque()
        self._delayed: list[tuple[float, int, Run]] = []
        self._expiring: list[tuple[float, int, Run]] = []
        self._sequence = 0
        self._swept = 0.0
        self._unsent = 0

    # --- entering and leaving ---------------------------------------------------------------------------------------

    def _new(self, uuid: str, head: Run | None, task: str | None, retries: int, now: float) -> Run:
        """Make a run that no `task-sent` announced; its row is known from its id, held back, or unknown."""
        if head is not None and not head.held and (retries in (head.retries, UNKNOWN_RETRIES)):
            if retries == UNKNOWN_RETRIES:
                retries = head.retries + (head.outcome == "retried" and head.retries >= 0)
            return Run(uuid, head.row, WAITING, None, retries, 0.0, head.first_sent, since=now)
        if task is None and head is not None:
            task = head.row.task
        if task is not None and task != UNKNOWN:
            name = self.rows.names.get(task) or self.rows.name(task)
            name.unsent_streak += 1
            self._unsent += 1
            if name.unsent_streak > (UNSENT_STREAK if not name.sent_runs else 100 * UNSENT_STREAK) or (
                self._unsent > UNSENT_AT_ALL and not name.sent_runs
            ):
                name.runs += 1
                return Run(uuid, self.rows.row(name, UNKNOWN), WAITING, None, retries, since=now)
        run = Run(uuid, Row(task or UNKNOWN, UNKNOWN), WAITING, None, retries, since=now, held=True)
        if head is not None:
            run.first_sent = head.first_sent
        if len(self._held) >= MOST_HELD:
            self._settle_unknown(self._held.popleft()[1])
        self._held.append((now + HOLD, run))
        return run

    def _open(self, run: Run, head: Run | None, eta: str | None, now: float) -> None:
        """Enter a new open run into the table."""
        if head is not None:
            link(run, head)
        self.live[run.uuid] = run
        if run.state < STARTED:
            if eta is not None:
                run.eta = parse_eta(eta)
            self._line_up(run, now)
        if len(self.live) > self.most:
            self._evict()

    def _line_up(self, run: Run, now: float) -> None:
        """Let a run that has not started wait: for its ETA, or for a worker to take it."""
        if run.eta > now:
            self._sequence += 1
            heappush(self._delayed, (run.eta, self._sequence, run))
        else:
            line_up(run)

    def _leave(self, run: Run) -> None:
        """Take a run out of wherever its state has put it."""
        state = run.state
        if state == STARTED:
            if run.host is not None:
                run.host.running.pop(run, None)
        elif state == ORPHANED:
            self.orphans.pop(run, None)
        elif state != ENDED:
            leave_line(run)
            if state == RECEIVED and run.host is not None:
                run.host.reserved -= 1

    def _close(self, uuid: str, head: Run) -> None:
        """Remember an id by its runs once none of them is open any more."""
        if head.previous is not None and any(run.state != ENDED for run in chain(head)):
            self.live[uuid] = head
            return
        if head.state != ENDED:
            self.live[uuid] = head
            return
        self.live.pop(uuid, None)
        done = self._done
        done[uuid] = head
        if len(done) >= self.remember:
            self._done_before, self._done = done, {}

    def _evict(self) -> None:
        """Drop the oldest hundredth of the table."""
        for uuid in list(islice(self.live, max(1, self.most // 100))):
            for run in chain(self.live.pop(uuid)):
                self._leave(run)
                if run.state != ENDED:
                    run.state, run.outcome = ENDED, "evicted"
            self.evicted += 1

    def _supersede(self, head: Run, retries: int, at: float) -> None:
        """A message came again: deliveries of it that lay unstarted in a worker are void."""
        for run in chain(head):
            if run.state == RECEIVED and run.retries == retries:
                self._leave(run)
                run.state, run.outcome, run.ended_at = ENDED, SUPERSEDED, at

    def _settle(self, run: Run, row: Row) -> None:
        """The run's task and queue are known now: move its numbers to the row where they belong."""
        own = run.row
        run.row = row
        run.held = False
        row.absorb(own)
        if run.waits:
            row.waiting[run.waits] = row.waiting.get(run.waits, 0) + 1
        if self.observer is not None and own.deferred:
            for kind, hostname, extra in own.deferred:
                self.observer.observe(kind, row.task, row.queue, hostname, **extra)

    def _settle_unknown(self, run: Run) -> None:
        if run.held:
            name = self.rows.name(run.row.task)
            name.runs += 1
            self._settle(run, self.rows.row(name, UNKNOWN))

    # --- time passes ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Give up holding what was held long enough, let ETAs come due, forget what nobody will take."""
        held = self._held
        while held and held[0][0] <= now:
            self._settle_unknown(held.popleft()[1])
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            run = heappop(delayed)[2]
            if run.state < STARTED:
                run.since = now
                line_up(run)
        expiring = self._expiring
        while expiring and expiring[0][0] <= now:
            run = heappop(expiring)[2]
            if run.state < STARTED:
                self._give_up(run, EXPIRED)
        if now - self._swept >= SWEEP_EVERY:
            self._swept = now
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        since = now - self.expire
        old = []
        if any(min(row.waiting) < since for row in self.rows.all() if row.waiting):
            for run in self.open_runs():
                taken = run.state == RECEIVED and run.host is not None and run.host.up
                if run.waits and run.since < since and not taken:
                    old.append(run)
        old += [run for run in self.orphans if now - run.since > self.expire]
        for run in old:
            self._give_up(run, "forgotten")
        if len(self._delayed) > 2 * self.most:
            self._delayed = sorted(entry for entry in self._delayed if entry[2].state < STARTED)
        if len(self._expiring) > 2 * self.most:
            self._expiring = sorted(entry for entry in self._expiring if entry[2].state < STARTED)

    def expire_at(self, run: Run, expires: str) -> None:
        """A message that expires waits no longer: RabbitMQ drops it without a word, a worker when it meets it."""
        self._sequence += 1
        heappush(self._expiring, (parse_eta(expires), self._sequence, run))

    def _give_up(self, run: Run, outcome: str) -> None:
        self._leave(run)
        run.state, run.outcome = ENDED, outcome
        head = self.live.get(run.uuid)
        if head is not None:
            self._close(run.uuid, head)

    # --- workers come and go ----------------------------------------------------------------------------------------

    def worker_gone(self, host: Host, now: float) -> None:
        """A worker is lost, said goodbye or was restarted: what it was running is orphaned."""
        for run in host.running:
            run.state = ORPHANED
            run.since = run.since or now
            self.orphans[run] = None
        host.running.clear()

    def worker_back(self, host: Host) -> None:
        """A worker that was thought lost is heard again: its runs go on."""
        back = [run for run in self.orphans if run.host is host]
        for run in back:
            del self.orphans[run]
            run.state = STARTED
        # `started_by` looks for the newest at the end.
        host.running = dict.fromkeys(sorted([*host.running, *back], key=lambda run: run.started_at))

    def holds_tasks(self, host: Host, now: float) -> bool:
        """Tell whether a worker has received tasks that it could have started by now and did not."""
        return host.reserved > 0 and any(
            run.host is host and run.state == RECEIVED and run.eta <= now for run in self.open_runs()
        )

    def redeem_orphans(self, run: Run, now: float) -> None:
        """A redelivery under the same id takes its orphans back: they are no longer without an heir."""
        for older in chain(run.previous):
            gone = older.state == STARTED and older.host is not None and not older.host.up
            if older.state == ORPHANED or gone:
                self._leave(older)
                older.state, older.outcome, older.ended_at = ENDED, SUPERSEDED, now

    def silently_over(self, host: Host, at: float, active: int) -> int:
        """Return how many runs on a worker must have ended without an event.

        The worker said that `active` tasks were under way at `at` (its own clock); what started earlier and still
        seems to run beyond that number has ended silently: `Ignore`, `send_events=False`, or a lost end event.
        """
        return max(0, started_by(host.running, at) - active) if len(host.running) > active else 0

    def end_silently(self, host: Host, at: float, excess: int) -> None:
        """End so many runs of a worker, that were under way at `at`, without an event."""
        for run in likely_over(host.running, at, excess, self.restored_at):
            self.end_unheard(run, at)

    def end_unheard(self, run: Run, at: float) -> None:
        """End a run without an event: a silent end, or one that fell into the time that the monitor was down."""
        self._leave(run)
        run.state, run.outcome, run.ended_at = ENDED, SILENT, at
        if run.since < self.restored_at:
            run.outcome = UNSEEN
            self.unseen += 1
        elif run.row.late_ends:
            run.row.late_ends -= 1  # one that was counted as silent had ended with an event after all
        else:
            run.row.counts[r.SILENT_END] += 1
        self._close(run.uuid, self.live.get(run.uuid) or run)

    # --- state ------------------------------------------------------------------------------------------------------

    def open_runs(self) -> list[Run]:
        """Return the runs that have not ended, those of a task id from the oldest to the newest."""
        found: list[Run] = []
        for head in self.live.values():
            if head.previous is None:
                if head.state != ENDED:
                    found.append(head)
            else:
                found += [run for run in reversed(list(chain(head))) if run.state != ENDED]
        return found

    def dump(self) -> dict[str, Any]:
        """Return the open runs as builtins, oldest first, for the state file."""
        return runstate.dump(self.open_runs())

    def load(self, state: dict[str, Any], now: float) -> None:
        """Take back the open runs that `dump` gave."""
        saved = list(runstate.load(state, lambda task, queue: self.rows.row(self.rows.name(task), queue)))
        # One thing at a time: with 200 000 runs that is a third faster than all of it for each run in turn.
        for run, _ in saved:
            head = self.live.setdefault(run.uuid, run)
            if head is not run:
                link(run, head)
                self.live[run.uuid] = run
        for run, hostname in saved:
            if run.held:
                run.row = Row(run.row.task, run.row.queue)
                self._held.append((now + HOLD, run))
            if run.state == ORPHANED or hostname is not None:
                self._load_host(run, hostname)
        for run, _ in saved:
            if run.state < STARTED:
                self._line_up(run, now)
        while len(self.live) > self.most:
            self._evict()

    def _load_host(self, run: Run, hostname: str | None) -> None:
        if run.state == ORPHANED or hostname is None:
            self.orphans[run] = None
            run.host = self.workers.absent(hostname)
            return
        run.host = host = self.workers.hosts.get(hostname) or self.workers.host(hostname)
        if run.state == RECEIVED:
            host.reserved += 1
        elif run.state == STARTED:
            host.running[run] = None
