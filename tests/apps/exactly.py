"""Tasks of every outcome that write down what they really do; `python -m exactly produce N POOL` sends N of them.

Each line of the file $TRUTH is one fact: `kind task queue`. The producer prints what only it can know.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import celeryscope
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.transport.redis import QoS

app = Celery("exactly", broker=os.environ["BROKER"])
app.conf.update(
    task_default_queue="default",
    task_routes={"exactly.mail*": {"queue": "email"}},
    task_ignore_result=True,
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    task_default_delivery_mode="transient",
)
celeryscope.install(app, report_failures=False)
if os.environ.get("RESTORE") == "no":
    # kombu 5.7 puts back what the worker has taken when its broker is gone, and now and then ends the worker by that
    # ("Unrecoverable error … no attribute 'hostname'").
    QoS.restore_at_shutdown = False


def note(kind: str, task: str, queue: str = "default") -> None:
    fd = os.open(os.environ["TRUTH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{kind} {task} {queue}\n".encode())
    os.close(fd)


@app.task
def ok() -> None:
    note("started", "exactly.ok")
    note("succeeded", "exactly.ok")


@app.task
def mail() -> None:
    note("started", "exactly.mail", "email")
    note("succeeded", "exactly.mail", "email")


@app.task
def fail() -> None:
    note("started", "exactly.fail")
    note("failed:ValueError", "exactly.fail")
    raise ValueError("no")


@app.task(bind=True, max_retries=5)
def recovers(self) -> None:  # type: ignore[no-untyped-def]
    note("started", "exactly.recovers")
    if self.request.retries < 2:
        note("retried:KeyError", "exactly.recovers")
        note("sent", "exactly.recovers")
        raise self.retry(exc=KeyError("again"), countdown=0.01)
    note("succeeded", "exactly.recovers")


@app.task(bind=True, max_retries=1)
def gives_up(self) -> None:  # type: ignore[no-untyped-def]
    note("started", "exactly.gives_up")
    if self.request.retries < 1:
        note("retried:OSError", "exactly.gives_up")
        note("sent", "exactly.gives_up")
    else:
        note("failed:OSError", "exactly.gives_up")
        note("exhausted", "exactly.gives_up")
    raise self.retry(exc=OSError("never"), countdown=0)


@app.task
def reject() -> None:
    note("started", "exactly.reject")
    note("rejected", "exactly.reject")
    raise Reject("no", requeue=False)


@app.task(acks_late=True)
def reject_late() -> None:
    note("started", "exactly.reject_late")
    note("rejected", "exactly.reject_late")
    raise Reject("no", requeue=False)


@app.task(bind=True, acks_late=True)
def requeue(self) -> None:  # type: ignore[no-untyped-def]
    note("started", "exactly.requeue")
    if not self.request.delivery_info.get("redelivered"):
        note("requeued", "exactly.requeue")
        raise Reject("again", requeue=True)
    note("succeeded", "exactly.requeue")


@app.task
def ignore() -> None:
    note("started", "exactly.ignore")
    note("silent", "exactly.ignore")
    raise Ignore


@app.task
def expires() -> None:
    note("started", "exactly.expires")


@app.task(soft_time_limit=1)
def soft() -> None:
    note("started", "exactly.soft")
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        note("failed:SoftTimeLimitExceeded", "exactly.soft")
        raise


@app.task(time_limit=1)
def hard() -> None:
    note("started", "exactly.hard")
    note("failed:TimeLimitExceeded", "exactly.hard")
    time.sleep(30)


@app.task
def killed() -> None:
    note("started", "exactly.killed")
    note("failed:WorkerLostError", "exactly.killed")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def endless() -> None:
    note("started", "exactly.endless")
    time.sleep(60)


EVERYWHERE = {
    ok: 60,
    mail: 15,
    fail: 8,
    recovers: 6,
    gives_up: 4,
    reject: 2,
    reject_late: 2,
    requeue: 2,
    ignore: 1,
}


def produce(n: int, pool: str) -> dict[str, int]:
    """Send about `n` tasks; return the facts that no task can write down."""
    rnd = random.Random(7)
    tasks, weights = list(EVERYWHERE), list(EVERYWHERE.values())
    facts: Counter[str] = Counter()

    def send(task, **options):  # type: ignore[no-untyped-def]
        queue = "email" if task is mail else "default"
        facts[f"sent {task.name} {queue}"] += 1
        return task.apply_async(**options)

    if pool == "prefork":
        for task in (soft, hard, killed, hard, killed, soft):
            send(task)
        facts["terminated exactly.endless default"] = 1
        doomed = send(endless)
        deadline = time.monotonic() + 60
        while not _is_running("exactly.endless") and time.monotonic() < deadline:
            time.sleep(0.05)
        app.control.revoke(doomed.id, terminate=True, signal="SIGKILL")
    past = datetime.now(timezone.utc) - timedelta(seconds=5)
    for i in range(n):
        send(rnd.choices(tasks, weights)[0], countdown=0.2 if i % 20 == 0 else None)
        if i % 100 == 0 and not os.environ["BROKER"].startswith("amqp"):  # RabbitMQ drops those itself
            send(expires, expires=past)
            facts["expired exactly.expires default"] += 1
    return facts


def _is_running(task: str) -> bool:
    return f"started {task} " in Path(os.environ["TRUTH"]).read_text()


def flood(n: int) -> dict[str, int]:
    """Send `n` tasks that do nothing."""
    for _ in range(n):
        ok.delay()
    return {"sent exactly.ok default": n}


if __name__ == "__main__":
    facts = flood(int(sys.argv[2])) if sys.argv[1] == "flood" else produce(int(sys.argv[2]), sys.argv[3])
    json.dump(facts, sys.stdout)
