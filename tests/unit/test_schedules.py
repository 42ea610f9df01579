"""The ledger's promises, one by one, in a world with Celery's own scheduler and a clock that the test turns."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from beat_world import START, Beat, Strange, World, interval
from celery.schedules import crontab, schedule
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.facts import Family
from celeryscope.monitor.labels import Caps
from celeryscope.monitor.schedules import Ledger

TWO = {"two": interval(2.0)}


def world(entries: dict[str, dict[str, Any]] | None = None, **options: Any) -> tuple[World, Beat]:
    """A world whose monitor has been up for a minute and whose beat starts now."""
    made = World(TWO if entries is None else entries, **options)
    for _ in range(60):
        made.run(1.0)
    return made, made.start()


def test_the_metrics_are_those_of_the_catalogue():
    w, _ = world()
    w.run(10.0)
    families = {family.metric.name: family for family in w.ledger.families()}
    assert set(families) == {m.name for m in METRICS.values() if m.group == "beat"} | {
        "celeryscope_probe_dropped_total"
    }
    for family in families.values():
        check_shape(family)


def check_shape(family: Family) -> None:
    for labels, value in family.samples:
        assert len(labels) == len(family.metric.labels) or family.metric.name == "celeryscope_probe_dropped_total"
        if family.metric.kind == "histogram":
            assert isinstance(value, list)
            assert len(value) == len(family.metric.buckets) + 2
        else:
            assert isinstance(value, (int, float))


def test_a_healthy_beat():
    w, _ = world()
    w.run(61.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"]) == 30
    assert [w.entry(f"{name}_total", "two") for name in ("missed", "duplicate", "dispatch_failed")] == [0, 0, 0]
    assert w.entry("overdue_seconds", "two") == 0.0
    assert w.entry("never_ran", "two") == 0.0
    assert w.value("celery_beats", "proj") == 1
    assert w.value("celery_beat_up", "proj", "proj@h") == 1.0
    assert w.value("celery_beat_entries", "proj", "proj@h") == 1
    assert w.value("celery_beat_last_tick_timestamp_seconds", "proj", "proj@h") == pytest.approx(w.now, abs=12.1)
    assert w.value("celery_beat_entry_info", "proj", "two", "proj.add", "interval", "2s") == 1.0
    lateness, between = w.entry("lateness_seconds", "two"), w.entry("interval_seconds", "two")
    assert (sum(lateness[:-1]), sum(between[:-1])) == (30, 29)
    assert lateness[-1] / 30 < 0.03
    assert between[-1] / 29 == pytest.approx(2.0, abs=0.03)


def test_drift_is_how_far_the_phase_has_slid_from_a_grid():
    w, _ = world(jitter=0.02)
    w.run(200.0)
    sent = w.attempts["two"]
    assert w.entry("drift_seconds", "two") == pytest.approx(sent[-1] - sent[0] - 2.0 * (len(sent) - 1), abs=1e-6)
    assert w.entry("drift_seconds", "two") > 0.1


def test_a_stopped_beat_shows_what_it_missed_and_how_late_it_came():
    w, beat = world()
    w.run(10.0)
    w.stop(beat, 12.0)
    w.run(30.0)
    gaps = zip(w.attempts["two"], w.attempts["two"][1:], strict=False)
    assert w.entry("missed_total", "two") == sum(int((b - a) // 2.0) - 1 for a, b in gaps if b - a > 3) == 5
    assert w.entry("lateness_seconds", "two")[-1] > 8.0
    assert w.value("celery_beats", "proj") == 1


def test_a_beat_killed_for_good_is_noticed_and_misses_go_on_counting():
    w, beat = world()
    w.run(10.0)
    w.kill(beat)
    w.run(30.0)
    assert w.value("celery_beats", "proj") == 0
    assert w.value("celery_beat_up", "proj", "proj@h") == 0.0
    before = w.entry("missed_total", "two")
    assert before == (w.now - 10.0 - w.attempts["two"][-1] - 2.0) // 2.0
    w.run(100.0)
    assert w.entry("missed_total", "two") == before + 50
    assert w.entry("overdue_seconds", "two") == pytest.approx(w.now - w.attempts["two"][-1] - 2.0, abs=1.1)
    assert w.entry("next_due_timestamp_seconds", "two") == pytest.approx(w.attempts["two"][-1] + 2.0)


def test_a_beat_that_says_goodbye_is_gone_at_once():
    w, beat = world()
    w.run(10.0)
    beat.probe.reports.leave()
    w.deliver(beat)
    w.kill(beat)
    w.run(1.5)
    assert w.value("celery_beats", "proj") == 0
    assert w.value("celery_beat_up", "proj", "proj@h") == 0.0


def test_killed_and_restarted_at_once_with_an_outdated_store():
    """The store says that the last run was 30 s ago: no false lateness, no false miss, no duplicate, no second beat."""
    w, beat = world()
    w.run(5.0)
    outdated = beat.stored()
    w.run(30.0)
    while w.now - w.attempts["two"][-1] < 1.2:
        w.run(0.1)
    w.kill(beat)
    w.run(0.6)
    w.start("other", stored=outdated)
    most = 0
    for _ in range(40):
        w.run(1.0)
        most = max(most, w.value("celery_beats", "proj"))
    assert most == 1
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert [w.entry(f"{name}_total", "two") for name in ("missed", "duplicate")] == [0, 0]
    assert w.entry("lateness_seconds", "two")[-1] < 1.0
    assert w.value("celery_beat_up", "proj", "proj@h") == 0.0
    assert w.value("celery_beat_up", "proj", "proj@other") == 1.0


@pytest.mark.parametrize(
    ("store", "gap", "doubled"), [("behind", 0.6, 1), ("behind", 1.4, 0), ("kept", 0.6, 0), ("lost", 0.6, 0)]
)
def test_a_successor_is_no_duplicate_but_what_it_sends_twice_is(store, gap, doubled):
    """Only a store that is behind lets it send the slot again, less than half an interval later: the job ran twice."""
    w, beat = world()
    w.run(5.0)
    behind = beat.stored()
    w.run(30.0)
    before = len(w.attempts["two"])
    while len(w.attempts["two"]) == before:
        w.run(0.1)
    stored = w.kill(beat)
    while w.now < w.attempts["two"][-1] + gap:
        w.run(0.05)
    w.start(stored={"behind": behind, "kept": stored, "lost": None}[store])
    w.run(40.0)
    assert w.entry("duplicate_total", "two") == doubled
    assert w.value("celery_beats", "proj") == 1
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("missed_total", "two") == 0


def test_the_crontab_slot_that_a_restarted_beat_sends_again_is_a_duplicate():
    w, beat = world({"cron": {"task": "t", "schedule": crontab()}}, start=1_900_000_800.0)
    w.run(1.0)
    outdated = beat.stored()
    w.run(61.0)
    w.kill(beat)
    w.run(3.0)
    w.start(stored=outdated)
    w.run(5.0)
    assert len(w.attempts["cron"]) == 2
    assert w.entry("duplicate_total", "cron") == 1
    assert w.entry("missed_total", "cron") == 0


@pytest.mark.parametrize("offset", [0.3, 1.0, 1.7])
def test_two_beats_of_one_app_are_two_within_30_seconds_and_all_the_second_sends_is_duplicate(offset):
    w, _ = world()
    w.run(20.0 + offset)
    w.start("second")
    w.run(29.0)
    assert w.value("celery_beats", "proj") == 2
    before = len(w.attempts["two"]), w.entry("duplicate_total", "two")
    w.run(40.0)
    more = len(w.attempts["two"]) - before[0]
    assert w.entry("duplicate_total", "two") - before[1] == pytest.approx(more / 2, abs=1)
    assert w.entry("missed_total", "two") == 0
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])


def test_two_beats_double_every_slot_of_a_crontab():
    w, _ = world({"cron": {"task": "t", "schedule": crontab()}})
    w.run(61.0)
    w.start("second")
    w.run(300.0)
    assert w.entry("duplicate_total", "cron") == 5


def test_two_apps_on_one_broker_are_no_duplicates():
    w, _ = world()
    other = World(TWO, app="other")
    other.ledger, other.now = w.ledger, w.now
    other.start("h")
    for _ in range(60):
        w.run(1.0)
        other.run(1.0)
    assert (w.value("celery_beats", "proj"), w.value("celery_beats", "other")) == (1, 1)
    assert (w.entry("duplicate_total", "two"), other.entry("duplicate_total", "two")) == (0, 0)


def test_a_standby_that_waits_for_the_lock_is_no_second_beat():
    w, leader = world()
    leader.scheduler.lock_key, leader.scheduler.lock = "lock", object()
    standby = w.start("standby")
    standby.scheduler.lock_key = "lock"
    standby.wake = float("inf")
    w.run(60.0)
    assert w.value("celery_beats", "proj") == 1
    assert w.value("celery_beat_up", "proj", "proj@standby") == 1.0
    stored = w.kill(leader)
    w.run(40.0)
    assert w.value("celery_beats", "proj") == 0
    standby.scheduler.lock, standby.wake = object(), w.now
    for name, (last, _) in stored.items():
        standby.scheduler.schedule[name].last_run_at = last
    w.run(10.0)
    assert w.value("celery_beats", "proj") == 1
    gaps = zip(w.attempts["two"], w.attempts["two"][1:], strict=False)
    assert w.entry("missed_total", "two") == sum(int((b - a) // 2.0) - 1 for a, b in gaps if b - a > 3)
    assert w.entry("duplicate_total", "two") == 0


def lose_the_last_report_and_kill(w: World, beat: Beat) -> dict[str, Any]:
    """Kill beat 0.2 s after a dispatch of which it told nobody; return what its store knows."""
    w.loss = 1.0
    before = len(w.attempts["two"])
    while len(w.attempts["two"]) == before:
        w.run(0.1)
    w.run(0.2)
    w.loss = 0.0
    return w.kill(beat)


def hold_back(w: World) -> list[tuple[str, dict[str, Any]]]:
    """Keep what beats send from now on off the wire, until `deliver` is as it was."""
    held: list[tuple[str, dict[str, Any]]] = []
    w.deliver = lambda beat, **_: held.extend(beat.probe.sender.flush())  # type: ignore[method-assign]
    return held


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("store", ["kept", "lost"])
def test_what_a_beat_sent_last_is_known_from_the_worker_that_got_it(store, restart):
    """Its report was lost, and then it was killed and replaced at once: no false miss, and the count is right.

    Also where the monitor is started anew between what the worker said and what it is needed for.
    """
    w, beat = world()
    w.run(21.0)
    stored = lose_the_last_report_and_kill(w, beat)
    if restart:
        w.restart_monitor()
    sent = w.attempts["two"][-1]
    w.start(stored=stored if store == "kept" else None)
    w.run(30.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert [w.entry(f"{name}_total", "two") for name in ("missed", "duplicate")] == [0, 0]
    # The first dispatch after a restart is of unknown lateness: another beat may have led meanwhile, unheard.
    assert sum(w.entry("lateness_seconds", "two")[:-1]) == len(w.attempts["two"]) - restart
    assert sent in w.attempts["two"][:-5]


def test_a_standby_that_dispatches_leads_though_nobody_heard_it_say_so():
    """It takes over from a beat whose last report was lost, and its own word that it leads now is lost, too."""
    w, leader = world()
    leader.scheduler.lock_key, leader.scheduler.lock = "lock", object()
    standby = w.start("standby")
    standby.scheduler.lock_key = "lock"
    standby.wake = float("inf")
    w.run(21.0)
    stored = lose_the_last_report_and_kill(w, leader)
    standby.scheduler.lock, standby.wake = object(), w.now
    for name, (last, _) in stored.items():
        standby.scheduler.schedule[name].last_run_at = last
    standby.probe.leader = lambda: None  # type: ignore[method-assign]
    w.run(5.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    w.run(20.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("missed_total", "two") == 0
    assert w.value("celery_beats", "proj") == 1


@pytest.mark.parametrize("restart", [False, True])
def test_what_a_beat_sent_last_is_no_miss_after_its_death(restart):
    w, beat = world()
    w.run(21.0)
    lose_the_last_report_and_kill(w, beat)
    if restart:
        w.restart_monitor()
    w.run(60.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("missed_total", "two") == (w.ledger.now - 10.0 - w.attempts["two"][-1] - 2.0) // 2.0
    assert w.entry("next_due_timestamp_seconds", "two") == pytest.approx(w.attempts["two"][-1] + 2.0)


def test_what_no_worker_got_before_the_slot_was_judged_stays_a_miss():
    """Each slot is counted once: a queue that is worked off an hour later takes nothing back and adds nothing."""
    w, beat = world()
    w.run(21.0)
    w.workers = False
    lose_the_last_report_and_kill(w, beat)
    w.run(60.0)
    missed, dispatched = w.entry("missed_total", "two"), w.entry("dispatched_total", "two")
    assert dispatched == len(w.attempts["two"]) - 1
    fields = {"app": "proj", "boot": beat.probe.boot, "entry": "two", "uuid": "x", "dispatched": dispatched + 1}
    w.receive("beat-received", {**fields, "sent": w.attempts["two"][-1]}, "worker@h")
    w.run(1.0)
    assert w.entry("missed_total", "two") - missed in {0, 1}
    assert w.entry("dispatched_total", "two") == dispatched


@pytest.mark.parametrize("more", [{"boot": "unheard of"}, {"app": "other"}, {"entry": "unknown"}, {"sent": None}])
def test_what_a_worker_says_of_beats_and_entries_that_nobody_knows_is_ignored(more):
    w, beat = world()
    w.run(21.0)
    w.kill(beat)
    fields = {"app": "proj", "boot": beat.probe.boot, "entry": "two", "uuid": "x", "dispatched": 99, "sent": w.now}
    w.receive("beat-received", {**fields, **more}, "worker@h")
    w.run(30.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert list(w.ledger.apps) == ["proj"]


def test_a_workers_word_is_no_sign_of_life_of_a_beat():
    w, beat = world()
    w.run(21.0)
    w.kill(beat)
    fields = {"app": "proj", "boot": beat.probe.boot, "entry": "two", "uuid": "x", "dispatched": 1, "sent": w.now}
    for _ in range(30):
        w.run(1.0)
        w.receive("beat-received", fields, "worker@h")
    assert w.value("celery_beats", "proj") == 0


def test_lost_events_are_made_up_for_by_later_ones():
    w, _ = world(loss=0.4, seed=5)
    w.run(600.0)
    w.loss = 0.0
    w.run(11.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("missed_total", "two") == 0


def test_a_restarted_monitor_goes_on_where_it_was():
    w, _ = world()
    w.run(30.0)
    w.monitor_up = False
    w.run(45.0)
    w.monitor_up = True
    w.restart_monitor()
    w.run(12.0)
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("missed_total", "two") == 0


@pytest.mark.parametrize("returned", [0.0, 3_600.0], ids=["with-the-monitor", "before-the-monitor"])
def test_after_a_long_outage_of_beat_and_monitor_all_that_was_missed_is_counted_by_and_by(returned):
    names = [f"minutely {number}" for number in range(20)]
    w, beat = world({name: {"task": "proj.add", "schedule": crontab()} for name in names})
    w.run(200.0)
    stored = w.kill(beat)
    w.run(60.0)
    w.monitor_up = False
    w.run(6 * 3_600.0)
    if returned:
        w.start(stored=stored)
        w.run(returned)
    w.monitor_up = True
    w.restart_monitor()
    if not returned:
        w.start(stored=stored)
    w.run(20.0)
    assert max(w.entry("drift_seconds", name) for name in names) < 60.0
    w.run(70.0)
    # The first run of the beat that came back served the slot that was open then.
    slots = [{slot // 60 for slot in w.attempts[name]} for name in names]
    assert [w.entry("missed_total", name) for name in names] == [max(s) - min(s) + 1 - len(s) for s in slots]


def test_a_liar_who_claims_runs_has_no_more_slots_walked_over_than_one_who_does_not():
    w, _ = world({})
    minutely = {"kind": "crontab", "spec": "* * * * *", "tz": "UTC"}
    fields = {"app": "proj", "boot": "liar", "dispatched": 1, **minutely}
    for number in range(50):
        w.receive("beat-dispatched", {**fields, "entry": f"e{number}", "sent": w.now, "uuid": f"u{number}"}, "x@h")
    walked = {f"e{number}": [2**50, 0, w.now + 1e7] for number in range(50)}
    w.receive("beat-heartbeat", {"app": "proj", "boot": "liar", "seq": 1, "totals": walked}, "x@h")
    assert 2_000 <= sum(chain.walked for chain in w.ledger.apps["proj"].chains.values()) < 2_100


def test_a_new_monitor_blames_nobody_for_what_was_before_it():
    w, beat = world()
    w.run(30.0)
    w.stop(beat, 20.0)
    w.run(30.0)
    w.ledger = Ledger(METRICS, Caps())
    beat.probe.reports._next_listing = 0.0
    w.run(20.0)
    assert w.entry("missed_total", "two") == 0
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"])
    assert w.entry("lateness_seconds", "two")[-1] < 1.0


def test_a_deaf_monitor_judges_nobody():
    w, _ = world()
    w.run(30.0)
    w.monitor_up = False
    for _ in range(60):
        w.run(1.0)
        w.ledger.tick(w.monitor_now(), hearing=False)
    assert w.value("celery_beats", "proj") == 1
    w.monitor_up = True
    w.run(15.0)
    assert (w.value("celery_beats", "proj"), w.entry("missed_total", "two")) == (1, 0)


def test_whoever_was_replaced_while_the_monitor_was_deaf_left_no_known_misses():
    w, beat = world()
    w.run(30.0)
    w.monitor_up = False
    w.run(20.0)
    stored = w.kill(beat)
    w.start("new", stored=stored)
    w.run(40.0)
    w.monitor_up = True
    w.run(15.0)
    assert w.entry("missed_total", "two") == 0
    assert w.value("celery_beats", "proj") == 1


@pytest.mark.parametrize("skew", [-3600.0, 90.0])
def test_clocks_that_disagree_make_nothing_overdue(skew):
    w, beat = world(skew=skew)
    w.run(60.0)
    assert w.entry("overdue_seconds", "two") == 0.0
    assert w.entry("missed_total", "two") == 0
    w.kill(beat)
    w.run(40.0)
    assert w.entry("overdue_seconds", "two") == pytest.approx(w.now - w.attempts["two"][-1] - 2.0, abs=1.1)
    assert w.entry("missed_total", "two") == 14


def test_a_scheduler_that_hangs_is_seen_while_its_process_lives():
    """Heartbeats go on, ticks do not: overdue and missed are counted before anybody is killed."""
    w, beat = world()
    w.run(20.0)
    beat.wake = float("inf")
    w.run(60.0)
    assert w.value("celery_beats", "proj") == 1
    assert w.now - w.value("celery_beat_last_tick_timestamp_seconds", "proj", "proj@h") > 58
    assert w.entry("overdue_seconds", "two") > 50
    assert 24 <= w.entry("missed_total", "two") <= 29


def test_a_failed_publish_is_a_run_lost_and_not_a_slot_missed():
    w, _ = world()
    w.run(10.0)
    w.failing = True
    w.run(20.0)
    w.failing = False
    w.run(10.0)
    assert w.entry("dispatch_failed_total", "two") == w.failed > 5
    assert w.entry("dispatched_total", "two") == len(w.attempts["two"]) - w.failed
    assert w.entry("missed_total", "two") == 0


@pytest.mark.parametrize("restart", [False, True])
def test_a_publish_that_fails_after_the_broker_took_the_message_is_one_attempt(restart):
    """A worker's word of the run was believed while beat was silent; then beat calls that attempt failed."""
    w, beat = world({"rare": interval(30.0)})
    w.run(61.0)
    taken = w.dispatch

    def in_doubt(scheduler: Any, entry: Any) -> Any:
        taken(scheduler, entry)
        raise ConnectionError("no confirmation")

    w.dispatch = in_doubt  # type: ignore[method-assign]
    late = hold_back(w)
    w.run(29.5)
    w.dispatch = taken  # type: ignore[method-assign]
    w.stop(beat, 28.0)
    w.run(27.0)
    assert w.entry("dispatched_total", "rare") == len(w.attempts["rare"]) == 3
    del w.deliver
    for kind, fields in late:
        w.receive(kind, fields, beat.probe.hostname)
    while restart and len(w.attempts["rare"]) == 3:  # just before the next report, with no heartbeat in between
        w.restart_monitor()
        w.run(0.1)
    w.run(91.0 if not restart else 61.0)
    assert beat.probe.counts["rare"].failed == 1
    assert w.entry("dispatched_total", "rare") == len(w.attempts["rare"]) == 6
    assert [w.entry(f"{name}_total", "rare") for name in ("dispatch_failed", "missed", "duplicate")] == [0, 0, 0]


