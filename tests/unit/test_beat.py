"""The probe inside beat: what it reports, what it leaves alone, and that nothing of it can hurt beat."""

from __future__ import annotations

import gc
import shelve
import threading
import weakref
from datetime import datetime, timedelta, timezone, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest
from beat_world import START, SimSender, Strange, World, interval
from celery import Celery, _state
from celery.beat import PersistentScheduler, Service
from celery.schedules import crontab, schedule, solar
from celery.signals import beat_init
from celeryscope.monitor import beat, beat_entries
from celeryscope.monitor.beat import Probe
from celeryscope.monitor.beat_runs import ENTRY_HEADER, RUN_HEADER, read
from celeryscope.monitor.guard import Guard

NOW = 1_900_000_000.0


class ClockedApp(Celery):
    """An app whose clock the test turns."""

    at = NOW

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, timezone.utc)


def make_app(name: str = "clocked") -> ClockedApp:
    app = ClockedApp(name, broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {
        "plain": {"task": "t.plain", "schedule": 2.0, "args": (1, "x")},
        "headed": {"task": "t.headed", "schedule": 3.0, "options": {"headers": {"mine": 1}, "priority": 5}},
        "queued": {"task": "t.queued", "schedule": crontab(), "options": {"queue": "special", "expires": 60}},
    }
    return app


def published(app: ClockedApp, scheduler: Any) -> list[Any]:
    """Two minutes of beat; all it published, in order, without what differs from run to run."""
    found = []
    with app.connection_for_write() as connection:
        channel = connection.channel()
        for _ in range(120):
            app.at += 1.0
            for _ in range(20):
                if scheduler.tick() > 0.5:
                    break
                app.at += 0.001
            for queue in ("celery", "special"):
                while message := channel.basic_get(queue, no_ack=True):
                    headers = {k: v for k, v in message.headers.items() if k not in {"id", "root_id", "origin"}}
                    found.append((headers, message.decode(), message.properties["priority"]))
    return found


@pytest.fixture(name="current_app")
def _current_app():
    """Schedules read back from a shelve belong to the current app; leave it as it was."""
    before = _state._tls.current_app
    yield
    _state._set_current_app(before)


@pytest.mark.usefixtures("current_app")
def test_beat_sends_the_same_with_and_without_the_probe(tmp_path):
    """The same messages in the same order apart from our header, and the same stored options."""
    sent, stored = {}, {}
    for way in ("without", "with"):
        app = make_app(way)
        app.set_current()
        path = str(tmp_path / way)
        scheduler = PersistentScheduler(app, schedule_filename=path)
        if way == "with":
            Probe(scheduler, clock=lambda app=app: app.at, sender=SimSender).attach()
        sent[way] = published(app, scheduler)
        scheduler.close()
        with shelve.open(path) as store:
            stored[way] = {n: (e.options, e.args, e.total_run_count) for n, e in store["entries"].items()}
    names = [headers.pop(ENTRY_HEADER) for headers, _, _ in sent["with"]]
    runs = [read(headers.pop(RUN_HEADER)) for headers, _, _ in sent["with"]]
    assert sent["with"] == sent["without"]
    assert len(names) > 90
    assert names == [
        {"t.plain": "plain", "t.headed": "headed", "t.queued": "queued"}[h[0]["task"]] for h in sent["with"]
    ]
    for name in set(names):
        counts = [run["dispatched"] for run, entry in zip(runs, names, strict=True) if entry == name]
        assert counts == list(range(1, len(counts) + 1))
    assert stored["with"] == stored["without"]
    assert RUN_HEADER not in str(stored["with"])
    assert ENTRY_HEADER not in str(stored["with"])


def test_what_beats_own_tasks_publish_in_passing_carries_no_header():
    """A lazy argument of the user's that sends another task, and a publish from another thread."""
    w = World({"two": interval(2.0)})
    b = w.start()
    headers: list[dict[str, Any]] = [{}, {}, {}]

    def dispatch(scheduler: Any, entry: Any) -> Any:
        b.probe._publishing(sender="another.task", headers=headers[0])
        other = threading.Thread(target=b.probe._publishing, kwargs={"sender": "proj.add", "headers": headers[1]})
        other.start()
        other.join()
        b.probe._publishing(sender="proj.add", headers=headers[2])
        return SimpleNamespace(id="x")

    w.dispatch = dispatch  # type: ignore[method-assign]
    w.run(2.1)
    assert headers[:2] == [{}, {}]
    assert headers[2][ENTRY_HEADER] == "two"
    sent = w.now - 0.001
    assert read(headers[2][RUN_HEADER]) == {
        "app": "proj", "boot": b.probe.boot, "dispatched": 1, "failed": 0, "skipped": 0,
        "sent": pytest.approx(sent, abs=0.2), "first": pytest.approx(sent, abs=0.2), "due": START + 2.0,
    }  # fmt: skip
    b.probe._publishing(sender="proj.add", headers=headers[0])
    assert headers[0] == {}


def events(w: World, kind: str) -> list[dict[str, Any]]:
    return [fields for name, fields in w.wire if name == kind]


def test_a_beats_life_in_events():
    w = World({"two": interval(2.0), "cron": {"task": "t", "schedule": crontab(minute="0"), "options": {"queue": "q"}}})
    b = w.start()
    w.run(25.0)
    b.probe.reports.leave()
    w.deliver(b)
    kinds = [kind for kind, _ in w.wire]
    assert kinds[0] == "beat-online"
    assert kinds[-2:] == ["beat-heartbeat", "beat-offline"]
    assert kinds.count("beat-offline") == 1
    assert [e["seq"] for e in events(w, "beat-heartbeat")] == [1, 2, 3, 4]
    sent = events(w, "beat-dispatched")
    assert [(e["seq"], e["dispatched"], e["entry"], e["task"]) for e in sent] == [
        (n, n, "two", "proj.add") for n in range(1, len(sent) + 1)
    ]
    assert {e["boot"] for _, e in w.wire} == {b.probe.boot}
    assert all(e["sent"] - e["due"] < 0.05 for e in sent)
    listed = {item["entry"]: item for item in events(w, "beat-schedule")[0]["entries"]}
    assert listed["cron"]["queue"] == "q"
    assert listed["cron"]["spec"] == "0 * * * *"
    assert listed["two"]["next_due"] == pytest.approx(w.start_time + 2.0)
    last = events(w, "beat-heartbeat")[-1]
    assert last["totals"]["two"] == [len(sent), 0, sent[-1]["sent"]]
    assert last["uuids"]["two"] == sent[-1]["uuid"]


def test_a_failed_dispatch_is_reported_and_the_schedulers_error_unchanged():
    w = World({"two": interval(2.0)})
    b = w.start()
    w.failing = True
    with pytest.raises(ConnectionError, match="no broker"):
        b.scheduler.apply_async(b.scheduler.schedule["two"])
    w.deliver(b)
    (failed,) = events(w, "beat-dispatch-failed")
    assert (failed["exception"], failed["failed"], failed["dispatched"]) == ("ConnectionError", 1, 0)


def test_a_report_that_waits_for_the_broker_keeps_no_frames_of_the_failed_publish():
    """A traceback holds connections and messages; thousands of reports may wait while the broker is away."""

    class Refused(ConnectionError):
        """Unlike a builtin, it can be referred to weakly."""

    def refuse(scheduler: Any, entry: Any) -> Any:
        raise Refused

    w = World({"two": interval(2.0)})
    b = w.start()
    w.dispatch = refuse  # type: ignore[method-assign]
    try:
        b.scheduler.apply_async(b.scheduler.schedule["two"])
    except Refused as raised:
        error = weakref.ref(raised)
    gc.collect()
    assert error() is None


def test_a_scheduler_that_decides_against_a_run_has_dispatched_nothing():
    w = World({"two": interval(2.0)})
    b = w.start()
    w.dispatch = lambda scheduler, entry: None  # type: ignore[method-assign, assignment]
    w.run(5.0)
    assert not events(w, "beat-dispatched")
    assert b.probe.busy is None


def test_a_last_run_in_the_store_that_is_our_own_is_told_as_ours_alone():
    """RedBeat writes it down before it dispatches: a listing in between would hide the slots that were let pass."""
    w = World({"two": interval(2.0)})
    w.workers = False
    b = w.start()
    w.run(5.0)
    stored = w.kill(b)
    w.run(6.0)
    successor = w.start(stored=stored)
    listed = []

    def dispatch(scheduler: Any, entry: Any) -> Any:
        successor.probe.schedule = {
            "two": SimpleNamespace(**vars(entry) | {"last_run_at": datetime.fromtimestamp(w.now, timezone.utc)})
        }
        listed.extend(successor.probe.reports._listing())
        return SimpleNamespace(id="x")

    w.dispatch = dispatch  # type: ignore[method-assign]
    successor.step()
    for kind, fields in listed:
        w.receive(kind, fields, "proj@h")
    (item,) = listed[0][1]["entries"]
    assert (item["dispatched"], item["last_dispatch"]) == (0, None)
    w.deliver(successor)
    gap = successor.probe.counts["two"].last - w.attempts["two"][-1]
    assert w.entry("missed_total", "two") == int(gap // 2.0) - 1 > 0


def test_while_a_publish_hangs_the_heartbeat_confirms_nothing_later():
    w = World({"two": interval(2.0)})
    b = w.start()
    w.run(3.0)
    before = w.now
    inside: list[dict[str, Any]] = []

    def hang(scheduler: Any, entry: Any) -> Any:
        w.now += 40.0
        inside.append(b.probe.reports._heartbeat()[1])
        return SimpleNamespace(id="x")

    w.dispatch = hang  # type: ignore[method-assign]
    b.scheduler.apply_async(b.scheduler.schedule["two"])
    assert inside[0]["asof"] == before
    assert b.probe.reports._heartbeat()[1]["asof"] == w.now


def test_no_heartbeat_that_counts_a_dispatch_goes_ahead_of_its_report():
    """The report alone says when the run was due. A heartbeat may be made at any moment: here as early as it can."""
    w = World({"two": interval(2.0)})
    b = w.start()
    w.run(3.0)
    before, put = b.probe.counts["two"].dispatched, b.probe.sender.put
    said: list[dict[str, Any]] = []

    def put_and_beat(make: Any) -> None:
        said.append(b.probe.reports._heartbeat()[1])
        put(make)

    b.probe.sender.put = put_and_beat  # type: ignore[method-assign]
    began = w.now
    b.scheduler.apply_async(b.scheduler.schedule["two"])
    assert [heartbeat["totals"]["two"][0] for heartbeat in said] == [before]
    assert said[0]["asof"] == began
    assert b.probe.reports._heartbeat()[1]["totals"]["two"][0] == before + 1


def test_an_unchanged_schedule_costs_no_second_look():
    w = World({"two": interval(2.0)})
    b = w.start()
    w.run(60.0)
    assert len(events(w, "beat-schedule")) == 1
    del b.scheduler.schedule["two"]
    w.run(5.0)
    assert events(w, "beat-schedule")[1]["entries"] == []
    w.run(300.0)
    assert len(events(w, "beat-schedule")) == 3


def test_what_did_not_change_lately_is_not_repeated():
    w = World({"two": interval(2.0), "rare": interval(15.0)})
    b = w.start()
    w.run(16.0)
    del b.scheduler.schedule["rare"]
    w.run(60.0)
    totals = {event["seq"]: set(event["totals"]) for event in events(w, "beat-heartbeat")}
    assert totals[7] == totals[8] == {"two"}
    assert totals[6] == {"two", "rare"}


# --- entries of every shape ---


class Raising(schedule):
    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        raise RuntimeError("no estimate")


def entry(rule: Any, last: Any, **more: Any) -> Any:
    return SimpleNamespace(name="e", task="t", schedule=rule, last_run_at=last, options={}, total_run_count=0, **more)


def stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, timezone.utc)


def test_due_follows_the_later_of_the_entrys_last_run_and_our_own():
    assert beat_entries.due(entry(schedule(2.0), stamp(-30)), None, NOW) == NOW - 28
    assert beat_entries.due(entry(schedule(2.0), stamp(-30)), NOW - 2.5, NOW) == NOW - 0.5
    assert beat_entries.due(entry(schedule(2.0), stamp(-2.4)), NOW - 2.5, NOW) == pytest.approx(NOW - 0.4)
    assert beat_entries.due(entry(schedule(2.0), None), NOW - 2.5, NOW) == NOW - 0.5


def test_a_crontab_is_due_on_the_minute():
    rule = crontab(nowfun=lambda: stamp(0))
    rule.tz = timezone.utc
    minute = NOW - NOW % 60
    assert beat_entries.due(entry(rule, stamp(-200)), None, NOW) == minute - 180 + 60 * (minute - 180 <= NOW - 200)


@pytest.mark.parametrize("last", [None, "yesterday", stamp(-30 * 365 * 86_400), datetime(1, 1, 2)])  # noqa: DTZ001
def test_what_never_ran_is_due_at_its_start_time_or_nobody_knows_when(last):
    assert beat_entries.due(entry(schedule(2.0), last), None, NOW) is None
    start = SimpleNamespace(start_time=stamp(60))
    assert beat_entries.due(entry(schedule(2.0), last, model=start), None, NOW) == NOW + 60


def test_a_naive_last_run_is_utc_as_it_is_for_celery():
    naive = stamp(-5).replace(tzinfo=None)
    assert beat_entries.due(entry(schedule(2.0), naive), None, NOW) == NOW - 3


@pytest.mark.parametrize("rule", [Raising(2.0), None, object(), Strange(timedelta(seconds=2))])
def test_a_schedule_of_an_unknown_class_is_described_by_its_class_alone(rule):
    said = beat_entries.describe(rule)
    assert said["kind"] == "unknown"
    assert said["spec"].endswith(type(rule).__qualname__)
    assert (said["tz"], said["every"]) == (None, None)


def test_schedules_of_unknown_classes_are_asked_a_few_at_a_tick():
    """All in the end; each tick stops once the user's code has taken its time."""
    rule = Strange(timedelta(seconds=50))
    w = World({f"e{n}": {"task": "t", "schedule": rule} for n in range(250)} | {"two": interval(2.0)})
    b = w.start()
    seconds = iter(range(10_000))
    b.probe._monotonic = lambda: next(seconds) * 0.0002  # every look at the clock takes a while
    b.scheduler.tick()
    assert len(b.probe.unknown_due) == 3
    ticks = 1
    while b.probe._unasked is not None:
        b.scheduler.tick()
        ticks += 1
    assert len(b.probe.unknown_due) == 250
    assert ticks == pytest.approx(250 / 3, abs=2)
    w.run(5.0)
    w.ledger.tick(w.now)
    assert w.entry("next_due_timestamp_seconds", "e249") == pytest.approx(START + 50.0, abs=0.2)


def test_what_a_new_schedule_lacks_is_no_longer_due():
    w = World({"odd": {"task": "t", "schedule": Strange(timedelta(seconds=50))}, "two": interval(2.0)})
    b = w.start()
    w.run(5.0)
    assert list(b.probe.unknown_due) == ["odd"]
    b.scheduler.schedule.pop("odd")
    w.run(5.0)
    assert not b.probe.unknown_due


def test_descriptions():
    utc = crontab(minute=[0, 1, 2, 30], hour=range(8, 18), day_of_week="mon-fri")
    utc.tz = timezone.utc
    assert beat_entries.describe(utc)["spec"] == "0-2,30 8-17 * * mon-fri"
    assert beat_entries.describe(utc)["tz"] == "UTC"
    offset = crontab()
    offset.tz = timezone(timedelta(hours=2))
    assert beat_entries.describe(offset)["tz"] == "UTC+02:00"
    assert beat_entries.describe(schedule(0.25)) == {"kind": "interval", "spec": "0.25s", "tz": None, "every": 0.25}
    assert beat_entries.describe(schedule(0))["kind"] == "unknown"
    sun = beat_entries.describe(solar("dawn_civil", -37.8, 144.96))
    assert (sun["kind"], sun["spec"]) == ("solar", "dawn_civil -37.8 144.96")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("Europe/Vienna", "Europe/Vienna"),
        (":Asia/Tokyo", "Asia/Tokyo"),
        ("", "UTC"),
        ("/x/zoneinfo/Etc/GMT", "Etc/GMT"),
    ],
)
def test_local_time_has_the_name_of_its_setting(monkeypatch, setting, name):
    """Celery 5.4 has a class of its own for local time; newer ones take the system's zone."""
    monkeypatch.setenv("TZ", setting)
    assert beat_entries.zone_name(type("LocalTimezone", (tzinfo,), {})()) == name


