"""An app with every fault that `celeryscope doctor` knows how to find in an app."""

from __future__ import annotations

import os
import time

import celeryscope
from celery import Celery
from celery.events.event import Event
from celery.schedules import crontab
from kombu import Queue

ON_WORKER = bool(os.environ.get("BAD_WORKER"))
"""The workers were deployed from another configuration than beat and the producers."""

app = Celery("bad", broker=os.environ["BROKER"], backend=os.environ.get("BACKEND"))
app.conf.update(
    accept_content=["json", "pickle"],
    broker_transport_options={"visibility_timeout": 60} if os.environ["BROKER"].startswith("redis") else {},
    task_acks_late=True,
    task_default_priority=5,
    task_default_queue="work",
    task_ignore_result=True,
    task_queues=[Queue("work"), Queue("forgotten")],
    task_routes={"bad.mail": {"queue": "mial"}},
    task_send_sent_event=False,
    worker_prefetch_multiplier=4,
    worker_send_task_events=False,
    beat_schedule={
        "nightly": {"task": "bad.nightly", "schedule": crontab(hour="3")},
        "often": {"task": "bad.quick", "schedule": 30.0},
    },
)
celeryscope.install(app, report_failures=False)
if ON_WORKER:
    app.conf.timezone = "Asia/Tokyo"
    # A machine without NTP: half a minute fast, as far as its events tell.
    Event.__defaults__ = (None, dict, lambda: time.time() + 30)


@app.task(name="bad.quick", autoretry_for=(ConnectionError,))
def quick() -> None:
    """Retry without backoff."""


@app.task(name="bad.flaky", autoretry_for=(ConnectionError,), retry_backoff=True, retry_jitter=False)
def flaky() -> None:
    """Retry in step with all others."""


@app.task(name="bad.long", time_limit=7200)
def long() -> None:
    """Take longer than the visibility timeout allows."""


@app.task(name="bad.mail")
def mail() -> None:
    """Go where nobody reads."""


if not ON_WORKER:

    @app.task(name="bad.nightly")
    def nightly() -> None:
        """Be unknown to the workers."""
