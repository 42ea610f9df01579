"""celery-exporter's names: the same names, labels and values, and right where it is wrong."""

from __future__ import annotations

import pytest
from celeryscope.exporters.compat import CompatFacts, compat_exposition
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.compat import OTHER, CompatCounts, compat_metrics, host_of
from celeryscope.monitor.events import TaskEvent, WorkerEvent
from celeryscope.monitor.facts import Family
from celeryscope.monitor.pipeline import Pipeline
from prometheus_client.parser import text_string_to_metric_families

RUN = ("name", "hostname", "queue_name")
PUBLISHED = {
    # Read off that exporter's source: kind and labels of all it publishes.
    "celery_task_sent_total": ("counter", RUN),
    "celery_task_received_total": ("counter", RUN),
    "celery_task_started_total": ("counter", RUN),
    "celery_task_succeeded_total": ("counter", RUN),
    "celery_task_failed_total": ("counter", ("name", "hostname", "exception", "queue_name")),
    "celery_task_rejected_total": ("counter", RUN),
    "celery_task_revoked_total": ("counter", RUN),
    "celery_task_retried_total": ("counter", RUN),
    "celery_task_runtime": ("histogram", RUN),
    "celery_task_queue_wait_time": ("histogram", RUN),
    "celery_worker_up": ("gauge", ("hostname",)),
    "celery_worker_tasks_active": ("gauge", ("hostname",)),
    "celery_queue_length": ("gauge", ("queue_name",)),
    "celery_active_consumer_count": ("gauge", ("queue_name",)),
    "celery_active_worker_count": ("gauge", ("queue_name",)),
    "celery_active_process_count": ("gauge", ("queue_name",)),
}


class Given:
    def __init__(self, **samples):
        self.samples = samples

    def families(self):
        return [Family(METRICS[name], list(samples.items())) for name, samples in self.samples.items()]


def page(counts, facts=None, **options):
    """The page's samples: (name, labels…) → value."""
    rendered = compat_exposition({"": CompatFacts(facts or Given(), counts)}, **options).render().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(rendered)
        for sample in family.samples
    }


def labels(task, host, queue, **more):
    return tuple(sorted({"name": task, "hostname": host, "queue_name": queue, **more}.items()))


def test_names_kinds_and_labels_are_that_exporters():
    declared = {metric.name: (metric.kind, metric.labels) for metric in compat_metrics().values()}
    assert declared == PUBLISHED


def test_the_prefix_replaces_celery_as_its_option_does():
    assert {m.name for m in compat_metrics("acme_").values()} == {n.replace("celery_", "acme_", 1) for n in PUBLISHED}


def test_buckets_can_be_those_that_its_option_gave():
    counts = CompatCounts(compat_metrics(runtime_buckets=(1.0, 60.0)))
    counts.observe("succeeded", "t", "q", "w@h", runtime=30.0)
    told = page(counts)
    assert told[("celery_task_runtime_bucket", *labels("t", "h", "q", le="60.0"))] == 1
    assert told[("celery_task_runtime_bucket", *labels("t", "h", "q", le="1.0"))] == 0


@pytest.mark.parametrize(
    ("node", "host"), [("w1@host", "host"), ("gen531@host", "host"), ("host", "host"), ("a@b@c", "b@c"), ("a@", "a@")]
)
def test_the_host_is_what_follows_the_at(node, host):
    assert host_of(node) == host


@pytest.mark.parametrize("kind", ["sent", "received", "started", "succeeded", "rejected", "revoked", "retried"])
def test_each_kind_counts_where_it_belongs(kind):
    counts = CompatCounts()
    for _ in range(3):
        counts.observe(kind, "t", "q", "w@h")
    told = page(counts)
    assert told[(f"celery_task_{kind}_total", *labels("t", "h", "q"))] == 3
    assert sum(value for (name, *_), value in told.items() if name.endswith("_total")) == 3


def test_failures_count_by_exception_class():
    counts = CompatCounts()
    for exception in ("ValueError", "ValueError", "TimeLimitExceeded", "unknown", None):
        counts.observe("failed", "t", "q", "w@h", exception=exception)
    told = page(counts)
    found = {dict(key[1:])["exception"]: value for key, value in told.items() if key[0] == "celery_task_failed_total"}
    assert found == {"": 0, "ValueError": 2, "TimeLimitExceeded": 1, "UnknownException": 2}


