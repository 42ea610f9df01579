"""Tasks for tests of queues and workers: some wait at a gate (the file $GATE), some say nothing of themselves.

With $WEDGED the worker stops consuming once it is ready, while its heartbeats go on: as seen after lost connections.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import celeryscope
from celery import Celery
from celery.signals import worker_ready

app = Celery("plant", broker=os.environ["BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 5},
)
if os.environ.get("EVENTS") == "off":
    app.conf.update(worker_send_task_events=False, task_send_sent_event=False)
celeryscope.install(app, report_failures=False)


@app.task(name="quick")
def quick() -> None:
    """Do nothing."""


@app.task(name="quiet", send_events=False)
def quiet() -> None:
    """Do nothing, and have no events sent of it."""


@app.task(name="gated", acks_late=True)
def gated() -> None:
    """Wait until the gate is open."""
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.05)


@worker_ready.connect
def _wedge(sender: object, **_: object) -> None:
    if os.environ.get("WEDGED"):
        sender.task_consumer.cancel()  # type: ignore[attr-defined]
