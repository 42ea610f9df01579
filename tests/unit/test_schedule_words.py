"""Schedules in words, and how far apart their slots are."""

from __future__ import annotations

import math

import pytest
from celeryscope.exporters.schedule_words import between, in_words


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("interval", "2s", "every 2 s"),
        ("interval", "0.5s", "every 0.5 s"),
        ("interval", "300s", "every 5 min"),
        ("interval", "90s", "every 90 s"),
        ("relative", "86400s", "every 1 d"),
        ("interval", "strange", "strange"),
        ("crontab", "* * * * *", "every minute"),
        ("crontab", "*/15 * * * *", "every 15 min"),
        ("crontab", "*/7 * * * *", "*/7 * * * *"),  # not every 7 minutes: it begins anew each hour
        ("crontab", "5 * * * *", "hourly at :05"),
        ("crontab", "0 */6 * * *", "every 6 h at :00"),
        ("crontab", "0 */5 * * *", "0 */5 * * *"),
        ("crontab", "30 2 * * *", "daily at 02:30"),
        ("crontab", "30 2 * * 1", "Mon at 02:30"),
        ("crontab", "0 0 1 * *", "monthly on 1. at 00:00"),
        ("crontab", "0 0 1 1 *", "0 0 1 1 *"),
        ("crontab", "0 9 * * 1-5", "0 9 * * 1-5"),
        ("crontab", "*/5 9 * * 1", "*/5 9 * * 1"),
        ("crontab", "nonsense", "nonsense"),
        ("crontab", "*/0 * * * *", "*/0 * * * *"),  # Celery refuses it; a label may say anything
        ("crontab", "0 */0 * * *", "0 */0 * * *"),
        ("crontab", ",".join(map(str, range(0, 60, 2))) + " * * * *", "0,2,4,6,8,10,12,14,16,1…"),
        ("solar", "solar_noon 50.0 8.5", "solar noon"),
        ("clocked", "2026-11-21T20:00:00+00:00", "once, 2026-11-21 20:00"),
        ("unknown", "proj.rules.Moon", "Moon"),
    ],
)
def test_words(kind: str, spec: str, words: str) -> None:
    assert in_words(kind, spec) == words
    assert len(words) <= 24


@pytest.mark.parametrize(
    ("kind", "spec", "seconds"),
    [
        ("interval", "2s", 2.0),
        ("relative", "300s", 300.0),
        ("interval", "strange", math.inf),
        ("crontab", "30 2 * * *", 86_400.0),
        ("crontab", "*/5 * * * *", 300.0),
        ("crontab", "0 0 31 2 *", math.inf),
        ("clocked", "2026-11-21T20:00:00+00:00", math.inf),
        ("unknown", "proj.rules.Moon", math.inf),
    ],
)
def test_the_distance_of_two_slots(kind: str, spec: str, seconds: float) -> None:
    assert between(kind, spec, 1_900_000_000.0) == seconds