def test_a_worker_that_met_a_task_has_all_its_counters_from_zero_and_a_producer_only_sent():
    counts = CompatCounts()
    counts.observe("sent", "t", "q", "gen1@web")
    counts.observe("received", "t", "q", "w@h")
    told = page(counts)
    assert {key[0] for key in told if ("hostname", "web") in key} == {"celery_task_sent_total"}
    assert {key[0] for key in told if ("hostname", "h") in key} == {
        name for name, (kind, _) in PUBLISHED.items() if kind == "counter"
    }
    assert told[("celery_task_failed_total", *labels("t", "h", "q", exception=""))] == 0


def test_producers_can_be_counted_as_one():
    counts = CompatCounts(generic_sent_hostname=True)
    counts.observe("sent", "t", "q", "gen1@pod-1")
    counts.observe("sent", "t", "q", "gen2@pod-2")
    counts.observe("started", "t", "q", "w@h")
    told = page(counts)
    assert told[("celery_task_sent_total", *labels("t", "generic", "q"))] == 2
    assert told[("celery_task_started_total", *labels("t", "h", "q"))] == 1


def test_runtime_is_of_successes_and_waiting_of_starts():
    counts = CompatCounts()
    counts.observe("started", "t", "q", "w@h", wait=31.0)
    counts.observe("started", "t", "q", "w@h")
    counts.observe("succeeded", "t", "q", "w@h", runtime=0.3)
    counts.observe("succeeded", "t", "q", "w@h", runtime=None)
    counts.observe("failed", "t", "q", "w@h", runtime=5.0, exception="E")
    told = page(counts)
    assert told[("celery_task_runtime_count", *labels("t", "h", "q"))] == 1
    assert told[("celery_task_runtime_sum", *labels("t", "h", "q"))] == 0.3
    assert told[("celery_task_runtime_bucket", *labels("t", "h", "q", le="0.5"))] == 1
    assert told[("celery_task_runtime_bucket", *labels("t", "h", "q", le="0.25"))] == 0
    assert told[("celery_task_queue_wait_time_count", *labels("t", "h", "q"))] == 1
    assert told[("celery_task_queue_wait_time_bucket", *labels("t", "h", "q", le="60.0"))] == 1
    assert told[("celery_task_queue_wait_time_bucket", *labels("t", "h", "q", le="30.0"))] == 0


def test_cancelled_runs_have_no_counter_there():
    counts = CompatCounts()
    counts.observe("cancelled", "t", "q", "w@h")
    assert sum(page(counts).values()) == 0


def up(**workers):
    """Facts of workers by name (an underscore stands for the @): up, lost, offline."""
    names = {name.replace("_", "@"): state for name, state in workers.items()}
    return Given(
        celery_worker_up={(name,): float(state == "up") for name, state in names.items()},
        celery_worker_lost={(name,): float(state == "lost") for name, state in names.items()},
        celery_worker_active_tasks={(name,): 2.0 for name in names},
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (up(a_h="up"), 1),
        (up(a_h="lost"), 0),
        (up(a_h="offline"), 0),
        (up(a_h="up", b_h="up"), 1),
        (up(a_h="up", b_h="lost"), 0),  # there the heartbeats of one hid the death of the other
        (up(a_h="up", b_h="offline"), 1),
        (up(a_h="offline", b_h="offline"), 0),
    ],
)
def test_workers_of_one_host(facts, expected):
    told = page(CompatCounts(), facts)
    assert told["celery_worker_up", ("hostname", "h")] == expected
    assert told["celery_worker_tasks_active", ("hostname", "h")] == 2 * len(facts.samples["celery_worker_up"])


def test_queues():
    facts = Given(
        celery_queue_messages={("q", "ready"): 7, ("q", "unacked"): 3, ("q", "scheduled"): 2},
        celery_queue_consumers={("q",): 2},
        celery_queue_slots={("q",): 16},
    )
    told = page(CompatCounts(), facts)
    assert told["celery_queue_length", ("queue_name", "q")] == 7
    assert told["celery_active_worker_count", ("queue_name", "q")] == 2
    assert told["celery_active_consumer_count", ("queue_name", "q")] == 2
    assert told["celery_active_process_count", ("queue_name", "q")] == 16


