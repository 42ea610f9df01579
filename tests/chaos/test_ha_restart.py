"""Everything but the broker is restarted, one after the other, under load: no failure lost, nothing missed unsaid."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from alerting import PostgresServer, alerter_process
from celery import Celery
from celeryscope.alerts import queries
from celeryscope.alerts.store import Database
from celeryscope.demo.inbox import Inbox
from celeryscope.exporters.reading import Page
from chaos_tools import MonitorProcess
from helpers import Process, RedisServer, eventually, system_command, worker_argv
from ordeal import empty

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

APPS = Path(__file__).parents[1] / "apps"
SLOW = 90
SENT = ("rolling.ok", *(f"rolling.fail{kind}" for kind in range(5)))
BEAT = ("rolling.well", "rolling.ill")


class Plant:
    """A broker that stays; workers, a beat, monitors, alerters and their store; and a producer that never rests."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.truth = folder / "truth"
        self.truth.touch()
        for name in ("broker", "store"):
            (folder / name).mkdir()
        self.server = RedisServer(folder / "broker", binary=system_command("redis-server"))
        stack.callback(self.server.stop)
        self.store = PostgresServer(folder / "store")
        stack.callback(self.store.stop)
        self.inbox = stack.enter_context(Inbox(["general"]).serving())
        self.env = {"BROKER": self.server.url, "TRUTH": str(self.truth), "PYTHONPATH": str(APPS)}
        self.lives = 0
        self.makers: dict[str, Callable[[], Process]] = {}
        for number in (1, 2):
            self.makers[f"monitor{number}"] = lambda number=number: self._monitor(number)
            self.makers[f"alerter{number}"] = lambda number=number: self._alerter(number)
            self.makers[f"worker{number}"] = lambda number=number: self._worker(number)
        self.makers["beat"] = self._beat
        self.parts: dict[str, Process] = {}

    def start(self, name: str) -> None:
        self.lives += 1
        process = self.parts[name] = self.makers[name]()
        self.stack.callback(process.stop)

    def restart(self, name: str) -> None:
        """End it as an orchestrator does, and start it again with what it left on disk."""
        assert self.parts[name].stop(30) == 0, self.parts[name].output[-2_000:]
        self.start(name)

    def monitors(self) -> list[MonitorProcess]:
        return [part for part in self.parts.values() if isinstance(part, MonitorProcess)]

    def _monitor(self, number: int) -> Process:
        options = ("--state-dir", self.folder / f"monitor{number}", "--sample-interval", "1")
        monitor = MonitorProcess(self.folder, self.server.url, *options, name=f"monitor{number}-{self.lives}")
        eventually(monitor.ready, SLOW)
        return monitor

    def _alerter(self, number: int) -> Process:
        folder = self.folder / f"alerter{number}"
        folder.mkdir(exist_ok=True)
        name = f"alerter{number}-{self.lives}"
        return alerter_process(folder, self.server.url, self.inbox, "--store", self.store.url, name=name)

    def _worker(self, number: int) -> Process:
        argv = worker_argv("rolling", "-P", "threads", "-c", "2", "-n", f"worker{number}@h")
        worker = self._of_celery(f"worker{number}", argv)
        worker.wait_for("ready.", SLOW)
        return worker

    def _beat(self) -> Process:
        schedule = ("--schedule", str(self.folder / "schedule"), "--pidfile", "")
        return self._of_celery("beat", [sys.executable, "-m", "celery", "-A", "rolling", "beat", *schedule])

    def _of_celery(self, name: str, argv: list[str]) -> Process:
        return Process(argv, log=self.folder / f"{name}-{self.lives}.log", cwd=self.folder, env=self.env)

    def happened(self, what: str) -> Counter[str]:
        """How often tasks, by their names, have started or failed, as they themselves wrote it down."""
        lines = map(str.split, self.truth.read_text().splitlines())
        return Counter(task for kind, task in lines if kind == what)

    def stored(self) -> Counter[str]:
        """How many failures the incident store counts, by task."""
        found: Counter[str] = Counter()
        for incident in queries.incidents(Database(self.store.url, time.time), limit=1_000):
            found[incident.task] += incident.count
        return found

    def idle(self) -> bool:
        with redis.Redis.from_url(self.server.url) as client:
            return client.llen("rolling") == 0 and client.hlen("unacked") == 0


