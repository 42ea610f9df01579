"""All boards, in the order in which people should find them."""

from __future__ import annotations

from ..board import Board
from ..links import DEFAULT_FLOWER
from . import beat, monitor, overview, queues, task, tasks, workers

MAKERS = (overview.make, tasks.make, task.make, queues.make, workers.make, beat.make, monitor.make)


def all_boards(flower_url: str = DEFAULT_FLOWER) -> list[Board]:
    """Return every board; `flower_url` is where their links find Flower."""
    return [make(flower_url) for make in MAKERS]
