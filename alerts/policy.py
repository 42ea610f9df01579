"""Whether, where and how to speak of a failure: routes, thresholds, quiet hours, the channel guard (pure)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from .incidents import OPEN, Incident

if TYPE_CHECKING:
    import random

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Speak only once `count` failures came within `window` seconds."""

    count: int
    window: float

    def __str__(self) -> str:
        return f"{self.count} in {self.window:g} s"


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A part of each day, in minutes since midnight at `zone`; it may span midnight."""

    start: int
    end: int
    zone: ZoneInfo

    def cover(self, now: float) -> bool:
        """Whether unix time `now` lies within."""
        local = dt.datetime.fromtimestamp(now, self.zone)
        minute = local.hour * 60 + local.minute
        if self.start <= self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return f"{self.start // 60:02}:{self.start % 60:02}-{self.end // 60:02}:{self.end % 60:02} {self.zone.key}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One route: globs on a failure's task, queue and exception, and what to do with what matches all of them."""

    name: str
    task: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    exception: tuple[str, ...] = ()
    channel: str | None = None
    mention: str | None = None
    severity: Severity | None = None
    mute: bool | None = None
    threshold: Threshold | None = None
    quiet_hours: QuietHours | None = None
    notify_retries: bool | None = None
    runbook: str | None = None

    def matches(self, task: str, queue: str, exception: str) -> bool:
        """Whether it is for this failure; an exception may be named with or without its module."""
        return (
            _any(self.task, task)
            and _any(self.queue, queue)
            and (_any(self.exception, exception) or _any(self.exception, exception.rpartition(".")[2]))
        )

    def covers(self, other: Rule) -> bool:
        """Whether certainly everything that `other` matches is matched by this one."""
        pairs = ((self.task, other.task), (self.queue, other.queue), (self.exception, other.exception))
        return all(_superset(mine, theirs) for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a failure, and `because` of what."""

    channel: str
    severity: Severity = "warning"
    mention: str | None = None
    mute: bool = False
    threshold: Threshold | None = None
    quiet_hours: QuietHours | None = None
    notify_retries: bool = False
    runbook: str | None = None
    because: str = "no route matches: the default"


_PLANNED = ("channel", "mention", "severity", "mute", "threshold", "quiet_hours", "notify_retries", "runbook")


def plan(
    rules: Sequence[Rule], default: Plan, *, task: str, queue: str, exception: str, own: Mapping[str, Any] | None = None
) -> Plan:
    """Return what to do with a failure: the default, changed by the first rule that matches, then by the task's own
    settings (`@app.task(celeryscope={...})`), of which only those with a sensible value count.
    """
    result = default
    for rule in rules:
        if rule.matches(task, queue, exception):
            changed = {name: getattr(rule, name) for name in _PLANNED if getattr(rule, name) is not None}
            result = replace(result, **changed, because=f"route {rule.name!r}")
            break
    mine = _own(own or {})
    if mine:
        because = f"{result.because}, then the task's own {', '.join(sorted(mine))}"
        result = replace(result, **mine, because=because)
    return result


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    # They come from users' workers, over the wire: nothing about them is certain.
    mine: dict[str, Any] = {}
    for name in ("channel", "runbook"):
        if isinstance(settings.get(name), str) and settings[name].strip():
            mine[name] = settings[name].strip()[:255]
    if settings.get("severity") in SEVERITIES:
        mine["severity"] = settings["severity"]
    if isinstance(settings.get("mute"), bool):
        mine["mute"] = settings["mute"]
    return mine


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)


def _superset(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    if not mine or "*" in mine:
        return True
    return bool(theirs) and all(any(_contains(wide, narrow) for wide in mine) for narrow in theirs)


def _contains(wide: str, narrow: str) -> bool:
    # A star of ours also swallows the other glob's own characters; for ? and [ that would not hold.
    return wide == narrow or ("?" not in wide and "[" not in wide and fnmatchcase(narrow, wide))


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """After `incidents` new ones within `window` seconds, a channel's further ones share one roll-up message."""

    incidents: int = 10
    window: float = 300.0


@dataclass(frozen=True, slots=True)
class Placing:
    """What to do with a channel's incidents that have no message yet."""

    alone: tuple[Incident, ...] = ()
    rollup: tuple[Incident, ...] = ()
    digest: tuple[Incident, ...] = ()


def reason_to_wait(incident: Incident, plan: Plan, now: float) -> str | None:
    """Return why an incident without a message gets none now: muted, threshold, quiet; None where it gets one."""
    if plan.mute or incident.muted(now):
        return "muted"
    if incident.state != OPEN and not incident.held:
        return "resolved"
    reached = plan.threshold is None or incident.within(plan.threshold.window, now) >= plan.threshold.count
    if not reached and not incident.held:
        return "threshold"
    if plan.quiet_hours is not None and plan.quiet_hours.cover(now):
        return "quiet"
    return None


def place(incidents: Sequence[Incident], recent: int, limits: GuardLimits) -> Placing:
    """Share out one channel's incidents, `recent` being how many the channel got within the guard's window.

    What quiet hours kept back becomes one digest; of the others, as many as the guard allows get their own message.
    """
    held = tuple(incident for incident in incidents if incident.held)
    digest = held if len(held) > 1 else ()
    others = [incident for incident in incidents if not digest or not incident.held]
    others.sort(key=lambda incident: (incident.first, incident.id))
    room = max(0, limits.incidents - recent)
    return Placing(tuple(others[:room]), tuple(others[room:]), digest)


def backoff(failures: int, rng: random.Random, longest: float = 60.0) -> float:
    """Return the seconds to leave a service alone after so many failures in a row: doubled, capped, jittered."""
    return float(min(longest, 2.0 ** min(failures - 1, 10)) * rng.uniform(0.75, 1.25))
