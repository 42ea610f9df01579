"""Laws of the task table: whatever the order, the copies and the losses, it never raises, goes negative or leaks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from celeryscope.monitor.events import TaskEvent, WorkerEvent
from hypothesis import given
from hypothesis import strategies as st
from stories import START, Story

KINDS = ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "cancelled")
HOSTS = ("a", "b")


def event(kind: str, uuid: str, host: str, at: float, retries: int, extra: dict[str, Any]) -> TaskEvent:
    fields: dict[str, Any] = {}
    if kind == "sent":
        fields = {"name": "t", "queue": "q", "retries": retries}
        host = "producer"
    elif kind == "received":
        fields = {"name": "t", "retries": retries}
    elif kind == "succeeded":
        fields = {"runtime": extra["runtime"]}
    elif kind in ("failed", "retried"):
        fields = {"exception": extra["exception"]}
    elif kind == "rejected":
        fields = {"requeue": extra["flag"]}
    elif kind == "revoked":
        fields = {"expired": extra["flag"]}
    return TaskEvent(
        type=f"task-{kind}", hostname=host, timestamp=START + at, uuid=uuid, clock=int(at * 1000), pid=1, **fields
    )


extras = st.fixed_dictionaries(
    {
        "runtime": st.one_of(st.none(), st.floats(-1, 1e308)),
        "exception": st.sampled_from(["ValueError('x')", "reject requeue=True: x", "ExceptionWithTraceback()", None]),
        "flag": st.booleans(),
    }
)
SEQUENCES = (
    ("sent", "received", "started", "succeeded"),
    ("sent", "received", "started", "failed", "failed"),
    ("received", "started", "retried", "received", "started", "succeeded"),
    ("sent", "received", "started", "sent", "received", "retried", "started", "failed"),
    ("sent", "received", "started", "rejected", "received", "started", "failed", "rejected"),
    ("sent", "received", "received", "started", "started", "succeeded", "succeeded"),
    ("sent", "received", "started", "cancelled", "received", "started"),
    ("sent", "revoked"),
    ("received", "revoked"),
    ("sent", "received", "started"),
)


@st.composite
def lives(draw: Any) -> list[TaskEvent]:
    """Events of a few tasks, interleaved; some are lost, doubled, late, or of another host, attempt or kind."""
    random = draw(st.randoms(use_true_random=False))
    queues = [[(uuid, random.choice(HOSTS), kind) for kind in draw(st.sampled_from(SEQUENCES))] for uuid in "1234"]
    events: list[TaskEvent] = []
    while any(queues):
        uuid, host, kind = random.choice([queue for queue in queues if queue]).pop(0)
        chance = random.random()
        if chance < 0.08:
            continue
        at = len(events) * 0.4 + (random.uniform(-3, 3) if chance < 0.2 else 0)
        if 0.2 < chance < 0.26:
            host = random.choice(HOSTS)
        elif 0.26 < chance < 0.3:
            kind = random.choice(KINDS)
        one = event(kind, uuid, host, round(max(at, 0), 3), int(random.random() < 0.1), draw(extras))
        events.extend([one, one] if 0.3 < chance < 0.36 else [one])
    for _ in range(random.randint(0, 3)):
        events.insert(random.randint(0, len(events)), events.pop(random.randrange(len(events)))) if events else None
    return events


worker_events = st.builds(
    lambda kind, host, at, active, processed, pid: WorkerEvent(
        type=f"worker-{kind}",
        hostname=host,
        timestamp=START + at,
        active=active,
        processed=processed,
        clock=int(at * 1000),
        pid=pid,
    ),
    st.sampled_from(["online", "heartbeat", "heartbeat", "offline"]),
    st.sampled_from(HOSTS),
    st.floats(0, 100),
    st.one_of(st.none(), st.integers(0, 3)),
    st.one_of(st.none(), st.integers(0, 20)),
    st.sampled_from([1, 1, 1, 2]),
)
waits = st.sampled_from([0.0, 0.0, 0.6, 2.0, 70.0])


@st.composite
def streams(draw: Any) -> list[tuple[Any, float]]:
    events: list[Any] = list(draw(lives()))
    for one in draw(st.lists(worker_events, max_size=12)):
        events.insert(draw(st.integers(0, len(events))), one)
    return [(one, draw(waits)) for one in events]


def tell(story: Story, stream: list[tuple[Any, float]]) -> None:
    seen: dict[tuple[str, ...], float] = {}
    for one, wait in stream:
        story.feed(one)
        if wait:
            story.wait(wait)
        seen = check(story, seen)


def check(story: Story, before: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Nothing is negative, no counter goes back; the table's own books agree with one another."""
    now: dict[tuple[str, ...], float] = {}
    for metric, samples in story.pipeline.families():
        for labels, value in samples:
            values = value if isinstance(value, list) else [value]
            if not metric.name.endswith("skew_seconds"):
                assert all(v >= 0 for v in values), (metric.name, labels, value)
            if metric.kind == "counter" and not metric.name.startswith("celery_worker_processed"):
                now[(metric.name, *labels)] = values[0]
    for key, value in before.items():
        assert now.get(key, value) >= value, key
    books_agree(story)
    return now