def test_local_time_has_the_name_of_the_systems_zone(monkeypatch, tmp_path):
    monkeypatch.delenv("TZ", raising=False)
    link = tmp_path / "localtime"
    assert beat_entries.local_zone(link) == "UTC"
    link.symlink_to("/usr/share/zoneinfo/Europe/Vienna")
    assert beat_entries.local_zone(link) == "Europe/Vienna"
    link.unlink()
    link.write_text("TZif2, a copy")
    assert beat_entries.local_zone(link) is None
    assert beat_entries.zone_name(object()) is None


def test_long_names_are_cut_and_stay_apart():
    first, second = (beat_entries.wire_name("x" * 5000 + end) for end in "ab")
    assert first != second
    assert len(first) == len(second) == beat_entries.LONGEST_NAME
    assert beat_entries.wire_name(7) == "7"
    assert beat_entries.wire_name("")


@pytest.mark.guard_swallows
@pytest.mark.parametrize(
    "broken",
    [
        {"schedule": Raising(timedelta(seconds=2))},
        {"last_run_at": None},
        {"last_run_at": stamp(-30 * 365 * 86_400)},
        {"name": "n" * 5000},
        {"options": None},
        {"task": None},
        {"schedule": SimpleNamespace()},
    ],
)
def test_beat_runs_on_whatever_its_entries_are(broken):
    w = World({"two": interval(2.0)})
    b = w.start()
    w.run(1.0)
    odd = SimpleNamespace(**{**vars(b.scheduler.schedule["two"]), **broken})
    assert b.scheduler.apply_async(odd).id == "run-1"
    w.run(5.0)
    assert len(w.attempts["two"]) + len(w.attempts["n" * 5000]) >= 3
    assert w.value("celery_beats", "proj") == 1


