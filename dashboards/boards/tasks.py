"""Celery / Tasks: all tasks against one another: how many, how long, what fails, what is under way."""

from __future__ import annotations

from ..board import Board, Section, board
from ..links import field, of_queue, of_task
from ..palette import BAD, BLUE, OUTCOMES, PURPLE, WARN, YELLOW, at_least, worse
from ..panels import BarGauge, Query, Tile, Timeseries, colors
from ..queries import fact, growth, largest, mean, top, total
from ..recordings import either_gauge, rate_of, recorded
from ..tables import Column, Table
from .parts import RANGE, RECORDED, TASK, ending, quantile_by, quantiles, recorded_mean, spread, variables

TOP = 10
BY_TASK = ("broker", "task")


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "tasks",
        "Celery / Tasks",
        "All tasks against one another: how many, how long, what fails, what is under way. A task's name leads on.",
        [
            Section("How many", [_outcomes(), _busiest()]),
            Section("How long", [*_runtime(), *_wait(), _slowest(), _total()]),
            Section("What fails", [_failing(), _exceptions(), _retrying(), _given_back()]),
            Section("Under way now", [_in_flight(), _oldest_running(), _orphans()]),
            Section("Can it be trusted", [_coverage(), _negative(), _silent()]),
        ],
        variables(flower_url, "queue", "task"),
    )


def outcome_queries(*where: str) -> list[Query]:
    """Return the rates of runs that ended, one query for each way of ending."""
    names = ("succeeded", "failed", "retried", "revoked", "rejected", "cancelled")
    return [Query(expr=ending(name, *where), legend=name) for name in names]


def _outcomes() -> Timeseries:
    return Timeseries(
        title="Runs that ended, per second",
        asks="How much work is done, and how does it end?",
        means="Runs by outcome. Retried runs come again; rejected, revoked and cancelled ones did not do their work. "
        + RECORDED,
        do="A growing failed band: see *What fails*. Revoked: expired tasks mean that they waited too long.",
        queries=outcome_queries(*TASK),
        unit="suffix: /s",
        stacked=True,
        overrides=colors(OUTCOMES),
    )


def _busiest() -> Timeseries:
    started = total(recorded(rate_of("celery_task_started_total"), *TASK), BY_TASK)
    return Timeseries(
        title=f"Starts per second, the {TOP} busiest tasks",
        asks="Which tasks make the load?",
        means=f"Deliveries that a worker began to execute, by task. {RECORDED}",
        do="A task that jumps: a loop of retries, or a caller that sends too many. Click it for its board.",
        queries=[Query(expr=top(TOP, started), legend="{{task}}")],
        unit="suffix: /s",
        data_links=of_task(),
    )


def _runtime() -> list[Tile]:
    name = "celery_task_runtime_seconds"
    return [
        spread(
            name,
            *TASK,
            title="Runtime, how it is spread",
            asks="Do runs fall into fast and slow ones?",
            means="Runs per second by execution time, every outcome.",
            do="Two bands: two kinds of work in one task, or a slow dependency. A band that rises: it gets slower.",
        ),
        quantiles(
            name,
            *TASK,
            title="Runtime, quantiles",
            asks="How long do runs take?",
            means="Half of the runs are faster than p50, one of a hundred is slower than p99.",
            do="p99 rises alone: a few inputs or a lock. All rise: the dependency or the machine. See *Slowest tasks*.",
        ),
    ]


def _wait() -> list[Tile]:
    name = "celery_task_wait_seconds"
    return [
        spread(
            name,
            *TASK,
            title="Wait, how it is spread",
            asks="Do some tasks wait much longer than others?",
            means="Starts per second by waiting time: from sending, or the ETA where later, to the start.",
            do="A long tail: tasks prefetched behind a long one (lower the prefetch multiplier), or one slow queue.",
        ),
        quantiles(
            name,
            *TASK,
            title="Wait, quantiles",
            asks="How long does work lie before it starts?",
            means="Time from sending, or the ETA where later, to the start. Needs task-sent events.",
            do="It rises with busy slots: add workers. It rises while slots are free: see the Queues board.",
        ),
    ]


