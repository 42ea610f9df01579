"""Laws of counting and speaking: whatever arrives, in whatever order, no failure is lost or told twice."""

from __future__ import annotations

from collections import Counter
from zoneinfo import ZoneInfo

import pytest
from alerting import batch, entry
from celeryscope.alerts.batches import RejectedError, decode
from celeryscope.alerts.incidents import OPEN, RESOLVED, absorb, level, tallies
from celeryscope.alerts.mrkdwn import block, code, escaped, plain, safe
from celeryscope.alerts.policy import GuardLimits, Plan, QuietHours, Rule, Threshold, place, plan, reason_to_wait
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_790_000_000.0
WEEK = 7 * 86_400.0
failures = st.tuples(
    st.sampled_from("abc"), st.integers(1, 500), st.floats(NOW - WEEK, NOW), st.sampled_from(["p", None])
)
batches = st.lists(st.lists(failures, max_size=6), max_size=8)


def decoded(groups):
    return [decode(batch(*(entry(f, count, at, environment=env) for f, count, at, env in group))) for group in groups]


@given(batches)
def test_tallies_lose_nothing(groups):
    found = tallies(decoded(groups), NOW)
    expected = Counter()
    for f, count, _, env in (failure for group in groups for failure in group):
        expected[f"{f} {env or ''}"] += count
    assert {key: tally.count for key, tally in found.items()} == expected
    assert all(sum(tally.minutes.values()) == tally.count for tally in found.values())
    assert all(tally.first <= tally.last <= NOW for tally in found.values())


@given(batches, st.randoms())
def test_counts_do_not_depend_on_how_failures_were_batched(groups, random):
    flat = [[failure] for group in groups for failure in group]
    random.shuffle(flat)
    one, other = tallies(decoded(groups), NOW), tallies(decoded(flat), NOW)
    assert {k: (t.count, t.first, t.last, t.minutes) for k, t in one.items()} == {
        k: (t.count, t.first, t.last, t.minutes) for k, t in other.items()
    }


steps = st.lists(
    st.tuples(st.sampled_from(["fail", "succeed", "resolve"]), st.integers(1, 50), st.floats(1, 2 * 86_400))
)


@given(steps)
def test_every_failure_is_in_exactly_one_incident(history):
    """Through resolving, reopening, late arrivals and new incidents after a day."""
    now, current, ended, failed = NOW, None, [], 0
    for number, (what, count, pause) in enumerate(history):
        now += pause
        if what == "fail":
            (tally,) = tallies([decode(batch(entry("f", count, now)))], now).values()
            incident = absorb(current, tally, now, f"i{number}")
            if current is not None and incident is not current:
                assert current.resolved_at is not None
                assert now > current.resolved_at + 86_400
                ended.append(current)
            current, failed = incident, failed + count
            assert current.state == OPEN
        elif current is not None and current.state == OPEN:
            if what == "succeed":
                current.last_success = now
            current.state, current.resolved_at = RESOLVED, now
    assert sum(i.count for i in [*ended, *([current] if current else [])]) == failed


def incident(number, *, held=False):
    (tally,) = tallies([decode(batch(entry(f"f{number}", 1, NOW)))], NOW).values()
    made = absorb(None, tally, NOW, f"i{number}")
    made.held = held
    return made


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30), st.integers(1, 20))
def test_each_incident_gets_exactly_one_place_and_the_guard_holds(held, recent, limit):
    incidents = [incident(number, held=flag) for number, flag in enumerate(held)]
    placing = place(incidents, recent, GuardLimits(limit, 300.0))
    placed = [i.id for group in (placing.alone, placing.rollup, placing.digest) for i in group]
    assert sorted(placed) == sorted(i.id for i in incidents)
    assert len(placing.alone) <= max(0, limit - recent)


@given(
    st.integers(1, 20), st.floats(60, 86_400), st.lists(st.tuples(st.floats(0, WEEK), st.integers(1, 5)), max_size=20)
)
def test_a_threshold_is_reached_only_by_enough_failures_within_its_window(count, window, before):
    """To the minute: a failure counts until its minute has wholly left the window."""
    minutes = Counter()
    for ago, n in before:
        minutes[int((NOW - ago) // 60)] += n
    made = incident(0)
    made.minutes = dict(minutes)
    silent = reason_to_wait(made, Plan("#c", threshold=Threshold(count, window)), NOW) == "threshold"
    surely = sum(n for ago, n in before if ago <= window)
    at_most = sum(n for ago, n in before if ago <= window + 60)
    assert not (silent and surely >= count)
    assert silent or at_most >= count


@given(st.integers(0, 10**9))
def test_levels_are_powers_of_ten_that_were_reached(count):
    reached = level(count)
    assert reached <= count
    assert reached == 0 or (str(reached).strip("0") == "1" and reached >= 10 and reached * 10 > count)
    assert (reached == 0) == (count < 10)


@given(st.integers(0, 1439), st.integers(0, 1439), st.floats(0, 4e9))
def test_quiet_hours_and_their_complement_share_out_the_day(start, end, now):
    if start != end:
        zone = ZoneInfo("Europe/Paris")
        assert QuietHours(start, end, zone).cover(now) != QuietHours(end, start, zone).cover(now)


globs = st.lists(st.text("ab*.", min_size=1, max_size=5), max_size=2).map(tuple)
rule = st.builds(Rule, name=st.just("r"), task=globs, queue=globs, exception=globs)
word = st.text("ab.", max_size=6)


@given(rule, rule, word, word, word)
def test_a_route_that_covers_another_matches_all_that_it_matches(wide, narrow, task, queue, exception):
    if wide.covers(narrow) and narrow.matches(task, queue, exception):
        assert wide.matches(task, queue, exception)


own = st.dictionaries(
    st.sampled_from(["channel", "severity", "mute", "runbook", "x"]),
    st.none() | st.booleans() | st.text() | st.integers(),
)


@given(own)
def test_no_setting_of_a_task_makes_a_plan_senseless(settings):
    found = plan([], Plan("#c"), task="t", queue="q", exception="E", own=settings)
    assert found.channel.strip()
    assert found.severity in ("critical", "warning", "info")
    assert isinstance(found.mute, bool)


@given(st.binary() | st.text().map(str.encode))
def test_no_message_breaks_the_reader(body):
    with pytest.raises(RejectedError) as refused:
        decode(body)
    assert refused.value.reason in ("json", "version", "shape", "size")


@given(st.text(), st.integers(20, 200))
def test_safe_text_has_no_markup_and_keeps_its_length(text, longest):
    for made in (safe(text, longest), code(text, longest), block(text, longest), block(text, longest, end=True)):
        assert len(made) <= longest
        bare = made.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "")
        assert not set(bare) & set("<>&")
        assert "`" not in made.strip("`")
    assert len(plain(text, longest)) <= longest


@given(st.text("&<>a`", max_size=300), st.integers(10, 100))
def test_escaping_cuts_no_entity(text, longest):
    made = escaped(text, longest)
    assert made.count("&") == made.count("&lt;") + made.count("&gt;") + made.count("&amp;")
