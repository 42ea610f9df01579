"""Celery / Task: one task in depth, with deploys and lost workers marked."""

from __future__ import annotations

from typing import Any

from ..board import Board, Section, board
from ..links import field, flower_task, of_entry, of_queue
from ..palette import BAD, BLUE, OUTCOMES, PURPLE, SKY, WARN, worse
from ..panels import DATASOURCE, Query, Stat, Tile, Timeseries, colors
from ..queries import earlier, fact, growth, largest, or_zero, total
from ..recordings import either_gauge, recorded
from ..tables import Column, Table
from .parts import (
    BROKER,
    RANGE,
    RECORDED,
    TASK,
    ending,
    lost_workers,
    none_seen,
    number,
    quantile,
    quantiles,
    recorded_mean,
    spread,
    variables,
)
from .tasks import outcome_queries

RUNTIME, WAIT = "celery_task_runtime_seconds", "celery_task_wait_seconds"
IN_FLOWER = flower_task("${task:percentencode}")


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "task",
        "Celery / Task",
        "One task in depth: choose it above. Blue marks are deploys and worker starts, red ones lost workers.",
        [
            Section("", [*_rates(), *_times()]),
            Section("Outcomes", [_outcomes(), _exceptions(), _failures(), _queues()]),
            Section("Time", [*_runtime(), *_wait(), _week(), _total()]),
            Section("In flight and scheduled", [_in_flight(), _retries(), _entries()]),
        ],
        variables(flower_url, "queue", "task"),
        annotations=list(_annotations()),
    )


def _annotations() -> list[dict[str, Any]]:
    def query(name: str, expr: str, color: str, text: str) -> dict[str, Any]:
        return {
            "datasource": DATASOURCE,
            "enable": True,
            "expr": expr,
            "hide": False,
            "iconColor": color,
            "name": name,
            "step": "60s",
            "tagKeys": "worker",
            "textFormat": text,
            "titleFormat": name,
        }

    def became(now: str, name: str) -> str:
        return f"{now} unless ({earlier(name, *BROKER, offset='1m')} == 1)"

    up = f"({fact('celery_worker_up', *BROKER)} == 1)"
    deploys = {
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": False,
        "iconColor": SKY,
        "name": "Deploys",
        "target": {"limit": 100, "matchAny": False, "tags": ["deploy"], "type": "tags"},
    }
    return [
        deploys,
        query("Worker started", became(up, "celery_worker_up"), BLUE, "{{worker}} came online"),
        query("Worker lost", became(lost_workers(*BROKER), "celery_worker_lost"), BAD, "{{worker}} fell silent"),
    ]


def _number(title: str, asks: str, means: str, do: str, expr: str, **look: Any) -> Stat:
    return number(title, asks, means, do, expr, width=4, links=[IN_FLOWER], **look)


def _rates() -> list[Tile]:
    failed, succeeded = (ending(name, *TASK) for name in ("failed", "succeeded"))
    return [
        _number(
            "Starts per second",
            "How often does it run?",
            f"Starts over five minutes. {RECORDED}",
            "Far from its usual number: ask who sends it. Click for its runs in Flower.",
            ending("started", *TASK),
            unit="suffix: /s",
        ),
        _number(
            "Failing",
            "Does it work?",
            f"Failed runs as a share of those that ended, over five minutes. {RECORDED}",
            "See the exceptions below; the marks tell whether it began with a deploy.",
            or_zero(f"{failed} / ({succeeded} + {failed} > 0)", known=f"({succeeded} + {failed})"),
            unit="percentunit",
            steps=worse(warn=0.01, bad=0.1),
        ),
        _number(
            "p95 runtime",
            "Is it slow?",
            f"One run of twenty takes longer. {RECORDED}",
            "Compare with last week below.",
            quantile(0.95, RUNTIME, *TASK),
            unit="s",
        ),
    ]


