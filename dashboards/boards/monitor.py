"""celeryscope / Monitor: the watcher watched: does it hear and keep up, did it lose anything, does Slack take it."""

from __future__ import annotations

from ..board import Board, Section, board
from ..links import board as to_board
from ..palette import BAD, BLUE, GOOD, PURPLE, WARN, Steps, words, worse
from ..panels import Note, Query, StateTimeline, Tile, Timeseries, colors
from ..queries import largest, own_fact, own_increase, own_rate, total
from ..tables import Column, Table
from .parts import BROKER, RANGE, none_seen, number, variables

INSTANCE = "{{instance}} {{broker}}"
LAG = 2.5

READING = """\
**Facts about the monitor are shown per instance**: two monitors are two lines. Facts about Celery on the other boards
are counted once, however many monitors watch.

`DEAF` or a growing lag: numbers elsewhere are old or incomplete. Missed and lost are counted, never guessed: see
*Starts that were not seen* on the Workers board. The alerter's own page is a scrape target of its own.
"""


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "monitor",
        "celeryscope / Monitor",
        "The watcher watched: does it hear, does it keep up, did it lose anything, and does Slack take what it says?",
        [
            Section("", [*_numbers(), _hears(), _note()]),
            Section("Events", [_lag(), _events(), _lost(), _malformed()]),
            Section("Tables and limits", [_table(), _overflow(), _collectors(), _duration(), _age(), _unknown()]),
            Section("Alerter", [_failures(), _slack(), _outbox(), _incidents(), _builds()]),
        ],
        variables(flower_url),
    )


def _numbers() -> list[Tile]:
    return [
        number(
            "Subscriptions deaf",
            "Does every monitor hear every broker?",
            "Subscriptions over which the monitor's own echo does not come back.",
            "Is the broker reachable from the monitor, and does it allow pub/sub or event queues?",
            none_seen(f"count({own_fact('celeryscope_connected', *BROKER)} == 0)"),
            steps=worse(bad=1),
        ),
        number(
            "Event lag",
            "How old are the numbers?",
            "Publish to processing of the latest echo; the worst over monitors.",
            "Above 2.5 s events are near being dropped by the broker: give the monitor CPU, or a nearer place.",
            largest(own_fact("celeryscope_event_lag_seconds", *BROKER)),
            unit="s",
            steps=worse(warn=1, bad=LAG),
        ),
        number(
            "Outcomes missed",
            "What happened while it was down?",
            "Tasks known from before a restart and gone after it, counted under no outcome, in the time shown.",
            "Restart it less, or run two monitors: one goes on while the other restarts.",
            none_seen(largest(own_increase("celeryscope_task_outcomes_missed_total", *BROKER, window=RANGE))),
            steps=worse(warn=1),
        ),
        number(
            "Failures waiting for Slack",
            "Does anybody get told?",
            "Age of the oldest failure that is not in the incident store yet.",
            "Is the alerter running? See its log, and *Calls to Slack* below.",
            largest(own_fact("celeryscope_alerter_oldest_failure_seconds")),
            unit="s",
            steps=worse(warn=60, bad=300),
        ),
    ]


def _hears() -> StateTimeline:
    return StateTimeline(
        title="Does it hear?",
        asks="Since when is it deaf?",
        means="1 while the monitor's own echo comes back over its subscription, by monitor and broker.",
        do="DEAF: broker down, network, or permissions. It reconnects by itself; what was published meanwhile is lost.",
        queries=[Query(expr=own_fact("celeryscope_connected", *BROKER), legend=INSTANCE)],
        width=16,
        height=6,
        unit="none",
        mappings=words({0: ("DEAF", BAD), 1: ("hears", GOOD)}),
        steps=Steps(BAD, ((1, GOOD),)),
    )


def _note() -> Note:
    return Note(
        title="How to read this board",
        asks="What do these numbers say?",
        means="Words on this board.",
        do="Read them once.",
        content=READING,
        width=8,
        height=6,
    )


def _lag() -> Timeseries:
    return Timeseries(
        title="Event lag",
        asks="Does it keep up?",
        means="From publishing to processing of the monitor's own echo event.",
        do="It rises under load: the monitor's CPU is at its end, or the broker's. At 2.5 s loss is near.",
        queries=[Query(expr=own_fact("celeryscope_event_lag_seconds", *BROKER), legend=INSTANCE)],
        unit="s",
        steps=worse(warn=1, bad=LAG),
        lines=True,
    )


