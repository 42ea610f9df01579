"""The decoder: Celery's bytes become typed events, and whatever else comes costs itself only."""

from __future__ import annotations

import base64
import json
import logging
import pickle
from typing import Any

import pytest
from celeryscope.monitor import events
from celeryscope.monitor.events import BeatEvent, Decoder, EchoEvent, TaskEvent, WorkerEvent, mend

CHANNEL = b"/0.celeryev/task.multi"


def task(kind: str = "task-started", **fields: Any) -> dict[str, Any]:
    return {
        "hostname": "celery@a", "utcoffset": 0, "pid": 7, "clock": 3, "uuid": "u1", **fields, "timestamp": 1.5,
        "type": kind,
    }  # fmt: skip


def payload(body: object, **envelope: Any) -> bytes:
    """Wrap a body as kombu's Redis transport does."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.dumps(
        {
            "body": base64.b64encode(raw).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"hostname": "celery@a"},
            "properties": {"body_encoding": "base64", "delivery_mode": 1, "priority": 0, "delivery_tag": "t"},
            **envelope,
        }
    ).encode()


@pytest.mark.parametrize("kind", events.TaskType.__args__)
def test_every_task_type_is_decoded_alone_and_in_a_list(kind: str) -> None:
    """DESIGN §4: a message holds one event object or, on task.multi, a list of them."""
    decoder = Decoder()
    alone = decoder.redis(CHANNEL, payload(task(kind)))
    assert [event.type for event in alone] == [kind]
    assert decoder.redis(CHANNEL, payload([task(kind)])) == alone
    assert decoder.decode("task.multi", json.dumps([task(kind)])) == alone
    assert not decoder.malformed
    assert decoder.other == 0


def test_a_task_event_keeps_what_the_metrics_need() -> None:
    """Fields arrive with their values and types; what is not needed (args, result) is not kept."""
    fields = {
        "name": "shop.pay", "queue": "mail", "retries": 2, "eta": "2026-11-21T10:00:00+00:00", "runtime": 0.25,
        "exception": "ValueError('x')", "traceback": "Traceback\n  File\nValueError: x\n", "requeue": True,
        "expired": False, "terminated": True, "args": "(1, 2)", "kwargs": "{}", "root_id": None,
    }  # fmt: skip
    (event,) = Decoder().redis(CHANNEL, payload(task("task-failed", **fields)))
    assert isinstance(event, TaskEvent)
    assert (event.hostname, event.pid, event.clock, event.uuid, event.timestamp) == ("celery@a", 7, 3, "u1", 1.5)
    for name in ("name", "queue", "retries", "eta", "runtime", "exception", "requeue", "expired", "terminated"):
        assert getattr(event, name) == fields[name]
    assert json.loads(bytes(event.traceback)) == fields["traceback"]


def test_missing_and_null_fields_are_tolerated() -> None:
    """Runtime can be null, `clock` is null for events sent blind, and a missing traceback reads as JSON's null."""
    nulls = dict.fromkeys(("name", "queue", "retries", "eta", "runtime", "exception", "traceback", "requeue", "clock"))
    (event,) = Decoder().redis(CHANNEL, payload(task("task-succeeded", **nulls)))
    assert isinstance(event, TaskEvent)
    assert event.runtime is None
    assert event.clock is None
    (bare,) = Decoder().redis(CHANNEL, payload(task()))
    assert isinstance(bare, TaskEvent)
    assert bytes(event.traceback) == bytes(bare.traceback) == b"null"


def test_worker_beat_and_echo_events() -> None:
    """Each kind has its own struct; a forced heartbeat lacks `active` and `processed`."""
    decoder = Decoder(boot="mine")
    base = {"hostname": "celery@a", "timestamp": 2.0}
    worker, bare, beat, other_echo, echo = (
        decoder.redis(CHANNEL, payload({**base, **fields}))[0]
        for fields in (
            {"type": "worker-heartbeat", "active": 2, "processed": 9, "loadavg": [0.5, 0.4, 0.3], "freq": 2.0},
            {"type": "worker-heartbeat"},
            {"type": "beat-heartbeat", "app": "proj", "boot": "b", "totals": {"nightly": [3, 0, 1.5]}, "leader": None},
            {"type": "celeryscope-echo", "boot": "theirs", "seq": 4},
            {"type": "celeryscope-echo", "boot": "mine", "seq": 5},
        )
    )
    assert isinstance(worker, WorkerEvent)
    assert (worker.active, worker.processed, worker.loadavg) == (2, 9, [0.5, 0.4, 0.3])
    assert isinstance(bare, WorkerEvent)
    assert (bare.active, bare.processed) == (None, None)
    assert isinstance(beat, BeatEvent)
    assert beat.totals == {"nightly": (3, 0, 1.5)}
    assert isinstance(other_echo, EchoEvent)
    assert decoder.echo == echo


