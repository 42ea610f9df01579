"""The monitor killed with SIGKILL at random moments, under load: it starts again, and what it says is true."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from celery import Celery
from celeryscope.exporters.reading import Page
from helpers import Process, RedisServer, eventually, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = Path(__file__).resolve().parent.parent / "apps"
LOAD = ("exactly.ok", "exactly.fail")
HELD = 20
UNDER_WAY = 10
"""Starts whose events may have reached a monitor although the tasks have not written them down when it is killed."""
MISSED = "celery_worker_starts_missed_total"


class Monitor(Process):
    """A monitor with a state directory, started and not waited for."""

    def __init__(self, folder: Path, broker: str, number: int) -> None:
        intervals = ("--state-save-interval", "0.2", "--sample-interval", "0.5")
        argv = [sys.executable, "-m", "celeryscope", "monitor", "--broker", broker, "--listen", "127.0.0.1:0"]
        log = folder / f"monitor-{number}.log"
        super().__init__([*argv, "--state-dir", folder / "state", *intervals], log=log, cwd=folder)

    def get(self, path: str) -> str | None:
        """Return what a page says; None while nothing is served, or it says that something is not well."""
        found = re.search(r"serves (http://\S+)/metrics", self.output)
        if found is None:
            return None
        try:
            with urllib.request.urlopen(found[1] + path, timeout=10) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            error.close()
            return None

    def scrape(self) -> Page:
        return Page(self.get("/metrics") or "")

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.popen.wait(10)


class Truth:
    """What the tasks themselves wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def count(self, kind: str, *tasks: str) -> int:
        return sum(
            what.partition(":")[0] == kind and task in tasks
            for what, task, _ in map(str.split, self.path.read_text().splitlines())
        )


@contextlib.contextmanager
def loaded(app: Celery) -> Iterator[None]:
    """Tasks that succeed and tasks that fail, all the time, some of them waiting in the queue."""
    done = threading.Event()

    def produce() -> None:
        with app.connection_for_write() as connection:
            while not done.wait(0.2):
                for name in LOAD * 3:
                    app.send_task(name, queue="default", connection=connection)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        yield
    finally:
        done.set()
        producer.join()


def seen(page: Page, kind: str, *tasks: str) -> float:
    return sum(page.total(f"celery_task_{kind}_total", task=task) for task in tasks)


def consistent(page: Page) -> None:
    """Nothing on one page contradicts the rest of it."""
    for task in LOAD:
        for outcome in ("succeeded", "failed"):
            runtimes = page.total("celery_task_runtime_seconds_count", task=task, outcome=outcome)
            assert runtimes <= seen(page, outcome, task)
        assert page.total("celery_task_wait_seconds_count", task=task) <= seen(page, "started", task)
        assert seen(page, "succeeded", task) + seen(page, "failed", task) <= page.total(
            "celery_task_total_seconds_count", task=task
        ) + seen(page, "started", task)
    assert seen(page, "failed", "exactly.ok") == seen(page, "succeeded", "exactly.fail") == 0


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_starts_again_and_is_wrong_by_what_it_says_at_most(
    kills: int, tmp_path: Path
) -> None:
    """Bounds from both sides: no count above the truth, and what the last one has not seen is said to be missed."""
    server = RedisServer(tmp_path)
    truth = Truth(tmp_path / "truth")
    dice = random.Random(kills)
    app = Celery("producer", broker=server.url, set_as_current=False)
    app.conf.task_send_sent_event = True
    env = {"BROKER": server.url, "TRUTH": str(truth.path), "PYTHONPATH": str(APPS)}
    argv = worker_argv("exactly", "-P", "threads", "-c", "2", "-Q", "default", "-n", "load@h")
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(running(Process(argv, log=tmp_path / "worker.log", cwd=tmp_path, env=env)))
            first = Monitor(tmp_path, server.url, 0)
            eventually(lambda: first.get("/-/ready"), 60)
            with app.connection_for_write() as connection:
                for _ in range(HELD):
                    app.send_task("exactly.mail", queue="held", connection=connection)
            eventually(lambda: first.scrape().total("celery_tasks_waiting", task="exactly.mail", queue="held") == HELD)
            # From here on the worker's own count is known.
            eventually(lambda: list(first.scrape().samples("celery_worker_processed_total", worker="load@h")), 60)
            saves = first.scrape().total("celeryscope_sample_timestamp_seconds", collector="state")
            eventually(
                lambda: first.scrape().total("celeryscope_sample_timestamp_seconds", collector="state") > saves + 0.5
            )
            first.kill()
            with loaded(app):
                for number in range(1, kills + 1):
                    life(tmp_path, server.url, number, truth, dice)
                before = truth.count("started", *LOAD)
                last = stack.enter_context(running(Monitor(tmp_path, server.url, kills + 1)))
                eventually(lambda: last.get("/-/ready"), 60)
            eventually(lambda: empty(server), 60)
            judge(last, truth, before)
            argv = worker_argv("exactly", "-c", "1", "-Q", "held", "-n", "held@h")
            stack.enter_context(running(Process(argv, log=tmp_path / "held.log", cwd=tmp_path, env=env)))
            known_ones_are_known(last)
        for log in tmp_path.glob("monitor-*.log"):
            assert "Traceback" not in log.read_text()
        with redis.Redis.from_url(server.url) as client:
            # Only who is killed while it asks the workers leaves a queue for their answers; each monitor asks by two,
            # and the last one may be at it.
            asking = 2 * (kills + 2)
            assert client.scard("_kombu.binding.reply.celery.pidbox") <= asking
            assert len([key for key in client.scan_iter() if b"reply" in key]) <= asking + 1
    finally:
        server.stop()
        app.close()


