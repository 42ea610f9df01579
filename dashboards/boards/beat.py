"""Celery / Beat: is the scheduler alive, does it keep its word, and did what it started succeed."""

from __future__ import annotations

from ..board import Board, Section, board
from ..links import field, of_entry, of_task
from ..palette import BAD, GOOD, PLAIN, PURPLE, QUIET, WARN, Steps, words, worse
from ..panels import BarGauge, Query, StateTimeline, Tile, Timeseries
from ..queries import fact, growth, increase, largest, mean, top, total
from ..tables import Column, Table
from .parts import APP, ENTRY, RANGE, none_seen, number, quantiles, spread, variables

BY = ("broker", "app", "entry")
TOP = 12
LATENESS = "celery_beat_lateness_seconds"


def make(flower_url: str) -> Board:
    """Return the board."""
    return board(
        "beat",
        "Celery / Beat",
        "Is the scheduler alive, does it keep its word, and did what it started succeed?",
        [
            Section("", [*_numbers(), _schedule()]),
            Section("Is it alive", [_beats(), _tick(), _entries()]),
            Section("Does it keep its word", [*_lateness(), _overdue(), _drift(), _trouble(), _interval()]),
            Section("What came of it", [_end_to_end(), _succeeded(), _never()]),
        ],
        variables(flower_url, "app", "entry"),
        since="now-24h",
    )


def _numbers() -> list[Tile]:
    def grown(name: str) -> str:
        return none_seen(total(growth(f"celery_beat_{name}_total", *ENTRY, window=RANGE)))

    return [
        number(
            "Apps without one beat",
            "Is there exactly one scheduler for each app?",
            "Apps with no leading beat (nothing is scheduled) or with more than one (all runs twice).",
            "See *Beats by app*: start the missing one, stop the one that is too many.",
            none_seen(f"count({fact('celery_beats', *APP)} != 1)"),
            steps=worse(bad=1),
        ),
        number(
            "Most overdue",
            "Is something due and not sent?",
            "How long the most overdue entry has been due without a dispatch.",
            "Beat is down, stuck in a tick, or waits for the broker. See the schedule below.",
            none_seen(largest(fact("celery_beat_overdue_seconds", *ENTRY))),
            unit="s",
            steps=worse(warn=10, bad=60),
        ),
        number(
            "Slots missed",
            "Which runs never came?",
            "Slots that passed, the next one due too, without a dispatch, in the time shown.",
            "Run by hand what must not be left out; then see when beat was away.",
            grown("missed"),
            steps=worse(warn=1),
        ),
        number(
            "Dispatches that failed",
            "Did the broker refuse?",
            "Dispatches that the broker did not take: those runs are lost, beat does not repeat them.",
            "See the broker's log at that time; run by hand what must not be left out.",
            grown("dispatch_failed"),
            steps=worse(warn=1),
        ),
    ]


def _timestamp(name: str) -> str:
    # Grafana's dates are in milliseconds; a timestamp of 0 says "never" and is left out.
    return f"({fact(f'celery_beat_{name}_timestamp_seconds', *ENTRY)} > 0) * 1000"


def _schedule() -> Table:
    missed = total(growth("celery_beat_missed_total", *ENTRY, window=RANGE), BY)
    return Table(
        title="The schedule",
        asks="What runs when, and is it late, missed or failing?",
        means="Every entry: when it is due, when it was last sent, succeeded and failed, how long it is overdue, and "
        "slots missed in the time shown.",
        do="Overdue: beat does not send it. Sent long after it last succeeded: the task fails; click it.",
        queries=[
            Query(expr=fact("celery_beat_entry_info", *ENTRY)),
            Query(expr=_timestamp("next_due")),
            Query(expr=_timestamp("last_dispatch")),
            Query(expr=_timestamp("last_success")),
            Query(expr=_timestamp("last_failure")),
            Query(expr=fact("celery_beat_overdue_seconds", *ENTRY)),
            Query(expr=missed),
        ],
        width=24,
        height=10,
        columns=[
            Column("app", "App", width=100),
            Column("entry", "Entry", links=of_entry(field("app"), field("entry"))),
            Column("task", "Task", links=of_task(field("task"))),
            Column("spec", "Schedule", width=140),
            Column("B", "Due", unit="dateTimeFromNow", width=120),
            Column("C", "Last sent", unit="dateTimeFromNow", width=120),
            Column("D", "Succeeded", unit="dateTimeFromNow", width=120),
            Column("E", "Failed", unit="dateTimeFromNow", width=120),
            Column("F", "Overdue", unit="s", steps=worse(warn=10, bad=60), width=100),
            Column("G", "Missed", decimals=0, steps=worse(warn=0.5), width=80),
        ],
        sort_by="Overdue",
    )