def _slowest() -> Table:
    runtime, wait = (f"celery_task_{name}_seconds" for name in ("runtime", "wait"))
    prefetch = mean("celery_task_prefetch_seconds", BY_TASK, *TASK, window="15m")
    return Table(
        title="Slowest tasks now",
        asks="Which tasks are slow, and where is their time spent?",
        means="p95 of runtime and of waiting over five minutes, and the mean time in a worker's prefetch buffer over "
        f"a quarter of an hour. {RECORDED}",
        do="Waiting much longer than running: capacity. Prefetch near waiting: tasks stand behind slow ones in a "
        "worker; set `worker_prefetch_multiplier = 1` or give slow tasks their own queue.",
        queries=[
            Query(expr=f"{quantile_by(BY_TASK, 0.95, runtime, *TASK)} >= 0"),
            Query(expr=f"{quantile_by(BY_TASK, 0.95, wait, *TASK)} >= 0"),
            Query(expr=prefetch),
        ],
        columns=[
            Column("task", "Task", links=of_task(field("task"))),
            Column("A", "p95 runtime", unit="s", width=110),
            Column("B", "p95 wait", unit="s", width=110, steps=worse(warn=60, bad=600)),
            Column("C", "Mean prefetch", unit="s", width=120),
        ],
        sort_by="p95 runtime",
    )


def _total() -> Timeseries:
    return quantiles(
        "celery_task_total_seconds",
        *TASK,
        title="Sent to finally ended, quantiles",
        asks="How long until the caller has what he asked for?",
        means="From the first publish to the final end, waiting and all retries included.",
        do="Much longer than wait and runtime together: retries. See *Retries and what was given up*.",
    )


def _failing() -> Table:
    def grown(name: str) -> str:
        return total(growth(f"celery_task_{name}_total", *TASK, window=RANGE), BY_TASK)

    failed, succeeded = (
        total(f"avg_over_time({recorded(rate_of(f'celery_task_{name}_total'), *TASK)}[{RANGE}])", BY_TASK)
        for name in ("failed", "succeeded")
    )
    share = f"({failed} > 0) / ({failed} + {succeeded})"
    return Table(
        title="Failing tasks in the time shown",
        asks="What fails, how often, and is it given up?",
        means="Runs that failed for good, their share of the task's finished runs, retries, and failures that had been "
        f"retried before (no attempt is left). {RECORDED}",
        do="Click the task for its exceptions and history, or for its runs and tracebacks in Flower.",
        queries=[
            Query(expr=f"{grown('failed')} > 0"),
            Query(expr=share),
            Query(expr=f"{grown('retried')} > 0"),
            Query(expr=f"{grown('retries_exhausted')} > 0"),
        ],
        columns=[
            Column("task", "Task", links=of_task(field("task"))),
            Column("A", "Failed", decimals=0, width=90),
            Column("B", "Share", unit="percentunit", steps=worse(warn=0.01, bad=0.1), width=90),
            Column("C", "Retried", decimals=0, width=90),
            Column("D", "Exhausted", decimals=0, width=100),
        ],
        sort_by="Failed",
        no_value="nothing failed",
    )


def _exceptions() -> Table:
    by = ("broker", "task", "exception", "outcome")
    grown = total(growth("celery_task_exceptions_total", *TASK, window=RANGE), by)
    return Table(
        title="Exceptions in the time shown",
        asks="Why do they fail?",
        means="Failed and retried runs by the exception's class.",
        do="The same exception in many tasks: a shared cause, such as a database. One task: its code or its input.",
        queries=[Query(expr=f"{grown} > 0")],
        columns=[
            Column("exception", "Exception"),
            Column("task", "Task", links=of_task(field("task"))),
            Column("outcome", "Outcome", width=100),
            Column("A", "Runs", decimals=0, width=90),
        ],
        sort_by="Runs",
        no_value="no exception",
    )


def _retrying() -> Timeseries:
    return Timeseries(
        title="Retries and what was given up",
        asks="Do retries help, or only put off failure?",
        means="Runs that asked for another attempt, failures with no attempt left, and retries used by a finished task "
        f"on average. {RECORDED}",
        do="Many retries and few given up: they help; mend the cause in daylight. Exhausted rises: it is lost work.",
        queries=[
            Query(expr=ending("retried", *TASK), legend="retried /s"),
            Query(expr=ending("retries_exhausted", *TASK), legend="exhausted /s"),
            Query(expr=recorded_mean("celery_task_retries", *TASK), legend="retries per finished task"),
        ],
        overrides=colors({"retried /s": WARN, "exhausted /s": BAD, "retries per finished task": BLUE}),
    )


def _given_back() -> Timeseries:
    return Timeseries(
        title="Revoked and rejected, per second",
        asks="What was refused or called off, and why?",
        means="Revoked: expired before it started, terminated while running, or revoked by hand. Rejected: the task "
        "itself refused, and its message went back to the queue (requeue) or not.",
        do="Expired: raise the capacity or the expiry. Requeued without end: a poison message; look at it in Flower.",
        queries=[
            Query(expr=ending("revoked", *TASK, by=("reason",)), legend="revoked: {{reason}}"),
            Query(
                expr=ending("rejected", *TASK, by=("requeue",)),
                legend="rejected, requeue: {{requeue}}",
            ),
        ],
        unit="suffix: /s",
    )


