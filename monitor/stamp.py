"""The publish stamp: every message that an app publishes says when, so that a queue's age can be read off its head."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .guard import Guard

if TYPE_CHECKING:
    from celery import Celery

HEADER = "celeryscope-sent-at"
"""Message header: unix time of the publish by the producer's clock, in seconds."""

_PUBLISH = "send_task_message"
_DEPTH = 8
"""How many frames up the publishing function may be: instrumentation may have wrapped the signal in between."""

Receiver = Callable[..., None]

_guard = Guard("publish stamp")
# The signal keeps weak references: a receiver lives exactly as long as its app, which it does not keep alive itself.
_receivers: weakref.WeakKeyDictionary[Any, Receiver] = weakref.WeakKeyDictionary()


def connect(app: Celery) -> None:
    """Stamp what `app` publishes; again is a no-op. Never raises into a publish, and leaves other apps' messages alone.

    The header is always overwritten, since a retry copies the headers of the attempt before. On AMQP the message
    property `timestamp` is set too, for RabbitMQ's `head_message_timestamp`, unless the caller set one.
    """
    from celery.signals import before_task_publish

    real = app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001 - celery.current_app is a proxy
    if real in _receivers:
        return
    receiver = _receiver(real)
    _receivers[real] = receiver
    before_task_publish.connect(receiver)


def _receiver(app: Celery, clock: Callable[[], float] = time.time) -> Receiver:
    reference = weakref.ref(app)
    amqp: bool | None = None

    def stamp(
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
        declare: Sequence[Any] | None = None,
        **_: Any,
    ) -> None:
        nonlocal amqp
        with _guard:
            owner = reference()
            if owner is None or headers is None or not (_owns(owner, declare) or _publishes(owner)):
                return
            now = clock()
            headers[HEADER] = round(now, 3)
            if amqp is None:
                amqp = _speaks_amqp(owner)
            if amqp and properties is not None:
                properties.setdefault("timestamp", int(now))

    return stamp


def _owns(app: Celery, declare: Sequence[Any] | None) -> bool:
    """Tell whether the queue published to is an object of this app's own, which it is in nearly every publish."""
    amqp = app.__dict__.get("amqp")
    queues = amqp.__dict__.get("queues") if amqp is not None else None  # nothing that would load the configuration
    if not declare or not queues:
        return False
    return queues.get(declare[0].name) is declare[0]


def _publishes(app: Celery) -> bool:
    """Tell whether it is `app` that is publishing: the signal is global and names only the task.

    The sending function is a closure over its app's event dispatcher (5.4 to 5.7); where that is not found the answer
    is yes, for a stamp too many is harmless and one too few is a blind spot.
    """
    frame = sys._getframe(2)  # noqa: SLF001 - the only way to the sending app
    for _ in range(_DEPTH):
        if frame.f_code.co_name == _PUBLISH:
            sender = getattr(frame.f_locals.get("default_evd"), "app", None)
            return sender is None or sender is app
        if frame.f_back is None:
            break
        frame = frame.f_back
    return True


def _speaks_amqp(app: Celery) -> bool:
    # The connection is lazy: this only resolves the transport's class, once per process and app.
    with app.connection_for_write() as connection:
        return bool(connection.get_transport_cls().driver_type == "amqp")