def test_the_nightly_job_that_did_not_happen():
    """Its beat is dead: overdue says so long before the slot counts as missed, which is a day later."""
    berlin = ZoneInfo("Europe/Berlin")
    midnight = datetime(2026, 3, 27, 1, 0, tzinfo=berlin)
    night = {"night": {"task": "t", "schedule": crontab(minute="30", hour="2")}}
    w, beat = world(night, timezone="Europe/Berlin", start=midnight.timestamp())
    w.run(60.0)
    w.kill(beat)
    w.tick_every = 60.0
    w.ledger.tick(w.now)
    due = midnight.replace(hour=2, minute=30).timestamp()
    for _ in range(400):
        w.run(4.0)
        w.ledger.tick(w.now)
    assert w.entry("never_ran", "night") == 1.0
    assert w.entry("next_due_timestamp_seconds", "night") == due
    for day, missed in ((1, 0), (2, 1), (3, 2)):
        moment = datetime(2026, 3, 26 + day, 12, 0, tzinfo=berlin).timestamp()
        while w.now < moment:
            w.now = min(w.now + 4.0, moment)
            w.ledger.tick(w.now)
        assert w.entry("missed_total", "night") == missed
        assert w.entry("overdue_seconds", "night") == pytest.approx(moment - due, abs=3)


