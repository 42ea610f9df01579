"""What the beat probe reports, as event fields: made on the sender's thread, in slices, so that beat is not held up."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from billiard.process import current_process

from . import beat_entries as entries
from .guard import Guard

if TYPE_CHECKING:
    from .beat import Attempt, Count, Probe
    from .beat_sender import Message

HEARTBEAT = 10.0
REPEATED = 4
"""A heartbeat repeats what changed in the last three, and in one more that a change may just have missed."""
FULL_EVERY = 6
"""Every so many heartbeats one holds all entries ever dispatched: whoever missed much is up to date in a minute."""
TOTALS = 1_000
"""Most entries in one heartbeat; one that has to leave some out says so."""
PART = 100
SLICE = 20
PAUSE = 0.005
"""Seconds that the other threads get after each slice of entries: describing 1 000 crontabs takes 20 ms."""
LIST_EVERY = 300.0
LIST_AGAIN = 2.0
"""Seconds between two listings when the schedule changes all the time."""
REDBEAT_LOOK = 30.0
ENTRIES = 10_000


class Reports:
    """Makes the events of one probe; `poll` is asked again and again what is due."""

    def __init__(self, probe: Probe, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._monotonic = monotonic
        self._next_heartbeat = -math.inf
        self._next_listing = -math.inf
        self._changed = False
        self._listings = 0
        self._online = False
        self._leaving = False
        self._left = False
        self._led: bool | None = None
        # Made on beat's own thread, which `celery worker -B` calls so, in a child process or in the worker itself.
        self.embedded = "Beat" in (current_process().name, threading.current_thread().name)
        self._redbeat = RedBeatReader(probe)

    def schedule_changed(self) -> None:
        """Say that there is a new schedule to be listed."""
        self._changed = True

    def leave(self) -> None:
        """Say that beat ends: what is polled next is the farewell."""
        self._leaving = True

    def poll(self) -> Iterator[Message]:
        """Yield the events that are due now."""
        if self._leaving:
            if self._online and not self._left:
                self._left = True
                yield self._heartbeat()
                yield "beat-offline", self._common()
            return
        if not self._online:
            self._online = True
            yield "beat-online", self._common()
        now = self._monotonic()
        if now >= self._next_heartbeat or self._probe.leader() != self._led:
            self._led = self._probe.leader()
            self._next_heartbeat = now + HEARTBEAT
            yield self._heartbeat()
        self._redbeat.look(now)
        if self._listing_due(now):
            self._changed = False
            self._next_listing = now + LIST_EVERY
            yield from self._listing()

    def _listing_due(self, now: float) -> bool:
        wanted_since = self._next_listing - LIST_EVERY
        return self._probe.schedule is not None and (
            now >= self._next_listing or (self._changed and now >= wanted_since + LIST_AGAIN)
        )

    def _common(self) -> dict[str, Any]:
        probe = self._probe
        cls = type(probe.scheduler)
        schedule = probe.schedule
        return {
            "app": probe.app_name,
            "boot": probe.boot,
            "scheduler": f"{cls.__module__}.{cls.__qualname__}"[:200],
            "entries": None if schedule is None else len(schedule),
            "leader": probe.leader(),
            "embedded": self.embedded,
            "last_tick": probe.last_tick,
            "max_interval": _number(getattr(probe.scheduler, "max_interval", None)),
            "dropped": probe.sender.dropped,
        }

    def _heartbeat(self) -> Message:
        probe = self._probe
        now = probe.clock()
        busy = probe.busy
        probe.beats += 1
        full = probe.beats % FULL_EVERY == 0
        counts = list(probe.counts.items())
        changed = {name: count for name, count in counts if full or count.changed >= probe.beats - REPEATED}
        complete = len(changed) <= TOTALS
        if not complete:
            changed = dict(list(changed.items())[:TOTALS])
        return "beat-heartbeat", {
            **self._common(),
            "seq": probe.beats,
            # No dispatch began before this that the totals do not hold.
            "asof": now if busy is None else busy,
            "totals": {name: [c.dispatched, c.failed, c.last] for name, c in changed.items()},
            "skips": {name: c.skipped for name, c in changed.items() if c.skipped},
            "uuids": {name: c.uuid for name, c in changed.items() if c.uuid},
            "firsts": {name: c.first for name, c in changed.items() if c.born >= probe.beats - REPEATED},
            "complete": complete,
            "full": full,
        }

    def dispatch(self, attempt: Attempt, count: Count, seq: int, error: str | None, next_due: float | None) -> Message:
        """Return the event of one attempt; it describes its entry too, for an entry that no listing has."""
        entry = attempt.entry
        fields = {
            "app": self._probe.app_name,
            "boot": self._probe.boot,
            "seq": seq,
            "entry": attempt.name,
            "task": str(entry.task)[:255],
            "queue": entries.options_queue(entry),
            "sent": attempt.sent,
            "due": attempt.due,
            "next_due": next_due,
            **entries.describe(entry.schedule),
            "dispatched": count.dispatched,
            "failed": count.failed,
            "skipped": count.skipped,
            "first": count.first,
        }
        if error is None:
            return "beat-dispatched", {**fields, "uuid": count.uuid}
        return "beat-dispatch-failed", {**fields, "exception": error}

    def _listing(self) -> Iterator[Message]:
        probe = self._probe
        self._listings += 1
        schedule = list((probe.schedule or {}).items())[:ENTRIES]
        parts = max(1, -(-len(schedule) // PART))
        hides = any(cls.__module__ == "django_celery_beat.schedulers" for cls in type(probe.scheduler).__mro__)
        for part in range(parts):
            seq = probe.beats
            yield (
                "beat-schedule",
                {
                    **self._common(),
                    "seq": seq,
                    "hides": hides,
                    "listing": self._listings,
                    "part": part + 1,
                    "parts": parts,
                    "entries": self._items(schedule[part * PART : (part + 1) * PART]),
                },
            )

    def _items(self, schedule: list[tuple[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for index, (name, entry) in enumerate(schedule):
            with Guard("beat probe: describing an entry"):
                found.append(self._item(entries.wire_name(name), entry))
            if index % SLICE == SLICE - 1:
                time.sleep(PAUSE)
        return found

    def _item(self, name: str, entry: Any) -> dict[str, Any]:
        count = self._probe.counts.get(name)
        described = entries.describe(entry.schedule)
        last = None if count is None else count.last
        if described["kind"] in {"interval", "crontab"}:
            next_due = entries.due(entry, last, self._probe.clock())
        else:  # not for this thread: ephem's objects keep state, and what is unknown may be bound to beat's thread
            next_due = self._probe.unknown_due.get(name)
        if last is None and entries.ever_ran(entry):
            stored = entries.last_run(entry, self._probe.clock())
            # RedBeat writes it down before it dispatches: what began meanwhile is ours, and told once it is done.
            if stored is not None and stored.timestamp() < (self._probe.began or math.inf):
                last = stored.timestamp()
        return {
            "entry": name,
            "task": str(entry.task)[:255],
            "queue": entries.options_queue(entry),
            **described,
            "next_due": next_due,
            "enabled": entries.enabled(entry),
            "dispatched": count.dispatched if count is not None else 0,
            "failed": count.failed if count is not None else 0,
            "skipped": count.skipped if count is not None else 0,
            "first": count.first if count is not None else None,
            "last_dispatch": last,
        }


class RedBeatReader:
    """Reads all entries of RedBeat, whose scheduler holds only those that are due: in a thread of its own.

    RedBeat's Redis may hang without a timeout, and the heartbeats must go on.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._names: list[str] | None = None
        self._next_look = 0.0
        self._next_read = 0.0
        self._thread: threading.Thread | None = None
        self._is_redbeat = any(cls.__module__ == "redbeat.schedulers" for cls in type(probe.scheduler).__mro__)

    def look(self, now: float) -> None:
        """Start to read where it is time, unless the last reading still goes on or another beat has the lock."""
        if not self._is_redbeat or now < self._next_look or self._probe.leader() is False:
            return
        self._next_look = now + REDBEAT_LOOK
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._read, args=(now,), name="celeryscope-redbeat", daemon=True)
            self._thread.start()

    def _read(self, now: float) -> None:
        with Guard("beat probe: listing RedBeat's entries"):
            scheduler, app = self._probe.scheduler, self._probe.app
            client = sys.modules["redbeat.schedulers"].get_redis(app)
            keys = client.zrange(app.redbeat_conf.schedule_key, 0, -1)[:ENTRIES]
            if sorted(keys) == self._names and now < self._next_read:
                return
            found = {}
            for index, key in enumerate(keys):
                entry = self._load(scheduler, key, app)
                if entry is not None:
                    found[str(entry.name)] = entry
                if index % SLICE == SLICE - 1:
                    time.sleep(PAUSE)
            self._names, self._next_read = sorted(keys), now + LIST_EVERY
            self._probe.schedule = found
            self._probe.reports.schedule_changed()
            self._probe.sender.put(None)

    @staticmethod
    def _load(scheduler: Any, key: str, app: Any) -> Any:
        try:
            return scheduler.Entry.from_key(key, app=app)
        except (KeyError, ValueError):  # gone meanwhile, or written by something else
            return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