def _events() -> Timeseries:
    rate = own_rate("celeryscope_events_total", *BROKER)
    return Timeseries(
        title="Events per second, by type",
        asks="What does it take in?",
        means="Events taken in; the largest of the monitors, since they hear the same.",
        do="Task events at 0 while heartbeats come: events are off, see the Workers board.",
        queries=[Query(expr=f"sum by (type) (max by (broker, type) ({rate}))", legend="{{type}}")],
        unit="suffix: /s",
        stacked=True,
    )


def _lost() -> Timeseries:
    names = {
        "celeryscope_reconnects_total": "reconnects",
        "celeryscope_task_outcomes_missed_total": "outcomes missed",
        "celeryscope_probe_dropped_total": "probe reports dropped",
    }
    return Timeseries(
        title="Reconnects and losses, in five minutes",
        asks="Was anything lost, and why?",
        means="Connections made anew; tasks that ended while the monitor was down; reports that a probe in a user's "
        "process dropped because its buffer was full.",
        do="Reconnects again and again: a broker that cuts off slow readers, or an idle timeout on the way.",
        queries=[
            Query(
                expr=total(own_increase(name, *BROKER, window="5m"), ("instance",)), legend=f"{legend} {{{{instance}}}}"
            )
            for name, legend in names.items()
        ],
        bars=True,
    )


def _malformed() -> Timeseries:
    return Timeseries(
        title="Events that could not be used, per second",
        asks="Is somebody talking nonsense?",
        means="Malformed events or messages, by reason.",
        do="Rare ones are harmless. Many: a foreign program on the event exchange, or an unknown serializer.",
        queries=[
            Query(
                expr=total(own_rate("celeryscope_events_malformed_total", *BROKER), ("instance", "reason")),
                legend="{{reason}} {{instance}}",
            )
        ],
        unit="suffix: /s",
    )


def _table() -> Timeseries:
    return Timeseries(
        title="Live tasks in the table",
        asks="Does its memory suffice?",
        means="Tasks the monitor keeps track of, and those dropped in five minutes because the table was full.",
        do="Evictions: raise `--max-live-tasks`, or find what sends tasks that never end.",
        queries=[
            Query(expr=own_fact("celeryscope_task_table_size", *BROKER), legend=f"in the table {INSTANCE}"),
            Query(
                expr=f"{own_increase('celeryscope_task_table_evicted_total', *BROKER, window='5m')} > 0",
                legend=f"evicted {INSTANCE}",
            ),
        ],
    )


def _overflow() -> Timeseries:
    return Timeseries(
        title="Observations under __other__, per second",
        asks="Is a label out of hand?",
        means="Observations whose label had too many values and was put under `__other__`, by label.",
        do="Raise the cap (`--cap task=5000`), or stop making names that hold ids.",
        queries=[
            Query(
                expr=total(own_rate("celeryscope_label_overflow_total", *BROKER), ("instance", "label")),
                legend="{{label}} {{instance}}",
            )
        ],
        unit="suffix: /s",
    )


def _collectors() -> StateTimeline:
    return StateTimeline(
        title="Collectors",
        asks="Can it read what it samples?",
        means="Whether each collector's last pass succeeded; one that fails leaves the others alone.",
        do="FAILED: the monitor's log says why; usually permissions on the broker or its management API.",
        queries=[
            Query(expr=own_fact("celeryscope_collector_success", *BROKER), legend=f"{{{{collector}}}} {INSTANCE}")
        ],
        unit="none",
        mappings=words({0: ("FAILED", BAD), 1: ("ok", GOOD)}),
        steps=Steps(BAD, ((1, GOOD),)),
    )


def _duration() -> Timeseries:
    return Timeseries(
        title="Duration of a pass",
        asks="Is sampling slow?",
        means="How long each collector's last pass took.",
        do="Seconds: a slow broker, or very many queues. Sampling slows down by itself and never hinders a scrape.",
        queries=[
            Query(
                expr=own_fact("celeryscope_collector_duration_seconds", *BROKER),
                legend=f"{{{{collector}}}} {INSTANCE}",
            )
        ],
        unit="s",
    )