def test_one_bad_event_in_a_batch_costs_that_event_only() -> None:
    """Of a list with every kind of fault in it, the good events arrive, in order, and each fault is counted."""
    decoder = Decoder()
    batch = [
        task(uuid="first"),
        5,
        {"no": "type"},
        {**task(), "timestamp": "noon"},
        task(uuid=""),
        task(runtime=-1),
        task("task-thought-of"),
        {"type": "custom-event", "hostname": "h", "timestamp": 1},
        {"type": "worker-online", "hostname": "h", "timestamp": 1},
        task(uuid="last"),
    ]
    got = decoder.redis(CHANNEL, payload(batch))
    assert [getattr(event, "uuid", event.type) for event in got] == ["first", "worker-online", "last"]
    assert decoder.malformed == {"type": 2, "field": 3}
    assert decoder.other == 2


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "envelope"),
        (b"\xff\x00", "envelope"),
        (b"[]", "envelope"),
        (b'{"body": 5}', "envelope"),
        (b'{"body": "', "envelope"),
        (b'{"body": "not base64!", "properties": {"body_encoding": "base64"}}', "base64"),
        (payload(b""), "json"),
        (payload(b"{"), "json"),
        (payload(b"[" * 100_000), "json"),
        (payload(b'{"a":' * 100_000), "json"),
        (payload(b"NaN"), "json"),
        (payload(b'"text"'), "type"),
        (payload(b'{"type": 5}'), "type"),
        (payload(b'{"type": "task-sent"}'), "field"),
        (payload([task(clock=10**400)]), "field"),
        (payload([task(retries=10**400)]), "field"),
        (payload(b'{"type": "worker-online", "hostname": "h", "timestamp": 1e999}'), "field"),
        (payload(b'{"type": "worker-online", "hostname": "h", "timestamp": true}'), "field"),
        (payload(b'{"type": "worker-online", "hostname": "", "timestamp": 1}'), "field"),
        (payload(task(), **{"content-type": "application/x-python-serialize"}) + b" ", None),
        (payload(pickle.dumps([task()]), **{"content-type": "application/x-python-serialize"}), "content-type"),
        (payload(b"[" + b"0," * 300_000 + b"0]"), "size"),
        (payload([task(args="x" * events.MAX_BYTES)]), "size"),
    ],
)
def test_hostile_messages_are_counted_by_reason(raw: bytes, reason: str | None) -> None:
    """Whatever comes, nothing is raised; each message is counted once, under one of few reasons."""
    decoder = Decoder()
    decoder.redis(CHANNEL, raw)
    assert decoder.malformed == ({reason: 1} if reason else {})


def test_an_envelope_in_another_order_or_without_base64_is_understood() -> None:
    """The fast path takes Celery 5's bytes as they are; others are legal too."""
    decoder = Decoder()
    usual = json.loads(payload([task()]))
    turned = json.dumps(dict(reversed(usual.items()))).encode()
    tight = json.dumps(usual, separators=(",", ":")).encode()
    plain = json.dumps({**usual, "body": json.dumps([task()]), "properties": {}}).encode()
    assert decoder.redis(CHANNEL, turned) == decoder.redis(CHANNEL, tight) == decoder.redis(CHANNEL, plain)
    assert len(decoder.redis(CHANNEL, plain)) == 1
    assert not decoder.malformed


def test_a_lone_surrogate_does_not_cost_the_batch() -> None:
    """A file name that is not UTF-8 in an exception text reaches the wire as half a surrogate pair."""
    decoder = Decoder()
    batch = [task("task-failed", exception="E('\udcff')", traceback="\ud800 \U0001f600"), task("task-failed")]
    first, second = decoder.redis(CHANNEL, payload(batch))
    assert isinstance(first, TaskEvent)
    assert first.exception == "E('\ufffd')"
    assert json.loads(bytes(first.traceback)) == "\ufffd \U0001f600"
    assert second.type == "task-failed"
    assert not decoder.malformed


def test_mend_leaves_what_is_right() -> None:
    """Escaped backslashes and real pairs stay as they are."""
    right = rb'["\\ud800", "\ud83d\ude00", "\\\\udfff", "\n"]'
    assert mend(right) == right
    assert mend(rb'["\\\ud800"]') == rb'["\\\ufffd"]'
    assert mend(b'["\xff"]') == '["\ufffd"]'.encode()


def test_other_serializers_only_where_allowed() -> None:
    """What the edge gives in `loads` is used, and a serializer that raises or yields odd objects is survived."""
    kind = "application/x-python-serialize"
    decoder = Decoder({kind: lambda body, _: pickle.loads(body)})
    good = pickle.dumps([task(odd={1, 2}), task(worst=object)])
    assert len(decoder.decode("task.multi", good, kind, "binary")) == 2
    assert len(decoder.redis(CHANNEL, payload(good, **{"content-type": kind}))) == 2
    assert decoder.decode("task.multi", b"garbage", kind, "binary") == []
    assert decoder.malformed == {"serializer": 1}


def test_malformed_events_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """With the reason, where it came from, and no more than 200 characters of it."""
    now = [1000.0]
    decoder = Decoder(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            decoder.decode("task.multi", "z" * 5000)
        assert len(caplog.records) == 1
        now[0] += 61
        decoder.decode("task.multi", "z" * 5000)
    assert len(caplog.records) == 2
    text = caplog.records[1].getMessage()
    assert text.startswith("1000 malformed")
    assert "task.multi" in text
    assert len(text) < 400
