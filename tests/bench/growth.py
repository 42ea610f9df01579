"""Does an event cost the same whatever there is: live tasks, task names, workers? In process, by processor time.

    python tests/bench/growth.py

The same bytes go through `raw` as well: what it loses with many names or tasks is lost to the processor's caches, and
no monitor in this language gets it back.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import NamedTuple

import replay
from bars import BENCH, Bar, show
from wire import Spec

LIVE = (10, 1_000, 10_000, 100_000)
SHAPES = ((20, 20), (200, 100), (2_000, 100), (200, 1_000))
EVENTS, ROUNDS, KNOWN = 100_000, 2, 70
LIVE_PROMISE, SHAPE_PROMISE = 1.5, 1.5
RECEIVED = 0.45  # share of the tasks that wire.stream has begun
COMMAND = f"{BENCH}growth.py"


class Cost(NamedTuple):
    """Microseconds an event, of ours and of the yardstick, and how many tasks were live meanwhile."""

    ours: float
    raw: float
    live: int


def cost(warm: list[tuple[bytes, int]], rest: list[tuple[bytes, int]], start: float, rounds: int = ROUNDS) -> Cost:
    """Take in `warm`, then `rest` with the clock running; the least of some rounds in turns."""
    events = sum(n for _, n in rest)
    ours, raw, live = [], [], 0
    for _ in range(rounds):
        for system, costs in ((replay.Ours(start), ours), (replay.Raw(), raw)):
            system.take_in(warm)
            gc.collect()
            costs.append(system.take_in(rest) / events * 1e6)
            if isinstance(system, replay.Ours):
                live = len(system.pipeline.tasks.live)
            system.close()
    return Cost(min(ours), min(raw), live)


def with_live(live: int) -> Cost:
    """The cost of an event while about so many tasks are live, of more that were begun: some have not been received.

    All begin at once; three events of each later it is even.
    """
    begun = round(live / RECEIVED)
    before = 3 * begun + 20_000
    spec = Spec(events=before + EVENTS, tasks=200, workers=100, batch=3, sent=False, inflight=begun)
    stream = replay.Stream(spec, underway=True)
    return cost(*stream.split(before / (before + EVENTS)), stream.start)


def with_shape(names: int, workers: int) -> Cost:
    """The cost of an event of so many names and workers, all of them known."""
    shape = {"tasks": names, "workers": workers, "batch": 3, "sent": False}
    warm = replay.Stream(Spec(events=KNOWN * names * 3, cover=True, only_success=True, seed=99, **shape))
    stream = replay.Stream(Spec(events=EVENTS, **shape))
    return cost(warm.pieces, stream.pieces, warm.start)


def bars() -> Iterator[Bar]:
    """The table of measurements, and the two bars drawn from it."""
    gc.freeze()
    for what, costs, promise in (
        ("live tasks", {f"{live:,} live": with_live(live) for live in LIVE}, LIVE_PROMISE),
        (
            "names × workers",
            {f"{names} × {workers}": with_shape(names, workers) for names, workers in SHAPES},
            SHAPE_PROMISE,
        ),
    ):
        rows = list(costs.values())
        least = rows[0]
        for name, row in costs.items():
            yield Bar(f"an event, {name}", f"{row.ours:.2f} µs (raw {row.raw:.2f}; {row.live:,} live)", None, COMMAND)
        grown, theirs = (max(getattr(row, who) for row in rows) / getattr(least, who) for who in ("ours", "raw"))
        yield Bar(
            f"an event, by {what}: ≤ {promise} ×", f"{grown:.2f} × (raw {theirs:.2f} ×)", grown <= promise, COMMAND
        )


if __name__ == "__main__":
    sys.exit(show(bars()))
