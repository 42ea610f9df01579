"""The page as it is sent, whole, in both formats: two brokers, static labels, hostile names, odd numbers."""

from __future__ import annotations

import math

from celeryscope.exporters.prometheus import Exposition
from celeryscope.monitor.catalog import Metric
from celeryscope.monitor.facts import Family

# Of the test's own: the catalogue's texts may change without a change of the page's form.
COUNTER = Metric("celery_task_sent_total", "counter", 'Messages "sent".', ("task", "queue"))
GAUGE = Metric("celery_queue_oldest_seconds", "gauge", "Age\\of the oldest\nmessage.", ("queue",), "seconds")
PLAIN = Metric("celeryscope_connected", "gauge", "1 while connected.")
HISTOGRAM = Metric("celery_task_wait_seconds", "histogram", "Wait.", ("task", "queue"), "seconds", (0.05, 1.0, 3600.0))


class Given:
    def __init__(self, *families):
        self.current = families

    def families(self):
        return self.current


def exposition():
    east = Given(
        Family(COUNTER, [(("app.add", "default"), 3), (('evil"} 9\n# EOF', "a\\b"), 12_345_678), (("mörk 🐍", ""), 0)]),
        Family(GAUGE, [(("default",), 0.25), (("inf",), math.inf), (("nan",), math.nan), (("less",), -1.5e-9)]),
        Family(HISTOGRAM, [(("app.add", "default"), [1, 0, 2, 1, 4242.5])]),
        Family(PLAIN, [((), 1)]),
    )
    west = Given(Family(COUNTER, [(("app.add", "default"), 1)]), Family(PLAIN, []), Family(HISTOGRAM, []))
    return Exposition({"east": east, "west": west}, static_labels={"zone": "a"}, own=False)


def test_text(golden):
    golden("exposition.txt", exposition().render().decode())


def test_openmetrics(golden):
    golden("exposition.openmetrics.txt", exposition().render(openmetrics=True).decode())
