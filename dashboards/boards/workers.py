"""Celery / Workers: who is there, who is gone and how, who is busy, and whose clock or events cannot be trusted."""

from __future__ import annotations

from ..board import Board, Section, board
from ..links import field, of_worker
from ..palette import BAD, BLUE, GOOD, GREEN, ORANGE, QUIET, WARN, Steps, at_least, words, worse
from ..panels import BarGauge, Query, StateTimeline, Tile, Timeseries, colors
from ..queries import fact, growth, increase, rate, top, total
from ..tables import Column, Table
from .parts import BROKER, RANGE, WORKER, lost_workers, none_seen, number, of_online, variables

STATES = {0: ("offline", QUIET), 1: ("up", GOOD), 2: ("LOST", BAD), 3: ("WEDGED", WARN)}
TOP = 12


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "workers",
        "Celery / Workers",
        "Who is there, who is gone and how, who is busy, and whose clock or events cannot be trusted.",
        [
            Section("", [*_numbers(), _lives(), _all()]),
            Section("Load", [_busy(), _fullest(), _starts(), _reserved(), _load()]),
            Section("Can they be trusted", [_unseen(), _skew(), _silence(), _events()]),
        ],
        variables(flower_url, "worker"),
    )


def _state() -> str:
    up, wedged = (fact(f"celery_worker_{name}", *WORKER) for name in ("up", "wedged"))
    # A worker that is up may be wedged; one that is lost is not up.
    return f"({wedged} * 3 == 3) or {lost_workers(*WORKER)} * 2 or {up}"


def _numbers() -> list[Tile]:
    active, slots = (total(of_online(f"celery_worker_{name}", *WORKER)) for name in ("active_tasks", "concurrency"))
    return [
        number(
            "Online",
            "Is anybody there?",
            "Workers whose heartbeats arrive, of all of the brokers chosen.",
            "0: start workers. Fewer than expected: see which are offline (they said goodbye) or lost below.",
            total(fact("celery_workers", *BROKER, 'state="online"')),
            steps=at_least(1),
        ),
        number(
            "Lost",
            "Did one vanish?",
            "Workers whose heartbeats stopped without a goodbye: killed, out of memory, cut off.",
            "Look at its host: out-of-memory killer, node gone, network. Its runs are orphaned.",
            none_seen(f"count({lost_workers(*BROKER)})"),
            steps=worse(bad=1),
        ),
        number(
            "Wedged",
            "Does one only pretend to work?",
            "Workers that are heard, have free slots, and take nothing from queues that hold messages.",
            "Restart it from its page in Flower; its unacknowledged tasks go back to the queue.",
            none_seen(total(fact("celery_worker_wedged", *WORKER))),
            steps=worse(bad=1),
        ),
        number(
            "Slots busy",
            "Is there room?",
            "Executing tasks as a share of all slots of the workers chosen.",
            "Near 100 % with waiting tasks: add workers, or concurrency for tasks that wait on others.",
            f"{active} / ({slots} > 0)",
            unit="percentunit",
            steps=worse(warn=0.9),
        ),
    ]


def _lives() -> StateTimeline:
    return StateTimeline(
        title="Lives of the workers",
        asks="Who came and went, and how?",
        means="Up; offline after a goodbye (a deploy, a scale-down); LOST without one; WEDGED: heard, takes nothing.",
        do="Grey after a deploy is fine. Red is not: see the host of that worker. Click a lane for its page in Flower.",
        queries=[Query(expr=_state(), legend="{{worker}}")],
        width=24,
        height=8,
        unit="none",
        mappings=words(STATES),
        steps=Steps(QUIET, ((1, GOOD), (2, BAD), (3, WARN))),
        data_links=of_worker(),
    )


def _all() -> Table:
    heard = f"time() - {fact('celery_worker_last_heartbeat_timestamp_seconds', *WORKER)}"
    return Table(
        title="All workers",
        asks="What is each of them doing, and what is it?",
        means="State, executing and reserved tasks, slots, last heartbeat, clock skew, and Celery's version and pool.",
        do="Mixed versions: a deploy that stopped half-way. A heartbeat older than a minute: cut off or overloaded.",
        queries=[
            Query(expr=_state()),
            Query(expr=fact("celery_worker_active_tasks", *WORKER)),
            Query(expr=fact("celery_worker_reserved_tasks", *WORKER)),
            Query(expr=fact("celery_worker_concurrency", *WORKER)),
            Query(expr=heard),
            Query(expr=fact("celery_worker_clock_skew_seconds", *WORKER)),
            Query(expr=fact("celery_worker_info", *WORKER)),
        ],
        width=24,
        height=9,
        columns=[
            Column("worker", "Worker", links=of_worker(field("worker"))),
            Column("A", "State", mappings=tuple(words(STATES)), width=90),
            Column("B", "Executing", width=90),
            Column("C", "Reserved", width=90),
            Column("D", "Slots", width=70),
            Column("E", "Heard", unit="s", steps=worse(warn=60, bad=180), width=100),
            Column("F", "Skew", unit="s", width=90),
            Column("sw_ver", "Celery", width=80),
            Column("sw_sys", "System", width=80),
            Column("pool", "Pool", width=100),
        ],
        sort_by="State",
    )


def _busy() -> Timeseries:
    return Timeseries(
        title="Busy slots and all slots",
        asks="How much of the capacity is used?",
        means="Executing tasks of the workers chosen, against the slots of their pools.",
        do="The lines meet: saturated. See the Queues board for whether work waits.",
        queries=[
            Query(expr=total(of_online("celery_worker_active_tasks", *WORKER)), legend="busy"),
            Query(expr=total(of_online("celery_worker_concurrency", *WORKER)), legend="slots"),
        ],
        overrides=colors({"busy": ORANGE, "slots": BLUE}),
    )


