"""What several boards share: matchers, variables, and panels that differ by little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..board import Variable, datasource_variable, flower_variable, query_variable
from ..links import Link
from ..palette import PLAIN, QUANTILES, Steps
from ..panels import Heatmap, Query, Stat, Timeseries, colors
from ..queries import fact, or_zero, own_fact, total
from ..recordings import either, rate_of, recorded

BROKER = ('broker=~"$broker"',)
QUEUE = (*BROKER, 'queue=~"$queue"')
TASK = (*QUEUE, 'task=~"$task"')
WORKER = (*BROKER, 'worker=~"$worker"')
APP = (*BROKER, 'app=~"$app"')
ENTRY = (*APP, 'entry=~"$entry"')

RANGE = "$__range"
RECORDED = "Read from a recording rule: load the rules (`celeryscope rules build`) for it to have data."

WATCHED = own_fact("celeryscope_connected", *BROKER)
"""Has a value where a monitor of the broker is scraped: what it does not list then, it has never seen."""
_QUEUES_READ = own_fact("celeryscope_collector_success", *BROKER, 'collector="queues"')
SAMPLED = f"({_QUEUES_READ} == 1)"
"""Has a value where a monitor reads the broker's queues."""

_QUERIES = {
    "broker": ("label_values(celery_workers, broker)", "Broker"),
    "queue": ('label_values(celery_queue_messages{broker=~"$broker"}, queue)', "Queue"),
    "task": ('label_values(celery_task_received_total{broker=~"$broker"}, task)', "Task"),
    "worker": ('label_values(celery_worker_up{broker=~"$broker"}, worker)', "Worker"),
    "app": ('label_values(celery_beats{broker=~"$broker"}, app)', "App"),
    "entry": ('label_values(celery_beat_entry_info{broker=~"$broker", app=~"$app"}, entry)', "Entry"),
}


def of_online(name: str, *where: str) -> str:
    """Return a fact about workers, of those that are up: what a lost one last said is no capacity."""
    return f"({fact(name, *where)} and on (broker, worker) {fact('celery_worker_up', *where)} == 1)"


def lost_workers(*where: str) -> str:
    """Return 1 for each worker that fell silent and that no monitor hears: one monitor may be cut off."""
    return f"({fact('celery_worker_lost', *where)} == 1 unless {fact('celery_worker_up', *where)} == 1)"


def none_seen(expression: str) -> str:
    """Return a number without labels, or 0 where a monitor watches and has never seen anything of the kind."""
    return or_zero(expression, WATCHED)


def variables(flower_url: str, *names: str) -> list[Variable]:
    """Return a board's variables: the data source, the broker, these, and Flower's address, hidden.

    Raises:
        KeyError: a name is not one of those that links rely on (DESIGN §6).
    """
    chosen = [query_variable(name, _QUERIES[name][0], label=_QUERIES[name][1]) for name in ("broker", *names)]
    return [datasource_variable(), *chosen, flower_variable(flower_url)]


def number(
    title: str,
    asks: str,
    means: str,
    do: str,
    expr: str,
    *,
    unit: str = "short",
    steps: Steps = PLAIN,
    width: int = 6,
    height: int = 4,
    links: Sequence[Link] = (),
    now: bool = False,
    mappings: Sequence[dict[str, Any]] = (),
) -> Stat:
    """Return a big number with its course behind it; with `now` without: what looks back for hours is asked once."""
    now = now or RANGE in expr
    return Stat(
        title=title,
        asks=asks,
        means=means,
        do=do,
        queries=[Query(expr=expr, legend=title, instant=now)],
        width=width,
        height=height,
        unit=unit,
        steps=steps,
        mappings=list(mappings),
        data_links=links,
        graph=not now,
        text_mode="value",
    )


def quantile(share: float, histogram: str, *where: str) -> str:
    """Return a quantile of a recorded histogram, of all that is chosen together."""
    return f"histogram_quantile({share:g}, {total(either(f'{histogram}_bucket', *where), ('le',))})"


def quantile_by(by: Sequence[str], share: float, histogram: str, *where: str) -> str:
    """Return a quantile of a recorded histogram by these labels; over time that is slow for many tasks."""
    buckets = total(recorded(rate_of(f"{histogram}_bucket"), *where), (*by, "le"))
    return f"histogram_quantile({share:g}, {buckets})"


def ending(name: str, *where: str, by: Sequence[str] = ()) -> str:
    """Return the recorded rate of a counter of tasks, such as `failed`, for what is chosen."""
    return total(either(f"celery_task_{name}_total", *where), by)


def recorded_mean(histogram: str, *where: str) -> str:
    """Return the mean of a histogram whose sum and count are recorded, for what is chosen."""
    seconds, count = (total(either(f"{histogram}_{part}", *where)) for part in ("sum", "count"))
    return f"{seconds} / ({count} > 0)"


def spread(histogram: str, *where: str, title: str, asks: str, means: str, do: str, width: int = 12) -> Heatmap:
    """Return a heatmap of a recorded histogram of seconds."""
    query = Query(expr=total(either(f"{histogram}_bucket", *where), ("le",)), format="heatmap", legend="{{le}}")
    means = f"{means} {RECORDED}"
    return Heatmap(title=title, asks=asks, means=means, do=do, queries=[query], width=width, unit="s")


def quantiles(histogram: str, *where: str, title: str, asks: str, means: str, do: str, width: int = 12) -> Timeseries:
    """Return p50, p95 and p99 over time of a recorded histogram of seconds."""
    queries = [
        Query(expr=quantile(share, histogram, *where), legend=legend)
        for share, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
    return Timeseries(
        title=title,
        asks=asks,
        means=f"{means} {RECORDED}",
        do=do,
        queries=queries,
        width=width,
        unit="s",
        overrides=colors(QUANTILES),
    )
