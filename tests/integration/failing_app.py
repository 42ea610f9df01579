"""An app whose tasks fail in every way there is; run by the workers of test_hooks.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import celeryscope
from celery import Celery, Task
from celery.backends.base import Backend
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request
from celeryscope.alerts import hooks
from celeryscope.alerts.publisher import QueuePublisher
from kombu.exceptions import OperationalError

app = Celery("failing_app", broker=os.environ["BROKER"], backend=os.environ.get("BACKEND", os.environ["BROKER"]))
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    result_expires=60,
    task_routes={"failing_app.*": {"queue": "work"}},
    task_create_missing_queues=True,
    accept_content=["json"],
)
celeryscope.install(
    app,
    environment="test",
    release="1.2.3",
    report_retries="REPORT_RETRIES" in os.environ,
    report_throws="REPORT_THROWS" in os.environ,
    report_failures="NOREPORT" not in os.environ,
)
if "OUTBOX" in os.environ:  # another broker for the outbox alone, so that it can be away while Celery's own is not
    away = Celery("away", broker=os.environ["OUTBOX"], set_as_current=False)
    hooks._connections[app].reporter.outbox._connect = lambda: QueuePublisher(away)


class CardError(Exception):
    """Expected now and then."""


class Stubborn(Exception):
    """Cannot be pickled."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = lambda: second


class Hostile(Exception):
    """Its str and repr raise."""

    def __str__(self):
        raise RuntimeError("no str for you")

    __repr__ = __str__


def first_run(path):
    first = not Path(path).exists()
    Path(path).touch()
    return first


@app.task
def fine():
    return "fine"


@app.task(celeryscope={"channel": "#payments", "severity": "critical", "include_args": ["order"], "colour": "red"})
def boom(order, card, password="hunter2"):
    raise CardError(f"card declined for order {order}, password={password}")


@app.task
def no_args():
    return None


@app.task
def unpicklable():
    raise Stubborn("cannot leave the child", 2)


@app.task
def unpicklable_result():
    return object()


@app.task
def hostile():
    raise Hostile


@app.task
def deep(n=0):
    return deep.run(n + 1)


@app.task
def huge():
    raise ValueError("x" * 3_000_000)


@app.task
def chained():
    try:
        {}["missing"]
    except KeyError as error:
        raise CardError("no such card") from error


@app.task(soft_time_limit=1)
def soft():
    time.sleep(30)


@app.task(time_limit=1)
def hard():
    time.sleep(30)


@app.task
def memory():
    raise MemoryError("all of it")


@app.task(autoretry_for=(CardError,), max_retries=2, default_retry_delay=0, retry_jitter=False)
def retried():
    raise CardError("still declined")


@app.task
def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def exits():
    raise SystemExit(3)


@app.task(acks_late=True, reject_on_worker_lost=True)
def lost_twice(path):
    """Is killed on the first run and succeeds on the second."""
    if first_run(path):
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def rejects():
    raise Reject("will not", requeue=False)


@app.task(acks_late=True)
def requeues(path):
    if first_run(path):
        raise Reject("later", requeue=True)


@app.task
def ignores():
    raise Ignore


@app.task(throws=(CardError,))
def expected():
    raise CardError("as declared")


class BrokenBackend(Backend):
    """A result backend that is down."""

    def remove_pending_result(self, result):
        """Celery's results ask for it when they are collected."""

    def store_result(self, *args, **kwargs):
        raise OperationalError("the result backend is down")

    mark_as_failure = store_result


@app.task
def backend_down():
    raise CardError("and the backend is down")


backend_down.backend = BrokenBackend(app=app)


class Silent(Task):
    """Overrides on_failure without calling super."""

    def on_failure(self, *args, **kwargs):
        return None


@app.task(base=Silent)
def silent():
    raise CardError("silent")


class Clumsy(Task):
    """Its own hook raises."""

    def on_failure(self, *args, **kwargs):
        raise RuntimeError("the hook is broken")


@app.task(base=Clumsy)
def clumsy():
    raise CardError("clumsy")


@app.task
def bad_errback(*args):
    raise RuntimeError("the errback is broken")


class OwnRequest(Request):
    """A user's own Request class must go on working."""

    def on_failure(self, exc_info, *args, **kwargs):
        print(f"OWN-REQUEST {self.name}", flush=True)
        return super().on_failure(exc_info, *args, **kwargs)


@app.task(Request=OwnRequest)
def own_request():
    raise CardError("own request")


@app.task(base=celeryscope.AlertingTask)
def alerting():
    raise CardError("alerting")


@app.task
def body(results):
    raise CardError("chord body")


@app.task
def sleeps(path):
    """Says in a file that it runs, and is still running when it is terminated."""
    Path(path).touch()
    time.sleep(60)


@app.task
def fence(number):
    raise CardError("the last one")