def _beats() -> StateTimeline:
    states = {0: ("NONE", BAD), 1: ("one", GOOD), 2: ("TWO", WARN)}
    return StateTimeline(
        title="Leading beats by app",
        asks="Was there always exactly one?",
        means="None: nothing was scheduled. Two: everything was sent twice. Standbys of RedBeat are not counted.",
        do="None: start beat. Two: a second one was started, by `-B` on several workers or an overlapping deploy.",
        queries=[Query(expr=fact("celery_beats", *APP), legend="{{app}}")],
        width=8,
        unit="none",
        mappings=words(states),
        steps=Steps(BAD, ((1, GOOD), (2, WARN))),
    )


def _tick() -> Timeseries:
    age = f"time() - {fact('celery_beat_last_tick_timestamp_seconds', *APP)}"
    return Timeseries(
        title="Seconds since the last tick",
        asks="Is it stuck?",
        means="Of each beat process that is heard: the scheduler's loop turns at least every `beat_max_loop_interval`.",
        do="It rises although beat is up: it is blocked on the broker or the schedule's database.",
        queries=[Query(expr=f"({age}) and ({fact('celery_beat_up', *APP)} == 1)", legend="{{beat}}")],
        width=8,
        unit="s",
        steps=worse(warn=300, bad=600),
        lines=True,
    )


def _entries() -> Timeseries:
    return Timeseries(
        title="Entries in the schedule",
        asks="Did entries vanish?",
        means="Entries of each beat's schedule, as its heartbeat says.",
        do="A fall at a deploy: an entry was dropped from the configuration. 0: the schedule was not loaded.",
        queries=[Query(expr=fact("celery_beat_entries", *APP), legend="{{beat}}")],
        width=8,
    )


def _lateness() -> list[Tile]:
    return [
        spread(
            LATENESS,
            *ENTRY,
            title="Lateness, how it is spread",
            asks="How late are dispatches?",
            means="Dispatches per second by the time from due to dispatched.",
            do="A band above a second: beat is slow (a big schedule, a slow database), or its machine is.",
        ),
        quantiles(
            LATENESS,
            *ENTRY,
            title="Lateness, quantiles",
            asks="Does it get later?",
            means="Time from due to dispatched.",
            do="Peaks at a restart are caught-up runs. A lasting rise: beat cannot keep up with its schedule.",
        ),
    ]


def _overdue() -> Timeseries:
    return Timeseries(
        title=f"Overdue, the {TOP} worst",
        asks="What was due and not sent, and when?",
        means="How long each entry has been due without a dispatch; 0 when on time.",
        do="All together: beat was away. One alone: its own schedule or its options; see beat's log.",
        queries=[Query(expr=f"{top(TOP, fact('celery_beat_overdue_seconds', *ENTRY))} > 0", legend="{{entry}}")],
        unit="s",
        steps=worse(bad=60),
        lines=True,
        data_links=of_entry(),
    )


