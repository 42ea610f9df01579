"""A world for tests of beat: Celery's own scheduler and the real probe under a clock that the test turns, and a ledger.

Events go over a wire that loses some; beat can be stopped, killed and started anew, the monitor restarted.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule
from celeryscope.monitor.beat import Probe
from celeryscope.monitor.beat_runs import ENTRY_HEADER, RUN_HEADER, read
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import BeatEvent
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.schedules import Ledger

START = 1_900_000_001.3


class SimApp(Celery):
    world: World

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.world.now, timezone.utc).astimezone(self.timezone)


class Result:
    def __init__(self, number: int) -> None:
        self.id = f"run-{number}"


class SimScheduler(Scheduler):
    world: World
    producer = None  # Celery's own would connect

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        return self.world.dispatch(self, entry)


class SimSender:
    """Stands in for the thread: what is put is sent when the world says so."""

    def __init__(self, poll: Any) -> None:
        self.poll = poll
        self.waiting: list[Any] = []
        self.dropped = 0

    def start(self) -> None: ...

    def close(self) -> None: ...

    def put(self, make: Any) -> None:
        if make is not None:
            self.waiting.append(make)

    def flush(self) -> list[tuple[str, dict[str, Any]]]:
        made = [make() for make in self.waiting]
        self.waiting.clear()
        return [*made, *self.poll()]


class Beat:
    """One beat process."""

    def __init__(self, world: World, host: str, stored: dict[str, tuple[datetime, int]] | None) -> None:
        self.world = world
        self.host = host
        app = SimApp(world.app, set_as_current=False)
        app.world = world
        app.conf.timezone = world.timezone
        app.conf.beat_schedule = copy.deepcopy(world.entries)
        app.conf.result_expires = None
        SimScheduler.world = world
        self.scheduler = SimScheduler(app)
        for name, (last, count) in (stored or {}).items():
            self.scheduler.schedule[name].last_run_at = last
            self.scheduler.schedule[name].total_run_count = count
        self.probe = Probe(self.scheduler, clock=world.clock, monotonic=world.clock, sender=SimSender)
        self.probe.hostname = f"{world.app}@{host}"
        self.probe.attach()
        self.wake = world.now
        self.paused_until = 0.0

    def stored(self) -> dict[str, tuple[datetime, int]]:
        return {name: (e.last_run_at, e.total_run_count) for name, e in self.scheduler.schedule.items()}

    def step(self) -> None:
        """Tick until there is nothing to be done now, as the service's loop does."""
        for _ in range(1_000):
            wait = self.scheduler.tick()
            if wait and wait > 0.0:
                self.wake = self.world.now + wait + self.world.random.uniform(0.0, self.world.jitter)
                return
            self.world.now += 0.0005  # Celery wakes 10 ms early and then spins
        raise AssertionError("beat never rests")


class World:
    def __init__(
        self, entries: dict[str, dict[str, Any]], *, loss: float = 0.0, seed: int = 0, timezone: str = "UTC",
        skew: float = 0.0, app: str = "proj", start: float = START, jitter: float = 0.02,
    ) -> None:  # fmt: skip
        self.app, self.entries, self.timezone = app, entries, timezone
        self.loss, self.skew, self.jitter = loss, skew, jitter
        self.random = random.Random(seed)
        self.now = self.start_time = start
        self.wire: list[tuple[str, dict[str, Any]]] = []
        """All that reached the monitor."""
        self.wire_times: list[float] = []
        self.beats: list[Beat] = []
        self.attempts: dict[str, list[float]] = defaultdict(list)
        self.failing = False
        self.failed = 0
        self.ledger = Ledger(METRICS, Caps())
        self.monitor_up = True
        self.workers = True
        """Whether a worker receives each run at once, and the monitor hears it say so."""
        self.tick_every = 1.0
        self._next_tick = start
        self._next_flush = start

    def clock(self) -> float:
        return self.now

    def monitor_now(self) -> float:
        return self.now + self.skew

    # --- beat -------------------------------------------------------------------------------------------------------

    def start(self, host: str = "h", stored: dict[str, tuple[datetime, int]] | None = None) -> Beat:
        beat = Beat(self, host, stored)
        self.beats.append(beat)
        return beat

    def kill(self, beat: Beat) -> dict[str, tuple[datetime, int]]:
        self.beats.remove(beat)
        return beat.stored()

    def stop(self, beat: Beat, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        beat.paused_until = self.now + seconds

    def dispatch(self, scheduler: Any, entry: Any) -> Result:
        self.attempts[entry.name].append(self.now)
        if self.failing:
            self.failed += 1
            raise ConnectionError("no broker")
        result = Result(sum(map(len, self.attempts.values())))
        if self.workers:
            self.work(next(beat for beat in self.beats if beat.scheduler is scheduler), entry, result.id)
        return result

    def work(self, beat: Beat, entry: Any, uuid: str) -> None:
        """Let the message have its headers, and a worker say that it got it, before beat itself says anything."""
        headers: dict[str, Any] = {"id": uuid}
        beat.probe._publishing(sender=entry.task, headers=headers)
        if self.monitor_up and RUN_HEADER in headers:
            fields = {"entry": headers[ENTRY_HEADER], "uuid": uuid, **read(headers[RUN_HEADER])}
            self.receive("beat-received", fields, "worker@h")

    # --- the wire ---------------------------------------------------------------------------------------------------

    def deliver(self, beat: Beat, *, loss: float | None = None) -> None:
        """Send what the beat has to say; each event is lost with the world's probability."""
        loss = self.loss if loss is None else loss
        for kind, fields in beat.probe.sender.flush():
            if self.random.random() < loss or not self.monitor_up:
                continue
            self.receive(kind, fields, beat.probe.hostname)

    def receive(self, kind: str, fields: dict[str, Any], hostname: str) -> None:
        self.wire.append((kind, fields))
        self.wire_times.append(self.now)
        wire = msgspec.json.encode({"type": kind, "hostname": hostname, "timestamp": self.now, **fields})
        event = msgspec.json.decode(wire, type=BeatEvent)
        self.ledger.handlers()[kind](event, self.monitor_now() + 0.001)

    def restart_monitor(self) -> None:
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.ledger.dump()))
        self.ledger = Ledger(METRICS, Caps())
        self.ledger.load(state)

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let the world go on."""
        end = self.now + seconds
        while self.now < end:
            moments = [self._next_tick, self._next_flush, end]
            moments += [max(beat.wake, beat.paused_until) for beat in self.beats]
            self.now = max(self.now, min(moments))
            for beat in self.beats:
                if max(beat.wake, beat.paused_until) <= self.now:
                    beat.step()
                    self.deliver(beat)
            if self.now >= self._next_flush:
                self._next_flush = self.now + 0.5
                for beat in self.beats:
                    if beat.paused_until <= self.now:
                        self.deliver(beat)
            if self.now >= self._next_tick:
                self._next_tick = self.now + self.tick_every
                if self.monitor_up:
                    self.ledger.tick(self.monitor_now())

    # --- what the metrics say ---------------------------------------------------------------------------------------

    def value(self, name: str, *labels: str) -> Any:
        """Return the sample of a metric; None where there is none."""
        for family in self.ledger.families():
            if family.metric.name == name:
                return dict(family.samples).get(labels)
        raise AssertionError(f"no metric {name}")

    def entry(self, name: str, entry: str) -> Any:
        return self.value(f"celery_beat_{name}", self.app, entry)


def interval(seconds: float, task: str = "proj.add") -> dict[str, Any]:
    return {"task": task, "schedule": timedelta(seconds=seconds)}


class Strange(schedule):
    """A schedule of a user's own."""
