"""Events without an end, and task names without a number: each counted, memory flat, a scrape every second."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celeryscope.exporters.reading import Page
from chaos_load_tools import MEGABYTE, Scraper, median_lag, most_memory, summed
from chaos_tools import MonitorProcess
from helpers import ROOT, RedisServer, eventually, running

pytestmark = pytest.mark.system

RATE = 50_000
GROWTH = 16 * MEGABYTE
"""What a monitor may have grown by at the end, seen from when everything in it had its size."""
SLACK = 1.0
"""Seconds by which the lag may be longer in the end than at first, on a machine that others use as well."""
NAMES, CAP = 10_000, 2_000
Told = dict[str, Any]


def published(server: RedisServer, *options: str, timeout: float) -> Told:
    """Let the publisher do its work; return what it says that it did."""
    argv = [sys.executable, ROOT / "tests/bench/soak.py", "--redis-port", str(server.port), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    told: Told = json.loads(done.stdout)
    assert told["fewest_receivers"] == 1
    return told


def accounted(monitor: MonitorProcess, told: Told) -> Page:
    """Wait until every count is what was published, see that nothing is said to be lost; return the page."""

    def equal() -> Page:
        page = monitor.page
        counted = page.by("type", name="celeryscope_events_total")
        assert {kind: count for kind, count in counted.items() if count and kind != "celeryscope-echo"} == told["types"]
        assert page.by("worker", name="celery_worker_processed_total") == told["started"]
        for fact in ("sent", "received", "started"):
            assert page.total(f"celery_task_{fact}_total") == told["tasks"]
        for end in ("succeeded", "failed"):
            assert page.total(f"celery_task_{end}_total") == told["types"][f"task-{end}"]
        return page

    page = eventually(equal, 60, 0.5)
    for lost in ("worker_starts_missed", "worker_starts_missed_down", "worker_starts_untracked", "task_silent_end"):
        assert page.total(f"celery_{lost}_total") == 0
    for trouble in ("events_malformed_total", "task_table_size", "task_table_evicted_total", "reconnects_total"):
        assert page.total(f"celeryscope_{trouble}") == 0
    return page


@pytest.mark.parametrize(
    "seconds", [60, pytest.param(3_600, marks=[pytest.mark.soak, pytest.mark.timeout(6_000)])], ids=["minute", "hour"]
)
def test_events_without_an_end_are_each_counted_in_memory_that_does_not_grow(
    redis_server: RedisServer, tmp_path: Path, seconds: int
) -> None:
    """50 000 a second, if this machine can publish them; whatever it reaches, nothing is lost and nothing grows."""
    with running(MonitorProcess(tmp_path, redis_server.url)) as monitor:
        eventually(monitor.ready, 60)
        with Scraper(monitor) as scraper:
            told = published(redis_server, "--rate", str(RATE), "--seconds", str(seconds), timeout=seconds + 300)
        page = accounted(monitor, told)
    for end in ("succeeded", "failed"):
        found = page.by("task", name=f"celery_task_{end}_total")
        assert {f"{end} {task}": n for task, n in found.items() if n} == {
            what: n for what, n in told["ended"].items() if what.startswith(end)
        }
    early, late = scraper.part(0.1 if seconds > 600 else 0.3, 0.5), scraper.part(0.75, 1)
    print(
        f"{told['events']:,} task events in {told['seconds']:.0f} s, {told['rate']:,.0f} a second; publisher held back "
        f"for {told['waited']:.1f} s. {scraper.summary()}. From the first half to the last quarter: memory "
        f"{most_memory(early) / MEGABYTE:.1f} to {most_memory(late) / MEGABYTE:.1f} MB, lag "
        f"{median_lag(early) * 1e3:.1f} to {median_lag(late) * 1e3:.1f} ms"
    )
    assert not scraper.failures
    assert most_memory(late) - most_memory(early) < GROWTH
    assert median_lag(late) < median_lag(early) + SLACK


def test_ten_thousand_task_names_are_two_thousand_and_the_rest(redis_server: RedisServer, tmp_path: Path) -> None:
    """Those that came first keep their names, what came later is counted as `__other__`, and the page has its limit."""

    def counted(tasks: int) -> str:
        page = monitor.get("/metrics")[1]
        assert summed(page, "celery_task_started_total") == tasks
        assert summed(page, "celeryscope_task_table_size") == 0
        return page

    with running(MonitorProcess(tmp_path, redis_server.url)) as monitor:
        eventually(monitor.ready, 60)
        first = published(redis_server, "--tasks", str(CAP), "--count", str(CAP), timeout=120)
        page = eventually(lambda: counted(CAP), 60, 0.5)
        assert summed(page, "celeryscope_label_overflow_total") == 0
        before, size = monitor.memory(), len(page)
        with Scraper(monitor) as scraper:
            told = published(redis_server, "--tasks", str(NAMES), "--count", str(5 * NAMES), timeout=240)
            page = eventually(lambda: counted(first["tasks"] + told["tasks"]), 60, 0.5)
    started = dict(re.findall(r'^celery_task_started_total{queue="queue-\d+",task="(\S+)"} (\S+)$', page, re.MULTILINE))
    assert len(set(started) - {"__other__"}) == CAP
    assert {float(count) for task, count in started.items() if task != "__other__"} == {1 + 5}
    others = told["tasks"] - 5 * CAP
    assert summed(page, "celery_task_started_total") - 6 * CAP == others == 5 * (NAMES - CAP)
    assert summed(page, "celeryscope_label_overflow_total") >= others
    assert summed(page, "celery_worker_starts_missed_total") == 0
    print(f"{NAMES:,} names, {CAP:,} kept: memory {before / MEGABYTE:.0f} MB with those alone. {scraper.summary()}")
    assert not scraper.failures
    # 20 queues of `__other__` are all that came to the page, and what is in a buffer or not yet given back to memory.
    assert max(look.size for look in scraper.looks) < 1.5 * size
    assert most_memory(scraper.looks) < before + 64 * MEGABYTE
