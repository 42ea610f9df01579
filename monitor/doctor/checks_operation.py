"""What the broker's server, the monitor's page and listening say of how it is run (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .checks_queues import broker_reached
from .facts import FLOWER_METRICS, Beat, Facts, Redis
from .registry import Severity
from .verdict import CannotTellError, Look, Seen, some

SKEW = 2.0
"""Seconds between two clocks from which on it is a finding: NTP holds hosts within a few hundredths."""
GRACE = 30.0
"""Kubernetes' default terminationGracePeriodSeconds."""
BEATS_SPEAK = 10.0
"""Seconds between two heartbeats of a beat."""
MARGIN = 1.0
"""Seconds in which messages of a killed beat may still come after its successor's first, as in monitor/beats.py."""
STALL = 30.0
"""Seconds for which a monitor may stand still without being cut off."""
LEAST_LIMIT = 8 << 20
"""Bytes that a burst of a few thousand events needs, whatever the usual rate."""
CLOSE_METRICS = (
    "Flower asks nobody for a password there, whatever it is told: let only a proxy reach it, and have that refuse the "
    "path (nginx: location = /flower/metrics { return 403; }; docs/flower.md has it in full)"
)
EVENT_SIZE = 800.0
"""Bytes of an event on the wire, where none was heard to measure."""


def plain_broker(facts: Facts) -> Iterator[Seen]:
    """A broker on another host is spoken to with TLS."""
    broker = facts.broker
    if broker.transport in ("redis", "amqp") and broker.remote and not broker.tls:
        password = "" if broker.password else ", and without a password"
        if broker.internal:
            text = f"{broker.label} is without TLS{password}; its name is one that only a network of its own knows"
            yield Seen(text, severity=Severity.INFO)
        else:
            yield Seen(f"{broker.label} is without TLS{password}")


def open_pages(facts: Facts) -> Iterator[Seen]:
    """No page answers strangers without credentials."""
    if not facts.doors:
        raise CannotTellError("no page is known that answers: --url for the monitor, --flower-url for Flower")
    for door in facts.doors:
        if door.open:
            whom = "an address of the open Internet" if door.public else "whoever is in that network"
            severity = None if door.public else Severity.INFO
            fix = CLOSE_METRICS if door.what == FLOWER_METRICS else ""
            yield Seen(f"{door.what} answers without credentials at {door.url}: {whom}", fix=fix, severity=severity)
    if all(door.open is None for door in facts.doors):
        raise CannotTellError(f"nothing answers at {some(door.url for door in facts.doors)}")


def several_beats(facts: Facts) -> Iterator[Seen]:
    """Each app has one beat that leads."""
    counts = dict(facts.monitored.beats)
    heard: dict[str, list[Beat]] = {}
    for beat in facts.heard.beats.values():
        if beat.leader is not False:
            heard.setdefault(beat.app, []).append(beat)
    unsure = []
    for app, beats in heard.items():
        together = _together(beats)
        counts[app] = max(counts.get(app, 0), len(together))
        if counts[app] == 1 < len(beats) and not facts.monitored.beats.get(app):
            unsure.append(app)
    for app, count in sorted(counts.items()):
        if count > 1:
            where = f" ({some(sorted(one.hostname for one in heard[app]), 4)})" if app in heard else ""
            yield Seen(f"{count} beats lead {app}{where}")
    if not counts:
        _no_beat(facts)
    if unsure:
        raise CannotTellError(
            f"a beat of {some(sorted(unsure))} came online meanwhile, and the one before was not heard again: it was "
            "restarted, or look once more"
        )
    if not facts.monitored.beats and facts.heard.seconds < BEATS_SPEAK:
        raise CannotTellError(f"beats tell of themselves every {BEATS_SPEAK:g} s: listen for longer (--listen)")


def _together(beats: Sequence[Beat]) -> list[Beat]:
    """Return the most beats that ran side by side: each was heard after all the others had come online."""
    found: list[Beat] = []
    for moment in {beat.online for beat in beats}:
        there = [
            beat for beat in beats if beat.online <= moment and (beat.online == moment or beat.last > moment + MARGIN)
        ]
        found = max(found, there, key=len)
    return found


def beat_in_worker(facts: Facts) -> Iterator[Seen]:
    """No beat runs as a worker's child or thread."""
    if not facts.heard.beats:
        _no_beat(facts)
    for beat in facts.heard.beats.values():
        if beat.embedded:
            yield Seen(f"the beat of {beat.app} on {beat.hostname} was started by a worker (-B)")