@contextmanager
def loaded(url: str) -> Iterator[None]:
    """About a hundred tasks a second, half of them to fail."""
    done = threading.Event()

    def produce() -> None:
        with Celery("producer", broker=url, set_as_current=False) as app, app.connection_for_write() as connection:
            app.conf.task_send_sent_event = True
            while not done.wait(0.1):
                for name in (*SENT, *SENT[:1] * 4):
                    app.send_task(name, queue="rolling", connection=connection)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        yield
    finally:
        done.set()
        producer.join()


@pytest.fixture(name="plant")
def _plant(tmp_path: Path) -> Iterator[Plant]:
    with ExitStack() as stack:
        plant = Plant(tmp_path, stack)
        for name in plant.makers:
            plant.start(name)
        yield plant


def taken(alerter: Process) -> float:
    """How many failures this alerter has taken."""
    url = alerter.output.split("serves ", 1)[1].split()[0]
    return Page(httpx.get(url, trust_env=False).text).total("celeryscope_alerter_failures_total")


def more(plant: Plant, count: int = 60) -> None:
    """Let the tasks go on for a while."""
    goal = plant.happened("started").total() + count
    eventually(lambda: plant.happened("started").total() >= goal, SLOW, 0.1)


def test_everything_is_restarted_and_everything_is_accounted_for(plant: Plant) -> None:
    """Each failure is in the store once; each monitor says of every start that it saw it or missed it."""
    with loaded(plant.server.url):
        more(plant)
        eventually(
            lambda: all(m.page.by("worker", name="celery_worker_processed_total") for m in plant.monitors()), SLOW
        )
        eventually(lambda: all(taken(plant.parts[f"alerter{n}"]) > 0 for n in (1, 2)), SLOW, 0.2)
        for name in ("worker1", "worker2", "beat", "monitor1", "monitor2", "alerter1", "alerter2"):
            plant.restart(name)
            more(plant)
    assert plant.parts["beat"].stop() == 0
    eventually(plant.idle, SLOW)
    eventually(lambda: plant.stored() == plant.happened("failed"), SLOW, 0.5)
    eventually(lambda: empty(plant.server.url), SLOW, 0.5)
    assert plant.stored() == plant.happened("failed")
    really = plant.happened("started")
    for monitor in plant.monitors():
        eventually(lambda monitor=monitor: accounted(monitor, really), SLOW, 0.5)
    failed, missed = (
        plant.happened("failed").total(),
        [m.total("celery_worker_starts_missed_total") for m in plant.monitors()],
    )
    print(f"{really.total():,} tasks, {failed:,} failed; the monitors missed {missed} starts while they were away")
    assert min(missed) > 0


def accounted(monitor: MonitorProcess, really: Counter[str]) -> bool:
    """Hold starts seen and starts missed against what was started."""
    page = monitor.page
    seen, missed = page.total("celery_task_started_total"), page.total("celery_worker_starts_missed_total")
    assert seen + missed == really.total(), f"{seen} seen + {missed} missed of {really.total()}"
    assert page.total("celery_worker_starts_missed_down_total") == missed
    untracked = page.by("worker", name="celery_worker_starts_untracked_total")
    assert not any(untracked.values()), f"{untracked} untracked beside {seen} seen and {missed} missed"
    by_task = page.by("task", name="celery_task_started_total")
    assert all(by_task.get(task, 0) <= count for task, count in really.items())
    assert page.total("celery_beat_dispatched_total") == sum(really[task] for task in BEAT)
    assert page.total("celery_tasks_running") == page.total("celery_tasks_orphaned") == 0
    return True
