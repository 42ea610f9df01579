"""Which of a worker's runs are over without an event: how many it could be, and the likeliest of them. Pure."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from . import rows as r

if TYPE_CHECKING:
    from collections.abc import Collection

    from .rows import Row
    from .runs import Run

OUT_OF_ORDER = 64
"""So many older starts in a row end the search for newer ones: a worker tells of its starts in order, or nearly."""


def started_by(running: dict[Run, None], at: float) -> int:
    """Return how many of the runs, which stand in the order of their starts, were started by `at`.

    Counted from the newest: every heartbeat asks, and thousands may run in one pool of greenlets.
    """
    newer = older = 0
    for run in reversed(running):
        if run.started_at > at:
            newer += 1
            older = 0
        elif (older := older + 1) >= OUT_OF_ORDER:
            break
    return len(running) - newer


def likely_over(running: Collection[Run], at: float, excess: int, restored_at: float) -> list[Run]:
    """Choose `excess` of the runs that were under way at `at`.

    Nobody knows which: from before a restart first, then tasks that end like this often, then old for their task.
    """
    candidates = [run for run in running if run.started_at <= at]
    usual = {row: _speaks_for_running(row) for row in {run.row for run in candidates}}
    return nsmallest(excess, candidates, lambda run: (run.since >= restored_at, usual[run.row], -run.started_at))


def _speaks_for_running(row: Row) -> tuple[float, float]:
    started = row.counts[r.STARTED] or 1
    histogram = row.histograms[r.RUNTIME_SUCCEEDED]
    finished = sum(histogram[:-1]) if histogram else 0
    typical = histogram[-1] / finished if histogram and finished else 0.0
    return (-row.counts[r.SILENT_END] / started, typical)