def test_a_removed_entry_disappears_and_a_changed_one_starts_anew():
    w, beat = world({"two": interval(2.0), "three": interval(3.0)})
    w.run(10.0)
    del beat.scheduler.schedule["three"]
    beat.scheduler.schedule["two"].schedule = schedule(timedelta(seconds=20), app=beat.scheduler.app)
    w.run(10.0)
    assert w.entry("dispatched_total", "three") is None
    assert w.value("celery_beat_entry_info", "proj", "two", "proj.add", "interval", "20s") == 1.0
    w.run(60.0)
    assert w.entry("missed_total", "two") == 0
    assert w.entry("overdue_seconds", "two") == 0.0


def test_what_django_hides_is_kept_and_what_it_would_list_is_gone():
    noon = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc).timestamp()
    entries = {
        "two": interval(2.0),
        "far": {"task": "t", "schedule": crontab(minute="0", hour="20")},
        "near": {"task": "t", "schedule": crontab(minute="30", hour="12")},
        "any": {"task": "t", "schedule": crontab(minute="0", hour="*/8")},
    }
    w, beat = world(entries, start=noon)
    w.run(5.0)
    for _, fields in [m for m in beat.probe.reports._listing() if m[0] == "beat-schedule"]:
        left = [item for item in fields["entries"] if item["entry"] == "two"]
        w.receive("beat-schedule", {**fields, "hides": True, "entries": left}, "proj@h")
    assert w.entry("dispatched_total", "far") == 0
    assert w.entry("next_due_timestamp_seconds", "far") == noon + 8 * 3600
    assert w.entry("dispatched_total", "near") is None
    assert w.entry("dispatched_total", "any") is None


