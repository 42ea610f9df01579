"""Alerts on beat: is it there, does it tick, is it one, and does every entry run when it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .queries import fact, grown
from .rules_model import LONG, Alert, Group, on_broker, times
from .thresholds import seconds

if TYPE_CHECKING:
    from .thresholds import RulesSettings

APP = "{{ $labels.app }}" + on_broker()
ENTRY = "{{ $labels.entry }} of {{ $labels.app }}" + on_broker()
OF_ENTRY = ("app", "entry")


def groups(settings: RulesSettings) -> tuple[Group]:
    """Return the group about beat."""
    return (Group("celery-beat", [*_processes(settings), *_slots(settings), *_runs(settings)]),)


def _processes(settings: RulesSettings) -> Iterator[Alert]:
    yield Alert(
        "BeatDown",
        f"{fact('celery_beats')} == 0",
        "critical",
        "beat",
        f"No beat of {APP} is running",
        "Nobody dispatches its schedule. Start celery beat (or the worker with -B); the board shows what is overdue.",
        hold=settings.beat_down_for,
        variables=("app",),
    )
    tick = f"{fact('celery_beat_last_tick_timestamp_seconds')} > 0"
    yield Alert(
        "BeatNotTicking",
        f"time() - ({tick}) > {seconds(settings.beat_tick_age):g} and {fact('celery_beat_up')} == 1",
        "critical",
        "beat",
        f"Beat {{{{ $labels.beat }}}} of {APP} has not ticked for {LONG}",
        "Its process is alive and its scheduler stands still: blocked by the broker, the database or a lock. Look at "
        "its log and restart it.",
        hold=settings.beat_tick_for,
        variables=("app",),
    )
    yield Alert(
        "BeatDuplicate",
        f"{fact('celery_beats')} > 1",
        "critical",
        "beat",
        f"{times()} beats dispatch the schedule of {APP}",
        "Every scheduled task runs that many times. Stop all but one; run a single replica, or RedBeat with its lock.",
        hold=settings.beat_duplicate_for,
        variables=("app",),
        extra={"reason": "beats"},
    )


def _slots(settings: RulesSettings) -> Iterator[Alert]:
    yield Alert(
        "BeatDuplicate",
        grown("celery_beat_duplicate_total", window=settings.beat_duplicate_window),
        "warning",
        "beat",
        f"{ENTRY} was dispatched more than once for one slot",
        f"{times()} times in {settings.beat_duplicate_window}: by a second beat, or by one that was restarted "
        "after a "
        "crash and had forgotten. See that one beat runs, and that the task may run twice.",
        variables=OF_ENTRY,
        extra={"reason": "dispatches"},
    )
    yield Alert(
        "ScheduleMissed",
        grown("celery_beat_missed_total", window=settings.schedule_missed_window),
        "warning",
        "beat",
        f"{ENTRY} missed {times()} of its runs",
        "Their time passed, the next was due too, and beat dispatched nothing: it was down, blocked, or too slow. "
        "See whether it is back, and run by hand what must not be left out.",
        variables=OF_ENTRY,
    )
    yield Alert(
        "ScheduleLate",
        f"{fact('celery_beat_overdue_seconds')} > {seconds(settings.schedule_late_after):g}",
        "warning",
        "beat",
        f"{ENTRY} has been due for {LONG} and was not dispatched",
        "See whether beat runs and ticks; if this must not wait, run the task by hand.",
        hold=settings.schedule_late_for,
        variables=OF_ENTRY,
    )


def _runs(settings: RulesSettings) -> Iterator[Alert]:
    failure, success = (fact(f"celery_beat_last_{end}_timestamp_seconds") for end in ("failure", "success"))
    yield Alert(
        "ScheduleFailing",
        f"{failure} > {success} or ({failure} unless {success})",
        "warning",
        "beat",
        f"The last run of {ENTRY} failed",
        "It failed at {{ $value | humanizeTimestamp }} and has not succeeded since. Its Slack message has the "
        "traceback; mend it and run the task by hand if it must not wait for its next slot.",
        hold=settings.schedule_failing_for,
        variables=OF_ENTRY,
    )
    yield Alert(
        "DispatchFailed",
        grown("celery_beat_dispatch_failed_total", window=settings.dispatch_failed_window),
        "warning",
        "beat",
        f"Beat could not send {ENTRY} to the broker ({times()} times)",
        "Celery only logs this, and does not try again: those runs are lost. See whether the broker takes "
        "messages, and run by hand what must not be left out.",
        variables=OF_ENTRY,
    )
