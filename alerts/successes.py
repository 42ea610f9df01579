"""When tasks last succeeded, from Celery's events: what an incident needs in order to be resolved (pure)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..monitor.events import Event, TaskEvent

MOST_RUNS = 100_000
LONGEST_NAME = 255
"""Characters of a task's name, as the incident store keeps it."""


class Successes(Protocol):
    """Who knows when tasks last succeeded."""

    def last_success(self, task: str) -> float | None:
        """Return the unix time of the task's last known success."""
        ...

    def watch(self, tasks: Iterable[str]) -> None:
        """Say which tasks will be asked for; others need not be remembered."""
        ...


class SuccessWatch:
    """Learns of successes as a sink of Celery's events. It remembers the tasks that have open incidents and no others.

    `task-succeeded` names no task: the name comes from the same run's `task-sent` or `task-received`.
    """

    def __init__(self, most_runs: int = MOST_RUNS) -> None:
        self._lock = threading.Lock()
        self._most_runs = most_runs
        self._watched: frozenset[str] = frozenset()
        self._names: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def watch(self, tasks: Iterable[str]) -> None:
        """Say which tasks matter from now on."""
        with self._lock:
            self._watched = frozenset(tasks)
            self._last = {task: at for task, at in self._last.items() if task in self._watched}

    def last_success(self, task: str) -> float | None:
        """Return the unix time of the last success, by the worker's clock."""
        with self._lock:
            return self._last.get(task)

    def feed(self, events: Sequence[Event], now: float) -> None:
        """Take events in the order of arrival."""
        with self._lock:
            for event in events:
                if isinstance(event, TaskEvent):
                    self._take(event, now)

    def tick(self, now: float) -> None:
        """Nothing is due here."""

    def connection(self, up: bool, now: float) -> None:
        """Missed events are missed: an incident then stays open until the next success."""

    def _take(self, event: TaskEvent, now: float) -> None:
        if event.name is not None and event.type in ("task-received", "task-sent"):
            # Remembered for every task: an incident may open while the run that will end it is under way.
            if len(self._names) >= self._most_runs:
                del self._names[next(iter(self._names))]
            self._names[event.uuid] = event.name[:LONGEST_NAME]
        elif event.type == "task-succeeded":
            name = self._names.pop(event.uuid, None)
            if name in self._watched and name is not None:
                self._last[name] = max(self._last.get(name, 0.0), min(event.timestamp, now))
        elif event.type in ("task-failed", "task-revoked", "task-rejected"):
            self._names.pop(event.uuid, None)
