"""All that a user's code imports: install(app) and the version."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["__version__", "install"]

__version__ = "0.1.0"


def install(app: Celery) -> None:
    """Make a Celery app observable; call it once where the app is made, in every process that imports the app.

    Task events are switched on where the configuration leaves them at Celery's default (`worker_send_task_events`
    and `task_send_sent_event`); an explicit choice, True or False, is never overridden. Calling it before or after
    the app is configured, or twice, makes no difference. It reads no configuration, opens no connection and starts
    no thread, and after its arguments are accepted nothing in it raises: what fails is logged and left out.

    Raises:
        TypeError: `app` is not a Celery app.
    """
    from celery import Celery

    from .monitor import event_settings
    from .monitor.guard import Guard

    if not isinstance(app, Celery):
        raise TypeError(f"celeryscope.install() takes your Celery app, not {type(app).__name__}: install(app)")
    # One guarded step for each probe, imported here and not above: `import celeryscope` must cost a worker nothing.
    with Guard("install: task events"):
        event_settings.connect(app)
