"""The worker watch: up, lost, gone, restarted; and which task starts were missed."""

from __future__ import annotations

import logging

import msgspec
import pytest
from celeryscope.monitor.queues import QueueFacts, QueueSnapshot, Topology
from stories import Story

UP = "celery_worker_up"
LOST = "celery_worker_lost"
MISSED = "celery_worker_starts_missed_total"
UNTRACKED = "celery_worker_starts_untracked_total"


def run_tasks(story: Story, n: int, *, seen: int | None = None, host: str = "w1", pid: int = 1, tag: str = "") -> None:
    """Let a worker start `n` tasks, of which the monitor sees the first `seen`."""
    for i in range(n if seen is None else seen):
        uuid = f"{host}-{tag}-{story.clock}-{i}"
        story.task("received", uuid, host, name="t", retries=0, pid=pid)
        story.task("started", uuid, host, pid=pid)
        story.task("succeeded", uuid, host, runtime=0.1, pid=pid)


def beats(story: Story, n: int, processed: int, host: str = "w1", **fields: float) -> None:
    for _ in range(n):
        story.wait(2)
        story.worker(host=host, active=0, processed=processed, **fields)


# --- up, lost, gone ---------------------------------------------------------------------------------------------------


def test_a_worker_is_up_from_a_heartbeat_or_from_a_task_event() -> None:
    story = Story()
    story.worker(host="a", active=0, processed=0)
    story.task("received", host="b", name="t", retries=0)
    assert story.number(UP, "a") == story.number(UP, "b") == 1
    assert story.number("celery_workers", "online") == 2


def test_silence_is_loss_and_goodbye_is_not() -> None:
    story = Story(worker_timeout=60)
    story.worker(host="lost", active=0, processed=0)
    story.worker(host="gone", active=0, processed=0)
    story.worker("offline", host="gone", active=0, processed=0)
    assert story.number(UP, "gone") == 0
    assert story.number(LOST, "gone") == 0
    story.wait(70)
    assert story.number(UP, "lost") == 0
    assert story.number(LOST, "lost") == 1
    assert story.number(LOST, "gone") == 0
    assert story.numbers("workers") == {"workers{offline}": 1, "workers{lost}": 1}


def test_a_dead_worker_stays_visible_long_enough_for_every_alert_and_is_then_forgotten() -> None:
    story = Story(worker_timeout=60, forget_worker_after=3_600)
    story.worker(active=0, processed=0)
    story.wait(60 + 3_500)
    assert story.number(UP, "w1") == 0
    story.wait(200)
    assert story.number(UP, "w1") is None


def test_a_lost_worker_that_speaks_again_is_up() -> None:
    story = Story(worker_timeout=10)
    story.worker(active=0, processed=0)
    story.wait(20)
    assert story.number(LOST, "w1") == 1
    story.worker(active=0, processed=0)
    story.wait(1)
    assert story.number(UP, "w1") == 1
    assert story.number(LOST, "w1") == 0


def test_nobody_is_lost_while_the_monitor_itself_hears_nothing() -> None:
    story = Story(worker_timeout=10)
    story.worker(active=0, processed=0)
    story.wait(100, connected=False)
    assert story.number(UP, "w1") == 1
    story.wait(9)
    assert story.number(UP, "w1") == 1
    story.wait(3)
    assert story.number(LOST, "w1") == 1


def test_two_workers_of_one_host_are_two() -> None:
    story = Story()
    story.worker(host="a@host", active=1, processed=5)
    story.worker(host="b@host", active=2, processed=7)
    assert story.number("celery_worker_active_tasks", "a@host") == 1
    assert story.number("celery_worker_active_tasks", "b@host") == 2


