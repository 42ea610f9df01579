"""An app with every fault that `celeryscope doctor` knows how to find in an app."""

from __future__ import annotations

import os

from celery import Celery
from celery.schedules import crontab
from kombu import Queue

ON_WORKER = bool(os.environ.get("BAD_WORKER"))
"""The workers were deployed from another configuration than beat and the producers."""

app = Celery("bad", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    accept_content=["json", "pickle"],
    broker_transport_options={"visibility_timeout": 60},
    task_acks_late=True,
    task_default_priority=5,
    task_ignore_result=True,
    task_queues=[Queue("work"), Queue("forgotten")],
    task_default_queue="work",
    task_routes={"bad.mail": {"queue": "mial"}},
    worker_prefetch_multiplier=4,
    beat_schedule={
        "nightly": {"task": "bad.nightly", "schedule": crontab(hour="3")},
        "often": {"task": "bad.quick", "schedule": 30.0},
    },
)
if ON_WORKER:
    app.conf.timezone = "Asia/Tokyo"


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