def _times() -> list[Tile]:
    return [
        _number(
            "p95 wait",
            "Does it start in time?",
            f"One of twenty waits longer before it starts. {RECORDED}",
            "High: see its queue; it has too few slots or shares them with slow work.",
            quantile(0.95, WAIT, *TASK),
            unit="s",
            steps=worse(warn=60, bad=600),
        ),
        _number(
            "Waiting longest",
            "Is one left lying?",
            "Age of the task of this kind that has waited longest, past its ETA.",
            "See the Queues board for the queue it waits in.",
            none_seen(largest(fact("celery_task_oldest_waiting_seconds", *TASK))),
            unit="s",
            steps=worse(warn=60, bad=600),
        ),
        _number(
            "Running longest",
            "Is one stuck?",
            "Age of the run under way longest.",
            "Much more than its p95: open it in Flower, terminate it there, and set a time limit.",
            none_seen(largest(fact("celery_task_oldest_running_seconds", *TASK))),
            unit="s",
        ),
    ]


def _outcomes() -> Timeseries:
    return Timeseries(
        title="Runs that ended, per second",
        asks="When did it change?",
        means=f"Runs by outcome. {RECORDED}",
        do="A change at a mark: the deploy, or the lost worker, is the first suspect.",
        queries=outcome_queries(*TASK),
        unit="suffix: /s",
        stacked=True,
        overrides=colors(OUTCOMES),
        data_links=[IN_FLOWER],
    )


def _exceptions() -> Timeseries:
    by = ("exception", "outcome")
    return Timeseries(
        title="Exceptions, per second",
        asks="Why does it fail?",
        means="Failed and retried runs by the exception's class.",
        do="A new one after a deploy: roll back or mend. An old one: see how long it has been there.",
        queries=[
            Query(
                expr=f"{ending('exceptions', *TASK, by=by)} > 0",
                legend="{{exception}} ({{outcome}})",
            )
        ],
        unit="suffix: /s",
        bars=True,
        stacked=True,
        data_links=[IN_FLOWER],
    )


def _failures() -> Table:
    by = ("exception", "outcome", "queue")
    return Table(
        title="Exceptions in the time shown",
        asks="How often, all in all?",
        means="Failed and retried runs of this task, by exception, outcome and queue.",
        do="Look one up in Flower: its task page has arguments and traceback.",
        queries=[
            Query(expr=f"{total(growth('celery_task_exceptions_total', *TASK, window=RANGE), by)} > 0"),
        ],
        columns=[
            Column("exception", "Exception"),
            Column("outcome", "Outcome", width=110),
            Column("queue", "Queue", links=of_queue(field("queue")), width=130),
            Column("A", "Runs", decimals=0, width=90),
        ],
        sort_by="Runs",
        no_value="no exception",
        height=7,
    )


def _queues() -> Timeseries:
    return Timeseries(
        title="Starts by queue, per second",
        asks="Which queues does it come through?",
        means=f"Starts by the queue the task was sent to; unknown where its task-sent was not seen. {RECORDED}",
        do="A queue you do not expect: check the routing of who sends it.",
        queries=[Query(expr=ending("started", *TASK, by=("queue",)), legend="{{queue}}")],
        unit="suffix: /s",
        height=7,
        data_links=of_queue(),
    )


def _runtime() -> list[Tile]:
    return [
        spread(
            RUNTIME,
            *TASK,
            title="Runtime, how it is spread",
            asks="Is there one kind of run, or several?",
            means="Runs per second by execution time.",
            do="A second, slower band: some inputs, or some workers, are slow. Compare runs in Flower.",
        ),
        quantiles(
            RUNTIME,
            *TASK,
            title="Runtime, quantiles",
            asks="Does it get slower?",
            means="Half of the runs are faster than p50, one of a hundred is slower than p99.",
            do="A step at a mark: that deploy. A slope: growing data, or a dependency that fills up.",
        ),
    ]


