"""Celery / Overview: is anything wrong, on one screen; every tile leads to the board that tells more."""

from __future__ import annotations

from typing import Any

from ..board import Board, Section, board
from ..links import board as to_board
from ..links import field, of_entry, of_queue, of_task, of_worker
from ..palette import BAD, BLUE, GOOD, OUTCOMES, QUIET, Steps, at_least, words, worse
from ..panels import Query, Stat, Tile, Timeseries, colors
from ..queries import fact, growth, largest, or_zero, own_fact, own_increase, top, total
from ..recordings import by_owner, recorded
from ..tables import Column, Table
from .parts import BROKER, RECORDED, lost_workers, none_seen, number, of_online, variables

HEIGHT = 3
SLOW_LAG = 2.5
"""Seconds: events live 5 s in RabbitMQ's queues, so half of that is where loss is near."""


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "overview",
        "Celery / Overview",
        "Is anything wrong? Orange is worth a look, red is worth getting up. Every tile leads to the board behind it.",
        [
            Section("", [*_workers_now(), *_work_now(), *_given_up(), *_promises()]),
            Section("", [_throughput(), _trust(), _depth()]),
            Section("", [_failing(), _workers(), _late()]),
        ],
        variables(flower_url),
        since="now-3h",
    )


def _stat(title: str, asks: str, means: str, do: str, expr: str, *, leads: str, **look: Any) -> Stat:
    return number(title, asks, means, do, expr, width=4, height=HEIGHT, links=[to_board(leads)], **look)


def _workers_now() -> list[Tile]:
    active = total(of_online("celery_worker_active_tasks", *BROKER))
    slots = total(of_online("celery_worker_concurrency", *BROKER))
    return [
        _stat(
            "Workers online",
            "Is anybody working?",
            "Workers whose heartbeats arrive. A worker that said goodbye is not counted, one that fell silent is lost.",
            "At 0 nothing runs: start workers, then look at why they ended. Check *Monitor hears* first.",
            total(fact("celery_workers", 'state="online"', *BROKER)),
            leads="workers",
            steps=at_least(1),
        ),
        _stat(
            "Workers lost",
            "Did a worker vanish?",
            "Workers whose heartbeats stopped without a goodbye: killed, out of memory, or cut off.",
            "See which on the Workers board; look at its host and its last log lines. Its runs are orphaned.",
            none_seen(f"count({lost_workers(*BROKER)})"),
            leads="workers",
            steps=worse(bad=1),
        ),
        _stat(
            "Slots busy",
            "Is there room for more work?",
            "Slots that execute a task, as a share of all slots of the workers online.",
            "Near 100 % with waiting tasks: add workers or concurrency. Near 100 % without: about right.",
            f"{active} / ({slots} > 0)",
            leads="workers",
            unit="percentunit",
            steps=worse(warn=0.9),
        ),
    ]


def _work_now() -> list[Tile]:
    ended = f"({total(_rate('succeeded'))} + {total(_rate('failed'))})"
    return [
        _stat(
            "Oldest waiting",
            "How long must a task wait?",
            "Age of the task that has waited longest and is past its ETA, over all queues.",
            "Open Queues: too few slots, a stuck worker, or a queue that nobody consumes from.",
            none_seen(largest(fact("celery_task_oldest_waiting_seconds", *BROKER))),
            leads="queues",
            unit="s",
            steps=worse(warn=60, bad=600),
        ),
        _stat(
            "Failing now",
            "Which share of runs fails?",
            f"Failed runs (no retry left) as a share of all that ended in five minutes. {RECORDED}",
            "Open Tasks: the failing tasks and their exceptions are named there.",
            or_zero(f"{total(_rate('failed'))} / ({ended} > 0)", known=ended),
            leads="tasks",
            unit="percentunit",
            steps=worse(warn=0.01, bad=0.1),
        ),
        _stat(
            "Schedule overdue",
            "Does the scheduler keep its word?",
            "Entries of beat schedules that have been due for more than a minute without a dispatch.",
            "Open Beat: is it down, stuck, or is the broker refusing?",
            none_seen(f"count({fact('celery_beat_overdue_seconds', *BROKER)} > 60)"),
            leads="beat",
            steps=worse(bad=1),
        ),
    ]


