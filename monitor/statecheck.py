"""Whether what a state file holds makes sense: every value of the kind and size that the monitor itself writes.

What is taken back is set without a look at it, and a text where a time should be would fail at every scrape from then
on. Fields that are missing are told by those who take them back; unknown ones are a newer version's.
"""

from __future__ import annotations

from sys import float_info
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from .rows import COUNTERS, HISTOGRAMS

Time = Annotated[float, Meta(gt=-1e12, lt=1e12)]
Whole = Annotated[int, Meta(ge=-(2**60), le=2**60)]
Number = Annotated[float, Meta(ge=-float_info.max, le=float_info.max)]
Buckets = list[Number]
# Fewer are an older version's, which did not have the last ones yet.
Counts = Annotated[list[Whole], Meta(max_length=len(COUNTERS))]
Histograms = Annotated[list[Buckets | None], Meta(max_length=len(HISTOGRAMS))]


class _Columns(Struct):
    uuid: list[str] = field(default_factory=list)
    state: list[Annotated[int, Meta(ge=0, le=3)]] = field(default_factory=list)
    retries: list[Whole] = field(default_factory=list)
    received_clock: list[Whole | None] = field(default_factory=list)
    started_clock: list[Whole | None] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    available_at: list[Time] = field(default_factory=list)
    first_sent: list[Time] = field(default_factory=list)
    eta: list[Time] = field(default_factory=list)
    received_at: list[Time] = field(default_factory=list)
    started_at: list[Time] = field(default_factory=list)
    since: list[Time] = field(default_factory=list)
    row: list[Whole] = field(default_factory=list)
    host: list[Whole] = field(default_factory=list)


class _Runs(Struct):
    rows: list[tuple[str, str]]
    hosts: list[str | None]
    columns: _Columns


class _Trust(Struct):
    processed: Whole | None = None
    base: Whole = 0
    deficit: Whole = 0
    settled: Whole = 0
    judged_at: Time = 0
    clean_at: Time = 0
    booted_at: Time = 0
    silent_growth: Whole = 0
    silent_streak: Whole = 0
    events_enabled: bool = True
    shared: bool = False
    mixed_at: Time = 0
    missed: Whole = 0
    missed_down: Whole = 0
    untracked: Whole = 0


class _Worker(Struct):
    name: str
    trust: _Trust
    info: tuple[str, str]
    up: bool = True
    lost: bool = False
    down_at: Time = 0
    heartbeat_at: Time = 0
    task_at: Time = 0
    pid: Whole = 0
    clock: Whole = 0
    active: Whole | None = None
    load: Number | None = None
    active_at: Time = 0
    mark: Time = 0
    base_at: Time = 0
    starts: Whole = 0
    starts_after: Whole = 0


class _Boot(Struct):
    label: str
    first: Time
    last: Time
    skew: Time
    tallies: dict[str, list[Whole]]
    leader: bool | None = None
    offline: bool = False
    synced: bool = False
    dropped: Whole = 0
    entries: Whole | None = None
    last_tick: Time | None = None
    seq: Whole | None = None
    testimony: dict[str, tuple[Time, Time | None, str | None, Time | None, list[Whole]]] = field(default_factory=dict)
    ran: dict[str, Whole] = field(default_factory=dict)


class _Chain(Struct):
    task: str = ""
    queue: str | None = None
    kind: str = ""
    spec: str = ""
    tz: str | None = None
    every: Time | None = None
    enabled: bool = True
    since: Time = 0
    anchor: Time | None = None
    anchor_boot: str = ""
    anchor_own: bool = False
    first_due: Time | None = None
    due: Time | None = None
    counted: Whole = 0
    grid: tuple[str, Time, Whole, Time] = ("", 0.0, 0, 0.0)
    drift: Number | None = None
    last_dispatch: Time | None = None
    last_success: Time | None = None
    last_failure: Time | None = None
    dispatched: Whole = 0
    failed: Whole = 0
    missed: Whole = 0
    duplicates: Whole = 0
    lateness: Buckets | None = None
    interval: Buckets | None = None
    end_to_end: Buckets | None = None


class _App(Struct):
    boots: dict[str, _Boot]
    chains: dict[str, _Chain]
    dead: bool = True
    led_by: str = ""
    dropped: Whole = 0


class _Ledger(Struct):
    bounds: list[Buckets] = field(default_factory=list)
    dropped: Whole = 0
    watched: dict[str, tuple[str, str, Time | None]] = field(default_factory=dict)
    apps: dict[str, _App] = field(default_factory=dict)


_ExceptionCount = tuple[str, str, Whole]
_Row = tuple[str, Counts, Histograms, list[_ExceptionCount]]


class _State(Struct):
    clean: bool
    workers: list[_Worker]
    runs: _Runs
    rows: list[tuple[str, Whole, Whole, list[_Row]]] | None
    events: dict[str, Annotated[int, Meta(ge=0, le=2**60)]] | None = None
    ledger: _Ledger | None = None


_BUCKETS: tuple[Literal["lateness", "interval", "end_to_end"], ...] = ("lateness", "interval", "end_to_end")


def check(state: Any) -> None:
    """Look at what one broker's pipeline dumped.

    Raises:
        ValueError: something in it makes no sense; one line that says what, and where.
    """
    found = msgspec.convert(state, _State)
    if found.ledger is None:
        return
    lengths = [len(bounds) + 2 for bounds in found.ledger.bounds]
    for name, app in found.ledger.apps.items():
        for entry, chain in app.chains.items():
            for buckets, length in zip(_BUCKETS, lengths, strict=False):
                values = getattr(chain, buckets)
                if values is not None and len(values) != length:
                    raise ValueError(f"{len(values)} numbers where {length} belong - at {buckets} of {entry!r:.60}"
                                     f" of {name!r:.60}")  # fmt: skip
