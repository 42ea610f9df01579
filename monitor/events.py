"""Wire bytes to typed events: the only place that knows how Celery's event messages look."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Raw, Struct
from pybase64 import b64decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("celeryscope.events")

# Anything outside is a lie or a broken clock; such an event is malformed rather than a poisoned histogram.
Timestamp = Annotated[float, Meta(gt=0, lt=1e11)]
Seconds = Annotated[float, Meta(ge=0, lt=1e11)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Ident = Annotated[str, Meta(min_length=1, max_length=255)]

TaskType = Literal[
    "task-sent",
    "task-received",
    "task-started",
    "task-succeeded",
    "task-failed",
    "task-retried",
    "task-revoked",
    "task-rejected",
    "task-cancelled",
]
WorkerType = Literal["worker-online", "worker-heartbeat", "worker-offline"]
BeatType = Literal[
    "beat-online",
    "beat-offline",
    "beat-heartbeat",
    "beat-schedule",
    "beat-dispatched",
    "beat-dispatch-failed",
    "beat-received",
]

NO_TRACEBACK = Raw(b"null")


class TaskEvent(Struct, gc=False, kw_only=True):
    """A `task-*` event. `timestamp` is unix time by the sender's clock; `hostname` the sender's node name.

    `traceback` is the undecoded JSON of the traceback's text, `bytes()` of it are `null` without one.
    The fields stand in the order in which Celery writes them: msgspec then finds each at the first look (16 %).
    """

    hostname: Ident
    pid: Count | None = None
    clock: Count | None = None
    uuid: Ident
    name: str | None = None
    retries: Count | None = None
    eta: str | None = None
    expires: str | None = None
    queue: str | None = None
    runtime: Seconds | None = None
    exception: str | None = None
    traceback: Raw = NO_TRACEBACK
    requeue: bool | None = None
    expired: bool | None = None
    terminated: bool | None = None
    timestamp: Timestamp
    type: TaskType


class WorkerEvent(Struct, gc=False, kw_only=True):
    """A `worker-online`, `worker-heartbeat` or `worker-offline` event; fields may be missing (forced heartbeats)."""

    hostname: Ident
    pid: Count | None = None
    clock: Count | None = None
    freq: Seconds | None = None
    active: Count | None = None
    processed: Count | None = None
    loadavg: Annotated[list[float], Meta(max_length=16)] | None = None
    sw_ident: str | None = None
    sw_ver: str | None = None
    sw_sys: str | None = None
    timestamp: Timestamp
    type: WorkerType


class BeatEntry(Struct):
    """One entry of a `beat-schedule` event; times are unix times, `every` is in seconds.

    The counts and `last_dispatch` (of the last attempt) are this boot's; where it has none yet, `last_dispatch` is
    what the scheduler's store remembers.
    """

    entry: Ident
    task: str = ""
    queue: str | None = None
    kind: str = "unknown"
    spec: str = ""
    tz: str | None = None
    every: Seconds | None = None
    next_due: Seconds | None = None
    enabled: bool = True
    dispatched: Count = 0
    failed: Count = 0
    skipped: Count = 0
    first: Seconds | None = None
    last_dispatch: Seconds | None = None


class BeatEvent(Struct, kw_only=True):
    """A `beat-*` event of the beat probe (docs/beat.md has the table of which type carries which fields)."""

    type: BeatType
    hostname: Ident
    timestamp: Timestamp
    app: Ident
    boot: Ident
    scheduler: str | None = None
    count: Count | None = None
    leader: bool | None = None
    seq: Count | None = None
    last_tick: Seconds | None = None
    max_interval: Seconds | None = None
    totals: dict[str, tuple[Count, Count, Seconds | None]] | None = None
    dropped: Count = 0
    skips: dict[str, Count] | None = None
    uuids: dict[str, str] | None = None
    firsts: dict[str, Seconds] | None = None
    asof: Seconds | None = None
    complete: bool = True
    full: bool = False
    hides: bool = False
    listing: Count = 0
    part: Count = 1
    parts: Count = 1
    entries: list[BeatEntry] | Count | None = None
    entry: Ident | None = None
    task: str = ""
    uuid: Ident | None = None
    due: Seconds | None = None
    sent: Seconds | None = None
    exception: str | None = None
    queue: str | None = None
    kind: str = "unknown"
    spec: str = ""
    tz: str | None = None
    every: Seconds | None = None
    next_due: Seconds | None = None
    dispatched: Count = 0
    failed: Count = 0
    skipped: Count = 0
    first: Seconds | None = None
    utcoffset: float | None = None
    clock: Count | None = None
    pid: Count | None = None


class EchoEvent(Struct, kw_only=True):
    """The monitor's own `celeryscope-echo`; `boot` tells one monitor's echo from another's."""

    type: Literal["celeryscope-echo"]
    hostname: Ident
    timestamp: Timestamp
    boot: str = ""
    seq: Count = 0


