"""Tasks that succeed or fail and write down which; beat sends some as well. For tests that restart everything.

Each line of the file $TRUTH is one fact: `started` or `failed`, and the task.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import celeryscope
from celery import Celery

KINDS = 5

app = Celery("rolling", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="rolling",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    beat_schedule={
        "well": {"task": "rolling.well", "schedule": 0.5},
        "ill": {"task": "rolling.ill", "schedule": 1.0},
    },
)
celeryscope.install(app, environment="test")


def note(*words: str) -> None:
    fd = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(words) + "\n").encode())
    os.close(fd)


def succeeding(name: str) -> Callable[[], None]:
    def succeed() -> None:
        note("started", name)

    return succeed


def failing(name: str) -> Callable[[], None]:
    def fail() -> None:
        note("started", name)
        note("failed", name)
        raise ValueError(f"{name} cannot")

    return fail


for task in ("rolling.ok", "rolling.well"):
    app.task(succeeding(task), name=task)
for task in ("rolling.ill", *(f"rolling.fail{kind}" for kind in range(KINDS))):
    app.task(failing(task), name=task)
