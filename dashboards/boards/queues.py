"""Celery / Queues: what lies where, how old it is, who takes it, and how long until it is gone."""

from __future__ import annotations

from ..board import Board, Section, board
from ..links import board as to_board
from ..links import field, of_queue
from ..palette import BLUE, GREEN, NEVER, ORANGE, PURPLE, QUIET, Steps, worse
from ..panels import BarGauge, Query, Tile, Timeseries, colors
from ..queries import fact, growth, largest, or_zero, top, total
from ..recordings import by_owner, recorded
from ..tables import Column, Table
from .parts import BROKER, QUEUE, RANGE, RECORDED, SAMPLED, number, variables

BY = ("broker", "queue")
STATES = {"ready": ORANGE, "unacked": BLUE, "scheduled": PURPLE}
MESSAGES = "celery_queue_messages"


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "queues",
        "Celery / Queues",
        "What lies where, how old it is, who takes it, and how long until it is gone.",
        [
            Section("", _numbers()),
            Section("", [_all()]),
            Section("How much, how old", [_depth(), _age(), _states(), _priorities()]),
            Section("In and out", [_flow(), _drain()]),
            Section("Who takes it", [_slots(), _consumers(), _tasks()]),
        ],
        variables(flower_url, "queue"),
    )


def _ready() -> str:
    return total(fact(MESSAGES, *QUEUE, 'state="ready"'), BY)


def _started() -> str:
    return total(recorded(by_owner("celery_task_started_total"), *QUEUE), BY)


def _unserved() -> str:
    return f"({_ready()} > 0) and on (broker, queue) ({fact('celery_queue_consumers', *QUEUE)} == 0)"


def _drain_seconds() -> str:
    return f"({_ready()} > 0) / on (broker, queue) ({_started()} > 0)"


def _drain_or_never() -> str:
    # Without the recording nothing is known of starts: that is not the same as none.
    recording = f"count({recorded(by_owner('celery_task_started_total'), *BROKER)})"
    return f"({_drain_seconds()} or ({_ready()} > 0) * +Inf and on () {recording})"


def _numbers() -> list[Tile]:
    return [
        number(
            "Messages ready",
            "How much work waits in the broker?",
            "Messages that no worker has fetched, over the queues chosen.",
            "See below which queue, and whether it drains.",
            or_zero(total(_ready()), SAMPLED),
            steps=Steps(BLUE, ()),
        ),
        number(
            "Oldest message",
            "How late is the oldest?",
            "Now minus the later of sending and ETA, over all priorities.",
            "Old and few: a queue that nobody takes from, or a low priority that starves.",
            or_zero(largest(fact("celery_queue_oldest_message_age_seconds", *QUEUE)), f"({largest(_ready())} == 0)"),
            unit="s",
            steps=worse(warn=60, bad=600),
        ),
        number(
            "Queues without consumers",
            "Is work sent where nobody listens?",
            "Queues that hold messages and that no worker consumes from.",
            "Start a worker with `-Q` of that queue, or mend the routing (a typo makes a new queue).",
            or_zero(f"count({_unserved()})", fact("celery_queue_consumers", *QUEUE)),
            steps=worse(bad=1),
        ),
        number(
            "Slowest to drain",
            "When will all be done?",
            "Messages ready over starts per second, with nothing more coming in; the slowest queue. NEVER: messages "
            f"are ready and nothing starts. {RECORDED}",
            "More than you can wait: add workers for that queue. NEVER: nobody takes from it, see *Who takes it*.",
            or_zero(largest(_drain_or_never()), f"({largest(_ready())} == 0)"),
            unit="s",
            steps=worse(warn=600, bad=3600),
            mappings=NEVER,
            now=True,
        ),
    ]


def _all() -> Table:
    return Table(
        title="All queues",
        asks="Which queue is in trouble?",
        means="Messages by state, age of the oldest, workers that consume, busy and all of their slots (a worker of "
        f"two queues counts in both), and how long until it is empty at the present pace. {RECORDED}",
        do="No consumers: start some. All slots busy: add workers. Slots free and ready messages old: workers stuck.",
        queries=[
            Query(expr=_ready()),
            Query(expr=total(fact(MESSAGES, *QUEUE, 'state="unacked"'), BY)),
            Query(expr=total(fact(MESSAGES, *QUEUE, 'state="scheduled"'), BY)),
            Query(expr=fact("celery_queue_oldest_message_age_seconds", *QUEUE)),
            Query(expr=fact("celery_queue_consumers", *QUEUE)),
            Query(expr=fact("celery_queue_busy_slots", *QUEUE)),
            Query(expr=fact("celery_queue_slots", *QUEUE)),
            Query(expr=_drain_or_never()),
        ],
        width=24,
        height=8,
        columns=[
            Column("queue", "Queue", links=of_queue(field("queue"))),
            Column("A", "Ready", width=90),
            Column("B", "Unacked", width=90),
            Column("C", "Scheduled", width=100),
            Column("D", "Oldest", unit="s", steps=worse(warn=60, bad=600), width=110),
            Column("E", "Workers", steps=Steps(ORANGE, ((1, QUIET),)), width=90),
            Column("F", "Busy", width=80),
            Column("G", "Slots", width=80),
            Column("H", "Empty in", unit="s", steps=worse(warn=600, bad=3600), mappings=tuple(NEVER), width=110),
        ],
        sort_by="Ready",
    )


