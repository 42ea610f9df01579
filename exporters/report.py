"""What one `/metrics` page says about Celery, judged: the rows to show and the problems to name (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .schedule_words import between, in_words

if TYPE_CHECKING:
    from .reading import Page

OVERDUE = 60.0
"""Seconds that a schedule entry may be late before `status` calls it a problem."""

FRESH = 15.0
"""Seconds after the monitor's start within which workers need not have been heard: they speak every few seconds."""

LAG = 30.0
"""Seconds of event lag beyond which the other numbers are too old to be believed."""


@dataclass
class WorkerRow:
    """A worker: `state` is online, offline (said goodbye) or lost; times are in seconds, None where not known."""

    worker: str
    state: str
    active: float
    slots: float
    processed: float
    missed: float
    heartbeat_age: float | None


@dataclass
class QueueRow:
    """A queue: messages by state, age of the oldest in seconds, and who consumes."""

    queue: str
    ready: float
    unacked: float
    scheduled: float
    oldest: float | None
    consumers: float | None
    busy: float
    slots: float


@dataclass
class ScheduleRow:
    """A schedule entry; `last` and `next` are seconds from now, `last` in the past.

    `state` is missed (overdue, and its next slot is due too), late (overdue), failing (its last run failed), never ran,
    or on time; `lateness` is its mean in seconds, None before the first dispatch that was measured.
    """

    entry: str
    schedule: str
    state: str
    last: float | None
    next: float | None
    lateness: float | None
    overdue: float
    missed: float
    duplicate: float


@dataclass
class TaskRow:
    """A task over all queues; `failure_rate` is failed / finished, None before the first run has finished."""

    task: str
    finished: float
    failed: float
    failure_rate: float | None
    retried: float
    revoked: float
    mean_runtime: float | None
    running: float
    waiting: float
    exceptions: dict[str, float]
    """What its failures raised: class → how often."""


@dataclass
class Trust:
    """How far the other numbers can be believed."""

    connected: bool
    lag: float | None
    starts: float
    starts_missed: float
    missed_down: float
    """Of these, the ones while the monitor itself was down."""
    sample_age: float | None
    """Seconds since the queues were last sampled (the broker that is worst off), None before the first time."""
    reconnects: float
    sent_coverage: float | None
    malformed: float
    evicted: float
    overflow: float


@dataclass
class Report:
    """All that `celeryscope status` shows; `problems` are lines for people, empty when nothing is wrong."""

    workers: list[WorkerRow]
    queues: list[QueueRow]
    schedules: list[ScheduleRow]
    tasks: list[TaskRow]
    trust: Trust
    problems: list[str] = field(default_factory=list)


def report(page: Page, now: float) -> Report:
    """Read the page; `now` is unix time."""
    result = Report(_workers(page, now), _queues(page), _schedules(page, now), _tasks(page), _trust(page, now))
    result.problems = [problem for find in _CHECKS for problem in find(page, result)]
    result.problems += _nobody(page, result, now)
    return result


def _workers(page: Page, now: float) -> list[WorkerRow]:
    up, lost = page.by("worker", name="celery_worker_up"), page.by("worker", name="celery_worker_lost")
    active = page.by("worker", name="celery_worker_active_tasks")
    slots = page.by("worker", name="celery_worker_concurrency")
    processed = page.by("worker", name="celery_worker_processed_total")
    missed = page.by("worker", name="celery_worker_starts_missed_total")
    heard = page.by("worker", name="celery_worker_last_heartbeat_timestamp_seconds")
    rows = [
        WorkerRow(
            worker=name,
            state="online" if up[name] else "lost" if lost.get(name) else "offline",
            active=active.get(name, 0),
            slots=slots.get(name, 0),
            processed=processed.get(name, 0),
            missed=missed.get(name, 0),
            heartbeat_age=max(now - heard[name], 0) if heard.get(name) else None,
        )
        for name in sorted(up)
    ]
    return sorted(rows, key=lambda row: ("lost", "offline", "online").index(row.state))


