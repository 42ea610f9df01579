"""What alerts go by: every threshold with its default, and the few facts about the surroundings that rules need."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from ..monitor import values
from ..monitor.configuration import Option, Settings, load

RUNBOOKS = "https://github.com/celeryscope/celeryscope/blob/main/docs/runbooks"
CHANGE_ME = "http://change-me.invalid"
ALERT_NAMES = (
    "NoWorkers", "WorkerLost", "WorkerWedged", "WorkersSaturated", "EventsOff",
    "QueueWithoutConsumers", "QueueGrowing", "OldestTaskTooOld",
    "TaskFailureRateHigh", "RetriesExhausted", "RetryStorm", "TaskStuck", "TasksOrphaned", "RuntimeRegressed",
    "BeatDown", "BeatNotTicking", "BeatDuplicate",
    "ScheduleMissed", "ScheduleLate", "ScheduleFailing", "DispatchFailed",
    "MonitorDown", "MonitorLagging", "TaskStartsMissed",
    "AlerterDown", "FailuresWaiting", "SlackUndeliverable", "Watchdog",
)  # fmt: skip
"""Fixed: people route and silence by these, and each has a page docs/runbooks/NAME.md."""
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
RECORDING_INTERVAL = "1m"
LONGEST_PACE = 240.0
"""Seconds between two points of a recorded series: Prometheus looks back for 5 minutes."""
_DURATION = re.compile(r"([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m(?!s))?([0-9]+s)?([0-9]+ms)?")


def seconds(duration: str) -> float:
    """Return the seconds of a duration as Prometheus writes them.

    Raises:
        ValueError: it is none.
    """
    if not duration or not _DURATION.fullmatch(duration):
        raise ValueError("must be a duration such as 30s, 5m, 1h30m or 1d")
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"([0-9]+)([a-z]+)", duration))


def _duration(duration: str) -> str:
    seconds(duration)
    return duration


def _window(duration: str) -> str:
    if not seconds(duration):
        raise ValueError("must be longer than 0s")
    return duration


def _pace(duration: str) -> str:
    if seconds(_window(duration)) > LONGEST_PACE:
        raise ValueError("must be at most 4m: Prometheus takes a series without a point for 5m for gone")
    return duration


def _interval(duration: str) -> str:
    return _pace(duration) if duration else ""


def _http(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s\"'{}]+", url):
        raise ValueError("must be an address that starts with http:// or https://")
    return url.rstrip("/")


def _job(name: str) -> str:
    if not re.fullmatch(r"[\w./:-]+", name):
        raise ValueError("must be letters, digits and any of _ . / : -")
    return name


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"must be regular expressions; {pattern!r} is none: {error}") from None
    return patterns


def _names(raw: object) -> tuple[str, ...]:
    return tuple(values.items(raw))


def _alerts(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in ALERT_NAMES:
            raise ValueError(f"must be alerts; {name!r} is none of {', '.join(ALERT_NAMES)}")
        if name == "Watchdog":
            raise ValueError("must not hold Watchdog: nobody would notice that alerting itself has stopped")
    return names


Duration = Annotated[str, Option("TIME"), AfterValidator(_duration)]
Window = Annotated[str, Option("TIME"), AfterValidator(_window)]
Pace = Annotated[str, Option("TIME"), AfterValidator(_pace)]
Url = Annotated[str, Option("URL"), AfterValidator(_http)]
Job = Annotated[str, Option("JOB"), AfterValidator(_job)]
Share = Annotated[float, Option("SHARE"), Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Option("COUNT"), Field(ge=1)]
Seconds = Annotated[float, Option("SECONDS"), Field(gt=0, allow_inf_nan=False)]


class RulesSettings(Settings):
    """All that `celeryscope rules` is told; durations are written as Prometheus writes them."""

    section: ClassVar[str] = "rules"

    grafana_url: Url = Field(default="http://localhost:3000", description="Grafana's address, for links.")
    flower_url: Url = Field(default="http://localhost:5555", description="Flower's address, for links.")
    runbook_url: Url = Field(default=RUNBOOKS, description="Where the runbooks are: NAME.md is put after it.")
    monitor_job: Job = Field(default="celeryscope", description="The Prometheus job that scrapes the monitors.")
    alerter_job: Job = Field(
        default="celeryscope-alerter", description="The Prometheus job that scrapes the alerters, where it is one."
    )
    watch_alerter: Annotated[bool, Option()] = Field(
        default=True, description="Whether an alerter is expected to run; without one what is about it is left out."
    )
    disable_alerts: Annotated[
        tuple[str, ...], Option("ALERT", flag="--disable", parse=_names, many=True), AfterValidator(_alerts)
    ] = Field(default=(), description="An alert to leave out; may be repeated.")
    rules_interval: Annotated[str, Option("TIME", flag="--interval"), AfterValidator(_interval)] = Field(
        default="", description="How often alerts are evaluated. Default: as Prometheus is set up."
    )
    recording_interval: Pace = Field(
        default=RECORDING_INTERVAL,
        description="How often the recorded series get a point, and alerts on tasks are evaluated.",
    )
    keep_firing_for: Duration = Field(
        default="5m",
        description="How long an alert on Celery goes on after its condition: the restart of a monitor is not its end.",
    )

    worker_lost_for: Duration = Field(
        default="2m", description="WorkerLost: lost for so long; as long as no_workers_for, which silences it."
    )
    no_workers_for: Duration = Field(default="2m", description="NoWorkers: none online for so long.")
    workers_saturated_ratio: Share = Field(default=0.9, description="WorkersSaturated: share of a queue's slots.")
    workers_saturated_for: Duration = Field(default="10m", description="WorkersSaturated: busy for so long.")
    worker_wedged_for: Duration = Field(default="2m", description="WorkerWedged: for so long.")

    queue_growing_messages: Count = Field(default=100, description="QueueGrowing: with so many messages or more.")
    queue_growing_drain: Window = Field(default="1h", description="QueueGrowing: not empty within that time.")
    queue_growing_work: Window = Field(
        default="1m", description="QueueGrowing: with more waiting than what workers start in that time."
    )
    queue_growing_trend: Window = Field(default="15m", description="QueueGrowing: the trend of so long goes on.")
    queue_growing_now: Window = Field(
        default="5m", description="QueueGrowing: and that of the last so long, which sees a batch that drains."
    )
    queue_growing_for: Duration = Field(default="10m", description="QueueGrowing: for so long.")
    queue_without_consumers_for: Duration = Field(default="5m", description="QueueWithoutConsumers: for so long.")
    oldest_task_age: Window = Field(default="15m", description="OldestTaskTooOld: waiting for so long.")
    oldest_task_for: Duration = Field(default="1m", description="OldestTaskTooOld: and that for so long.")

    task_window: Window = Field(
        default="10m", description="TaskFailureRateHigh, RetryStorm: runs of the last so long count."
    )
    task_failure_ratio: Share = Field(default=0.1, description="TaskFailureRateHigh: share of runs that failed.")
    task_failure_runs: Count = Field(default=20, description="TaskFailureRateHigh: of so many runs or more.")
    task_failure_for: Duration = Field(default="1m", description="TaskFailureRateHigh: for so long.")
    retries_exhausted_window: Window = Field(default="15m", description="RetriesExhausted: in the last so long.")
    retries_exhausted: Count = Field(default=1, description="RetriesExhausted: so many or more.")
    retry_storm_ratio: Share = Field(default=0.5, description="RetryStorm: share of runs that asked for a retry.")
    retry_storm_retries: Count = Field(default=50, description="RetryStorm: so many retries or more.")
    retry_storm_for: Duration = Field(default="5m", description="RetryStorm: for so long.")
    task_stuck_after: Window = Field(default="1h", description="TaskStuck: running for so long.")
    task_stuck_ignore: Annotated[
        tuple[str, ...], Option("REGEX", parse=_names, many=True), AfterValidator(_patterns)
    ] = Field(default=(), description="TaskStuck: names of tasks that may take as long as they like; may be repeated.")
    task_stuck_for: Duration = Field(default="1m", description="TaskStuck: and that for so long.")
    tasks_orphaned_for: Duration = Field(default="5m", description="TasksOrphaned: for so long.")
    runtime_factor: Annotated[float, Option("FACTOR"), Field(gt=1, allow_inf_nan=False)] = Field(
        default=2.0, description="RuntimeRegressed: so many times last week's mean."
    )
    runtime_runs: Count = Field(default=50, description="RuntimeRegressed: with so many runs in both hours.")
    runtime_least: Seconds = Field(default=0.1, description="RuntimeRegressed: slower by so many seconds or more.")
    runtime_for: Duration = Field(default="15m", description="RuntimeRegressed: for so long.")

    beat_down_for: Duration = Field(default="2m", description="BeatDown: no beat for so long.")
    beat_tick_age: Window = Field(
        default="10m", description="BeatNotTicking: no tick for so long; more than beat_max_loop_interval (5m)."
    )
    beat_tick_for: Duration = Field(default="1m", description="BeatNotTicking: and that for so long.")
    beat_duplicate_for: Duration = Field(default="1m", description="BeatDuplicate: two beats for so long.")
    beat_duplicate_window: Window = Field(
        default="15m", description="BeatDuplicate: or a slot dispatched twice in the last so long."
    )
    schedule_missed_window: Window = Field(default="15m", description="ScheduleMissed: in the last so long.")
    schedule_late_after: Window = Field(default="2m", description="ScheduleLate: due for so long.")
    schedule_late_for: Duration = Field(default="30s", description="ScheduleLate: and that for so long.")
    schedule_failing_for: Duration = Field(
        default="1m", description="ScheduleFailing: the last run failed, and that for so long."
    )
    dispatch_failed_window: Window = Field(default="15m", description="DispatchFailed: in the last so long.")

    events_off_for: Duration = Field(default="10m", description="EventsOff: for so long.")
    starts_missed: Count = Field(default=1, description="TaskStartsMissed: so many or more of a worker.")
    starts_missed_window: Window = Field(default="15m", description="TaskStartsMissed: in the last so long.")
    event_lag: Seconds = Field(default=5.0, description="MonitorLagging: so many seconds behind.")
    sample_age: Window = Field(default="2m", description="MonitorLagging: or no sample of the queues for so long.")
    monitor_lagging_for: Duration = Field(default="5m", description="MonitorLagging: and that for so long.")
    monitor_down_for: Duration = Field(default="2m", description="MonitorDown: for so long.")

    alerter_down_for: Duration = Field(default="5m", description="AlerterDown: for so long.")
    failures_waiting_age: Window = Field(default="5m", description="FailuresWaiting: the oldest waits for so long.")
    failures_waiting_for: Duration = Field(default="2m", description="FailuresWaiting: and that for so long.")
    slack_window: Window = Field(
        default="30m", description="SlackUndeliverable: calls refused in the last so long, and incidents untold."
    )
    slack_undeliverable_for: Duration = Field(default="5m", description="SlackUndeliverable: and that for so long.")

    slack_channel: Annotated[str, Option("CHANNEL")] = Field(
        default="#alerts", description="Alertmanager: the channel for alerts."
    )
    alertmanager_slack_url: Url = Field(
        default="https://slack.com/api/chat.postMessage",
        description="Alertmanager: where it posts, with a bot token; another one for tests and proxies.",
    )
    alertmanager_token_file: Annotated[str, Option("FILE")] = Field(
        default="/etc/alertmanager/slack-token",
        description="Alertmanager: the file, on its machine, that holds the Slack app's bot token.",
    )
    alertmanager_webhook_file: Annotated[str, Option("FILE")] = Field(
        default="",
        description="Alertmanager: instead of the token, the file that holds an incoming webhook's address.",
    )
    alertmanager_fallback_url: Url = Field(
        default=f"{CHANGE_ME}/fallback",
        description="Alertmanager: the webhook that is told when Slack cannot be reached (a pager, a mail gateway).",
    )
    alertmanager_watchdog_url: Url = Field(
        default=f"{CHANGE_ME}/watchdog",
        description="Alertmanager: the dead-man's switch, which cries when the Watchdog stops calling it.",
    )
    alertmanager_group_wait: Duration = Field(
        default="30s", description="Alertmanager: how long a first message waits for alerts of the same kind."
    )
    alertmanager_group_interval: Window = Field(
        default="5m", description="Alertmanager: least time between two messages about one group."
    )
    alertmanager_repeat_interval: Window = Field(
        default="4h", description="Alertmanager: after so long what still fires is said again."
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say what is unknown or does not go together."""
        if not self.alertmanager_webhook_file and not self.alertmanager_token_file:
            yield "alertmanager_token_file", "no way to Slack is given; name the file that holds the bot token"


def defaults(**changed: object) -> RulesSettings:
    """Return the defaults, whatever the environment and the working directory hold; `changed` as typed on a command."""
    return load(RulesSettings, options=changed, environ={}, config=Path(os.devnull))