Event = TaskEvent | WorkerEvent | BeatEvent | EchoEvent

JSON = "application/json"
MAX_BYTES = 4 << 20
"""Longest event message that is decoded; Celery's own stay under 1 MB, a `beat-schedule` part under 100 kB."""
MAX_COMMAS = 200_000  # a hostile `[0,0,0,…` would cost 80 bytes a comma before its length is known
LOG_EVERY = 60.0

Reason = Literal["size", "envelope", "base64", "content-type", "serializer", "json", "type", "field"]

# kombu writes the body first; the pubsub payload of Celery 5 always begins with this.
_HEAD = b'{"body": "'
_LIST = ord("[")
_BROKEN = (ValueError, RecursionError)  # msgspec's and base64's errors are ValueErrors; too deep nesting is the other

T = TypeVar("T")


class _Properties(Struct):
    body_encoding: str | None = None


class _Envelope(Struct, rename={"content_type": "content-type", "content_encoding": "content-encoding"}):
    body: str
    content_type: str | None = JSON
    content_encoding: str | None = "utf-8"
    properties: _Properties = msgspec.field(default_factory=_Properties)


class _Head(Struct):
    type: str


def _reader(kind: type[T]) -> Callable[[bytes | Raw], T]:
    return msgspec.json.Decoder(kind).decode


def _types(literal: Any) -> tuple[str, ...]:
    return literal.__args__  # type: ignore[no-any-return]


