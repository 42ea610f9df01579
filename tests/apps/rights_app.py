"""A user's app with celeryscope installed, with beat; run with few rights by tests/security/test_access_rights.py."""

from __future__ import annotations

import os

import celeryscope
from celery import Celery

app = Celery("rights_app", broker=os.environ["BROKER"], backend=os.environ.get("RESULTS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="default",
    beat_schedule={"tick": {"task": "rights_app.fine", "schedule": 1.0}},
)
celeryscope.install(app)


@app.task
def fine():
    return "fine"


@app.task
def fails():
    raise ValueError("no")