def _fullest() -> BarGauge:
    active, slots = (of_online(f"celery_worker_{name}", *WORKER) for name in ("active_tasks", "concurrency"))
    return BarGauge(
        title="Busy slots by worker, the fullest",
        asks="Is the work spread evenly?",
        means="Executing tasks over slots.",
        do="One full, others idle: it prefetched long tasks. Set `worker_prefetch_multiplier = 1` and `-O fair`.",
        queries=[Query(expr=top(TOP, f"{active} / ({slots} > 0)"), legend="{{worker}}", instant=True)],
        unit="percentunit",
        minimum=0,
        maximum=1,
        steps=worse(warn=0.9),
        data_links=of_worker(),
    )


def _starts() -> Timeseries:
    return Timeseries(
        title="Starts per second by worker",
        asks="Who does the work?",
        means="Task starts by the worker's own count, so this is right even where events were lost.",
        do="One at 0 while others work: stuck, or its queues are empty.",
        queries=[Query(expr=top(TOP, rate("celery_worker_processed_total", *WORKER)), legend="{{worker}}")],
        width=8,
        unit="suffix: /s",
        data_links=of_worker(),
    )


def _reserved() -> Timeseries:
    return Timeseries(
        title="Reserved by worker",
        asks="Who hoards tasks?",
        means="Tasks received and not started: prefetched, or held until their ETA.",
        do="Many on one worker while others idle: lower the prefetch multiplier.",
        queries=[Query(expr=top(TOP, fact("celery_worker_reserved_tasks", *WORKER)), legend="{{worker}}")],
        width=8,
        data_links=of_worker(),
    )


def _load() -> Timeseries:
    return Timeseries(
        title="Load of the hosts",
        asks="Are the machines overloaded?",
        means="One-minute load average of the worker's host, as its heartbeat says.",
        do="Above the number of cores for long: fewer slots, or more machines.",
        queries=[Query(expr=top(TOP, fact("celery_worker_load1", *WORKER)), legend="{{worker}}")],
        width=8,
        data_links=of_worker(),
    )


def _unseen() -> Timeseries:
    missed, down, untracked = (f"celery_worker_starts_{name}_total" for name in ("missed", "missed_down", "untracked"))
    # Those missed while the monitor was down are among those missed.
    grew = {
        "events lost": increase(missed, *WORKER, window="5m", less=down),
        "monitor was down": increase(down, *WORKER, window="5m"),
        "send_events=False": increase(untracked, *WORKER, window="5m"),
    }
    return Timeseries(
        title="Starts that were not seen",
        asks="Is anything missing from the task numbers?",
        means="Starts that workers counted and no event told of: because events were lost, because the monitor was "
        "down, or because the task sends none.",
        do="Events lost: open Monitor. The monitor was down: its restarts. The third kind is the task's own choice.",
        queries=[Query(expr=total(expression), legend=legend) for legend, expression in grew.items()],
        overrides=colors({"events lost": BAD, "monitor was down": WARN, "send_events=False": QUIET}),
        bars=True,
        stacked=True,
    )


def _skew() -> Timeseries:
    return Timeseries(
        title="Clock skew",
        asks="Do the clocks agree?",
        means="The worker's clock minus the monitor's, from its least delayed events. Waits span two clocks.",
        do="More than a second: mend time synchronisation (chrony, ntp) on that host.",
        queries=[Query(expr=fact("celery_worker_clock_skew_seconds", *WORKER), legend="{{worker}}")],
        unit="s",
        steps=Steps(WARN, ((-1, GREEN), (1, WARN))),
        lines=True,
        data_links=of_worker(),
    )


def _silence() -> Timeseries:
    heard = f"time() - {fact('celery_worker_last_heartbeat_timestamp_seconds', *WORKER)}"
    up = fact("celery_worker_up", *WORKER)
    return Timeseries(
        title="Seconds since the last heartbeat",
        asks="Is somebody falling silent?",
        means="Of workers that are up, by the monitor's clock. Heartbeats come every two seconds unless configured.",
        do="One rises: that worker is cut off or its main process is blocked. All rise: the monitor or the broker.",
        queries=[Query(expr=top(TOP, f"({heard}) and ({up} == 1)"), legend="{{worker}}")],
        unit="s",
        steps=worse(warn=60, bad=180),
        lines=True,
        data_links=of_worker(),
    )


def _events() -> Table:
    missed = total(growth("celery_worker_starts_missed_total", *WORKER, window=RANGE), ("broker", "worker"))
    return Table(
        title="Workers whose tasks are not seen",
        asks="Whose numbers are incomplete?",
        means="Workers with task events switched off, and starts missed in the time shown.",
        do="Events off: run the worker with `-E`, or set `worker_send_task_events`; `celeryscope.install(app)` does.",
        queries=[
            Query(expr=f"{fact('celery_worker_events_enabled', *WORKER)} == 0"),
            Query(expr=f"{missed} > 0"),
        ],
        columns=[
            Column("worker", "Worker", links=of_worker(field("worker"))),
            Column("A", "Task events", mappings=tuple(words({0: ("OFF", BAD)})), width=110),
            Column("B", "Starts missed", decimals=0, steps=worse(warn=1), width=120),
        ],
        sort_by="Starts missed",
        no_value="all are seen",
    )
