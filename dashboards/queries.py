"""PromQL out of the catalogue: a query can only name metrics and labels that exist, and two monitors count once.

Two monitors may watch one broker (DESIGN §7), so every fact about Celery may exist once per monitor. `fact`, `rate`
and `increase` therefore take the `max` over what tells the monitors apart (instance, job, pod, …) before anything is
summed: they group by the metric's own labels and `broker`, which is there where a monitor watches several brokers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..monitor.catalog import METRICS, Metric
from .thresholds import seconds

ALWAYS = ("broker",)
"""What a series may carry besides its own labels; where it does not, `by (broker)` groups by nothing."""
EVERY_PAGE = "celeryscope_build_info"
"""A series that is on every page of ours from its first scrape on."""
STARTED = "process_start_time_seconds"
"""Not in the catalogue: prometheus_client's, and on our pages where the system can tell."""
MEMORY = "3h"
"""For `growth`: how long before a window a series is looked for."""
SUFFIXES = ("_bucket", "_sum", "_count")


class UnknownSeriesError(ValueError):
    """A query names a metric or a label that the catalogue does not have."""


def metric_of(name: str) -> Metric:
    """Return the metric that a series' name belongs to, histograms' `_bucket`, `_sum` and `_count` included.

    Raises:
        UnknownSeriesError: there is no such metric, or the name of a histogram lacks its suffix (or the reverse).
    """
    found = METRICS.get(name)
    if found is not None and found.kind != "histogram":
        return found
    for suffix in SUFFIXES:
        histogram = METRICS.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if histogram is not None and histogram.kind == "histogram":
            return histogram
    raise UnknownSeriesError(f"the catalogue has no series {name!r}")


def labels_of(name: str) -> tuple[str, ...]:
    """Return the labels that series of this name carry, `broker` first."""
    le = ("le",) if name.endswith("_bucket") and metric_of(name).kind == "histogram" else ()
    return (*ALWAYS, *metric_of(name).labels, *le)


def select(name: str, *where: str) -> str:
    """Return a selector; each of `where` is a matcher such as `task=~"$task"`.

    Raises:
        UnknownSeriesError: the metric, or a label that is matched, is not in the catalogue.
    """
    labels = (*labels_of(name), "instance", "job")
    for matcher in where:
        label = matcher.split("=")[0].split("!")[0]
        if label not in labels:
            raise UnknownSeriesError(f"{name} has no label {label!r} (in {matcher!r}); it has {', '.join(labels)}")
    return f"{name}{{{', '.join(where)}}}" if where else name


def once(name: str, expression: str) -> str:
    """Return `expression`, made of series of this name, once for all monitors that watch the same broker."""
    return f"max by ({', '.join(labels_of(name))}) ({expression})"


def fact(name: str, *where: str) -> str:
    """Return a gauge, or a counter as it stands, per label set."""
    return once(name, select(name, *where))


def earlier(name: str, *where: str, offset: str) -> str:
    """Return a gauge, or a counter, as it stood so long ago."""
    return once(name, f"{select(name, *where)} offset {offset}")


def rate(name: str, *where: str, window: str = "$__rate_interval") -> str:
    """Return a counter's rate per second and label set."""
    return once(name, f"rate({select(name, *where)}[{window}])")


def increase(name: str, *where: str, window: str, less: str = "") -> str:
    """Return a counter's growth in the window, per label set; a series that was born in it counts only from then on.

    `less` names a counter of the same labels that counts a part of what this one counts; that part is left out.
    """
    part = f" - increase({select(less, *where)}[{window}])" if less else ""
    return once(name, f"increase({select(name, *where)}[{window}]){part}")


