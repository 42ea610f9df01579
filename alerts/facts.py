"""The alerter's own numbers, as families for its /metrics page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..monitor.catalog import METRICS
from ..monitor.facts import Family

FAILURES = METRICS["celeryscope_alerter_failures_total"]
REQUESTS = METRICS["celeryscope_alerter_slack_requests_total"]
OUTBOX = METRICS["celeryscope_alerter_outbox_messages"]
OLDEST = METRICS["celeryscope_alerter_oldest_failure_seconds"]
INCIDENTS = METRICS["celeryscope_alerter_incidents"]


class Outbox(Protocol):
    """One broker's outbox as its consumer knows it."""

    waiting: int | None
    """Messages on the broker; None: not known."""
    oldest: float | None
    """Unix time of the oldest failure known to wait."""


class Tally(Protocol):
    """A counter by name."""

    def items(self) -> Iterable[tuple[str, int]]:
        """Return names and counts."""
        ...


@dataclass
class AlerterFacts:
    """Implements `Facts` over what the alerter's parts count; `states` is replaced whole, now and then."""

    clock: Callable[[], float]
    results: Tally
    requests: Tally
    outboxes: Sequence[Outbox] = ()
    states: Mapping[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def families(self) -> Iterable[Family]:
        """Return the alerter's families."""
        with self._lock:
            waiting = [outbox.waiting for outbox in self.outboxes if outbox.waiting is not None]
            oldest = [outbox.oldest for outbox in self.outboxes if outbox.oldest is not None]
            age = max(0.0, self.clock() - min(oldest)) if oldest else 0.0
            return [
                Family(FAILURES, _labelled(dict(self.results.items()))),
                Family(REQUESTS, _labelled({"ok": 0, **dict(self.requests.items())})),
                # No broker answered yet: no number rather than a wrong one.
                Family(OUTBOX, [((), float(sum(waiting)))] if waiting else []),
                Family(OLDEST, [((), age)] if waiting else []),
                Family(INCIDENTS, _labelled(dict(self.states))),
            ]


def _labelled(counts: Mapping[str, int]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), float(count)) for name, count in sorted(counts.items())]
