"""PromQL out of the catalogue: what it looks like, and that nothing else can be named."""

from __future__ import annotations

import pytest
from celeryscope.dashboards import queries
from celeryscope.dashboards.queries import UnknownSeriesError
from celeryscope.dashboards.recordings import by_owner, either, either_gauge, rate_of, recorded, recordings

TASK = ('broker=~"$broker"', 'task=~"$task"')


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("celery_tasks_waiting", ("broker", "task", "queue")),
        ("celery_task_wait_seconds_bucket", ("broker", "task", "queue", "le")),
        ("celery_task_wait_seconds_sum", ("broker", "task", "queue")),
        ("celery_beat_up", ("broker", "app", "beat")),
        ("celeryscope_connected", ("broker",)),
    ],
)
def test_a_series_has_the_labels_of_its_metric(name: str, labels: tuple[str, ...]):
    assert queries.labels_of(name) == labels


@pytest.mark.parametrize("name", ["celery_task_wait_seconds", "celery_beat_up_bucket", "celery_nothing", "up", ""])
def test_a_series_that_is_not_in_the_catalogue_cannot_be_named(name: str):
    with pytest.raises(UnknownSeriesError, match="no series"):
        queries.select(name)


@pytest.mark.parametrize("matcher", ['worker="w"', 'nothing=~"x"', 'worker!="w"', 'worker!~"w"'])
def test_a_label_that_the_metric_lacks_cannot_be_matched(matcher: str):
    with pytest.raises(UnknownSeriesError, match="no label"):
        queries.select("celery_tasks_waiting", matcher)


@pytest.mark.parametrize("matcher", ['task="t"', 'task!="t"', 'task=~"t"', 'task!~"t"', 'broker="b"', 'instance="i"'])
def test_every_kind_of_matcher_is_understood(matcher: str):
    assert queries.select("celery_tasks_waiting", matcher) == f"celery_tasks_waiting{{{matcher}}}"


def test_two_monitors_are_one_before_anything_is_summed():
    assert queries.total(queries.fact("celery_tasks_waiting")) == (
        "sum(max by (broker, task, queue) (celery_tasks_waiting))"
    )
    assert queries.rate("celery_worker_processed_total", window="5m") == (
        "max by (broker, worker) (rate(celery_worker_processed_total[5m]))"
    )
    assert queries.increase("celery_worker_processed_total", window="1h") == (
        "max by (broker, worker) (increase(celery_worker_processed_total[1h]))"
    )


def test_growth_is_per_series_before_monitors_are_one():
    name = "celery_worker_processed_total"
    grew = queries.growth(name, window="1h")
    assert grew.startswith(f"max by (broker, worker) ({name} unless on (broker, worker) last_over_time({name}[3h] off")
    assert "process_start_time_seconds > time() - 3600)" in grew
    assert grew.endswith(f" or increase({name}[1h]))")
    assert "> time() - $__range_s)" in queries.growth(name, window="$__range")


def test_what_is_a_part_can_be_left_out():
    whole, part = (f"celery_worker_starts_missed{part}_total" for part in ("", "_down"))
    assert queries.increase(whole, window="5m", less=part) == (
        f"max by (broker, worker) (increase({whole}[5m]) - increase({part}[5m]))"
    )


def test_facts_about_a_monitor_stay_with_it():
    assert queries.own_fact("celeryscope_connected") == "max by (instance, broker) (celeryscope_connected)"
    assert queries.own_rate("celeryscope_events_total", 'type="x"', window="5m") == (
        'max by (instance, broker, type) (rate(celeryscope_events_total{type="x"}[5m]))'
    )
    assert queries.own_increase("celeryscope_reconnects_total", window="1h") == (
        "max by (instance, broker) (increase(celeryscope_reconnects_total[1h]))"
    )


def test_the_past_is_asked_of_the_series_and_not_of_what_became_of_it():
    assert queries.earlier("celery_worker_up", offset="1m") == "max by (broker, worker) (celery_worker_up offset 1m)"


def test_a_mean_is_sum_over_count_and_nothing_where_nothing_was_observed():
    assert queries.mean("celery_task_retries", ("task",), window="5m") == (
        "sum by (task) (max by (broker, task, queue) (rate(celery_task_retries_sum[5m])))"
        " / (sum by (task) (max by (broker, task, queue) (rate(celery_task_retries_count[5m]))) > 0)"
    )


def test_small_words():
    assert queries.largest("x") == "max(x)"
    assert queries.largest("x", ("task",)) == "max by (task) (x)"
    assert queries.top(3, "x") == "topk(3, x)"
    assert queries.or_zero("sum(x)", "max by (a) (y)") == "(sum(x)) or 0 * max(max by (a) (y))"
    assert queries.total("x", ("task", "queue")) == "sum by (task, queue) (x)"


def test_what_is_recorded_is_named_after_its_series():
    assert rate_of("celery_task_failed_total") == "celery:task_failed:rate5m"
    assert rate_of("celery_task_wait_seconds_bucket") == "celery:task_wait_seconds_bucket:rate5m"
    assert by_owner("celery_task_failed_total") == "celery_queue:task_failed:rate5m"
    assert by_owner("celery_beat_lateness_seconds_bucket") == "celery_app:beat_lateness_seconds_bucket:rate5m"


def test_a_recording_that_is_not_made_cannot_be_read():
    with pytest.raises(UnknownSeriesError, match="nothing records"):
        recorded("celery:task_nothing:rate5m")
    with pytest.raises(UnknownSeriesError, match="no label 'worker'"):
        recorded("celery:task_failed:rate5m", 'worker="w"')
    with pytest.raises(UnknownSeriesError, match="no label 'task'"):
        recorded("celery_queue:task_failed:rate5m", 'task="t"')


def test_at_all_the_sums_are_read_and_else_the_tasks():
    assert either("celery_task_failed_total", *TASK) == (
        '({__name__="celery_queue:task_failed:rate5m", __name__=~"$task", broker=~"$broker"}'
        ' or {__name__="celery:task_failed:rate5m", __name__!~"$task", broker=~"$broker", task=~"$task"})'
    )
    assert either_gauge("celery_tasks_waiting", *TASK) == (
        'sum({__name__="celery_queue:tasks_waiting:sum", __name__=~"$task", broker=~"$broker"} or '
        'max by (broker, task, queue) ({__name__="celery_tasks_waiting", __name__!~"$task", broker=~"$broker", '
        'task=~"$task"}))'
    )


def test_either_knows_the_labels_too():
    with pytest.raises(UnknownSeriesError, match="no label 'worker'"):
        either("celery_task_failed_total", *TASK, 'worker="w"')
    with pytest.raises(UnknownSeriesError, match="nothing records"):
        either("celery_task_sent_coverage_ratio", *TASK)
    with pytest.raises(UnknownSeriesError, match="no label 'worker'"):
        either_gauge("celery_tasks_waiting", *TASK, 'worker="w"')


def test_the_second_level_comes_after_the_first():
    """A group's rules are evaluated in order, so that sums are of the same moment as what they sum."""
    names = [recording.record for recording in recordings()]
    assert names.index("celery_queue:task_failed:rate5m") > names.index("celery:task_failed:rate5m")
    assert len({recording.group for recording in recordings()}) == 1
