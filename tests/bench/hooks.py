"""What the failure hook costs a worker's main process: Celery's own `on_failure` and `on_success` with it and without.

python tests/bench/hooks.py

Promised: under 1 ms a failing task, and nothing that can be measured for one that succeeds. We hold ourselves to 100 µs
where failures are of 30 kinds. The outbox's thread is counted, too: process time is everybody's.
"""

from __future__ import annotations

import json
import statistics
import time
from types import SimpleNamespace

from celery import Celery
from celery.worker.request import Request, create_request_cls
from celeryscope.alerts import hooks

ROUNDS, TASKS = 30, 500
PROMISE, PROMISE_EACH_ANOTHER, NOTHING = 100.0, 1_000.0, 1.0

FRAMES = "".join(
    f'  File "/srv/app/shop/level{n}.py", line {n}, in step_{n}\n    return step_{n + 1}(order, card)\n'
    for n in range(12)
)


class Sink:
    """A publisher that drops everything."""

    def publish(self, body, message_id):
        return 0

    def close(self):
        pass


class Message(SimpleNamespace):
    """As much of a kombu message as a request reads."""


def request_of(kind, app, task):
    headers = {"id": "123e4567-e89b-12d3-a456-426614174000", "task": task.name, "retries": 0}
    message = Message(
        headers=headers,
        body=json.dumps([[17], {}, {}]),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={"exchange": "", "routing_key": "work"},
        properties={},
        payload=[[17], {}, {}],
    )
    return kind(message, app=app, task=task, hostname="w@h")


def failure_of(number, kinds):
    place = f'  File "/srv/app/shop/kind{number % kinds}.py", line 1, in charge\n    raise CardError\n'
    text = f"Traceback (most recent call last):\n{FRAMES}{place}ValueError: card of order {number} declined\n"
    return SimpleNamespace(exception=ValueError(number), traceback=text, type=ValueError)


def round_of(kind, app, task, call, kinds):
    """Microseconds a task, of the whole process."""
    work = [(request_of(kind, app, task), failure_of(number, kinds)) for number in range(TASKS)]
    start = time.process_time()
    for request, info in work:
        call(request, info)
    hooks.connect(app).outbox.flush(60)
    return (time.process_time() - start) / TASKS * 1e6


def fails(request, info):
    request.on_failure(info, return_ok=True)


def succeeds(request, info):
    request.on_success((0, "result", 0.1))


def fail_in_hooks(url, failures, kinds):
    """Call the hooks that a worker calls for a failed task; give the number of each failure."""
    app = Celery("hooked", broker=url, set_as_current=False)

    @app.task(shared=False, name="storm.hooked")
    def hooked(order):
        pass

    reporter = hooks.connect(app)
    task = app.tasks["storm.hooked"]
    pool = SimpleNamespace(apply_async=None)
    kind = create_request_cls(hooks.reporting(Request), task, pool, "w@h", None, app=app)
    for number in range(failures):
        request_of(kind, app, task).on_failure(failure_of(number, kinds), return_ok=True)
        yield number
    reporter.outbox.flush(60)
    app.close()


def paid():
    """For each case its title, the least µs a task without and with the hook, and the median difference."""
    app = Celery("bench", broker="memory://", set_as_current=False)
    reporter = hooks.connect(app)
    reporter.outbox._connect = Sink

    @app.task(shared=False, name="shop.charge")
    def charge(order):
        pass

    task = app.tasks["shop.charge"]
    pool = SimpleNamespace(apply_async=None)
    plain, hooked = (
        create_request_cls(kind, task, pool, "w@h", None, app=app) for kind in (Request, hooks.reporting(Request))
    )
    for title, call, kinds in (
        ("succeeds", succeeds, 1),
        ("fails, one kind", fails, 1),
        ("fails, 30 kinds", fails, 30),
        ("fails, each another kind", fails, TASKS),
    ):
        without, with_hook = [], []
        for _ in range(ROUNDS):  # in turns: the machine's speed changes more than what is measured
            without.append(round_of(plain, app, task, call, kinds))
            reporter.outbox._full.clear()  # so that every round pays for full samples
            with_hook.append(round_of(hooked, app, task, call, kinds))
        difference = statistics.median(b - a for a, b in zip(without, with_hook, strict=True))
        yield title, min(without), min(with_hook), difference


def main() -> int:
    differences = {}
    for title, without, with_hook, difference in paid():
        print(f"{title:26} {without:6.1f} µs without, {with_hook:6.1f} with, median difference {difference:+.1f}")
        differences[title] = difference
    kept = differences["succeeds"] < NOTHING and differences["fails, 30 kinds"] < PROMISE
    return 0 if kept and differences["fails, each another kind"] < PROMISE_EACH_ANOTHER else 1


if __name__ == "__main__":
    raise SystemExit(main())
