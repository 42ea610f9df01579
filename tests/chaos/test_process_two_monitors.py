"""Two monitors on one broker through a rolling restart: both count all, and the larger of the two is the truth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos_process_tools import Scraped, Site, monitor, says, seen, site
from helpers import RabbitServer, eventually, running

TASKS = 30


@pytest.mark.system
def test_two_monitors_count_all_and_restart_one_after_the_other(rabbit: RabbitServer, tmp_path: Path) -> None:
    """Neither takes events from the other; who was away says how much it missed; `max` of the growth is exact.

    On RabbitMQ, where events lie in queues that somebody could take from; test_ha_monitors.py has Redis.
    """
    pair = Pair(tmp_path, rabbit.url)
    with site(tmp_path, rabbit.url) as ours, running(ours.worker("default")), pair.both():
        pair.phase(ours)
        for name in ("one", "two"):
            pair.stop(name)
            pair.phase(ours)
            pair.start(name)
            pair.phase(ours)
        pair.settled(ours, {"one": TASKS, "two": TASKS})
        assert pair.grown == ours.count("started", "ok") == 5 * TASKS


class Pair:
    """The monitors, and what Prometheus would make of them: after each phase the larger growth of the two counts."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.up: dict[str, Scraped] = {}
        self.before: dict[str, float] = {}
        self.grown = 0.0

    @contextmanager
    def both(self) -> Iterator[None]:
        """Run them until the end of the context."""
        try:
            for name in ("one", "two"):
                self.start(name)
            yield
        finally:
            for process in self.up.values():
                process.stop()

    def start(self, name: str) -> None:
        self.up[name] = monitor(self.folder, self.url, "--state-dir", self.folder / f"state-{name}", name=name)
        self.before[name] = seen(self.up[name].page(), "started", "ok")

    def stop(self, name: str) -> None:
        self.up.pop(name).ended()

    def phase(self, ours: Site) -> None:
        """Run some tasks, of which each monitor that is up hears all."""
        ours.send("ok", TASKS, "default")

        def heard() -> bool:
            pages = {name: process.page() for name, process in self.up.items()}
            grown = {name: seen(page, "started", "ok") - self.before[name] for name, page in pages.items()}
            assert grown == dict.fromkeys(self.up, TASKS)
            assert {seen(page, "succeeded", "ok") - self.before[name] for name, page in pages.items()} == {TASKS}
            return True

        eventually(heard, 40)
        now = {name: seen(process.page(), "started", "ok") for name, process in self.up.items()}
        self.grown += max(now[name] - self.before[name] for name in now)
        self.before |= now

    def settled(self, ours: Site, missed: dict[str, int]) -> None:
        """What each saw and what it says to have missed are together what happened."""

        def told() -> bool:
            total = ours.count("started", "ok")
            for name, process in self.up.items():
                page = process.page()
                assert says(page, "processed_total", "default") == total
                assert says(page, "starts_missed_total", "default") == missed[name]
                assert says(page, "starts_missed_down_total", "default") == missed[name]
                assert seen(page, "started", "ok") == total - missed[name]
                assert page.total("celery_tasks_running") == page.total("celery_tasks_waiting") == 0
            return True

        eventually(told, 40)