def test_a_week_of_pod_churn_leaves_memory_and_series_flat_and_rewinds_no_task_counter() -> None:
    story = Story(worker_timeout=60, forget_worker_after=3_600, caps={"worker": 50})
    sizes, done = [], 0
    for hour in range(7 * 24):
        for pod in range(10):
            host = f"celery@pod-{hour}-{pod}"
            story.worker("online", host=host, active=0, processed=0)
            run_tasks(story, 1, host=host)
            story.worker(host=host, active=0, processed=1)
            done += 1
        story.wait(3_600)
        sizes.append((len(story.numbers()), len(story.pipeline.workers.hosts), len(story.table.live)))
        assert sum(story.numbers("succeeded").values()) == done
    assert max(hosts for _, hosts, _ in sizes) <= 50
    assert max(series for series, _, _ in sizes[24:]) <= max(series for series, _, _ in sizes[:24]) + 5
    assert sizes[-1][2] == 0


def test_workers_over_the_cap_are_not_worth_a_live_one() -> None:
    story = Story(caps={"worker": 3})
    for i in range(5):
        story.worker(host=f"w{i}", active=0, processed=0)
    assert len(story.pipeline.workers.hosts) == 4  # three and __other__
    assert story.number("celeryscope_label_overflow_total", "worker") == 2


def test_clock_skew_is_that_of_the_least_delayed_heartbeat() -> None:
    story = Story()
    for delay in (3.0, 0.0, 1.0):
        story.worker(active=0, processed=0, skew=600.0 - delay)
        story.wait(2)
    assert story.number("celery_worker_clock_skew_seconds", "w1") == pytest.approx(600, abs=0.01)


def test_heartbeats_without_active_and_processed_are_taken() -> None:
    """A broadcast makes workers send one without them."""
    story = Story()
    story.worker(active=3, processed=9)
    story.worker()
    assert story.number("celery_worker_active_tasks", "w1") == 3
    assert story.number("celery_worker_processed_total", "w1") == 9


def test_a_worker_with_work_and_free_slots_that_takes_nothing_is_wedged() -> None:
    story = Story(worker_timeout=60)
    topology = Topology(1.0, {"w1": frozenset({"q"})}, {"w1": 4}, {"w1": "prefork"})
    queues = {"q": QueueFacts(ready=10)}
    story.pipeline.watch_queues(lambda: (topology, QueueSnapshot(1.0, queues)))
    for _ in range(50):
        story.worker(active=0, processed=5)
        story.wait(2)
    assert story.number("celery_worker_wedged", "w1") == 1
    queues["q"] = QueueFacts(ready=0)
    for _ in range(5):
        story.worker(active=0, processed=5)
        story.wait(2)
    assert story.number("celery_worker_wedged", "w1") == 0
    assert story.number("celery_worker_concurrency", "w1") == 4
    assert story.number("celery_queue_slots", "q") == 4


# --- starts missed ----------------------------------------------------------------------------------------------------


def test_nothing_missed_is_zero_and_without_heartbeats_it_is_unknown() -> None:
    story = Story()
    story.worker("online", active=0, processed=0)
    run_tasks(story, 5)
    beats(story, 4, processed=5)
    assert story.number(MISSED, "w1") == 0
    run_tasks(story, 5, host="mute")
    assert story.number(MISSED, "mute") is None


def test_starts_lost_with_the_connection_are_counted_to_the_task() -> None:
    story = Story()
    story.worker("online", active=0, processed=0)
    run_tasks(story, 10)
    beats(story, 2, processed=10)
    story.pipeline.connection(up=False, now=story.now)
    run_tasks(story, 0)  # seven more are started, unseen
    story.wait(5, connected=False)
    story.pipeline.connection(up=True, now=story.now)
    run_tasks(story, 3)
    beats(story, 4, processed=20)
    assert story.number(MISSED, "w1") == 7
    assert story.number(UNTRACKED, "w1") == 0
    run_tasks(story, 5)
    beats(story, 4, processed=25)
    assert story.number(MISSED, "w1") == 7


def test_a_start_under_way_when_its_heartbeat_arrives_is_not_missed() -> None:
    story = Story()
    story.worker("online", active=0, processed=0)
    for i in range(20):
        story.wait(2)
        at = story.now
        story.worker(active=1, processed=i + 1)  # counts a start whose event comes right after it
        story.task("received", f"id{i}", name="t", retries=0, at=at - story.now - 0.01)
        story.task("started", f"id{i}", at=at - story.now - 0.005)
        story.task("succeeded", f"id{i}", runtime=0.01)
    story.pipeline.connection(up=True, now=story.now)
    beats(story, 3, processed=20)
    assert story.number(MISSED, "w1") == 0
    assert story.number(UNTRACKED, "w1") == 0