def test_a_lost_part_of_a_listing_removes_nothing():
    w, beat = world({f"e{n}": interval(50.0) for n in range(150)})
    w.run(5.0)
    w.deliver(beat)
    first, second = (m for m in beat.probe.reports._listing())
    assert (first[1]["part"], second[1]["parts"]) == (1, 2)
    w.receive(*first, "proj@h")
    assert len(w.ledger.apps["proj"].chains) == 150
    w.receive(*second, "proj@h")
    assert len(w.ledger.apps["proj"].chains) == 150


def test_a_disabled_entry_is_neither_overdue_nor_missed():
    w, beat = world()
    w.run(10.0)
    kind, fields = next(beat.probe.reports._listing())
    w.kill(beat)
    fields["entries"][0]["enabled"] = False
    w.receive(kind, fields, "proj@h")
    w.run(100.0)
    assert w.entry("missed_total", "two") == 0
    assert w.entry("overdue_seconds", "two") == 0.0


def test_an_unknown_schedule_is_overdue_but_never_missed():
    w, beat = world({"odd": {"task": "t", "schedule": Strange(timedelta(seconds=5))}})
    w.run(30.0)
    assert w.entry("dispatched_total", "odd") == len(w.attempts["odd"]) == 5
    infos = next(f for f in w.ledger.families() if f.metric.name == "celery_beat_entry_info").samples
    assert infos[0][0][3] == "unknown"
    assert infos[0][0][4] == "beat_world.Strange"
    assert w.entry("next_due_timestamp_seconds", "odd") == pytest.approx(w.attempts["odd"][-1] + 5.0)
    w.kill(beat)
    w.run(60.0)
    assert w.entry("missed_total", "odd") == 0
    assert w.entry("overdue_seconds", "odd") > 50


