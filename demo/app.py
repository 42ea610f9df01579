"""The example app of the demo: a shop, configured as a user's own app would be."""

from __future__ import annotations

import celeryscope
from celery import Celery
from celery.schedules import crontab

# The broker and the result backend come from CELERY_BROKER_URL and CELERY_RESULT_BACKEND, which Celery itself reads.
app = Celery("shop", include=["celeryscope.demo.tasks"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=300,
    task_default_queue="default",
    task_time_limit=120,
    task_routes={"shop.email.*": {"queue": "email"}, "shop.reports.*": {"queue": "reports"}},
    timezone="UTC",
    worker_prefetch_multiplier=1,
    beat_schedule={
        "sync-stock": {"task": "shop.stock.sync", "schedule": 5.0},
        "warm-cache": {"task": "shop.cache.warm", "schedule": 10.0},
        "send-digest": {"task": "shop.email.send", "schedule": crontab(), "args": ("digest",)},
        "nightly-report": {"task": "shop.reports.daily", "schedule": crontab(hour="3", minute="30")},
    },
)

# Celery's current app is one thread's own: without a default, a web server's other threads would send elsewhere.
app.set_default()
celeryscope.install(app, environment="demo", release="1.4.2")
