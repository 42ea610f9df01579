"""What an incident is and how it lives: it absorbs failures, resolves, reopens, and asks to be told again (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field

from .batches import Batch, Sample

OPEN, RESOLVED = "open", "resolved"
MINUTE = 60.0
REOPEN_WITHIN = 86_400.0
"""Seconds after being resolved in which the same failure reopens its incident rather than beginning a new one."""
RECENT = 1_440
"""Minutes of the past that the counts by minute go back, at most."""
FIRST_LEVEL = 10


class Tally(Struct):
    """What several batches together add to one incident. Times are unix times, never later than their receipt."""

    fingerprint: str
    environment: str
    count: int
    first: float
    last: float
    sample: Sample
    minutes: dict[int, int] = field(default_factory=dict)
    """Failures by minute (unix time // 60)."""

    @property
    def key(self) -> str:
        """What makes two failures the same incident; one that is current has it for itself."""
        return f"{self.fingerprint} {self.environment}"

    def add(self, count: int, first: float, last: float, sample: Sample) -> None:
        """Count further failures."""
        self.count += count
        self.first = min(self.first, first)
        if last >= self.last:
            self.sample = merged(self.sample, sample)
            self.last = last
        minute = int(last // MINUTE)
        self.minutes[minute] = self.minutes.get(minute, 0) + count


class Incident(Struct):
    """Failures of one kind in one environment. `count` is that of all failures since `opened_at`.

    `first` and `last` are when the failures happened, `opened_at` and `resolved_at` when the alerter saw it.
    """

    id: str
    key: str
    fingerprint: str
    environment: str
    task: str
    exception: str
    sample: Sample
    count: int
    first: float
    last: float
    opened_at: float
    state: str = OPEN
    resolved_at: float | None = None
    reopens: int = 0
    last_success: float | None = None
    muted_until: float | None = None
    held: bool = False
    """Quiet hours kept it back: it goes into the digest, even when it is resolved by then."""
    minutes: dict[int, int] = field(default_factory=dict)
    message_id: str | None = None

    def muted(self, now: float) -> bool:
        """Whether somebody muted it by hand."""
        return self.muted_until is not None and now < self.muted_until

    def within(self, seconds: float, now: float) -> int:
        """Return the failures of the last `seconds`, in whole minutes rounded up, before `now`."""
        oldest = int((now - seconds) // MINUTE)
        return sum(count for minute, count in self.minutes.items() if minute >= oldest)


def tallies(batches: Iterable[Batch], now: float) -> dict[str, Tally]:
    """Add batches up by incident key; clocks that run ahead are held to `now`."""
    found: dict[str, Tally] = {}
    for batch in batches:
        for entry in batch.entries:
            last = min(entry.last, now)
            first = min(entry.first, last)
            tally = Tally(entry.fingerprint, entry.sample.environment or "", 0, first, 0.0, entry.sample)
            found.setdefault(tally.key, tally).add(entry.count, first, last, entry.sample)
    return found


def merged(old: Sample, new: Sample) -> Sample:
    """Return the newer sample; only the first one a minute carries a traceback, so the known one is kept."""
    if new.traceback is None and old.traceback is not None:
        new.traceback = old.traceback
        new.frame = new.frame or old.frame
    return new


def absorb(known: Incident | None, tally: Tally, now: float, new_id: str) -> Incident:
    """Return the incident with the tally's failures counted: the known one (changed in place) or a new one.

    A new one begins when none is known or when it was resolved over 24 hours before; the known one then is history.
    """
    if known is None or _over(known, tally):
        return Incident(
            id=new_id,
            key=tally.key,
            fingerprint=tally.fingerprint,
            environment=tally.environment,
            task=tally.sample.task,
            exception=tally.sample.exception,
            sample=tally.sample,
            count=tally.count,
            first=tally.first,
            last=tally.last,
            opened_at=now,
            minutes=_trimmed(tally.minutes, now),
        )
    if known.state == RESOLVED and _after_the_end(known, tally):
        known.state, known.resolved_at = OPEN, None
        known.reopens += 1
    known.count += tally.count
    known.first = min(known.first, tally.first)
    if tally.last >= known.last:
        known.sample = merged(known.sample, tally.sample)
        known.last = tally.last
    for minute, count in tally.minutes.items():
        known.minutes[minute] = known.minutes.get(minute, 0) + count
    known.minutes = _trimmed(known.minutes, now)
    return known


def _over(known: Incident, tally: Tally) -> bool:
    return known.resolved_at is not None and tally.last > known.resolved_at + REOPEN_WITHIN


def _after_the_end(known: Incident, tally: Tally) -> bool:
    # A failure from before the success that resolved the incident may come late: it counts and changes nothing else.
    end = known.resolved_at if known.last_success is None else known.last_success
    return end is None or tally.last > end


def _trimmed(minutes: dict[int, int], now: float) -> dict[int, int]:
    oldest = int(now // MINUTE) - RECENT
    return {minute: count for minute, count in minutes.items() if minute > oldest}


def over(incident: Incident, now: float, quiet: float) -> bool:
    """Whether it may be resolved: the task succeeded since the last failure, and none came for `quiet` seconds."""
    succeeded = incident.last_success is not None and incident.last_success > incident.last
    return incident.state == OPEN and succeeded and now - incident.last >= quiet


def level(count: int) -> int:
    """Return the highest of 10, 100, 1 000, … that `count` has reached, or 0."""
    reached = 0
    step = FIRST_LEVEL
    while step <= count:
        reached, step = step, step * 10
    return reached
