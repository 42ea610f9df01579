"""A monitor that is killed has counted on after its last save: no counter of the next one goes backwards from there."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
from beat_world import World, interval
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import TaskEvent, WorkerEvent
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.schedules import Ledger

Counts = dict[tuple[str, tuple[str, ...]], float]


class Life:
    """A beat and a worker of which some events get lost, and the monitor that hears the others."""

    def __init__(self) -> None:
        self.world = World({"often": interval(2.0)})
        self.pipeline = self.new()
        self.pipeline.connection(True, self.world.now)
        self.beat = self.world.start()
        self.started = 0

    def new(self) -> Pipeline:
        self.world.ledger = Ledger(METRICS, Caps())
        return Pipeline(METRICS, ledger=self.world.ledger, clock=self.world.clock)

    def go_on(self, seconds: int) -> None:
        """Each second the worker starts three tasks, of which one is heard of; every other second it is heard."""
        for second in range(seconds):
            self.world.run(1.0)
            now = self.world.now
            self.started += 3
            common: dict[str, Any] = {"hostname": "w@h", "uuid": f"{now}", "pid": 1, "timestamp": now - 0.5}
            self.pipeline.feed([TaskEvent(type="task-received", name="t", **common)], now)
            self.pipeline.feed([TaskEvent(type="task-started", **common)], now)
            self.pipeline.feed([TaskEvent(type="task-succeeded", runtime=0.1, **common)], now)
            self.run_ended(now)
            if second % 2:
                self.heartbeat()
            self.pipeline.tick(now)

    def run_ended(self, now: float) -> None:
        for uuid in list(self.world.ledger.watched):
            self.world.ledger.run_event("succeeded", uuid, "proj.add", now, now)

    def heartbeat(self) -> None:
        said: dict[str, Any] = {"hostname": "w@h", "timestamp": self.world.now, "pid": 1}
        event = WorkerEvent(type="worker-heartbeat", processed=self.started, active=0, **said)
        self.pipeline.feed([event], self.world.now)

    def miss(self) -> None:
        """The connection breaks, beat hangs and misses slots, some of its reports are dropped, and publishes fail."""
        self.pipeline.connection(True, self.world.now)
        self.world.stop(self.beat, 7.0)
        self.go_on(10)
        self.world.failing = True
        self.go_on(3)
        self.world.failing = False
        self.beat.probe.sender.dropped += 2
        self.go_on(40)

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self.pipeline.dump(clean=False))

    def restart(self, saved: bytes) -> None:
        self.pipeline = self.new()
        self.pipeline.load(msgspec.msgpack.decode(saved), self.world.now, crashed=True)
        self.pipeline.connection(True, self.world.now)

    def counts(self) -> Counts:
        """Return what only ever grows: counters, and the buckets and sums of histograms."""
        found: Counts = {}
        for family in self.pipeline.families():
            for labels, value in family.samples:
                for place, number in enumerate(value if isinstance(value, list) else [value]):
                    if family.metric.kind in {"counter", "histogram"}:
                        found[f"{family.metric.name}[{place}]", labels] = number
        return found


def prometheus_adds(values: list[float]) -> float:
    """Return what `increase()` takes for the growth: a value below the one before it counts in full."""
    return sum(b - a if b >= a else b for a, b in itertools.pairwise(values))


def test_after_a_crash_counts_begin_at_0_or_are_no_less_than_they_were() -> None:
    life = Life()
    life.go_on(20)
    life.miss()
    at_save, at_save_started, saved = life.counts(), life.started, life.save()
    life.miss()
    scraped = life.counts()
    grew = {name.partition("[")[0] for (name, labels), n in scraped.items() if n > at_save.get((name, labels), 0) > 0}
    assert grew >= {
        "celery_worker_processed_total", "celery_worker_starts_missed_total", "celery_task_started_total",
        "celery_task_runtime_seconds", "celery_beat_dispatched_total", "celery_beat_dispatch_failed_total",
        "celery_beat_missed_total", "celery_beat_lateness_seconds", "celery_beat_interval_seconds",
        "celery_beat_end_to_end_seconds", "celeryscope_events_total", "celeryscope_probe_dropped_total",
    }  # fmt: skip

    life.restart(saved)
    assert set(life.counts().values()) == {0}
    assert not [key for key in life.counts() if key[0].startswith("celery_worker_")]

    pages, started = [scraped, life.counts()], life.started
    for _ in range(20):
        life.go_on(2)
        pages.append(life.counts())

    def added(name: str, *labels: str) -> float:
        return prometheus_adds([page[f"{name}[0]", labels] for page in pages if (f"{name}[0]", labels) in page])

    # A start is held for a second, for its `task-sent` may be late.
    assert 39 <= added("celery_task_started_total", "t", "unknown") <= 40
    assert added("celery_worker_processed_total", "w@h") == life.started - started == 120
    # What beats and workers count themselves goes on from the save: what came after it counts, and nothing before.
    entry, attempts = ("proj", "often"), len(life.world.attempts["often"])
    for name in ("dispatched", "dispatch_failed"):
        attempts -= at_save[f"celery_beat_{name}_total[0]", entry] + added(f"celery_beat_{name}_total", *entry)
    assert attempts == 0
    assert added("celery_beat_missed_total", *entry) == scraped["celery_beat_missed_total[0]", entry] / 2
    assert added("celeryscope_probe_dropped_total", "beat") == 2
    assert 80 <= added("celery_worker_starts_missed_total", "w@h") <= life.started - at_save_started - 39


def test_a_state_that_no_clean_stop_wrote_is_that_of_a_crash_whatever_the_lock_says() -> None:
    life = Life()
    life.go_on(20)
    saved = life.save()
    life.pipeline = life.new()
    life.pipeline.load(msgspec.msgpack.decode(saved), life.world.now)
    assert set(life.counts().values()) == {0}


def test_after_a_clean_stop_all_of_them_go_on() -> None:
    life = Life()
    life.go_on(20)
    life.miss()
    before = life.counts()
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(life.pipeline.dump(clean=True)))
    life.pipeline = life.new()
    life.pipeline.load(state, life.world.now)
    assert life.counts() == before
