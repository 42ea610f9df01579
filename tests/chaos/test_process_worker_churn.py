"""Five hundred workers that appear and vanish, again and again: bounded, exact, and no counter goes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from celeryscope.exporters.reading import Page
from chaos_tools import Fleet, Member, MonitorProcess
from helpers import RedisServer, eventually, running

WORKERS, TASKS = 500, 1_000
TASK = Fleet.TASK
MEGABYTE = 2**20
REMEMBERED = 20_000
"""Ended runs that the task table keeps to tell late events from new ones, at most; each with the worker it ran on."""


class Generation(Fleet):
    """Workers whose names were never used before and never will be again."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, size=WORKERS, rate=4_000, beat=1.5)
        self.members = [Member(f"w{place}@g{number}", 1_000 + place) for place in range(WORKERS)]

    def vanish(self) -> None:
        """Half of them say goodbye, the others fall silent."""
        self.stop()
        for member in self.members[::2]:
            assert self._publish("worker.offline", self._heartbeat(member, "offline"))
        self._drop()


class Watch:
    """Looks at the page, and at what must hold of every page."""

    def __init__(self, process: MonitorProcess) -> None:
        self.process = process
        self.counted = 0.0

    def page(self) -> Page:
        page = self.process.page
        workers = [labels["worker"] for labels, _ in page.samples("celery_worker_up")]
        # What must hold of every page fails at once: an assertion is tried again by whoever waits.
        if not len(workers) == len(set(workers)) <= 3 * WORKERS:
            pytest.fail(f"{len(workers)} workers: more than this generation and two before it")
        assert sum(page.by("state", name="celery_workers").values()) == len(workers)
        counted = page.total("celery_task_started_total", task=TASK)
        if counted < self.counted:
            pytest.fail(f"a task counter went back from {self.counted:g} to {counted:g}")
        self.counted = counted
        return page

    def states(self, number: int) -> tuple[int, int, int]:
        """How many of a generation are online, said goodbye, and are lost."""
        page, end = self.page(), f"@g{number}"
        up = {labels["worker"]: value for labels, value in page.samples("celery_worker_up")}
        lost = {labels["worker"]: value for labels, value in page.samples("celery_worker_lost")}
        mine = [worker for worker in up if worker.endswith(end)]
        online, fell_silent = sum(up[w] for w in mine), sum(lost[w] for w in mine)
        return int(online), int(len(mine) - online - fell_silent), int(fell_silent)

    def shows(self, number: int, online: int | None, offline: int | None, lost: int | None) -> bool:
        """Whether a generation is in these states; None is any number."""
        found = self.states(number)
        wanted = (online, offline, lost)
        assert all(want in (None, have) for want, have in zip(wanted, found, strict=True)), f"{found} of {number}"
        return True

    def settled(self, workers: Generation, before: int) -> bool:
        """Whether all that they did is told: by events, by their own counts, and nothing as missed."""
        page = self.page()
        told = {labels["worker"]: count for labels, count in page.samples("celery_worker_processed_total")}
        assert sum(told.get(member.name, 0) for member in workers.members) == workers.started
        assert self.counted == before + workers.started
        assert page.total("celery_worker_starts_missed_total") == 0
        assert page.total("celery_worker_starts_untracked_total") == 0
        return page.total("celery_task_succeeded_total", task=TASK) == self.counted


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("generations", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_workers_appear_and_vanish(generations: int, valkey: RedisServer, tmp_path: Path) -> None:
    """Each worker is online, then offline or lost, then gone; memory grows by remembered runs alone."""
    options = ("--worker-timeout", "6", "--forget-worker-after", "8", "--sample-interval", "1")
    sizes: list[int] = []
    total = 0
    with running(MonitorProcess(tmp_path, valkey.url, *options)) as process:
        eventually(process.ready, 60)
        watch = Watch(process)
        for number in range(generations):
            workers = Generation(valkey.url, number)
            try:
                workers.start()
                eventually(lambda n=number: watch.shows(n, WORKERS, 0, 0), 60)
                workers.run(TASKS)
                workers.rest()
                eventually(lambda w=workers, before=total: watch.settled(w, before), 60)
                total += workers.started
            finally:
                workers.vanish()
            eventually(lambda n=number: watch.shows(n, None, WORKERS // 2, None), 60)
            eventually(lambda n=number: watch.shows(n, 0, None, WORKERS // 2), 60)
            sizes.append(process.memory())
        eventually(lambda: watch.page().by("state", name="celery_workers") == no_one(), 60)
        assert watch.counted == total
        assert "Traceback" not in process.output
    print(f"{generations * WORKERS} workers, {[size // MEGABYTE for size in sizes]} MB")
    assert sizes[-1] - sizes[1] < 8 * MEGABYTE + min(total, REMEMBERED) * 1_000


def no_one() -> dict[str, float]:
    return {"online": 0, "offline": 0, "lost": 0}
