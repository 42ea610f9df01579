"""All that a user's code imports: install(app) and the version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

    from .alerts.hooks import AlertingTask
    from .alerts.options import Options

__all__ = ["AlertingTask", "__version__", "install"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "AlertingTask":  # imports Celery, which `import celeryscope` alone must not
        from .alerts.hooks import AlertingTask

        return AlertingTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install(
    app: Celery,
    *,
    report_failures: bool = True,
    environment: str | None = None,
    release: str | None = None,
    include_args: bool = False,
    report_retries: bool = False,
    report_throws: bool = False,
    notify_eager: bool = False,
    user_packages: Iterable[str] = (),
    redact: Iterable[str] | Callable[[str], str] = (),
) -> None:
    """Make a Celery app observable; call it once where the app is made, in every process that imports the app.

    Task events are switched on where the configuration leaves them at Celery's default (`worker_send_task_events`
    and `task_send_sent_event`); an explicit choice, True or False, is never overridden. Calling it before or after
    the app is configured, or twice, makes no difference. Messages are stamped with the time of their publish, and a
    beat process reports what it dispatches. Installing reads no configuration, opens no connection and starts
    no thread, and after its arguments are accepted nothing in it raises: what fails is logged and left out.

    Failures of tasks go from the worker into a durable queue for `celeryscope alerter` (docs/failures.md), unless
    `report_failures` is False. `environment` and `release` are shown with them. `include_args`: with the arguments of
    every task. `report_retries`, `report_throws`: each retry, and exceptions that a task declares in `throws`.
    `notify_eager`: tasks called eagerly, in whatever process. `user_packages`: installed packages that are your own
    code. `redact`: further key names (regular expressions) whose values are secrets, or a function from text to text.

    Raises:
        TypeError, ValueError: `app` is not a Celery app, or an option is of the wrong kind.
    """
    from celery import Celery

    from .alerts.options import Options

    if not isinstance(app, Celery):
        raise TypeError(f"celeryscope.install() takes your Celery app, not {type(app).__name__}: install(app)")
    options = Options(
        environment, release, include_args, report_retries, report_throws, notify_eager, user_packages, redact
    )
    _start_probes(app, options if report_failures else None)


def _start_probes(app: Celery, failures: Options | None) -> None:
    # `celery.current_app` is a proxy: nothing weak can refer to it, and it is never identical with the app.
    unwrap = getattr(app, "_get_current_object", None)
    app = unwrap() if unwrap else app
    # One guarded step for each probe, imported here and not above: `import celeryscope` must cost a worker nothing.
    from .monitor.guard import Guard

    with Guard("install: task events"):
        from .monitor import event_settings

        event_settings.connect(app)
    with Guard("install: beat"):
        from .monitor import beat

        beat.connect(app)
    with Guard("install: publish stamp"):
        from .monitor import stamp

        stamp.connect(app)
    if failures is not None:
        with Guard("install: failures"):
            from .alerts import hooks

            hooks.connect(app, failures)