def test_runs_are_followed_to_their_end():
    w, _ = world()
    w.run(3.0)
    uuid, (sent,) = "run-1", w.attempts["two"]
    assert uuid in w.ledger.watched
    w.ledger.run_event("started", uuid, "proj.add", sent + 0.2, w.now)
    w.ledger.run_event("retried", uuid, "proj.add", sent + 0.3, w.now)
    w.ledger.run_event("succeeded", uuid, "proj.add", sent + 1.5, w.now)
    assert uuid not in w.ledger.watched
    assert w.entry("last_success_timestamp_seconds", "two") == sent + 1.5
    assert w.entry("end_to_end_seconds", "two")[-1] == pytest.approx(1.5, abs=0.05)
    assert w.entry("last_failure_timestamp_seconds", "two") is None
    w.run(2.0)
    w.ledger.run_event("failed", "run-2", "proj.add", w.now, w.now)
    assert w.entry("last_failure_timestamp_seconds", "two") == w.now


def test_a_run_that_ends_before_the_slot_as_we_reckon_it_counts_too():
    """On a busy machine beat writes its last run down well before it sends: the next one comes that much early."""
    w, _ = world()
    w.run(3.0)
    w.ledger.run_event("succeeded", "run-1", "proj.add", w.attempts["two"][0] + 0.01, w.now)
    chain = w.ledger.apps["proj"].chains["two"]
    chain.first_due = chain.due = chain.anchor = chain.anchor + 0.3
    chain.first_due = chain.due = chain.anchor + 2.0
    w.run(1.8)
    sent = w.attempts["two"][1]
    assert sent < chain.anchor + 0.1
    w.ledger.run_event("succeeded", "run-2", "proj.add", sent + 0.01, w.now)
    assert sum(w.entry("end_to_end_seconds", "two")[:-1]) == 2