def _queues(page: Page) -> list[QueueRow]:
    states = {
        state: page.by("queue", name="celery_queue_messages", state=state)
        for state in ("ready", "unacked", "scheduled")
    }
    oldest = page.by("queue", name="celery_queue_oldest_message_age_seconds")
    consumers = page.by("queue", name="celery_queue_consumers")
    busy, slots = page.by("queue", name="celery_queue_busy_slots"), page.by("queue", name="celery_queue_slots")
    names = set(consumers).union(*states.values())
    return [
        QueueRow(
            queue=name,
            ready=states["ready"].get(name, 0),
            unacked=states["unacked"].get(name, 0),
            scheduled=states["scheduled"].get(name, 0),
            oldest=oldest.get(name),
            consumers=consumers.get(name),
            busy=busy.get(name, 0),
            slots=slots.get(name, 0),
        )
        for name in sorted(names)
    ]


def _schedules(page: Page, now: float) -> list[ScheduleRow]:
    def of(name: str) -> dict[str, float]:
        return page.by("app", "entry", name=f"celery_beat_{name}")

    last, due = of("last_dispatch_timestamp_seconds"), of("next_due_timestamp_seconds")
    overdue, missed, duplicate = of("overdue_seconds"), of("missed_total"), of("duplicate_total")
    spent, measured = of("lateness_seconds_sum"), of("lateness_seconds_count")
    failed, succeeded = of("last_failure_timestamp_seconds"), of("last_success_timestamp_seconds")
    never = of("never_ran")
    rules = _rules(page)
    rows = []
    for name in sorted({*last, *due, *overdue}):
        kind, spec = rules.get(name, ("unknown", ""))
        late = overdue.get(name, 0)
        failing = failed.get(name, 0) > succeeded.get(name, 0)
        usual = "failing" if failing else "never ran" if never.get(name) else "on time"
        rows.append(
            ScheduleRow(
                entry=name,
                schedule=in_words(kind, spec),
                state=("missed" if late >= between(kind, spec, due.get(name, now)) else "late") if late else usual,
                last=last[name] - now if last.get(name) else None,
                next=due[name] - now if due.get(name) else None,
                lateness=spent.get(name, 0) / measured[name] if measured.get(name) else None,
                overdue=late,
                missed=missed.get(name, 0),
                duplicate=duplicate.get(name, 0),
            )
        )
    return sorted(rows, key=lambda row: -row.overdue)


def _rules(page: Page) -> dict[str, tuple[str, str]]:
    """Return kind and specification of each entry."""
    found = {}
    for labels, _ in page.samples("celery_beat_entry_info"):
        name = "/".join(labels[label] for label in ("broker", "app", "entry") if labels.get(label))
        found[name] = labels.get("kind", "unknown"), labels.get("spec", "")
    return found


def _tasks(page: Page) -> list[TaskRow]:
    def sums(name: str) -> dict[str, float]:
        return page.by("task", name=name)

    succeeded, failed = sums("celery_task_succeeded_total"), sums("celery_task_failed_total")
    retried, revoked = sums("celery_task_retried_total"), sums("celery_task_revoked_total")
    spent, runs = sums("celery_task_runtime_seconds_sum"), sums("celery_task_runtime_seconds_count")
    running, waiting = sums("celery_tasks_running"), sums("celery_tasks_waiting")
    raised = _raised(page)
    rows = []
    for name in {*succeeded, *failed, *running, *waiting}:
        finished = succeeded.get(name, 0) + failed.get(name, 0)
        rows.append(
            TaskRow(
                task=name,
                finished=finished,
                failed=failed.get(name, 0),
                failure_rate=failed.get(name, 0) / finished if finished else None,
                retried=retried.get(name, 0),
                revoked=revoked.get(name, 0),
                mean_runtime=spent.get(name, 0) / runs[name] if runs.get(name) else None,
                running=running.get(name, 0),
                waiting=waiting.get(name, 0),
                exceptions=raised.get(name, {}),
            )
        )
    return sorted(rows, key=lambda row: (-(row.failure_rate or 0), -row.failed, -row.finished, row.task))


