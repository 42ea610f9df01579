"""Switches Celery's task events on for an app, wherever its owner has not decided about them.

Runs inside the user's processes and needs Celery alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guard import guarded

if TYPE_CHECKING:
    from celery import Celery

EVENT_SETTINGS = ("worker_send_task_events", "task_send_sent_event")
"""Both are off by default, and without them nobody but the worker knows what a task is doing."""


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
    # The last of the settings' layers holds Celery's own defaults, a copy of them per app (detect_settings() in
    # celery/app/utils.py, the same in 5.4 and 5.7). Every layer is searched for the new and the old name of a setting
    # before the next one is, so the new name here loses to either spelling in the user's layers.
    conf.maps[-1].update(dict.fromkeys(EVENT_SETTINGS, True))