def grown(name: str, *where: str, window: str, memory: str = "1d", among: str = "max") -> str:
    """Return by how much a counter grew in the window, per label set and where it grew; of monitors the `among`.

    `increase()` of a series whose first sample is already 1 is 0, and the first failure must alert. And a monitor may
    be restarted, with its counts or without, as the same instance or as another. So, in this order:
    a series that was there before the window counts by the difference; one that was not, by what it has more than any
    instance had at last within the `memory` before the window; else, if it counts something new (see `_appeared`), in
    full; and one that began anew within the window, by `increase()`.
    """
    selected = select(name, *where)
    then = f"{selected} offset {window}"
    # The one long look back, and so the one that costs: over 2 000 tasks' counters it takes most of the time.
    before = once(name, f"last_over_time({selected}[{memory}] offset {window})")
    parts = (
        # Where another monitor went on counting, one that began anew says nothing: so a difference of 0 stays.
        f"{among} by ({', '.join(labels_of(name))}) ({selected} - ({then} <= {selected}))",
        f"({once(name, f'{selected} unless {then}')} - {before}) >= 0",
        once(name, _appeared(selected, window)),
        increase(name, *where, window=window),
    )
    return f"(({' or '.join(f'({part})' for part in parts)}) > 0)"


def _appeared(selected: str, window: str) -> str:
    """Return those series that count something new if they were not there before the window.

    That is not so where a Prometheus sees a monitor for the first time that has been counting for long: then series and
    monitor have the same number of samples in the window, and the process is older than that.
    """
    scrapes = f"sum by (instance, job) (count_over_time({select(EVERY_PAGE)}[{window}]))"
    later = f"count_over_time({selected}[{window}]) < on (instance, job) group_left () {scrapes}"
    young = f"on (instance, job) ({STARTED} > time() - {seconds(window):g})"
    return f"{selected} and ({later}) or {selected} and {young}"


def growth(name: str, *where: str, window: str) -> str:
    """Return by how much a counter grew in the window, per label set, for boards: the first of anything counts.

    `increase()` of a series whose first sample is 1 is 0. So what no monitor knew before the window counts in full,
    where Prometheus saw it come: it had the monitor's page before, or the monitor was started in the window. This is
    cheaper than `grown`, which looks a day back, and may take for new what a monitor read from its state after more
    than `MEMORY` of absence. `window` is a duration, of an hour or more, or `$__range`.
    """
    selected, by = select(name, *where), ", ".join(labels_of(name))
    long = f"{window}_s" if window.startswith("$") else f"{seconds(window):g}"
    known = f"last_over_time({EVERY_PAGE}[{MEMORY}] offset {window}) or {STARTED} > time() - {long}"
    unknown = f"{selected} unless on ({by}) last_over_time({selected}[{MEMORY}] offset {window})"
    return once(name, f"{unknown} and on (instance, job) ({known}) or increase({selected}[{window}])")


def total(expression: str, by: Sequence[str] = ()) -> str:
    """Return the sum of an expression, by these labels or of all."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def own_fact(name: str, *where: str) -> str:
    """Return a gauge about the monitor or alerter itself, per instance: two monitors are two."""
    return own(name, select(name, *where))


def own_rate(name: str, *where: str, window: str = "$__rate_interval") -> str:
    """Return the rate per second, and instance, of a counter about the monitor or alerter itself."""
    return own(name, f"rate({select(name, *where)}[{window}])")


def own_increase(name: str, *where: str, window: str) -> str:
    """Return the growth in the window, per instance, of a counter about the monitor or alerter itself."""
    return own(name, f"increase({select(name, *where)}[{window}])")


def own(name: str, expression: str) -> str:
    """Return `expression` per instance, what else tells targets apart (pod, endpoint, …) left out."""
    return f"max by ({', '.join(('instance', *labels_of(name)))}) ({expression})"


def mean(histogram: str, by: Sequence[str], *where: str, window: str = "$__rate_interval") -> str:
    """Return a histogram's mean in the window, by these labels; nothing where nothing was observed."""
    seconds, count = (total(rate(f"{histogram}_{part}", *where, window=window), by) for part in ("sum", "count"))
    return f"{seconds} / ({count} > 0)"


def largest(expression: str, by: Sequence[str] = ()) -> str:
    """Return the largest value of an expression, by these labels or of all."""
    return f"max by ({', '.join(by)}) ({expression})" if by else f"max({expression})"


def top(count: int, expression: str) -> str:
    """Return the series with the largest values."""
    return f"topk({count}, {expression})"


def or_zero(expression: str, known: str) -> str:
    """Return 0 where a number without labels has no value, because nothing of the kind was ever seen.

    That is known only where `known`, such as a fact of the monitor that would see it, has a value; else there is none.
    """
    return f"({expression}) or 0 * {largest(known)}"
