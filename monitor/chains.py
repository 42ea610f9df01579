"""One entry's chain: from the slots of its schedule and what beat reports to counts, lateness, drift and misses."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from .slots import INSTANT, UNKNOWN_SLOTS, WALK, Slots, build

if TYPE_CHECKING:
    from .facts import Buckets

EARLY = -1.0
"""A dispatch further ahead of its slot than this was not due: beat began with an outdated last run."""

HIDDEN_BEYOND = 3_600.0
"""django-celery-beat lists a crontab whenever it is due within two hours; an hour spares daylight saving time."""

LONGEST = 255
"""Characters of a name that are kept."""

SAME = 1.0
"""Two times of one thing differ by less: beat writes the last run down a little before or after it dispatches."""

COUNTS = ("dispatched", "failed", "missed", "duplicates")
KEPT = (
    "task", "queue", "kind", "spec", "tz", "every", "enabled", "since", "anchor", "anchor_boot", "anchor_own",
    "first_due", "due", "counted", "grid", "drift", "last_dispatch", "last_success", "last_failure",
    *COUNTS, "lateness", "interval", "end_to_end",
)  # fmt: skip


class Tally(NamedTuple):
    """What one beat process counted for an entry since it started; only ever grows.

    `dispatched` and `failed` are attempts by outcome, `skipped` the slots of a plain interval that it let pass.
    """

    dispatched: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def attempts(self) -> int:
        """How often it tried, whatever the outcome."""
        return self.dispatched + self.failed


class Report(NamedTuple):
    """What is known of an attempt to dispatch: all times by the clock of the beat that made it."""

    boot: str
    before: Tally
    """The last tally known of this boot and entry."""
    first: bool
    """True where nothing was known of this boot and entry."""
    tally: Tally
    sent: float
    due: float | None
    """When the run was due by what beat knew; None where it did not know."""
    start: float | None = None
    """The boot's first attempt, where that is known."""
    peers: bool = False
    """True where this beat and the one that dispatched last are known to run side by side."""
    younger: bool = False
    """True where this beat came online after the one that dispatched last."""
    most: int = WALK
    """Slots that may be walked over one by one."""


class Bounds(NamedTuple):
    """Upper bounds of the three histograms."""

    lateness: tuple[float, ...]
    interval: tuple[float, ...]
    end_to_end: tuple[float, ...]


