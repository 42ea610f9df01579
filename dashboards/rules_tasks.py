"""Alerts on tasks: failing, retrying, stuck, orphaned, slower than last week."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .queries import fact, grown, total
from .recordings import recorded
from .rules_model import FLOWER_TASK, LONG, SHARE, Alert, Group, Helper, on_broker, times
from .thresholds import seconds

if TYPE_CHECKING:
    from .thresholds import RulesSettings

TASK = ("broker", "task")
NAMED = "{{ $labels.task }}" + on_broker()
LAST_WEEK = "offset 1w"
COUNTED = ("failed", "succeeded", "retried", "started")
MEMORY = "6h"
"""How far these look back for a series that comes and goes: they read every task's counters."""


def groups(settings: RulesSettings) -> tuple[Group]:
    """Return the group about tasks."""
    alerts = [*_outcomes(settings), _storm(settings), *_runs(settings), _regressed(settings)]
    return (Group("celery-tasks", alerts, [*_helpers(settings)], costly=True),)


def _grown(outcome: str) -> str:
    return f"celery:task_{outcome}:grown"


def _helpers(settings: RulesSettings) -> Iterator[Helper]:
    for outcome in COUNTED:
        counted = grown(f"celery_task_{outcome}_total", window=settings.task_window, memory=MEMORY)
        yield Helper(_grown(outcome), total(counted, TASK), TASK)


def _outcomes(settings: RulesSettings) -> Iterator[Alert]:
    failed = _grown("failed")
    runs = f"({failed} + ({_grown('succeeded')} or {failed} * 0))"
    yield Alert(
        "TaskFailureRateHigh",
        f"{failed} / {runs} >= {settings.task_failure_ratio:g} and {runs} >= {settings.task_failure_runs}",
        "warning",
        "tasks",
        f"{SHARE} of the runs of {NAMED} fail",
        f"Counted over {settings.task_window}. The board shows the exception classes, the failure's Slack message "
        "the "
        "traceback. See what was deployed or which service it needs is down.",
        hold=settings.task_failure_for,
        board="task",
        variables=("task",),
        flower=FLOWER_TASK + "&state=FAILURE",
    )
    window = settings.retries_exhausted_window
    exhausted = grown("celery_task_retries_exhausted_total", window=window, memory=MEMORY)
    yield Alert(
        "RetriesExhausted",
        f"{total(exhausted, TASK)} >= {settings.retries_exhausted}",
        "warning",
        "tasks",
        f"{NAMED} gave up after its last retry ({times()} in {settings.retries_exhausted_window})",
        "What it should have done is not done and nobody will try again. Mend the cause, then send those tasks anew.",
        board="task",
        variables=("task",),
        flower=FLOWER_TASK + "&state=FAILURE",
    )


def _storm(settings: RulesSettings) -> Alert:
    retried = _grown("retried")
    return Alert(
        "RetryStorm",
        f"{retried} / ({_grown('started')} or {retried}) >= {settings.retry_storm_ratio:g}"
        f" and {retried} >= {settings.retry_storm_retries}",
        "warning",
        "tasks",
        f"{SHARE} of the runs of {NAMED} ask for a retry",
        "Workers are busy repeating what fails, and put load on what it needs. See the exception class on the board; "
        "mend the cause, lengthen the backoff, or revoke the task.",
        hold=settings.retry_storm_for,
        board="task",
        variables=("task",),
        flower=FLOWER_TASK + "&state=RETRY",
    )


def _runs(settings: RulesSettings) -> Iterator[Alert]:
    # Backslashes of a regular expression are doubled in PromQL's strings, as in JSON's.
    patterns = json.dumps("|".join(settings.task_stuck_ignore), ensure_ascii=False)
    ignored = (f"task!~{patterns}",) if settings.task_stuck_ignore else ()
    yield Alert(
        "TaskStuck",
        f"{fact('celery_task_oldest_running_seconds', *ignored)} > {seconds(settings.task_stuck_after):g}",
        "warning",
        "tasks",
        f"A run of {NAMED} has been going on for {LONG}",
        "It holds a slot of its worker. Find it in Flower, see what it waits for, and terminate it if need be; "
        "give the task a time limit. If it may take that long, name it in task_stuck_ignore.",
        hold=settings.task_stuck_for,
        board="task",
        variables=("task", "queue"),
        flower=FLOWER_TASK + "&state=STARTED",
    )
    yield Alert(
        "TasksOrphaned",
        f"{total(fact('celery_tasks_orphaned'), TASK)} > 0",
        "warning",
        "tasks",
        f"{times()} runs of {NAMED} were under way on a worker that is gone",
        "They have no end. With late acknowledgement the broker delivers them again (on Redis after the visibility "
        "timeout); without, their work is lost: send them anew if it must be done.",
        hold=settings.tasks_orphaned_for,
        board="task",
        variables=("task",),
        flower=FLOWER_TASK + "&state=STARTED",
    )


def _regressed(settings: RulesSettings) -> Alert:
    mean, runs = recorded("celery:task_runtime_seconds:mean1h"), recorded("celery:task_runtime_seconds:count1h")
    enough = settings.runtime_runs
    return Alert(
        "RuntimeRegressed",
        f"{mean} > {settings.runtime_factor:g} * {mean} {LAST_WEEK}"
        f" and {mean} - {mean} {LAST_WEEK} >= {settings.runtime_least:g}"
        f" and {runs} >= {enough} and {runs} {LAST_WEEK} >= {enough}",
        "info",
        "tasks",
        f"{NAMED} takes {LONG}, much longer than a week ago",
        f"The mean runtime of this hour's successful runs is over {settings.runtime_factor:g} times that of the same "
        "hour last week. See what was deployed, and how what it depends on is doing.",
        hold=settings.runtime_for,
        board="task",
        variables=("task",),
        flower=FLOWER_TASK,
    )
