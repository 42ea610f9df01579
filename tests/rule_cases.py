"""For every alert: when it must fire and when it must not, in promtool's series notation, one sample a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Q = {"task": "shop.charge", "queue": "payments"}
ENTRY = {"app": "shop", "entry": "nightly"}
BEAT = {"app": "shop", "beat": "shop@node1"}
OUTBOX = "celeryscope.failures"
GONE = "stale"


def braces(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def s(name: str, /, **labels: str) -> str:
    """A series as one monitor exposes it: `on="b"` is the second monitor."""
    where = {"instance": labels.pop("on", "a"), "job": "celeryscope", **labels}
    return name + braces(where)


@dataclass(frozen=True)
class Case:
    """One story: the series, and the alerts of one name that fire at `at`, by the labels given; none: none fires."""

    alert: str
    story: str
    series: Mapping[str, str]
    at: str
    fires: Sequence[Mapping[str, str]] = field(default=())

    def as_test(self, interval: str = "1m") -> dict[str, Any]:
        labels = sorted({label for labels in self.fires for label in labels})
        expression = f'ALERTS{{alertname="{self.alert}", alertstate="firing"}}'
        samples = [{"labels": braces(wanted), "value": 1} for wanted in self.fires]
        return {
            "name": f"{self.alert}: {self.story}",
            "interval": interval,
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "promql_expr_test": [
                {
                    "expr": f"count by ({', '.join(labels)}) ({expression})",
                    "eval_time": self.at,
                    "exp_samples": samples,
                }
            ],
        }


def fires(alert: str, story: str, series: Mapping[str, str], at: str, *labels: Mapping[str, str]) -> Case:
    return Case(alert, story, series, at, labels or ({},))


def silent(alert: str, story: str, series: Mapping[str, str], at: str) -> Case:
    return Case(alert, story, series, at)


def online(values: str, on: str = "a") -> dict[str, str]:
    return {s("celery_workers", on=on, state="online"): values}


def worker(lost: str, up: str, name: str = "w1", on: str = "a") -> dict[str, str]:
    return {s("celery_worker_lost", on=on, worker=name): lost, s("celery_worker_up", on=on, worker=name): up}


W1 = {"worker": "w1"}
WORKERS = (
    fires("NoWorkers", "all ended", online("3x4 0x10"), "9m"),
    fires("NoWorkers", "of one broker", {s("celery_workers", broker="eu", state="online"): "0x9"}, "5m",
          {"broker": "eu"}),
    silent("NoWorkers", "a restart of all", online("3x4 0 3x10"), "5m"),
    fires("NoWorkers", "while the monitor restarts", online("3x4 0x10 stale _x2 0x10"), "17m"),
    silent("NoWorkers", "long after they came back", online("3x4 0x10 3x20"), "22m"),
    silent("WorkerLost", "all at once: NoWorkers tells, no later", worker("0x3 1x20", "1x3 0x20") | online("1x3 0x20"),
           "5m"),
    fires("NoWorkers", "no later than WorkerLost", worker("0x3 1x20", "1x3 0x20") | online("1x3 0x20"), "6m"),
    silent("NoWorkers", "a second monitor that has just started", online("3x9") | online("0x9", "b"), "8m"),
    fires("WorkerLost", "killed", worker("0x3 1x9", "1x3 0x9"), "6m", W1),
    fires("WorkerLost", "two monitors tell once", worker("1x9", "0x9") | worker("1x9", "0x9", on="b"), "6m", W1),
    fires("WorkerLost", "the series outlive the rule", worker("0x3 1x60 stale", "1x3 0x60 stale"), "63m", W1),
    silent("WorkerLost", "a warm shutdown", worker("0x9", "1x3 0x9"), "9m"),
    silent(
        "WorkerLost",
        "a rolling deploy: one after the other says goodbye, others come",
        worker("0x15", "1x3 0x12", "old1") | worker("0x15", "1x5 0x10", "old2") | worker("0x15", "_x4 1x11", "new1"),
        "9m",
    ),
    silent("WorkerLost", "heard by the other monitor", worker("1x9", "0x9") | worker("0x9", "1x9", on="b"), "8m"),
    silent("WorkerLost", "started again under its name at once", worker("0x3 1 0x9", "1x3 0 1x9"), "4m"),
    fires("WorkerWedged", "takes nothing", {s("celery_worker_wedged", worker="w1"): "0x2 1x9"}, "7m", W1),
    silent("WorkerWedged", "for a moment", {s("celery_worker_wedged", worker="w1"): "0x2 1 0x9"}, "3m"),
    fires("EventsOff", "since it started", {s("celery_worker_events_enabled", worker="w1"): "0x20"}
          | worker("0x20", "1x20"), "15m", W1),
    silent("EventsOff", "of a worker that is gone", {s("celery_worker_events_enabled", worker="w1"): "0x20"}
           | worker("0x20", "0x20"), "15m"),
    silent("EventsOff", "the other monitor has its events", {s("celery_worker_events_enabled", worker="w1"): "0x20",
           s("celery_worker_events_enabled", on="b", worker="w1"): "1x20"} | worker("0x20", "1x20"), "15m"),
)  # fmt: skip


def ready(values: str, queue: str = "payments", on: str = "a") -> dict[str, str]:
    return {s("celery_queue_messages", on=on, queue=queue, state="ready"): values}


def slots(busy: str, of: str) -> dict[str, str]:
    return {s("celery_queue_busy_slots", queue="payments"): busy, s("celery_queue_slots", queue="payments"): of}


def consumers(values: str, queue: str = "payments") -> dict[str, str]:
    return {s("celery_queue_consumers", queue=queue): values}


def started(values: str) -> dict[str, str]:
    return {s("celery_task_started_total", **Q): values}


def oldest(values: str, queue: str = "payments") -> dict[str, str]:
    return {s("celery_queue_oldest_message_age_seconds", queue=queue): values}


PAYMENTS = {"queue": "payments"}
QUEUES = (
    fires("WorkersSaturated", "all busy, messages wait", slots("8x30", "8x30") | ready("5x30"), "20m", PAYMENTS),
    silent("WorkersSaturated", "all busy, nothing waits", slots("8x30", "8x30") | ready("0x30"), "20m"),
    silent("WorkersSaturated", "half of them are busy", slots("4x30", "8x30") | ready("5x30"), "20m"),
    silent("WorkersSaturated", "no workers at all", slots("0x30", "0x30") | ready("5x30"), "20m"),
    fires("QueueWithoutConsumers", "a misspelt queue", consumers("0x10") | ready("5x10"), "8m", PAYMENTS),
    silent("QueueWithoutConsumers", "nothing in it", consumers("0x10") | ready("0x10"), "8m"),
    silent("QueueWithoutConsumers", "not known", ready("5x10"), "8m"),
    silent("QueueWithoutConsumers", "the outbox", consumers("0x10", OUTBOX) | ready("5x10", OUTBOX), "8m"),
    fires("QueueGrowing", "more in than out", ready("0+30x60") | started("0+60x60"), "40m", PAYMENTS),
    fires("QueueGrowing", "stands still, nobody works", ready("500x60") | started("0x60"), "40m", PAYMENTS),
    fires("QueueGrowing", "no events tell of starts", ready("500x60"), "40m", PAYMENTS),
    silent("QueueGrowing", "a nightly load that drains in time", ready("6000-100x60") | started("0+100x60"), "30m"),
    *(
        silent(
            "QueueGrowing",
            f"a nightly load after a quiet day, {minutes} minutes in",
            ready("0x60 6000-100x59 0x9") | started("0x60 0+100x60"),
            f"{60 + minutes}m",
        )
        for minutes in (8, 12, 15, 20)
    ),
    *(
        silent(
            "QueueGrowing",
            f"a fast one, {minutes} minutes in",
            ready("0x60 20000-1000x19 0x9") | started("0x60 0+1000x20 20000x9"),
            f"{60 + minutes}m",
        )
        for minutes in (11, 12, 13, 15)
    ),
    fires(
        "QueueGrowing",
        "a load that takes four hours",
        ready("0x60 24000-100x60") | started("0x60 0+100x60"),
        "80m",
        PAYMENTS,
    ),
    silent("QueueGrowing", "a buffer of seconds", ready("150x60") | started("0+6000x60"), "40m"),
    silent("QueueGrowing", "the outbox", ready("0+30x60", OUTBOX), "40m"),
    silent("QueueGrowing", "few messages, seen by two monitors", ready("60x60") | ready("60x60", on="b"), "40m"),
    fires("OldestTaskTooOld", "waits for half an hour", oldest("0+60x40"), "30m", PAYMENTS),
    silent("OldestTaskTooOld", "taken in time", oldest("0+60x10 0x30"), "30m"),
    silent("OldestTaskTooOld", "the outbox", oldest("0+60x40", OUTBOX), "30m"),
)


def counted(name: str, values: str, on: str = "a", **labels: str) -> dict[str, str]:
    return {s(f"celery_{name}_total", on=on, **labels): values}


def runs(failed: str, succeeded: str, on: str = "a") -> dict[str, str]:
    return counted("task_failed", failed, on, **Q) | counted("task_succeeded", succeeded, on, **Q)


def retries(retried: str, starts: str) -> dict[str, str]:
    return counted("task_retried", retried, **Q) | counted("task_started", starts, **Q)


MONITORS = {s("celeryscope_build_info", version="1", on=on): "1x200" for on in "ab"}


def started_at(moment: str) -> dict[str, str]:
    return {s("process_start_time_seconds"): f"{moment}x20"}


def newcomer(moment: str) -> dict[str, str]:
    """The second monitor was started then."""
    return {s("process_start_time_seconds", on="b"): f"_x30 {moment}x60"}


def growth(alert: str, name: str, *labels: Mapping[str, str], **of: str) -> tuple[Case, ...]:
    """What holds of every alert on a counter that grew: the first counts, and what a restart brings back does not."""
    return (
        fires(alert, "the first ever: the series is born at 1", MONITORS | counted(name, "_x5 1x9", **of), "7m",
              *labels),
        fires(alert, "before the first scrape of a monitor that has just started", MONITORS | started_at("0")
              | counted(name, "1x9", **of), "7m", *labels),
        silent(alert, "long ago, when Prometheus first sees the monitor", MONITORS | started_at("-7200")
               | counted(name, "7x20", **of), "7m"),
        fires(alert, "one more", counted(name, "0x5 1x9", **of), "7m", *labels),
        fires(alert, "two monitors tell once", counted(name, "0x5 1x9", **of)
              | counted(name, "0x5 1x9", "b", **of), "7m", *labels),
        fires(alert, "after a crash of the monitor, hours later", MONITORS | started_at("0x20 stale _x119 8400")
              | counted(name, "5x20 stale _x120 1x5", **of), "144m", *labels),
        fires(alert, "after a crash of the monitor, at once", counted(name, "5x20 1x9", **of), "24m", *labels),
        fires(alert, "after the monitor had been away", counted(name, "5x20 stale _x20 6x9", **of), "45m", *labels),
        silent(alert, "long ago", counted(name, "0x5 1x90", **of), "60m"),
        silent(alert, "always there", counted(name, "7x60", **of), "40m"),
        silent(alert, "none", counted(name, "0x60", **of), "40m"),
        silent(alert, "a restart that kept its state", counted(name, "5x20 stale _x60 5x20", **of), "85m"),
        silent(alert, "a new monitor that kept the state of the one before", MONITORS | newcomer("1800")
               | counted(name, "7x30 stale", **of) | counted(name, "_x32 7x40", "b", **of), "36m"),
        silent(alert, "one of two is replaced, by one that knows less", MONITORS | newcomer("1800")
               | counted(name, "7x70", **of) | counted(name, "6x30 stale", "c", **of)
               | counted(name, "_x32 6x40", "b", **of), "36m"),
        fires(alert, "by a new monitor that kept the state of the one before", MONITORS | newcomer("1800")
              | counted(name, "7x30 stale", **of) | counted(name, "_x32 7 8x40", "b", **of), "36m", *labels),
        fires(alert, "by a new monitor that began anew", MONITORS | newcomer("1800")
              | counted(name, "7x30 stale", **of) | counted(name, "_x34 1x40", "b", **of), "38m", *labels),
        silent(alert, "the older of two monitors ends", counted(name, "5x20 stale", **of)
               | counted(name, "2x90", "b", **of), "24m"),
    )  # fmt: skip


CHARGE = {"task": "shop.charge"}
TASKS = (
    fires("TaskFailureRateHigh", "three in ten", runs("0+3x30", "0+7x30"), "20m", CHARGE),
    fires("TaskFailureRateHigh", "all of a new task's, at once", MONITORS | runs("_x5 25x9", "_x5 0x9"), "8m", CHARGE),
    fires("TaskFailureRateHigh", "in two queues together", runs("0+1x30", "0x30") | counted(
          "task_failed", "0+2x30", task="shop.charge", queue="other"), "20m", CHARGE),
    silent("TaskFailureRateHigh", "one in a hundred", runs("0+1x30", "0+99x30"), "20m"),
    silent("TaskFailureRateHigh", "too few runs", runs("0+1x30", "0x30"), "20m"),
    silent("TaskFailureRateHigh", "too few runs, seen by two monitors",
           runs("0x5 12x20", "0x25") | runs("0x5 12x20", "0x25", "b"), "9m"),
    *(silent("TaskFailureRateHigh", f"a new monitor overtakes what the one before had counted, after {minute} m",
             runs("0x60 stale", "0+46x60 stale") | runs("_x60 0+4x90", "_x60 0+46x90", "b"), f"{minute}m")
      for minute in (62, 66, 119, 121, 123, 125, 127, 130)),
    *growth("RetriesExhausted", "task_retries_exhausted", CHARGE, **Q),
    fires("RetryStorm", "most runs ask for another", retries("0+20x30", "0+25x30"), "20m", CHARGE),
    silent("RetryStorm", "few retries", retries("0+1x30", "0+1x30"), "20m"),
    silent("RetryStorm", "a small share", retries("0+20x30", "0+500x30"), "20m"),
    fires("TaskStuck", "for over an hour", {s("celery_task_oldest_running_seconds", **Q): "3000+60x30"}, "20m", CHARGE),
    silent("TaskStuck", "busy", {s("celery_task_oldest_running_seconds", **Q): "0+60x20"}, "20m"),
    fires("TasksOrphaned", "work is lost", {s("celery_tasks_orphaned", **Q): "0x3 2x20"}, "12m", CHARGE),
    silent("TasksOrphaned", "soon redelivered", {s("celery_tasks_orphaned", **Q): "0x3 2x2 0x20"}, "6m"),
)  # fmt: skip


def beats(values: str, on: str = "a") -> dict[str, str]:
    return {s("celery_beats", on=on, app="shop"): values}


def ticks(last: str, up: str) -> dict[str, str]:
    return {s("celery_beat_last_tick_timestamp_seconds", **BEAT): last, s("celery_beat_up", **BEAT): up}


def ended(**values: str) -> dict[str, str]:
    return {s(f"celery_beat_last_{end}_timestamp_seconds", **ENTRY): value for end, value in values.items()}


SHOP = {"app": "shop"}
OVERDUE = s("celery_beat_overdue_seconds", **ENTRY)
SCHEDULES = (
    fires("BeatDown", "ended", beats("1x3 0x9"), "8m", SHOP),
    silent("BeatDown", "restarted", beats("1x3 0 1x9"), "4m"),
    silent("BeatDown", "heard by the other monitor", beats("0x9") | beats("1x9", "b"), "8m"),
    fires("BeatNotTicking", "its scheduler hangs", ticks("60+60x3 240x30", "1x40"), "20m", BEAT),
    silent("BeatNotTicking", "it ticks", ticks("1+60x40", "1x40"), "20m"),
    silent("BeatNotTicking", "it is down", ticks("60+60x3 240x30", "1x3 0x40"), "20m"),
    silent("BeatNotTicking", "it has never ticked: a standby", ticks("0x40", "1x40"), "20m"),
    fires("BeatDuplicate", "two beats", beats("1x3 2x9"), "7m", {"app": "shop", "reason": "beats"}),
    silent("BeatDuplicate", "one beat, as two monitors see it", beats("1x9") | beats("1x9", "b"), "7m"),
    *growth("BeatDuplicate", "beat_duplicate", {**ENTRY, "reason": "dispatches"}, **ENTRY),
    *growth("ScheduleMissed", "beat_missed", ENTRY, **ENTRY),
    fires("ScheduleLate", "a nightly job is not sent", {OVERDUE: "0x3 0+60x9"}, "8m", ENTRY),
    silent("ScheduleLate", "a little late", {OVERDUE: "0x3 30 60 0x9"}, "6m"),
    fires("ScheduleFailing", "its first run", ended(failure="_x3 180x9"), "6m", ENTRY),
    fires("ScheduleFailing", "after a success", ended(success="60x12", failure="_x3 180x9"), "6m", ENTRY),
    silent("ScheduleFailing", "it has succeeded since", ended(success="_x3 240x9", failure="180x12"), "11m"),
    silent("ScheduleFailing", "it never failed", ended(success="60x12"), "6m"),
    *growth("DispatchFailed", "beat_dispatch_failed", ENTRY, **ENTRY),
)


def up(values: str, on: str = "a", job: str = "celeryscope") -> dict[str, str]:
    return {f'up{{instance="{on}", job="{job}"}}': values}


def alerter(**values: str) -> dict[str, str]:
    names: dict[str, tuple[str, dict[str, str]]] = {
        "waiting": ("incidents", {"state": "waiting"}),
        "oldest": ("oldest_failure_seconds", {}),
        "ok": ("slack_requests_total", {"status": "ok"}),
        "refused": ("slack_requests_total", {"status": "not_in_channel"}),
    }
    return {s(f"celeryscope_alerter_{names[key][0]}", **names[key][1]): value for key, value in values.items()}


CONNECTED = "celeryscope_connected"
STARTS_MISSED, WHILE_DOWN = "worker_starts_missed", "worker_starts_missed_down"
SAMPLED = s("celeryscope_sample_timestamp_seconds", collector="queues")
NEVER = s("celeryscope_collector_success", collector="queues")


def two_brokers(eu: str) -> dict[str, str]:
    """A monitor for each, told apart by a label of the target's: what becomes of the one for eu."""
    return {
        'up{instance="a", job="celeryscope", broker="eu"}': f"1x5 {eu}",
        'up{instance="b", job="celeryscope", broker="us"}': "1x30",
        s(CONNECTED, broker="eu"): "1x5 stale",
        s(CONNECTED, on="b", broker="us"): "1x30",
    }