def test_what_has_ended_is_not_waited_for_again():
    """Heartbeats go on naming the last run of an entry."""
    w, _ = world({"rare": interval(30.0)})
    w.run(31.0)
    w.ledger.run_event("succeeded", "run-1", "proj.add", w.now, w.now)
    w.run(25.0)
    assert "run-1" not in w.ledger.watched
    assert w.ledger._ends == {"run-1": None}


def test_a_run_that_ended_is_not_waited_for_again_when_beats_report_is_late():
    """A worker's word of it was believed, it ended, and only then beat's own report comes: once is enough."""
    w, beat = world({"rare": interval(30.0)})
    w.run(61.0)
    reports = hold_back(w)
    w.run(30.0)
    del w.deliver
    w.kill(beat)
    w.run(40.0)
    uuid = f"run-{len(w.attempts['rare'])}"
    assert uuid in w.ledger.watched
    for _ in range(2):  # the second end is that of a redelivered message
        w.ledger.run_event("succeeded", uuid, "proj.add", w.now, w.now)
    for kind, fields in reports:
        w.receive(kind, fields, beat.probe.hostname)
    assert uuid not in w.ledger.watched
    assert sum(w.entry("end_to_end_seconds", "rare")[:-1]) == 1


def test_a_run_that_ended_before_beat_said_so_counts_too():
    w, beat = world()
    w.run(1.0)
    w.ledger.run_event("received", "run-1", "proj.add", w.now, w.now)
    w.ledger.run_event("received", "other", "not.scheduled", w.now, w.now)
    assert "other" not in w.ledger.watched
    w.ledger.run_event("succeeded", "run-1", "proj.add", w.now + 1.02, w.now)
    w.run(2.0)
    assert w.entry("last_success_timestamp_seconds", "two") == pytest.approx(START + 62.02, abs=0.01)
    assert "run-1" not in w.ledger.watched
    del beat


