"""Every slot is accounted for exactly once, whatever happens to beat, to the monitor and to the events."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
from beat_world import START, World, interval
from celery.schedules import crontab
from hypothesis import example, given

SETTLE = 41.0

happenings = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.floats(0.5, 60.0)),
        st.tuples(st.just("stop"), st.floats(0.5, 60.0)),
        st.tuples(st.just("kill, store up to date"), st.floats(0.5, 90.0)),
        st.tuples(st.just("kill, store out of date"), st.floats(0.5, 90.0)),
        st.tuples(st.just("kill, store lost"), st.floats(0.5, 90.0)),
        st.tuples(st.just("monitor restarts"), st.floats(0.0, 120.0)),
        st.tuples(st.just("broker refuses"), st.floats(0.5, 30.0)),
    ),
    min_size=1,
    max_size=5,
)


def go_through(world: World, happening: str, seconds: float, stale: dict[str, Any]) -> None:
    beat = world.beats[0]
    if happening.startswith(("kill", "stop")) and not world.workers:
        # What is lost last before the silence nobody else can know: the last heartbeat gets through.
        beat.probe.reports._next_heartbeat = -math.inf
        world.deliver(beat, loss=0.0)
    if happening == "stop":
        world.stop(beat, seconds)
        world.run(seconds)
    elif happening.startswith("kill"):
        stored = world.kill(beat)
        world.run(seconds)
        world.start(
            stored={"up to date": stored, "out of date": stale, "lost": None}[happening.rpartition("store ")[2]]
        )
    elif happening == "monitor restarts":
        world.monitor_up = False
        world.run(seconds)
        world.monitor_up = True
        world.restart_monitor()
        hear_all(world)
    elif happening == "broker refuses":
        world.failing = True
        world.run(seconds)
        world.failing = False
    else:
        world.run(seconds)


def hear_all(world: World) -> None:
    """Within a minute beat has told everything again."""
    loss, world.loss = world.loss, 0.0
    world.run(61.0)
    world.loss = loss


def first_slot(world: World, every: float) -> float:
    """Return the first slot of the interval: what the beat says that was there before it came, heard by the monitor.

    One that begins without a store before anything was dispatched counts anew from its own start.
    """
    due, first = START + every, min(world.attempts["often"], default=math.inf)
    for at, (kind, fields) in zip(world.wire_times, world.wire, strict=True):
        if kind == "beat-schedule" and at < min(due, first):
            due = next(item["next_due"] for item in fields["entries"] if item["entry"] == "often")
    return due


def missed_of_interval(attempts: list[float], every: float, first_due: float, now: float) -> tuple[int, int]:
    """Return what an interval missed by its definition, and how many slots are open now."""
    missed, due = 0, first_due
    for sent in [*attempts, now]:
        missed += max(0, math.floor((sent - due) / every))
        if sent != now or sent in attempts:
            due = sent + every
    return missed, int(due <= now)


def missed_of_grid(attempts: list[float], step: float, start: float, now: float) -> tuple[int, int]:
    """Return which slots of a fixed grid nobody served although the next one was due, and how many are open."""
    slots = {k * step for k in range(math.floor(start / step) + 1, math.floor(now / step) + 1)}
    served = {math.floor(round(sent, 6) / step) * step for sent in attempts}  # datetimes end at microseconds
    unserved = slots - served
    last = math.floor(now / step) * step
    return len(unserved - {last}), int(last in unserved)


# A beat without a store comes 4 ms before the first slot, which it does not know of and which is nobody's then.
@example(every=3.0, minutes=1, loss=0.0, what=[("kill, store lost", 0.99609375)], seed=0, skew=0.0, workers=False)
@given(
    every=st.floats(1.0, 7.0), minutes=st.sampled_from([1, 2, 5]), loss=st.sampled_from([0.0, 0.1]),
    what=happenings, seed=st.integers(0, 1_000), skew=st.sampled_from([0.0, -300.0, 45.0]), workers=st.booleans(),
)  # fmt: skip
def test_every_slot_is_dispatched_failed_missed_or_pending(
    every, minutes, loss, what, seed, skew, workers
):  # fmt: skip
    schedule = {"often": interval(every), "cron": {"task": "proj.cron", "schedule": crontab(minute=f"*/{minutes}")}}
    world = World(schedule, loss=loss, seed=seed, skew=skew)
    world.workers = workers
    world.ledger.tick(world.monitor_now())
    beat = world.start()
    world.deliver(beat, loss=0.0)
    world.run(2.0)
    beat.probe.reports._next_listing = -math.inf
    world.deliver(beat, loss=0.0)
    stale = beat.stored()
    for happening, seconds in what:
        go_through(world, happening, seconds, stale)
        world.run(SETTLE)
    hear_all(world)

    for name in ("often", "cron"):
        attempts = world.attempts[name]
        assert world.entry("dispatched_total", name) + world.entry("dispatch_failed_total", name) == len(attempts)
    assert sum(world.entry("dispatch_failed_total", name) for name in ("often", "cron")) == world.failed
    missed, _ = missed_of_interval(world.attempts["often"], every, first_slot(world, every), world.now)
    assert world.entry("missed_total", "often") == missed
    missed, pending = missed_of_grid(world.attempts["cron"], minutes * 60.0, START, world.now)
    assert world.entry("missed_total", "cron") == missed
    assert (world.entry("next_due_timestamp_seconds", "cron") <= world.now) == bool(pending)
