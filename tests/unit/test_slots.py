"""Slots of every kind of schedule, against Celery's own schedule objects and hand-made calendars."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule, solar
from celeryscope.monitor.beat_entries import describe
from celeryscope.monitor.slots import UNKNOWN_SLOTS, Slots, build, zone
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
DAY = 86_400.0


def at(text: str, tz: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz), fold=fold).timestamp()


def local(moment: float | None, tz: str = BERLIN) -> str:
    assert moment is not None
    return datetime.fromtimestamp(moment, ZoneInfo(tz)).strftime("%m-%d %H:%M:%S %Z")


def walk(slots: Slots, start: float, count: int) -> list[float]:
    found = []
    for _ in range(count):
        following = slots.after(start)
        assert following is not None
        found.append(following)
        start = following
    return found


def celerys_own(rule: object, last: float, now: float, tz: str) -> float:
    """What a beat would see: its schedule object asked at some time, with that last run."""
    rule.tz = ZoneInfo(tz)

    def due(moment: float) -> float:
        rule.nowfun = lambda: datetime.fromtimestamp(moment, ZoneInfo(tz))
        return moment + rule.remaining_estimate(datetime.fromtimestamp(last, ZoneInfo(tz))).total_seconds()

    first = answer = due(now)
    if datetime.fromtimestamp(last, rule.tz).utcoffset() != datetime.fromtimestamp(first, rule.tz).utcoffset():
        # The clock is changed in between, and Celery 5.4 knows by how much only then. A beat looks every five minutes.
        now = max(now, first - 7_200.0)
        while due(now) > now:
            answer = due(now)
            now += 300.0
    return answer


def test_an_interval_is_due_a_fixed_time_after_the_last_run():
    slots = build("interval", "2s", None, 2.0)
    assert slots.after(100.5) == 102.5
    assert slots.missed(102.0, 103.9) == (0, 102.0)
    assert slots.missed(102.0, 104.0) == (1, 104.0)
    assert slots.missed(102.0, 112.5) == (5, 112.0)
    assert slots.missed(102.0, 50.0) == (0, 102.0)


def test_a_crontab_keeps_to_its_own_timezone():
    assert local(build("crontab", "30 2 * * *", BERLIN, None).after(at("2026-01-10T12:00"))) == "01-11 02:30:00 CET"
    tokyo = build("crontab", "30 2 * * *", "Asia/Tokyo", None).after(at("2026-01-10T12:00"))
    assert local(tokyo, "Asia/Tokyo") == "01-11 02:30:00 JST"
    fixed = build("crontab", "30 2 * * *", "UTC+02:00", None).after(at("2026-01-10T12:00", "UTC"))
    assert local(fixed, "UTC") == "01-11 00:30:00 UTC"


def test_in_spring_the_hour_that_does_not_exist_is_run_an_hour_later_and_missed_by_nobody():
    slots = build("crontab", "30 2 * * *", BERLIN, None)
    days = walk(slots, at("2026-03-27T12:00"), 3)
    assert [local(day) for day in days] == ["03-28 02:30:00 CET", "03-29 03:30:00 CEST", "03-30 02:30:00 CEST"]
    assert slots.missed(days[0], days[1] - 1) == (0, days[0])


def test_in_autumn_celery_leaves_out_the_repeated_hour_and_so_do_the_slots():
    slots = build("crontab", "*/30 * * * *", BERLIN, None)
    halves = walk(slots, at("2026-10-25T01:45"), 3)
    assert [local(half) for half in halves] == ["10-25 02:00:00 CEST", "10-25 02:30:00 CEST", "10-25 03:00:00 CET"]
    assert halves[2] - halves[1] == 5400.0


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ("*/7 * * * *", {"minute": "*/7"}),
        ("0 2 * * *", {"minute": "0", "hour": "2"}),
        ("15 1-4 * * *", {"minute": 15, "hour": [1, 2, 3, 4]}),
        ("0 0 1,15 * *", {"minute": 0, "hour": 0, "day_of_month": "1,15"}),
        ("0 12 * 1-3 mon,fri", {"minute": 0, "hour": 12, "month_of_year": {1, 2, 3}, "day_of_week": "mon,fri"}),
        ("0 0 31 * *", {"minute": 0, "hour": 0, "day_of_month": 31}),
    ],
)
@pytest.mark.parametrize("tz", ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe"])
def test_a_crontab_goes_over_the_wire_and_means_the_same(spec, fields, tz):
    """Two years, daylight saving changes included: slot by slot what Celery's own object says."""
    rule = crontab(**fields)
    rule.tz = ZoneInfo(tz)
    said = describe(rule)
    assert (said["kind"], said["spec"], said["tz"]) == ("crontab", spec, tz)
    slots = build(said["kind"], said["spec"], said["tz"], said["every"])
    last = at("2026-02-20T00:30", tz)
    for _ in range(200):
        following = slots.after(last)
        assert following is not None
        assert following == pytest.approx(celerys_own(rule, last, last + 5.0, tz), abs=1e-3)
        last = following + 1.0 if "*/7" not in spec else following + 20 * 3600.0


