"""Outbox messages read back: bytes from the broker to typed batches, and a reason for each one that cannot be read."""

from __future__ import annotations

import json
from typing import Annotated, TypeVar, cast

import msgspec
from msgspec import Meta, Struct, field

from .failure import MESSAGE_LENGTH, OTHER, RETRY, TRACEBACK_LENGTH, VERSION
from .redaction import MASK, Redactor

LARGEST = 16 * 2**20
"""Bytes of a message; a full batch of the longest samples in the widest script stays below it."""

LONGEST_NAME = 255
LONGEST_SETTING = 500
LONGEST_VALUE = 2_000
MOST_VALUES = 50
"""Of arguments, of times and of settings, each: workers send fewer, and who lies shall not fill the store."""
MOST_ENTRIES = 1_000
"""In one message, ten times what a worker puts into it."""

# Anything outside is a lie or a broken clock.
Timestamp = Annotated[float, Meta(gt=0, lt=1e11)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Dropped = Annotated[int, Meta(ge=0, le=10**9)]
Retries = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""As many as Python's `sys.maxsize`: with it people say "for ever"."""
Setting = bool | int | float | str | None
Fingerprint = Annotated[str, Meta(min_length=1, max_length=64)]
Ident = Annotated[str, Meta(min_length=1, max_length=200)]

# Built from numbers: in PostgreSQL a NUL cannot be stored, and direction overrides could disguise what people read.
# U+009B, one of those from 128 on, begins an order to a terminal as ESC does.
_UNSAFE = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])


_PROSE = {"message": MESSAGE_LENGTH, "traceback": TRACEBACK_LENGTH}
"""What workers keep to; twice that is more than a worker sends."""
_redactor = Redactor()


class RejectedError(Exception):
    """A message that is no batch; `reason` is size, json, version, shape or store."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Sample(Struct, omit_defaults=True):
    """One of an entry's failures; the module `failure` says what each field means."""

    kind: str = "failure"
    task: str = ""
    exception: str = ""
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
    retries: Retries = 0
    max_retries: Retries | None = None
    gave_up: bool = False
    requeued: bool = False
    args: dict[str, str] = field(default_factory=dict)
    kwargs: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)

    @property
    def retry(self) -> bool:
        """Whether Celery will try again: not a final failure."""
        return self.kind == RETRY


class Entry(Struct):
    """Failures of one fingerprint; `first` and `last` are unix times by the worker's clock."""

    fingerprint: Fingerprint
    count: Count
    first: Timestamp
    last: Timestamp
    sample: Sample


class Batch(Struct):
    """One message of the outbox; `id` is the same in a message that arrives twice."""

    v: int
    id: Ident
    entries: Annotated[list[Entry], Meta(max_length=MOST_ENTRIES)]
    host: str = ""
    sent: float = 0.0
    dropped: Dropped = 0

    @property
    def failures(self) -> int:
        """How many failures it stands for."""
        return sum(entry.count for entry in self.entries)


class _Version(Struct):
    v: int = 0


T = TypeVar("T")

_version = msgspec.json.Decoder(_Version)
_batch = msgspec.json.Decoder(Batch)
_sample = msgspec.json.Decoder(Sample)


def decode(body: bytes | str) -> Batch:
    """Return the batch in a message's body.

    Raises:
        RejectedError: too large, not JSON, of another version, or of another shape.
    """
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
    if len(raw) > LARGEST:
        raise RejectedError("size", f"{len(raw)} bytes, at most {LARGEST} are read")
    try:
        batch = _read(raw)
    except msgspec.ValidationError as error:
        raise RejectedError("shape", str(error)[:300]) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RejectedError("json", str(error)[:300]) from None
    for entry in batch.entries:
        _tidy(entry)
    return batch


def _read(raw: bytes) -> Batch:
    try:
        version = _version.decode(raw).v
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Half a character (a lone surrogate) is JSON to Python, which wrote it, and to nobody else.
        raw = json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace")
        version = _version.decode(raw).v
    if version != VERSION:
        raise RejectedError("version", f"v is {version}, this alerter reads {VERSION}: upgrade the older side")
    return _batch.decode(raw)


def redacted(sample: Sample) -> Sample:
    """Return the sample without secrets. Workers have done that already, but whoever can publish need be no worker."""
    texts = {
        name: _redactor.text(text[: 2 * length]) for name, length in _PROSE.items() if (text := getattr(sample, name))
    }
    given = {
        name: {key: MASK if _redactor.secret(key) else _redactor.text(value) for key, value in pairs.items()}
        for name in ("args", "kwargs")
        if (pairs := getattr(sample, name))
    }
    settings = {k: _redactor.text(v[:LONGEST_SETTING]) if isinstance(v, str) else v for k, v in sample.settings.items()}
    return msgspec.structs.replace(sample, **texts, **given, settings=settings)


def sample_text(sample: Sample) -> str:
    """Return a sample as JSON text, for the store."""
    return msgspec.json.encode(sample).decode()


def sample_from(text: str) -> Sample:
    """Return a sample from the store's text."""
    return _sample.decode(text)


def tidy(text: str) -> str:
    """Return `text` without control characters, direction overrides and halves of characters."""
    return text.encode("utf-8", "replace").decode().translate(_UNSAFE)


def _tidy(entry: Entry) -> None:
    sample = entry.sample
    # As long as a worker makes them, at most: what is longer was made by somebody who lies.
    for name in ("uuid", "root_id", "parent_id", "queue", "worker", "environment", "release", "frame"):
        text = getattr(sample, name)
        if text is not None:
            setattr(sample, name, tidy(text[:LONGEST_NAME]) or None)
    sample.kind = tidy(sample.kind[:LONGEST_NAME])
    sample.message = tidy(sample.message[: 2 * MESSAGE_LENGTH])
    sample.traceback = tidy(sample.traceback[-2 * TRACEBACK_LENGTH :]) if sample.traceback else None
    sample.task = tidy(sample.task[:LONGEST_NAME]) or OTHER
    sample.exception = tidy(sample.exception[:LONGEST_NAME]) or OTHER
    entry.fingerprint = tidy(entry.fingerprint)
    sample.args, sample.kwargs = _cut(sample.args), _cut(sample.kwargs)
    sample.times = dict(list(sample.times.items())[:MOST_VALUES])
    sample.settings = _cut(sample.settings)


def _cut(values: dict[str, T]) -> dict[str, T]:
    kept = list(values.items())[:MOST_VALUES]
    return {tidy(name[:LONGEST_NAME]): cast("T", _short(value)) for name, value in kept}


def _short(value: object) -> object:
    if isinstance(value, str):
        return tidy(value[:LONGEST_VALUE])
    return value if not isinstance(value, int) or abs(value) < 2**53 else None
