"""An app of thirty tasks that all fail, each in a way of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

import celeryscope
from celery import Celery

KINDS = 30

app = Celery("storm", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="storm",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=20,
)
celeryscope.install(app, environment="test", release="1.2.3")


def failing(kind: int) -> Callable[[int], None]:
    def fail(number: int) -> None:
        raise (ValueError, LookupError, ArithmeticError)[kind % 3](f"number {number} of kind {kind}")

    return fail


for n in range(KINDS):
    app.task(failing(n), name=f"storm.task{n}")
