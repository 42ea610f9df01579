"""When an entry is due: the slots of one schedule, by Celery's own schedule objects and a clock that is given."""

from __future__ import annotations

import functools
import math
import re
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, cast
from zoneinfo import ZoneInfo

WALK = 2_000
"""Most slots of a calendar schedule that are looked at in one go: a minutely entry's day and a half."""

LOOK_BACK = 60.0
"""Seconds before a moment in which its last slot is looked for first; then eight times as far, and so on."""

SHORTEST = 1e-3
"""Seconds: of a shorter interval than this beat itself keeps nothing, and who claims one gets no slots counted."""

INSTANT = 1e-6
"""Seconds to which Celery's datetimes are exact: a slot may be served that much before its time."""

_OFFSET = re.compile(r"(?:UTC)?([+-])(\d\d):?(\d\d)")


class Slots:
    """A schedule of which nothing is known: there is no telling when it is due again, so no slot is ever missed."""

    every: float | None = None
    """Seconds from one slot to the next, where that is fixed."""
    calendar = False
    """True where slots are points in time that do not depend on when the entry last ran."""

    def after(self, moment: float) -> float | None:
        """Return the slot that is due next when the last run was at `moment`, in unix time; None where unknowable."""
        del moment
        return None

    def missed(self, due: float, horizon: float, most: int = WALK) -> tuple[int, float]:
        """Count the slots from `due` on whose successor was due by `horizon` too; also return the slot then open.

        At most so many are looked at.
        """
        count = 0
        horizon += INSTANT
        following = self.after(due)
        while following is not None and due < following <= horizon and count < most:
            count, due = count + 1, following
            following = self.after(due)
        return count, due

    def open_at(self, due: float, moment: float) -> float:
        """Return the last slot by `moment`, beginning with the slot `due`: what `missed` returns, without a count."""
        return self.missed(due, moment)[1]


class Interval(Slots):
    """Due a fixed time after the last run."""

    def __init__(self, every: float) -> None:
        self.every = self._every = every

    def after(self, moment: float) -> float | None:
        """Return `moment` plus the interval."""
        return moment + self._every

    def missed(self, due: float, horizon: float, most: int = WALK) -> tuple[int, float]:
        """As `Slots.missed`, all of them in constant time."""
        del most
        count = max(0, math.floor((horizon - due) / self._every))
        return count, due + count * self._every


class Calendar(Slots):
    """Due when Celery's schedule object says so: crontab, solar, and intervals that are rounded to the clock."""

    calendar = True

    def __init__(self, rule: Any, zone: tzinfo) -> None:
        self._rule = rule
        self._zone = zone
        self._moment = datetime.now(timezone.utc)
        # `tz` is a cached property that would ask for an app; the clock stands still at the last run, so that what
        # remains is the distance to the next slot.
        rule.tz = zone
        rule.nowfun = lambda: self._moment

    def after(self, moment: float) -> float | None:
        """Return the first slot after `moment`; None where Celery finds none (a day that does not exist)."""
        try:
            self._moment = last = datetime.fromtimestamp(moment, self._zone)
            left = self._rule.remaining_estimate(last)
            slot = last.timestamp() + left.total_seconds()
            face = (last + left).replace(fold=last.fold).timestamp()
            if abs(face - slot) > 1.0 and self._is_slot(face, last):
                slot = face
        except Exception:  # noqa: BLE001 - ephem, dateutil and Celery each have errors of their own for "never"
            return None
        return slot if slot > moment else None

    def open_at(self, due: float, moment: float) -> float:
        """As `Slots.open_at`, by a few looks back from `moment`: `due` may lie years before it."""
        back = LOOK_BACK
        while self.every is None and moment - back > due:
            slot = self.after(moment - back)
            if slot is not None and slot <= moment:
                due = slot
                break
            back *= 8
        return self.missed(due, moment)[1]

    def _is_slot(self, moment: float, last: datetime) -> bool:
        """Tell whether nothing remains at that moment: Celery 5.4 counts on the clock's face, newer ones real time."""
        self._moment = datetime.fromtimestamp(moment, self._zone)
        return bool(abs(self._rule.remaining_estimate(last).total_seconds()) < 1.0)


class Once(Slots):
    """Due once, at a point in time."""

    calendar = True

    def __init__(self, at: float) -> None:
        self.at = at

    def after(self, moment: float) -> float | None:
        """Return the point in time while it lies ahead."""
        return self.at if moment < self.at else None


UNKNOWN_SLOTS = Slots()


@functools.lru_cache(maxsize=4096)
def zone(name: str | None) -> tzinfo | None:
    """Return the time zone of an IANA name, `UTC` or an offset such as +02:00; None where it is not known here."""
    if not name:
        return None
    match = _OFFSET.fullmatch(name)
    if match:
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        return timezone(-offset if match[1] == "-" else offset) if offset < timedelta(days=1) else None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError; a folder's name is an OSError
        return timezone.utc if name == "UTC" else None


def build(kind: str, spec: str, tz: str | None, every: float | None) -> Slots:
    """Return the slots of an entry as the beat probe describes it; of an unknown kind where that makes no sense.

    `kind` is interval, relative (an interval rounded to the clock), crontab (`spec`: minute, hour, day of month, month,
    day of week), solar (event, latitude, longitude), clocked (ISO 8601), or anything else.
    """
    try:
        if kind in {"interval", "relative"} and not (every or 0.0) >= SHORTEST:
            return UNKNOWN_SLOTS
        return _build(kind, spec, tz, every)
    except Exception:  # noqa: BLE001 - descriptions come over the wire: Celery may raise anything on a strange one
        return UNKNOWN_SLOTS


def _build(kind: str, spec: str, tz: str | None, every: float | None) -> Slots:
    if kind == "interval" and every:
        return Interval(every)
    if kind == "clocked":
        return Once(datetime.fromisoformat(spec).timestamp())
    rule = _rule(kind, spec, every)
    where = timezone.utc if kind == "solar" else zone(tz)
    if rule is None or where is None:
        return UNKNOWN_SLOTS
    slots = Calendar(rule, where)
    slots.every = every if kind == "relative" else None
    return slots


def _rule(kind: str, spec: str, every: float | None) -> Any:
    """Return Celery's schedule object, or None for a kind that is not Celery's."""
    from celery.schedules import crontab, schedule, solar  # Celery, once there is a beat

    if kind == "relative" and every:
        return schedule(timedelta(seconds=every), relative=True)
    if kind == "crontab":
        minute, hour, day, month, weekday = spec.split()
        return crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    if kind == "solar":
        event, latitude, longitude = spec.split()
        return solar(cast("Any", event), float(latitude), float(longitude))
    return None
