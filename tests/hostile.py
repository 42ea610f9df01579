"""Producers that lie, on the event exchange beside an honest application whose series are told apart by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from celeryscope.exporters.prometheus import Exposition
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import Decoder
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.schedules import Ledger

START = 1_790_000_000.0
TASKS, WORKERS, QUEUES, APP, ENTRIES = (
    ("shop.pay", "shop.mail"),
    ("a@n1", "b@n2"),
    ("pay", "mail"),
    "shop",
    ("tick", "nightly"),
)
HONEST = {*TASKS, *WORKERS, *QUEUES, *ENTRIES, APP}
Event = dict[str, Any]


def event(kind: str, hostname: str, at: float, /, **fields: Any) -> Event:
    return {"hostname": hostname, "utcoffset": 0, "pid": 7, "clock": int(at * 10), **fields, "timestamp": START + at,
            "type": kind}  # fmt: skip


def honest(seconds: int = 240) -> Iterator[tuple[float, list[Event]]]:
    """An application's events by the second: two tasks, two workers, failures, and a beat."""
    yield 0.0, [event("worker-online", w, 0, processed=0, active=0, sw_ver="5.7.0", sw_sys="Linux") for w in WORKERS]
    beat = {"app": APP, "boot": "honest-boot", "leader": None}
    entries = [
        {"entry": "tick", "task": TASKS[0], "kind": "interval", "spec": "30", "every": 30.0, "next_due": START + 30},
        {"entry": "nightly", "task": TASKS[1], "kind": "crontab", "spec": "*/2 * * * *", "tz": "UTC",
         "next_due": START + 100},
    ]  # fmt: skip
    yield 0.5, [event("beat-online", "beat@n3", 0.5, entries=2, **beat),
                event("beat-schedule", "beat@n3", 0.6, listing=1, entries=entries, **beat)]  # fmt: skip
    sent = 0
    for second in range(1, seconds):
        events = _second(second)
        if second % 30 == 0:
            sent += 1
            told = {"dispatched": sent, "kind": "interval", "spec": "30", "every": 30.0, "task": TASKS[0]}
            events += [event("beat-dispatched", "beat@n3", second, entry="tick", due=START + second,
                             sent=START + second + 0.01, seq=sent, uuid=f"honest-{second}-0", **told,
                             **beat)]  # fmt: skip
        if second % 10 == 0:
            totals = {"tick": [sent, 0, START + 30 * sent]} if sent else {}
            events.append(event("beat-heartbeat", "beat@n3", second + 0.1, seq=second, last_tick=START + second,
                                totals=totals, asof=START + second, full=True, **beat))  # fmt: skip
        yield float(second), events


def _second(second: int) -> list[Event]:
    events = []
    for number, (task, worker, queue) in enumerate(zip(TASKS, WORKERS, QUEUES, strict=True)):
        uuid, at = f"honest-{second}-{number}", second + number / 10
        events += [event("task-sent", "web@n0", at, uuid=uuid, name=task, queue=queue, retries=0),
                   event("task-received", worker, at + 0.01, uuid=uuid, name=task, retries=0)]  # fmt: skip
        if second % 20 != 19:  # some wait
            events.append(event("task-started", worker, at + 0.02, uuid=uuid))
        if second % 20 < 17:  # and some go on
            end = {"exception": "ValueError('no')"} if second % 7 == 0 else {"runtime": 0.25, "result": "1"}
            events.append(
                event("task-failed" if second % 7 == 0 else "task-succeeded", worker, at + 0.3, uuid=uuid, **end)
            )
        if second % 2 == 0:
            started = second - (second + 1) // 20
            events.append(event("worker-heartbeat", worker, second + 0.9, freq=2.0, active=0, processed=started))
    return events


def payload(events: Any) -> bytes:
    """A message as kombu's Redis transport publishes it."""
    return enveloped(events if isinstance(events, bytes) else json.dumps(events).encode())


def enveloped(body: bytes) -> bytes:
    return (b'{"body": "' + base64.b64encode(body) + b'", "content-encoding": "utf-8", "content-type": '
            b'"application/json", "headers": {}, "properties": {"body_encoding": "base64"}}')  # fmt: skip


class Watched:
    """A monitor's inside, fed with messages: its clock is the stream's."""

    def __init__(self, **caps: int) -> None:
        self.now = START
        self.decoder = Decoder(boot="ours")
        self.caps = Caps(caps)
        ledger = Ledger(METRICS, self.caps)
        self.pipeline = Pipeline(METRICS, self.caps, ledger=ledger, clock=lambda: self.now)
        self.pipeline.connection(up=True, now=START)

    def hear(self, at: float, *messages: bytes) -> None:
        """Take messages at a time of the stream's, and let time pass up to then."""
        self.now = START + at
        self.pipeline.tick(self.now)
        for message in messages:
            self.pipeline.feed(self.decoder.redis(b"/0.celeryev/task.multi", message), self.now)

    def series(self) -> dict[tuple[str, tuple[str, ...]], Any]:
        """All series, histograms as tuples."""
        return {
            (family.metric.name, labels): tuple(value) if isinstance(value, list) else value
            for family in self.pipeline.families()
            for labels, value in family.samples
        }

    def honest_series(self) -> dict[tuple[str, tuple[str, ...]], Any]:
        """The series of which a task, worker, queue, app or entry of the honest application is told."""
        named = {"task", "worker", "entry", "app"}
        return {
            (name, labels): value
            for (name, labels), value in self.series().items()
            if any(key in named and label in HONEST for key, label in zip(METRICS[name].labels, labels, strict=True))
        }

    def page(self, *, openmetrics: bool = False) -> str:
        """The page as it is scraped."""
        return Exposition({"": self.pipeline}, own=False).render(openmetrics=openmetrics).decode()


def told(lies: Sequence[bytes] = (), *, every: int = 7, seconds: int = 240, **caps: int) -> Watched:
    """The honest application's events heard, a few of the lies before and after every few of its messages."""
    watched = Watched(**caps)
    left = list(lies)
    for number, (at, events) in enumerate(honest(seconds)):
        # Honest names are there first: who floods the labels before them is another test's.
        share = left[: max(1, len(lies) * every // seconds)] if number and number % every == 0 else []
        del left[: len(share)]
        watched.hear(at, *share, payload(events), *share[:1])
    watched.hear(seconds + 1.0, *left)
    watched.hear(seconds + 5.0)
    return watched