def _rate(name: str) -> str:
    return recorded(by_owner(f"celery_task_{name}_total"), *BROKER)


def _given_up() -> list[Tile]:
    return [
        _stat(
            "Retries exhausted",
            "What was given up in the last hour?",
            "Failed runs that had been retried before: no attempt is left, nobody will do that work.",
            "Open Tasks for which; run them again once the cause is mended.",
            none_seen(total(growth("celery_task_retries_exhausted_total", *BROKER, window="1h"))),
            leads="tasks",
            now=True,
            steps=worse(warn=1),
        ),
        _stat(
            "Orphaned runs",
            "Is work lying dead?",
            "Runs that started on a worker that is gone and never ended.",
            "Late-acknowledged ones come back by themselves after the visibility timeout; others must be sent again.",
            none_seen(total(fact("celery_tasks_orphaned", *BROKER))),
            leads="tasks",
            steps=worse(warn=1),
        ),
        _stat(
            "Slots missed today",
            "Which scheduled runs never came?",
            "Slots of schedules that passed without a dispatch in the last 24 hours.",
            "Open Beat for which; run by hand what must not be left out.",
            none_seen(total(growth("celery_beat_missed_total", *BROKER, window="1d"))),
            leads="beat",
            now=True,
            steps=worse(warn=1),
        ),
    ]


def _promises() -> list[Tile]:
    return [
        _stat(
            "Beats amiss",
            "Does each app have one scheduler?",
            "Apps without exactly one leading beat: none means that nothing is scheduled, two that all runs twice.",
            "Open Beat: start the missing one, or stop the one that is too many.",
            none_seen(f"count({fact('celery_beats', *BROKER)} != 1)"),
            leads="beat",
            steps=worse(bad=1),
        ),
        _stat(
            "Starts unseen",
            "Can these numbers be trusted?",
            "Task starts in the last hour that workers counted and the monitor never saw: lost events.",
            "Open Monitor: lag, reconnects, or a broker that cuts off slow readers.",
            none_seen(total(growth("celery_worker_starts_missed_total", *BROKER, window="1h"))),
            leads="monitor",
            now=True,
            steps=worse(warn=1),
        ),
        Stat(
            title="Monitor hears",
            asks="Does the monitor itself work?",
            means="Its own echo comes back over the subscription (1), or not (0): then all numbers here are old. The "
            "worst over brokers and monitors.",
            do="Open Monitor; is the broker reachable from it?",
            queries=[Query(expr=f"min({own_fact('celeryscope_connected', *BROKER)})", legend="hears")],
            width=4,
            height=HEIGHT,
            unit="none",
            steps=Steps(BAD, ((1, GOOD),)),
            mappings=words({0: ("DEAF", BAD), 1: ("yes", GOOD)}),
            no_value="NO MONITOR",
            data_links=[to_board("monitor")],
            text_mode="value",
            graph=False,
        ),
    ]


def _throughput() -> Timeseries:
    names = ("succeeded", "failed", "retried")
    queries = [Query(expr=total(_rate(name)), legend=name.replace("_", " ")) for name in names]
    return Timeseries(
        title="Runs that ended, per second",
        asks="What is Celery doing?",
        means=f"Runs that ended, by how, over five minutes. {RECORDED}",
        do="A fall to zero with waiting tasks: workers are stuck. A rise of failed: see the table below.",
        queries=queries,
        width=8,
        height=6,
        unit="suffix: /s",
        stacked=True,
        overrides=colors(OUTCOMES),
        legend="list",
        calcs=(),
        data_links=[to_board("tasks")],
    )


