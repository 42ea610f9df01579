"""The fast renderer: what it writes, what it remembers and what it forgets."""

from __future__ import annotations

import math

import pytest
from celeryscope.exporters import text
from celeryscope.exporters.text import Series, escape, header, number, pieces
from celeryscope.monitor.catalog import Metric
from prometheus_client.utils import floatToGoString

GAUGE = Metric("celery_g", "gauge", "A gauge.", ("queue", "task"))
HISTOGRAM = Metric("celery_h_seconds", "histogram", "A histogram.", ("queue", "task"), "seconds", (0.5, 1.0))


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, -1, 0.1, 1e-7, 1.5e-9, -0.0, 999_999.5, 1e6, 1234567.0, 1.7e9 + 0.25, 1e15, 1e16, 1e300, -1e9, True),
        *(math.inf, -math.inf, math.nan, 2**60),
    ],
)
def test_numbers_are_written_as_prometheus_client_does(value):
    assert number(value) == floatToGoString(value)


def test_labels_are_in_the_order_of_their_names_with_constants_among_them():
    series = Series(GAUGE, "celery_g", {"broker": "b%s", "region": "x\n"})
    assert series.lines([(("q", "t%d"), 2)]) == ['celery_g{broker="b%s",queue="q",region="x\\n",task="t%d"} 2.0\n']


def test_a_histogram_is_cumulative_with_le_in_its_place():
    series = Series(HISTOGRAM, "celery_h_seconds", {})
    assert "".join(series.lines([(("q", "t"), [1, 2, 4, 9.5])])) == (
        'celery_h_seconds_bucket{le="0.5",queue="q",task="t"} 1.0\n'
        'celery_h_seconds_bucket{le="1.0",queue="q",task="t"} 3.0\n'
        'celery_h_seconds_bucket{le="+Inf",queue="q",task="t"} 7.0\n'
        'celery_h_seconds_count{queue="q",task="t"} 7.0\n'
        'celery_h_seconds_sum{queue="q",task="t"} 9.5\n'
    )


def test_a_metric_without_labels_has_no_braces():
    assert Series(Metric("celeryscope_x", "gauge", "X."), "celeryscope_x", {}).lines([((), 1.5)]) == [
        "celeryscope_x 1.5\n"
    ]
    histogram = Metric("celeryscope_h", "histogram", "H.", (), "", (1.0,))
    [rendered] = Series(histogram, "celeryscope_h", {}).lines([((), [1, 0, 0.5])])
    assert rendered == (
        'celeryscope_h_bucket{le="1.0"} 1.0\nceleryscope_h_bucket{le="+Inf"} 1.0\n'
        "celeryscope_h_count 1.0\nceleryscope_h_sum 0.5\n"
    )


def test_values_change_and_change_back():
    series = Series(GAUGE, "g", {})
    seen = [series.lines([(("q", "t"), v)])[0].split()[-1] for v in (1, 1, 2.5, 1e9, 2.5, math.nan, math.nan, 1)]
    assert seen == ["1.0", "1.0", "2.5", "1e+09", "2.5", "NaN", "NaN", "1.0"]


def test_a_list_that_its_owner_goes_on_counting_in_is_not_taken_for_unchanged():
    series = Series(HISTOGRAM, "h", {})
    live = [1, 0, 0, 0.1]
    first = series.lines([(("q", "t"), live)])
    live[0] += 1
    assert series.lines([(("q", "t"), live)]) != first


@pytest.mark.parametrize(("metric", "value"), [(GAUGE, 1.0), (HISTOGRAM, [1, 0, 0, 0.5])])
def test_what_is_gone_is_forgotten(metric, value):
    """Series churn for ever (pods); the memory of them may not."""
    series = Series(metric, "m", {})
    for generation in range(50):
        samples = [((f"q{generation}", f"t{i}"), value) for i in range(20)]
        series.lines(samples)
        assert series.remembered == 20
    series.lines([])
    assert series.remembered == 0


@pytest.mark.parametrize(
    ("metric", "labels", "value"),
    [
        (GAUGE, ("only one",), 1.0),
        (GAUGE, ("a", "b", "c"), 1.0),
        (GAUGE, ("a", "b"), [1.0]),
        (HISTOGRAM, ("a", "b"), 1.0),
        (HISTOGRAM, ("a", "b"), [1, 2, 3]),
        (HISTOGRAM, ("a",), [1, 2, 3, 4]),
    ],
)
def test_a_sample_that_does_not_fit_its_metric_is_an_error_that_names_it(metric, labels, value):
    with pytest.raises(ValueError, match="needs"):
        Series(metric, "m", {}).lines([(labels, value)])


def test_lone_surrogates_cannot_break_the_page():
    assert escape("bad \ud800 name").encode() == b"bad ? name"


def test_header_in_both_formats():
    counter = Metric("celery_x_total", "counter", 'Says "a\\b".\nTwice.')
    assert header(counter, "celery_x_total", openmetrics=False) == (
        '# HELP celery_x_total Says "a\\\\b".\\nTwice.\n# TYPE celery_x_total counter\n'
    )
    assert header(counter, "celery_x_total", openmetrics=True) == (
        '# HELP celery_x Says \\"a\\\\b\\".\\nTwice.\n# TYPE celery_x counter\n'
    )
    assert header(HISTOGRAM, "p_h_seconds", openmetrics=True).endswith("# UNIT p_h_seconds seconds\n")


def test_no_single_call_joins_the_whole_page():
    lines = [f"line {i}\n" for i in range(text.LINES_PER_PIECE * 2 + 1)]
    joined = list(pieces(lines))
    assert len(joined) == 3
    assert b"".join(joined) == "".join(lines).encode()