def _in_flight() -> Timeseries:
    return Timeseries(
        title="Waiting, running, orphaned",
        asks="Is work under way, or piling up?",
        means="Tasks past their ETA that have not started; runs on living workers; runs whose worker is gone.",
        do="Waiting grows and running does not: slots are full or workers stuck. Orphaned: see below.",
        queries=[
            Query(expr=either_gauge(f"celery_tasks_{state}", *TASK), legend=state)
            for state in ("waiting", "running", "orphaned")
        ],
        width=8,
        overrides=colors({"waiting": WARN, "running": BLUE, "orphaned": BAD}),
    )


def _oldest_running() -> BarGauge:
    oldest = largest(fact("celery_task_oldest_running_seconds", *TASK), BY_TASK)
    return BarGauge(
        title=f"Running longest, the {TOP} oldest",
        asks="Is a run stuck?",
        means="Age of the oldest run under way, by task.",
        do="Longer than the task ever takes: it hangs. Click for its runs in Flower, where it can be terminated; then "
        "give the task a time limit.",
        queries=[Query(expr=f"{top(TOP, oldest)} > 0", legend="{{task}}", instant=True)],
        width=8,
        unit="s",
        minimum=0,
        steps=worse(warn=600, bad=3600),
        data_links=of_task(),
        no_value="nothing runs",
    )


def _orphans() -> Table:
    return Table(
        title="Orphaned runs",
        asks="Whose work lies dead with a lost worker?",
        means="Runs that started on a worker that is gone and have no end, and the age of the oldest.",
        do="With late acknowledgement they come again after the visibility timeout. Otherwise send them again.",
        queries=[
            Query(expr=f"{total(fact('celery_tasks_orphaned', *TASK), (*BY_TASK, 'queue'))} > 0"),
            Query(expr=f"{largest(fact('celery_task_oldest_orphan_seconds', *TASK), (*BY_TASK, 'queue'))} > 0"),
        ],
        width=8,
        columns=[
            Column("task", "Task", links=of_task(field("task"))),
            Column("queue", "Queue", links=of_queue(field("queue")), width=100),
            Column("A", "Runs", width=70, steps=worse(warn=1)),
            Column("B", "Oldest", unit="s", width=90),
        ],
        sort_by="Oldest",
        no_value="none",
    )


def _coverage() -> BarGauge:
    coverage = f"min by (task) ({fact('celery_task_sent_coverage_ratio', *TASK[:1], *TASK[2:])})"
    return BarGauge(
        title="Runs whose sending was seen, the lowest",
        asks="Are waits and queues known?",
        means="Share of a task's runs whose task-sent event arrived. Without it, the queue is unknown and the wait is "
        "not measured.",
        do="Set `task_send_sent_event` where the task is sent from, or call `celeryscope.install(app)` there.",
        queries=[Query(expr=f"bottomk({TOP}, {coverage})", legend="{{task}}", instant=True)],
        width=8,
        unit="percentunit",
        minimum=0,
        maximum=1,
        steps=at_least(0.95, else_=WARN),
        data_links=of_task(),
    )


def _negative() -> Timeseries:
    negative = total(recorded(rate_of("celery_task_negative_waits_total"), *TASK), BY_TASK)
    return Timeseries(
        title="Negative waits, per second",
        asks="Do the clocks agree?",
        means="Waits that came out below zero, because two machines' clocks disagree. They are not in the histograms. "
        + RECORDED,
        do="Anything above 0: check time synchronisation; the Workers board shows each worker's skew.",
        queries=[Query(expr=top(TOP, f"{negative} > 0"), legend="{{task}}")],
        width=8,
        unit="suffix: /s",
        data_links=of_task(),
    )


def _silent() -> Timeseries:
    names = {"sent": "sent", "received": "received", "started": "started", "silent_end": "ended without an event"}
    return Timeseries(
        title="Sent, received, started, silent ends",
        asks="Does what is sent arrive and start?",
        means="Per second: messages published, deliveries to workers, starts, and runs that ended without an event "
        "(`Ignore`, `send_events=False`).",
        do="Received without sent: producers do not send task-sent. Many silent ends: outcomes of these are unknown.",
        queries=[Query(expr=ending(name, *TASK), legend=legend) for name, legend in names.items()],
        width=8,
        unit="suffix: /s",
        overrides=colors({"sent": PURPLE, "received": YELLOW, "started": BLUE, **OUTCOMES}),
    )
