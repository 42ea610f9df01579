"""A run and the rules by which an event finds the run it belongs to, among all runs of its task id.

A run is one delivery of one attempt. One task id can have several: the next attempt's `task-received` may come before
`task-retried`, a redelivery may start while the first one still runs on a lost worker, events may arrive in any order,
twice or not at all. The runs of an id form a chain, newest first; ended ones stay in it for a while so that late and
doubled events are told from new ones. Only an event equal in host, clock and timestamp is a duplicate.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from msgspec import Struct

from .rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .events import TaskEvent
    from .workers import Host

# States of a run.
WAITING, RECEIVED, STARTED, ORPHANED, ENDED = range(5)

UNKNOWN_RETRIES = -1
LONGEST_CHAIN = 8
"""Runs of one id that are remembered; more would be a producer that uses one id for everything."""

SUPERSEDED = "superseded"
SILENT = "silent"
UNSEEN = "unseen"
EXPIRED = "expired"
NOT_AN_END = frozenset({"retried", "requeued", SUPERSEDED, EXPIRED})
"""Outcomes after which more may be heard of the same id: it runs again, or a worker meets the expired message."""


class Run(Struct, gc=False, eq=False):
    """One delivery of one attempt of a task, as far as it was seen. Times are unix times, 0 = not seen."""

    # What every event looks at stands first, close together: with 100 000 runs the rest is not in the CPU's cache.
    uuid: str
    row: Row
    state: int = WAITING
    host: Host | None = None
    retries: int = 0
    available_at: float = 0.0
    """When a worker could have taken it, but for its ETA: published, or requeued."""
    first_sent: float = 0.0
    """When the first attempt was published."""
    previous: Run | None = None
    received_at: float = 0.0
    started_at: float = 0.0
    held: bool = False
    """Its row is its own, until the name and queue are known."""
    since: float = 0.0
    """When it came into its state, by the monitor's clock."""
    waits: float = 0.0
    """Since when it has been counted among its row's waiting, by the monitor's clock; 0 where it is not."""
    eta: float = 0.0
    received_clock: int | None = 0
    started_clock: int | None = 0
    ended_at: float = 0.0
    ended_clock: int | None = 0
    outcome: str = ""


class Duplicate(Exception):  # noqa: N818 - not an error
    """The event was seen before, or says nothing new."""


def line_up(run: Run) -> None:
    """Count a run among its row's waiting, from when it came into its state."""
    waiting = run.row.waiting
    run.waits = since = run.since
    waiting[since] = waiting.get(since, 0) + 1


def leave_line(run: Run) -> None:
    """Count a run among its row's waiting no more, if it was."""
    since = run.waits
    if since:
        waiting = run.row.waiting
        if waiting[since] > 1:
            waiting[since] -= 1
        else:
            del waiting[since]
        run.waits = 0.0


def chain(head: Run | None) -> Iterator[Run]:
    """Yield the runs of a task id, newest first."""
    while head is not None:
        yield head
        head = head.previous


def link(run: Run, head: Run | None) -> None:
    """Put a new run before the others of its id, and forget the oldest where they are too many."""
    run.previous = head
    for depth, older in enumerate(chain(head)):
        if depth >= LONGEST_CHAIN and older.state == ENDED:
            older.previous = None
            return


def for_sent(head: Run | None, e: TaskEvent) -> Run | None:
    """Return the run that a late `task-sent` belongs to, None for a new one. Raises Duplicate."""
    retries = e.retries or 0
    found = None
    for run in chain(head):
        if run.available_at == e.timestamp:
            raise Duplicate
        if run.retries in (retries, UNKNOWN_RETRIES):
            found = run  # the oldest delivery of this attempt is what the message was sent for
    # Where that one has its `task-sent`, this is another message under the same id.
    return None if found is not None and found.available_at else found


def for_received(head: Run | None, host: Host, e: TaskEvent) -> Run | None:
    """Return the run that was received by this event, None for a new delivery. Raises Duplicate."""
    retries = e.retries or 0
    late = waiting = None
    for run in chain(head):
        if run.host is host and run.received_at:
            if run.received_at == e.timestamp and run.received_clock == e.clock:
                raise Duplicate
        elif run.state == WAITING:
            if run.retries == retries:
                waiting = run
        elif (
            run.host is host
            and run.retries in (retries, UNKNOWN_RETRIES)
            and e.timestamp <= (run.started_at or run.ended_at)
        ):
            late = run
    return late or waiting


def for_started(head: Run | None, host: Host, e: TaskEvent) -> Run | None:
    """Return the run that was started by this event, None for a delivery that was not seen. Raises Duplicate."""
    received = late = waiting = None
    for run in chain(head):
        if run.host is host:
            if run.started_at:
                if run.started_at == e.timestamp and run.started_clock == e.clock:
                    raise Duplicate
            elif run.state == RECEIVED or run.outcome == SUPERSEDED:
                received = run
            elif run.state == ENDED and e.timestamp <= run.ended_at:
                late = run
        elif run.state == WAITING:
            waiting = run
    if received is not None and (late is None or e.timestamp >= received.received_at):
        return received
    return late or waiting


def for_end(head: Run | None, host: Host, e: TaskEvent, outcome: str) -> Run | None:
    """Return the run that ended by this event, None for one that was not seen. Raises Duplicate.

    An end belongs to the run that is open on its host. Where attempts overlap (a retry at once), a success or failure
    is that of the last attempt, and may come before the `task-retried` of the one before. Else the oldest ends first.
    A second end of a run is dropped: a hard time limit sends two.
    """
    last = outcome in ("succeeded", "failed")
    open_here = waiting = over = None
    for run in chain(head):
        if run.state == WAITING:
            waiting = run
        elif run.host is host:
            if run.state == ENDED:
                over = over or run
                if run.ended_at == e.timestamp and run.ended_clock == e.clock:
                    raise Duplicate
            elif open_here is None or (run.state, run.retries * last) >= (open_here.state, open_here.retries * last):
                open_here = run
    if open_here is not None:
        return open_here
    if over is not None and over.outcome not in NOT_AN_END:
        if over.outcome in (SILENT, UNSEEN):
            return over
        raise Duplicate
    # The next attempt is published before `task-retried`: a waiting retry is not what has just been retried.
    return None if waiting is not None and outcome == "retried" and waiting.retries > 0 else waiting


def parse_eta(eta: str) -> float:
    """Return an ETA (ISO 8601, UTC where it names no zone) as unix time; 0 where it cannot be read."""
    try:
        when = datetime.fromisoformat(eta.replace("Z", "+00:00"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
