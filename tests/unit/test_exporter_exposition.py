"""The page of several sources: one HELP a metric, labels of ours, and a source that fails costs itself only."""

from __future__ import annotations

import logging
import re
import threading

import pytest
from celeryscope.exporters.prometheus import CeleryscopeCollector, Exposition
from celeryscope.monitor.catalog import METRICS, Metric
from celeryscope.monitor.facts import Family
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

SENT = METRICS["celery_task_sent_total"]
UP = METRICS["celery_worker_up"]
RUNTIME = METRICS["celery_task_runtime_seconds"]


class Given:
    """Facts that are what the test says, or raise what it says."""

    def __init__(self, *families):
        self.current = families
        self.error = None

    def families(self):
        if self.error is not None:
            raise self.error
        return self.current


def sent(count):
    return Family(SENT, [(("t", "q"), count)])


def samples(page):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }


def test_brokers_share_one_help_and_type_and_differ_by_label():
    page = Exposition({"a": Given(sent(1)), "b": Given(sent(2))}).render()
    assert page.count(b"# TYPE celery_task_sent_total counter\n") == 1
    assert page.count(b"# HELP celery_task_sent_total ") == 1
    assert b'celery_task_sent_total{broker="a",queue="q",task="t"} 1.0\n' in page
    assert b'celery_task_sent_total{broker="b",queue="q",task="t"} 2.0\n' in page


def test_a_single_broker_without_a_name_has_no_broker_label():
    assert b'celery_task_sent_total{queue="q",task="t"} 1.0\n' in Exposition({"": Given(sent(1))}).render()


def test_other_facts_stand_beside_the_brokers_without_their_label():
    failures = Family(METRICS["celeryscope_alerter_failures_total"], [(("notified",), 3)])
    page = Exposition({"a": Given(sent(1))}, others={"alerter": Given(failures)}).render()
    assert b'celeryscope_alerter_failures_total{result="notified"} 3.0\n' in page
    assert b'celeryscope_collector_success{collector="alerter"} 1.0\n' in page
    assert b'celeryscope_collector_success{broker="a",collector="facts"} 1.0\n' in page


def test_static_labels_are_on_every_series_and_the_prefix_on_every_name_of_ours():
    page = Exposition({"": Given(sent(1))}, static_labels={"env": 'pr"od'}, prefix="acme_").render()
    assert b'acme_celery_task_sent_total{env="pr\\"od",queue="q",task="t"} 1.0\n' in page
    for family in text_string_to_metric_families(page.decode()):
        assert family.samples, family.name
        assert family.name.startswith(("acme_celery", "process_", "python_"))
        for sample in family.samples:
            assert sample.labels["env"] == 'pr"od', sample


def test_the_same_metric_with_other_buckets_is_rendered_with_its_own():
    coarse = Metric(RUNTIME.name, "histogram", RUNTIME.help, RUNTIME.labels, "seconds", (1.0,))
    source = Given(Family(RUNTIME, [(("t", "q", "succeeded"), [0] * (len(RUNTIME.buckets) + 1) + [0.0])]))
    page = Exposition({"": source})
    page.render()
    source.current = [Family(coarse, [(("t", "q", "succeeded"), [1, 2, 3.5])])]
    lines = [line for line in page.render().splitlines() if line.startswith(b"celery_task_runtime_seconds_bucket")]
    assert [line.split()[-1] for line in lines] == [b"1.0", b"3.0"]


def test_one_failing_source_leaves_the_others_and_says_so(caplog):
    good, bad = Given(sent(1)), Given(sent(2))
    page = Exposition({"good": good, "bad": bad})
    bad.error = RuntimeError("boom")
    first = samples(page.render())
    assert first["celery_task_sent_total", ("broker", "good"), ("queue", "q"), ("task", "t")] == 1
    assert ("celery_task_sent_total", ("broker", "bad"), ("queue", "q"), ("task", "t")) not in first
    assert first["celeryscope_collector_success", ("broker", "bad"), ("collector", "facts")] == 0
    assert first["celeryscope_collector_success", ("broker", "good"), ("collector", "facts")] == 1
    page.render()
    bad.error = None
    assert samples(page.render())["celeryscope_collector_success", ("broker", "bad"), ("collector", "facts")] == 1
    # An outage is said once when it begins and once when it ends, however many scrapes it lasts.
    levels = [(r.levelno, r.getMessage()) for r in caplog.records]
    assert levels == [
        (logging.ERROR, "collector facts of broker bad failed, its metrics are missing"),
        (logging.WARNING, "collector facts of broker bad works again"),
    ]


