"""Alerts on workers, and on the queues that they should empty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .queries import fact, once, rate, select, total
from .rules_model import FLOWER_WORKER, LONG, SHARE, Alert, Group, on_broker, times
from .thresholds import seconds

if TYPE_CHECKING:
    from .thresholds import RulesSettings

OUTBOX = "celeryscope.failures"
NOT_OURS = f'queue!="{OUTBOX}"'
QUEUE = ("broker", "queue")
BUSY_OVER = "5m"
STARTS_OVER = "5m"
WORKER = "{{ $labels.worker }}" + on_broker()
NAMED_QUEUE = "{{ $labels.queue }}" + on_broker()


def groups(settings: RulesSettings) -> tuple[Group, Group]:
    """Return the group about workers and the one about queues."""
    return Group("celery-workers", [*_workers(settings)]), Group("celery-queues", [*_queues(settings)])


def _workers(settings: RulesSettings) -> Iterator[Alert]:
    online = fact("celery_workers", 'state="online"')
    yield Alert(
        "NoWorkers",
        f"{online} == 0",
        "critical",
        "workers",
        "No Celery worker is online" + on_broker(),
        "No worker sends heartbeats, so nothing is executed. Start workers, or find out why they ended or cannot "
        "reach the broker.",
        hold=settings.no_workers_for,
        flower="/workers",
    )
    yield Alert(
        "WorkerLost",
        f"{fact('celery_worker_lost')} == 1 unless {fact('celery_worker_up')} == 1",
        "warning",
        "workers",
        f"Worker {WORKER} is gone without a goodbye",
        "Its heartbeats stopped and it did not say that it shuts down: it was killed (out of memory?), is frozen "
        "or cut off. Look at its host and its log; what it was executing is shown as orphaned.",
        hold=settings.worker_lost_for,
        variables=("worker",),
        flower=FLOWER_WORKER,
    )
    yield _wedged(settings)
    yield _saturated(settings)
    yield _events_off(settings)


def _wedged(settings: RulesSettings) -> Alert:
    return Alert(
        "WorkerWedged",
        f"{fact('celery_worker_wedged')} == 1",
        "warning",
        "workers",
        f"Worker {WORKER} is alive but takes no tasks",
        "It sends heartbeats and has free slots, its queues hold messages, and it receives none: its consumer is "
        "stuck. Restart it.",
        hold=settings.worker_wedged_for,
        variables=("worker",),
        flower=FLOWER_WORKER,
    )


def _events_off(settings: RulesSettings) -> Alert:
    return Alert(
        "EventsOff",
        f"{fact('celery_worker_events_enabled')} == 0 and {fact('celery_worker_up')} == 1",
        "warning",
        "workers",
        f"Worker {WORKER} sends no task events",
        "It executes tasks and says nothing about them: all that is shown of its tasks is missing. Call "
        "celeryscope.install(app) in its app, start it with -E, or run the monitor with --enable-events.",
        hold=settings.events_off_for,
        variables=("worker",),
        flower=FLOWER_WORKER,
    )


def _saturated(settings: RulesSettings) -> Alert:
    busy, slots = (
        once(name, f"avg_over_time({select(name, NOT_OURS)}[{BUSY_OVER}])")
        for name in ("celery_queue_busy_slots", "celery_queue_slots")
    )
    return Alert(
        "WorkersSaturated",
        f"{busy} / ({slots} > 0) >= {settings.workers_saturated_ratio:g} and {_ready()} > 0",
        "warning",
        "workers",
        f"All workers of queue {NAMED_QUEUE} are busy and messages wait",
        f"{SHARE} of the slots that serve the queue are executing. Add workers or concurrency, or look for tasks "
        "that "
        "have become slow.",
        hold=settings.workers_saturated_for,
        board="queues",
        variables=("queue",),
    )


def _ready() -> str:
    return total(fact("celery_queue_messages", 'state="ready"', NOT_OURS), QUEUE)


def _queues(settings: RulesSettings) -> Iterator[Alert]:
    yield Alert(
        "QueueWithoutConsumers",
        f"{_ready()} > 0 and {fact('celery_queue_consumers', NOT_OURS)} == 0",
        "critical",
        "queues",
        f"Nobody consumes from queue {NAMED_QUEUE}",
        f"{times()} messages wait in it and no worker reads it. Start a worker with -Q {{{{ $labels.queue }}}}, or "
        "send "
        "the tasks elsewhere (a misspelt queue name?).",
        hold=settings.queue_without_consumers_for,
        variables=("queue",),
        flower="/workers",
    )
    yield _growing(settings)
    yield Alert(
        "OldestTaskTooOld",
        f"{fact('celery_queue_oldest_message_age_seconds', NOT_OURS)} > {seconds(settings.oldest_task_age):g}",
        "warning",
        "queues",
        f"The oldest message in queue {NAMED_QUEUE} has been waiting for {LONG}",
        "Tasks start much later than they were asked for. See whether workers are busy, stuck, or not there, and "
        "which tasks fill the queue.",
        hold=settings.oldest_task_for,
        variables=("queue",),
    )


def _growing(settings: RulesSettings) -> Alert:
    messages = select("celery_queue_messages", 'state="ready"', NOT_OURS)
    drain = seconds(settings.queue_growing_drain)
    # The trend takes the jump of a batch for growth, long after it has begun to drain: what goes on now counts too.
    trend, now = (
        total(once("celery_queue_messages", f"predict_linear({messages}[{window}], {drain:g})"), QUEUE)
        for window in (settings.queue_growing_trend, settings.queue_growing_now)
    )
    started = total(rate("celery_task_started_total", NOT_OURS, window=STARTS_OVER), QUEUE)
    work = f"{started} * {seconds(settings.queue_growing_work):g}"
    return Alert(
        "QueueGrowing",
        f"{_ready()} >= {settings.queue_growing_messages} and {trend} > 0 and {now} > 0 unless {_ready()} < {work}",
        "warning",
        "queues",
        f"Queue {NAMED_QUEUE} is not draining: {times()} messages",
        f"As it goes, the queue will not be empty in {settings.queue_growing_drain}. More comes in than workers "
        "take: "
        "add workers, or find what floods the queue or slows its tasks down.",
        hold=settings.queue_growing_for,
        variables=("queue",),
    )
