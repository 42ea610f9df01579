"""The series that recording rules keep: what boards and rules read where the raw series would be too slow.

A p95 by task over a day of raw histograms takes seconds, a recorded one a fraction of that. Boards need these rules
to be loaded in Prometheus (`celeryscope rules build`); whatever reads them says so in its description.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .queries import UnknownSeriesError, increase, metric_of, rate, total

WINDOW = "5m"
"""What one recorded point looks back over."""
HISTOGRAMS = ("celery_task_runtime_seconds", "celery_task_wait_seconds", "celery_task_total_seconds")
BEAT_HISTOGRAMS = ("celery_beat_lateness_seconds",)
KEPT = ("broker", "task", "queue")
"""What the recorded task series are told apart by; the outcome is dropped."""


@dataclass(frozen=True)
class Recording:
    """One recorded series.

    `labels` are what it carries, `group` the rule group it belongs to and `interval` how often that is evaluated, in
    seconds.
    """

    record: str
    expr: str
    labels: tuple[str, ...]
    group: str = "celery-recordings"
    interval: int = 60


def recordings() -> list[Recording]:
    """Return all recorded series, in a fixed order."""
    return [*_buckets(), *_totals(), *_means()]


def recorded_buckets(metric: str) -> str:
    """Return the name of the series that are recorded of a histogram's buckets."""
    return f"celery:{metric.removeprefix('celery_')}_bucket:rate{WINDOW}"


def recorded(record: str, *where: str) -> str:
    """Return a selector on a recorded series; each of `where` is a matcher such as `task=~"$task"`.

    Raises:
        UnknownSeriesError: there is no such recording, or it lacks a label that is matched.
    """
    found = _RECORDINGS.get(record)
    if found is None:
        raise UnknownSeriesError(f"nothing records a series {record!r}")
    for matcher in where:
        label = matcher.split("=")[0].rstrip("!")
        if label not in found.labels:
            raise UnknownSeriesError(f"{record} has no label {label!r}; it has {', '.join(found.labels)}")
    return f"{record}{{{', '.join(where)}}}" if where else record


def _buckets() -> Iterator[Recording]:
    for metric in HISTOGRAMS:
        labels: tuple[str, ...] = (*KEPT, "le")
        expression = total(rate(f"{metric}_bucket", window=WINDOW), labels)
        yield Recording(recorded_buckets(metric), expression, labels)
    for metric in BEAT_HISTOGRAMS:
        labels = ("broker", *metric_of(f"{metric}_bucket").labels, "le")
        yield Recording(recorded_buckets(metric), total(rate(f"{metric}_bucket", window=WINDOW), labels), labels)


def _totals() -> Iterator[Recording]:
    """Yield the rates of runs by outcome, so that a day of all tasks is read from one point a minute."""
    for name in ("succeeded", "failed", "retried", "sent", "started"):
        expression = total(rate(f"celery_task_{name}_total", window=WINDOW), KEPT)
        yield Recording(f"celery:task_{name}:rate{WINDOW}", expression, KEPT)


def _means() -> Iterator[Recording]:
    """Yield the hourly means that this week is compared with last week by."""
    by: Sequence[str] = ("broker", "task")
    succeeded = 'outcome="succeeded"'
    seconds, runs = (
        total(increase(f"celery_task_runtime_seconds_{part}", succeeded, window="1h"), by) for part in ("sum", "count")
    )
    yield Recording("celery:task_runtime_seconds:mean1h", f"{seconds} / ({runs} > 0)", tuple(by))
    yield Recording("celery:task_runtime_seconds:count1h", runs, tuple(by))


_RECORDINGS = {recording.record: recording for recording in recordings()}
