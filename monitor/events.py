"""Wire bytes to typed events: the only place that knows how Celery's event messages look."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct

# Anything outside is a lie or a broken clock; such an event is malformed rather than a poisoned histogram.
Timestamp = Annotated[float, Meta(gt=0, lt=1e11)]
Ident = Annotated[str, Meta(min_length=1, max_length=255)]


class TaskEvent(Struct, gc=False):
    """A `task-*` event. `timestamp` is unix time by the sender's clock; `hostname` the sender's node name."""

    type: str
    hostname: Ident
    timestamp: Timestamp
    uuid: Ident
    name: str | None = None
    queue: str | None = None
    retries: int | None = None
    eta: str | None = None
    runtime: float | None = None
    exception: str | None = None
    traceback: Raw | None = None
    requeue: bool | None = None
    expired: bool | None = None
    terminated: bool | None = None
    clock: int = 0
    pid: int = 0


class WorkerEvent(Struct, gc=False):
    """A `worker-online`, `worker-heartbeat` or `worker-offline` event; fields may be missing (LESSONS: wakeup)."""

    type: str
    hostname: Ident
    timestamp: Timestamp
    active: int | None = None
    processed: int | None = None
    freq: float | None = None
    loadavg: list[float] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
    clock: int = 0
    pid: int = 0


class BeatEntry(Struct):
    """One entry of a `beat-schedule` event; times are unix times, `every` is in seconds."""

    entry: str
    task: str = ""
    queue: str | None = None
    kind: str = "unknown"
    spec: str = ""
    tz: str | None = None
    every: float | None = None
    next_due: float | None = None
    enabled: bool = True
    dispatched: int = 0
    failed: int = 0
    last_dispatch: float | None = None


class BeatEvent(Struct):
    """A `beat-*` event of the beat probe (DESIGN §4 has the table of which type carries which fields)."""

    type: str
    hostname: Ident
    timestamp: Timestamp
    app: str = ""
    boot: str = ""
    scheduler: str | None = None
    count: int | None = None
    leader: bool | None = None
    seq: int | None = None
    last_tick: float | None = None
    max_interval: float | None = None
    totals: dict[str, tuple[int, int, float | None]] | None = None
    dropped: int = 0
    part: int = 1
    parts: int = 1
    entries: list[BeatEntry] | int | None = None
    entry: str | None = None
    task: str | None = None
    uuid: str | None = None
    due: float | None = None
    sent: float | None = None
    exception: str | None = None
    utcoffset: float | None = None
    clock: int = 0
    pid: int = 0


class EchoEvent(Struct):
    """The monitor's own `celeryscope-echo`; `boot` tells one monitor's echo from another's."""

    type: str
    hostname: Ident
    timestamp: Timestamp
    boot: str = ""
    seq: int = 0


Event = TaskEvent | WorkerEvent | BeatEvent | EchoEvent