def _raised(page: Page) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for labels, count in page.samples("celery_task_exceptions_total", outcome="failed"):
        if count:
            name = "/".join(labels[label] for label in ("broker", "task") if labels.get(label))
            found[name][labels.get("exception", "unknown")] += count
    return {name: dict(counts) for name, counts in found.items()}


def _trust(page: Page, now: float) -> Trust:
    coverage = [value for _, value in page.samples("celery_task_sent_coverage_ratio")]
    sampled = [at for _, at in page.samples("celeryscope_sample_timestamp_seconds", collector="queues") if at]
    return Trust(
        connected=all(value for _, value in page.samples("celeryscope_connected")),
        lag=page.largest("celeryscope_event_lag_seconds"),
        starts=page.total("celery_worker_processed_total"),
        starts_missed=page.total("celery_worker_starts_missed_total"),
        missed_down=page.total("celery_worker_starts_missed_down_total"),
        sample_age=max(now - min(sampled), 0) if sampled else None,
        reconnects=page.total("celeryscope_reconnects_total"),
        sent_coverage=sum(coverage) / len(coverage) if coverage else None,
        malformed=page.total("celeryscope_events_malformed_total"),
        evicted=page.total("celeryscope_task_table_evicted_total"),
        overflow=page.total("celeryscope_label_overflow_total"),
    )


def _monitor_problems(page: Page, result: Report) -> list[str]:
    found = []
    for labels, value in page.samples("celeryscope_connected"):
        if not value:
            found.append(f"the monitor hears nothing from the broker{_of(labels)}: everything below is old")
    if result.trust.lag is not None and result.trust.lag > LAG:
        found.append(f"events arrive {result.trust.lag:.0f} s late")
    for labels, value in page.samples("celeryscope_collector_success"):
        if not value:
            found.append(f"the collector {labels.get('collector', '')}{_of(labels)} fails")
    return found


def _worker_problems(_page: Page, result: Report) -> list[str]:
    return [
        f"worker {row.worker} is lost: it fell silent without saying goodbye"
        for row in result.workers
        if row.state == "lost"
    ]


def _nobody(page: Page, result: Report, now: float) -> list[str]:
    """Say that no worker is online: also where none was ever heard, once a monitor that hears has had the time."""
    if any(row.state == "online" for row in result.workers):
        return []
    if not result.workers:
        started = page.largest("process_start_time_seconds")
        young = started is not None and abs(now - started) < FRESH
        if young or not result.trust.connected:
            return []
    return ["no worker is online"]


def _wedged_problems(page: Page, _result: Report) -> list[str]:
    wedged = page.by("worker", name="celery_worker_wedged")
    orphaned = page.by("task", name="celery_tasks_orphaned")
    return [
        *(
            f"worker {name} is wedged: its queues hold messages and it takes none"
            for name, is_so in wedged.items()
            if is_so
        ),
        *(f"{count:.0f} run(s) of {name} lost their worker" for name, count in orphaned.items() if count),
    ]


def _queue_problems(_page: Page, result: Report) -> list[str]:
    return [
        f"queue {row.queue} holds {row.ready:.0f} message(s) and nobody consumes"
        for row in result.queues
        if row.ready and row.consumers == 0
    ]


def _beat_problems(page: Page, result: Report) -> list[str]:
    found = []
    for app, count in page.by("app", name="celery_beats").items():
        if count == 0:
            found.append(f"no beat is alive for {app}: its schedule stands still")
        elif count > 1:
            found.append(f"{count:.0f} beats lead {app}: its schedule runs several times")
    found += [f"{row.entry} is overdue by {row.overdue:.0f} s" for row in result.schedules if row.overdue > OVERDUE]
    return found


def _of(labels: dict[str, str]) -> str:
    return f" {labels['broker']}" if labels.get("broker") else ""


_CHECKS: tuple[Callable[[Page, Report], list[str]], ...] = (
    _monitor_problems,
    _worker_problems,
    _wedged_problems,
    _queue_problems,
    _beat_problems,
)
