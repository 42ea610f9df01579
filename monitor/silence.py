"""Decides whether to warn that a broker's workers say nothing, or run tasks and do not say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .events import TaskEvent, WorkerEvent

if TYPE_CHECKING:
    from .events import Event

WORKERS_REMEMBERED = 1000


class Silence:
    """Listens until it hears a task event; `warning` tells, once, what seems wrong without one.

    Args:
        after: seconds without events that are worth a warning.
    """

    def __init__(self, after: float) -> None:
        self.over = False
        self._after = after
        self._warned: set[str] = set()
        self._workers_heard = False
        self._processed: dict[str, int] = {}
        self._grown: set[str] = set()
        self._busy = ""

    def hear(self, events: list[Event]) -> None:
        """Take note of a batch of events."""
        for event in events:
            if isinstance(event, TaskEvent):
                self.over = self.over or event.type != "task-sent"
            elif isinstance(event, WorkerEvent):
                self._workers_heard = True
                self._note(event)

    def warning(self, seconds: float) -> str | None:
        """Return what to tell the user after listening for `seconds`; None where there is nothing (new) to tell."""
        if self.over or seconds < self._after:
            return None
        if not self._workers_heard:
            return self._once(
                f"no event of any worker within {self._after:.0f} s. Does a worker run (one with --without-heartbeat "
                "and without -E says nothing), and on this very URL: same database or virtual host, prefix, exchange?"
            )
        if self._busy:
            return self._once(
                f"worker {self._busy} runs tasks and sends no task events. Start workers with -E or set "
                "worker_send_task_events = True, or let the monitor switch them on with --enable-events"
            )
        return None

    def _note(self, event: WorkerEvent) -> None:
        """Look whether the worker's own count of started tasks has grown."""
        if event.processed is None or self.over:
            return
        before = self._processed.get(event.hostname)
        if before is None and len(self._processed) >= WORKERS_REMEMBERED:
            return
        if before is not None and event.processed > before:
            if event.hostname in self._grown:  # once may be a heartbeat that overtook its task's events
                self._busy = self._busy or event.hostname
            self._grown.add(event.hostname)
        self._processed[event.hostname] = event.processed

    def _once(self, text: str) -> str | None:
        if text in self._warned:
            return None
        self._warned.add(text)
        return text
