"""The incremental index of unacknowledged messages against a model that lists everything."""

from __future__ import annotations

import itertools
import math
from collections import Counter

from celeryscope.monitor.queues_unacked import Held, UnackedIndex
from hypothesis import given
from hypothesis import strategies as st

TAGS = [f"t{n}".encode() for n in range(24)]
ADD = st.tuples(st.just("add"), st.sampled_from(TAGS), st.integers(0, 12))
REMOVE = st.tuples(st.just("remove"), st.sampled_from(TAGS), st.just(0))
SAMPLE = st.tuples(st.just("sample"), st.just(b""), st.just(0))


def held(tag: bytes) -> Held:
    """Every third message has an ETA; queues differ."""
    number = int(tag[1:])
    return Held(("", f"q{number % 2}"), 50.0 if number % 3 == 0 else 0.0)


class Server:
    """A sorted set, and the sampler's part in asking it."""

    def __init__(self, index: UnackedIndex) -> None:
        self.scores: dict[bytes, float] = {}
        self.index = index

    def within(self, low: float, high: float) -> list[tuple[bytes, float]]:
        found = [(tag, score) for tag, score in self.scores.items() if low < score <= high]
        return sorted(found, key=lambda pair: (pair[1], pair[0]))

    def sample(self, now: float) -> int:
        spans = self.index.spans
        assert (spans[0].low, spans[-1].high) == (-math.inf, math.inf)
        assert all(a.high == b.low for a, b in itertools.pairwise(spans))
        stale = self.index.changed([len(self.within(span.low, span.high)) for span in spans])
        wide = [n for n in stale if n == len(spans) - 1 or len(self.within(spans[n].low, spans[n].high)) > 6]
        self.index.update(
            {n: [tag for tag, _ in self.within(spans[n].low, spans[n].high)] for n in stale if n not in wide},
            {n: self.within(spans[n].low, spans[n].high) for n in wide},
        )
        for tag in list(self.index.unresolved):
            self.index.resolve(tag, held(tag), now)
        return len(self.index.spans)

    def settle(self, now: float) -> None:
        """As many quiet samples as it takes to list every span in turn, twice over."""
        for _ in range(2):
            for _ in range(len(self.index.spans) + 2):
                self.sample(now)


@given(st.lists(st.one_of(ADD, REMOVE, SAMPLE), max_size=120))
def test_counts_settle_on_what_the_server_holds(steps):
    """Whatever is added, removed, delivered again with another score or by a slow clock: the counts come right."""
    server = Server(UnackedIndex(width=3))
    for kind, tag, score in steps:
        if kind == "add":
            server.scores[tag] = float(score)
        elif kind == "remove":
            server.scores.pop(tag, None)
        else:
            server.sample(now=10.0)
    server.settle(10.0)
    for now in (10.0, 60.0):
        unacked, scheduled = server.index.counts(now)
        expected: tuple[Counter, Counter] = (Counter(), Counter())
        for tag in server.scores:
            expected[held(tag).eta > now][held(tag).route] += 1
        assert (unacked, scheduled) == expected


def test_quiet_spans_are_not_listed_again_and_empty_ones_disappear():
    index = UnackedIndex(width=10)
    server = Server(index)
    server.scores = {f"t{n}".encode(): float(n) for n in range(100)}
    assert server.sample(0.0) == 10
    counts = [len(server.within(span.low, span.high)) for span in index.spans]
    assert len(index.changed(counts)) <= 2
    server.scores = {tag: score for tag, score in server.scores.items() if score >= 50}
    server.settle(0.0)
    assert len(index) == 50
    assert len(index.spans) <= 6
    server.scores.clear()
    server.settle(0.0)
    assert (len(index), len(index.spans)) == (0, 1)
    assert index.counts(0.0) == (Counter(), Counter())


def test_equal_scores_stay_in_one_span():
    server = Server(UnackedIndex(width=3))
    server.scores = {f"t{n}".encode(): 5.0 for n in range(20)}
    assert server.sample(0.0) == 1
    assert len(server.index) == 20


def test_tag_without_a_message_counts_nowhere_and_is_not_looked_up_again():
    index = UnackedIndex()
    index.update({}, {0: [(b"t1", 1.0)]})
    index.resolve(b"t1", None, 0.0)
    index.update({}, {0: [(b"t1", 1.0)]})
    assert (dict(index.unresolved), index.counts(0.0)) == ({}, (Counter(), Counter()))


def test_only_the_most_changed_spans_are_listed_and_always_the_last():
    index = UnackedIndex(width=2, most=3)
    server = Server(index)
    server.scores = {f"t{n}".encode(): float(n) for n in range(24)}
    server.sample(0.0)
    assert len(index.spans) > 6
    stale = index.changed([9] * len(index.spans))
    assert len(stale) == 3
    assert len(index.spans) - 1 in stale
