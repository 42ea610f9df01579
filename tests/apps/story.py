"""One task that can end in every way, and a schedule, for the test that asks Prometheus every question of ours."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import celeryscope
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.schedules import crontab

app = Celery("story", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="default",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    beat_schedule={
        "often": {"task": "story.any", "schedule": timedelta(seconds=1), "args": ("ok",)},
        "failing": {"task": "story.scheduled", "schedule": timedelta(seconds=1)},
        "never": {"task": "story.any", "schedule": crontab(minute="0", hour="0", month_of_year="2", day_of_month="29")},
    },
)
celeryscope.install(app)


@app.task(name="story.any", bind=True, acks_late=True, max_retries=1)
def anything(self, end: str) -> None:  # type: ignore[no-untyped-def]
    """End as it is told."""
    if end == "fail":
        raise ValueError("as it was told")
    if end == "fail in a new way":
        raise LookupError("never before")
    if end == "give up" or (end == "retry" and not self.request.retries):
        raise self.retry(exc=ConnectionError("again"), countdown=0)
    if end == "reject":
        raise Reject("no", requeue=False)
    if end == "requeue" and not (self.request.delivery_info or {}).get("redelivered"):
        raise Reject("again", requeue=True)
    if end == "ignore":
        raise Ignore
    time.sleep({"slow": 3600.0, "nap": 0.2}.get(end, 0.01))


@app.task(name="story.scheduled")
def scheduled() -> None:
    """Fail, each time that beat sends it."""
    raise ValueError("the schedule's")


@app.task(name="story.first", bind=True, max_retries=1)
def first(self) -> None:  # type: ignore[no-untyped-def]
    """Retry once and give up."""
    raise self.retry(exc=ConnectionError("never"), countdown=0)


@app.task(name="story.quiet", send_events=False)
def quiet() -> None:
    """Send no events."""
