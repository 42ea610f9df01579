"""Real beats on a real broker, a worker that writes the truth down, and ledgers that hear of them as a monitor does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import redis
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import BeatEvent, Event, TaskEvent
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.schedules import Ledger
from celeryscope.monitor.sources import Source
from helpers import Process, RedisServer, eventually

HERE = Path(__file__).resolve().parent / "integration"
SCHEDULERS = {
    "persistent": [],
    "redbeat": ["-S", "redbeat.RedBeatScheduler"],
    "django": ["-S", "django_celery_beat.schedulers:DatabaseScheduler"],
}


class Ear:
    """One monitor's ledger, hard of hearing if asked to be."""

    def __init__(self, loss: float = 0.0) -> None:
        self.ledger = Ledger(METRICS, Caps())
        self.loss = loss
        self.deaf_to: set[int] = set()
        """Beats, by their pids, of which nothing is heard; while there are any, no word of a worker is lost."""
        self.down = False
        self.restart = False
        self._random = random.Random(7)

    def feed(self, event: Any, now: float) -> None:
        if self.down:
            return
        if isinstance(event, BeatEvent) and not self._lost(event):
            self.ledger.handlers()[event.type](event, now)
        elif isinstance(event, TaskEvent) and (event.uuid in self.ledger.watched or event.name in self.ledger.tasks):
            kind: Any = event.type.removeprefix("task-")
            if kind in self.ledger.kinds:
                self.ledger.run_event(kind, event.uuid, event.name or "", event.timestamp, now)

    def _lost(self, event: BeatEvent) -> bool:
        if self.deaf_to and (event.pid in self.deaf_to or event.type == "beat-received"):
            return event.type != "beat-received"
        return self._random.random() < self.loss

    def tick(self, now: float) -> None:
        if self.restart:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.ledger.dump()))
            self.ledger = Ledger(METRICS, Caps())
            self.ledger.load(state)
            self.restart = False
        if not self.down:
            self.ledger.tick(now)