def books_agree(story: Story) -> None:
    table = story.table
    runs = [run for head in table.live.values() for run in iterate(head) if run.state != 4]
    lines = Counter((id(run.row), run.waits) for run in runs if run.waits)
    waiting = {(id(row), since): n for row in table.rows.all() for since, n in row.waiting.items()}
    assert waiting.items() <= lines.items()
    assert all(lines[id(run.row), run.waits] == run.row.waiting[run.waits] for run in runs if run.waits)
    running = {id(run) for host in table.workers.hosts.values() for run in host.running}
    gone = {id(run) for run in table.orphans}
    assert running.isdisjoint(gone)
    assert not any(run.waits for run in runs if id(run) in running | gone)
    assert running | gone <= {id(run) for run in runs} | set()
    for host in table.workers.hosts.values():
        assert host.reserved == sum(run.state == 1 and run.host is host for run in runs)


def iterate(head: Any) -> Any:
    while head is not None:
        yield head
        head = head.previous


@given(streams())
def test_any_events_in_any_order_with_any_gaps(stream: list[tuple[Any, float]]) -> None:
    story = Story(worker_timeout=60)
    tell(story, stream)


LIFE = ("sent", "received", "started")


@given(
    st.lists(st.sampled_from(["succeeded", "failed", "revoked", "retried"]), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.floats(0, 0.5),
)
def test_shuffled_and_doubled_lives_within_the_hold_are_counted_exactly(
    ends: list[str], random: Any, doubled: float
) -> None:
    """All events of a task within a second: whatever their order, each counts once and under its queue."""
    story = Story()
    events = []
    for i, end in enumerate(ends):
        for step, kind in enumerate((*LIFE, end)):
            extra = {"runtime": 0.1, "exception": "ValueError('x')", "flag": False}
            one = event(kind, str(i), "a", 1 + i + step / 10, 0, extra)
            events.extend([one, one] if random.random() < doubled else [one])
    random.shuffle(events)
    story.now = START + 10
    for one in events:
        story.feed(one)
    story.wait(3)
    found = story.numbers("sent", "received", "started", "succeeded", "failed", "retried", "revoked")
    n = len(ends)
    expected = {"sent{t,q}": n, "received{t,q}": n, "started{t,q}": n}
    for end in set(ends):
        expected[f"{end}{{t,q{',revoked' if end == 'revoked' else ''}}}"] = ends.count(end)
    assert found == expected
    assert not story.table.live


@given(st.lists(st.booleans(), min_size=8, max_size=8), st.integers(1, 20))
def test_lost_events_leak_nothing_once_the_tasks_have_expired(lost: list[bool], tasks: int) -> None:
    story = Story(expire=600, worker_timeout=60, forget_worker_after=700)
    for i in range(tasks):
        for step, kind in enumerate((*LIFE, "succeeded")):
            if not lost[(i + step) % len(lost)]:
                extra = {"runtime": 0.1, "exception": None, "flag": False}
                story.feed(event(kind, str(i), "a", i + step / 10, 0, extra))
    story.wait(2_000)
    assert not story.table.live
    assert not story.table.orphans
    assert not story.pipeline.workers.hosts
