"""What danihodovic/celery-exporter publishes and our own series do not have: counts per task, worker host and queue.

Names, labels and label values are that exporter's, so that boards and alerts made for it go on working; where it is
wrong this is right, and docs/exporter.md lists each difference. Pure, bounded, and fed only while `--compat` asks so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .catalog import Metric
from .facts import Buckets, Family, Labels
from .labels import LONGEST, OTHER, UNKNOWN, Caps

RUNTIME_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

UNKNOWN_EXCEPTION = "UnknownException"
GENERIC = "generic"

_RUN = ("name", "hostname", "queue_name")
_HOST = ("hostname",)
_QUEUE = ("queue_name",)
_COUNTED = {
    "sent": "Task messages that were published.",
    "received": "Tasks that a worker received.",
    "started": "Tasks that a worker began to execute.",
    "succeeded": "Tasks that succeeded.",
    "rejected": "Tasks that were rejected, with or without requeue.",
    "revoked": "Tasks that were revoked.",
    "retried": "Tasks that failed and will be retried.",
}


def _declared() -> Iterator[Metric]:
    for kind, text in _COUNTED.items():
        yield Metric(f"task_{kind}_total", "counter", text, _RUN)
    labels = ("name", "hostname", "exception", "queue_name")
    yield Metric("task_failed_total", "counter", "Tasks that failed, by exception class.", labels)
    yield Metric("task_runtime", "histogram", "Seconds that succeeded tasks ran.", _RUN, "", RUNTIME_BUCKETS)
    text = "Seconds from the publish of a task, or its ETA where later, to its start."
    yield Metric("task_queue_wait_time", "histogram", text, _RUN, "", WAIT_BUCKETS)
    yield Metric("worker_up", "gauge", "Whether the workers of a host are heard.", _HOST)
    yield Metric("worker_tasks_active", "gauge", "Tasks that the workers of a host are executing.", _HOST)
    yield Metric("queue_length", "gauge", "Messages ready in the queue, of all priorities.", _QUEUE)
    yield Metric("active_consumer_count", "gauge", "Consumers of the queue.", _QUEUE)
    yield Metric("active_worker_count", "gauge", "Workers that consume from the queue.", _QUEUE)
    yield Metric("active_process_count", "gauge", "Pool slots of the workers that consume from the queue.", _QUEUE)


def compat_metrics(
    prefix: str = "celery_",
    *,
    runtime_buckets: Sequence[float] = RUNTIME_BUCKETS,
    wait_buckets: Sequence[float] = WAIT_BUCKETS,
) -> dict[str, Metric]:
    """Return the metrics by their names without prefix; a prefix replaces `celery_`, as with that exporter."""
    other = {"task_runtime": tuple(runtime_buckets), "task_queue_wait_time": tuple(wait_buckets)}
    return {
        metric.name: replace(metric, name=prefix + metric.name, buckets=other.get(metric.name, metric.buckets))
        for metric in _declared()
    }


def host_of(node: str) -> str:
    """Return the host of a node name (`worker1@host` or `gen531@host`), as the label `hostname` has it."""
    return node.partition("@")[2] or node


class _Row:
    """The counts of one (task, host, queue)."""

    __slots__ = ("counts", "failed", "from_worker", "runtime", "wait")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.runtime: Buckets | None = None
        self.wait: Buckets | None = None
        self.from_worker = False


class CompatCounts:
    """Counts runs by task, host and queue; what it is told has been deduplicated and named by the task table.

    At most `most_rows` rows are kept; over that a new host is counted as `__other__`. `forget` frees the rows of a
    worker that is gone. With `generic_sent_hostname` all producers are counted as the one host `generic`.
    Not thread-safe: `observe`, `forget` and `families` belong under one lock.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric] | None = None,
        *,
        most_rows: int = 20_000,
        most_hosts: int = 2_000,
        generic_sent_hostname: bool = False,
    ) -> None:
        self.metrics = dict(metrics or compat_metrics())
        self._generic = generic_sent_hostname
        self._most_rows = most_rows
        self._most_hosts = most_hosts
        self._caps = Caps()
        self._rows: dict[str, dict[tuple[str, str], _Row]] = {}
        self._count = 0
        self._workers: dict[str, set[str]] = {}

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
        """Count one fact about a run.

        Args:
            kind: sent, received, started, succeeded, failed, rejected, revoked or retried; others are not counted.
            task: the task's name, within the label caps.
            queue: the queue's name, within the label caps.
            hostname: the node name of the worker, or of the producer where `kind` is sent.
            exception: the class name, where `kind` is failed.
            runtime: seconds, counted where `kind` is succeeded.
            wait: seconds from publish or ETA to the start, counted where `kind` is started.
        """
        row = self._row(kind, task, queue, hostname)
        if kind == "failed":
            name = UNKNOWN_EXCEPTION if exception in (None, UNKNOWN) else self._caps.admit("exception", str(exception))
            row.failed[name] = row.failed.get(name, 0) + 1
        elif kind in _COUNTED:
            row.counts[kind] = row.counts.get(kind, 0) + 1
        if kind == "succeeded" and runtime is not None:
            row.runtime = _observed(row.runtime, self.metrics["task_runtime"].buckets, runtime)
        if kind == "started" and wait is not None:
            row.wait = _observed(row.wait, self.metrics["task_queue_wait_time"].buckets, wait)

    def forget(self, worker: str) -> None:
        """Drop the rows of a worker's host, once none of the workers seen on that host is left."""
        host = host_of(worker)
        left = self._workers.get(host)
        if left is None:
            return
        left.discard(worker)
        if not left:
            del self._workers[host]
            self._count -= len(self._rows.pop(host, ()))

    def families(self) -> Iterable[Family]:
        """Return the counters and histograms; a host that ran a task has all of the task's counters, from 0 on."""
        rows = [
            ((task, host, queue), row) for host, found in self._rows.items() for (task, queue), row in found.items()
        ]
        for kind in _COUNTED:
            counts = [
                (labels, row.counts.get(kind, 0)) for labels, row in rows if row.from_worker or kind in row.counts
            ]
            yield Family(self.metrics[f"task_{kind}_total"], counts)
        failed: list[tuple[Labels, float | Buckets]] = []
        for (task, host, queue), row in rows:
            named = {"": 0, **row.failed} if row.from_worker else row.failed
            failed.extend(((task, host, exception, queue), count) for exception, count in named.items())
        yield Family(self.metrics["task_failed_total"], failed)
        runtime = [(labels, list(row.runtime)) for labels, row in rows if row.runtime is not None]
        yield Family(self.metrics["task_runtime"], runtime)
        wait = [(labels, list(row.wait)) for labels, row in rows if row.wait is not None]
        yield Family(self.metrics["task_queue_wait_time"], wait)

    def _row(self, kind: str, task: str, queue: str, node: str) -> _Row:
        from_worker = kind != "sent"
        node = node[:LONGEST]
        host = GENERIC if self._generic and not from_worker else host_of(node)
        rows = self._rows.get(host)
        row = rows.get((task, queue)) if rows is not None else None
        if row is None:
            row = self._new_row(task, queue, host)
        if from_worker:
            row.from_worker = True
            workers = self._workers.get(host)
            if workers is None:
                workers = self._workers[host] = set()
            workers.add(node)
        return row

    def _new_row(self, task: str, queue: str, host: str) -> _Row:
        full = self._count >= self._most_rows or (host not in self._rows and len(self._rows) >= self._most_hosts)
        rows = self._rows.setdefault(OTHER if full else host, {})
        row = rows.get((task, queue))
        if row is None:
            row = rows[task, queue] = _Row()
            self._count += 1
        return row


def _observed(histogram: Buckets | None, bounds: Sequence[float], value: float) -> Buckets:
    if histogram is None:
        histogram = [0] * (len(bounds) + 1) + [0.0]
    histogram[bisect_left(bounds, value)] += 1
    histogram[-1] += value
    return histogram