class Farm:
    """Starts beats and workers, and feeds the ears.

    What the tasks write down is kept in `server`, which is the broker too unless another one's URL is given. `python`
    runs beats and workers.
    """

    def __init__(
        self, server: RedisServer, folder: Path, database: int, *, broker: str = "", python: str = sys.executable
    ) -> None:
        truth = server.url.replace("/0", f"/{database}")
        self.broker = broker or truth
        self.folder = folder
        self.python = python
        self.client = redis.Redis.from_url(truth, decode_responses=True)
        self.client.flushdb()
        self.env = {"BROKER": self.broker, "TRUTH": truth, "PYTHONPATH": str(HERE)}
        self.ears: dict[str, Ear] = {"exact": Ear()}
        self.seen: list[Any] = []
        self.processes: list[Process] = []
        self._lock = threading.Lock()
        self._source = Source(BrokerConfig.from_url(self.broker), self)
        self._source.start()
        eventually(lambda: self._source.connected)

    # --- what the source feeds --------------------------------------------------------------------------------------

    def feed(self, events: list[Event], now: float) -> None:
        with self._lock:
            for event in events:
                if isinstance(event, BeatEvent):
                    self.seen.append(event)
                for ear in self.ears.values():
                    ear.feed(event, now)

    def tick(self, now: float) -> None:
        with self._lock:
            for ear in self.ears.values():
                ear.tick(now)

    def connection(self, up: bool, now: float) -> None:
        pass

    # --- what goes on -----------------------------------------------------------------------------------------------

    def process(self, name: str, argv: list[str], **env: str) -> Process:
        process = Process(argv, log=self.folder / f"{name}.log", cwd=self.folder, env={**self.env, **env})
        self.processes.append(process)
        return process

    def worker(self, *options: str, **env: str) -> Process:
        # The first one counts for gevent's patches, the last one for the pool.
        pool = [] if "-P" in options else ["-P", "solo"]
        argv = [self.python, "-m", "celery", "-A", "beat_app", "worker", *pool, "-l", "INFO", *options]
        name = env.get("APP", "worker")
        return self.process(f"worker-{name}", argv, **{"APP": "worker", **env})

    def beat(self, app: str, scheduler: str, *, copy: str = "", **env: str) -> Process:
        argv = [self.python, "-m", "celery", "-A", "beat_app", "beat", "-l", "INFO", *SCHEDULERS[scheduler]]
        options = ["-s", str(self.folder / f"{app}{copy}-schedule"), "--pidfile", ""]
        return self.process(f"beat-{app}{copy}", [*argv, *options], APP=app, SCHEDULER=scheduler, **env)

    def locked(self, look: Callable[[], Any]) -> Any:
        with self._lock:
            return look()

    def value(self, name: str, *labels: str, ear: str = "exact") -> Any:
        """Return one sample of one ear's ledger; None where there is none."""

        def look() -> Any:
            families = {f.metric.name: f for f in self.ears[ear].ledger.families()}
            return dict(families[f"celery_{name}"].samples).get(labels)

        return self.locked(look)

    def ended(self, app: str, entry: str = "two") -> float:
        """Return how many runs were followed to their end, by the ledger that hears all.

        On a busy machine the first dispatch may be heard before the schedule; then it is not known when it was due, and
        neither its lateness nor its end is measured.
        """

        def look() -> float:
            chain = self.ears["exact"].ledger.apps[app].chains[entry]
            unmeasured = chain.dispatched - sum(chain.lateness[:-1])
            assert unmeasured in {0, 1}, (app, chain.dispatched, chain.lateness)
            return sum(chain.end_to_end[:-1]) + unmeasured

        return self.locked(look) if self.value("beat_dispatched_total", app, entry) else 0

    def truth(self, app: str, entry: str) -> list[float]:
        """Return when the messages were sent whose tasks ran, in order; each must say which entry it is."""
        lines = [line.split(" ") for line in self.client.lrange(f"truth:{app}:{entry}", 0, -1)]
        assert all(line[2] == entry for line in lines)
        return sorted(float(line[1]) for line in lines)

    def after_a_dispatch(self, app: str, wait: float) -> None:
        """Wait until `wait` seconds after some dispatch: slots are counted without a doubt where none is near."""
        before = len(self.truth(app, "two"))
        eventually(lambda: len(self.truth(app, "two")) > before, 60, 0.02)
        sent = self.truth(app, "two")[-1]
        eventually(lambda: time.time() >= sent + wait, 30, 0.01)

    def freeze(self, beats: Mapping[str, Process], seconds: float) -> None:
        """SIGSTOP each of them right after a dispatch, and SIGCONT it that much later."""
        until = {}
        for app, beat in beats.items():
            self.after_a_dispatch(app, 0.3)
            beat.send(signal.SIGSTOP)
            until[app] = time.time() + seconds
        for app, beat in beats.items():
            eventually(lambda app=app: time.time() >= until[app], seconds + 30, 0.02)
            beat.send(signal.SIGCONT)

    def close(self) -> None:
        for process in self.processes:
            process.kill_group()
            process.popen.wait(10)
        self._source.stop()
        eventually(lambda: not any(thread.is_alive() for thread in self._source._threads))
        self.client.close()


def missed(sent: list[float], every: float = 2.0) -> range:
    """Return how many slots of an interval were let pass between these dispatches.

    More than one number only where a dispatch came within 0.1 s of a slot: its task wrote down when the message was
    made, which on a busy machine is that much after beat decided to send it.
    """
    gaps = [after - before for before, after in pairwise(sent)]
    least, most = (sum(max(0, int((gap + slack) // every) - 1) for gap in gaps) for slack in (-0.1, 0.1))
    return range(least, most + 1)


def run_script(script: str, python: str = sys.executable, **env: str) -> None:
    """Run a script of the integration tests to its end."""
    subprocess.run([python, str(HERE / script)], check=True, env={**os.environ, **env}, timeout=60)