def life(folder: Path, broker: str, number: int, truth: Truth, dice: random.Random) -> None:
    """Let a monitor live for a random while, and look at its page before it is killed."""
    monitor = Monitor(folder, broker, number)
    if dice.random() < 0.7:
        eventually(lambda: monitor.get("/-/healthy"), 60)
    time.sleep(dice.uniform(0.0, 1.0))  # the moment is random: there is nothing to wait for
    if monitor.running() and monitor.get("/-/healthy"):
        page = monitor.scrape()
        consistent(page)
        assert seen(page, "started", *LOAD) <= truth.count("started", *LOAD)
    assert monitor.running(), monitor.output
    monitor.kill()
    assert "set aside" not in monitor.output


def empty(server: RedisServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return client.llen("default") == 0 and client.hlen("unacked") == 0


def judge(last: Monitor, truth: Truth, before: int) -> None:
    """Hold the last page against the truth, once everything has ended and heartbeats have told.

    Counts begin at 0 after each crash: the last one's hold all that came after it, and nothing that did not happen.
    """

    def told() -> bool:
        # Early acknowledged: the queue is empty before the last task has written down that it started.
        started = truth.count("started", *LOAD)
        page = last.scrape()
        assert page.total("celery_worker_processed_total", worker="load@h") == started
        assert page.total("celery_tasks_waiting", queue="default") == 0
        assert page.total("celery_tasks_waiting", queue="unknown") == 0
        assert page.total("celery_tasks_running") == 0
        missed = page.total(MISSED, worker="load@h")
        assert started - before - UNDER_WAY <= missed + seen(page, "started", *LOAD) <= started
        assert page.total("celery_worker_starts_missed_down_total", worker="load@h") == missed
        return True

    eventually(told, 60)
    page = last.scrape()
    consistent(page)
    assert seen(page, "started", *LOAD) <= truth.count("started", *LOAD)
    assert seen(page, "succeeded", "exactly.ok") <= truth.count("succeeded", "exactly.ok")
    assert seen(page, "failed", "exactly.fail") <= truth.count("failed", "exactly.fail")
    assert seen(page, "silent_end", *LOAD) == 0


def known_ones_are_known(last: Monitor) -> None:
    """Those sent before the first kill, run after the last one, have their queue and their waiting time."""

    def told() -> bool:
        page = last.scrape()
        for series in ("task_succeeded_total", "task_wait_seconds_count", "task_total_seconds_count"):
            assert page.total(f"celery_{series}", task="exactly.mail", queue="held") == HELD
            assert page.total(f"celery_{series}", task="exactly.mail") == HELD  # and none elsewhere
        return True

    eventually(told, 60)