class Chain:
    """The state of one entry of one app; the caller knows beats, clocks and labels."""

    def __init__(self, since: float, bounds: Bounds) -> None:
        self._bounds = bounds
        self.task = ""
        self.queue: str | None = None
        self.kind = "unknown"
        self.spec = ""
        self.tz: str | None = None
        self.every: float | None = None
        self.enabled = True
        self.slots: Slots = UNKNOWN_SLOTS
        self.since = since
        """Slots before this are not ours to count: nobody looked."""
        self.anchor: float | None = None
        """The last attempt to dispatch, whoever made it."""
        self.anchor_boot = ""
        self.anchor_own = False
        """False where the anchor is what a scheduler's store remembers, which may be minutes behind."""
        self.first_due: float | None = None
        """The first slot after the anchor: where it passes, the entry is overdue."""
        self.due: float | None = None
        """The earliest slot that is neither dispatched nor counted as missed."""
        self.counted = 0
        """Misses counted since the anchor."""
        self.walked = 0
        """Slots of a calendar that were walked over one by one: that is what takes long."""
        self.behind: tuple[float, float, int, int] | None = None
        """A skipped slot, the one that was served, most slots to count from one to the other, and those not to."""
        self._look: tuple[float, float] = (math.nan, math.nan)  # an open slot, and when it will have been missed
        self.grid: list[Any] = ["", 0.0, 0, 0.0]
        """The ideal grid of an interval: its boot, its start, the slots that boot had counted then, its interval."""
        self.drift: float | None = None
        self.last_dispatch: float | None = None
        self.last_success: float | None = None
        self.last_failure: float | None = None
        self.dispatched = self.failed = self.missed = self.duplicates = 0
        self.lateness, self.interval, self.end_to_end = (empty(b) for b in bounds)

    def describe(self, said: Any, next_due: float | None, moment: float) -> None:
        """Take over task, queue and schedule from an entry or dispatch event, at `moment` by beat's clock.

        A new schedule starts from the last run, as it does in beat. `next_due` counts where that is not known, or the
        schedule is not; it cannot take back a slot that has passed.
        """
        self.task, self.queue = said.task[:LONGEST], said.queue and said.queue[:LONGEST]
        schedule = (said.kind[:20], said.spec[:500], said.tz and said.tz[:LONGEST], said.every)
        if schedule != (self.kind, self.spec, self.tz, self.every):
            self.kind, self.spec, self.tz, self.every = schedule
            self.slots = build(*schedule)
            self.behind = None
            self._expect(next_due)
        elif next_due is not None and not self._predicts() and self._may_move(next_due, moment):
            self._expect(next_due)

    def remember(self, moment: float) -> None:
        """Move the anchor to the last run that the scheduler's store remembers, where that is later."""
        if self.anchor is None or moment > self.anchor + SAME:
            self.anchor, self.anchor_own, self.anchor_boot = moment, False, ""
            self.last_dispatch = max(moment, self.last_dispatch or 0.0)
            self._expect(None)

    def _may_move(self, next_due: float, moment: float) -> bool:
        if self.first_due is None:
            return True
        lies_ahead = self.slots is UNKNOWN_SLOTS or moment < self.first_due
        return lies_ahead and abs(next_due - self.first_due) > SAME

    def _predicts(self) -> bool:
        return self.anchor is not None and self.slots is not UNKNOWN_SLOTS

    def _expect(self, next_due: float | None) -> None:
        """Set what is due next, and leave out the slots before `since` except the one that is open."""
        if self._predicts():
            assert self.anchor is not None
            next_due = self.slots.after(self.anchor)
        self.first_due = self.due = next_due
        if self.due is not None and self.due < self.since:
            self.due = self.slots.open_at(self.due, self.since)
        self.counted = 0

    def forgive(self, moment: float) -> None:
        """Leave out the slots before `moment`: the monitor was blind, and another beat may have dispatched them."""
        self.since = max(self.since, moment)
        self.anchor_own = False
        if self.due is not None and self.due < self.since:
            self.due = self.slots.open_at(self.due, self.since)

    def confirm(self, horizon: float, most: int = WALK) -> None:
        """Count as missed what must be: nothing was dispatched up to `horizon`, by the beat's clock."""
        if self.behind is not None:
            self._catch_up(*self.behind, most)
        if self.due is None or not self.enabled or horizon <= self.due:
            return
        if self._look[0] != self.due:
            self._look = (self.due, self.slots.after(self.due) or math.inf)
        if horizon < self._look[1]:
            return
        count, self.due = self._walk(self.due, horizon, most)
        self.missed += count
        self.counted += count

    def _walk(self, due: float, horizon: float, most: int) -> tuple[int, float]:
        count, due = self.slots.missed(due, horizon, most)
        self.walked += count if self.slots.calendar else 0
        return count, due

    def _catch_up(self, due: float, served: float, left: int, free: int, most: int) -> None:
        """Count on where a dispatch found too many slots skipped before it."""
        most = min(most, left)
        count, due = self._walk(due, served, most)
        self.missed += max(0, count - free)
        self.behind = (due, served, left - count, max(0, free - count)) if due < served and left > count else None

    def awaits(self, sent: float) -> bool:
        """Tell whether a dispatch at that time may still be counted: it serves no slot that was judged already."""
        return self.slots is not UNKNOWN_SLOTS and not self.counted and (self.anchor is None or sent > self.anchor)

    def report(self, r: Report) -> float | None:
        """Take in a beat's tally; return when the run was due. Reports once more, late or out of order are harmless."""
        attempts = r.tally.attempts - r.before.attempts
        self.dispatched += r.tally.dispatched - r.before.dispatched
        self.failed += r.tally.failed - r.before.failed
        if attempts <= 0:
            return r.due
        reached = r.tally.dispatched > r.before.dispatched
        if reached:
            self._judge_duplicate(r, attempts)
        if self.anchor is not None and r.sent <= self.anchor and self.anchor_own:
            return r.due
        if reached:
            self.last_dispatch = max(r.sent, self.last_dispatch or 0.0)
        due = self._observe(r, attempts)
        served = self._account(r, attempts)
        self._measure_drift(r, served)
        self.anchor, self.anchor_boot, self.anchor_own = r.sent, r.boot, True
        following = self.slots.after(r.sent)
        self.first_due = self.due = following
        if self.slots.calendar and following is not None and following < self.since:
            self.due = self.slots.open_at(following, self.since)
        self.counted = 0
        return due

    def _observe(self, r: Report, attempts: int) -> float | None:
        previous = self.anchor if self.anchor_own else None
        if attempts == 1 and previous is not None:
            observe(self.interval, self._bounds.interval, r.sent - previous)
        due = r.due
        if attempts == 1 and previous is not None and self.first_due is not None:
            # Beat may have begun with a last run that is older than the one we saw: ours is the later.
            due = max(due or 0.0, self.first_due)
        elif due is not None and due < self.since:
            return None  # what beat took for the last run may have been minutes out of date
        if due is not None and r.sent - due >= EARLY:
            observe(self.lateness, self._bounds.lateness, max(0.0, r.sent - due))
            # Beat counts from the last run it wrote down, a little before it sent: a quick run ends before our slot.
            due = min(due, r.sent)
        return due

    def _account(self, r: Report, attempts: int) -> float | None:
        """Count the slots that were skipped before this attempt; return the slot that it served, if one was due."""
        if self.due is None:
            return None
        count, due = self._walk(self.due, r.sent, r.most)
        reached = due
        if self.slots.calendar and count == r.most:
            due = self.slots.open_at(due, r.sent)
        served = due if due <= r.sent + INSTANT else None
        if self.slots.calendar:
            others = attempts - (served is not None)
            if reached < due:
                self.behind = (reached, due, WALK - count, max(0, others - count))
            count = max(0, count - others)
        elif attempts > 1:
            # Only beat knows how the slots of an interval, which slide, lay between runs that we did not see.
            skipped = max(0, r.tally.skipped - r.before.skipped - self.counted)
            if r.start is not None and r.start >= self.since and not r.before.attempts:
                skipped = r.tally.skipped + self.slots.missed(self.due, r.start, r.most)[0]
            count = min(count, skipped)
        self.missed += count
        return served

    def _measure_drift(self, r: Report, served: float | None) -> None:
        if self.slots.calendar:
            self.drift = r.sent - served if served is not None else self.drift
            return
        if self.slots.every is None:
            return
        boot, start, counted, every = self.grid
        passed = r.tally.attempts + r.tally.skipped
        if boot != r.boot or every != self.slots.every:
            # A beat that starts, or a new schedule, begins a grid of its own: a shift of phase is no drift.
            start, counted = r.sent, passed
            self.grid = [r.boot, start, counted, self.slots.every]
        self.drift = r.sent - start - self.slots.every * (passed - counted)

    def _judge_duplicate(self, r: Report, attempts: int) -> None:
        """Count the dispatch of a slot that another beat has dispatched (DESIGN §4)."""
        if attempts > 1 and r.first and not r.peers:
            return
        if self.anchor is None or not self.anchor_own or self.anchor_boot in {r.boot, ""}:
            return
        gap = abs(r.sent - self.anchor)
        if self.slots.calendar:
            following = self.slots.after(min(self.anchor, r.sent))
            again = following is None or following > max(self.anchor, r.sent)
        elif self.slots.every is None:
            return
        elif r.peers:
            # Side by side, whatever the phase between them: all that the younger one sends is too much.
            again = r.younger and gap < self.slots.every
        else:
            again = gap < self.slots.every / 2
        self.duplicates += again

    def ended(self, moment: float, due: float | None, *, succeeded: bool) -> None:
        """Take in the end of a run, by the worker's clock; `due` is when the run was due."""
        if succeeded:
            self.last_success = max(moment, self.last_success or 0.0)
        else:
            self.last_failure = max(moment, self.last_failure or 0.0)
        if due is not None and moment >= due:
            observe(self.end_to_end, self._bounds.end_to_end, moment - due)

    def overdue(self, moment: float) -> float:
        """Return for how long the entry has been due at `moment`, in seconds; 0 when it is not."""
        if self.first_due is None or not self.enabled:
            return 0.0
        return max(0.0, moment - self.first_due)

    def hidden(self, moment: float) -> bool:
        """Tell whether django-celery-beat may leave the entry out although it exists: its slot is far away."""
        if self.kind not in {"crontab", "clocked"} or self.due is None:
            return False
        fields = self.spec.split()
        if self.kind == "crontab" and not (len(fields) == 5 and fields[1].isdigit()):
            return False
        following = self.slots.after(self.due)
        return all(abs(slot - moment) > HIDDEN_BEYOND for slot in (self.due, following) if slot is not None)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {name: getattr(self, name) for name in KEPT}

    def load(self, state: dict[str, Any], *, histograms: bool, counts: bool) -> None:
        """Take over what `dump` returned, with its `histograms` and `counts` or without; those are 0 then."""
        left_out = (() if histograms else Bounds._fields) + (() if counts else COUNTS)
        for name in KEPT:
            if name in state and name not in left_out:
                setattr(self, name, state[name])
        self.slots = build(self.kind, self.spec, self.tz, self.every)


def empty(bounds: tuple[float, ...]) -> Buckets:
    """Return a histogram without observations."""
    return [0.0] * (len(bounds) + 2)


def observe(buckets: Buckets, bounds: tuple[float, ...], value: float) -> None:
    """Count `value` in its bucket and add it to the sum."""
    buckets[bisect_left(bounds, value)] += 1
    buckets[-1] += value