def test_a_revoked_run_is_neither_success_nor_failure():
    w, _ = world()
    w.run(3.0)
    w.ledger.run_event("revoked", "run-1", "proj.add", w.now, w.now)
    assert w.entry("last_success_timestamp_seconds", "two") is None
    assert w.entry("last_failure_timestamp_seconds", "two") is None


def test_more_entries_than_labels_share_one_series():
    w, _ = world({f"e{n}": interval(5.0) for n in range(30)})
    w.ledger.caps.limits["entry"] = 10
    w.run(11.0)
    families = {f.metric.name: dict(f.samples) for f in w.ledger.families()}
    counts = families["celery_beat_dispatched_total"]
    assert len(counts) == 11
    assert sum(counts.values()) == sum(map(len, w.attempts.values())) == 60
    assert counts["proj", "__other__"] == 40
    assert sum(families["celery_beat_lateness_seconds"]["proj", "__other__"][:-1]) == 40
    assert w.ledger.caps.overflow["entry"] > 0


def test_what_is_gone_for_a_week_is_forgotten():
    w, beat = world()
    w.run(10.0)
    w.kill(beat)
    for later in range(0, 30, 4):
        w.ledger.tick(w.now + 6 * 86_400 + later)
    assert w.value("celery_beats", "proj") == 0
    w.ledger.tick(w.now + 8 * 86_400)
    assert all(not f.samples for f in w.ledger.families() if f.metric.group == "beat")
    assert not w.ledger.tasks


