"""Every metric, declared once: the exporter, the dashboards, the rules and the reference page are derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

# Names and default bounds are in base units: seconds for time, plain counts otherwise.
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
WAIT = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 21600.0)
LATENESS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)
INTERVAL = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
ATTEMPTS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 25.0)

Q = ("task", "queue")
ENTRY = ("app", "entry")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed.

    `group` says which part of celeryscope fills it: tasks, workers, queues, beat, monitor or alerter.
    `buckets` are a histogram's upper bounds in the metric's unit, ascending and without +Inf.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()
    group: str = ""


def _counter(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "counter", text, labels)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(name, "gauge", text, labels, "seconds" if name.endswith("_seconds") else "")


def _histogram(name: str, labels: tuple[str, ...], text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, "histogram", text, labels, "seconds" if name.endswith("_seconds") else "", buckets)


TASKS = (
    _counter("celery_task_sent_total", Q, "Messages that producers published (task-sent events)."),
    _counter("celery_task_received_total", Q, "Deliveries of task messages to workers."),
    _counter("celery_task_started_total", Q, "Deliveries that a worker began to execute."),
    _counter("celery_task_succeeded_total", Q, "Runs that returned a result."),
    _counter("celery_task_failed_total", Q, "Runs that ended in an error and will not be retried."),
    _counter("celery_task_retried_total", Q, "Runs that ended by asking for another attempt."),
    _counter("celery_task_cancelled_total", Q, "Runs cancelled by a worker that shut down cold or lost its broker."),
    _counter(
        "celery_task_silent_end_total", Q, "Runs that ended without an event (Ignore, send_events=False), by heartbeat."
    ),
    _counter("celery_task_retries_exhausted_total", Q, "Failed runs that had been retried before: no attempt is left."),
    _counter(
        "celery_task_exceptions_total", (*Q, "exception", "outcome"), "Failed or retried runs by exception class."
    ),
    _counter(
        "celery_task_revoked_total",
        (*Q, "reason"),
        "Tasks revoked: expired, terminated while running, or revoked before.",
    ),
    _counter(
        "celery_task_rejected_total", (*Q, "requeue"), "Deliveries rejected by the task, with or without requeue."
    ),
    _histogram("celery_task_retries", Q, "Retries that a task had used when it finished.", ATTEMPTS),
    _histogram(
        "celery_task_runtime_seconds", (*Q, "outcome"), "Execution time of a run: started to finished.", LATENCY
    ),
    _histogram(
        "celery_task_wait_seconds", Q, "Waiting time of a delivery: sent, or its ETA where later, to started.", WAIT
    ),
    _histogram(
        "celery_task_prefetch_seconds",
        Q,
        "Time a delivery lay in a worker: received, or its ETA where later, to started.",
        WAIT,
    ),
    _histogram(
        "celery_task_total_seconds",
        Q,
        "Time from the first publish of a task to its final end, retries included.",
        WAIT,
    ),
    _counter(
        "celery_task_negative_waits_total",
        Q,
        "Waits and runtimes that came out negative, as clocks disagree or were set; not in the histograms.",
    ),
    _gauge("celery_tasks_waiting", Q, "Tasks sent or received that have not started and are past their ETA."),
    _gauge("celery_tasks_running", Q, "Runs under way on workers that are alive."),
    _gauge("celery_tasks_orphaned", Q, "Runs started on a worker that is gone, without an end."),
    _gauge("celery_task_oldest_running_seconds", Q, "Age of the run that has been under way longest; 0 without one."),
    _gauge("celery_task_oldest_waiting_seconds", Q, "Age of the task that has been waiting longest; 0 without one."),
    _gauge("celery_task_oldest_orphan_seconds", Q, "Time since the start of the oldest orphaned run; 0 without one."),
    _gauge("celery_task_sent_coverage_ratio", ("task",), "Share of a task's runs whose task-sent event was seen."),
)

WORKERS = (
    _gauge("celery_worker_up", ("worker",), "1 while the worker is heard, 0 once it said goodbye or fell silent."),
    _gauge("celery_worker_lost", ("worker",), "1 when the worker's heartbeats stopped without a goodbye."),
    _gauge(
        "celery_worker_active_tasks",
        ("worker",),
        "Tasks executing, by the worker's last heartbeat; without, by events.",
    ),
    _gauge("celery_worker_reserved_tasks", ("worker",), "Tasks received and not started, by events."),
    _gauge("celery_worker_concurrency", ("worker",), "Slots of the worker's pool."),
    _gauge("celery_worker_load1", ("worker",), "One-minute load average of the worker's host."),
    _gauge("celery_worker_events_enabled", ("worker",), "0 where tasks run (heartbeats say) and no task events come."),
    _gauge(
        "celery_worker_wedged",
        ("worker",),
        "1 where heartbeats come, slots are free, its queues hold messages and it takes none.",
    ),
    _counter(
        "celery_worker_processed_total", ("worker",), "Task starts by the worker's own count (heartbeat `processed`)."
    ),
    _counter(
        "celery_worker_starts_missed_total",
        ("worker",),
        "Task starts that the worker counted and the monitor never saw.",
    ),
    _counter(
        "celery_worker_starts_missed_down_total", ("worker",), "Task starts missed because the monitor itself was down."
    ),
    _counter(
        "celery_worker_starts_untracked_total",
        ("worker",),
        "Task starts that sent no event although the connection was whole: tasks with send_events=False.",
    ),
    _gauge(
        "celery_worker_last_heartbeat_timestamp_seconds",
        ("worker",),
        "When the last heartbeat arrived, by the monitor's clock.",
    ),
    _gauge(
        "celery_worker_clock_skew_seconds",
        ("worker",),
        "The worker's clock minus the monitor's, from its least delayed events.",
    ),
    _gauge("celery_worker_info", ("worker", "sw_ver", "sw_sys", "pool"), "1; labels describe the worker."),
    _gauge("celery_workers", ("state",), "Known workers by state: online, offline (said goodbye), lost (fell silent)."),
)

QUEUES = (
    _gauge(
        "celery_queue_messages",
        ("queue", "state"),
        "Messages by disjoint state: ready, unacked, scheduled (ETA, held by a worker).",
    ),
    _gauge("celery_queue_priority_messages", ("queue", "priority"), "Ready messages by priority."),
    _gauge(
        "celery_queue_oldest_message_age_seconds",
        ("queue",),
        "Now minus the later of publish and ETA of the oldest ready message.",
    ),
    _gauge("celery_queue_consumers", ("queue",), "Workers that consume from the queue."),
    _gauge(
        "celery_queue_busy_slots",
        ("queue",),
        "Busy slots of the workers that consume from the queue; not additive over queues.",
    ),
    _gauge(
        "celery_queue_slots", ("queue",), "Slots of the workers that consume from the queue; not additive over queues."
    ),
)

BEAT = (
    _gauge("celery_beat_up", ("app", "beat"), "1 while this beat process is heard."),
    _gauge("celery_beat_last_tick_timestamp_seconds", ("app", "beat"), "When the scheduler last ticked."),
    _gauge("celery_beat_entries", ("app", "beat"), "Entries in this beat's schedule."),
    _gauge("celery_beats", ("app",), "Live leading beats of the app: 0 is an outage, 2 a duplicated schedule."),
    _gauge("celery_beat_entry_info", (*ENTRY, "task", "kind", "spec"), "1; labels describe the entry."),
    _histogram("celery_beat_lateness_seconds", ENTRY, "Dispatch time minus due time.", LATENESS),
    _histogram("celery_beat_interval_seconds", ENTRY, "Time from one dispatch to the next.", INTERVAL),
    _histogram("celery_beat_end_to_end_seconds", ENTRY, "Due time to the end of the run it caused.", WAIT),
    _gauge("celery_beat_drift_seconds", ENTRY, "Last dispatch minus the ideal grid of the entry."),
    _gauge("celery_beat_overdue_seconds", ENTRY, "How long the entry has been due without a dispatch; 0 when on time."),
    _gauge("celery_beat_never_ran", ENTRY, "1 where no dispatch of the entry is known."),
    _counter("celery_beat_dispatched_total", ENTRY, "Dispatches of the entry."),
    _counter("celery_beat_missed_total", ENTRY, "Slots that passed, the next one due too, without a dispatch."),
    _counter("celery_beat_duplicate_total", ENTRY, "Dispatches of a slot that another beat had dispatched."),
    _counter("celery_beat_dispatch_failed_total", ENTRY, "Dispatches that the broker did not take: the run is lost."),
    _gauge("celery_beat_next_due_timestamp_seconds", ENTRY, "When the entry is due next."),
    _gauge("celery_beat_last_dispatch_timestamp_seconds", ENTRY, "When the entry was last dispatched."),
    _gauge("celery_beat_last_success_timestamp_seconds", ENTRY, "When a run of the entry last succeeded."),
    _gauge("celery_beat_last_failure_timestamp_seconds", ENTRY, "When a run of the entry last failed."),
)

MONITOR = (
    _counter("celeryscope_events_total", ("type",), "Events taken in, by type."),
    _counter(
        "celeryscope_events_malformed_total", ("reason",), "Events or messages that could not be used, by reason."
    ),
    _gauge(
        "celeryscope_event_lag_seconds",
        (),
        "Publish to processing of the monitor's own echo event; of one that is not back yet, its age, if that is more.",
    ),
    _gauge("celeryscope_connected", (), "1 while the monitor's own echo comes back over its subscription."),
    _counter("celeryscope_reconnects_total", (), "Times the event connection was made anew after an outage."),
    _counter(
        "celeryscope_task_outcomes_missed_total",
        (),
        "Tasks that ended while the monitor was down: known from before, gone after, and counted under no outcome.",
    ),
    _counter("celeryscope_task_table_evicted_total", (), "Live tasks dropped because the task table was full."),
    _counter(
        "celeryscope_label_overflow_total",
        ("label",),
        "Observations put under __other__ because a label had too many values.",
    ),
    _counter(
        "celeryscope_probe_dropped_total", ("probe",), "Reports that a probe had to drop because its buffer was full."
    ),
    _gauge("celeryscope_task_table_size", (), "Live tasks in the task table."),
    _gauge("celeryscope_collector_success", ("collector",), "1 where the collector's last pass succeeded."),
    _gauge("celeryscope_collector_duration_seconds", ("collector",), "Duration of the collector's last pass."),
    _gauge("celeryscope_sample_timestamp_seconds", ("collector",), "When the collector's newest sample was taken."),
    _counter(
        "celeryscope_sample_unknown_total",
        ("collector", "reason"),
        "Facts that a collector could not learn, by reason; each leaves its series out.",
    ),
    _gauge("celeryscope_build_info", ("version", "python", "celery"), "1; labels describe this celeryscope."),
)

ALERTER = (
    _counter(
        "celeryscope_alerter_failures_total",
        ("result",),
        "Failures by fate: notified, grouped, muted, duplicate; and rejected: messages that could not be read.",
    ),
    _counter("celeryscope_alerter_slack_requests_total", ("status",), "Calls to Slack by status."),
    _gauge("celeryscope_alerter_outbox_messages", (), "Batches of failures waiting on the broker."),
    _gauge(
        "celeryscope_alerter_oldest_failure_seconds", (), "Age of the oldest failure that is not in the incident store."
    ),
    _gauge(
        "celeryscope_alerter_incidents",
        ("state",),
        "Incidents by state: open, resolved, muted by hand, waiting for Slack.",
    ),
)

_GROUPS = {"tasks": TASKS, "workers": WORKERS, "queues": QUEUES, "beat": BEAT, "monitor": MONITOR, "alerter": ALERTER}

METRICS: dict[str, Metric] = {
    metric.name: replace(metric, group=group) for group, metrics in _GROUPS.items() for metric in metrics
}


def configured(buckets: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, Metric]:
    """Return the catalogue with some histograms' bucket bounds replaced.

    Raises:
        ValueError: a name is not a histogram of the catalogue, or bounds are not finite, ascending and positive or 0.
    """
    catalogue = dict(METRICS)
    for name, bounds in (buckets or {}).items():
        metric = catalogue.get(name)
        if metric is None or metric.kind != "histogram":
            known = ", ".join(sorted(m.name for m in METRICS.values() if m.kind == "histogram"))
            raise ValueError(f"{name!r} is not a histogram; choose one of: {known}")
        if (
            not bounds
            or bounds[0] < 0
            or any(not a < b for a, b in zip(bounds, (*bounds[1:], float("inf")), strict=True))
        ):
            raise ValueError(f"buckets of {name}: {list(bounds)!r} must be finite, not negative and strictly ascending")
        catalogue[name] = replace(metric, buckets=tuple(float(b) for b in bounds))
    return catalogue
