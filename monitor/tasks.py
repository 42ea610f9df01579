"""The task table: every event moves a run on and is counted in the row of its task and queue.

Pure: time comes in with each event, nothing is read or sent. Per event it touches plain dicts and lists only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import rows as r
from .exceptions import exception_class, rejected_requeue, unregistered_name
from .labels import UNKNOWN
from .runs import (
    ENDED,
    NOT_AN_END,
    RECEIVED,
    SILENT,
    STARTED,
    SUPERSEDED,
    UNKNOWN_RETRIES,
    WAITING,
    Duplicate,
    Run,
    for_end,
    for_received,
    for_sent,
    for_started,
    leave_line,
    link,
    parse_eta,
)
from .runstore import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import TaskEvent
    from .rows import Row
    from .workers import Host

TOLERANCE = 0.1
"""A wait negative by less than this many seconds is 0: producers stamp `task-sent` after they have published."""


class TaskTable(RunStore):
    """Follows runs from their events; `handlers` take the events, `rows` holds the numbers."""

    def handlers(self) -> dict[str, Callable[[TaskEvent, float], None]]:
        """Return what takes each type of event: a function of the event and the time of its receipt."""
        return {
            "task-sent": self.sent,
            "task-received": self.received,
            "task-started": self.started,
            "task-succeeded": self.succeeded,
            "task-failed": self.failed,
            "task-retried": self.retried,
            "task-revoked": self.revoked,
            "task-rejected": self.rejected,
            "task-cancelled": self.cancelled,
        }

    # --- beginnings -----------------------------------------------------------------------------------------------

    def sent(self, e: TaskEvent, now: float) -> None:
        """A producer published a message. Only this event carries the queue and, with `shadow`, the real name."""
        rows = self.rows
        name = rows.names.get(e.name) or rows.name(e.name) if e.name else rows.name(UNKNOWN)
        queue = e.queue or UNKNOWN
        row = name.rows.get(queue) or rows.row(name, queue)
        uuid = e.uuid
        head = self.live.get(uuid) or self._done.get(uuid) or self._done_before.get(uuid)
        first = e.timestamp
        if head is not None:
            try:
                run = for_sent(head, e)
            except Duplicate:
                return
            if run is not None:
                self._sent_late(run, row, e)
                return
            if head.state != ENDED or head.outcome in NOT_AN_END:
                first = head.first_sent or first
        row.counts[r.SENT] += 1
        name.unsent_streak = self._unsent = 0
        name.runs += 1
        name.sent_runs += 1
        run = Run(uuid, row, WAITING, None, e.retries or 0, e.timestamp, first, since=now)
        self._open(run, head, e.eta, now)
        if e.expires is not None:
            self.expire_at(run, e.expires)
        if self.observer is not None:
            self.observer.observe("sent", row.task, row.queue, e.hostname)

    def received(self, e: TaskEvent, now: float) -> None:
        """A worker got a delivery."""
        host = self.workers.hosts.get(e.hostname) or self.workers.host(e.hostname)
        host.task_at = now
        uuid = e.uuid
        head = run = self.live.get(uuid)
        if head is None:
            head = run = self._done.get(uuid) or self._done_before.get(uuid)
        # The usual case first: sent once, now received.
        if head is not None and (head.state != WAITING or head.previous is not None or head.retries != e.retries):
            try:
                run = for_received(head, host, e)
            except Duplicate:
                return
        fresh = run is None
        if run is None:
            run = self._new(uuid, head, e.name, e.retries or 0, now)
            if head is not None:
                self._supersede(head, run.retries, e.timestamp)
        run.received_at = e.timestamp
        run.received_clock = e.clock
        run.row.counts[r.RECEIVED] += 1
        if run.state == WAITING:
            run.state = RECEIVED
            run.host = host
            run.since = now
            host.reserved += 1
        else:
            self._receipt_late(run, e)
        if fresh:
            self._open(run, head, e.eta, now)
        if self.observer is not None:
            self._tell("received", run, e)

    def started(self, e: TaskEvent, now: float) -> None:  # noqa: C901 - the hot path, in one piece
        """A worker began to execute a delivery."""
        host = self.workers.hosts.get(e.hostname) or self.workers.host(e.hostname)
        if e.pid != host.pid and host.pid and e.pid:
            host = self.workers.other_pid(host, e.pid, now)
        host.task_at = now
        uuid = e.uuid
        run = head = self.live.get(uuid)
        if run is None or run.state != RECEIVED or run.host is not host or run.previous is not None:
            head = head or self._done.get(uuid) or self._done_before.get(uuid)
            try:
                run = for_started(head, host, e)
            except Duplicate:
                return
        if e.timestamp > host.mark:
            host.starts_after += 1
        elif e.timestamp > host.base_at:
            host.starts += 1
        fresh = run is None
        if run is None:
            run = self._new(uuid, head, None, UNKNOWN_RETRIES, now)
        run.started_at = e.timestamp
        run.started_clock = e.clock
        run.row.counts[r.STARTED] += 1
        self._start(run, head, host, now)
        if fresh:
            self._open(run, head, None, now)
        if run.previous is not None:
            self.redeem_orphans(run, e.timestamp)
        if run.available_at:
            self._observe_wait(run)
        if run.received_at:
            self._observe_prefetch(run)
        if self.observer is not None:
            self._tell("started", run, e, wait=_wait(run))

    def _start(self, run: Run, head: Run | None, host: Host, now: float) -> None:
        state = run.state
        if state == ENDED and run.outcome != SUPERSEDED:
            return  # its end overtook it
        leave_line(run)
        if state == RECEIVED:
            host.reserved -= 1
        elif state == ENDED:  # given up as superseded, and started all the same: two deliveries of one message
            run.outcome = ""
            self.live.setdefault(run.uuid, head or run)
        run.state = STARTED
        run.since = now
        run.host = host
        host.running[run] = None

    # --- ends -----------------------------------------------------------------------------------------------------

    def succeeded(self, e: TaskEvent, now: float) -> None:
        """A run returned."""
        run = self._end(e, now, "succeeded")
        if run is None:
            return
        row = run.row
        row.counts[r.SUCCEEDED] += 1
        runtime = e.runtime
        if runtime is None or not 0 <= runtime < 1e9:  # null, or a lie
            runtime = run.ended_at - run.started_at if run.started_at else None
        if runtime is not None and runtime >= 0:
            self.rows.observe(row, r.RUNTIME_SUCCEEDED, runtime)
        self._observe_end(run)
        if self.observer is not None:
            self._tell("succeeded", run, e, runtime=runtime)

    def failed(self, e: TaskEvent, now: float) -> None:
        """A run ended in an error and will not be retried; Celery 5.7 says so of a Reject, too."""
        traceback = bytes(e.traceback) if e.traceback is not None else None
        requeue = rejected_requeue(e.exception, traceback)
        if requeue is not None:
            self._rejected(e, now, requeue=requeue)
            return
        run = self._end(e, now, "failed")
        if run is None:
            return
        if run.held and run.row.task == UNKNOWN:
            run.row.task = unregistered_name(e.exception) or UNKNOWN
        row = run.row
        row.counts[r.FAILED] += 1
        if run.retries > 0:
            row.counts[r.EXHAUSTED] += 1
        exception = exception_class(e.exception, traceback)
        self.rows.exception(row, exception, "failed")
        self._observe_runtime(run, r.RUNTIME_FAILED)
        self._observe_end(run)
        if self.observer is not None:
            self._tell("failed", run, e, exception=exception)

    def retried(self, e: TaskEvent, now: float) -> None:
        """A run ended by asking for another attempt."""
        run = self._end(e, now, "retried")
        if run is None:
            return
        run.row.counts[r.RETRIED] += 1
        exception = exception_class(e.exception, bytes(e.traceback) if e.traceback is not None else None)
        self.rows.exception(run.row, exception, "retried")
        self._observe_runtime(run, r.RUNTIME_RETRIED)
        if self.observer is not None:
            self._tell("retried", run, e, exception=exception)

    def revoked(self, e: TaskEvent, now: float) -> None:
        """A task was revoked: because it expired, while it ran, or before it ran."""
        run = self._end(e, now, "revoked")
        if run is None:
            return
        reason = r.EXPIRED if e.expired else r.TERMINATED if e.terminated else r.REVOKED
        run.row.counts[reason] += 1
        if self.observer is not None:
            self._tell("revoked", run, e)

    def rejected(self, e: TaskEvent, now: float) -> None:
        """A task rejected its delivery."""
        self._rejected(e, now, requeue=bool(e.requeue))

    def _rejected(self, e: TaskEvent, now: float, *, requeue: bool) -> None:
        run = self._end(e, now, "requeued" if requeue else "rejected")
        if run is None:
            return
        run.row.counts[r.REQUEUED if requeue else r.REJECTED] += 1
        if not requeue:
            self.rows.exception(run.row, "Reject", "rejected")
        if self.observer is not None:
            self._tell("rejected", run, e)
        if requeue and run.uuid not in self.live and not run.held:
            # The message is back in its queue: it waits again, from now on.
            again = Run(run.uuid, run.row, WAITING, None, run.retries, e.timestamp, run.first_sent, since=now)
            self._open(again, self._done.get(run.uuid), None, now)

    def cancelled(self, e: TaskEvent, now: float) -> None:
        """A worker gave a run up because it shuts down or has lost its broker."""
        run = self._end(e, now, "cancelled")
        if run is None:
            return
        run.row.counts[r.CANCELLED] += 1
        if self.observer is not None:
            self._tell("cancelled", run, e)

    def _end(self, e: TaskEvent, now: float, outcome: str) -> Run | None:
        """Move the run that ended out of the table; None where the event says nothing new."""
        host = self.workers.hosts.get(e.hostname) or self.workers.host(e.hostname)
        host.task_at = now
        uuid = e.uuid
        run = head = self.live.get(uuid)
        if run is None or run.state != STARTED or run.host is not host or run.previous is not None:
            head = head or self._done.get(uuid) or self._done_before.get(uuid)
            try:
                run = for_end(head, host, e, outcome)
            except Duplicate:
                return None
            if run is None:
                run = self._new(uuid, head, None, UNKNOWN_RETRIES, now)
                link(run, head)
                head = run
            elif run.outcome == SILENT:
                run.row.late_ends += 1
        self._leave(run)
        run.state = ENDED
        run.host = host
        run.ended_at = e.timestamp
        run.ended_clock = e.clock
        run.outcome = outcome
        self._close(uuid, head or run)
        return run

    # --- what comes late ------------------------------------------------------------------------------------------

    def _sent_late(self, run: Run, row: Row, e: TaskEvent) -> None:
        """A `task-sent` that was overtaken by the run's other events."""
        name = self.rows.name(row.task)
        name.unsent_streak = self._unsent = 0
        name.sent_runs += 1
        row.counts[r.SENT] += 1
        run.available_at = e.timestamp
        run.first_sent = run.first_sent or e.timestamp
        if run.retries == UNKNOWN_RETRIES:
            run.retries = e.retries or 0
        if self.observer is not None:
            self.observer.observe("sent", row.task, row.queue, e.hostname)
        if e.eta is not None and not run.eta:
            run.eta = parse_eta(e.eta)
        if run.held:
            name.runs += 1
            self._settle(run, row)
        if run.started_at:
            self._observe_wait(run)
        if run.outcome in ("succeeded", "failed"):
            self._observe_total(run)

    def _receipt_late(self, run: Run, e: TaskEvent) -> None:
        """A `task-received` that was overtaken by the run's start or end."""
        if run.retries == UNKNOWN_RETRIES:
            run.retries = e.retries or 0
        if run.held and e.name and run.row.task == UNKNOWN:
            run.row.task = e.name
        if e.eta is not None and not run.eta:
            run.eta = parse_eta(e.eta)
        if run.started_at:
            self._observe_prefetch(run)

    def _tell(self, kind: str, run: Run, e: TaskEvent, **extra: str | float | None) -> None:
        row = run.row
        if run.held:
            if row.deferred is None:
                row.deferred = []
            row.deferred.append((kind, e.hostname, extra))
        elif self.observer is not None:
            self.observer.observe(kind, row.task, row.queue, e.hostname, **extra)  # type: ignore[arg-type]

    # --- observations ---------------------------------------------------------------------------------------------

    def _observe_wait(self, run: Run) -> None:
        wait = _wait(run)
        if wait is None:
            return
        if wait < 0:
            run.row.counts[r.NEGATIVE_WAIT] += 1
        else:
            self.rows.observe(run.row, r.WAIT, wait)

    def _observe_prefetch(self, run: Run) -> None:
        # Both are stamped by the same worker; an ETA is not waiting.
        self._observe(run, r.PREFETCH, run.started_at - max(run.received_at, run.eta))

    def _observe_runtime(self, run: Run, which: int) -> None:
        if run.started_at:
            self._observe(run, which, run.ended_at - run.started_at)

    def _observe_end(self, run: Run) -> None:
        if run.retries >= 0:
            self.rows.observe(run.row, r.RETRIES, run.retries)
        if run.first_sent:
            self._observe_total(run)

    def _observe_total(self, run: Run) -> None:
        self._observe(run, r.TOTAL, run.ended_at - run.first_sent)

    def _observe(self, run: Run, which: int, seconds: float) -> None:
        """Put a time into a histogram; one that clocks deny (two of them, or one that was set) is counted instead."""
        if seconds < -TOLERANCE:
            run.row.counts[r.NEGATIVE_WAIT] += 1
        else:
            self.rows.observe(run.row, which, max(0.0, seconds))


def _wait(run: Run) -> float | None:
    """Seconds that a started run had been waiting; negative where two clocks disagree, None where it is not known."""
    if not run.available_at or not run.started_at:
        return None
    wait = run.started_at - max(run.available_at, run.eta)
    return 0.0 if -TOLERANCE < wait < 0 else wait
