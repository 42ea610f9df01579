"""Whether, where and how to speak: routes, thresholds, quiet hours, the channel guard."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from celeryscope.alerts.batches import Sample
from celeryscope.alerts.incidents import Incident
from celeryscope.alerts.policy import (
    GuardLimits,
    Plan,
    QuietHours,
    Rule,
    Threshold,
    backoff,
    place,
    plan,
    reason_to_wait,
)

NOW = 1_790_000_000.0
PARIS = ZoneInfo("Europe/Paris")
DEFAULT = Plan(channel="#general")


def incident(**changes) -> Incident:
    values = {
        "id": "i1", "key": "f ", "fingerprint": "f", "environment": "", "task": "a.b", "exception": "ValueError",
        "sample": Sample(task="a.b", exception="ValueError"), "count": 1, "first": NOW, "last": NOW, "opened_at": NOW,
        "minutes": {int(NOW // 60): 1},
    }  # fmt: skip
    return Incident(**{**values, **changes})


def planned(rules, task="shop.charge", queue="payments", exception="shop.errors.CardError", own=None) -> Plan:
    return plan(rules, DEFAULT, task=task, queue=queue, exception=exception, own=own)


def test_without_routes_the_default_counts():
    assert planned([]) == DEFAULT


@pytest.mark.parametrize(
    "rule",
    [
        Rule("r", task=("shop.*",)),
        Rule("r", task=("other", "shop.ch?rge")),
        Rule("r", queue=("pay*",)),
        Rule("r", exception=("shop.errors.*",)),
        Rule("r", exception=("CardError",)),
        Rule("r", task=("shop.*",), queue=("payments",), exception=("*Error",)),
        Rule("r"),
    ],
)
def test_a_route_matches_by_all_of_its_globs(rule):
    assert planned([replace(rule, channel="#pay")]).channel == "#pay"


@pytest.mark.parametrize(
    "rule", [Rule("r", task=("shop",)), Rule("r", task=("shop.*",), queue=("mail",)), Rule("r", exception=("Card",))]
)
def test_a_route_of_which_one_glob_does_not_match_is_passed_over(rule):
    assert planned([replace(rule, channel="#pay")]) == DEFAULT


def test_the_first_match_counts_and_says_why():
    found = planned([Rule("first", task=("shop.*",), severity="critical"), Rule("second", channel="#no")])
    assert (found.severity, found.channel, found.because) == ("critical", "#general", "route 'first'")


def test_the_tasks_own_settings_win_over_the_route():
    own = {"channel": "#mine", "severity": "critical", "mute": False, "runbook": "https://wiki/x"}
    found = planned([Rule("r", channel="#pay", mute=True)], own=own)
    assert (found.channel, found.severity, found.mute, found.runbook) == ("#mine", "critical", False, "https://wiki/x")
    assert "the task's own channel, mute, runbook, severity" in found.because


@pytest.mark.parametrize("own", [{"channel": 7}, {"severity": "loud"}, {"mute": "yes"}, {"channel": " "}, {"x": 1}])
def test_senseless_own_settings_are_ignored(own):
    """They come over the wire from users' workers."""
    assert planned([], own=own) == DEFAULT


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        (Rule("a"), Rule("b", task=("x",)), True),
        (Rule("a", task=("shop.*",)), Rule("b", task=("shop.pay.*",)), True),
        (Rule("a", task=("shop.*",)), Rule("b", task=("shop.pay", "mail.*")), False),
        (Rule("a", task=("shop.*",), queue=("q",)), Rule("b", task=("shop.x",)), False),
        (Rule("a", task=("shop.?",)), Rule("b", task=("shop.*",)), False),
        (Rule("a", task=("x",)), Rule("b", task=("x",), queue=("q",)), True),
    ],
)
def test_a_route_is_known_to_cover_another(wide, narrow, covered):
    assert wide.covers(narrow) is covered


@pytest.mark.parametrize(
    ("hours", "at", "covered"),
    [
        ((22 * 60, 7 * 60), "2026-11-21 23:30", True),
        ((22 * 60, 7 * 60), "2026-11-21 06:59", True),
        ((22 * 60, 7 * 60), "2026-11-21 07:00", False),
        ((9 * 60, 17 * 60), "2026-11-21 12:00", True),
        ((9 * 60, 17 * 60), "2026-11-21 17:00", False),
        # Both 02:30 of the night when clocks go back, and the hour after a 02:30 that never was.
        ((60, 180), "2026-10-25 02:30", True),
        ((180, 240), "2026-03-29 03:30", True),
    ],
)
def test_quiet_hours_by_the_clock_on_the_wall(hours, at, covered):
    now = datetime.strptime(at, "%Y-%m-%d %H:%M").replace(tzinfo=PARIS).timestamp()
    assert QuietHours(*hours, PARIS).cover(now) is covered


ALWAYS = QuietHours(0, 1440, ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("changes", "routed", "reason"),
    [
        ({}, {}, None),
        ({}, {"mute": True}, "muted"),
        ({"muted_until": NOW + 1}, {}, "muted"),
        ({"muted_until": NOW - 1}, {}, None),
        ({"state": "resolved"}, {}, "resolved"),
        ({"state": "resolved", "held": True}, {}, None),
        ({}, {"threshold": Threshold(2, 600.0)}, "threshold"),
        ({"minutes": {int(NOW // 60): 2}}, {"threshold": Threshold(2, 600.0)}, None),
        ({"minutes": {int(NOW // 60) - 20: 5}}, {"threshold": Threshold(2, 600.0)}, "threshold"),
        ({"held": True}, {"threshold": Threshold(2, 600.0)}, None),
        ({}, {"quiet_hours": ALWAYS}, "quiet"),
    ],
)
def test_why_an_incident_gets_no_message_yet(changes, routed, reason):
    assert reason_to_wait(incident(**changes), replace(DEFAULT, **routed), NOW) == reason


def test_the_guard_lets_ten_have_their_own_message_and_rolls_up_the_rest():
    many = [incident(id=f"i{number:03}", first=NOW + number) for number in range(300)]
    placing = place(many, recent=4, limits=GuardLimits(10, 300.0))
    assert [i.id for i in placing.alone] == [f"i{number:03}" for number in range(6)]
    assert len(placing.rollup) == 294
    assert placing.digest == ()


def test_what_quiet_hours_held_is_one_digest():
    held = [incident(id=f"i{number}", held=True) for number in range(20)]
    placing = place([*held, incident(id="new")], recent=0, limits=GuardLimits())
    assert [i.id for i in placing.alone] == ["new"]
    assert placing.digest == tuple(held)


def test_one_incident_held_gets_a_message_of_its_own():
    placing = place([incident(held=True)], recent=0, limits=GuardLimits())
    assert (len(placing.alone), placing.digest) == (1, ())


def test_backoff_doubles_and_is_capped():
    waits = [backoff(failures, random.Random(7)) for failures in (1, 2, 3, 10, 1_000)]
    assert waits == sorted(waits)
    assert 0.75 <= waits[0] <= 1.25
    assert waits[-1] <= 60.0