class Decoder:
    """Turns event messages into events, and never raises whatever the bytes are.

    Args:
        loads: what decodes messages that are not JSON: content type to a function of (body, content encoding) that
            returns plain objects. Empty unless the user allows other serializers.
        boot: whose echo to remember; anybody's where None.
        clock: monotonic seconds, to log malformed events at most once a minute.

    `malformed` counts by `Reason`; `other` counts well-formed events of types that are not ours to interpret (custom
    events are legal); `echo` is the last echo event of `boot`.
    """

    def __init__(
        self,
        loads: Mapping[str, Callable[[bytes, str], object]] | None = None,
        *,
        boot: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.boot = boot
        self.malformed: Counter[str] = Counter()
        self.other = 0
        self.echo: EchoEvent | None = None
        self._loads = dict(loads or {})
        self._clock = clock
        self._logged = float("-inf")
        self._unlogged = 0
        self._task = _reader(TaskEvent)
        self._tasks = cast("Callable[[bytes], list[Event]]", _reader(list[TaskEvent]))
        self._envelope = _reader(_Envelope)
        self._head = _reader(_Head)
        self._split = _reader(list[Raw])
        self._readers: dict[str, Callable[[bytes | Raw], Event]] = {
            **dict.fromkeys(_types(TaskType), self._task),
            **dict.fromkeys(_types(WorkerType), _reader(WorkerEvent)),
            **dict.fromkeys(_types(BeatType), _reader(BeatEvent)),
            "celeryscope-echo": self._read_echo,
        }
        self._read_echo_event = _reader(EchoEvent)

    def redis(self, channel: bytes, payload: bytes) -> list[Event]:
        """Decode one pub/sub payload of kombu's Redis transport; the fast path is for task events."""
        if payload[:10] == _HEAD and len(payload) <= MAX_BYTES:
            try:
                body = b64decode(payload[10 : payload.index(b'"', 10)], None, True)
                if body[0] == _LIST:
                    return self._tasks(body)
                return [self._task(body)]
            except (*_BROKEN, IndexError):
                pass  # not a task event, or one that is wrong: find out which
        return self._unwrap(channel, payload)

    def decode(
        self, routing_key: str | bytes, body: bytes | str, content_type: str = JSON, content_encoding: str = "utf-8"
    ) -> list[Event]:
        """Decode the body of one event message of any transport: an event or a list of them."""
        if isinstance(body, str):
            body = body.encode(errors="replace")
        if len(body) > MAX_BYTES:
            return self._bad("size", routing_key, body)
        if content_type != JSON:
            return self._foreign(routing_key, body, content_type, content_encoding)
        try:
            if body[0] == _LIST:
                return self._tasks(body)
            return [self._task(body)]
        except (*_BROKEN, IndexError):
            return self._each(routing_key, body)

    def _unwrap(self, channel: bytes, payload: bytes) -> list[Event]:
        if len(payload) > MAX_BYTES:
            return self._bad("size", channel, payload)
        try:
            envelope = self._envelope(payload)
        except _BROKEN:
            return self._bad("envelope", channel, payload)
        body = envelope.body.encode(errors="replace")
        if envelope.properties.body_encoding == "base64":
            try:
                body = b64decode(body, None, True)
            except ValueError:
                return self._bad("base64", channel, payload)
        return self.decode(channel, body, envelope.content_type or "", envelope.content_encoding or "")

    def _foreign(self, key: str | bytes, body: bytes, content_type: str, content_encoding: str) -> list[Event]:
        """Decode another serializer's message: to plain objects, and through JSON to events."""
        loads = self._loads.get(content_type)
        if loads is None:
            return self._bad("content-type", key, content_type.encode(errors="replace"))
        try:
            plain = msgspec.json.encode(loads(body, content_encoding), enc_hook=repr)
        except Exception:  # noqa: BLE001 - a serializer may raise anything on hostile bytes
            return self._bad("serializer", key, body)
        return self._each(key, plain)

    def _each(self, key: str | bytes, body: bytes) -> list[Event]:
        """Decode a message whose events are not all well-formed task events, one by one."""
        if body.count(b",") > MAX_COMMAS:
            return self._bad("size", key, body)
        try:
            parts = self._parts(body)
        except _BROKEN:
            try:
                parts = self._parts(mend(body))
            except _BROKEN:
                return self._bad("json", key, body)
        events = (self._one(key, part) for part in parts)
        return [event for event in events if event is not None]

    def _parts(self, body: bytes) -> list[Raw]:
        return self._split(body) if body.lstrip()[:1] == b"[" else [msgspec.json.decode(body, type=Raw)]

    def _one(self, key: str | bytes, raw: Raw) -> Event | None:
        try:
            kind = self._head(raw).type
        except _BROKEN:
            self._bad("type", key, bytes(raw))
            return None
        reader = self._readers.get(kind)
        if reader is None:
            self.other += 1
            return None
        try:
            return reader(raw)
        except _BROKEN:
            self._bad("field", key, bytes(raw))
            return None

    def _read_echo(self, raw: bytes | Raw) -> EchoEvent:
        event = self._read_echo_event(raw)
        if self.boot is None or event.boot == self.boot:
            self.echo = event
        return event

    def _bad(self, reason: Reason, key: str | bytes, sample: bytes) -> list[Event]:
        self.malformed[reason] += 1
        self._unlogged += 1
        now = self._clock()
        if now - self._logged >= LOG_EVERY:
            logger.warning(
                "%d malformed event message(s), the last one by its %s, on %.100r: %.200r",
                self._unlogged, reason, key, sample[:200],
            )  # fmt: skip
            self._logged, self._unlogged = now, 0
        return []


_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


def mend(body: bytes) -> bytes:
    r"""Return JSON text with lone surrogates (`\udcff`: a file name in a message) and bad UTF-8 as `\ufffd`."""
    text = body.decode(errors="replace").encode()
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], text)
