"""What failed, as it travels from a worker to the alerter: the wire form of a batch, and nothing that needs a library.

This module runs inside users' workers: standard library only. One message of the queue `celeryscope.failures` is one
batch, a JSON object in UTF-8 (content type `application/json`); a key whose value is unknown is left out:

    {"v": 1,
     "id": "6f1e…",                 unique for ever; equal in a message that was published twice: dedupe by it
     "host": "worker@node1",        who sent it
     "sent": 1790000000.123,        unix time
     "dropped": 0,                  messages that this sender dropped from the full queue since its last batch
     "entries": [
       {"fingerprint": "0f3a…",     32 hex digits: see `fingerprint`
        "count": 17,                failures in this entry, at least 1
        "first": 1790000000.0, "last": 1790000000.2,      unix times
        "sample": {                 one of the failures
          "kind": "failure",        one of KINDS
          "task": "shop.charge", "uuid": "…", "root_id": "…", "parent_id": "…",
          "queue": "payments", "worker": "worker@node1", "environment": "prod", "release": "1.4.2",
          "exception": "shop.errors.CardError",           class with its module, builtins without
          "message": "card declined",                     redacted, at most 2 000 characters
          "traceback": "…",                               redacted tail; in the first sample a minute of a fingerprint
          "frame": "shop.payments:charge",                module:function of the innermost frame in user code
          "retries": 3, "max_retries": 3, "gave_up": true,    gave_up: it had been retried until no retry was left
          "requeued": true,         the broker delivers it again (kinds lost and time_limit): it may loop
          "args": {"order_id": "17"}, "kwargs": {…},      name → repr, only what the task opted in
          "times": {"sent": …, "eta": …, "started": …, "failed": …},      unix times, those that are known
          "settings": {"channel": "#payments", "severity": "critical", "mute": false, "runbook": "https://…"}
        }}]}
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = 1
QUEUE = "celeryscope.failures"
"""The durable queue, on the default exchange (routing key = name) of the app's own broker."""
QUEUE_MESSAGES = 10_000
"""At most so many messages wait in it; the oldest are dropped."""
QUEUE_BYTES = 64 * 2**20
"""And at most about so many bytes."""
QUEUE_SECONDS = 7 * 86_400
"""A message nobody fetched is gone after this time, and so is a queue that nobody used."""
CONTENT_TYPE = "application/json"

MESSAGE_LENGTH = 2_000
TRACEBACK_LENGTH = 4_000
BATCH_ENTRIES = 100
"""Entries in one message, at most."""

OTHER = "__other__"
"""Task and exception of the entry that counts what did not fit into a worker's memory (over 1 000 kinds at once)."""

FAILURE, RETRY, LOST, TIME_LIMIT = "failure", "retry", "lost", "time_limit"
REJECTED, UNKNOWN_TASK, INVALID, UNDECODABLE, INTERNAL = (
    "rejected",
    "unknown_task",
    "invalid",
    "undecodable",
    "internal",
)
KINDS = (FAILURE, RETRY, LOST, TIME_LIMIT, REJECTED, UNKNOWN_TASK, INVALID, UNDECODABLE, INTERNAL)
"""`failure`: the task raised. `retry`: it will be retried (sent only where asked). `lost`: its process was killed.
`time_limit`: the hard limit; a soft one is a `failure`. `rejected`: it raised `Reject(requeue=False)`.
`unknown_task`: no worker code of that name. `invalid`: a message that Celery refused (its content type is forbidden,
or it is no task). `undecodable`: a body that could not be decoded. `internal`: Celery's handling of the task raised."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure, redacted and cut to size. Times are unix seconds; None and empty mean unknown."""

    kind: str
    task: str
    exception: str
    message: str = ""
    uuid: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    queue: str | None = None
    worker: str | None = None
    environment: str | None = None
    release: str | None = None
    traceback: str | None = None
    frame: str | None = None
    retries: int = 0
    max_retries: int | None = None
    gave_up: bool = False
    requeued: bool = False
    args: Mapping[str, str] = field(default_factory=dict)
    kwargs: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """Return the sample's JSON object: what is unknown or empty is left out."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        always = {"kind", "task", "exception", "message", "retries", "gave_up"}
        return {n: v for n, v in pairs if n in always or not (v is None or v is False or v == {})}


@dataclass(slots=True)
class Entry:
    """Failures of one fingerprint within one batch."""

    fingerprint: str
    count: int
    first: float
    last: float
    sample: Failure

    def wire(self) -> dict[str, Any]:
        """Return the entry's JSON object."""
        return {
            "fingerprint": self.fingerprint,
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "sample": self.sample.wire(),
        }


def encode_batch(entries: Iterable[Entry], *, id: str, host: str, sent: float, dropped: int = 0) -> bytes:  # noqa: A002 - its name on the wire
    """Return the message for `entries`."""
    batch = {
        "v": VERSION,
        "id": id,
        "host": host,
        "sent": sent,
        "dropped": dropped,
        "entries": [entry.wire() for entry in entries],
    }
    return json.dumps(batch, separators=(",", ":")).encode("ascii")


_NUMBERS = re.compile(
    r"\b0x[0-9a-f]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{8,}\b|\d+", re.IGNORECASE
)
_PLACELESS = frozenset({"MemoryError"})


def normalised(message: str) -> str:
    """Return a message without what differs from case to case: numbers, ids, and all but its first 200 characters."""
    return _NUMBERS.sub("#", message[:200])


def fingerprint(kind: str, task: str, exception: str, frame: str | None, message: str) -> str:
    """Return what makes two failures the same incident, as 32 hex digits (DESIGN §6).

    Task, exception class, and the place in the user's code without line numbers: a deploy is no new incident. Where no
    user code was involved, the normalised message stands for the place. Time limits, lost processes and `MemoryError`
    strike anywhere: task and class. Retries are incidents of their own.
    """
    parts = [task, exception]
    if kind in (LOST, TIME_LIMIT, UNKNOWN_TASK) or exception in _PLACELESS:
        pass
    elif frame is not None:
        parts.append(frame)
    else:
        parts.append(normalised(message))
    if kind == RETRY:
        parts.append(RETRY)
    return blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()
