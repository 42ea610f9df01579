"""The three schedulers through a bad day, side by side: stopped, killed, doubled, ended; by truth the tasks wrote down.

Three monitors listen: one hears all, one loses every tenth event, one is restarted on the way.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timezone
from itertools import pairwise

import ephem
import pytest
from beat_farm import SCHEDULERS, Ear, Farm, missed, run_script
from celeryscope.monitor.events import BeatEvent
from helpers import Process, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]
APPS = tuple(SCHEDULERS)
EARS = ("exact", "lossy", "restarted")


def noon_at(moment: float) -> float:
    """Return the longitude where the sun stands highest at that moment."""
    sun, low, high = ephem.Sun(), -180.0, 180.0
    date = ephem.Date(datetime.fromtimestamp(moment, timezone.utc))
    place = ephem.Observer()
    place.lat, place.elevation, place.pressure, place.horizon = "50", 0, 0, "0"

    def late(longitude: float) -> float:
        place.lon = str(longitude)
        place.date = date - 0.4
        return float(place.next_transit(sun)) - float(date)

    # Noon moves west: the further east, the earlier, once around the globe in a day.
    longitude = -180.0 + ((late(-180.0) + 0.5) % 1.0 - 0.5) * 360.0
    low, high = longitude - 1.0, longitude + 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if late(middle) > 0 else (low, middle)
    return round(((low + high) / 2 + 180) % 360 - 180, 6)


@pytest.fixture(name="farm")
def _farm(valkey, tmp_path):
    farm = Farm(valkey, tmp_path, 6)
    farm.ears |= {"lossy": Ear(0.1), "restarted": Ear()}
    farm.env["DATABASE"] = str(farm.folder / "beat.sqlite3")
    run_script("beat_app.py", **farm.env, SCHEDULER="django")
    farm.worker()
    yield farm
    farm.close()


def reports(farm: Farm, app: str, entry: str) -> list[BeatEvent]:
    """Return what beat said of its dispatches of one entry."""
    return [e for e in list(farm.seen) if e.type == "beat-dispatched" and e.app == app and e.entry == entry]


def sum_of(farm: Farm, app: str, ear: str) -> dict[str, float]:
    return {
        name: farm.value(f"beat_{name}_total", app, "two", ear=ear) for name in ("dispatched", "missed", "duplicate")
    }


def settled(farm: Farm, app: str, duplicates: int = 0) -> bool:
    """All three ledgers say exactly what the tasks wrote down."""
    sent = farm.truth(app, "two")
    for ear in EARS:
        found = sum_of(farm, app, ear)
        assert found["dispatched"] == len(sent), (app, ear, found, len(sent))
        assert found["missed"] in missed(sent), (app, ear, found, [round(t, 2) for t in sent])
        assert found["duplicate"] == duplicates, (app, ear, found)
    return True


def test_a_bad_day(farm):
    beats: dict[str, Process] = {app: farm.beat(app, app) for app in APPS}
    for app in APPS:
        eventually(lambda app=app: len(farm.truth(app, "two")) >= 3, 60)
        eventually(lambda app=app: settled(farm, app), 30)
        assert farm.value("beats", app) == 1

    farm.ears["restarted"].down = True
    farm.freeze(beats, 12.0)
    farm.ears["restarted"].restart, farm.ears["restarted"].down = True, False
    for app in APPS:
        eventually(lambda app=app: settled(farm, app), 40)
        assert farm.value("beat_missed_total", app, "two") >= 5
        assert farm.value("beat_lateness_seconds", app, "two")[-1] >= 10.0

    kill_and_restart(farm, beats)
    for app in APPS:
        eventually(lambda app=app: len(farm.truth(app, "cron")) >= 1, 70)
        eventually(lambda app=app: farm.value("beat_dispatched_total", app, "cron") == len(farm.truth(app, "cron")))
        assert farm.value("beat_lateness_seconds", app, "cron")[-1] < 45.0  # not the minutes that a store is behind
        eventually(lambda app=app: farm.value("beat_missed_total", app, "cron") == minutes_without(farm, app), 30)
    sun_and_clock(farm)
    second_beat(farm)  # not before: a second one of Django's would run those again
    killed_for_good(farm, beats)
    for process in farm.processes:
        assert "failed and was skipped" not in process.output


def minutes_without(farm: Farm, app: str) -> int:
    """Return how many minutes went by without the run of the crontab: restarted, Django's scheduler leaves one out."""
    online = min(e.timestamp for e in list(farm.seen) if e.app == app)
    served = {moment // 60 for moment in farm.truth(app, "cron")}
    # Beat reads its schedule a little before it says that it is there: a minute may turn between the two.
    first = min(online // 60 + 1, min(served))
    return int(max(served) - first) + 1 - len(served)


def kill_unheard(farm: Farm, app: str, beat: Process) -> int:
    """Kill a beat after a dispatch of which it told the lossy monitor nothing; return how many it had made."""
    eventually(lambda: settled(farm, app), 40)
    assert beat.pid in pids(farm, app)
    farm.ears["lossy"].deaf_to.add(beat.pid)
    farm.after_a_dispatch(app, 1.2)
    beat.kill_group()
    beat.popen.wait(10)
    return len(farm.truth(app, "two"))


def pids(farm: Farm, app: str) -> set[int | None]:
    """Return the beats of an app that were heard of."""
    return {e.pid for e in list(farm.seen) if e.app == app and e.type != "beat-received"}


def kill_and_restart(farm: Farm, beats: dict[str, Process]) -> None:
    """No false lateness, no false miss, no duplicate, and never two beats.

    Nothing that a beat said of its last dispatch reaches the lossy monitor: the worker's word has to do.
    """
    runs = {}
    for app in APPS:
        runs[app] = kill_unheard(farm, app, beats[app])
        if app == "django":  # not before: Django's scheduler would run them again after a kill
            soon = time.time() + 30
            farm.env |= {"CLOCKED": str(soon), "NOON": str(noon_at(soon + 6))}
        beats[app] = farm.beat(app, app)
    for app in APPS:
        eventually(lambda app=app: len(farm.truth(app, "two")) >= runs[app] + 3, 60)
        assert farm.value("beats", app) == 1
        eventually(lambda app=app: settled(farm, app), 40)
        sent = farm.truth(app, "two")
        late = sum(max(0.0, after - before - 2.0) for before, after in pairwise(sent))
        # Not more than the tasks were late; Django's scheduler, whose store was behind, begins a new phase.
        assert farm.value("beat_lateness_seconds", app, "two")[-1] < late + 1.0 + 0.05 * len(sent)


def second_beat(farm: Farm) -> None:
    """Two of one app are reported within 30 s, and what the second one sends is counted."""
    seconds = {app: farm.beat(app, app, copy="-second") for app in APPS}
    for app, second in seconds.items():
        eventually(lambda app=app, second=second: second.pid in pids(farm, app), 90)
        eventually(lambda app=app: farm.value("beats", app) == 2, 30)
    # RedBeats share one schedule: without a lock they are two, and which of them sends a run is left to chance.
    for app in ("persistent", "django"):
        eventually(lambda app=app: farm.value("beat_duplicate_total", app, "two") >= 3, 60)
    for second in seconds.values():
        second.popen.terminate()
    for app, second in seconds.items():
        assert second.popen.wait(30) == 0
        eventually(lambda app=app: farm.value("beats", app) == 1, 30)
    for app in APPS:
        assert miss(farm, app) <= missed(farm.truth(app, "two"))[-1] + 1


def sun_and_clock(farm: Farm) -> None:
    """One run of each, at its moment."""
    for entry, kind in (("once", "clocked"), ("noon", "solar")):
        (sent,) = eventually(lambda entry=entry: farm.truth("django", entry), 60)
        (seen,) = eventually(lambda entry=entry: reports(farm, "django", entry))
        assert seen.kind == kind
        assert abs(seen.due - sent) < 10.0
    due = float(farm.env["CLOCKED"])
    assert abs(farm.truth("django", "once")[0] - due) < 10.0
    eventually(lambda: farm.value("beat_dispatched_total", "django", "noon") == 1)


def killed_for_good(farm: Farm, beats: dict[str, Process]) -> None:
    """`beats` is 0 within 30 s, and misses go on counting for ever."""
    for beat in beats.values():
        os.kill(beat.pid, signal.SIGKILL)
    killed = time.time()
    for app in APPS:
        eventually(lambda app=app: farm.value("beats", app) == 0, killed + 30 - time.time())
    counts = [farm.value("beat_missed_total", app, "two") for app in APPS]
    for more in (2, 4):
        for app, before in zip(APPS, counts, strict=True):
            eventually(lambda app=app, before=before, more=more: miss(farm, app) >= before + more, 30)
    assert all(farm.value("beat_overdue_seconds", app, "two") > 20 for app in APPS)


def miss(farm: Farm, app: str) -> float:
    return float(farm.value("beat_missed_total", app, "two"))


def test_a_redbeat_standby_is_no_second_beat_and_takes_over(farm):
    first = farm.beat("locked", "redbeat", LOCK="lock")
    eventually(lambda: (farm.value("beat_dispatched_total", "locked", "two") or 0) >= 2, 60)
    farm.beat("locked", "redbeat", copy="-standby", LOCK="lock")
    eventually(lambda: any(e.app == "locked" and e.leader is False for e in list(farm.seen)), 60)
    eventually(lambda: sum(e.app == "locked" and e.type == "beat-heartbeat" for e in list(farm.seen)) >= 4, 60)
    assert farm.value("beats", "locked") == 1
    before = kill_unheard(farm, "locked", first)
    eventually(lambda: len(farm.truth("locked", "two")) >= before + 3, 60)
    eventually(lambda: farm.value("beats", "locked") == 1, 30)
    eventually(lambda: settled(farm, "locked"), 30)