def _wait() -> list[Tile]:
    return [
        spread(
            WAIT,
            *TASK,
            title="Wait, how it is spread",
            asks="Do some of them wait much longer?",
            means="Starts per second by waiting time.",
            do="Long waits among short ones: it stands behind slow tasks. Give it a queue of its own.",
        ),
        quantiles(
            WAIT,
            *TASK,
            title="Wait, quantiles",
            asks="How long until it starts?",
            means="From sending, or the ETA where later, to the start.",
            do="See the busy slots of its queue on the Queues board.",
        ),
    ]


def _week() -> Timeseries:
    now = recorded("celery:task_runtime_seconds:mean1h", *TASK[:1], *TASK[2:])
    return Timeseries(
        title="Mean runtime, now and a week ago",
        asks="Is it slower than it was last week at this hour?",
        means=f"Mean execution time of runs that succeeded, over an hour. {RECORDED}",
        do="RuntimeRegressed alerts on this. Look for the step and what was deployed then.",
        queries=[
            Query(expr=f"avg({now})", legend="now"),
            Query(expr=f"avg({now} offset 1w)", legend="a week ago"),
        ],
        unit="s",
        overrides=colors({"now": BLUE, "a week ago": WARN}),
    )


def _total() -> Timeseries:
    prefetch = recorded_mean("celery_task_prefetch_seconds", *TASK)
    queries = [
        Query(expr=quantile(0.95, "celery_task_total_seconds", *TASK), legend="p95 sent to finally ended"),
        Query(expr=prefetch, legend="mean time in prefetch"),
    ]
    return Timeseries(
        title="Sent to finally ended; time in prefetch",
        asks="How long does the caller wait, and where?",
        means="From the first publish to the final end, retries included (p95); and the time a delivery lies in a "
        f"worker before it starts (mean). {RECORDED}",
        do="Prefetch makes most of the wait: set `worker_prefetch_multiplier = 1` for its workers.",
        queries=queries,
        unit="s",
        overrides=colors({"p95 sent to finally ended": PURPLE, "mean time in prefetch": SKY}),
    )


def _in_flight() -> Timeseries:
    return Timeseries(
        title="Waiting, running, orphaned",
        asks="Is it piling up?",
        means="Tasks past their ETA that have not started; runs on living workers; runs whose worker is gone.",
        do="Running stays at one number while waiting grows: the slots are full.",
        queries=[
            Query(expr=either_gauge(f"celery_tasks_{state}", *TASK), legend=state)
            for state in ("waiting", "running", "orphaned")
        ],
        width=8,
        overrides=colors({"waiting": WARN, "running": BLUE, "orphaned": BAD}),
        data_links=[IN_FLOWER],
    )


def _retries() -> Timeseries:
    return Timeseries(
        title="Retries used by a finished task",
        asks="How many attempts does it need?",
        means="Retries that tasks had used when they finished, on average; and failures with no attempt left.",
        do="Near its `max_retries`: retries only delay the failure. Mend the cause, or give up sooner.",
        queries=[
            Query(expr=recorded_mean("celery_task_retries", *TASK), legend="retries on average"),
            Query(expr=ending("retries_exhausted", *TASK), legend="exhausted /s"),
        ],
        width=8,
        overrides=colors({"retries on average": WARN, "exhausted /s": BAD}),
    )


def _entries() -> Table:
    info = fact("celery_beat_entry_info", *BROKER, 'task=~"$task"')
    return Table(
        title="Schedule entries that run it",
        asks="Is it scheduled, and how?",
        means="Entries of beat schedules that name this task.",
        do="Click an entry for whether it is late or missed.",
        queries=[Query(expr=info)],
        width=8,
        columns=[
            Column("app", "App", width=100),
            Column("entry", "Entry", links=of_entry(field("app"), field("entry"))),
            Column("kind", "Kind", width=80),
            Column("spec", "Schedule"),
        ],
        no_value="not scheduled",
        unit="string",
    )
