"""Alerts on celeryscope itself: does it hear, is it there, does what it says reach people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .queries import STARTED, fact, grown, largest, once, select
from .rules_model import FLOWER_WORKER, LONG, Alert, Group, on_broker, times
from .thresholds import seconds

if TYPE_CHECKING:
    from .thresholds import RulesSettings

MEMORY = "1d"
"""How long what is gone is missed: a monitor of a broker, an alerter."""
QUEUES = 'collector="queues"'
OUTBOX_READY = 'queue="celeryscope.failures", state="ready"'
FOREIGN = {
    "up": ("job", "instance"),
    STARTED: ("job", "instance"),
    "alertmanager_notifications_failed_total": ("integration", "instance", "job"),
}
"""What rules read and our catalogue lacks: Prometheus' word on a target, a process' start, Alertmanager's on Slack."""


def groups(settings: RulesSettings) -> tuple[Group, ...]:
    """Return the groups about the monitor and, where one is expected, the alerter."""
    monitor = Group("celeryscope-monitor", [*_monitor(settings), _watchdog()])
    return (monitor, Group("celeryscope-alerter", [*_alerter(settings), *_slack(settings)]))


def _monitor(settings: RulesSettings) -> Iterator[Alert]:
    yield from _down(settings)
    yield from _lagging(settings)
    # A monitor that was away counts what it did not hear; what the other one heard is not missed.
    window = settings.starts_missed_window
    missed = grown("celery_worker_starts_missed_total", window=window, among="min")
    away = grown("celery_worker_starts_missed_down_total", window=window, among="min")
    yield Alert(
        "TaskStartsMissed",
        f"({missed} unless {away} or {missed} - {away}) >= {settings.starts_missed}",
        "info",
        "monitor",
        f"{times()} task starts of {{{{ $labels.worker }}}}{on_broker()} were not seen",
        "Events were lost between the worker and the monitor: counts of tasks are too low by that much. The tasks "
        "themselves ran.",
        board="workers",
        variables=("worker",),
        flower=FLOWER_WORKER,
    )


def _down(settings: RulesSettings) -> Iterator[Alert]:
    """Yield what is judged by what monitors say, not by a job's name: a job of another name is no alarm."""
    connected = "celeryscope_connected"
    yield Alert(
        "MonitorDown",
        f"absent({fact(connected)})",
        "critical",
        "monitor",
        "No celeryscope monitor can be scraped",
        "Nobody watches Celery: none of the other alerts can be trusted. Start `celeryscope monitor`, and see that "
        "Prometheus scrapes it.",
        hold=settings.monitor_down_for,
        extra={"scope": "all"},
    )
    heard = once(connected, f"last_over_time({select(connected)}[{MEMORY}])")
    left = f"({heard} unless {fact(connected)}) and on () count({fact(connected)})"
    yield Alert(
        "MonitorDown",
        f"{fact(connected)} == 0 or {left}",
        "critical",
        "monitor",
        "No monitor hears the broker{{ with $labels.broker }} {{ . }}{{ end }}",
        "The monitor's own echo does not come back (the broker is down, cannot be reached, or refuses the monitor), or "
        "the monitor of this broker is gone. What is shown of tasks, workers and beat stands still.",
        hold=settings.monitor_down_for,
        extra={"scope": "broker"},
    )
    up = f'max by (broker, instance) (up{{job="{settings.monitor_job}"}})'
    yield Alert(
        "MonitorDown",
        f"{up} == 0 and on () max({up}) == 1",
        "warning",
        "monitor",
        "Monitor {{ $labels.instance }} is down, another one is up",
        "Where both watch one broker nothing is lost as long as the other one runs. Start it again.",
        hold=settings.monitor_down_for,
        extra={"scope": "instance"},
    )


