"""After a restart: which of the tasks known from before are over, by what workers and queues say."""

from __future__ import annotations

from typing import Any

import pytest
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.pipeline import Pipeline
from celeryscope.monitor.queues import QueueFacts, QueueSnapshot
from celeryscope.monitor.restored import Answers
from stories import Story

MISSED = "celeryscope_task_outcomes_missed_total"
DOWN = 60.0


@pytest.fixture(name="before")
def _before() -> Story:
    """A worker that runs `busy`, holds `ready` and, for an hour, `later`; `queued` has not left its queue."""
    story = Story()
    story.worker(processed=0, active=0)
    for uuid, eta in (("busy", None), ("ready", None), ("later", "2099-01-01T00:00:00+00:00"), ("queued", None)):
        story.task("sent", uuid, "producer", name="t", queue="q", retries=0, eta=eta)
        if uuid != "queued":
            story.task("received", uuid, name="t", retries=0, eta=eta)
    story.task("started", "busy")
    return story


def restarted(before: Story, *, heard: bool = True) -> Story:
    """The monitor a minute later: as it was saved, connected and, if `heard`, with a heartbeat of the worker."""
    story = Story()
    story.now, story.clock = before.now + DOWN, before.clock
    story.pipeline.load(before.pipeline.dump(clean=True), story.now)
    story.now += 1
    story.pipeline.connection(True, story.now)
    if heard:
        story.worker(processed=1, active=1)
    return story


def judge(story: Story, *held: str, queues: dict[str, QueueFacts] | None = None, answered: bool = True) -> None:
    tasks = {"w1": frozenset(held)} if answered else {}
    story.pipeline.judge_restored(Answers(story.now, tasks, QueueSnapshot(story.now, queues or {})))


def gauges(story: Story) -> dict[str, Any]:
    return story.numbers("tasks_waiting", "tasks_running")


def test_what_the_worker_still_has_goes_on(before: Story) -> None:
    story = restarted(before)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=1)})
    assert gauges(story) == {"tasks_running{t,q}": 1, "tasks_waiting{t,q}": 2}
    assert story.number(MISSED) == 0
    story.task("succeeded", "busy", runtime=1.0)
    assert story.number("celery_task_succeeded_total", "t", "q") == 1


def test_what_ended_meanwhile_is_counted_as_missed_and_as_nothing_else(before: Story) -> None:
    story = restarted(before)
    judge(story, queues={"q": QueueFacts(ready=0)})
    assert gauges(story) == {}
    assert list(story.table.live) == ["later"]  # held for its ETA, which no worker is asked about
    assert story.number(MISSED) == 3
    outcomes = ("succeeded", "failed", "retried", "silent_end", "cancelled")
    assert story.numbers(*outcomes) == {}


def test_who_does_not_answer_is_not_judged(before: Story) -> None:
    """A solo worker that is busy cannot answer, and a message that is not in the queue may be with it."""
    story = restarted(before)
    judge(story, queues={"q": QueueFacts(ready=0)}, answered=False)
    assert gauges(story) == {"tasks_running{t,q}": 1, "tasks_waiting{t,q}": 2}
    assert story.number(MISSED) == 0


def test_who_answers_later_is_judged_then(before: Story) -> None:
    """On a busy machine the answer may come too late for the first question."""
    story = restarted(before)
    judge(story, queues={"q": QueueFacts(ready=0)}, answered=False)
    judge(story, queues={"q": QueueFacts(ready=0)}, answered=False)
    assert story.number(MISSED) == 0
    story.wait(10)
    judge(story, "busy", queues={"q": QueueFacts(ready=0)})
    assert list(story.table.live) == ["busy", "later"]
    assert story.number(MISSED) == 2
    assert story.pipeline.restored is None


def test_without_a_sample_of_the_queues_nothing_that_may_lie_there_is_judged(before: Story) -> None:
    """What a worker put back when it was told to stop is in a queue that nobody has looked into yet."""
    story = restarted(before)
    story.pipeline.judge_restored(Answers(story.now, {"w1": frozenset({"busy"})}, QueueSnapshot()))
    assert gauges(story)["tasks_waiting{t,q}"] == 2
    assert story.pipeline.restored is not None
    story.wait(10)
    judge(story, "busy", queues={"q": QueueFacts(ready=0)})
    assert list(story.table.live) == ["busy", "later"]
    assert story.number(MISSED) == 2


def test_who_never_answers_is_left_alone_in_the_end(before: Story) -> None:
    story = restarted(before)
    judge(story, queues={"q": QueueFacts(ready=0)}, answered=False)
    assert story.pipeline.restored is not None
    story.pipeline.judge_restored(Answers(story.now, {}, QueueSnapshot(story.now)), last=True)
    assert story.pipeline.restored is None
    assert story.number(MISSED) == 0


