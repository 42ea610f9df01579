"""Hears of every failure inside a worker's main process, and hands it to the app's reporter.

The choke point is the worker's `Request`: its `on_failure` and `on_timeout` run in the main process, for every pool,
and on the paths where `Task.on_failure` and the signals are silent or double (docs/failures.md has the table). Every
step of ours is guarded, and Celery's own call is never inside a guard: it runs, returns and raises as if we were not
there.
"""

from __future__ import annotations

import atexit
import itertools
import os
import weakref
from typing import TYPE_CHECKING, Any

from billiard import einfo as billiard_einfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Task, signals
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.imports import symbol_by_name
from celery.utils.serialization import UnpickleableExceptionWrapper

from ..monitor.guard import Guard, guarded
from . import failure
from .options import Options
from .outbox import FLUSH
from .reports import Reporter, class_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

    from .outbox import Publisher

_connections: weakref.WeakKeyDictionary[Any, Connection] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def connect(app: Celery, options: Options | None = None, *, every_task: bool = True) -> Reporter:
    """Report the failures of `app`'s tasks from every worker that runs this; of all of them, or of `AlertingTask`s.

    Connecting again only changes the options. Nothing is opened or started before the first failure.
    """
    chosen = options or Options()
    connection = _connections.get(app)
    if connection is None:
        connection = _connections[app] = Connection(app)
    connection.reporter.configure(chosen)
    connection.every_task = connection.every_task or every_task
    if chosen.notify_eager:
        connection.listen_to_eager()
    return connection.reporter