@pytest.mark.parametrize("restart", [False, True])
def test_what_beats_dropped_stays_counted_when_they_are_forgotten(restart):
    """More beats than are remembered, one after the other."""
    w, _ = world()
    for number in range(25):
        fields = {"app": "proj", "boot": f"boot-{number}", "dropped": 2}
        w.receive("beat-heartbeat", fields, "proj@h")
        w.now += 1.0
        if restart:
            w.restart_monitor()
    assert len(w.ledger.apps["proj"].boots) < 25
    assert w.value("celeryscope_probe_dropped_total", "beat") == 50


def test_names_are_admitted_again_when_entries_are_gone():
    w, _ = world()
    w.run(5.0)
    w.ledger.caps.limits["entry"] = 1
    w.ledger._forget(w.ledger.apps["proj"], ["two"])
    assert w.ledger.caps.admit("entry", "next") == "next"


def test_strangers_cannot_fill_the_ledger():
    w, _ = world()
    for number in range(300):
        w.receive("beat-online", {"app": f"app{number}", "boot": "b"}, "x@h")
        w.receive("beat-online", {"app": "proj", "boot": f"b{number}"}, f"x@h{number}")
    assert len(w.ledger.apps) <= 100
    assert len(w.ledger.apps["proj"].boots) <= 20
    w.ledger.tasks.add("")
    for number in range(6_000):
        w.ledger.run_event("received", f"u{number}", "", w.now, w.now)
        w.ledger.run_event("succeeded", f"v{number}", "", w.now, w.now)
    assert len(w.ledger.watched) <= 5_000
    assert len(w.ledger._ends) <= 5_000