def _lagging(settings: RulesSettings) -> Iterator[Alert]:
    yield Alert(
        "MonitorLagging",
        f"{fact('celeryscope_event_lag_seconds')} > {settings.event_lag:g}",
        "warning",
        "monitor",
        f"The monitor is {LONG} behind the events{on_broker()}",
        "It or the broker has too much to do: numbers are late, and events may be lost. See its CPU and the broker's.",
        hold=settings.monitor_lagging_for,
        extra={"reason": "events"},
    )
    sampled = fact("celeryscope_sample_timestamp_seconds", QUEUES)
    never = f"{fact('celeryscope_collector_success', QUEUES)} == 0 unless {sampled}"
    yield Alert(
        "MonitorLagging",
        f"time() - {sampled} > {seconds(settings.sample_age):g} or ({never})",
        "warning",
        "monitor",
        f"The queues{on_broker()} were "
        f"{{{{ if $value }}}}last sampled {LONG} ago{{{{ else }}}}never sampled{{{{ end }}}}",
        "Sampling fails or takes too long: depth, age and consumers on the boards are old. The monitor's log has the "
        "reason.",
        hold=settings.monitor_lagging_for,
        extra={"reason": "queues"},
    )


def _watchdog() -> Alert:
    return Alert(
        "Watchdog",
        "vector(1)",
        "none",
        "monitor",
        "Alerting works",
        "This always fires. It goes to a dead-man's switch, which cries when it stops coming: then Prometheus, "
        "Alertmanager or the way out of them is broken.",
    )


def _alerter(settings: RulesSettings) -> Iterator[Alert]:
    if not settings.watch_alerter:
        return
    # Where no alerter ever ran and no failure waits for one, none is missed.
    told = "celeryscope_alerter_incidents"
    job = f'max(up{{job="{settings.alerter_job}"}}) == 0'
    was = largest(once(told, f"last_over_time({select(told)}[{MEMORY}])"))
    waits = f"{largest(fact('celery_queue_messages', OUTBOX_READY))} > 0"
    yield Alert(
        "AlerterDown",
        f"({job} or {was} or {waits}) unless {largest(fact(told))}",
        "critical",
        "alerter",
        "No celeryscope alerter can be scraped",
        "Failures of tasks are not told to anybody; they wait on the broker for 7 days. Start `celeryscope "
        "alerter` (or `celeryscope monitor --with-alerter`), and see that Prometheus scrapes it.",
        hold=settings.alerter_down_for,
    )
    yield Alert(
        "FailuresWaiting",
        f"{fact('celeryscope_alerter_oldest_failure_seconds')} > {seconds(settings.failures_waiting_age):g}",
        "warning",
        "alerter",
        f"Failures have been waiting for {LONG} to be taken in{on_broker()}",
        "The alerter does not keep up, or cannot write to its incident store. Its log has the reason.",
        hold=settings.failures_waiting_for,
    )


def _slack(settings: RulesSettings) -> Iterator[Alert]:
    failed = f'alertmanager_notifications_failed_total{{integration="slack"}}[{settings.slack_window}]'
    yield Alert(
        "SlackUndeliverable",
        f"sum(increase({failed})) > 0",
        "critical",
        "alerter",
        "Alertmanager cannot deliver to Slack",
        f"{times()} messages failed in {settings.slack_window}. Alertmanager's log has Slack's answer: a revoked "
        "token, a "
        "channel that is gone, no way out to the internet.",
        hold=settings.slack_undeliverable_for,
        extra={"via": "alertmanager"},
    )
    if not settings.watch_alerter:
        return
    waiting = fact("celeryscope_alerter_incidents", 'state="waiting"')
    refused = grown("celeryscope_alerter_slack_requests_total", 'status!="ok"', window=settings.slack_window)
    yield Alert(
        "SlackUndeliverable",
        f"{waiting} > 0 and on () sum({refused}) > 0",
        "critical",
        "alerter",
        f"{times()} incidents cannot be told on Slack",
        "Slack refuses the alerter or cannot be reached. `celeryscope incidents` lists what failed; the alerter's "
        "log and its metrics by status say why.",
        hold=settings.slack_undeliverable_for,
        extra={"via": "alerter"},
    )