@given(st.floats(1.7e9, 1.9e9), st.sampled_from(["*/5 * * * *", "30 2 * * *", "0 0 29 2 *", "0 9-17/2 * * 1-5"]))
def test_slots_lie_ahead_and_counting_them_stops_before_the_horizon(start, spec):
    slots = build("crontab", spec, BERLIN, None)
    due = slots.after(start)
    assert due is not None
    assert due > start
    missed, still_open = slots.missed(due, start + DAY)
    following = slots.after(still_open)
    assert following is not None
    assert following > start + DAY or missed == 0
    assert slots.missed(still_open, start + DAY)[0] == 0


def test_a_relative_interval_is_rounded_as_celery_rounds_it():
    rule = schedule(timedelta(hours=1), relative=True)
    rule.tz = ZoneInfo(BERLIN)
    said = describe(rule)
    assert said == {"kind": "relative", "spec": "3600s", "tz": BERLIN, "every": 3600.0}
    last = at("2026-06-01T10:17:30")
    following = build(**said).after(last)
    assert local(following) == "06-01 11:00:00 CEST"
    assert following == pytest.approx(celerys_own(rule, last, last + 1, BERLIN), abs=1e-3)


def test_the_sun_rises_once_a_day():
    rule = solar("sunrise", 52.5, 13.4)
    said = describe(rule)
    slots = build(**said)
    last = at("2026-06-01T00:00", "UTC")
    rise = slots.after(last)
    assert rise == pytest.approx(celerys_own(solar("sunrise", 52.5, 13.4), last, last + 9, "UTC"), abs=1e-3)
    assert local(rise, "UTC").startswith("06-01 02:4")
    missed, still_open = slots.missed(rise, last + 3.5 * DAY)
    assert missed == 3
    assert local(still_open, "UTC").startswith("06-04 02:4")


def test_a_clocked_entry_is_due_once():
    slots = build("clocked", "2026-06-01T10:00:00+02:00", "UTC", None)
    moment = at("2026-06-01T10:00:00")
    assert slots.after(moment - 5) == moment
    assert slots.after(moment) is None
    assert slots.missed(moment, moment + 365 * DAY) == (0, moment)


def test_counting_is_bounded():
    """A minutely entry whose beat was dead for a month: some are counted now, the rest the next time."""
    slots = build("crontab", "* * * * *", "UTC", None)
    due = at("2026-01-01T00:00", "UTC")
    missed, due = slots.missed(due, due + 30 * DAY)
    assert missed == 2_000
    assert slots.missed(due, due + 3600.0)[0] == 60


@pytest.mark.parametrize(
    "said",
    [
        ("unknown", "x.Y", None, None),
        ("interval", "0s", None, 0.0),
        ("interval", "", None, None),
        ("crontab", "* * * *", "UTC", None),
        ("crontab", "99 * * * *", "UTC", None),
        ("crontab", "0 0 30 2 *", "UTC", None),
        ("crontab", "*/0 * * * *", "UTC", None),
        ("crontab", "* * * * *", None, None),
        ("crontab", "* * * * *", "Mars/Olympus", None),
        ("crontab", "* * * * *", "../../etc/passwd", None),
        ("solar", "sunrise 91 0", "UTC", None),
        ("solar", "sunrise", "UTC", None),
        ("clocked", "tomorrow", "UTC", None),
        ("clocked", "0001-01-01", "UTC", None),
        ("relative", "", "UTC", None),
    ],
)
def test_what_cannot_be_understood_is_never_due(said):
    slots = build(*said)
    assert slots.after(1e9) is None or said[0] == "clocked"
    assert slots.missed(1e9, 2e9) == (0, 1e9)


def test_an_unknown_schedule_is_one_object():
    assert build("something", "", None, None) is UNKNOWN_SLOTS


@pytest.mark.parametrize(
    ("name", "hours"), [("UTC", 0), ("+05:30", 5.5), ("UTC-03:00", -3), ("UTC+0200", 2), ("Asia/Tokyo", 9)]
)
def test_zones_by_name_and_offset(name, hours):
    found = zone(name)
    assert found is not None
    assert datetime(2026, 1, 1, tzinfo=timezone.utc).astimezone(found).utcoffset() == timedelta(hours=hours)


@pytest.mark.parametrize("name", [None, "", "Nowhere", "+99:00", "/etc", "Europe"])
def test_no_such_zone(name):
    assert zone(name) is None
