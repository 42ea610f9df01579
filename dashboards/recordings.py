"""The series that recording rules keep: what boards and rules read where the raw series would be too slow.

A p95 over a day of all tasks' raw histograms takes seconds, of recorded ones a tenth of a second. Two levels are kept:
`celery:…` by task and queue, and `celery_queue:…` by queue alone (`celery_app:…` by app), which is what "All" reads.
Boards need these rules to be loaded in Prometheus (`celeryscope rules build`); whatever reads them says so in its
description.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .queries import UnknownSeriesError, fact, increase, labels_of, rate, total
from .thresholds import RECORDING_INTERVAL, seconds

WINDOW = "5m"
"""What one recorded point looks back over."""
COUNTERS = (
    *("sent", "received", "started", "succeeded", "failed", "retried", "cancelled", "silent_end"),
    *("retries_exhausted", "exceptions", "revoked", "rejected"),
)
GAUGES = ("celery_tasks_waiting", "celery_tasks_running", "celery_tasks_orphaned")
RATED = (
    *(f"celery_task_{name}_seconds_bucket" for name in ("runtime", "wait", "total")),
    *(f"celery_task_{name}_total" for name in COUNTERS),
    *(f"celery_{name}_{part}" for name in ("task_retries", "task_prefetch_seconds") for part in ("sum", "count")),
    "celery_beat_lateness_seconds_bucket",
)
"""The series whose rate is recorded, on both levels."""
ONE_BY_ONE = ("celery_task_negative_waits_total",)
"""The series that nobody asks the sum of."""
DROPPED = {"celery_task_runtime_seconds_bucket": "outcome"}
"""A label that nobody asks for in what is recorded of a series."""
OWNER = {"task": "queue", "entry": "app"}
"""What the second level is summed by: the label that is dropped, and the prefix's."""


@dataclass(frozen=True)
class Recording:
    """One recorded series.

    `labels` are what it carries, `group` the rule group it belongs to and `interval` how often that is evaluated by
    default, in seconds.
    """

    record: str
    expr: str
    labels: tuple[str, ...]
    group: str = "celery-recordings"
    interval: int = int(seconds(RECORDING_INTERVAL))


def recordings() -> list[Recording]:
    """Return all recorded series, in the order in which they must be evaluated: the second level reads the first."""
    first = [_rate(series) for series in RATED]
    return [*first, *map(_summed, first), *map(_rate, ONE_BY_ONE), *_gauges(), *_means()]


def rate_of(series: str) -> str:
    """Return the name of the recorded rate of a series, such as `celery_task_failed_total`."""
    return f"celery:{series.removeprefix('celery_').removesuffix('_total')}:rate{WINDOW}"


def by_owner(series: str) -> str:
    """Return the name of that rate summed over tasks (by queue), or over entries (by app)."""
    return _one_up(rate_of(series), _member(labels_of(series)))


def recorded(record: str, *where: str) -> str:
    """Return a selector on a recorded series; each of `where` is a matcher such as `task=~"$task"`.

    Raises:
        UnknownSeriesError: there is no such recording, or it lacks a label that is matched.
    """
    found = _RECORDINGS.get(record)
    if found is None:
        raise UnknownSeriesError(f"nothing records a series {record!r}")
    _check(record, found.labels, where)
    return f"{record}{{{', '.join(where)}}}" if where else record


def either(series: str, *where: str) -> str:
    """Return the recorded rate of a series: by owner where the member's variable is at All, else by member.

    `where` has a matcher such as `task=~"$task"`. Prometheus has no conditions, but a name can be matched twice: at All
    `__name__=~".*"` is true and `__name__!~".*"` selects nothing, at any other value it is the reverse. So the many
    series of all tasks are not even looked at where their sums are known.

    Raises:
        UnknownSeriesError: nothing records this series, or it lacks a label that is matched.
    """
    member = _member(labels_of(series))
    condition = next(matcher for matcher in where if matcher.startswith(member))
    others = [matcher for matcher in where if matcher != condition]
    variable = condition.partition('"')[2].rstrip('"')
    all_, some = by_owner(series), rate_of(series)
    recorded(all_, *others)
    recorded(some, *where)
    wide = ", ".join([f'__name__="{all_}"', f'__name__=~"{variable}"', *others])
    narrow = ", ".join([f'__name__="{some}"', f'__name__!~"{variable}"', *where])
    return f"({{{wide}}} or {{{narrow}}})"


def either_gauge(gauge: str, *where: str) -> str:
    """Return the sum of a gauge of tasks: of its sums by queue where `task` is at All, else of the tasks chosen.

    Raises:
        UnknownSeriesError: nothing records this gauge, or it lacks a label that is matched.
    """
    condition = next(matcher for matcher in where if matcher.startswith("task"))
    variable = condition.partition('"')[2].rstrip('"')
    others = [matcher for matcher in where if matcher != condition]
    kept = f"celery_queue:{gauge.removeprefix('celery_')}:sum"
    recorded(kept, *others)
    _check(gauge, labels_of(gauge), where)
    wide = ", ".join([f'__name__="{kept}"', f'__name__=~"{variable}"', *others])
    narrow = ", ".join([f'__name__="{gauge}"', f'__name__!~"{variable}"', *where])
    return f"sum({{{wide}}} or max by ({', '.join(labels_of(gauge))}) ({{{narrow}}}))"


def _check(name: str, labels: Sequence[str], where: Sequence[str]) -> None:
    for matcher in where:
        label = matcher.split("=")[0].split("!")[0]
        if label not in labels:
            raise UnknownSeriesError(f"{name} has no label {label!r}; it has {', '.join(labels)}")


def _member(labels: Sequence[str]) -> str:
    return next(member for member in OWNER if member in labels)


def _one_up(record: str, member: str) -> str:
    return f"celery_{OWNER[member]}:{record.removeprefix('celery:')}"


def _rate(series: str) -> Recording:
    labels = tuple(label for label in labels_of(series) if label != DROPPED.get(series))
    return Recording(rate_of(series), total(rate(series, window=WINDOW), labels), labels)


def _summed(recording: Recording) -> Recording:
    member = _member(recording.labels)
    labels = tuple(label for label in recording.labels if label != member)
    return Recording(_one_up(recording.record, member), total(recording.record, labels), labels)


def _gauges() -> Iterator[Recording]:
    by = ("broker", "queue")
    for gauge in GAUGES:
        yield Recording(f"celery_queue:{gauge.removeprefix('celery_')}:sum", total(fact(gauge), by), by)


def _means() -> Iterator[Recording]:
    """Yield the hourly means that this week is compared with last week by."""
    by = ("broker", "task")
    succeeded = 'outcome="succeeded"'
    seconds, runs = (
        total(increase(f"celery_task_runtime_seconds_{part}", succeeded, window="1h"), by) for part in ("sum", "count")
    )
    yield Recording("celery:task_runtime_seconds:mean1h", f"{seconds} / ({runs} > 0)", by)
    yield Recording("celery:task_runtime_seconds:count1h", runs, by)


_RECORDINGS = {recording.record: recording for recording in recordings()}
