"""Unacknowledged messages on Redis, counted incrementally: which tags are new, which are gone, whose they are (pure).

Redis keeps one sorted set of delivery tags for all queues, scored by the time of delivery. Listing 100 000 tags in
every sample costs both sides too much, so the scores are cut into spans of about a thousand tags: a span whose count
has not changed is not listed again. Old spans only ever lose tags, except where consumers' clocks disagree, and such
a change shows in the count too; a loss and a gain that cancel out are found by listing spans in turn regardless.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

Route = tuple[str, str]
"""Exchange and routing key of a message."""

SPAN = 1_000
MOST = 50
"""Spans that are listed anew in one sample."""
_NONE: Mapping[int, Sequence[tuple[bytes, float]]] = MappingProxyType({})


class Held(NamedTuple):
    """What is known of one unacknowledged message: its route, and its ETA (unix time) or 0."""

    route: Route
    eta: float


class Span:
    """The tags whose score is above the previous span's `high` and at most `high`."""

    __slots__ = ("high", "low", "tags")

    def __init__(self, low: float, high: float, tags: set[bytes] | None = None) -> None:
        self.low = low
        self.high = high
        self.tags = tags if tags is not None else set()


class UnackedIndex:
    """Follows the index of unacknowledged messages; the caller does the listing and the looking up."""

    def __init__(self, width: int = SPAN, most: int = MOST) -> None:
        self.width = width
        self.most = most
        self.spans = [Span(-math.inf, math.inf)]
        self.unresolved: dict[bytes, None] = {}
        self._held: dict[bytes, Held | None] = {}
        self._unacked: Counter[Route] = Counter()
        self._scheduled: Counter[Route] = Counter()
        self._due: list[tuple[float, bytes]] = []
        self._turn = 0

    def __len__(self) -> int:
        return sum(len(span.tags) for span in self.spans)

    def changed(self, counts: Sequence[int]) -> list[int]:
        """Return the spans to list anew, given how many tags each holds now; spans that emptied are dropped at once.

        Where very many have changed, those that changed most: the rest is at most some samples old. The last span, to
        which new messages come, is always among them.
        """
        stale: list[tuple[int, int]] = []
        self._turn = (self._turn + 1) % len(self.spans)
        for number, (span, count) in enumerate(zip(self.spans, counts, strict=True)):
            if not count:
                self._drop(span.tags)
                span.tags = set()
            elif number in {self._turn, len(self.spans) - 1}:
                stale.append((sys.maxsize, number))
            elif count != len(span.tags):
                stale.append((abs(count - len(span.tags)), number))
        return [number for _, number in heapq.nlargest(self.most, stale)]

    def update(
        self, plain: Mapping[int, Sequence[bytes]], scored: Mapping[int, Sequence[tuple[bytes, float]]] = _NONE
    ) -> None:
        """Take what the spans of these numbers hold now; `scored` ones, ascending, are cut where they are too wide."""
        listings = {number: set(tags) for number, tags in plain.items()}
        listings |= {number: {tag for tag, _ in pairs} for number, pairs in scored.items()}
        # Losses first: a message that was delivered again has moved from an old span to a new one.
        for number, tags in listings.items():
            span = self.spans[number]
            lost = span.tags - tags
            self._drop(lost)
            span.tags -= lost
        for number, tags in listings.items():
            if len(tags) != len(self.spans[number].tags):
                self._gain(self.spans[number], tags)
        for number in sorted(scored, reverse=True):
            self.spans[number : number + 1] = self._cut(self.spans[number], scored[number])
        self._merge()

    def _gain(self, span: Span, tags: set[bytes]) -> None:
        for tag in tags - span.tags:
            if tag not in self._held:
                self.unresolved[tag] = None
                continue
            for other in self.spans:
                other.tags.discard(tag)
        span.tags = tags

    def _cut(self, span: Span, listed: Sequence[tuple[bytes, float]]) -> list[Span]:
        pieces: list[Span] = []
        low, tags = span.low, set[bytes]()
        for position, (tag, score) in enumerate(listed):
            tags.add(tag)
            following = listed[position + 1][1] if position + 1 < len(listed) else score
            # Equal scores stay together: a span's bounds are all that tells where a tag belongs.
            if len(tags) >= self.width and following > score:
                pieces.append(Span(low, score, tags))
                low, tags = score, set()
        pieces.append(Span(low, span.high, tags))
        return pieces

    def _merge(self) -> None:
        """Join neighbours that have become sparse, so that the number of spans follows the number of tags."""
        joined = [self.spans[0]]
        for span in self.spans[1:]:
            last = joined[-1]
            # The open span takes what comes in: while nothing is joined to it, it stays cheap to list.
            sparse = len(last.tags) + len(span.tags) <= self.width // 2 and span.high != math.inf
            if sparse or not last.tags:
                joined[-1] = Span(last.low, span.high, last.tags | span.tags)
            else:
                joined.append(span)
        self.spans = joined

    def resolve(self, tag: bytes, held: Held | None, now: float) -> None:
        """Say whose an unresolved tag is; None where the index names a message that does not exist."""
        self.unresolved.pop(tag, None)
        self._held[tag] = held
        if held is None:
            return
        if held.eta > now:
            self._scheduled[held.route] += 1
            heapq.heappush(self._due, (held.eta, tag))
        else:
            self._held[tag] = Held(held.route, 0.0)
            self._unacked[held.route] += 1

    def counts(self, now: float) -> tuple[Counter[Route], Counter[Route]]:
        """Return (unacked, scheduled) by route as of `now`: a message whose ETA has come is no longer scheduled."""
        while self._due and self._due[0][0] <= now:
            eta, tag = heapq.heappop(self._due)
            held = self._held.get(tag)
            if held is not None and held.eta == eta:
                self._held[tag] = Held(held.route, 0.0)
                self._less(self._scheduled, held.route)
                self._unacked[held.route] += 1
        if len(self._due) > 1_000 and len(self._due) > 4 * self._scheduled.total():
            self._due = [(eta, tag) for eta, tag in self._due if getattr(self._held.get(tag), "eta", None) == eta]
            heapq.heapify(self._due)
        return self._unacked, self._scheduled

    def _drop(self, tags: Iterable[bytes]) -> None:
        for tag in tags:
            self.unresolved.pop(tag, None)
            held = self._held.pop(tag, None)
            if held is not None:
                self._less(self._scheduled if held.eta else self._unacked, held.route)

    @staticmethod
    def _less(counter: Counter[Route], route: Route) -> None:
        counter[route] -= 1
        if not counter[route]:
            del counter[route]
