"""Workers whose clocks are ten minutes wrong, by libfaketime: it is told, and nothing else is fooled by it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from celeryscope.exporters.reading import Page
from chaos_process_tools import Scraped, Site, accounted, monitor, says, seen, site, started
from helpers import RedisServer, eventually, running

pytestmark = pytest.mark.system
MINUTES = 600.0
TASKS = 40
TIMEOUT = ("--worker-timeout", "5")
WORKERS = {"right": "ok", "ahead": "mail", "behind": "fail"}
"""The task that each worker (and its queue) is given."""


def clock(file: Path, seconds: float) -> dict[str, str]:
    """The environment of a process whose clock is so wrong, by a file that may change; intervals stay right."""
    library = next(Path("/usr/lib").rglob("faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise RuntimeError("faketime is not installed: run `make integration-packages` (or apt-get install it)")
    set_to(file, seconds)
    return {
        "LD_PRELOAD": os.fspath(library),
        "FAKETIME_TIMESTAMP_FILE": os.fspath(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def set_to(file: Path, seconds: float) -> None:
    file.write_text(f"{seconds:+g}s\n")


def test_workers_with_wrong_clocks_are_told_and_fool_nobody(valkey: RedisServer, tmp_path: Path) -> None:
    """Their skew, each wait of their tasks (in the histogram or as negative), their life and their missed starts.

    Then their clocks are set right, back and forth, as when NTP comes late: that costs no start, and hides none.
    """
    clocks = {"ahead": tmp_path / "ahead", "behind": tmp_path / "behind"}
    state = ("--state-dir", tmp_path / "state", *TIMEOUT)
    with (
        site(tmp_path, valkey.url) as ours,
        running(monitor(tmp_path, valkey.url, *state, ready=False)) as first,
        running(ours.worker("right")),
        running(ours.worker("ahead", env=clock(clocks["ahead"], MINUTES))) as ahead,
        running(ours.worker("behind", env=clock(clocks["behind"], -MINUTES))) as behind,
    ):
        started(first)
        run_all(ours, TASKS)
        eventually(lambda: all_accounted(first.page(), TASKS), 60)
        tells_the_clocks(first.page())
        alive_for_longer_than_the_timeout(first)
        for file in clocks.values():
            set_to(file, 0.0)
        for _ in range(2):
            run_all(ours, 10)
            heard_again(first)
        eventually(lambda: all_accounted(first.page(), TASKS + 20), 60)
        later = {worker: waits(first.page(), worker)[0] for worker in WORKERS}
        assert min(later["ahead"], later["right"]) == TASKS + 20
        assert later["behind"] >= 10  # its clock is right by the second turn, so these waits can be believed
        first.ended()
        run_all(ours, 10)  # of which no monitor hears
        with running(monitor(tmp_path, valkey.url, *state)) as second:
            run_all(ours, 10)
            eventually(lambda: all_accounted(second.page(), TASKS + 30, missed=10), 60)
            assert {says(second.page(), "starts_missed_down_total", worker) for worker in WORKERS} == {10}
            for worker in (ahead, behind):
                worker.send(signal.SIGKILL)
            states = {"online": 1, "offline": 0, "lost": 2}
            eventually(lambda: second.page().by("state", name="celery_workers") == states, 40)
            assert {worker: says(second.page(), "up", worker) for worker in WORKERS} == {
                "right": 1,
                "ahead": 0,
                "behind": 0,
            }
            second.ended()


def run_all(ours: Site, count: int) -> None:
    """Let each worker run so many tasks."""
    before = {task: ours.count("started", task) for task in WORKERS.values()}
    for worker, task in WORKERS.items():
        ours.send(task, count, worker)
    eventually(
        lambda: (
            {task: ours.count("started", task) for task in before}
            == {task: number + count for task, number in before.items()}
        ),
        60,
    )


def all_accounted(page: Page, count: int, missed: int = 0) -> bool:
    for worker, task in WORKERS.items():
        assert accounted(page, worker, **{task: count}, missed=missed)
        assert seen(page, "sent", task) == count
        ended = "failed" if task == "fail" else "succeeded"
        assert seen(page, ended, task) == count
    assert page.total("celery_tasks_running") == page.total("celery_tasks_waiting") == 0
    return True


def waits(page: Page, worker: str) -> tuple[float, float, float]:
    """Waits in the histogram, those of them under five minutes, and those that came out negative."""
    task = f"exactly.{WORKERS[worker]}"
    return (
        page.total("celery_task_wait_seconds_count", task=task),
        page.total("celery_task_wait_seconds_bucket", task=task, le="300.0"),
        page.total("celery_task_negative_waits_total", task=task),
    )


def tells_the_clocks(page: Page) -> None:
    """What is wrong are two clocks, and no wait is made right without a word."""
    for worker, skew in {"right": 0.0, "ahead": MINUTES, "behind": -MINUTES}.items():
        told = says(page, "clock_skew_seconds", worker)
        assert told is not None
        assert abs(told - skew) < 30, worker
    assert waits(page, "right") == (TASKS, TASKS, 0)
    assert waits(page, "ahead") == (TASKS, 0, 0)
    assert waits(page, "behind") == (0, 0, 2 * TASKS)  # until it started, and until it ended


def alive_for_longer_than_the_timeout(watching: Scraped) -> None:
    """By when they are heard, and not by what they say of the time."""
    since = {worker: says(watching.page(), "last_heartbeat_timestamp_seconds", worker) for worker in WORKERS}

    def later() -> bool:
        page = watching.page()
        assert page.by("state", name="celery_workers") == {"online": 3, "offline": 0, "lost": 0}
        now = {worker: says(page, "last_heartbeat_timestamp_seconds", worker) for worker in WORKERS}
        return all((now[worker] or 0) > (since[worker] or 0) + 6 for worker in WORKERS)

    eventually(later, 60, interval=0.5)


def heard_again(watching: Scraped) -> None:
    """Two heartbeats of each: one is judged when the next one comes."""
    since = {worker: says(watching.page(), "last_heartbeat_timestamp_seconds", worker) for worker in WORKERS}

    def both() -> bool:
        now = {worker: says(watching.page(), "last_heartbeat_timestamp_seconds", worker) for worker in WORKERS}
        return all((now[worker] or 0) > (since[worker] or 0) + 3 for worker in WORKERS)

    eventually(both, 30)
