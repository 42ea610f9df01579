"""Events that are lost on the way are reported to the task: starts seen + starts missed = starts."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import redis
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.sources import Source
from helpers import Process, RedisServer, eventually, running, worker_argv

APPS = Path(__file__).resolve().parent.parent / "apps"
NAME = "w@lost"


class Watched:
    """A monitor of its own on a broker, and what it says of one worker."""

    def __init__(self, url: str) -> None:
        self.pipeline = Pipeline(METRICS)
        self.source = Source(BrokerConfig.from_url(url), self.pipeline)
        self.client = redis.Redis.from_url(url)

    def total(self, name: str) -> float:
        return sum(
            float(value)  # type: ignore[arg-type]
            for metric, samples in self.pipeline.families()
            if metric.name == name
            for _, value in samples
        )

    @property
    def seen(self) -> float:
        return self.total("celery_task_started_total")

    @property
    def missed(self) -> float:
        return self.total("celery_worker_starts_missed_total")

    def cut(self) -> None:
        """Cut the monitor's subscription, as a broker does that thinks we are too slow; twice, so that it stays away.

        Not the worker's: when a worker loses its own broker, Celery forgets what its children have not accepted yet,
        and runs it all the same; nothing counts those starts.
        """
        for _ in range(2):
            before = self.source.reconnects
            ours = own_ports()
            for client in self.client.client_list("pubsub"):
                if int(client["addr"].rpartition(":")[2]) in ours:
                    self.client.client_kill_filter(addr=client["addr"])
            eventually(lambda before=before: self.source.reconnects > before and self.source.connected, 60)


def own_ports() -> set[int]:
    """Return the local TCP ports of this very process."""
    mine = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(str(fd.readlink()))
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in mine}


def started(folder: Path) -> int:
    return sum(line.startswith("started ") for line in (folder / "truth").read_text().splitlines())


def lose(broker: RedisServer, folder: Path, n: int, *, restart: bool) -> None:
    """Let a worker start `n` tasks, twice, and cut the monitor off in the middle of each half."""
    (folder / "truth").touch()
    env = {"BROKER": broker.url, "TRUTH": str(folder / "truth"), "PYTHONPATH": str(APPS)}
    argv = worker_argv("exactly", "-c", "2", "-n", NAME, "-Q", "default")
    watched = Watched(broker.url)
    watched.source.start()
    try:
        eventually(lambda: watched.source.connected, 30)
        worker = Process(argv, log=folder / "worker1.log", cwd=folder, env=env)
        with running(worker):
            worker.wait_for("ready.", 60)
            half(watched, folder, n, env)
            if restart:
                # What a worker starts after its goodbye nobody can know: it is idle when it is told to go.
                assert worker.stop(60) == 0
                worker = Process(argv, log=folder / "worker2.log", cwd=folder, env=env)
            with running(worker):
                half(watched, folder, n, env)
        assert watched.missed > 0
        assert watched.total("celery_worker_starts_untracked_total") == 0
        assert watched.total("celery_worker_starts_missed_down_total") == 0
    finally:
        watched.source.stop()
        watched.client.close()


def half(watched: Watched, folder: Path, n: int, env: dict[str, str]) -> None:
    before = started(folder)
    producer = _producer(n, folder, env)
    with running(producer):
        eventually(lambda: started(folder) > before + n / 3, 120)
        watched.cut()
        eventually(lambda: producer.popen.poll() == 0 and not watched.client.llen("default"), 240, 0.5)

    def accounted() -> bool:
        begun = started(folder)
        assert begun >= before + n
        assert watched.seen + watched.missed == begun, f"{watched.seen} + {watched.missed} of {begun}"
        return True

    eventually(accounted, 60)


def _producer(n: int, folder: Path, env: dict[str, str]) -> Process:
    return Process([sys.executable, "-m", "exactly", "flood", str(n)], log=folder / "producer.log", cwd=folder, env=env)


@pytest.mark.parametrize("restart", [False, True], ids=["same worker", "worker restarted"])
def test_a_cut_subscription_is_accounted_for_to_the_task(valkey: RedisServer, tmp_path: Path, restart: bool) -> None:
    lose(valkey, tmp_path, 400, restart=restart)


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("restart", [False, True], ids=["same worker", "worker restarted"])
def test_the_same_in_fifty_thousand_events(redis_server: RedisServer, tmp_path: Path, restart: bool) -> None:
    redis.Redis.from_url(redis_server.url).flushall()
    lose(redis_server, tmp_path, 6_500, restart=restart)
