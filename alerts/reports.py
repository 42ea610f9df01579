"""Makes a failure report out of what Celery hands its hooks, and puts it into the outbox, at most once a request.

It reads Celery's objects without importing Celery. Nothing of the user's runs here: no `str` of an exception, no `repr`
of an argument; a traceback is text, made where the task ran.
"""

from __future__ import annotations

import inspect
import os
import socket
import sys
import sysconfig
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..monitor.guard import Guard
from . import failure
from .failure import MESSAGE_LENGTH, TRACEBACK_LENGTH, Failure, fingerprint
from .options import Options, TaskSettings, task_settings
from .outbox import Outbox, logger
from .redaction import clean, cut, head, tail
from .tracebacks import Trace, UserCode, bounded, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .outbox import Publisher

SENT_AT = "celeryscope-sent-at"
_MESSAGE_IN_TRACEBACK = 500
_HELD_NAME = 1_000
_RETRIED = frozenset({"celery.exceptions.Retry"})
MAX_ARGUMENTS = 50


class Reporter:
    """Reports the failures of one app. `connect` makes the outbox's publisher."""

    def __init__(self, connect: Callable[[], Publisher], clock: Callable[[], float] = time.time) -> None:
        self.options = Options()
        self.host = socket.gethostname()
        self._clock = clock
        self._settings: dict[str, TaskSettings] = {}
        self._user_code: UserCode | None = None
        self.outbox = Outbox(connect, host=lambda: self.host, finish=self._finish, clock=clock)

    def configure(self, options: Options) -> None:
        """Use `options` from now on."""
        self.options = options
        self._user_code = None

    def settings(self, task: Any) -> TaskSettings:
        """Return what `task` says about itself; what is wrong with it is logged, once."""
        name = str(task.name)
        settings = self._settings.get(name)
        if settings is None:
            settings, wrong = task_settings(name, getattr(task, "celeryscope", None))
            self._settings[name] = settings
            for line in wrong:
                logger.warning("celeryscope: %s", line)
        return settings

    def wants_retries(self, task: Any) -> bool:
        """Whether each retry of `task` is reported."""
        own = self.settings(task).report_retries
        return self.options.report_retries if own is None else own

    def wants_throws(self, task: Any) -> bool:
        """Whether exceptions that `task` declares in `throws` are reported."""
        own = self.settings(task).report_throws
        return self.options.report_throws if own is None else own

    def failed(self, request: Any, kind: str, text: object, hint: str | None, *, requeued: bool = False) -> None:
        """Report that a worker's `request` ended badly; nothing happens where that has been reported already."""
        if request.__dict__.get("_celeryscope_reported"):
            return
        request.__dict__["_celeryscope_reported"] = True
        now = self._clock()
        task = request.task

        def facts() -> dict[str, Any]:
            return {**self._of_request(request, now), **self._of_task(task, request.args, request.kwargs)}

        self.add(kind, str(task.name), text, hint, facts, now=now, requeued=requeued)

    def failed_eagerly(self, task: Any, text: object, hint: str | None) -> None:
        """Report that `task`, called in this very process, failed."""
        context = task.request

        def facts() -> dict[str, Any]:
            ids = {"uuid": _id(context.id), "root_id": _id(context.root_id), "parent_id": _id(context.parent_id)}
            return {**ids, **_retries(task, context.retries), **self._of_task(task, context.args, context.kwargs)}

        self.add(failure.FAILURE, str(task.name), text, hint, facts)

    def refused(self, kind: str, error: object, message: Any, *, task: str | None = None, app: Any = None) -> None:
        """Report a message that never became a request; `error` is an exception of Celery's or kombu's, or None."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        name = cut(clean(str(task or headers.get("task") or failure.UNKNOWN)), 300)
        exception = class_name(type(error)) if error is not None else "celery.UnknownMessage"
        said = head(_said(error), 2 * MESSAGE_LENGTH) if error is not None else "a message that is no task"
        trace = Trace(exception, said)

        def facts() -> dict[str, Any]:
            return {
                "uuid": _id(headers.get("id")),
                "root_id": _id(headers.get("root_id")),
                "parent_id": _id(headers.get("parent_id")),
                "queue": queue_of(app, message.delivery_info),
            }

        self._count(kind, name, trace, None, facts)

    def add(
        self,
        kind: str,
        task: str,
        text: object,
        hint: str | None,
        facts: Callable[[], Mapping[str, Any]],
        *,
        now: float | None = None,
        requeued: bool = False,
    ) -> None:
        """Count one failure of `task`, whose traceback is `text`; `facts` is called where a sample is wanted."""
        shown = bounded(text) if isinstance(text, str) else ""
        trace = parse(shown, hint, skip=_RETRIED if kind == failure.RETRY else frozenset())
        self._count(kind, task, trace, shown, facts, now=now, requeued=requeued)

    def _count(
        self,
        kind: str,
        task: str,
        trace: Trace,
        text: str | None,
        facts: Callable[[], Mapping[str, Any]],
        *,
        now: float | None = None,
        requeued: bool = False,
    ) -> None:
        at = self._clock() if now is None else now
        frame = self._code().innermost(trace)
        mark = fingerprint(kind, task, trace.exception, frame, trace.message)

        def make() -> Failure:
            known: dict[str, Any] = {}
            with Guard("failure hooks: facts"):  # what cannot be read of a request must not cost its failure
                known = dict(facts())
            times = {**known.pop("times", {}), "failed": at}
            return Failure(
                kind=kind,
                task=task,
                # Cut here and not only before sending: up to 1 000 of these wait for a broker that is away.
                exception=trace.exception[:_HELD_NAME],
                message=head(trace.message, 2 * MESSAGE_LENGTH),
                traceback=shortened(text, trace.message) if text else None,
                frame=frame,
                requeued=requeued,
                worker=self.host,
                environment=self.options.environment,
                release=self.options.release,
                times=times,
                **known,
            )

        self.outbox.add(mark, at, make)

    def _finish(self, sample: Failure) -> Failure:
        """Redact and cut; runs on the outbox's thread."""
        redacted = self.options.redactor.text
        text = sample.traceback
        return replace(
            sample,
            task=cut(clean(sample.task), 300),
            exception=cut(clean(sample.exception), 300),
            message=cut(clean(redacted(sample.message)), MESSAGE_LENGTH),
            traceback=clean(redacted(text)) if text else None,
            frame=clean(sample.frame) if sample.frame else None,
        )

    def _code(self) -> UserCode:
        if self._user_code is None:
            paths = sysconfig.get_paths()
            roots = (os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - "" is the working directory
            library = [paths["stdlib"], paths["platstdlib"]]
            self._user_code = UserCode(roots, library, self.options.user_packages)
        return self._user_code

    def _of_request(self, request: Any, now: float) -> dict[str, Any]:
        headers = request.request_dict
        times = {
            "sent": _number(headers.get(SENT_AT)),
            "eta": _number(request.eta.timestamp() if request.eta is not None else None),
            "started": _number(request.time_start),
            "failed": now,
        }
        return {
            "uuid": _id(request.id),
            "root_id": _id(request.root_id),
            "parent_id": _id(request.parent_id),
            "queue": queue_of(request.app, request.delivery_info),
            "times": {name: value for name, value in times.items() if value is not None},
            **_retries(request.task, headers.get("retries")),
        }

    def _of_task(self, task: Any, args: object, kwargs: object) -> dict[str, Any]:
        settings = self.settings(task)
        wanted = self.options.include_args if settings.include_args is None else settings.include_args
        shown: dict[str, Any] = {"settings": settings.sent}
        if wanted:
            shown["args"] = self._shown(wanted, _named(task, args))
            shown["kwargs"] = self._shown(wanted, kwargs.items() if isinstance(kwargs, dict) else ())
        return shown

    def _shown(self, wanted: bool | frozenset[str], arguments: Iterable[tuple[Any, Any]]) -> dict[str, str]:
        names = [(n, v) for n, v in arguments if isinstance(n, str) and (wanted is True or n in wanted)]  # type: ignore[operator]
        return {clean(n[:100]): self.options.redactor.show(n, v) for n, v in names[:MAX_ARGUMENTS]}


def class_name(kind: type) -> str:
    """Return a class as a traceback prints it."""
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def shortened(text: str, message: str) -> str:
    """Return the end of a traceback, so that a long message at its end does not push out the frames."""
    text = text.rstrip("\n")
    if len(message) > _MESSAGE_IN_TRACEBACK and text.endswith(message):
        text = text[: -len(message)] + head(message, _MESSAGE_IN_TRACEBACK) + "…"
    return tail(text, TRACEBACK_LENGTH)


def queue_of(app: Any, delivery: Any) -> str | None:
    """Return the queue that a message came from, as far as the worker can know it; never a guess."""
    if not isinstance(delivery, dict):
        return None
    exchange, key = delivery.get("exchange"), delivery.get("routing_key")
    if not exchange:
        return cut(clean(key), 200) if isinstance(key, str) else None
    consumed = [queue for queue in app.amqp.queues.consume_from.values() if queue.exchange.name == exchange]
    exact = [queue.name for queue in consumed if queue.routing_key == key]
    if len(exact) == 1 or len(consumed) == 1:
        return str((exact or [consumed[0].name])[0])
    return None


def _said(error: object) -> str:
    """An error of Celery's or kombu's in words; they may hold an object of anybody's."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever a `__str__` raises
        return "(no message: its str() raised)"


def _retries(task: Any, retries: object) -> dict[str, Any]:
    done = retries if isinstance(retries, int) else 0
    limit = task.max_retries if isinstance(task.max_retries, int) else None
    return {"retries": done, "max_retries": limit, "gave_up": limit is not None and 0 < limit <= done}


def _named(task: Any, args: object) -> Iterable[tuple[str, Any]]:
    if not isinstance(args, (list, tuple)):
        return ()
    try:
        parameters = list(inspect.signature(task.run).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [(positional[i] if i < len(positional) else f"arg{i}", value) for i, value in enumerate(args)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e12 else None


def _id(value: object) -> str | None:
    return clean(value[:200]) if isinstance(value, str) else None
