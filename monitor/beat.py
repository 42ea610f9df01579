"""The beat probe: watches a scheduler from inside the user's beat process and reports what it does.

It wraps three methods of the scheduler's instance and hands what they saw to `beat_sender`'s thread. On beat's own
thread it never talks to a broker or a database.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import beat_entries as entries
from . import beat_runs
from .beat_reports import Reports
from .beat_runs import ENTRY_HEADER, RUN_HEADER
from .beat_sender import Line, Sender
from .guard import Guard

if TYPE_CHECKING:
    from celery import Celery

LOOKED_THROUGH = 200
"""Entries of a new schedule that one tick looks through for schedules of an unknown class."""
ASKED_FOR = 0.0005
"""Seconds after which a tick leaves the others to the next one: asking them runs the user's code on beat's thread."""
UNKNOWN = 10_000
_MARK = "_celeryscope_probe"

# The signals keep weak references: a receiver lives as long as its app, which it does not keep alive itself.
_receivers: weakref.WeakKeyDictionary[Any, Callable[..., None]] = weakref.WeakKeyDictionary()


def connect(app: Celery) -> None:
    """Watch every beat that runs `app`: `celery beat`, `celery worker -B`, any scheduler. Again is a no-op.

    Nothing happens before a beat starts. In it, nothing raises into beat, and no broker call is made on its thread.
    Workers of `app` tell which of the runs they receive a beat has sent.
    """
    from celery.signals import beat_init

    real = _real(app)
    if real in _receivers:
        return
    reference = weakref.ref(real)

    def started(sender: Any = None, **_: Any) -> None:
        with Guard("beat probe: start"):
            if sender is not None and _real(sender.app) is reference():
                watch(sender.scheduler)

    _receivers[real] = started
    beat_init.connect(started, dispatch_uid=f"celeryscope-beat-{id(real)}")
    with Guard("beat probe: runs"):
        beat_runs.connect(real)
    with Guard("beat probe: order"):
        # RedBeat's receiver waits there for its lock, maybe for days; ours has to run before.
        receivers: list[Any] = beat_init.receivers
        receivers.insert(0, receivers.pop())


def _real(app: Any) -> Any:
    """Return the app behind `celery.current_app`, which is a proxy."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001


def watch(scheduler: Any) -> Probe:
    """Wrap a scheduler instance and start to report; the same one again gives the same probe."""
    probe: Probe | None = getattr(scheduler, _MARK, None)
    if probe is None:
        probe = Probe(scheduler)
        setattr(scheduler, _MARK, probe)
        probe.attach()
    return probe


class Count(NamedTuple):
    """What this process did for one entry; replaced as a whole, so that the other thread never sees half of it."""

    dispatched: int = 0
    failed: int = 0
    skipped: int = 0
    last: float | None = None
    """When the last attempt began, in unix time."""
    first: float | None = None
    """When the first one did."""
    uuid: str | None = None
    changed: int = 0
    """The heartbeat after which it changed."""
    born: int = 0
    """The heartbeat after which it came to be."""


class Attempt:
    """One call of apply_async, while it lasts."""

    __slots__ = ("due", "entry", "name", "sent", "thread", "uuid")

    def __init__(self, entry: Any, name: str, sent: float, due: float | None) -> None:
        self.entry = entry
        self.name = name
        self.sent = sent
        self.due = due
        self.uuid: str | None = None
        self.thread = threading.get_ident()