def _depth() -> Timeseries:
    return Timeseries(
        title="Messages ready by queue",
        asks="Does a queue grow?",
        means="Messages in the broker that no worker has fetched, all priorities; the ten longest.",
        do="It only grows: more comes in than goes out; see *In and out*. A saw tooth is normal for batches.",
        queries=[Query(expr=top(10, _ready()), legend="{{queue}}")],
        data_links=of_queue(),
    )


def _age() -> Timeseries:
    return Timeseries(
        title="Age of the oldest message",
        asks="Does something lie too long?",
        means="Now minus the later of sending and ETA of the oldest ready message, over all priorities.",
        do="It rises by one second a second: nobody takes it. See consumers, and priorities that starve.",
        queries=[
            Query(expr=top(10, fact("celery_queue_oldest_message_age_seconds", *QUEUE)), legend="{{queue}}"),
        ],
        unit="s",
        steps=worse(warn=60, bad=600),
        lines=True,
        data_links=of_queue(),
    )


def _states() -> Timeseries:
    return Timeseries(
        title="Messages by state",
        asks="In the broker, or with the workers?",
        means="Ready: in the broker. Unacked: with a worker, executing or prefetched. Scheduled: with a worker until "
        "the ETA.",
        do="Much unacked, few busy slots: a high prefetch. Much scheduled: long ETAs fill workers' memory.",
        queries=[Query(expr=total(fact(MESSAGES, *QUEUE), ("state",)), legend="{{state}}")],
        stacked=True,
        overrides=colors(STATES),
    )


def _priorities() -> Timeseries:
    by = ("queue", "priority")
    return Timeseries(
        title="Messages ready by priority",
        asks="Does a low priority starve?",
        means="Ready messages by queue and priority. On Redis 0 is the highest, on RabbitMQ the lowest.",
        do="One priority only grows: the others take all slots. Give it a queue and workers of its own.",
        queries=[
            Query(
                expr=top(10, total(fact("celery_queue_priority_messages", *QUEUE), by)),
                legend="{{queue}}, priority {{priority}}",
            )
        ],
        data_links=of_queue(),
    )


def _flow() -> Timeseries:
    return Timeseries(
        title="In and out, per second",
        asks="Is more sent than done?",
        means=f"Messages sent to the queues chosen, and starts from them. {RECORDED}",
        do="In above out for long: the queue grows. Starts of queue `unknown` lack their task-sent event.",
        queries=[
            Query(expr=total(recorded(by_owner("celery_task_sent_total"), *QUEUE)), legend="in: sent"),
            Query(expr=total(recorded(by_owner("celery_task_started_total"), *QUEUE)), legend="out: started"),
        ],
        unit="suffix: /s",
        overrides=colors({"in: sent": ORANGE, "out: started": GREEN}),
    )


def _drain() -> Timeseries:
    return Timeseries(
        title="Time to drain",
        asks="When will it be empty?",
        means=f"Messages ready over starts per second, with nothing more coming in. Absent where nothing starts. "
        f"{RECORDED}",
        do="It rises: capacity falls behind. It is absent while messages are ready: nothing is taken at all.",
        queries=[Query(expr=top(10, _drain_seconds()), legend="{{queue}}")],
        unit="s",
        steps=worse(warn=600, bad=3600),
        lines=True,
        data_links=of_queue(),
    )


def _slots() -> BarGauge:
    busy, slots = (fact(f"celery_queue_{name}", *QUEUE) for name in ("busy_slots", "slots"))
    return BarGauge(
        title="Busy slots by queue",
        asks="Are its workers full?",
        means="Slots in use of the workers that consume from the queue. A worker of two queues counts in both.",
        do="Full and old messages: add workers. Free and old messages: workers stuck, see the Workers board.",
        queries=[Query(expr=f"{busy} / ({slots} > 0)", legend="{{queue}}", instant=True)],
        width=8,
        unit="percentunit",
        minimum=0,
        maximum=1,
        steps=worse(warn=0.9),
        data_links=(*of_queue(), to_board("workers", "Its workers")),
    )


def _consumers() -> Timeseries:
    return Timeseries(
        title="Workers that consume",
        asks="Did a queue lose its workers?",
        means="Workers that consume from each queue.",
        do="0 with ready messages: start a worker with `-Q` of it.",
        queries=[Query(expr=fact("celery_queue_consumers", *QUEUE), legend="{{queue}}")],
        width=8,
        data_links=of_queue(),
    )


def _tasks() -> Table:
    by = ("broker", "queue", "task")
    sent = total(growth("celery_task_sent_total", *QUEUE, window=RANGE), by)
    waiting = total(fact("celery_tasks_waiting", *QUEUE), by)
    return Table(
        title="Tasks in these queues",
        asks="Which tasks fill it?",
        means="Tasks waiting now, and sent in the time shown, by queue.",
        do="One task makes most of it: give it its own queue, or ask who sends it.",
        queries=[Query(expr=f"{waiting} > 0"), Query(expr=f"{sent} > 0")],
        width=8,
        columns=[
            Column("task", "Task", links=(to_board("task", "This task in depth", task=field("task")),)),
            Column("queue", "Queue", width=100),
            Column("A", "Waiting", decimals=0, width=80),
            Column("B", "Sent", decimals=0, width=80),
        ],
        sort_by="Waiting",
        no_value="nothing waits",
    )
