"""What the publish stamp costs a publish: send_task with and without it, to a transport that does nothing.

python tests/bench/stamp.py

Promised: under 20 µs.
"""

from __future__ import annotations

import statistics
import time

from celery import Celery
from celery.signals import before_task_publish
from celeryscope.monitor import stamp

ROUNDS, PUBLISHES, PROMISE = 40, 500, 20.0


class Producer:
    """A producer that drops everything: what remains is Celery's own work."""

    connection = None

    def publish(self, body, **kwargs):
        pass


def round_of(app: Celery) -> float:
    """Microseconds a publish."""
    producer = Producer()
    start = time.process_time()
    for _ in range(PUBLISHES):
        message = app.amqp.create_task_message("id", "some.task", (1, 2), {"a": 1})
        app.amqp.send_task_message(producer, "some.task", message, queue="celery")
    return (time.process_time() - start) / PUBLISHES * 1e6


def paid():
    """For each kind of broker its URL, the least µs a publish without and with the stamp, and the median difference."""
    for broker in ("redis://nowhere", "amqp://nowhere"):
        app = Celery("bench", broker=broker, set_as_current=False)
        stamp.connect(app)
        receivers, without, stamped = list(before_task_publish.receivers), [], []
        for _ in range(ROUNDS):  # in turns: the machine's speed changes more than what is measured
            before_task_publish.receivers = []
            without.append(round_of(app))
            before_task_publish.receivers = receivers[-1:]
            stamped.append(round_of(app))
        difference = statistics.median(b - a for a, b in zip(without, stamped, strict=True))
        yield broker, min(without), min(stamped), difference


def main() -> int:
    kept = True
    for broker, without, stamped, difference in paid():
        print(f"{broker:16} {without:6.1f} µs without, {stamped:6.1f} with, median difference {difference:+.1f}")
        kept = kept and difference < PROMISE
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