def _trust() -> Timeseries:
    lag = largest(own_fact("celeryscope_event_lag_seconds", *BROKER))
    lost = none_seen(total(own_increase("celeryscope_task_outcomes_missed_total", *BROKER, window="5m")))
    return Timeseries(
        title="Trust: event lag and what was missed",
        asks="How old is what this board shows?",
        means="Seconds from an event's publishing to its being counted; tasks that ended while the monitor was down.",
        do="A lag that grows comes before loss: the monitor or the broker is overloaded. Open Monitor.",
        queries=[Query(expr=lag, legend="lag, s"), Query(expr=lost, legend="outcomes missed (5 min)")],
        width=8,
        height=6,
        unit="short",
        steps=worse(warn=SLOW_LAG),
        lines=True,
        overrides=colors({"lag, s": BLUE, "outcomes missed (5 min)": BAD}),
        legend="list",
        calcs=(),
        data_links=[to_board("monitor")],
    )


def _depth() -> Timeseries:
    age = total(fact("celery_queue_messages", 'state="ready"', *BROKER), ("broker", "queue"))
    return Timeseries(
        title="Messages ready, the ten longest queues",
        asks="Where does work pile up?",
        means="Messages in the broker that no worker has fetched, by queue.",
        do="A queue that only grows: click it for who consumes from it and how long it takes to drain.",
        queries=[Query(expr=top(10, age), legend="{{queue}}")],
        width=8,
        height=6,
        legend="list",
        calcs=(),
        data_links=of_queue(),
    )


def _failing() -> Table:
    def grown(name: str) -> str:
        return total(growth(f"celery_task_{name}_total", *BROKER, window="1h"), ("broker", "task"))

    return Table(
        title="Failing tasks, last hour",
        asks="What fails most?",
        means="Runs that failed for good in the last hour, and that share of the task's runs.",
        do="Click the task for its exceptions and history, or for its runs in Flower.",
        queries=[
            Query(expr=f"{grown('failed')} > 0"),
            Query(expr=f"({grown('failed')} > 0) / ({grown('failed')} + {grown('succeeded')})"),
        ],
        width=10,
        height=7,
        columns=[
            Column("task", "Task", links=of_task(field("task"))),
            Column("A", "Failed", decimals=0, width=80),
            Column("B", "Share", unit="percentunit", steps=worse(warn=0.01, bad=0.1), width=90),
        ],
        sort_by="Failed",
        no_value="nothing failed",
    )


def _workers() -> Table:
    wedged = fact("celery_worker_wedged", *BROKER)
    return Table(
        title="Workers in trouble",
        asks="Which workers need help?",
        means="Lost: heartbeats stopped without a goodbye. Wedged: it is heard, has free slots and takes nothing from "
        "queues that hold messages.",
        do="Lost: see its host. Wedged: restart it (Flower's page of it can), its tasks go back to the queue.",
        queries=[Query(expr=f"{lost_workers(*BROKER)} or ({wedged} * 2 == 2)")],
        width=7,
        height=7,
        columns=[
            Column("worker", "Worker", links=of_worker(field("worker"))),
            Column("A", "State", width=90, mappings=tuple(words({1: ("LOST", BAD), 2: ("WEDGED", BAD)}))),
        ],
        sort_by="Worker",
        descending=False,
        no_value="none",
        steps=Steps(QUIET),
    )


def _late() -> Table:
    overdue = fact("celery_beat_overdue_seconds", *BROKER)
    return Table(
        title="Schedule entries overdue",
        asks="Which scheduled work is late?",
        means="How long each entry has been due without a dispatch; what is on time is not listed.",
        do="All of an app: its beat is down or stuck. One entry: see its line on the Beat board.",
        queries=[Query(expr=f"topk(10, {overdue} > 1)")],
        width=7,
        height=7,
        columns=[
            Column("app", "App", width=90),
            Column("entry", "Entry", links=of_entry(field("app"), field("entry"))),
            Column("A", "Overdue", unit="s", steps=worse(warn=10, bad=60), width=90),
        ],
        sort_by="Overdue",
        no_value="all on time",
    )