def _no_beat(facts: Facts) -> None:
    if facts.heard.error:
        raise CannotTellError(facts.heard.error)
    raise CannotTellError(
        f"no beat was heard in {facts.heard.seconds:.0f} s: none runs, or celeryscope.install(app) is missing there"
    )


def clock_skew(facts: Facts) -> Iterator[Seen]:
    """Workers' clocks agree with this machine's."""
    skews = {**facts.monitored.skews, **facts.heard.skews}
    if not skews:
        raise CannotTellError(facts.heard.error or "no worker's heartbeat was heard, and no page tells")
    off = {name: skew for name, skew in skews.items() if abs(skew) > SKEW}
    if off:
        each = some((f"{name} by {skew:+.1f} s" for name, skew in sorted(off.items())), 5)
        hint = "; all of them, so it may be this machine" if len(off) == len(skews) > 1 else ""
        yield Seen(f"against the watching machine's clock: {each}{hint}")


def grace_period(facts: Facts) -> Iterator[Seen]:
    """The slowest run that was seen fits into the time that workers get to end."""
    monitored = facts.monitored
    if monitored.error or not monitored.url:
        raise CannotTellError("how long tasks take only a monitor's page tells (--url), and there is none")
    grace = GRACE if facts.grace is None else facts.grace
    slow = {name: times.slowest for name, times in monitored.tasks.items() if times.slowest > grace}
    if slow:
        each = some((f"{name} ({seconds:.0f} s or more)" for name, seconds in sorted(slow.items(), key=_longest)), 4)
        given = f"{grace:g} s" if facts.grace is not None else f"Kubernetes' default of {grace:g} s, as you gave none"
        yield Seen(f"{each}: longer than {given}", severity=Severity.INFO if facts.grace is None else None)


def _longest(item: tuple[str, float]) -> float:
    return -item[1]


def _redis(facts: Facts) -> Redis | None:
    broker_reached(facts)
    if facts.broker.transport != "redis":
        return None
    if facts.broker.redis is None:
        raise CannotTellError("Redis did not tell")
    return facts.broker.redis


def redis_eviction(facts: Facts) -> Iterator[Seen]:
    """`maxmemory-policy` is noeviction."""
    redis = _redis(facts)
    if redis is None:
        return
    if redis.policy is None:
        raise CannotTellError(redis.refused or "Redis did not tell its maxmemory-policy")
    if redis.policy != "noeviction":
        limit = f"maxmemory is {redis.maxmemory} bytes" if redis.maxmemory else "maxmemory is not set so far"
        yield Seen(f"maxmemory-policy is {redis.policy}, {limit}")


def redis_pubsub_limit(facts: Facts) -> Iterator[Seen]:
    """What Redis keeps for a slow subscriber holds half a minute of events."""
    redis = _redis(facts)
    if redis is None:
        return
    if redis.pubsub_limit is None:
        raise CannotTellError(redis.refused or "Redis did not tell its client-output-buffer-limit")
    hard, soft, seconds = redis.pubsub_limit
    limits = [bytes_ for bytes_, counts in ((hard, True), (soft, seconds < STALL)) if bytes_ and counts]
    if not limits:
        return
    heard = facts.heard
    size = heard.bytes / heard.events if heard.events else EVENT_SIZE
    rate = heard.events / heard.seconds if heard.seconds else 0.0
    needed = max(LEAST_LIMIT, rate * size * STALL)
    if min(limits) < needed:
        wanted = f"pubsub {_mb(4 * needed)}mb {_mb(2 * needed)}mb 60"
        fix = f'CONFIG SET client-output-buffer-limit "{wanted}", and in redis.conf'
        text = f"pubsub {hard} {soft} {seconds}; {STALL:g} s of events at {rate:.0f}/s need {_mb(needed)} MB"
        yield Seen(f"client-output-buffer-limit {text}", fix=fix)


def _mb(size: float) -> int:
    return max(1, round(size / (1 << 20)))


def redis_persistence(facts: Facts) -> Iterator[Seen]:
    """Redis writes an append-only file, or snapshots at least."""
    redis = _redis(facts)
    if redis is None or redis.appendonly:
        return
    if redis.appendonly is None or redis.save is None:
        raise CannotTellError(redis.refused or "Redis did not tell whether it writes snapshots")
    if not redis.save:
        yield Seen('appendonly is "no" and save is empty')


LOOKS: dict[str, Look] = {
    "plain-broker": plain_broker,
    "open-pages": open_pages,
    "several-beats": several_beats,
    "beat-in-worker": beat_in_worker,
    "clock-skew": clock_skew,
    "grace-period": grace_period,
    "redis-eviction": redis_eviction,
    "redis-pubsub-limit": redis_pubsub_limit,
    "redis-persistence": redis_persistence,
}
