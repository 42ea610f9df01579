"""What the sampler is told from events: queues in use, and workers that come, go and start again."""

from __future__ import annotations

from celeryscope.monitor.hearsay import Hearsay, News
from stories import Story

NOBODY: frozenset[str] = frozenset()


def only(**what: set[str]) -> News:
    return News(*(frozenset(what.get(name, ())) for name in News._fields))


def test_queues_are_told_of_while_they_are_used_and_unknown_ones_never() -> None:
    """The task table never forgets a queue; the sampler does, an hour after it last heard of it."""
    story, hearsay = Story(), Hearsay()
    story.run("a", queue="mail")
    story.task("received", "b", name="no-sent", retries=0)
    story.wait(2)
    assert hearsay.look(story.table).queues == {"mail"}
    assert hearsay.look(story.table).queues == NOBODY
    story.task("sent", "c", "producer", name="t", queue="mail", retries=0)
    assert hearsay.look(story.table).queues == {"mail"}


def test_queues_over_the_cap_are_not_told_of() -> None:
    story, hearsay = Story(caps={"queue": 1}), Hearsay()
    for number in range(3):
        story.run(str(number), queue=f"queue{number}")
    assert hearsay.look(story.table).queues == {"queue0"}


def test_workers_come_go_and_start_again() -> None:
    story, hearsay = Story(worker_timeout=10, caps={"worker": 2}), Hearsay()
    for name in ("a", "b", "over the cap"):
        story.worker("online", host=name, active=0, processed=0)
    assert hearsay.look(story.table) == only(came={"a", "b"})
    story.worker("offline", host="a", active=0, processed=0)
    story.worker("online", host="b", active=0, processed=0, pid=2)
    assert hearsay.look(story.table) == only(went={"a"}, again={"b"})
    assert hearsay.look(story.table) == only()
    story.worker("online", host="a", active=0, processed=0, pid=3)
    story.wait(20)
    assert hearsay.look(story.table) == only(went={"b"})