def test_first_seen_half_way_counts_from_there() -> None:
    story = Story()
    story.worker(active=0, processed=1_000_000)
    run_tasks(story, 5)
    beats(story, 4, processed=1_000_005)
    assert story.number(MISSED, "w1") == 0


@pytest.mark.parametrize("skew", [600.0, -600.0])
def test_a_clock_that_is_set_costs_no_start_and_hides_none(skew: float) -> None:
    """As when NTP comes late: stamps of later starts may lie before the account's beginning, and all of them count."""
    story = Story()
    story.worker("online", active=0, processed=0)
    run_tasks(story, 5)
    beats(story, 3, processed=5)
    for number in range(1, 5):
        for i in range(10):
            story.task("started", f"{number}-{i}", at=skew)
            story.task("succeeded", f"{number}-{i}", at=skew, runtime=0.1)
        beats(story, 1, processed=5 + 10 * number, skew=skew)
    beats(story, 3, processed=45, skew=skew)
    assert (story.number(MISSED, "w1"), story.number(UNTRACKED, "w1")) == (0, 0)
    story.pipeline.connection(up=True, now=story.now)
    for number in range(1, 5):  # seven more are started, unseen, while others go on
        story.task("started", f"more-{number}", at=skew)
        story.task("succeeded", f"more-{number}", at=skew, runtime=0.1)
        beats(story, 1, processed=52 + number, skew=skew)
    assert story.number(MISSED, "w1") == 7


@pytest.mark.parametrize("announced", [True, False])
def test_a_restart_in_between_loses_no_account(announced: bool) -> None:
    story = Story()
    story.worker("online", active=0, processed=0, pid=10)
    run_tasks(story, 10, pid=10)
    beats(story, 2, processed=10, pid=10)
    story.pipeline.connection(up=False, now=story.now)
    story.wait(5, connected=False)
    story.pipeline.connection(up=True, now=story.now)
    if announced:
        story.clock = 0
        story.worker("online", active=0, processed=0, pid=11)
    run_tasks(story, 4, pid=11, tag="new")
    beats(story, 4, processed=4 if announced else 6, pid=11)
    assert story.number(MISSED, "w1") == (0 if announced else 2)
    assert story.number("celery_worker_processed_total", "w1") == (4 if announced else 6)


def test_a_worker_that_reconnects_says_online_again_and_is_the_same_boot() -> None:
    story = Story()
    story.worker("online", active=0, processed=0)
    run_tasks(story, 3)
    beats(story, 2, processed=3)
    story.task("received", "long", name="t", retries=0)
    story.task("started", "long")
    story.worker("online", active=1, processed=4)
    assert story.number("celery_tasks_orphaned", "t", "unknown") in (0, None)
    beats(story, 4, processed=4)
    assert story.number(MISSED, "w1") == 0


def test_a_restart_orphans_what_the_old_process_was_running() -> None:
    story = Story()
    story.worker("online", active=0, processed=0, pid=10)
    story.task("sent", host="p", name="t", queue="q", retries=0)
    story.task("received", name="t", retries=0, pid=10)
    story.task("started", pid=10)
    story.clock = 0
    story.worker("online", active=0, processed=0, pid=11)
    assert story.number("celery_tasks_running", "t", "q") == 0
    assert story.number("celery_tasks_orphaned", "t", "q") == 1
    assert story.number("celery_worker_reserved_tasks", "w1") == 0


def test_events_switched_off_are_reported_as_such_and_not_as_loss() -> None:
    story = Story()
    for processed in range(0, 50, 5):
        story.worker(active=0, processed=processed)
        story.wait(2)
    assert story.number("celery_worker_events_enabled", "w1") == 0
    assert story.number(MISSED, "w1") == 0
    assert story.number(UNTRACKED, "w1") == 0
    run_tasks(story, 5)
    beats(story, 4, processed=50)
    assert story.number("celery_worker_events_enabled", "w1") == 1
    assert story.number(MISSED, "w1") == 0


