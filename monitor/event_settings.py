"""Switches Celery's task events on for an app, wherever its owner has not decided about them.

Runs inside the user's processes and needs Celery alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guard import guarded

if TYPE_CHECKING:
    from celery import Celery

EVENT_SETTINGS = (
    "worker_send_task_events",
    "task_send_sent_event",
    "CELERY_SEND_EVENTS",
    "CELERY_SEND_TASK_SENT_EVENT",
)
"""The two settings in their new and their old spelling, which Celery still reads.

Both are off by default, and without them nobody but the worker knows what a task is doing.
"""


def connect(app: Celery) -> None:
    """Turn Celery's default for both event settings from False to True; calling it again changes nothing.

    Works whether the configuration has been read already, is read later, or is read again. Only the default changes:
    a value that the user gives in any way (`Celery(...)`, `app.conf`, a configuration object or module,
    `add_defaults()`, `celery worker -E`), before or after, wins over it. Reads no configuration early.
    """
    # Not app.add_defaults(): in spite of its name, what it adds wins over the user's configuration module.
    app.on_after_configure.connect(_on_configured, weak=False, dispatch_uid="celeryscope.event_settings")
    if app.configured:  # type: ignore[attr-defined]  # celery-types does not know it
        _prefer_events(app.conf)


@guarded("switching task events on", None)
def _on_configured(source: Any, **_: Any) -> None:
    _prefer_events(source)


def _prefer_events(conf: Any) -> None:
    # The last of the settings' layers holds Celery's own defaults, a copy of them for each app, in the spelling that
    # the user's configuration has. Only that spelling may change: Celery 5.4 looks a setting up by its new name in
    # all layers first, so a new name added here would win over the user's old one.
    defaults = conf.maps[-1]
    for name in EVENT_SETTINGS:
        if name in defaults:
            defaults[name] = True
