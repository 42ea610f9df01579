"""Short stories told in events: a pipeline of its own, a clock that the test turns, and the numbers to look at."""

from __future__ import annotations

from typing import Any

from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import TaskEvent, WorkerEvent
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline

START = 1_800_000_000.0


class Story:
    """Feeds events by short calls: `story.task("received", "a", host="w1", name="t")`."""

    def __init__(self, **options: Any) -> None:
        caps = options.pop("caps", None)
        self.pipeline = Pipeline(METRICS, Caps(caps), clock=lambda: self.now, **options)
        self.pipeline.connected = True
        self.now = START
        self.clock = 0

    @property
    def table(self) -> Any:
        return self.pipeline.tasks

    def task(self, kind: str, uuid: str = "id", host: str = "w1", **fields: Any) -> TaskEvent:
        """Send one task event, a millisecond after the last one; `at` shifts its timestamp from now."""
        self.now += 0.001
        self.clock += 1
        at = fields.pop("at", 0.0)
        fields.setdefault("clock", self.clock)
        fields.setdefault("pid", 1)
        event = TaskEvent(type=f"task-{kind}", hostname=host, timestamp=self.now + at, uuid=uuid, **fields)
        self.feed(event)
        return event

    def run(
        self,
        uuid: str = "id",
        host: str = "w1",
        *,
        name: str = "t",
        queue: str = "q",
        end: str = "succeeded",
        **fields: Any,
    ) -> None:
        """Send the usual four events of a task."""
        self.task("sent", uuid, "producer", name=name, queue=queue, retries=0)
        self.task("received", uuid, host, name=name, retries=0)
        self.task("started", uuid, host)
        self.task(end, uuid, host, **fields)

    def worker(self, kind: str = "heartbeat", host: str = "w1", **fields: Any) -> None:
        self.clock += 1
        fields.setdefault("clock", self.clock)
        fields.setdefault("pid", 1)
        skew = fields.pop("skew", 0.0)
        self.feed(WorkerEvent(type=f"worker-{kind}", hostname=host, timestamp=self.now + skew, **fields))

    def feed(self, *events: Any) -> None:
        self.pipeline.feed(list(events), self.now)

    def wait(self, seconds: float, *, connected: bool = True) -> None:
        """Let time pass in steps of half a second at most, as the tick thread would."""
        self.pipeline.connected = connected
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + max(0.5, seconds / 200))
            self.pipeline.tick(self.now)

    def numbers(self, *wanted: str) -> dict[str, Any]:
        """Return all non-zero samples as `name{label,label}`: value; histograms as their count."""
        found: dict[str, Any] = {}
        for metric, samples in self.pipeline.families():
            name = metric.name.removeprefix("celery_").removeprefix("task_").removesuffix("_total")
            for labels, value in samples:
                number = sum(value[:-1]) if isinstance(value, list) else value
                if number and (not wanted or name in wanted):
                    found[f"{name}{{{','.join(labels)}}}"] = number
        return found

    def number(self, name: str, *labels: str) -> Any:
        """Return one sample by its full name, None where it does not exist."""
        for metric, samples in self.pipeline.families():
            if metric.name == name:
                for values, value in samples:
                    if values == labels:
                        return sum(value[:-1]) if isinstance(value, list) else value
        return None