def test_tasks_without_events_are_untracked_and_not_lost() -> None:
    """`send_events=False`: the worker counts its start, no event is sent, and the connection was whole."""
    story = Story()
    story.worker("online", active=0, processed=0)
    processed = 0
    for i in range(5):
        run_tasks(story, 3, tag=str(i))
        processed += 4
        beats(story, 1, processed=processed)
    run_tasks(story, 1, tag="last")
    beats(story, 3, processed=processed + 1)
    assert story.number(MISSED, "w1") == 0
    assert story.number(UNTRACKED, "w1") == 5


def test_two_workers_under_one_name_are_warned_of_and_not_restarted_at_each_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story()
    with caplog.at_level(logging.WARNING):
        for i in range(20):
            story.worker(active=0, processed=i, pid=10 + i % 2)
            story.wait(1)
    assert len([m for m in caplog.messages if "two workers use the node name" in m]) == 1
    assert story.number(UP, "w1") == 1


def test_starts_while_the_monitor_was_down_are_told_apart() -> None:
    before = Story()
    before.worker("online", active=0, processed=0)
    run_tasks(before, 5)
    beats(before, 2, processed=5)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(before.pipeline.dump(clean=True)))
    after = Story()
    after.now, after.clock = before.now + 30, before.clock + 100
    after.pipeline.load(state, after.now)
    after.pipeline.connection(up=True, now=after.now)
    beats(after, 1, processed=12)
    run_tasks(after, 2)
    beats(after, 4, processed=14)
    assert after.number(MISSED, "w1") == 7
    assert after.number("celery_worker_starts_missed_down_total", "w1") == 7
    after.pipeline.connection(up=False, now=after.now)
    after.pipeline.connection(up=True, now=after.now)
    run_tasks(after, 1)
    beats(after, 4, processed=18)
    assert after.number(MISSED, "w1") == 10
    assert after.number("celery_worker_starts_missed_down_total", "w1") == 7


# --- goodbyes, silence and names that are not what they seem ----------------------------------------------------------


def start_one(story: Story, uuid: str = "id", host: str = "w1", pid: int = 1) -> None:
    story.task("sent", uuid, "producer", name="t", queue="q", retries=0)
    story.task("received", uuid, host, name="t", retries=0, pid=pid)
    story.task("started", uuid, host, pid=pid)


def test_what_ends_after_a_goodbye_neither_revives_the_worker_nor_is_orphaned() -> None:
    """A warm shutdown, as Celery does it: goodbye first, then the ends of what was running."""
    story = Story(worker_timeout=60)
    story.worker("online", active=0, processed=0)
    start_one(story)
    story.wait(2)
    story.worker("offline", active=1, processed=1)
    story.wait(30)
    assert story.number("celery_tasks_orphaned", "t", "q") == 0
    story.task("succeeded", runtime=30.0)
    story.wait(200)
    assert (story.number(UP, "w1"), story.number(LOST, "w1")) == (0, 0)
    assert story.number("celery_tasks_orphaned", "t", "q") == 0
    assert story.number("celery_task_succeeded_total", "t", "q") == 1
    story.worker("online", active=0, processed=0, pid=2)
    assert story.number(UP, "w1") == 1


def test_what_does_not_end_after_a_goodbye_is_orphaned_or_taken_back_by_a_redelivery() -> None:
    story = Story(worker_timeout=60)
    story.worker("online", active=0, processed=0)
    start_one(story, "a")
    start_one(story, "b")
    story.worker("offline", active=2, processed=2)
    story.task("received", "b", "w2", name="t", retries=0)
    story.task("started", "b", "w2")
    assert story.number("celery_tasks_running", "t", "q") == 2
    for _ in range(40):
        story.wait(2)
        story.worker(host="w2", active=1, processed=1)
    assert story.number("celery_tasks_orphaned", "t", "q") == 1
    assert story.number("celery_tasks_running", "t", "q") == 1
    assert story.number("celery_task_oldest_orphan_seconds", "t", "q") == pytest.approx(80, abs=2)