def test_what_the_queue_may_still_hold_waits(before: Story) -> None:
    """Not empty, and its oldest message is not clearly younger: the task may be among them."""
    story = restarted(before)
    judge(story, "busy", queues={"q": QueueFacts(ready=5, oldest_at=before.now + 30)})
    assert gauges(story)["tasks_waiting{t,q}"] == 2
    story = restarted(before)
    judge(story, "busy", queues={"q": QueueFacts(ready=5, oldest_at=before.now + 90)})
    assert "tasks_waiting{t,q}" not in gauges(story)
    assert story.number(MISSED) == 2


def test_what_the_queue_may_have_held_is_looked_for_again_as_it_moves_on(before: Story) -> None:
    """A queue that is never empty, with messages as young as the task: the next samples tell, the workers do not."""
    story = restarted(before)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=5, oldest_at=before.now)})
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=5, oldest_at=before.now + 120)})
    assert story.number(MISSED) == 0  # the same sample once more says nothing new
    story.wait(10)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=5, oldest_at=before.now + 30)})
    assert gauges(story)["tasks_waiting{t,q}"] == 2
    story.wait(10)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=5, oldest_at=before.now + 120)})
    assert gauges(story)["tasks_waiting{t,q}"] == 1
    assert list(story.table.live) == ["busy", "ready", "later"]
    assert story.number(MISSED) == 1
    assert story.pipeline.restored is None


def test_what_is_received_meanwhile_is_in_doubt_no_more(before: Story) -> None:
    story = restarted(before)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=1)})
    story.task("received", "queued", name="t", retries=0)
    story.wait(10)
    judge(story, "busy", "ready", queues={"q": QueueFacts(ready=0)})
    assert gauges(story)["tasks_waiting{t,q}"] == 2
    assert story.number(MISSED) == 0


def test_an_unknown_queue_says_nothing_of_what_no_worker_had(before: Story) -> None:
    """The worker answers for what it had received; a message that nobody had received stays."""
    story = restarted(before)
    judge(story, "busy")
    assert list(story.table.live) == ["busy", "later", "queued"]
    assert story.number(MISSED) == 1


def test_what_an_event_has_moved_since_the_restart_is_left_to_events(before: Story) -> None:
    """The answer is older than the event that was on its way."""
    story = restarted(before)
    story.task("started", "ready")
    story.task("received", "queued", name="t", retries=0)
    judge(story, "busy", queues={"q": QueueFacts(ready=0)})
    assert gauges(story) == {"tasks_running{t,q}": 2, "tasks_waiting{t,q}": 1}


def test_an_end_that_comes_after_all_is_counted(before: Story) -> None:
    story = restarted(before)
    judge(story, "ready", queues={"q": QueueFacts(ready=1)})
    assert story.number(MISSED) == 1
    story.task("failed", "busy", exception="ValueError('x')")
    assert story.number("celery_task_failed_total", "t", "q") == 1
    assert "busy" not in story.table.live


def test_heartbeats_alone_end_what_is_over_and_do_not_call_it_a_silent_end(before: Story) -> None:
    """Workers that cannot be asked: their `active` count leaves no room for the task from before the restart."""
    story = restarted(before)
    for _ in range(4):
        story.wait(2)
        story.worker(processed=1, active=0)
    assert "tasks_running{t,q}" not in gauges(story)
    assert story.number(MISSED) == 1
    assert story.number("celery_task_silent_end_total", "t", "q") == 0


def test_a_monitor_that_is_killed_again_and_again_does_not_take_its_absence_for_silence(before: Story) -> None:
    """Each life hears one heartbeat, that tells of starts which nobody heard: missed, and not events switched off."""
    story = before
    for life in range(1, 6):
        story = restarted(story, heard=False)
        story.wait(1)
        story.worker(processed=1 + 10 * life, active=1)
        story.wait(1)
    story.worker(processed=51, active=1)
    story.wait(1)
    story.worker(processed=51, active=1)
    assert story.number("celery_worker_events_enabled", "w1") == 1
    assert story.number("celery_worker_starts_missed_total", "w1") == 50
    assert story.number("celery_worker_starts_missed_down_total", "w1") == 50


def test_many_are_judged_in_parts(monkeypatch: pytest.MonkeyPatch, before: Story) -> None:
    """So that events do not wait for the lock meanwhile."""
    monkeypatch.setattr("celeryscope.monitor.restored.AT_ONCE", 3)
    story = restarted(before)
    judge(story, queues={"q": QueueFacts(ready=0)})
    assert len(story.pipeline.restored or ()) == 1
    judge(story, queues={"q": QueueFacts(ready=0)})
    assert story.pipeline.restored is None
    assert story.number(MISSED) == 3


def test_nothing_is_asked_without_a_restart() -> None:
    assert Pipeline(METRICS).restored is None