class Probe:
    """What one scheduler has done since its process started: counts on beat's thread, read by the sender's."""

    def __init__(
        self,
        scheduler: Any,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sender: Callable[[Callable[[], Iterator[tuple[str, dict[str, Any]]]]], Sender] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.app = scheduler.app
        self.app_name = entries.wire_name(self.app.main or "unknown")
        self.hostname = f"{self.app_name[:100]}@{socket.gethostname()[:100]}"
        self.boot = uuid.uuid4().hex
        self.clock = clock
        self.counts: dict[str, Count] = {}
        self.last_tick = clock()
        self.began: float | None = None
        """When its first tick began: all that it dispatches itself comes later."""
        self.busy: float | None = None
        """Since when an apply_async has been under way."""
        self.schedule: dict[str, Any] | None = None
        """The entries that the scheduler read last."""
        self.unknown_due: dict[str, float] = {}
        self.beats = 0
        """Heartbeats sent; counts remember after which one they changed."""
        self.seq = 0
        self._seen: Any = None
        self._attempt: Attempt | None = None
        self._unasked: Iterator[tuple[str, Any]] | None = None
        """What is left of a new schedule to be asked when it is due."""
        self._monotonic = monotonic
        self.reports = Reports(self, monotonic)
        make = sender or (lambda poll: Sender(functools.partial(Line, self.app, self.hostname), poll))
        self.sender = make(self.reports.poll)

    def attach(self) -> None:
        """Wrap the scheduler's methods and start the thread."""
        from celery.signals import before_task_publish

        scheduler = self.scheduler
        scheduler.apply_async = self._wrap_apply(scheduler.apply_async)
        scheduler.tick = self._wrap_tick(scheduler.tick)
        scheduler.close = self._wrap_close(scheduler.close)
        before_task_publish.connect(self._publishing, dispatch_uid=f"celeryscope-beat-entry-{id(self)}")
        self.sender.start()

    # --- the wrappers: the user's call stands outside of every guard ----------------------------------------------

    def _wrap_apply(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def apply_async(*args: Any, **kwargs: Any) -> Any:
            attempt: Attempt | None = None
            with Guard("beat probe: before a dispatch"):
                attempt = self._begin(args[0] if args else kwargs["entry"])
            try:
                result = original(*args, **kwargs)
            except Exception as error:
                with Guard("beat probe: after a failed dispatch"):
                    self._end(attempt, None, error)
                raise
            with Guard("beat probe: after a dispatch"):
                self._end(attempt, result, None)
            return result

        return apply_async

    def _wrap_tick(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def tick(*args: Any, **kwargs: Any) -> Any:
            if self.began is None:
                with Guard("beat probe: first tick"):
                    self.began = self.clock()
            result = original(*args, **kwargs)
            with Guard("beat probe: after a tick"):
                self._ticked()
            return result

        return tick

    def _wrap_close(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def close(*args: Any, **kwargs: Any) -> Any:
            try:
                # First of all the schedule: whoever ends beat may not wait.
                return original(*args, **kwargs)
            finally:
                with Guard("beat probe: end"):
                    self.reports.leave()
                    self.sender.close()

        return close

    # --- on beat's thread ------------------------------------------------------------------------------------------

    def _begin(self, entry: Any) -> Attempt:
        name = entries.wire_name(entry.name)
        now = self.clock()
        known = self.counts.get(name)
        due = entries.due(entry, known.last if known is not None else None, now)
        self.busy = now
        self._attempt = attempt = Attempt(entry, name, now, due)
        return attempt

    def _publishing(self, sender: Any = None, headers: Any = None, **_: Any) -> None:
        """Tie the message to its entry: the headers of this one message, never the entry's options."""
        with Guard("beat probe: header"):
            attempt = self._attempt
            if attempt is None or attempt.thread != threading.get_ident() or not isinstance(headers, dict):
                return
            if sender == attempt.entry.task:
                headers[ENTRY_HEADER] = attempt.name
                attempt.uuid = headers.get("id")
                count = self._counted(attempt, None, failed=False)
                counts, times = (count.dispatched, count.failed, count.skipped), (count.last, count.first, attempt.due)
                headers[RUN_HEADER] = beat_runs.write(self.app_name, self.boot, counts, times)

    def _end(self, attempt: Attempt | None, result: Any, error: Exception | None) -> None:
        self._attempt = None
        try:
            if attempt is None:
                return
            task_id = getattr(result, "id", None) or attempt.uuid
            if error is None and task_id is None:
                return  # a scheduler of the user's own that decided against it
            count = self._counted(attempt, task_id, failed=error is not None)
            try:
                self._report(attempt, count, error)
            finally:
                # In this order: no heartbeat that holds the count goes ahead of its report, which alone says when the
                # run was due.
                self.counts[attempt.name] = count
        finally:
            self.busy = None

    def _report(self, attempt: Attempt, count: Count, error: Exception | None) -> None:
        self.seq += 1
        next_due = None
        if entries.kind_of(attempt.entry.schedule) == "unknown":
            next_due = entries.due(attempt.entry, attempt.sent, self.clock())
            self._note_unknown(attempt.name, next_due)
        # The error's name alone: its traceback holds the frames of a publish, and up to 20 000 reports may wait.
        failed = None if error is None else type(error).__name__
        self.sender.put(functools.partial(self.reports.dispatch, attempt, count, self.seq, failed, next_due))

    def _counted(self, attempt: Attempt, task_id: object, *, failed: bool) -> Count:
        """Return the entry's counts after this attempt."""
        known = self.counts.get(attempt.name, Count())
        return Count(
            dispatched=known.dispatched + (not failed),
            failed=known.failed + failed,
            skipped=known.skipped + _skipped(attempt.entry, known.last, attempt.sent),
            last=attempt.sent,
            first=attempt.sent if known.first is None else known.first,
            uuid=known.uuid if failed else str(task_id),
            changed=self.beats,
            born=known.born if known.last is not None else self.beats,
        )

    def _note_unknown(self, name: str, due: float | None) -> None:
        if due is not None and (name in self.unknown_due or len(self.unknown_due) < UNKNOWN):
            self.unknown_due[name] = due

    def _ticked(self) -> None:
        self.last_tick = self.clock()
        # What the tick has just read: reading `schedule` again may cost queries. Replaced whenever it changes.
        read = getattr(self.scheduler, "old_schedulers", None)
        if read is not None and read is not self._seen:
            self._seen = read
            self._changed(read)
        if self._unasked is not None:
            self._ask_unknown(self._unasked)

    def _changed(self, read: Any) -> None:
        """Take over a schedule that the scheduler has just read."""
        schedule = read if type(read) is dict else dict(read)
        rules = {type(rule): rule for rule in (getattr(entry, "schedule", None) for entry in schedule.values())}
        unknown = any(entries.kind_of(rule) == "unknown" for rule in rules.values())
        self._unasked = iter(list(schedule.items())) if unknown else None
        self.unknown_due = {}
        self.schedule = schedule
        self.reports.schedule_changed()
        self.sender.put(None)

    def _ask_unknown(self, unasked: Iterator[tuple[str, Any]]) -> None:
        """Ask schedules of the user's own when they are due: here, for they may be bound to this thread."""
        until = self._monotonic() + ASKED_FOR
        for _ in range(LOOKED_THROUGH):
            name, entry = next(unasked, (None, None))
            if name is None:
                self._unasked = None
                self.reports.schedule_changed()  # to be listed once more, with what is known now
                return
            if entries.kind_of(getattr(entry, "schedule", None)) == "unknown":
                name = entries.wire_name(name)
                known = self.counts.get(name)
                self._note_unknown(name, entries.due(entry, None if known is None else known.last, self.clock()))
                if self._monotonic() > until:
                    return

    def leader(self) -> bool | None:
        """Tell whether this beat dispatches; None where its scheduler knows of no others."""
        if getattr(self.scheduler, "lock_key", None):
            return getattr(self.scheduler, "lock", None) is not None
        return None


def _skipped(entry: Any, last: float | None, now: float) -> int:
    """Count the slots of a plain interval that passed between two dispatches of this process."""
    schedule = entry.schedule
    if last is None or entries.kind_of(schedule) != "interval" or schedule.relative:
        return 0
    every = schedule.run_every.total_seconds()
    return max(0, int((now - (last + every)) // every)) if every > 0 else 0