def test_a_worker_without_heartbeats_falls_silent_but_is_not_claimed_to_be_lost() -> None:
    story = Story(worker_timeout=10)
    story.task("received", host="mute", name="t", retries=0)
    story.wait(20)
    assert (story.number(UP, "mute"), story.number(LOST, "mute")) == (0, 0)
    story.task("received", "b", host="mute", name="t", retries=0)
    story.wait(1)
    assert story.number(UP, "mute") == 1


def test_the_slots_of_a_worker_without_heartbeats_count_and_are_busy_by_events() -> None:
    story = Story()
    topology = Topology(1.0, {"w1": frozenset({"q"})}, {"w1": 4}, {"w1": "prefork"})
    story.pipeline.watch_queues(lambda: (topology, QueueSnapshot(1.0, {})))
    start_one(story, "a")
    start_one(story, "b")
    assert story.number("celery_worker_active_tasks", "w1") == 2
    assert story.number("celery_queue_slots", "q") == 4
    assert story.number("celery_queue_busy_slots", "q") == 2


def test_a_queue_whose_workers_are_all_gone_has_no_slots_rather_than_no_series() -> None:
    story = Story()
    queues = {"q": QueueFacts(ready=3), "unknown": QueueFacts(unacked=1)}
    topology = [Topology(1.0, {"w1": frozenset({"q"})}, {"w1": 4}, {"w1": "prefork"})]
    story.pipeline.watch_queues(lambda: (topology[0], QueueSnapshot(1.0, queues)))
    story.worker(active=1, processed=1)
    assert story.number("celery_queue_slots", "q") == 4
    story.worker("offline", active=0, processed=1)
    assert story.number("celery_queue_slots", "q") == 0
    topology[0] = Topology(2.0)
    assert story.number("celery_queue_slots", "q") == 0
    assert story.number("celery_queue_busy_slots", "q") == 0
    assert story.number("celery_queue_slots", "unknown") is None
    topology[0] = Topology(3.0, silent=frozenset({"w2"}))
    assert story.number("celery_queue_slots", "q") is None


def wedging(ready: int = 10) -> Story:
    story = Story(worker_timeout=60)
    topology = Topology(1.0, {"w1": frozenset({"q"})}, {"w1": 4}, {"w1": "prefork"})
    story.pipeline.watch_queues(lambda: (topology, QueueSnapshot(1.0, {"q": QueueFacts(ready=ready)})))
    story.wait(300)
    return story


def test_a_worker_that_has_just_come_is_not_wedged_before_it_had_time_to_take_anything() -> None:
    story = wedging()
    for _ in range(25):
        story.worker(active=0, processed=0)
        story.wait(2)
        assert not story.number("celery_worker_wedged", "w1")
    for _ in range(10):
        story.worker(active=0, processed=0)
        story.wait(2)
    assert story.number("celery_worker_wedged", "w1") == 1


def test_a_worker_that_holds_tasks_back_is_not_wedged() -> None:
    """A rate limit: it has fetched what it may, and starts one an hour. An ETA in the future holds nobody back."""
    story = wedging()
    story.task("received", "limited", name="t", retries=0)
    for _ in range(60):
        story.worker(active=0, processed=0)
        story.wait(2)
    assert story.number("celery_worker_wedged", "w1") == 0
    story = wedging()
    story.task("received", "later", name="t", retries=0, eta="2100-01-01T00:00:00+00:00")
    for _ in range(60):
        story.worker(active=0, processed=0)
        story.wait(2)
    assert story.number("celery_worker_wedged", "w1") == 1


def test_a_worker_whose_count_of_starts_grows_is_not_wedged() -> None:
    """Tasks with `send_events=False`: no event tells of them, the worker's own count does."""
    story = wedging()
    for i in range(60):
        story.worker(active=0, processed=2 if i > 40 else i > 10)
        story.wait(2)
        assert not (story.number("celery_worker_wedged", "w1") and i < 40)
    assert story.number("celery_worker_wedged", "w1") == 0


