"""An app for beats of every kind and for the worker that writes down what they sent; run by test_beat*.py.

`python beat_app.py` prepares django-celery-beat's database.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import celeryscope
import redis
from celery import Celery
from celery.schedules import crontab, solar

SCHEDULER = os.environ.get("SCHEDULER", "persistent")
BROKER = os.environ["BROKER"]
TRUTH = os.environ["TRUTH"]
NAME = os.environ.get("APP", SCHEDULER)

if SCHEDULER == "django":
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
        INSTALLED_APPS=["django_celery_beat"],
        USE_TZ=True,
        TIME_ZONE="UTC",
        SECRET_KEY="for tests",
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()

app = Celery(NAME, broker=BROKER)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    result_expires=None,
    task_default_queue="farm",
    task_ignore_result=True,
    redbeat_redis_url=TRUTH,
    redbeat_key_prefix=f"redbeat-{NAME}:",
    redbeat_lock_key=os.environ.get("LOCK"),
    redbeat_lock_timeout=8,
)
if "EVENTS" in os.environ:
    app.conf.worker_send_task_events = os.environ["EVENTS"] == "on"
if SCHEDULER == "redbeat":
    app.conf.beat_max_loop_interval = 1


def entry(name, schedule, **more):
    return {"task": "farm.tick", "schedule": schedule, "args": (f"{NAME}:{name}",), **more}


app.conf.beat_schedule = {
    "two": entry("two", 2.0, options={"headers": {"mine": "yes"}}),
    "cron": entry("cron", crontab()),
}
if SCHEDULER == "django" and "CLOCKED" in os.environ:
    from django_celery_beat.clockedschedule import clocked

    soon = datetime.fromtimestamp(float(os.environ["CLOCKED"]), timezone.utc)
    app.conf.beat_schedule["once"] = entry("once", clocked(soon), one_off=True)
    app.conf.beat_schedule["noon"] = entry("noon", solar("solar_noon", 50.0, float(os.environ["NOON"])))
celeryscope.install(app)

truth = redis.Redis.from_url(TRUTH)


@app.task(name="farm.tick", bind=True, ignore_result=True)
def tick(self, key):
    """Write down that this run took place, and when its message was sent."""
    headers = self.request.headers or {}
    line = [self.request.id, headers["celeryscope-sent-at"], headers["celeryscope-beat-entry"], headers.get("mine", "")]
    truth.rpush(f"truth:{key}", " ".join(map(str, line)))


if __name__ == "__main__":
    from django.core.management import call_command

    sys.exit(call_command("migrate", verbosity=0))
