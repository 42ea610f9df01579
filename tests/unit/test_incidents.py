"""How an incident lives: absorbing, resolving, reopening, telling again."""

from __future__ import annotations

import sys

import msgspec
import pytest
from alerting import as_json, batch, entry
from celeryscope.alerts.batches import LARGEST, RejectedError, decode, redacted, sample_from, sample_text
from celeryscope.alerts.incidents import OPEN, RESOLVED, absorb, level, merged, over, tallies

NOW = 1_790_000_000.0
DAY = 86_400.0


def tally(count=1, at=NOW, **sample):
    return next(iter(tallies([decode(batch(entry("f", count, at, **sample)))], now=max(at, NOW)).values()))


def opened(count=1, at=NOW):
    return absorb(None, tally(count, at), at, "first")


def test_batches_add_up_by_fingerprint_and_environment():
    batches = [
        decode(batch(entry("a", 3, NOW), entry("b", 1, NOW - 5))),
        decode(batch(entry("a", 4, NOW - 10), entry("a", 5, NOW, environment="stage"))),
    ]
    found = tallies(batches, NOW)
    assert {key: t.count for key, t in found.items()} == {"a prod": 7, "b prod": 1, "a stage": 5}
    assert (found["a prod"].first, found["a prod"].last) == (NOW - 10, NOW)
    assert sum(found["a prod"].minutes.values()) == 7


def test_a_clock_that_runs_ahead_is_held_to_the_receipt():
    (found,) = tallies([decode(batch(entry("a", 1, NOW + 3_600)))], NOW).values()
    assert (found.first, found.last) == (NOW, NOW)


def test_the_newest_sample_counts_and_keeps_the_known_traceback():
    """Only the first sample a minute carries a traceback."""
    old = decode(batch(entry(message="one"))).entries[0].sample
    new = decode(batch(entry(message="two", traceback=None, frame=None))).entries[0].sample
    both = merged(old, new)
    assert (both.message, both.traceback, both.frame) == ("two", old.traceback, "shop.payments:charge")


def test_it_is_resolved_by_a_success_since_and_by_quiet_together():
    incident = opened()
    assert not over(incident, NOW + DAY, quiet=600)  # the nightly job that has not succeeded yet
    incident.last_success = NOW + 1
    assert not over(incident, NOW + 599, quiet=600)
    assert over(incident, NOW + 600, quiet=600)
    incident.last_success = NOW - 1
    assert not over(incident, NOW + DAY, quiet=600)


def resolved():
    incident = opened(count=5)
    incident.state, incident.resolved_at, incident.last_success = RESOLVED, NOW + 700, NOW + 60
    return incident


def test_failing_again_within_a_day_reopens_the_same_incident():
    again = absorb(resolved(), tally(2, NOW + DAY), NOW + DAY, "second")
    assert (again.id, again.state, again.count, again.reopens, again.resolved_at) == ("first", OPEN, 7, 1, None)


def test_failing_again_later_is_a_new_incident():
    again = absorb(resolved(), tally(2, NOW + 2 * DAY), NOW + 2 * DAY, "second")
    assert (again.id, again.count, again.first) == ("second", 2, NOW + 2 * DAY)


def test_a_failure_from_before_the_success_that_comes_late_is_counted_and_reopens_nothing():
    late = absorb(resolved(), tally(3, NOW + 30), NOW + 710, "second")
    assert (late.id, late.state, late.count, late.reopens) == ("first", RESOLVED, 8, 0)


def test_one_resolved_by_hand_reopens_with_the_next_failure():
    incident = opened()
    incident.state, incident.resolved_at = RESOLVED, NOW + 10
    assert absorb(incident, tally(1, NOW + 11), NOW + 11, "second").state == OPEN


def test_minutes_do_not_grow_for_ever():
    incident = opened()
    for hour in range(72):
        incident = absorb(incident, tally(1, NOW + hour * 3_600), NOW + hour * 3_600, "x")
    assert len(incident.minutes) <= 25
    assert incident.count == 73


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0), (9, 0), (10, 10), (99, 10), (100, 100), (1_234_567, 1_000_000)]
)
def test_the_levels_at_which_a_thread_is_told(count, expected):
    assert level(count) == expected


def without(body: bytes, key: str) -> bytes:
    content = as_json(body)
    del content[key]
    return msgspec.json.encode(content)


@pytest.mark.parametrize("traceback", [None, "ZeroDivisionError: division by zero"])
def test_what_a_worker_has_redacted_stays_as_it_is(traceback):
    told = decode(batch(entry(traceback=traceback, args={"token": "***"}, settings={"channel": "#payments"})))
    assert redacted(told.entries[0].sample) == told.entries[0].sample


def test_a_task_that_is_retried_for_ever_is_told_as_any_other():
    """People write `max_retries=sys.maxsize`; the whole batch would be refused over it."""
    told = decode(batch(entry(retries=3, max_retries=sys.maxsize)))
    assert told.entries[0].sample.max_retries == sys.maxsize
    assert sample_from(sample_text(told.entries[0].sample)) == told.entries[0].sample


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "json"),
        (b"\xff\xfe", "json"),
        (b"[" * 100_000, "shape"),
        (b'{"a":' * 100_000, "json"),
        (b"17", "shape"),
        (b"{}", "version"),
        (batch(entry()).replace(b'"v":1', b'"v":2'), "version"),
        (without(batch(entry()), "entries"), "shape"),
        (without(batch(entry()), "id"), "shape"),
        (batch(entry()).replace(b'"count":1', b'"count":0'), "shape"),
        (batch(entry()).replace(b'"count":1', b'"count":-5'), "shape"),
        (batch(entry(at=1.0)).replace(b'"last":1.0', b'"last":1e99'), "shape"),
        (batch(entry()).replace(b'"task":"shop.charge"', b'"task":{}'), "shape"),
        (b" " * (LARGEST + 1), "size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "body",  # bodies hold the time and a number
)
def test_what_is_no_batch_is_named(body, reason):
    with pytest.raises(RejectedError) as caught:
        decode(body)
    assert caught.value.reason == reason


def test_unknown_keys_are_for_later_versions_and_unprintable_text_is_cleaned():
    body = batch(entry(message="a\0b\u202ec\x1b[31m", worker="\ud800")).replace(b'"v":1', b'"v":1,"new":[]')
    sample = decode(body).entries[0].sample
    assert sample.message == "abc[31m"
    assert sample.worker == "?"


def test_samples_survive_the_store():
    sample = decode(batch(entry(args={"order": "17"}, settings={"channel": "#x", "mute": False}))).entries[0].sample
    assert sample_from(sample_text(sample)) == sample