def test_the_page_holds_nothing_else():
    counts = CompatCounts()
    counts.observe("started", "t", "q", "w@h", wait=1.0)
    rendered = compat_exposition({"": CompatFacts(up(a_h="up"), counts)}).render().decode()
    families = {line.split()[2] for line in rendered.splitlines() if line.startswith("# TYPE")}
    assert families == set(PUBLISHED)


def test_a_static_label_that_it_uses_itself_is_refused():
    for label in ("hostname", "queue_name", "name", "exception"):
        with pytest.raises(ValueError, match=f"static label '{label}'"):
            compat_exposition({}, static_labels={label: "x"})
    counts = CompatCounts()
    counts.observe("sent", "t", "q", "w@h")
    assert page(counts, static_labels={"env": "prod"})[("celery_task_sent_total", *labels("t", "h", "q", env="prod"))]


def rows(counts):
    return sum(len(found) for found in counts._rows.values())


def test_rows_are_bounded_and_nothing_counted_is_lost():
    counts = CompatCounts(most_rows=50, most_hosts=20)
    for i in range(1_000):
        counts.observe("started", f"t{i % 3}", "q", f"w@pod-{i}")
    assert rows(counts) <= 50 + 3
    told = page(counts)
    assert sum(value for (name, *_), value in told.items() if name == "celery_task_started_total") == 1_000
    assert any(("hostname", OTHER) in key for key in told)


def test_pods_that_come_and_go_leave_nothing_behind():
    counts = CompatCounts()
    for generation in range(200):
        worker = f"w@pod-{generation}"
        counts.observe("started", "t", "q", worker, wait=0.1)
        counts.forget(worker)
    assert rows(counts) == counts._count == len(counts._workers) == 0
    assert not [key for key in page(counts) if key[0].startswith("celery_task")]


def test_a_host_stays_while_one_of_its_workers_does():
    counts = CompatCounts()
    counts.observe("started", "t", "q", "a@h")
    counts.observe("started", "t", "q", "b@h")
    counts.forget("a@h")
    assert page(counts)[("celery_task_started_total", *labels("t", "h", "q"))] == 2
    counts.forget("b@h")
    counts.forget("never-seen@h")
    assert rows(counts) == 0


def test_exception_classes_are_bounded():
    counts = CompatCounts()
    for i in range(1_000):
        counts.observe("failed", "t", "q", "w@h", exception=f"E{i}")
    told = {k: v for k, v in page(counts).items() if k[0] == "celery_task_failed_total"}
    assert len(told) <= 202
    assert sum(told.values()) == 1_000


def test_what_the_pipeline_tells_ends_up_there_and_goes_with_the_worker():
    """From events to rows, deduplicated and named by the task table; a forgotten worker leaves nothing."""
    counts = CompatCounts()
    pipeline = Pipeline(METRICS, observer=counts, worker_timeout=60, forget_worker_after=600, clock=lambda: 1_000.0)
    pipeline.connection(True, 990.0)
    sent = {"uuid": "u", "hostname": "gen1@web", "name": "t", "queue": "q", "timestamp": 1_000.0}
    heard = {"uuid": "u", "hostname": "w@h", "pid": 1}
    started = TaskEvent(type="task-started", timestamp=1_002.0, clock=2, **heard)
    pipeline.feed(
        [
            WorkerEvent(type="worker-online", hostname="w@h", timestamp=999.0),
            TaskEvent(type="task-sent", **sent),
            TaskEvent(type="task-received", name="t", timestamp=1_001.0, clock=1, **heard),
            started,
            started,
            TaskEvent(type="task-succeeded", runtime=0.5, timestamp=1_003.0, clock=3, **heard),
        ],
        1_003.0,
    )
    told = page(counts, pipeline)
    for kind in ("received", "started", "succeeded"):
        assert told[(f"celery_task_{kind}_total", *labels("t", "h", "q"))] == 1
    assert told[("celery_task_sent_total", *labels("t", "web", "q"))] == 1
    assert told[("celery_task_runtime_sum", *labels("t", "h", "q"))] == 0.5
    assert told[("celery_task_queue_wait_time_sum", *labels("t", "h", "q"))] == 2
    assert told["celery_worker_up", ("hostname", "h")] == 1
    for now in (1_100.0, 1_800.0):
        pipeline.tick(now)
    assert rows(counts) == 1, "only the producer's row is left"
