"""No bytes and no JSON make the decoder raise, and what it returns is typed."""

from __future__ import annotations

import base64
import json

from celeryscope.monitor.events import BeatType, Decoder, Event, TaskEvent, TaskType, WorkerType
from hypothesis import given
from hypothesis import strategies as st

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
types = st.sampled_from((*TaskType.__args__, *WorkerType.__args__, *BeatType.__args__, "celeryscope-echo", "custom"))
FIELDS = (
    "hostname",
    "timestamp",
    "uuid",
    "name",
    "retries",
    "runtime",
    "clock",
    "traceback",
    "totals",
    "entries",
    "boot",
)
event_like = st.fixed_dictionaries(
    {"type": types | values, "hostname": st.just("h") | values, "timestamp": st.just(1.0) | values},
    optional=dict.fromkeys(FIELDS[2:], values),
)
good = st.builds(
    lambda kind: {"type": kind, "hostname": "h", "timestamp": 1.0, "uuid": "u"}, st.sampled_from(TaskType.__args__)
)


def text_of(value: object) -> bytes:
    return json.dumps(value).encode()  # writes NaN, Infinity and lone surrogates, as Celery would


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_no_bytes_raise(raw: bytes, channel: bytes) -> None:
    """As a pub/sub payload, as a body of any content type, and inside a well-formed envelope."""
    decoder = Decoder()
    results: list[list[Event]] = [
        decoder.redis(channel, raw),
        decoder.redis(channel, b'{"body": "' + raw + b'"}'),
        decoder.redis(
            channel, b'{"body": "' + base64.b64encode(raw) + b'", "properties": {"body_encoding": "base64"}}'
        ),
        decoder.decode(channel, raw),
        decoder.decode(channel, raw, "application/x-yaml", "latin-1"),
    ]
    assert sum(map(len, results)) == 0
    assert sum(decoder.malformed.values()) + decoder.other >= len(results) - 1


@given(st.lists(event_like | values, max_size=6) | event_like | values)
def test_every_part_of_a_message_is_an_event_or_counted(body: object) -> None:
    """Nothing is lost without a count: events, others and faults add up to the parts, or the message is one fault."""
    decoder = Decoder()
    got = decoder.decode("task.multi", text_of(body))
    parts = len(body) if isinstance(body, list) else 1
    counted = len(got) + decoder.other + sum(decoder.malformed.values())
    assert counted == parts or (not got and decoder.malformed == {"json": 1})


@given(st.lists(good, max_size=5), st.lists(values.filter(lambda v: not isinstance(v, dict)), max_size=3), st.randoms())
def test_good_events_survive_bad_neighbours(right: list[object], wrong: list[object], random: object) -> None:
    """However a batch is mixed, exactly its good events come out, in order."""
    wrong = [part for part in wrong if "NaN" not in json.dumps(part) and "Infinity" not in json.dumps(part)]
    batch = right + wrong
    random.shuffle(batch)  # type: ignore[attr-defined]
    got = Decoder().decode("task.multi", text_of(batch))
    assert all(isinstance(event, TaskEvent) for event in got)
    assert [event.type for event in got] == [part["type"] for part in batch if isinstance(part, dict)]
