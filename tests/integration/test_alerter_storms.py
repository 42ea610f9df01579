"""Thousands of real failures, from a worker's hook to Slack: each told once, whatever happens on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from alerting import quick_alerter
from bench.hooks import fail_in_hooks
from celery import Celery
from celeryscope.alerts import queries
from celeryscope.alerts.store import Database
from celeryscope.demo.inbox import Inbox
from helpers import Process, RedisServer, eventually, running, worker_argv
from ordeal import KINDS, Ordeal

APPS = Path(__file__).parents[1] / "apps"


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Inbox]:
    with Inbox(["general"]).serving() as inbox:
        yield inbox


def survive(folder: Path, server: RedisServer, inbox: Inbox, rounds: int, patience: float) -> None:
    """Fail `rounds` tasks of each kind in a real worker; Slack and the alerter have their worst day."""
    app = Celery("producer", broker=server.url, set_as_current=False)
    client = redis.Redis.from_url(server.url)
    client.flushall()

    def fail(times: int) -> None:
        with app.producer_pool.acquire() as producer:
            for number in range(times):
                for kind in range(KINDS):
                    app.send_task(f"storm.task{kind}", args=(number,), queue="storm", producer=producer)

    def at_work() -> bool:
        return bool(client.llen("storm") or client.hlen("unacked"))

    # Each failure's traceback in the log would be half of the work.
    argv = worker_argv("storm", "-c", "2", "-Q", "storm", "--loglevel", "FATAL")
    env = {"BROKER": server.url, "PYTHONPATH": str(APPS)}
    with app, client, running(Process(argv, log=folder / "worker.log", cwd=folder, env=env)) as worker:
        Ordeal(folder, server.url, inbox, fail, "storm.task", calls_a_second=1, update=30.0, at_work=at_work,
               patience=patience).run(rounds)  # fmt: skip
        assert worker.running()
        assert not at_work()


@pytest.mark.system
@pytest.mark.timeout(600)
def test_3000_real_failures_are_each_told_once(redis_server: RedisServer, inbox: Inbox, tmp_path: Path) -> None:
    """Slack down, then one call a second, then answers lost; the alerter killed twice while it holds messages."""
    survive(tmp_path, redis_server, inbox, 100, 120)


@pytest.mark.system
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_20000_real_failures_are_each_told_once(redis_server: RedisServer, inbox: Inbox, tmp_path: Path) -> None:
    """The same, for longer."""
    survive(tmp_path, redis_server, inbox, 670, 600)


@pytest.mark.system
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_storm_of_100000_reaches_the_store_and_spares_the_broker(
    redis_server: RedisServer, inbox: Inbox, tmp_path: Path
) -> None:
    """Within two minutes and 50 MB, as promised; the hooks are called as a worker calls them, without its tasks."""
    failures, kinds = 100_000, 300
    store = f"sqlite:///{tmp_path}/incidents.db"
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        before = most = client.info("memory")["used_memory"]
        started = time.monotonic()
        with running(quick_alerter(tmp_path, redis_server.url, inbox, store=store, guard=10)):
            for done in fail_in_hooks(redis_server.url, failures, kinds):
                if done % 1_000 == 0:
                    most = max(most, client.info("memory")["used_memory"])
            reported = time.monotonic() - started

            def stored() -> bool:
                return sum(i.count for i in queries.incidents(Database(store, time.time), limit=1_000)) == failures

            eventually(stored, 120, interval=1)
            taken = time.monotonic() - started
    megabytes = (most - before) / 2**20
    print(
        f"{failures:,} failures: reported in {reported:.0f} s, stored after {taken:.0f} s, broker +{megabytes:.1f} MB"
    )
    assert taken < 120
    assert megabytes < 50
