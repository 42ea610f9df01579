"""What the events newly told of queues and workers, for the sampler: it looks at the one and asks the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .labels import OTHER, UNKNOWN
from .rows import RECEIVED, SENT

if TYPE_CHECKING:
    from .tasks import TaskTable
    from .workers import Host


class News(NamedTuple):
    """Queues that messages went to or came from, and workers that came, went or were started again, since last time."""

    queues: frozenset[str]
    came: frozenset[str]
    went: frozenset[str]
    again: frozenset[str]


class Hearsay:
    """Compares the task table and the worker watch with what they were at the last look."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._boots: dict[str, Host] = {}

    def look(self, tasks: TaskTable) -> News:
        """Return what is new; the caller holds the pipeline's lock."""
        counts: dict[str, int] = {}
        for row in tasks.rows.all():
            counts[row.queue] = counts.get(row.queue, 0) + row.counts[SENT] + row.counts[RECEIVED]
        boots = {host.name: host for host in tasks.workers.up() if host.name != OTHER}
        before, self._counts = self._counts, counts
        known, self._boots = self._boots, boots
        # Only queues in use: the table never forgets a name, the sampler shall.
        used = {queue for queue, count in counts.items() if count != before.get(queue)}
        return News(
            frozenset(used - {UNKNOWN, OTHER}),
            frozenset(boots.keys() - known.keys()),
            frozenset(known.keys() - boots.keys()),
            frozenset(name for name, host in boots.items() if known.get(name, host) is not host),
        )
