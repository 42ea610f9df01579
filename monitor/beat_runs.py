"""A run's descent: beat writes on each message which of its dispatches it is, and the worker that gets it says so.

A beat that is killed takes its last report along; what the worker says is the same count, from another process. Runs
inside the user's workers: their consumer's thread only stores a count, and a thread of `beat_sender` tells it.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .beat_sender import Line, Sender
from .guard import Guard

if TYPE_CHECKING:
    from celery import Celery

    from .beat_sender import Fields, Message

ENTRY_HEADER = "celeryscope-beat-entry"
"""Message header: the name of the entry for which beat sent the task."""
RUN_HEADER = "celeryscope-beat-run"
"""Message header: what `write` makes of a dispatch."""

PENDING = 1_000
"""Most entries whose latest count waits to be told; further ones are left out: beat itself told of them, too."""
LONGEST = 1_000
"""Most characters of a header that is read: anybody may write headers."""
IDLE = 60.0
"""Seconds without a run of beat's after which the thread and its connection end."""

_guard = Guard("beat probe: a run's descent")
# The signals keep weak references: receivers live as long as their app, which they do not keep alive themselves.
_receivers: weakref.WeakKeyDictionary[Any, tuple[Callable[..., None], ...]] = weakref.WeakKeyDictionary()
_inherited: list[object] = []


def write(app: str, boot: str, counts: tuple[int, int, int], times: tuple[float | None, ...]) -> str:
    """Return the header of one dispatch.

    `counts` are the entry's dispatched, failed and skipped since this beat (`boot`) started, this dispatch included;
    `times` are when it was sent, when the first one was, and when this one was due, in unix time.
    """
    return " ".join([boot, *map(str, counts), *("-" if t is None else repr(t) for t in times), app])


def read(text: str) -> dict[str, Any]:
    """Return the fields of `beat-received` that a header holds.

    Raises:
        ValueError: it is none of ours.
    """
    boot, dispatched, failed, skipped, sent, first, due, app = text.split(" ", 7)
    return {
        "app": app,
        "boot": boot,
        "dispatched": int(dispatched),
        "failed": int(failed),
        "skipped": int(skipped),
        "sent": _time(sent),
        "first": _time(first),
        "due": _time(due),
    }


def _time(text: str) -> float | None:
    return None if text == "-" else float(text)


class Teller:
    """Tells which runs one app's worker received: of each entry of each beat the latest, for counts are cumulative."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], Fields] = {}
        self._sender: Sender | None = None
        self._pid = os.getpid()

    def note(self, app: Celery, hostname: str, fields: Fields) -> None:
        """Have one run told soon, by an event of the worker `hostname`. Stores it and waits for nothing.

        The thread is started by the first one. It looks once a second, and so many runs at once become one event.
        """
        if self._pid != os.getpid():
            self._forked()
        if self._sender is not None and self._sender.unsupported:
            return
        key = fields["boot"], fields["entry"]
        known = self._pending.get(key)
        room = known is not None or len(self._pending) < PENDING
        if room and (known is None or _attempts(known) <= _attempts(fields)):
            self._pending[key] = fields
        # Not sooner: a thread about to end either sees what has just been stored, or is over by now.
        if self._sender is None or self._sender.over:
            sender = Sender(functools.partial(Line, app, hostname), self._poll, name="celeryscope-runs", idle=IDLE)
            sender.start()
            self._sender = sender

    def leave(self) -> None:
        """The worker ends: let the thread tell what is left if there is time; nobody waits for it."""
        if self._sender is not None:
            self._sender.leave()

    def _forked(self) -> None:
        # Collecting an inherited connection would shut the parent's socket down (py-amqp).
        _inherited.append(self._sender)
        self._pid, self._sender, self._pending = os.getpid(), None, {}

    def _poll(self) -> Iterator[Message]:
        for key in list(self._pending):
            fields = self._pending.pop(key, None)
            if fields is None:
                continue
            sent = False
            try:
                yield "beat-received", fields
                sent = True
            finally:  # left here when the broker did not take it: for the next time, unless there is a newer one
                if not sent:
                    self._pending.setdefault(key, fields)


def _attempts(fields: Fields) -> int:
    return int(fields["dispatched"] + fields["failed"])


def connect(app: Celery) -> None:
    """Let each worker of `app` tell which runs that it receives were sent by a beat; again is a no-op.

    Where task events are on, whoever switched them on. Nothing raises into the worker, nothing is sent on its thread.
    """
    from celery.signals import task_received, worker_shutdown

    if app in _receivers:
        return
    reference, teller = weakref.ref(app), Teller()

    def received(sender: Any = None, request: Any = None, **_: Any) -> None:
        with _guard:
            text = request.request_dict.get(RUN_HEADER)
            mine = reference()
            if text is not None and mine is not None and _same(sender.app, mine):
                _tell(teller, mine, sender, request, text)

    def ended(sender: Any = None, **_: Any) -> None:
        with _guard:
            mine = reference()
            if mine is not None and _same(getattr(sender, "app", None), mine):
                teller.leave()

    _receivers[app] = (received, ended)
    task_received.connect(received)
    worker_shutdown.connect(ended)


def _same(app: Any, mine: Celery) -> bool:
    # The consumer may hold `celery.current_app`, which is a proxy.
    return (app._get_current_object() if hasattr(app, "_get_current_object") else app) is mine  # noqa: SLF001


def _tell(teller: Teller, app: Celery, consumer: Any, request: Any, text: str) -> None:
    # A retry is the same dispatch again: Celery copies a message's own headers.
    if request.request_dict.get("retries") or len(text) > LONGEST or not _wanted(consumer.event_dispatcher, request):
        return
    entry = str(request.request_dict.get(ENTRY_HEADER))
    if len(entry) > LONGEST:
        return
    try:
        fields = read(text)
    except ValueError:  # anybody may write headers
        return
    teller.note(app, consumer.hostname, {"entry": entry, "uuid": request.id, **fields})


def _wanted(dispatcher: Any, request: Any) -> bool:
    """Tell whether task events of this run are sent: a dispatcher is enabled for the heartbeats alone, too."""
    if dispatcher is None or not dispatcher.enabled or not request.task.send_events:
        return False
    groups = dispatcher.groups  # none: all of them
    return not groups or "task" in groups
