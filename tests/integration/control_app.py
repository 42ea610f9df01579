"""The app of the workers that test_flower_control.py controls."""

from __future__ import annotations

import os
import time
from typing import Any

import celeryscope
from celery import Celery
from celery.contrib.abortable import AbortableTask

app = Celery("controlled")
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=600,
    task_default_queue="plain",
    task_track_started=True,
    worker_pool_restarts=os.environ.get("POOL_RESTARTS") == "1",
    worker_hijack_root_logger=False,
)
celeryscope.install(app, report_failures=False)


@app.task(name="controlled.quick")
def quick() -> str:
    return "done"


@app.task(name="controlled.limited")
def limited() -> str:
    time.sleep(600)
    return "never"


@app.task(name="controlled.slow")
def slow() -> str:
    time.sleep(600)
    return "never"


@app.task(name="controlled.patient", bind=True, max_retries=3)
def patient(self: Any) -> None:
    raise self.retry(exc=ValueError("not yet"), countdown=600)


@app.task(name="controlled.abortable", base=AbortableTask, bind=True)
def abortable(self: Any) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if self.is_aborted():
            return "gave in"
        time.sleep(0.05)
    return "never asked"
