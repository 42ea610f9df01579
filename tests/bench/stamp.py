"""What the publish stamp costs a publish: send_task with and without it, to a transport that does nothing.

python tests/bench/stamp.py
"""

from __future__ import annotations

import statistics
import time

from celery import Celery
from celery.signals import before_task_publish
from celeryscope.monitor import stamp

ROUNDS, PUBLISHES = 40, 500


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


def main() -> None:
    for broker in ("redis://nowhere", "amqp://nowhere"):
        app = Celery("bench", broker=broker, set_as_current=False)
        stamp.connect(app)
        receivers, without, stamped = list(before_task_publish.receivers), [], []
        for _ in range(ROUNDS):  # in turns: the machine's speed changes more than what is measured
            before_task_publish.receivers = []
            without.append(round_of(app))
            before_task_publish.receivers = receivers[-1:]
            stamped.append(round_of(app))
        paid = statistics.median(b - a for a, b in zip(without, stamped, strict=True))
        print(f"{broker:16} {min(without):6.1f} µs without, {min(stamped):6.1f} with, median difference {paid:+.1f}")


if __name__ == "__main__":
    main()