TO_SLACK = 'alertmanager_notifications_failed_total{integration="slack", instance="am", job="alertmanager"}'
ITSELF = (
    fires("MonitorDown", "down", up("1x3 0x9") | {s(CONNECTED): "1x3 stale"}, "7m", {"scope": "all"}),
    fires("MonitorDown", "nobody scrapes one", {}, "7m", {"scope": "all"}),
    fires("MonitorDown", "an alerter alone has a page", {s("celeryscope_build_info", version="1"): "1x20"}, "7m",
          {"scope": "all"}),
    silent("MonitorDown", "a job of another name", {**up("1x20", job="celery"), s(CONNECTED): "1x20"}, "9m"),
    fires("MonitorDown", "it does not hear one broker", up("1x9") | {s(CONNECTED, broker="eu"): "0x9",
          s(CONNECTED, broker="us"): "1x9"}, "7m", {"scope": "broker", "broker": "eu"}),
    fires("MonitorDown", "one of two brokers' monitors is down", two_brokers("0x20"), "12m",
          {"scope": "broker", "broker": "eu"}, {"scope": "instance", "broker": "eu"}),
    fires("MonitorDown", "one of two brokers' monitors is gone altogether", two_brokers("stale"), "12m",
          {"scope": "broker", "broker": "eu"}),
    fires("MonitorDown", "one of two is down", up("0x9") | up("1x9", "b") | {s(CONNECTED, on="b"): "1x9"}, "7m",
          {"scope": "instance", "instance": "a", "severity": "warning"}),
    silent("MonitorDown", "one of two is restarted", up("1x3 0 1x9") | up("1x9", "b")
           | {s(CONNECTED, on="b"): "1x9"}, "4m"),
    silent("MonitorDown", "one of two is deaf", up("1x9") | {s(CONNECTED): "0x9", s(CONNECTED, on="b"): "1x9"}, "7m"),
    silent("MonitorDown", "a restart", up("1x3 0 1x9") | {s(CONNECTED): "1x3 stale 0 1x9"}, "4m"),
    fires("MonitorLagging", "events come late", {s("celeryscope_event_lag_seconds"): "9x20"}, "9m",
          {"reason": "events"}),
    fires("MonitorLagging", "sampling fails", {SAMPLED: "60+60x2 180x20"}, "15m", {"reason": "queues"}),
    fires("MonitorLagging", "sampling never succeeded", {NEVER: "0x20"}, "9m", {"reason": "queues"}),
    silent("MonitorLagging", "one of two monitors has sampled", {NEVER: "0x20", SAMPLED: "0+60x20"}, "9m"),
    silent("MonitorLagging", "in time", {s("celeryscope_event_lag_seconds"): "0.1x20", SAMPLED: "0+60x20"}, "15m"),
    silent("MonitorLagging", "for a moment", {s("celeryscope_event_lag_seconds"): "0.1x3 9 0.1x20"}, "4m"),
    *growth("TaskStartsMissed", STARTS_MISSED, W1, **W1),
    silent("TaskStartsMissed", "one of two monitors was away", MONITORS | counted(STARTS_MISSED, "0x60", **W1)
           | counted(STARTS_MISSED, "0x30 stale 30x20", "b", **W1), "35m"),
    silent("TaskStartsMissed", "the only monitor was away", MONITORS | counted(STARTS_MISSED, "5x30 stale 35x20", **W1)
           | counted(WHILE_DOWN, "0x30 stale 30x20", **W1), "35m"),
    fires("TaskStartsMissed", "some while it was away, some not", MONITORS
          | counted(STARTS_MISSED, "5x30 stale 37x20", **W1) | counted(WHILE_DOWN, "0x30 stale 30x20", **W1), "35m",
          W1),
    silent("AlerterDown", "there never was one", up("1x20") | ready("0x20", OUTBOX), "12m"),
    fires("AlerterDown", "there is none and failures wait for it", ready("0x3 5x20", OUTBOX), "12m"),
    fires("AlerterDown", "down", up("1x3 0x20", job="celeryscope-alerter") | alerter(waiting="0x3 stale"), "12m"),
    fires("AlerterDown", "gone with its target", alerter(waiting="0x3 stale"), "12m"),
    silent("AlerterDown", "it takes in a storm", ready("900x20", OUTBOX) | alerter(waiting="0x20"), "12m"),
    silent("AlerterDown", "up", up("1x20", job="celeryscope-alerter") | alerter(waiting="0x20"), "12m"),
    silent("AlerterDown", "in the monitor's process", up("1x20") | alerter(waiting="0x20"), "12m"),
    fires("FailuresWaiting", "nobody takes them in", alerter(oldest="0+60x20"), "12m"),
    silent("FailuresWaiting", "taken in at once", alerter(oldest="0x5 60 0x20"), "12m"),
    fires("SlackUndeliverable", "Alertmanager is refused", {TO_SLACK: "0x3 0+1x20"}, "12m", {"via": "alertmanager"}),
    fires("SlackUndeliverable", "the alerter is refused, from the first call on",
          MONITORS | alerter(waiting="0x3 1x20", ok="0x30", refused="_x3 1x20"), "12m", {"via": "alerter"}),
    silent("SlackUndeliverable", "quiet hours: they wait and nobody is refused",
           alerter(waiting="0x3 1x20", ok="0x30") | {TO_SLACK: "0x30"}, "12m"),
    silent("SlackUndeliverable", "refused once, told since",
           alerter(waiting="0x3 1 0x20", ok="0x4 1x20", refused="_x3 1x20") | {TO_SLACK: "4x30"}, "4m"),
    fires("Watchdog", "always", {}, "0m"),
)  # fmt: skip