def test_two_workers_under_one_name_have_no_counts_until_one_is_left() -> None:
    """Their counts take turns: neither a restart at each heartbeat, nor runs ended or orphaned, nor a loss."""
    story = Story(worker_timeout=60)
    for i in range(22):
        if i == 2:
            start_one(story, pid=10)
        story.worker(active=i % 2, processed=1_000 if i % 2 else 1, pid=10 + i % 2)
        story.wait(1)
    assert story.number("celery_tasks_orphaned", "t", "q") == 0
    assert story.number("celery_task_silent_end_total", "t", "q") == 0
    assert story.number(MISSED, "w1") is None
    assert story.number("celery_worker_processed_total", "w1") is None
    for processed in range(1_000, 1_040):
        story.worker(active=0, processed=processed, pid=11)
        story.wait(2)
    assert story.number("celery_worker_processed_total", "w1") == 1_039


def test_the_workers_over_the_cap_are_not_restarted_at_each_others_events() -> None:
    story = Story(caps={"worker": 1})
    story.worker(host="w0", active=0, processed=0)
    start_one(story, host="w1", pid=1)
    for i in range(30):
        story.worker(host=f"w{1 + i % 3}", active=0, processed=100 * (i % 3), pid=1 + i % 3)
        story.wait(1)
    assert story.number(UP, "__other__") == 1
    assert story.number("celery_tasks_running", "t", "q") == 1
    assert story.number("celery_worker_processed_total", "__other__") is None


def restored(before: Story, **options: object) -> Story:
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(before.pipeline.dump(clean=True)))
    after = Story(**options)
    after.now, after.clock = before.now + 30, before.clock + 100
    after.pipeline.load(state, after.now)
    after.pipeline.connection(up=True, now=after.now)
    return after


def test_an_orphan_in_the_state_file_does_not_raise_its_worker_from_the_dead() -> None:
    """An orphan outlives its forgotten worker; neither is that one lost once more after a restart of the monitor."""
    story = Story(worker_timeout=60, forget_worker_after=300)
    story.worker("online", active=0, processed=0)
    start_one(story)
    story.wait(400)
    assert story.number(UP, "w1") is None
    after = restored(story, worker_timeout=60)
    after.wait(100)
    assert after.number("celery_tasks_orphaned", "t", "q") == 1
    assert after.number(LOST, "w1") is None
    assert after.numbers("workers") == {}


def test_a_lower_cap_than_that_of_the_state_file_is_taken() -> None:
    story = Story()
    for i in range(5):
        story.worker(host=f"w{i}", active=0, processed=0)
    after = restored(story, caps={"worker": 2}, worker_timeout=10, forget_worker_after=20)
    after.wait(100)
    assert after.number("celery_workers", "online") == 0


def test_what_a_worker_had_in_its_buffer_comes_after_its_goodbye() -> None:
    """Celery says `worker-offline` first and then flushes task events: those starts are not missed or untracked."""
    story = Story()
    story.worker(active=0, processed=0)
    run_tasks(story, 3)
    story.wait(1)
    story.worker("offline", active=1, processed=5)
    for uuid in ("flushed-1", "flushed-2"):
        story.task("received", uuid, name="t", retries=0, at=-0.5)
        story.task("started", uuid, at=-0.5)
    story.wait(30)
    story.worker("online", pid=2, clock=1)
    assert story.number("celery_task_started_total", "t", "unknown") == 5
    assert (story.number(MISSED, "w1"), story.number(UNTRACKED, "w1")) == (0, 0)


def test_a_start_that_does_not_come_after_the_goodbye_either_is_told() -> None:
    """Also where the worker does not return."""
    story = Story()
    story.worker(active=0, processed=0)
    run_tasks(story, 3)
    story.worker("offline", active=1, processed=4)
    assert story.number(UNTRACKED, "w1") == 0
    story.wait(30)
    assert (story.number(MISSED, "w1"), story.number(UNTRACKED, "w1")) == (0, 1)
