"""Which of a worker's runs are over without an event."""

from __future__ import annotations

import pytest
from celeryscope.monitor.rows import Row
from celeryscope.monitor.runs import STARTED, Run
from celeryscope.monitor.silent_ends import OUT_OF_ORDER, likely_over, started_by
from hypothesis import given
from hypothesis import strategies as st
from stories import Story


def running(*starts: float) -> dict[Run, None]:
    row = Row("t", "q")
    return {Run(f"id{i}", row, STARTED, started_at=start): None for i, start in enumerate(starts)}


@pytest.mark.parametrize(
    ("starts", "expected"),
    [((), 0), ((1, 2, 3), 2), ((3, 4), 0), ((1, 1), 2), ((1, 3, 2), 2), ((3, 1, 1), 2)],
)
def test_starts_by_a_moment_are_counted_from_the_newest(starts: tuple[float, ...], expected: int) -> None:
    """A start told a little late does not end the search."""
    assert started_by(running(*starts), 2.0) == expected


@given(st.lists(st.integers(0, OUT_OF_ORDER - 1), max_size=300), st.integers(-1, 400))
def test_the_count_is_exact_while_starts_are_told_nearly_in_order(delays: list[int], at: int) -> None:
    """Whoever is told of late by fewer than the search looks at."""
    starts = [float(i) for _, i in sorted((i + delay, i) for i, delay in enumerate(delays))]
    assert started_by(running(*starts), at) == sum(start <= at for start in starts)


def test_the_oldest_of_the_likeliest_is_over_first() -> None:
    """Of one task the oldest; nothing that was not yet under way then."""
    runs = running(1.0, 2.0, 3.0, 4.0)
    assert [run.uuid for run in likely_over(runs, 3.0, 2, 0.0)] == ["id2", "id1"]
    assert len(likely_over(runs, 3.0, 9, 0.0)) == 3


def test_a_worker_that_comes_back_has_its_runs_in_the_order_of_their_starts() -> None:
    """It starts more in the moment before it counts as back; none of all these runs is over."""
    story = Story()
    story.worker(active=0, processed=0)
    before, after = OUT_OF_ORDER + 10, 5
    for i in range(before):
        story.task("sent", f"b{i}", "producer", name="t", queue="q", retries=0)
        story.task("received", f"b{i}", name="t", retries=0)
        story.task("started", f"b{i}")
    story.worker(active=before, processed=before)
    story.wait(120)  # lost
    story.worker(active=before, processed=before)
    story.worker(active=before, processed=before)
    for i in range(after):
        story.task("received", f"a{i}", name="t", retries=0)
        story.task("started", f"a{i}")
    story.wait(0.5)  # back
    for _ in range(3):
        story.worker(active=before + after, processed=before + after)
    assert not story.number("celery_task_silent_end_total", "t", "q")
    starts = [run.started_at for run in story.table.workers.hosts["w1"].running]
    assert len(starts) == before + after
    assert starts == sorted(starts)