def _drift() -> Timeseries:
    return Timeseries(
        title="Drift from the ideal grid",
        asks="Does an interval wander off?",
        means="Last dispatch minus the ideal grid of the entry. Interval entries count from their last run, so small "
        "delays add up.",
        do="Where the wall-clock time matters, use a crontab instead of an interval.",
        queries=[Query(expr=top(TOP, fact("celery_beat_drift_seconds", *ENTRY)), legend="{{entry}}")],
        unit="s",
        data_links=of_entry(),
    )


def _trouble() -> Timeseries:
    names = {"missed": ("missed", BAD), "duplicate": ("duplicates", WARN), "dispatch_failed": ("refused", PURPLE)}
    queries = [
        Query(
            expr=f"{total(increase(f'celery_beat_{name}_total', *ENTRY, window='5m'), ('entry',))} > 0",
            legend=f"{legend}: {{{{entry}}}}",
        )
        for name, (legend, _) in names.items()
    ]
    return Timeseries(
        title="Missed, duplicate, refused",
        asks="When did it go wrong?",
        means="In five minutes: slots without a dispatch, slots dispatched twice, dispatches the broker refused.",
        do="Missed: beat was away. Duplicates: two beats run. Refused: the broker was away; those runs are lost.",
        queries=queries,
        bars=True,
        stacked=True,
        data_links=of_entry(),
    )


def _interval() -> Timeseries:
    return Timeseries(
        title=f"Fire to fire, the {TOP} longest",
        asks="Is the rhythm right?",
        means="Mean time from one dispatch to the next, over an hour.",
        do="Longer than the schedule says: dispatches are skipped. Shorter: a second beat, or a catch-up.",
        queries=[
            Query(expr=top(TOP, mean("celery_beat_interval_seconds", BY, *ENTRY, window="1h")), legend="{{entry}}")
        ],
        unit="s",
        data_links=of_entry(),
    )


def _end_to_end() -> Timeseries:
    return Timeseries(
        title=f"Due to finished, the {TOP} longest",
        asks="When is scheduled work done?",
        means="Mean time from an entry's due time to the end of the run it caused, over an hour.",
        do="Longer than the entry's interval: runs overlap. Give it more workers, or a longer interval.",
        queries=[
            Query(expr=top(TOP, mean("celery_beat_end_to_end_seconds", BY, *ENTRY, window="1h")), legend="{{entry}}")
        ],
        width=8,
        unit="s",
        data_links=of_entry(),
    )


def _succeeded() -> BarGauge:
    dispatched = total(growth("celery_beat_dispatched_total", *ENTRY, window=RANGE), BY)
    return BarGauge(
        title="Dispatches in the time shown",
        asks="How often did each entry run?",
        means="Dispatches by entry, the most frequent first.",
        do="Far from what its schedule says: see lateness, missed and duplicates.",
        queries=[Query(expr=top(TOP, dispatched), legend="{{entry}}", instant=True)],
        width=8,
        minimum=0,
        decimals=0,
        steps=PLAIN,
        data_links=of_entry(),
    )


def _never() -> Table:
    success, failure = (fact(f"celery_beat_last_{name}_timestamp_seconds", *ENTRY) for name in ("success", "failure"))
    return Table(
        title="Failing or never run",
        asks="Which scheduled work does not get done?",
        means="Entries whose last run failed, and entries of which no dispatch is known.",
        do="Failing: click the entry's task in the schedule above. Never run: new, disabled, or longer than the time "
        "between beat's restarts where its schedule is kept in memory.",
        queries=[
            Query(expr=f"({failure} > {success}) * 0 + 2 or ({failure} > 0) * 0 + 2 unless {success}"),
            Query(expr=f"{fact('celery_beat_never_ran', *ENTRY)} == 1"),
        ],
        width=8,
        columns=[
            Column("app", "App", width=90),
            Column("entry", "Entry", links=of_entry(field("app"), field("entry"))),
            Column("A", "Last run", mappings=tuple(words({2: ("FAILED", BAD)})), width=90),
            Column("B", "Ever", mappings=tuple(words({1: ("never ran", WARN)})), width=100),
        ],
        no_value="all run and succeed",
        steps=Steps(QUIET),
    )