@pytest.mark.guard_swallows
@pytest.mark.parametrize("method", ["_begin", "_end", "_ticked"])
def test_a_bug_of_ours_is_counted_and_beat_does_not_notice(monkeypatch, method):
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Probe, method, bug)
    before = sum(Guard.errors.values())
    w = World({"two": interval(2.0)})
    w.start()
    w.run(9.0)
    assert len(w.attempts["two"]) == 4
    assert sum(Guard.errors.values()) > before


def test_ten_thousand_entries_are_listed_in_parts():
    w = World({"one": interval(500.0)})
    b = w.start()
    w.run(1.0)
    template = b.scheduler.schedule["one"]
    b.probe.schedule = {f"e{n}": template for n in range(10_500)}
    b.probe.reports.__class__  # noqa: B018
    w.wire.clear()
    import celeryscope.monitor.beat_reports as reports

    pause, reports.PAUSE = reports.PAUSE, 0.0
    try:
        parts = [fields for _, fields in b.probe.reports._listing()]
    finally:
        reports.PAUSE = pause
    assert len(parts) == 100
    assert max(len(part["entries"]) for part in parts) == 100
    assert {part["parts"] for part in parts} == {100}
    assert parts[0]["entries"][0]["entry"] == "e0"


# --- how it gets in ---


