"""The numbers of tasks: one row of plain lists for each (task, queue), and their form as metric families."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .facts import Buckets, Family, Labels
from .labels import OTHER, UNKNOWN, Caps

if TYPE_CHECKING:
    from .catalog import Metric

# Indices into Row.counts, in the order of COUNTERS.
(
    SENT,
    RECEIVED,
    STARTED,
    SUCCEEDED,
    FAILED,
    RETRIED,
    CANCELLED,
    SILENT_END,
    EXHAUSTED,
    NEGATIVE_WAIT,
    EXPIRED,
    TERMINATED,
    REVOKED,
    REJECTED,
    REQUEUED,
) = range(15)

COUNTERS: tuple[tuple[str, Labels], ...] = (
    ("celery_task_sent_total", ()),
    ("celery_task_received_total", ()),
    ("celery_task_started_total", ()),
    ("celery_task_succeeded_total", ()),
    ("celery_task_failed_total", ()),
    ("celery_task_retried_total", ()),
    ("celery_task_cancelled_total", ()),
    ("celery_task_silent_end_total", ()),
    ("celery_task_retries_exhausted_total", ()),
    ("celery_task_negative_waits_total", ()),
    ("celery_task_revoked_total", ("expired",)),
    ("celery_task_revoked_total", ("terminated",)),
    ("celery_task_revoked_total", ("revoked",)),
    ("celery_task_rejected_total", ("false",)),
    ("celery_task_rejected_total", ("true",)),
)

# Indices into Row.histograms, in the order of HISTOGRAMS.
RUNTIME_SUCCEEDED, RUNTIME_FAILED, RUNTIME_RETRIED, WAIT, PREFETCH, TOTAL, RETRIES = range(7)

HISTOGRAMS: tuple[tuple[str, Labels], ...] = (
    ("celery_task_runtime_seconds", ("succeeded",)),
    ("celery_task_runtime_seconds", ("failed",)),
    ("celery_task_runtime_seconds", ("retried",)),
    ("celery_task_wait_seconds", ()),
    ("celery_task_prefetch_seconds", ()),
    ("celery_task_total_seconds", ()),
    ("celery_task_retries", ()),
)


MOST_ROWS = 20_000
"""Of tasks times queues, each some 20 series: the caps of both alone would let a million through."""


class Row:
    """All numbers of one task on one queue; touched for every event, hence lists and no objects inside.

    A histogram is None until its first observation: a task with one outcome does not carry the series of three.
    """

    __slots__ = (
        "counts",
        "deferred",
        "exceptions",
        "histograms",
        "labels",
        "late_ends",
        "queue",
        "series",
        "task",
        "waiting",
    )

    def __init__(self, task: str, queue: str) -> None:
        self.task = task
        self.queue = queue
        self.labels: Labels = (task, queue)
        self.counts = [0] * len(COUNTERS)
        self.histograms: list[Buckets | None] = [None] * len(HISTOGRAMS)
        self.exceptions: dict[tuple[str, str], int] = {}
        # How many runs wait, by when they began to: of a batch of events all at the same moment. A dict of the runs
        # would be out of the CPU's cache with 100 000 of them, and cost a tenth of all the time an event takes.
        self.waiting: dict[float, int] = {}
        self.deferred: list[tuple[str, str, dict[str, Any]]] | None = None
        self.late_ends = 0
        self.series: list[Labels] = []

    def absorb(self, other: Row) -> None:
        """Add the numbers of a provisional row, once its task and queue are known."""
        mine = self.counts
        for i, n in enumerate(other.counts):
            mine[i] += n
        for i, theirs in enumerate(other.histograms):
            if theirs is not None:
                own = self.histograms[i]
                self.histograms[i] = theirs if own is None else [a + b for a, b in zip(own, theirs, strict=True)]
        for key, n in other.exceptions.items():
            self.exceptions[key] = self.exceptions.get(key, 0) + n
        self.late_ends += other.late_ends


class TaskName:
    """What is known of one task name: its rows by queue, and how many of its runs had a `task-sent`."""

    __slots__ = ("name", "rows", "runs", "sent_runs", "unsent_streak")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[str, Row] = {}
        self.runs = 0
        self.sent_runs = 0
        self.unsent_streak = 0


class Snapshot:
    """A copy of every row taken under the lock, from which families are made outside of it."""

    __slots__ = ("coverage", "rows")

    def __init__(self, names: Mapping[str, TaskName]) -> None:
        self.rows = [
            (
                row,
                row.counts[:],
                [None if h is None else h[:] for h in row.histograms],
                dict(row.exceptions) if row.exceptions else None,
            )
            for name in names.values()
            for row in name.rows.values()
        ]
        self.coverage = [((n.name,), n.sent_runs / n.runs) for n in names.values() if n.runs]


class Rows:
    """Finds and makes the row of a task and queue, within the label caps."""

    def __init__(self, catalog: Mapping[str, Metric], caps: Caps) -> None:
        self.catalog = catalog
        self.caps = caps
        self.names: dict[str, TaskName] = {}
        self._count = 0
        self.bounds = [catalog[name].buckets for name, _ in HISTOGRAMS]

    def name(self, task: str) -> TaskName:
        """Return what is known of a task name, admitting a new one."""
        found = self.names.get(task)
        if found is None:
            task = self.caps.admit("task", task or UNKNOWN)
            found = self.names.get(task)
            if found is None:
                found = self.names[task] = TaskName(task)
        return found

    def row(self, name: TaskName, queue: str) -> Row:
        """Return the row of a task on a queue, making it (at zero) where it is new."""
        found = name.rows.get(queue)
        if found is None:
            queue = self.caps.admit("queue", queue or UNKNOWN)
            found = name.rows.get(queue)
            if found is None and self._count >= MOST_ROWS and queue != UNKNOWN:
                self.caps.overflow["queue"] += queue != OTHER
                queue = OTHER
                found = name.rows.get(queue)
            if found is None:
                self._count += 1
                found = name.rows[queue] = Row(name.name, queue)
        return found

    def observe(self, row: Row, which: int, value: float) -> None:
        """Put a value into one of the row's histograms."""
        bounds = self.bounds[which]
        histogram = row.histograms[which]
        if histogram is None:
            histogram = row.histograms[which] = [0] * (len(bounds) + 1) + [0.0]
        histogram[bisect_left(bounds, value)] += 1
        histogram[-1] += value

    def exception(self, row: Row, exception: str, outcome: str) -> None:
        """Count a failed or retried run under its exception class."""
        key = (self.caps.admit("exception", exception), outcome)
        row.exceptions[key] = row.exceptions.get(key, 0) + 1

    def all(self) -> Iterator[Row]:
        """Yield every row."""
        for name in self.names.values():
            yield from name.rows.values()

    def families(self, snapshot: Snapshot) -> Iterable[Family]:
        """Turn a snapshot into families; needs no lock."""
        catalog = self.catalog
        samples: dict[str, list[tuple[Labels, float | Buckets]]] = {
            name: [] for name, _ in (*COUNTERS, *HISTOGRAMS, ("celery_task_exceptions_total", ()))
        }
        counters = [samples[name] for name, _ in COUNTERS]
        histograms = [samples[name] for name, _ in HISTOGRAMS]
        exceptions = samples["celery_task_exceptions_total"]
        for row, counts, filled, raised in snapshot.rows:
            series = row.series or _series(row)
            for target, labels, count in zip(counters, series, counts, strict=False):
                target.append((labels, count))
            for i, histogram in enumerate(filled):
                if histogram is not None:
                    histograms[i].append((series[len(COUNTERS) + i], histogram))
            if raised:
                exceptions.extend(((*row.labels, *key), n) for key, n in raised.items())
        for name, found in samples.items():
            yield Family(catalog[name], found)
        yield Family(catalog["celery_task_sent_coverage_ratio"], snapshot.coverage)

    def dump(self) -> list[Any]:
        """Return every row as builtins, for the state file."""
        return [[n.name, n.runs, n.sent_runs, [_dump_row(row) for row in n.rows.values()]] for n in self.names.values()]

    def load(self, state: list[Any]) -> None:
        """Take back what `dump` gave, adding to what is there; histograms whose buckets have changed start anew."""
        for task, runs, sent_runs, rows in state:
            name = self.name(task)
            name.runs += runs
            name.sent_runs += sent_runs
            for queue, counts, histograms, exceptions in rows:
                row = Row(name.name, queue)
                row.counts = [int(n) for n in counts]
                for i, histogram in enumerate(histograms):
                    if histogram is not None and len(histogram) == len(self.bounds[i]) + 2:
                        row.histograms[i] = [int(n) for n in histogram[:-1]] + [float(histogram[-1])]
                row.exceptions = {(e, o): int(n) for e, o, n in exceptions}
                self.row(name, queue).absorb(row)


def _series(row: Row) -> list[Labels]:
    # Kept, so that the exporter meets the same tuple at every scrape.
    row.series = [row.labels + extra for _, extra in (*COUNTERS, *HISTOGRAMS)]
    return row.series


def _dump_row(row: Row) -> list[Any]:
    return [row.queue, row.counts, row.histograms, [[e, o, n] for (e, o), n in row.exceptions.items()]]
