"""A run's descent: beat writes on each message which of its dispatches it is, and the worker that gets it says so.

A beat that is killed takes its last report along; what the worker says is the same count, from another process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .guard import Guard

if TYPE_CHECKING:
    from celery import Celery

ENTRY_HEADER = "celeryscope-beat-entry"
"""Message header: the name of the entry for which beat sent the task."""
RUN_HEADER = "celeryscope-beat-run"
"""Message header: what `write` makes of a dispatch."""

_guard = Guard("beat probe: a run's descent")
# The signals keep weak references: a receiver lives as long as its app, which it does not keep alive itself.
_receivers: weakref.WeakKeyDictionary[Any, Callable[..., None]] = weakref.WeakKeyDictionary()


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


def connect(app: Celery) -> None:
    """Let each worker of `app` tell which runs that it receives were sent by a beat; again is a no-op.

    One event a run, on the worker's own dispatcher, where events are on. Nothing raises into the worker.
    """
    from celery.signals import task_received

    if app in _receivers:
        return
    reference = weakref.ref(app)

    def received(sender: Any = None, request: Any = None, **_: Any) -> None:
        with _guard:
            text = request.request_dict.get(RUN_HEADER)
            if text is not None and _same(sender.app, reference()):
                _tell(sender.event_dispatcher, request, text)

    _receivers[app] = received
    task_received.connect(received)


def _same(app: Any, mine: Celery | None) -> bool:
    # The consumer may hold `celery.current_app`, which is a proxy.
    return (app._get_current_object() if hasattr(app, "_get_current_object") else app) is mine  # noqa: SLF001


def _tell(dispatcher: Any, request: Any, text: str) -> None:
    if dispatcher is None or not dispatcher.enabled or not request.task.send_events:
        return
    try:
        fields = read(text)
    except ValueError:  # anybody may write headers
        return
    entry = request.request_dict.get(ENTRY_HEADER)
    dispatcher.send("beat-received", entry=str(entry), uuid=request.id, **fields)