def _age() -> Timeseries:
    return Timeseries(
        title="Age of the newest sample",
        asks="How old is what queues and workers say?",
        means="Now minus when each collector's newest sample was taken.",
        do="It rises: that collector hangs or fails. Numbers from it are as old as this says.",
        queries=[
            Query(
                expr=f"time() - {own_fact('celeryscope_sample_timestamp_seconds', *BROKER)}",
                legend=f"{{{{collector}}}} {INSTANCE}",
            )
        ],
        unit="s",
        steps=worse(warn=60, bad=300),
        lines=True,
    )


def _unknown() -> Table:
    by = ("instance", "broker", "collector", "reason")
    grown = total(own_increase("celeryscope_sample_unknown_total", *BROKER, window=RANGE), by)
    return Table(
        title="What could not be learned",
        asks="Which facts are missing, and why?",
        means="Facts that a collector could not learn in the time shown, by reason; each leaves its series out.",
        do="`permission`: grant what docs/brokers.md lists. `too_big`, `not_json`: that queue's age stays unknown.",
        queries=[Query(expr=f"{grown} > 0")],
        columns=[
            Column("instance", "Instance"),
            Column("collector", "Collector", width=120),
            Column("reason", "Reason"),
            Column("A", "Times", decimals=0, width=90),
        ],
        sort_by="Times",
        no_value="nothing",
    )


def _failures() -> Timeseries:
    return Timeseries(
        title="Failures by fate, per second",
        asks="What becomes of reported failures?",
        means="Notified: a message of its own. Grouped: counted in one. Muted, duplicate, rejected (unreadable).",
        do="Rejected: workers and alerter of different versions. All muted: look through the mutes.",
        queries=[
            Query(
                expr=total(own_rate("celeryscope_alerter_failures_total"), ("instance", "result")),
                legend="{{result}} {{instance}}",
            )
        ],
        unit="suffix: /s",
        stacked=True,
    )


def _slack() -> Timeseries:
    return Timeseries(
        title="Calls to Slack, per second",
        asks="Does Slack take them?",
        means="Calls by HTTP status or the error that Slack named.",
        do="`invalid_auth`, `channel_not_found`: mend token or channel. 429: a storm; it slows down by itself.",
        queries=[
            Query(
                expr=total(own_rate("celeryscope_alerter_slack_requests_total"), ("instance", "status")),
                legend="{{status}} {{instance}}",
            )
        ],
        unit="suffix: /s",
        stacked=True,
    )


def _outbox() -> Timeseries:
    return Timeseries(
        title="Failures on their way",
        asks="Does the alerter keep up?",
        means="Batches of failures waiting on the broker, and the age in seconds of the oldest not yet stored.",
        do="Both rise: no alerter runs, or its store is away.",
        queries=[
            Query(expr=own_fact("celeryscope_alerter_outbox_messages"), legend="batches {{instance}}"),
            Query(expr=own_fact("celeryscope_alerter_oldest_failure_seconds"), legend="oldest, s {{instance}}"),
        ],
        width=8,
    )


def _incidents() -> Timeseries:
    return Timeseries(
        title="Incidents by state",
        asks="How much is open?",
        means="Open, resolved, muted by hand, and waiting for Slack; alerters on one store count the same incidents.",
        do="Waiting for Slack: it is away, or the token is wrong. `celeryscope incidents` lists them.",
        queries=[
            Query(expr=f"max by (state) ({own_fact('celeryscope_alerter_incidents')})", legend="{{state}}"),
        ],
        width=8,
        overrides=colors({"open": BAD, "resolved": GOOD, "muted": PURPLE, "waiting": WARN}),
    )


def _builds() -> Table:
    return Table(
        title="What runs",
        asks="Which versions are these?",
        means="Every monitor and alerter that Prometheus scrapes.",
        do="Different versions for long: a deploy that stopped half-way.",
        queries=[Query(expr=own_fact("celeryscope_build_info"))],
        width=8,
        columns=[
            Column("instance", "Instance", links=(to_board("overview"),)),
            Column("version", "celeryscope", width=100),
            Column("python", "Python", width=80),
            Column("celery", "Celery", width=80),
        ],
        sort_by="Instance",
        descending=False,
        steps=Steps(BLUE),
        unit="string",
    )