@pytest.fixture(name="watched")
def _watched(monkeypatch):
    found: list[Any] = []
    monkeypatch.setattr(beat, "watch", found.append)
    return found


def test_connect_watches_its_own_app_once(watched):
    mine, other = make_app("mine"), make_app("other")
    beat.connect(mine)
    beat.connect(mine)
    for app in (mine, other):
        service = Service(app, scheduler_cls="celery.beat:Scheduler")
        beat_init.send(sender=service)
    assert [scheduler.app.main for scheduler in watched] == ["mine"]


def test_connect_comes_before_receivers_that_were_there_already(watched):
    """RedBeat's receiver waits for its lock there; a standby must be seen while it waits."""
    order: list[str] = []

    def redbeat(sender: Any = None, **_: Any) -> None:
        order.append(f"redbeat after {len(watched)}")

    beat_init.connect(redbeat)
    try:
        app = make_app("early")
        beat.connect(app)
        beat_init.send(sender=Service(app, scheduler_cls="celery.beat:Scheduler"))
    finally:
        beat_init.disconnect(redbeat)
    assert order == ["redbeat after 1"]


def test_a_scheduler_is_wrapped_once(monkeypatch):
    monkeypatch.setattr(beat, "Sender", lambda line, poll: SimSender(poll))
    app = make_app("once")
    scheduler = Service(app, scheduler_cls="celery.beat:Scheduler").scheduler
    probe = beat.watch(scheduler)
    tick = scheduler.tick
    assert beat.watch(scheduler) is probe
    assert scheduler.tick is tick


def test_close_may_come_twice():
    w = World({"two": interval(2.0)})
    b = w.start()
    w.run(1.0)
    b.scheduler.close()
    b.scheduler.close()
    w.deliver(b)
    w.deliver(b)
    assert len(events(w, "beat-offline")) == 1
