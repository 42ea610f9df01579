"""The ledger's state as metric families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .facts import Buckets, Family, Labels
from .labels import LONGEST, OTHER

if TYPE_CHECKING:
    from .beats import BeatApp, Boot
    from .chains import Chain
    from .schedules import Ledger

LATE = 2.0
"""Seconds past its slot before an entry counts as overdue: beat's report of a dispatch is that long on its way."""

Number = Callable[["Chain"], float | None]
Row = tuple[tuple[str, str], "Chain"]
Merge = Callable[[float, float], float]


def _sum(a: float, b: float) -> float:
    return a + b


_NUMBERS: dict[str, tuple[Number, Merge]] = {
    "drift_seconds": (lambda c: c.drift, max),
    "never_ran": (lambda c: float(c.last_dispatch is None), max),
    "dispatched_total": (lambda c: c.dispatched, _sum),
    "missed_total": (lambda c: c.missed, _sum),
    "duplicate_total": (lambda c: c.duplicates, _sum),
    "dispatch_failed_total": (lambda c: c.failed, _sum),
    "next_due_timestamp_seconds": (lambda c: c.first_due if c.enabled else None, min),
    "last_dispatch_timestamp_seconds": (lambda c: c.last_dispatch, max),
    "last_success_timestamp_seconds": (lambda c: c.last_success, max),
    "last_failure_timestamp_seconds": (lambda c: c.last_failure, max),
}
_HISTOGRAMS: dict[str, Callable[[Chain], Buckets]] = {
    "lateness_seconds": lambda c: c.lateness,
    "interval_seconds": lambda c: c.interval,
    "end_to_end_seconds": lambda c: c.end_to_end,
}


def families(ledger: Ledger) -> Iterator[Family]:
    """Return all families of the ledger; entries over the cap share one series, which holds their sum or worst."""
    catalog = ledger.catalog
    for name, samples in _processes(ledger).items():
        yield Family(catalog[f"celery_{name}"], list(samples.items()))
    rows: list[Row] = [
        ((app.name[:LONGEST], app.labels.get(entry, OTHER)), chain)
        for app in ledger.apps.values()
        for entry, chain in app.chains.items()
    ]
    info = {
        (*labels, ledger.caps.admit("task", chain.task or "unknown"), chain.kind, chain.spec[:LONGEST]): 1.0
        for labels, chain in rows
        if labels[1] != OTHER
    }
    yield Family(catalog["celery_beat_entry_info"], list(info.items()))
    for name, read in _HISTOGRAMS.items():
        yield Family(catalog[f"celery_beat_{name}"], _histograms(rows, read))
    for name, (number, merge) in _NUMBERS.items():
        yield Family(catalog[f"celery_beat_{name}"], _numbers(((k, number(c)) for k, c in rows), merge))
    overdue = [sample for app in ledger.apps.values() for sample in _overdue(ledger, app)]
    yield Family(catalog["celery_beat_overdue_seconds"], _numbers(overdue, max))
    dropped = ledger.dropped + sum(app.dropped for app in ledger.apps.values())
    yield Family(catalog["celeryscope_probe_dropped_total"], [(("beat",), dropped)])


def _processes(ledger: Ledger) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {
        "beat_up": {}, "beat_last_tick_timestamp_seconds": {}, "beat_entries": {}, "beats": {},
    }  # fmt: skip
    for app in ledger.apps.values():
        name = app.name[:LONGEST]
        leaders = app.leaders(ledger.now, ledger.hearing_since)
        found["beats"][(name,)] = len(leaders)
        for boot in sorted(app.boots.values(), key=lambda b: b.last_heard):
            key = (name, boot.label[:LONGEST])
            up = boot in leaders or (not boot.leads() and boot.alive(ledger.now, ledger.hearing_since))
            found["beat_up"][key] = max(float(up), found["beat_up"].get(key, 0.0))
            _latest(found, key, boot)
    return found


def _latest(found: dict[str, dict[Labels, float]], key: Labels, boot: Boot) -> None:
    if boot.last_tick is not None:
        found["beat_last_tick_timestamp_seconds"][key] = boot.last_tick
    if boot.entries is not None:
        found["beat_entries"][key] = boot.entries


def _overdue(ledger: Ledger, app: BeatApp) -> Iterator[tuple[Labels, float | None]]:
    """Judge by the beat's clock; a live beat's entry only where that beat has confirmed that it did not dispatch."""
    last = app.latest()
    skew = last.skew.seconds if last is not None else 0.0
    moment = ledger.now - skew
    leaders = app.leaders(ledger.now, ledger.hearing_since)
    confirmed = min((boot.confirmed or 0.0 for boot in leaders), default=moment)
    for entry, chain in app.chains.items():
        late = chain.overdue(confirmed) > LATE
        yield (app.name[:LONGEST], app.labels.get(entry, OTHER)), chain.overdue(moment) if late else 0.0


def _numbers(samples: Iterable[tuple[Labels, float | None]], merge: Merge) -> list[tuple[Labels, float | Buckets]]:
    found: dict[Labels, float] = {}
    for labels, value in samples:
        if value is not None:
            found[labels] = merge(found[labels], value) if labels in found else value
    return list(found.items())


def _histograms(rows: list[Row], read: Callable[[Chain], Buckets]) -> list[tuple[Labels, float | Buckets]]:
    found: dict[Labels, Buckets] = {}
    for labels, chain in rows:
        known = found.get(labels)
        # A copy: what is handed over is rendered outside the lock.
        found[labels] = [a + b for a, b in zip(known, read(chain), strict=True)] if known else list(read(chain))
    return list(found.items())