def hourly(seconds_a_run: Sequence[float], runs_an_hour: int = 120, *, days: Sequence[int] = (0, 8)) -> dict[str, str]:
    """Runtime of a task every 10 minutes: before the last day's hours and within them, if it was there at all."""
    before, after = seconds_a_run
    step = runs_an_hour / 6
    first, last = days
    early, late = (last - first) * 144 - 18, 18
    hidden = f"_x{first * 144} " if first else ""
    total = early * step * before
    of = {**Q, "outcome": "succeeded"}
    return {
        s("celery_task_runtime_seconds_sum", **of): f"{hidden}0+{step * before:g}x{early} "
        f"{total + step * after:g}+{step * after:g}x{late}",
        s("celery_task_runtime_seconds_count", **of): f"{hidden}0+{step:g}x{early + late}",
    }


AT_LAST = f"{8 * 24 * 60 - 5}m"
WEEKS = (
    fires("RuntimeRegressed", "three times as slow as a week ago", hourly((1, 3)), AT_LAST, CHARGE),
    silent("RuntimeRegressed", "as a week ago", hourly((1, 1)), AT_LAST),
    silent("RuntimeRegressed", "a rare task", hourly((1, 3), 30), AT_LAST),
    silent("RuntimeRegressed", "slower by milliseconds", hourly((0.01, 0.03)), AT_LAST),
    silent("RuntimeRegressed", "in its first week", hourly((1, 3), days=(2, 8)), AT_LAST),
)
"""Over eight days, one sample in ten minutes."""

CASES = (*WORKERS, *QUEUES, *TASKS, *SCHEDULES, *ITSELF)
ALWAYS = {"Watchdog": "it is there to fire for ever"}
"""Alerts that have no story in which they are silent, and why."""
