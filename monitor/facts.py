"""The form in which every part of the monitor hands over its numbers: metric families, without presentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from .catalog import Metric

Labels = tuple[str, ...]
"""Label values in the order of `Metric.labels`."""

Buckets = list[float]
"""A histogram's value: one count per bucket (not cumulative), the count above the last bound, then the sum."""


class Family(NamedTuple):
    """All series of one metric: counters and gauges carry numbers, histograms carry `Buckets`."""

    metric: Metric
    samples: Sequence[tuple[Labels, float | Buckets]]


class Facts(Protocol):
    """Something that can be scraped; `families` only copies what is in memory and never does I/O."""

    def families(self) -> Iterable[Family]:
        """Return the current families; may be called from any thread."""
        ...
