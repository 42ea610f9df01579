"""What scrapes of 100 000 series cost and for how long they hold up ingestion: one process, the monitor's own parts.

    python tests/bench/stall.py

Another process writes the stream into the socket as fast as it is read. One thread takes it in and notes when each
batch had been fed; another renders the page now and then. What counts is how much processor time the latter used
between two batches: for as long the former waited for the interpreter's lock or the pipeline's. The gap by the clock is
printed as well, while a page is made and while none is: what other jobs take of the processor is in both. Where both
cores are busy the former may not get to run for some time though it could, hence the median of the pages decides.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import replay
from bars import BENCH, Bar, show
from celeryscope.exporters.prometheus import Exposition
from wire import Spec

NAMES, EVENTS, PAUSE = 1_000, 450_000, 0.15
SAMPLE, UNCHANGED, STALL = 0.6, 0.3, 20.0
COMMAND = f"{BENCH}stall.py"


class Lock:
    """The pipeline's lock, with the longest processor time for which a thread other than `own` held it."""

    def __init__(self, inner: threading.Lock) -> None:
        self.inner, self.own, self.longest = inner, threading.get_ident(), 0.0

    def __enter__(self) -> None:
        self.inner.acquire()
        self.since = time.thread_time()

    def __exit__(self, *_: object) -> None:
        held = time.thread_time() - self.since
        self.inner.release()
        if threading.get_ident() != self.own:
            self.longest = max(self.longest, held)


def full() -> tuple[replay.Ours, replay.Stream]:
    """A monitor that has seen many names in each way, and the stream that goes on from there."""
    shape = {"tasks": NAMES, "workers": 100, "batch": 3, "sent": False}
    warm = replay.Stream(Spec(events=NAMES * 200, cover=True, seed=99, **shape))
    ours = replay.Ours(warm.start)
    ours.take_in(warm.pieces)
    return ours, replay.Stream(Spec(events=EVENTS, **shape))


def samples(page: bytes) -> int:
    return sum(not line.startswith(b"#") for line in page.splitlines())


class Rendered(NamedTuple):
    """Microseconds of processor time a sample: first page, one where nothing changed, one where every series did."""

    first: float
    unchanged: float
    changed: float


def rendered(ours: replay.Ours, series: int) -> Rendered:
    """Render pages from the pipeline itself, whose copying is part of it."""
    page = Exposition({"": ours.pipeline}, own=False)

    def cost() -> float:
        started = time.thread_time()
        page.render()
        return (time.thread_time() - started) / series * 1e6

    first = cost()
    unchanged = min(cost() for _ in range(5))
    changed = []
    for _ in range(5):
        for family in ours.pipeline.families():  # so that no remembered value is equal
            for known in (
                page._sources[0].series[family.metric.name]._numbers,
                page._sources[0].series[family.metric.name]._histograms,
            ):
                for labels, (value, *rest) in known.items():
                    known[labels] = ([-1, *value[1:]] if isinstance(value, list) else -1.0, *rest)
        changed.append(cost())
    return Rendered(first, unchanged, min(changed))


class Gaps(NamedTuple):
    """Milliseconds: for each page the most that its thread used between two batches; its longest hold of the lock.

    By the clock, for each page and for each time as long without one, the longest gap.
    """

    used: list[float]
    held: float
    scraped: list[float]
    quiet: list[float]


def gaps(ours: replay.Ours, stream: replay.Stream) -> Gaps:
    """Take in the stream while pages are made; the gaps between two batches."""
    lock = ours.pipeline.lock = Lock(ours.pipeline.lock)
    page, spans, stop = Exposition({"": ours.pipeline}, own=False), [], threading.Event()
    page.render()

    def scrape() -> None:
        while not stop.wait(PAUSE):
            started = time.perf_counter()
            page.render()
            spans.append((started, time.perf_counter()))

    thread = threading.Thread(target=scrape)
    fed, used = [], []
    with written(ours, stream):
        thread.start()
        clock = time.pthread_getcpuclockid(thread.ident)
        left = sum(n for _, n in stream.pieces)
        while left:
            batch = ours.subscription.take()
            left -= len(batch)
            ours.pipeline.feed(batch, ours.now)
            fed.append(time.perf_counter())
            used.append(time.clock_gettime(clock))
        stop.set()
        thread.join()
    pairs = list(itertools.pairwise(fed))
    between = [(end, start) for (_, end), (start, _) in itertools.pairwise(spans)]
    scraped, quiet = ([longest(pairs, *span) for span in times if span[1] < fed[-1]] for times in (spans, between))
    steps = [(at, b - a) for at, (a, b) in zip(fed[1:], itertools.pairwise(used), strict=True)]
    most = [max((n for at, n in steps if start <= at <= end + 0.01), default=0.0) * 1e3 for start, end in spans]
    return Gaps(most, lock.longest * 1e3, scraped, quiet)


def longest(pairs: list[tuple[float, float]], start: float, end: float) -> float:
    return max((b - a for a, b in pairs if b > start and a < end), default=0.0) * 1e3


@contextlib.contextmanager
def written(ours: replay.Ours, stream: replay.Stream) -> Iterator[None]:
    """Let a child write the stream to the socket."""
    child = os.fork()
    if not child:
        for data, _ in stream.pieces:
            ours.theirs.sendall(data)
        os._exit(0)
    try:
        yield
    finally:
        os.waitpid(child, 0)


def bars() -> Iterator[Bar]:
    ours, stream = full()
    gc.collect()
    gc.freeze()
    series = samples(Exposition({"": ours.pipeline}, own=False).render())
    costs = rendered(ours, series)
    yield Bar(
        f"scrape of {series:,} series, all changed: < {SAMPLE:g} µs CPU a sample",
        f"{costs.changed:.2f} µs (the first one {costs.first:.2f})",
        costs.changed < SAMPLE,
        COMMAND,
    )
    yield Bar(
        f"the same, nothing changed: < {UNCHANGED:g} µs",
        f"{costs.unchanged:.2f} µs",
        costs.unchanged < UNCHANGED,
        COMMAND,
    )
    seen = gaps(ours, stream)
    yield Bar(
        f"ingestion held up by such a scrape: < {STALL:g} ms",
        f"{statistics.median(seen.used):.1f} ms, at most {max(seen.used):.0f}"
        f" (longest gap {max(seen.scraped):.0f}, median {statistics.median(seen.scraped):.0f};"
        f" without {max(seen.quiet):.0f}, {statistics.median(seen.quiet):.0f})",
        statistics.median(seen.used) < STALL,
        COMMAND,
    )
    yield Bar("of that, by the pipeline's lock", f"{seen.held:.1f} ms", seen.held < STALL, COMMAND)
    ours.close()


if __name__ == "__main__":
    sys.exit(show(bars()))
