"""Laws of the page: equal to prometheus_client's own rendering, and read back as what went in."""

from __future__ import annotations

import math

from celeryscope.exporters.prometheus import CeleryscopeCollector, Exposition
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.facts import Family
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["", "a\\", '"', "\n", 'x"} 1\n# EOF\n', "%s %", "é😀", "\0", 'le="0.5"', "{}", "a" * 200, "\r"]),
)
NUMBERS = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=True, allow_infinity=True).filter(bool))
COUNTS = st.integers(0, 2**40)


class Given:
    """Facts that are what the test says."""

    def __init__(self, families=()):
        self.current = families

    def families(self):
        return self.current


@st.composite
def families(draw):
    """Some of the catalogue's families, some without samples, with any label values."""
    found = []
    for metric in draw(st.lists(st.sampled_from(list(METRICS.values())), max_size=5, unique_by=lambda m: m.name)):
        labels = st.tuples(*[HOSTILE for _ in metric.labels])
        if metric.kind == "histogram":
            counts = st.lists(COUNTS, min_size=len(metric.buckets) + 1, max_size=len(metric.buckets) + 1)
            value = st.tuples(counts, st.floats(0, 1e12)).map(lambda pair: [*pair[0], pair[1]])
        else:
            value = NUMBERS if metric.kind == "gauge" else COUNTS
        found.append(Family(metric, list(draw(st.dictionaries(labels, value, max_size=4)).items())))
    return found


STATIC = st.dictionaries(st.sampled_from(["env", "zone", "Acell"]), HOSTILE, max_size=2)


def exposition(brokers, **options):
    facts = {name: Given() for name in brokers}
    return facts, Exposition(facts, own=False, clock=lambda: 0.0, **options)


@given(st.lists(st.tuples(families(), families()), min_size=1, max_size=3), STATIC, st.sampled_from(["", "acme_"]))
def test_equal_to_prometheus_clients_own_rendering(rounds, static, prefix):
    """For any facts of two brokers, over several scrapes, in both formats, byte for byte."""
    facts, page = exposition(["", "other"], static_labels=static, prefix=prefix)
    registry = CollectorRegistry()
    registry.register(CeleryscopeCollector(page))
    for first, second in rounds:
        facts[""].current, facts["other"].current = first, second
        assert page.render() == generate_latest(registry)
        assert page.render(openmetrics=True) == generate_openmetrics(registry)


def samples_of(found):
    """What the facts say, as (name, labels) → value."""
    told = {}
    for metric, samples in found:
        for labels, value in samples:
            pairs = dict(zip(metric.labels, labels, strict=True))
            if isinstance(value, list):
                total = 0.0
                for bound, count in zip((*metric.buckets, math.inf), value[:-1], strict=True):
                    total += count
                    told[f"{metric.name}_bucket", frozenset({**pairs, "le": bound}.items())] = total
                told[f"{metric.name}_count", frozenset(pairs.items())] = total
                told[f"{metric.name}_sum", frozenset(pairs.items())] = value[-1]
            else:
                told[metric.name, frozenset(pairs.items())] = float(value)
    return told


def samples_read(page, read):
    told = {}
    for family in read(page.decode()):
        for sample in family.samples:
            labels = {k: float(v) if k == "le" else v for k, v in sample.labels.items()}
            told[sample.name, frozenset(labels.items())] = sample.value
    return told


def same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value == right[key] or (math.isnan(value) and math.isnan(right[key])), key


@given(families())
def test_what_is_written_is_what_a_reader_reads(found):
    """Escaping is undone by the reference parser, so no label value can forge a line or a series."""
    facts, page = exposition([""])
    facts[""].current = found
    same(samples_of(found), samples_read(page.render(), read_text))


@given(families().map(lambda found: [f for f in found if not f.metric.name.endswith("_info")]))
def test_openmetrics_is_read_too(found):
    facts, page = exposition([""])
    facts[""].current = [f for f in found if f.metric.kind != "gauge" or not f.metric.name.endswith("_total")]
    same(samples_of(facts[""].current), samples_read(page.render(openmetrics=True), read_openmetrics))
