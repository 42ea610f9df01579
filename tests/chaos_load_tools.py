"""What tests under load share: somebody who scrapes a monitor every second, and what was seen of it meanwhile."""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx

if TYPE_CHECKING:
    from chaos_tools import MonitorProcess
    from typing_extensions import Self

MEGABYTE = 1 << 20
LAG = re.compile(rb"^celeryscope_event_lag_seconds (\S+)", re.MULTILINE)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process occupies."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Look(NamedTuple):
    """What one scrape showed: when, how long it took, bytes of the page, memory, lag."""

    at: float
    took: float
    size: int
    memory: int
    lag: float


class Scraper:
    """Scrapes a monitor every second, compressed, as Prometheus does, and writes down what it saw."""

    def __init__(self, monitor: MonitorProcess) -> None:
        self.monitor = monitor
        self.looks: list[Look] = []
        self.failures: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._began, self._cpu = time.monotonic(), self.monitor.cpu_seconds()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.cpu = (self.monitor.cpu_seconds() - self._cpu) / (time.monotonic() - self._began)

    def _run(self) -> None:
        due = self._began + 1
        with httpx.Client(timeout=10, trust_env=False, headers={"Accept-Encoding": "gzip"}) as client:
            while not self._done.wait(max(0.0, due - time.monotonic())):
                due += 1
                try:
                    self.looks.append(self._look(client))
                except httpx.HTTPError as error:
                    self.failures.append(f"after {time.monotonic() - self._began:.0f} s: {error!r}")

    def _look(self, client: httpx.Client) -> Look:
        began = time.monotonic()
        answer = client.get(self.monitor.url + "/metrics").raise_for_status()
        took = time.monotonic() - began
        found = LAG.search(answer.content)
        lag = float(found[1]) if found else 0.0
        return Look(began - self._began, took, len(answer.content), self.monitor.memory(), lag)

    def part(self, first: float, last: float) -> list[Look]:
        """Return what was seen between two fractions of the time; at least one look."""
        count = len(self.looks)
        start = min(int(first * count), count - 1)
        return self.looks[start : max(int(last * count), start + 1)]

    def summary(self) -> str:
        """All scrapes in a line."""
        took = [look.took * 1e3 for look in self.looks]
        lags = [look.lag * 1e3 for look in self.looks]
        memory = [look.memory / MEGABYTE for look in self.looks]
        return (
            f"{len(took)} scrapes of {max(look.size for look in self.looks) / 1e6:.1f} MB took "
            f"{statistics.median(took):.0f} ms, the longest {max(took):.0f}; lag {statistics.median(lags):.1f} ms, the "
            f"longest {max(lags):.0f}; memory {memory[0]:.0f} MB at first, {max(memory):.0f} at most, {memory[-1]:.0f} "
            f"at last; {self.cpu:.0%} of a core"
        )


def summed(page: str, name: str) -> float:
    """Return the sum of a metric's series, quickly: reading all of a page of 20 MB takes seconds."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def median_lag(looks: list[Look]) -> float:
    return statistics.median(look.lag for look in looks)


def most_memory(looks: list[Look]) -> int:
    return max(look.memory for look in looks)
