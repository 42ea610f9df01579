"""The task table, sequence by sequence as they occur (LESSONS: Celery 5.4 to 5.7)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from celeryscope.monitor.exceptions import exception_class
from celeryscope.monitor.runstore import UNSENT_AT_ALL
from stories import Story

COUNTS = (
    "sent",
    "received",
    "started",
    "succeeded",
    "failed",
    "retried",
    "revoked",
    "rejected",
    "cancelled",
    "silent_end",
    "retries_exhausted",
    "exceptions",
)


def counts(story: Story) -> dict[str, float]:
    return story.numbers(*COUNTS)


def test_a_task_that_succeeds_is_counted_at_each_step_with_its_queue() -> None:
    story = Story()
    story.run(runtime=0.25)
    assert story.numbers() | {} == {
        "sent{t,q}": 1,
        "received{t,q}": 1,
        "started{t,q}": 1,
        "succeeded{t,q}": 1,
        "runtime_seconds{t,q,succeeded}": 1,
        "wait_seconds{t,q}": 1,
        "prefetch_seconds{t,q}": 1,
        "total_seconds{t,q}": 1,
        "retries{t,q}": 1,
        "sent_coverage_ratio{t}": 1.0,
        "worker_up{w1}": 1,
        "worker_events_enabled{w1}": 1,
        "worker_info{w1,unknown,unknown,unknown}": 1,
        "workers{online}": 1,
        "celeryscope_events{task-sent}": 1,
        "celeryscope_events{task-received}": 1,
        "celeryscope_events{task-started}": 1,
        "celeryscope_events{task-succeeded}": 1,
    }
    assert not story.table.live


def test_every_counter_exists_at_zero_as_soon_as_the_task_is_known() -> None:
    """increase() of a series born at 1 is 0: the first failure must alert."""
    story = Story()
    story.task("sent", host="producer", name="t", queue="q")
    for name in ("failed", "retried", "retries_exhausted", "cancelled", "silent_end"):
        assert story.number(f"celery_task_{name}_total", "t", "q") == 0
    assert story.number("celery_task_revoked_total", "t", "q", "terminated") == 0
    assert story.number("celery_task_rejected_total", "t", "q", "false") == 0


def test_without_task_sent_the_queue_is_unknown_after_a_second_and_never_a_guess() -> None:
    story = Story()
    story.task("received", name="t", retries=0)
    story.task("started")
    assert counts(story) == {}
    story.wait(1.1)
    assert counts(story) == {"received{t,unknown}": 1, "started{t,unknown}": 1}
    story.task("succeeded", runtime=1.0)
    assert counts(story)["succeeded{t,unknown}"] == 1


def test_a_task_sent_that_was_overtaken_still_gives_the_queue_and_the_wait() -> None:
    story = Story()
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("succeeded", runtime=0.1)
    story.task("sent", host="producer", name="t", queue="q", retries=0, at=-0.01)
    story.wait(2)
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 1, "started{t,q}": 1, "succeeded{t,q}": 1}
    assert story.number("celery_task_wait_seconds", "t", "q") == 1
    assert story.number("celery_task_total_seconds", "t", "q") == 1
    assert not story.table.live


def test_a_late_task_sent_does_not_overwrite_the_worker() -> None:
    """Its hostname is the producer: the end must still find the run on its worker."""
    story = Story()
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("succeeded", runtime=0.1)
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 1, "started{t,q}": 1, "succeeded{t,q}": 1}


def test_producers_that_never_send_task_sent_are_not_held_for_ever() -> None:
    story = Story()
    for i in range(100):
        story.task("received", f"id{i}", name="t", retries=0)
    assert counts(story) == {"received{t,unknown}": 36}
    story.wait(1.1)
    assert counts(story) == {"received{t,unknown}": 100}


def test_first_seen_half_way_is_unknown_and_never_none() -> None:
    story = Story()
    story.task("succeeded", runtime=0.5)
    assert counts(story) == {}
    story.wait(1.1)
    assert counts(story) == {"succeeded{unknown,unknown}": 1}
    assert story.number("celery_task_runtime_seconds", "unknown", "unknown", "succeeded") == 1


def test_events_in_reverse_order_are_all_counted_once() -> None:
    story = Story()
    events: list[tuple[str, dict[str, Any]]] = [
        ("succeeded", {"runtime": 0.1, "at": 0.4}),
        ("started", {"at": 0.3}),
        ("received", {"name": "t", "retries": 0, "at": 0.2}),
    ]
    for kind, fields in events:
        story.task(kind, **fields)
    story.task("sent", host="producer", name="t", queue="q", retries=0, at=0.1)
    story.wait(2)
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 1, "started{t,q}": 1, "succeeded{t,q}": 1}
    assert not story.table.live


@pytest.mark.parametrize("again", range(4))
def test_an_event_that_comes_twice_counts_once(again: int) -> None:
    story = Story()
    events = [
        story.task("sent", host="producer", name="t", queue="q", retries=0),
        story.task("received", name="t", retries=0),
        story.task("started"),
        story.task("succeeded", runtime=0.1),
    ]
    story.feed(events[again])
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 1, "started{t,q}": 1, "succeeded{t,q}": 1}
    assert not story.table.live


@pytest.mark.parametrize("again", range(3))
def test_a_copy_that_comes_at_once_counts_once(again: int) -> None:
    story = Story()
    steps = [
        ("sent", {"host": "producer", "name": "t", "queue": "q", "retries": 0}),
        ("received", {"name": "t", "retries": 0}),
        ("started", {}),
    ]
    for i, (kind, fields) in enumerate(steps):
        event = story.task(kind, **fields)
        if i == again:
            story.feed(event)
    story.task("succeeded", runtime=0.1)
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 1, "started{t,q}": 1, "succeeded{t,q}": 1}


def test_the_shadow_name_does_not_win_over_the_real_one() -> None:
    story = Story()
    story.task("sent", host="producer", name="real", queue="q", retries=0)
    story.task("received", name="shadow", retries=0)
    story.task("started")
    story.task("succeeded", runtime=0.1)
    assert counts(story) == {
        "sent{real,q}": 1,
        "received{real,q}": 1,
        "started{real,q}": 1,
        "succeeded{real,q}": 1,
    }


# --- retries ----------------------------------------------------------------------------------------------------------


def retry_story(story: Story, *, overtaken: bool) -> None:
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("sent", host="w1", name="t", queue="q", retries=1)
    if overtaken:  # the next attempt is received before the first one says that it was retried
        story.task("received", host="w2", name="t", retries=1)
    story.task("retried", exception="ValueError('x')")
    if not overtaken:
        story.task("received", host="w2", name="t", retries=1)
    story.task("started", host="w2")


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_retry_ends_its_own_run_and_the_next_attempt_goes_on(overtaken: bool) -> None:
    story = Story()
    retry_story(story, overtaken=overtaken)
    story.task("succeeded", host="w2", runtime=0.1)
    assert counts(story) == {
        "sent{t,q}": 2,
        "received{t,q}": 2,
        "started{t,q}": 2,
        "retried{t,q}": 1,
        "succeeded{t,q}": 1,
        "exceptions{t,q,ValueError,retried}": 1,
    }
    assert not story.table.live


@pytest.mark.parametrize("end", ["failed", "succeeded"])
def test_the_end_of_a_retry_may_come_before_word_of_the_retry(end: str) -> None:
    """With a retry at once and a second pool child, Celery sends the last attempt's end before the first one's."""
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("received", name="t", retries=1)
    story.task("sent", name="t", queue="q", retries=1)
    story.task("started")
    story.task(end, exception="ValueError()")
    story.task("retried", exception="ValueError()")
    found = {name: number for name, number in counts(story).items() if "exceptions" not in name}
    exhausted = {"retries_exhausted{t,q}": 1} if end == "failed" else {}
    once, twice = ("retried", end), ("sent", "received", "started")
    expected = dict.fromkeys(once, 1) | dict.fromkeys(twice, 2)
    assert found == {f"{kind}{{t,q}}": number for kind, number in expected.items()} | exhausted
    assert not story.table.live


def test_retries_exhausted_is_a_fact_of_its_own() -> None:
    story = Story()
    retry_story(story, overtaken=False)
    story.task("failed", host="w2", exception="ValueError('x')")
    found = counts(story)
    assert found["failed{t,q}"] == 1
    assert found["retries_exhausted{t,q}"] == 1
    story.run("other", end="failed", exception="ValueError('x')")
    assert counts(story)["retries_exhausted{t,q}"] == 1


def test_retry_backoff_and_eta_are_not_waiting() -> None:
    story = Story()
    eta = "2027-01-15T08:01:40+00:00"  # START + 100 s
    story.task("sent", host="producer", name="t", queue="q", retries=0, eta=eta)
    story.task("received", name="t", retries=0, eta=eta)
    assert story.number("celery_tasks_waiting", "t", "q") == 0
    story.wait(101)
    assert story.number("celery_tasks_waiting", "t", "q") == 1
    story.task("started")
    story.task("succeeded", runtime=0.1)
    wait = next(s[0][1] for m, s in story.pipeline.families() if m.name == "celery_task_wait_seconds")
    assert 0 < wait[-1] < 3


# --- ends that come twice, or not at all ------------------------------------------------------------------------------


def test_a_hard_time_limit_sends_two_ends_and_is_one() -> None:
    story = Story()
    traceback = msgspec.Raw(
        msgspec.json.encode('Traceback\n  File "x.py", line 1, in f\nbilliard.exceptions.TimeLimitExceeded: (5,)\n')
    )
    story.run(end="failed", exception="ExceptionWithTraceback()", traceback=traceback)
    story.task("failed", exception="ExceptionWithTraceback()", traceback=traceback)
    assert counts(story) == {
        "sent{t,q}": 1,
        "received{t,q}": 1,
        "started{t,q}": 1,
        "failed{t,q}": 1,
        "exceptions{t,q,TimeLimitExceeded,failed}": 1,
    }


IN_PROCESS = {
    "exception": "ExceptionWithTraceback()",
    "traceback": msgspec.Raw(
        msgspec.json.encode("Traceback\n  File \"x.py\", line 1, in f\ncelery.exceptions.Reject: ('no', False)\n")
    ),
}


@pytest.mark.parametrize("late_ack", [False, True])
@pytest.mark.parametrize("said", [{"exception": "reject requeue=False: no"}, IN_PROCESS])
def test_a_reject_is_a_reject_in_every_version_of_celery(late_ack: bool, said: dict[str, Any]) -> None:
    """5.7 says `task-failed` (and `task-rejected` after it with late acknowledgement), 5.4 only `task-rejected`."""
    story = Story()
    story.run(end="failed", **said)
    if late_ack:
        story.task("rejected", requeue=False)
    older = Story()
    older.run(end="rejected", requeue=False)
    assert counts(story) == counts(older)
    assert counts(story)["rejected{t,q,false}"] == 1
    assert counts(story)["exceptions{t,q,Reject,rejected}"] == 1


def test_reject_with_requeue_opens_a_new_run_each_time() -> None:
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    for _ in range(3):
        story.task("received", name="t", retries=0)
        story.task("started")
        story.task("rejected", requeue=True)
        assert story.number("celery_tasks_waiting", "t", "q") == 1
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("succeeded", runtime=0.1)
    assert counts(story) == {
        "sent{t,q}": 1,
        "received{t,q}": 4,
        "started{t,q}": 4,
        "rejected{t,q,true}": 3,
        "succeeded{t,q}": 1,
    }
    assert not story.table.live
    assert story.number("celery_tasks_waiting", "t", "q") == 0


def test_cold_shutdown_hands_the_task_to_another_worker() -> None:
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", host="b", name="t", retries=0)
    story.task("started", host="b")
    story.task("cancelled", host="b")
    story.task("received", host="a", name="t", retries=0)
    story.task("started", host="a")
    story.task("succeeded", host="a", runtime=0.1)
    assert counts(story) == {
        "sent{t,q}": 1,
        "received{t,q}": 2,
        "started{t,q}": 2,
        "cancelled{t,q}": 1,
        "succeeded{t,q}": 1,
    }


def test_warm_shutdown_receives_twice_and_runs_once() -> None:
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", host="a", name="t", retries=0)
    story.task("received", host="b", name="t", retries=0)
    assert story.number("celery_tasks_waiting", "t", "q") == 1
    story.task("started", host="b")
    story.task("succeeded", host="b", runtime=0.1)
    assert counts(story) == {"sent{t,q}": 1, "received{t,q}": 2, "started{t,q}": 1, "succeeded{t,q}": 1}
    assert story.number("celery_tasks_waiting", "t", "q") == 0
    assert story.number("celery_worker_reserved_tasks", "a") == 0
    assert not story.table.live


def test_two_deliveries_of_one_message_both_run() -> None:
    """A visibility timeout that is too short: the first worker runs what was given to the second, too."""
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", host="a", name="t", retries=0)
    story.task("received", host="b", name="t", retries=0)
    for host in ("a", "b"):
        story.task("started", host=host)
    assert story.number("celery_tasks_running", "t", "q") == 2
    for host in ("a", "b"):
        story.task("succeeded", host=host, runtime=0.1)
    assert counts(story)["succeeded{t,q}"] == 2
    assert story.number("celery_tasks_running", "t", "q") == 0
    assert not story.table.live


def test_a_lost_worker_orphans_its_runs_until_they_are_redelivered() -> None:
    story = Story(worker_timeout=10)
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", host="a", name="t", retries=0)
    story.task("started", host="a")
    story.wait(30)
    assert story.number("celery_tasks_running", "t", "q") == 0
    assert story.number("celery_tasks_orphaned", "t", "q") == 1
    assert story.number("celery_task_oldest_orphan_seconds", "t", "q") == pytest.approx(30, abs=1)
    story.task("received", host="b", name="t", retries=0)
    story.task("started", host="b")
    assert story.number("celery_tasks_orphaned", "t", "q") == 0
    assert story.number("celery_tasks_running", "t", "q") == 1
    story.task("succeeded", host="b", runtime=0.1)
    assert counts(story)["succeeded{t,q}"] == 1
    assert not story.table.live


def test_a_worker_that_comes_back_takes_its_runs_back() -> None:
    story = Story(worker_timeout=10)
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", host="a", name="t", retries=0)
    story.task("started", host="a")
    story.wait(30)
    story.worker(host="a", active=1, processed=1)
    story.wait(1)
    assert story.number("celery_tasks_orphaned", "t", "q") == 0
    assert story.number("celery_tasks_running", "t", "q") == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"expired": True}, "expired"), ({"terminated": True}, "terminated"), ({}, "revoked")],
)
def test_a_revoke_is_counted_by_its_reason(fields: dict[str, bool], reason: str) -> None:
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    if reason != "expired":  # an expired task is never received
        story.task("received", name="t", retries=0)
    if reason == "terminated":
        story.task("started")
    story.task("revoked", **fields)
    assert story.number("celery_task_revoked_total", "t", "q", reason) == 1
    assert story.number("celery_tasks_waiting", "t", "q") == 0
    assert not story.table.live


def test_an_unregistered_task_takes_its_name_from_the_exception() -> None:
    story = Story()
    story.task("failed", exception="NotRegistered('shop.gone')")
    story.wait(1.1)
    assert counts(story) == {
        "failed{shop.gone,unknown}": 1,
        "exceptions{shop.gone,unknown,NotRegistered,failed}": 1,
    }


def test_where_no_producer_sends_task_sent_new_names_are_not_held_either() -> None:
    story = Story()
    for i in range(UNSENT_AT_ALL):
        story.task("received", f"id{i}", name=f"t{i % 20}", retries=0)
    story.wait(1.1)
    story.task("received", "new", name="new", retries=0)
    assert counts(story)["received{new,unknown}"] == 1


def test_one_task_sent_and_new_names_are_held_again() -> None:
    """Some producers send it after all: what overtook its `task-sent` gets its queue."""
    story = Story()
    for i in range(UNSENT_AT_ALL + 1):
        story.task("received", f"id{i}", name=f"t{i % 20}", retries=0)
    story.wait(1.1)
    story.run("other", name="other")
    story.task("received", "new", name="new", retries=0)
    story.task("sent", "new", "producer", name="new", queue="q", retries=0)
    assert counts(story)["received{new,q}"] == 1


def test_a_run_that_ends_without_an_event_is_ended_by_two_heartbeats() -> None:
    """`Ignore` sends nothing after task-started."""
    story = Story()
    story.worker(active=0, processed=0)
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", name="t", retries=0)
    story.task("started")
    for beats in range(4):
        story.wait(2)
        assert story.number("celery_tasks_running", "t", "q") == (1 if beats < 3 else 0)
        story.worker(active=0, processed=1)
        if beats < 2:
            assert story.number("celery_tasks_running", "t", "q") == 1
    assert counts(story)["silent_end{t,q}"] == 1
    assert not story.table.live


def test_a_long_task_among_silent_ones_is_not_taken_for_one_of_them() -> None:
    story = Story()
    story.worker(active=0, processed=0)
    story.task("sent", "long", host="producer", name="long", queue="q", retries=0)
    story.task("received", "long", name="long", retries=0)
    story.task("started", "long")
    for i in range(20):
        story.task("sent", f"i{i}", host="producer", name="silent", queue="q", retries=0)
        story.task("received", f"i{i}", name="silent", retries=0)
        story.task("started", f"i{i}")
        story.wait(2)
        story.worker(active=1, processed=2 + i)
    story.wait(2)
    story.worker(active=1, processed=21)
    story.worker(active=1, processed=21)
    story.worker(active=1, processed=21)
    assert story.number("celery_tasks_running", "long", "q") == 1
    assert counts(story)["silent_end{silent,q}"] == 20


def test_an_end_that_comes_after_all_is_counted() -> None:
    story = Story()
    story.worker(active=0, processed=0)
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.task("received", name="t", retries=0)
    story.task("started")
    for _ in range(4):
        story.wait(2)
        story.worker(active=0, processed=1)
    story.task("succeeded", runtime=8.0)
    assert counts(story)["succeeded{t,q}"] == 1


# --- clocks, bounds, hostile input ------------------------------------------------------------------------------------


def test_clocks_that_disagree_are_counted_and_not_clamped_in_silence() -> None:
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0, at=600.0)
    story.task("received", name="t", retries=0)
    story.task("started")
    story.task("succeeded", runtime=0.1)
    assert story.number("celery_task_negative_waits_total", "t", "q") == 2  # the wait and the total
    assert story.number("celery_task_wait_seconds", "t", "q") is None


def test_a_clock_that_is_set_back_while_a_task_runs_is_counted_and_not_clamped_in_silence() -> None:
    """Received, then ten minutes back, started, ten minutes back again, failed: no wait, no runtime of 0 s."""
    story = Story()
    story.task("sent", host="producer", name="t", queue="q", retries=0, at=-1200.0)
    story.task("received", name="t", retries=0)
    story.task("started", at=-600.0)
    story.task("failed", at=-1190.0, exception="ValueError('x')")
    assert story.number("celery_task_negative_waits_total", "t", "q") == 2  # the time in the worker and the runtime
    assert story.number("celery_task_prefetch_seconds", "t", "q") is None
    assert story.number("celery_task_runtime_seconds", "t", "q", "failed") is None
    assert story.number("celery_task_total_seconds", "t", "q") == 1


@pytest.mark.parametrize("runtime", [None, -5.0, 1e308])
def test_a_runtime_that_is_missing_or_a_lie_is_measured_instead(runtime: float | None) -> None:
    story = Story()
    story.run(runtime=runtime)
    histogram = next(s[0][1] for m, s in story.pipeline.families() if m.name == "celery_task_runtime_seconds")
    assert sum(histogram[:-1]) == 1
    assert 0 <= histogram[-1] < 1


def test_a_full_table_drops_its_oldest_and_says_so() -> None:
    story = Story(most=100)
    for i in range(250):
        story.task("sent", f"id{i}", host="producer", name="t", queue="q", retries=0)
    assert len(story.table.live) <= 100
    assert story.number("celeryscope_task_table_evicted_total") == 150
    assert story.number("celery_tasks_waiting", "t", "q") == 100
    assert story.number("celery_task_sent_total", "t", "q") == 250


def test_a_task_that_nobody_takes_is_forgotten_in_the_end() -> None:
    story = Story(expire=3600)
    story.task("sent", host="producer", name="t", queue="q", retries=0)
    story.wait(3_500)
    assert story.number("celery_tasks_waiting", "t", "q") == 1
    assert story.number("celery_task_oldest_waiting_seconds", "t", "q") == pytest.approx(3_500, abs=5)
    story.wait(200)
    assert story.number("celery_tasks_waiting", "t", "q") == 0
    assert not story.table.live


def test_a_message_that_expires_waits_no_longer_whether_or_not_a_worker_says_so() -> None:
    """RabbitMQ drops it without a word."""
    story = Story()
    for uuid in ("dropped", "met"):
        story.task("sent", uuid, "producer", name="t", queue="q", retries=0, expires="2027-01-15T08:00:10+00:00")
    story.wait(9)
    assert story.number("celery_tasks_waiting", "t", "q") == 2
    story.wait(2)
    assert story.number("celery_tasks_waiting", "t", "q") == 0
    assert not story.table.live
    story.task("revoked", "met", expired=True)
    assert story.number("celery_task_revoked_total", "t", "q", "expired") == 1


def test_names_over_the_cap_share_one_overflow_row_and_are_counted() -> None:
    story = Story(caps={"task": 3, "exception": 2})
    for i in range(6):
        story.run(f"id{i}", name=f"t{i}", end="failed", exception=f"Error{i}('x')")
    failed = story.numbers("failed")
    assert failed == {"failed{t0,q}": 1, "failed{t1,q}": 1, "failed{t2,q}": 1, "failed{__other__,q}": 3}
    assert story.number("celery_task_exceptions_total", "__other__", "q", "__other__", "failed") == 3
    assert story.number("celeryscope_label_overflow_total", "task") == 3
    assert story.number("celeryscope_label_overflow_total", "exception") == 4


def test_a_name_of_ten_kilobytes_is_cut() -> None:
    story = Story()
    story.run(name="x" * 10_000)
    assert counts(story)[f"succeeded{{{'x' * 200},q}}"] == 1
    story.run("other", name="x" * 10_000)
    assert counts(story)[f"succeeded{{{'x' * 200},q}}"] == 2


def test_a_task_id_used_again_is_a_new_task() -> None:
    story = Story()
    story.run()
    story.wait(5)
    story.run()
    assert counts(story) == {"sent{t,q}": 2, "received{t,q}": 2, "started{t,q}": 2, "succeeded{t,q}": 2}


@pytest.mark.parametrize(
    ("exception", "traceback", "expected"),
    [
        ("ValueError('x')", None, "ValueError"),
        ("GatewayError(502, 'Bad')", None, "GatewayError"),
        ("shop.errors.Late('x')", None, "Late"),
        (
            "ExceptionWithTraceback()",
            b'"Traceback\\n  File \\"a.py\\", line 1\\nKeyError: 1\\nDETAIL: more"',
            "KeyError",
        ),
        ("ExceptionWithTraceback()", b"\"WorkerLostError('x')\"", "WorkerLostError"),
        ("ExceptionWithTraceback()", None, "unknown"),
        ("ExceptionWithTraceback()", b"[1]", "unknown"),
        ("reject requeue=False: x", None, "Reject"),
        ("None", None, "Retry"),
        ("Retry(Retry(...), OSError('never'), 0)", None, "OSError"),
        ("Retry(Retry(...), None, 0)", None, "Retry"),
        ("<<<", None, "unknown"),
        ("", None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_the_exception_label_is_the_class_name(exception: str | None, traceback: bytes | None, expected: str) -> None:
    assert exception_class(exception, traceback) == expected


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_live_tasks_and_counters_survive_a_clean_restart() -> None:
    before = Story(worker_timeout=60)
    before.run("done", runtime=0.1)
    before.task("sent", "waiting", host="producer", name="t", queue="q", retries=0)
    before.task("sent", "running", host="producer", name="t", queue="q", retries=0)
    before.task("received", "running", name="t", retries=0)
    before.task("started", "running")
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(before.pipeline.dump(clean=True)))
    after = Story(worker_timeout=60)
    after.now, after.clock = before.now + 5, before.clock
    after.pipeline.load(state, after.now)
    assert counts(after) == counts(before)
    assert after.number("celery_tasks_waiting", "t", "q") == 1
    assert after.number("celery_tasks_running", "t", "q") == 1
    after.task("succeeded", "running", runtime=5.0)
    after.task("received", "waiting", name="t", retries=0)
    after.task("started", "waiting")
    after.task("succeeded", "waiting", runtime=0.1)
    assert counts(after) == {"sent{t,q}": 3, "received{t,q}": 3, "started{t,q}": 3, "succeeded{t,q}": 3}
    assert after.number("celery_task_wait_seconds", "t", "q") == 3
    assert not after.table.live


def test_after_a_crash_tasks_are_known_and_counters_start_anew() -> None:
    """Counters that go back to an old save would be read by Prometheus as a restart from 0, and added in full."""
    before = Story()
    before.run("done", runtime=0.1)
    before.task("sent", "waiting", host="producer", name="t", queue="q", retries=0)
    after = Story()
    after.now = before.now
    after.pipeline.load(before.pipeline.dump(clean=False), after.now)
    assert counts(after) == {}
    after.task("received", "waiting", name="t", retries=0)
    assert counts(after) == {"received{t,q}": 1}