class Connection:
    """The hooks of one app in one process; they live as long as the app, to whose signals they listen weakly."""

    every_task = False

    def __init__(self, app: Celery) -> None:
        self._app = weakref.ref(app)
        self._worker_pid: int | None = None
        self._flushed = self._eager = False
        self.reporter = Reporter(self._publisher)
        listen = {
            signals.worker_init: self.on_worker_init,
            signals.celeryd_after_setup: self.on_after_setup,
            signals.worker_ready: self.on_worker_ready,
            signals.worker_shutdown: self.on_worker_shutdown,
            signals.task_unknown: self.on_task_unknown,
            signals.task_rejected: self.on_task_rejected,
            signals.task_internal_error: self.on_internal_error,
        }
        # Celery 5.4 takes the same method of two objects for one receiver, unless each has an id of its own.
        self._uid = f"celeryscope-failures-{next(_numbers)}"
        for signal, receiver in listen.items():
            signal.connect(receiver, dispatch_uid=self._uid)

    def _publisher(self) -> Publisher:
        from .publisher import QueuePublisher

        return QueuePublisher(self._app())

    def _mine(self, app: object) -> bool:
        """Whether this is the worker's main process, or its only one, and it runs our app."""
        return self._worker_pid == os.getpid() and app is self._app()

    @guarded("failure hooks: worker_init", None)
    def on_worker_init(self, sender: Any = None, **_: Any) -> None:
        """Give every task its reporting `Request` before the consumer builds its strategies from it."""
        app = self._app()
        if app is None or sender.app is not app:
            return
        self._worker_pid, self._flushed = os.getpid(), False
        self.reporter.host = str(sender.hostname)
        self._hook(app)
        _flush_at_exit()
        for task in list(app.tasks.values()):
            self.reporter.settings(task)  # so that mistakes in them are logged at the start, not at the first failure

    @guarded("failure hooks: celeryd_after_setup", None)
    def on_after_setup(self, instance: Any = None, **_: Any) -> None:
        """Once more: other receivers of `worker_init` may have registered tasks after us."""
        if instance.app is self._app():
            self._hook(instance.app)

    def _hook(self, app: Any) -> None:
        if self.every_task:
            hook_tasks(app)

    @guarded("failure hooks: worker_ready", None)
    def on_worker_ready(self, sender: Any = None, **_: Any) -> None:
        """Wrap the consumer's `on_decode_error`: an undecodable message is acknowledged and no signal tells of it."""
        if not self._mine(sender.app) or "on_decode_error" in sender.__dict__:
            return
        handle = sender.on_decode_error
        reporter, app = self.reporter, sender.app

        def on_decode_error(message: Any, exc: Any) -> Any:
            with Guard("failure hooks: decode error"):
                reporter.refused(failure.UNDECODABLE, exc, message, app=app)
            return handle(message, exc)

        sender.on_decode_error = on_decode_error

    @guarded("failure hooks: worker_shutdown", None)
    def on_worker_shutdown(self, sender: Any = None, **_: Any) -> None:
        """Let the last failures leave, for a bounded time."""
        if self._mine(sender.app):
            self.flush()

    def flush(self) -> None:
        """Let what waits leave, once and for at most `FLUSH` seconds."""
        if not self._flushed:
            self._flushed = True
            with Guard("failure hooks: flush"):
                self.reporter.outbox.flush(FLUSH)

    @guarded("failure hooks: task_unknown", None)
    def on_task_unknown(self, sender: Any = None, message: Any = None, exc: Any = None, **fields: Any) -> None:  # noqa: ARG002 - `exc` is a KeyError of Celery's internals
        """A task of a name that no code here has: it was discarded."""
        if self._mine(sender.app):
            name = str(fields.get("name"))
            error = _NotRegistered(name)
            self.reporter.refused(failure.UNKNOWN_TASK, error, message, task=name, app=sender.app)

    @guarded("failure hooks: task_rejected", None)
    def on_task_rejected(self, sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
        """A message that is no task, or of a content type that is not accepted: it was discarded."""
        if self._mine(sender.app):
            self.reporter.refused(failure.INVALID, exc, message, app=sender.app)

    @guarded("failure hooks: task_internal_error", None)
    def on_internal_error(self, sender: Any = None, task_id: Any = None, einfo: Any = None, **_: Any) -> None:
        """Celery's own handling of a task raised. In a pool child nothing is done: there `Request` tells of it."""
        if not self._mine(sender.app) or not (self.every_task or isinstance(sender, AlertingTask)):
            return
        request = _worker_state().requests.get(task_id)
        if request is not None and not _over(request):
            self.reporter.failed(request, failure.INTERNAL, einfo.traceback, class_name(einfo.type))

    def listen_to_eager(self) -> None:
        """Report tasks that are called in this very process, too."""
        if not self._eager:
            self._eager = True
            signals.task_failure.connect(self.on_eager_failure, dispatch_uid=self._uid)
            _flush_at_exit()

    @guarded("failure hooks: eager", None)
    def on_eager_failure(self, sender: Any = None, exception: Any = None, einfo: Any = None, **_: Any) -> None:
        """A task failed; unless it was called eagerly, its `Request` tells of it."""
        child = self._worker_pid is not None and self._worker_pid != os.getpid()
        if child or not sender.request.is_eager or sender.app is not self._app():
            return
        if not isinstance(exception, sender.throws or ()) or self.reporter.wants_throws(sender):
            self.reporter.failed_eagerly(sender, einfo.traceback, class_name(type(exception)))


def _flush_at_exit() -> None:
    atexit.unregister(_flush_all)
    atexit.register(_flush_all)


def _flush_all() -> None:
    for connection in list(_connections.values()):
        connection.flush()


class _NotRegistered(Exception):  # noqa: N818 - named as Celery names it
    """`celery.exceptions.NotRegistered` without its habit of quoting the name."""


_NotRegistered.__module__, _NotRegistered.__qualname__ = "celery.exceptions", "NotRegistered"


def hook_tasks(app: Any) -> None:
    """Give every registered task a `Request` that reports, derived from the one it has."""
    for task in list(app.tasks.values()):
        with Guard("failure hooks: Request"):
            task.Request = reporting(symbol_by_name(task.Request))


_classes: dict[type, type] = {}


def reporting(base: type) -> type:
    """Return a subclass of the `Request` class `base` that reports; `base` itself where it does already."""
    if issubclass(base, Reporting):
        return base
    known = _classes.get(base)
    if known is None:
        known = _classes[base] = type(base.__name__, (Reporting, base), {"__module__": base.__module__})
    return known


class Reporting:
    """What is put before a `Request` class: it watches failures and hard time limits."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Celery's handler of whatever did not succeed, retries and rejects included."""
        heard: list[tuple[Any, Any]] = []
        over = False
        own: tuple[Any, ...] = ()
        with Guard("failure hooks: before on_failure"):
            over = _over(self)
            own = _listen(self, heard)
        try:
            return super().on_failure(exc_info, *args, **kwargs)  # type: ignore[misc]
        finally:
            with Guard("failure hooks: on_failure"):
                self.__dict__.pop("send_event", None)
                if own:
                    self.__dict__["send_event"] = own[0]
                if not over:
                    _report(self, exc_info, dict(heard))

    def on_timeout(self, soft: bool, timeout: Any) -> Any:
        """Celery's handler of both time limits; the soft one raises inside the task and comes as a failure."""
        try:
            return super().on_timeout(soft, timeout)  # type: ignore[misc]
        finally:
            with Guard("failure hooks: on_timeout"):
                if not soft and not _worker_state().should_terminate and not _over(self):
                    _report_limit(self, timeout)


def _worker_state() -> Any:
    from celery.worker import state  # not above: it imports the whole worker, and `install` runs in web processes too

    return state


def _over(request: Any) -> bool:
    """Whether the request was revoked or cancelled: what happens to it then is no failure."""
    return bool(getattr(request, "_already_revoked", False) or getattr(request, "_already_cancelled", False))


def _listen(request: Any, heard: list[tuple[Any, Any]]) -> tuple[Any, ...]:
    """Hear what Celery announces of `request`: only it knows whether a lost process means retry, requeue or success.

    Return what the instance itself had in that place, if anything: another instrumentation's wrapper is to stay.
    """
    own = (request.__dict__["send_event"],) if "send_event" in request.__dict__ else ()
    announce = request.send_event

    def send_event(type: Any, *args: Any, **fields: Any) -> Any:  # noqa: A002 - Celery's name for it
        heard.append((type, fields.get("requeue")))
        return announce(type, *args, **fields)

    request.send_event = send_event
    return own


def _report(request: Any, exc_info: Any, heard: Mapping[Any, Any]) -> None:
    reporter = _reporter(request)
    exc = exc_info.exception
    if isinstance(exc, billiard_einfo.ExceptionWithTraceback):  # type: ignore[attr-defined]
        exc = exc.exc
    requeued = bool(heard.get("task-rejected"))
    kind = _kind(request.task, exc, heard, reporter)
    if kind is None or (requeued and _worker_state().should_terminate):
        return
    if kind == failure.TIME_LIMIT:
        _report_limit(request, exc.args[0] if exc.args else None)
        return
    reporter.failed(request, kind, exc_info.traceback, class_name(type(exc)), requeued=requeued)


def _kind(task: Any, exc: Any, heard: Mapping[Any, Any], reporter: Reporter) -> str | None:
    """Return what kind of failure this is; None: none that is reported."""
    if isinstance(exc, Reject):
        return None if exc.requeue else failure.REJECTED  # type: ignore[attr-defined]
    if isinstance(exc, (Ignore, Terminated)) or "task-succeeded" in heard:
        return None
    if isinstance(exc, Retry) or "task-retried" in heard:
        return failure.RETRY if reporter.wants_retries(task) else None
    if isinstance(exc, _PROCESS_GONE):
        return failure.TIME_LIMIT if isinstance(exc, TimeLimitExceeded) else failure.LOST
    return None if _expected(task, exc) and not reporter.wants_throws(task) else failure.FAILURE


_PROCESS_GONE = (TimeLimitExceeded, WorkerLostError, SystemExit, KeyboardInterrupt)


def _expected(task: Any, exc: object) -> bool:
    throws = tuple(task.throws or ())
    if isinstance(exc, UnpickleableExceptionWrapper):  # the class did not survive the way out of the pool child
        return any((kind.__module__, kind.__name__) == (exc.exc_module, exc.exc_cls_name) for kind in throws)
    return isinstance(exc, throws)


def _report_limit(request: Any, timeout: Any) -> None:
    task = request.task
    # The traceback would show billiard and nothing of the task.
    text = f"{class_name(TimeLimitExceeded)}: the hard time limit of {timeout} s was exceeded"
    # Celery 5.7 tells the two apart.
    acknowledges = getattr(task, "acks_on_timeout", task.acks_on_failure_or_timeout)
    requeued = bool(task.acks_late and not acknowledges)
    _reporter(request).failed(request, failure.TIME_LIMIT, text, class_name(TimeLimitExceeded), requeued=requeued)


def _reporter(request: Any) -> Reporter:
    connection = _connections.get(request.app)
    return connection.reporter if connection is not None else connect(request.app, every_task=False)


class AlertingTask(Task):  # type: ignore[type-arg]
    """A task class that reports its failures, for those who would rather say it than have `install` find every task.

    Use it as `Celery(task_cls="celeryscope:AlertingTask")` or `@app.task(base=AlertingTask)`. With `install` as well,
    nothing is reported twice.
    """

    abstract = True

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Connect the app with the default options, unless `install` has done so."""
        super().on_bound(app)
        with Guard("failure hooks: AlertingTask"):
            cls.Request = reporting(symbol_by_name(cls.Request))  # type: ignore[assignment]
            if app not in _connections:
                connect(app, every_task=False)
