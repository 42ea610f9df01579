"""An app whose tasks hold secrets in every place that a task has; run by the worker of tests/security/test_canaries.py.

No secret stands in this file: a traceback quotes its lines.
"""

from __future__ import annotations

import json
import os

import celeryscope
from celery import Celery

app = Celery("canary_app", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
celeryscope.install(app, environment="test")

TEXTS = json.loads(os.environ["TEXTS"])
RUNBOOK = os.environ["RUNBOOK"]


class Told(Exception):
    """Says a secret where a class name is looked for."""

    def __repr__(self):
        return f"password={self.args[0]}"

    def __str__(self):
        return "told"


@app.task(celeryscope={"include_args": ["order", "password", "options"], "runbook": RUNBOOK})
def fails(shape, card, order=None, password=None, options=None):
    raise ValueError(TEXTS[shape])


@app.task
def chained(card):
    try:
        raise KeyError(TEXTS["password"])
    except KeyError as error:
        raise RuntimeError(TEXTS["url"]) from error


@app.task
def strange(card):
    raise Told(card)


@app.task
def fine(card):
    return card