def test_a_family_that_cannot_be_rendered_costs_that_family_only():
    source = Given(Family(UP, [(("too", "many"), 1)]), sent(5))
    told = samples(Exposition({"": source}).render())
    assert told["celery_task_sent_total", ("queue", "q"), ("task", "t")] == 5
    assert told["celeryscope_collector_success", ("collector", "facts")] == 0


def test_collectors_that_a_source_reports_itself_are_in_the_same_family():
    own = Family(METRICS["celeryscope_collector_success"], [(("queues",), 0)])
    page = Exposition({"": Given(own)}).render()
    assert page.count(b"# TYPE celeryscope_collector_success gauge") == 1
    told = samples(page)
    assert told["celeryscope_collector_success", ("collector", "queues")] == 0
    assert told["celeryscope_collector_success", ("collector", "facts")] == 1


def test_the_page_tells_about_the_process_and_the_build():
    for openmetrics in (False, True):
        page = Exposition({}).render(openmetrics=openmetrics)
        for name in (b"celeryscope_build_info{", b"process_resident_memory_bytes ", b"python_info{"):
            assert b"\n" + name in page
        assert page.endswith(b"# EOF\n") is openmetrics
        assert page.count(b"# EOF") == int(openmetrics)


def test_nothing_else_is_on_a_page_that_is_not_to_tell_about_itself():
    assert Exposition({"": Given()}, own=False).render() == b""


def test_the_collector_fits_anybodys_registry():
    registry = CollectorRegistry()
    source = Given()
    source.error = RuntimeError("not asked at registration")
    registry.register(CeleryscopeCollector(Exposition({"": source}, own=False)))
    source.error, source.current = None, [sent(3)]
    assert registry.get_sample_value("celery_task_sent_total", {"task": "t", "queue": "q"}) == 3
    assert b"celery_task_sent_total" in generate_latest(registry)


def test_the_collector_says_the_same_as_the_page():
    own = Family(METRICS["celeryscope_collector_success"], [(("queues",), 0)])
    page = Exposition({"a": Given(sent(1), own), "b": Given(own)}, clock=lambda: 0.0)
    registry = CollectorRegistry()
    registry.register(CeleryscopeCollector(page))
    assert page.render().startswith(generate_latest(registry))


@pytest.mark.parametrize("prefix", ["9a", "a-b", "a b", "é", "a\n"])
def test_a_prefix_that_would_break_every_name_is_refused(prefix):
    with pytest.raises(ValueError, match="metric prefix"):
        Exposition({}, prefix=prefix)


@pytest.mark.parametrize(
    "label", ["1a", "a-b", "__x", "le", "quantile", "broker", "task", "queue", "worker", "", "a\n"]
)
def test_a_static_label_that_is_none_or_is_taken_is_refused_by_name(label):
    with pytest.raises(ValueError, match=re.escape(f"static label {label!r}")):
        Exposition({}, static_labels={label: "x"})


def test_scrapes_at_the_same_time_do_not_mix():
    source = Given(Family(SENT, [((f"t{i}", "q"), i) for i in range(500)]))
    page = Exposition({"": source}, own=False)
    expected = page.render()
    pages = []
    threads = [threading.Thread(target=lambda: pages.extend(page.render() for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pages == [expected] * 40


def test_pages_of_vanished_series_are_not_held():
    source = Given()
    page = Exposition({"": source}, own=False)
    for generation in range(20):
        source.current = [Family(UP, [((f"pod-{generation}-{i}",), 1) for i in range(10)])]
        page.render()
    assert sum(s.remembered for source in page._sources for s in source.series.values()) == 10
