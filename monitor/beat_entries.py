"""What a schedule entry looks like from outside: its name on the wire, its schedule described, when it is due.

Runs inside the user's beat process. Knows the schedule classes by their names alone, so that it imports none of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

LONGEST_NAME = 200
LONGEST_SPEC = 500
ANCIENT = 20 * 365 * 86_400.0
"""A last run that long ago never was: django-celery-beat writes 30 years back for an entry that waits for its start."""

SAME = 1.0
"""Two times of one run differ by less: beat writes the last run down a little before or after it dispatches."""

_CRONTAB = ("_orig_minute", "_orig_hour", "_orig_day_of_month", "_orig_month_of_year", "_orig_day_of_week")
_KINDS = {
    "celery.schedules.schedule": "interval",
    "celery.schedules.crontab": "crontab",
    "celery.schedules.solar": "solar",
    "django_celery_beat.tzcrontab.TzAwareCrontab": "crontab",
    "django_celery_beat.clockedschedule.clocked": "clocked",
}

Description = dict[str, Any]
"""kind, spec, tz and every, as in a `beat-schedule` event."""


def wire_name(name: object) -> str:
    """Return an entry's name, one of more than 200 characters cut and told apart from its like by a digest."""
    text = name if isinstance(name, str) else str(name)
    if 0 < len(text) <= LONGEST_NAME:
        return text
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=5).hexdigest()
    return f"{text[: LONGEST_NAME - 11]}~{digest}"


def kind_of(schedule: object) -> str:
    """Return the kind of exactly Celery's and django-celery-beat's own classes; a subclass may mean anything."""
    cls: Any = type(schedule)
    return _kind(cls)


@functools.lru_cache(maxsize=256)
def _kind(cls: Any) -> str:
    return _KINDS.get(f"{cls.__module__}.{cls.__qualname__}", "unknown")


def describe(schedule: Any) -> Description:
    """Describe a schedule object; one of an unknown class, or one that cannot be described, by its class alone."""
    kind = kind_of(schedule)
    try:
        found = _describe(kind, schedule)
    except Exception:  # noqa: BLE001 - the object is the user's: any attribute of it may be anything
        found = None
    if found is not None and len(found["spec"]) <= LONGEST_SPEC:
        return found
    cls = type(schedule)
    return {"kind": "unknown", "spec": f"{cls.__module__}.{cls.__qualname__}"[:LONGEST_NAME], "tz": None, "every": None}


def _describe(kind: str, schedule: Any) -> Description | None:
    if kind == "interval":
        every = schedule.run_every.total_seconds()
        if every <= 0:
            return None
        relative = bool(schedule.relative)
        tz = zone_name(schedule.tz) if relative else None
        return {"kind": "relative" if relative else kind, "spec": f"{every:g}s", "tz": tz, "every": every}
    if kind == "crontab":
        spec = " ".join(_field(getattr(schedule, name)) for name in _CRONTAB)
        return {"kind": kind, "spec": spec, "tz": zone_name(schedule.tz), "every": None}
    if kind == "solar":
        spec = f"{schedule.event} {schedule.lat} {schedule.lon}"
        return {"kind": kind, "spec": spec, "tz": "UTC", "every": None}
    if kind == "clocked":
        return {"kind": kind, "spec": schedule.clocked_time.isoformat(), "tz": "UTC", "every": None}
    return None


def _field(field: object) -> str:
    """Return one field of a crontab as crontab text: a list of numbers becomes ranges."""
    if isinstance(field, str):
        return "".join(field.split())
    if not isinstance(field, Iterable):
        return str(field)
    ranges: list[list[int]] = []
    for number in sorted({int(n) for n in field}):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def zone_name(tz: Any) -> str | None:
    """Return a time zone's IANA name or its fixed offset; None where it has neither."""
    name = getattr(tz, "key", None) or getattr(tz, "zone", None)
    if isinstance(name, str):
        return name
    if isinstance(tz, timezone):
        return str(tz) if tz != timezone.utc else "UTC"
    if type(tz).__name__ == "LocalTimezone":  # Celery's, where neither UTC nor a timezone is configured
        return local_zone()
    return None


def local_zone(localtime: Path = Path("/etc/localtime")) -> str | None:
    """Return the system's time zone by the name that TZ or the link at `localtime` gives it; None where neither does.

    Celery has no name for it, and before 5.6 it brings no package that has.
    """
    name = os.environ.get("TZ")
    if name is None:
        name = localtime.resolve().as_posix()
        if "/zoneinfo/" not in name:
            return None if localtime.exists() else "UTC"  # a copy has no name; without the file it is UTC, says libc
    return name.rpartition("/zoneinfo/")[2].removeprefix(":") or "UTC"


def last_run(entry: Any, now: float) -> datetime | None:
    """Return when the scheduler believes to have last run the entry; None where it never did."""
    moment = entry.last_run_at
    if not isinstance(moment, datetime):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)  # as Celery reads naive ones
    if moment.year < 1980 or now - moment.timestamp() > ANCIENT:
        return None
    return moment


def ever_ran(entry: Any) -> bool:
    """Tell whether the entry ran before, as far as the scheduler's store knows: a new entry has a last run, too."""
    return bool(getattr(entry, "total_run_count", 0))


def due(entry: Any, own: float | None, now: float) -> float | None:
    """Return when the entry is due after its last run, it being `now` now; None where that cannot be known.

    The last run is the later of the entry's and of `own`, the last that this process dispatched. One that never ran
    and has a start time is due then. Calls the user's schedule object, whose errors are his and mean None.
    """
    try:
        last = last_run(entry, now)
        # Of the two times of one run the entry's is the one that the scheduler reckons with.
        if own is not None and (last is None or last.timestamp() < own - SAME):
            last = datetime.fromtimestamp(own, timezone.utc)
        if last is None:
            start = getattr(getattr(entry, "model", None), "start_time", None)
            return start.timestamp() if isinstance(start, datetime) else None
        schedule = entry.schedule
        if kind_of(schedule) == "interval" and not schedule.relative:
            return float(last.timestamp() + schedule.run_every.total_seconds())
        remaining = schedule.remaining_estimate(last)
        if not isinstance(remaining, timedelta):
            return None
        moment = now + remaining.total_seconds()
        return float(round(moment)) if kind_of(schedule) == "crontab" else moment
    except Exception:  # noqa: BLE001 - a schedule that raises is reported without its due time
        return None


def options_queue(entry: Any) -> str | None:
    """Return the queue that the entry itself names, if it does."""
    options = getattr(entry, "options", None)
    queue = options.get("queue") if isinstance(options, dict) else None
    return None if queue is None else str(getattr(queue, "name", queue))[:LONGEST_NAME]


def enabled(entry: Any) -> bool:
    """Tell whether the entry may run; RedBeat and django-celery-beat can switch one off."""
    holder = getattr(entry, "model", entry)
    return bool(getattr(holder, "enabled", True))
