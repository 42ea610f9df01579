"""A schedule in words, as an entry's labels describe it: `every 5 min`, `daily at 02:30`, or the crontab's own text."""

from __future__ import annotations

import math
import re

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_DAYS = {"0": "Sun", "1": "Mon", "2": "Tue", "3": "Wed", "4": "Thu", "5": "Fri", "6": "Sat", "7": "Sun"}
_EVERY = re.compile(r"\*/(\d+)")
_LONGEST = 24


def in_words(kind: str, spec: str) -> str:
    """Return what a person would call the schedule; times are in the entry's own time zone.

    `kind` and `spec` are the labels of `celery_beat_entry_info`. What has no short name keeps its specification, cut.
    """
    words = spec
    if kind in {"interval", "relative"}:
        words = _interval(spec)
    elif kind == "crontab":
        words = _crontab(spec)
    elif kind == "solar":
        words = spec.split(" ", maxsplit=1)[0].replace("_", " ")
    elif kind == "clocked":
        words = f"once, {spec[:16].replace('T', ' ')}"
    elif kind == "unknown":
        words = spec.rpartition(".")[2]
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def between(kind: str, spec: str, due: float) -> float:
    """Return the seconds from the slot `due` to the next one; infinite where that is not known.

    Labels hold no time zone: of a calendar schedule it is the distance of the two slots that follow in UTC.
    """
    if kind in {"interval", "relative"}:
        return _seconds(spec) or math.inf
    from ..monitor.slots import build  # imports Celery, which costs a healthy page's reader nothing

    slots = build(kind, spec, "UTC", None)
    first = slots.after(due)
    second = None if first is None else slots.after(first)
    return math.inf if first is None or second is None else second - first


def _seconds(spec: str) -> float | None:
    try:
        return float(spec.removesuffix("s"))
    except ValueError:
        return None


def _interval(spec: str) -> str:
    seconds = _seconds(spec)
    if not seconds:
        return spec
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"every {seconds / size:g} {unit}"
    return f"every {seconds:g} s"


def _crontab(spec: str) -> str:
    fields = spec.split()
    if len(fields) != 5:
        return spec
    minute, hour, *days = fields
    when = _days(*days)
    if when is None:
        return spec
    if minute.isdigit() and hour.isdigit():
        return f"{when} at {int(hour):02}:{int(minute):02}"
    if when != "daily":
        return spec
    return _within_a_day(minute, hour) or spec


def _days(day: str, month: str, weekday: str) -> str | None:
    """Return what the days are called; None where that takes more than a word."""
    if month != "*":
        return None
    if day == "*":
        return "daily" if weekday == "*" else _DAYS.get(weekday)
    return f"monthly on {day}." if day.isdigit() and weekday == "*" else None


def _within_a_day(minute: str, hour: str) -> str | None:
    if minute == hour == "*":
        return "every minute"
    step = _EVERY.fullmatch(minute)
    if step and hour == "*" and _divides(60, step[1]):
        return f"every {step[1]} min"
    if not minute.isdigit():
        return None
    step = _EVERY.fullmatch(hour)
    if step and _divides(24, step[1]):
        return f"every {step[1]} h at :{int(minute):02}"
    return f"hourly at :{int(minute):02}" if hour == "*" else None


def _divides(whole: int, step: str) -> bool:
    return int(step) > 0 and whole % int(step) == 0
