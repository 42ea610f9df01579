"""The monitor without any broker: what is restored, who is asked at the start, and what is said when one is away."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.monitor import service
from celeryscope.monitor.broker import BrokerConfig, BrokerError
from celeryscope.monitor.configuration import load
from celeryscope.monitor.events import TaskEvent
from celeryscope.monitor.garbage import held_back, keep
from celeryscope.monitor.service import Monitor, StartError
from celeryscope.monitor.settings import MonitorSettings

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000.0


def monitor(folder: Path | None = None, *brokers: str, away: frozenset[str] = frozenset()) -> Monitor:
    options: dict[str, Any] = {"broker_url": brokers or ("redis://h",), "state_dir": str(folder) if folder else None}

    def probe(config: BrokerConfig) -> None:
        if config.name in away:
            raise BrokerError(f"{config.label}: refused")

    return Monitor(load(MonitorSettings, options=options, environ={}), clock=lambda: NOW, probe=probe)


def sent(uuid: str) -> TaskEvent:
    return TaskEvent(type="task-sent", hostname="p@h", timestamp=NOW, uuid=uuid, name="shop.pay", queue="q")


def value(given: Monitor, metric: str, broker: str = "") -> dict[tuple[str, ...], Any]:
    return {
        labels: number
        for family in given.watches[broker].families()
        if family.metric.name == metric
        for labels, number in family.samples
    }


def test_live_tasks_survive_and_each_broker_gets_its_own_back(tmp_path: Path) -> None:
    """What was saved for a broker comes back to the broker of that name, and to no other."""
    with closing(monitor(tmp_path, "a=redis://a", "b=redis://b")) as first:
        first.restore()
        first.watches["a"].feed([sent("1"), sent("2")], NOW)
        assert first.save(clean=True)
    with closing(monitor(tmp_path, "a=redis://a", "c=redis://c")) as second:
        second.restore()
        assert value(second, "celery_tasks_waiting", "a") == {("shop.pay", "q"): 2}
        assert value(second, "celery_tasks_waiting", "c") == {}


def test_counters_that_went_on_after_a_clean_stop_do_not_go_back_to_it(tmp_path: Path) -> None:
    """Killed before its first save: Prometheus has seen more than the clean stop before it saved. From 0 then."""
    with closing(monitor(tmp_path)) as first:
        first.restore()
        first.watches[""].feed([sent("1"), sent("2")], NOW)
        first.save(clean=True)
    with closing(monitor(tmp_path)) as second:
        second.restore()
        assert value(second, "celery_task_sent_total") == {("shop.pay", "q"): 2}
        assert second._file is not None
        second._file.begin()
    with closing(monitor(tmp_path)) as third:
        third.restore()
        assert value(third, "celery_task_sent_total") == {("shop.pay", "q"): 0}
        assert value(third, "celery_tasks_waiting") == {("shop.pay", "q"): 2}
        assert value(third, "celeryscope_events_total")[("task-sent",)] == 0


def test_senseless_parts_cost_nothing_but_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of three brokers cannot be restored: one warning, and the third one is as it was."""
    brokers = ("a=redis://a", "b=redis://b", "c=redis://c")
    with closing(monitor(tmp_path, *brokers)) as first:
        first.restore()
        first.watches["c"].feed([sent("1")], NOW)
        good = first.watches["c"].pipeline.dump(clean=True)
        assert first._file is not None
        first._file.save({"a": {}, "b": {"runs": 3}, "c": good})
    with closing(monitor(tmp_path, *brokers)) as second, caplog.at_level(logging.WARNING):
        second.restore()
        assert value(second, "celery_tasks_waiting", "c") == {("shop.pay", "q"): 1}
    assert caplog.text.count("set aside as state.damaged-") == 1


def test_what_was_half_taken_in_is_freed_and_not_kept_for_good(tmp_path: Path) -> None:
    """It refers to itself, and what the process begins with is never looked at again by the garbage collector."""
    with closing(monitor(tmp_path)) as first:
        first.restore()
        first.watches[""].feed([sent("1")], NOW)
        assert first._file is not None
        state = first.watches[""].pipeline.dump(clean=True)
        state["runs"]["columns"]["held"] = []
        first._file.save({"": state}, last=True)
    try:
        with held_back():
            second = monitor(tmp_path)
            keep()
        discarded = weakref.ref(second.watches[""].pipeline.tasks)
        with closing(second):
            with held_back():
                second.restore()
                keep()
            gc.collect()
            assert discarded() is None
    finally:
        gc.unfreeze()


def test_a_page_and_a_dump_at_once_hold_the_collector_back_until_both_have_ended() -> None:
    """Neither lets it loose upon the other, and none leaves it off for good."""
    assert gc.isenabled()
    page, dump = held_back(), held_back()
    with page:
        dump.__enter__()
    assert not gc.isenabled()
    dump.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_disk_that_hangs_holds_up_the_end_for_a_while_and_not_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end is then like a crash: nothing is called clean, and nobody else has the directory meanwhile."""
    monkeypatch.setattr(service, "SAVE_SECONDS", 0.1)
    answers = threading.Event()
    given = monitor(tmp_path)
    given.restore()
    file = given._file
    assert file is not None
    write = file._write

    def hang(content: bytes) -> None:
        assert gc.isenabled()  # whoever waits for the disk does not stop it
        answers.wait(60)
        write(content)

    monkeypatch.setattr(file, "_write", hang)
    try:
        with caplog.at_level(logging.WARNING):
            given.stop()
        assert "the disk does not answer" in caplog.text
        with pytest.raises(StartError, match="held by another monitor"):
            monitor(tmp_path).restore()
    finally:
        answers.set()
        given._last.join(60)
        given.close()


def test_the_state_file_reports_itself(tmp_path: Path) -> None:
    """As a collector: whether the last save worked, how long it took, and when it was."""
    with closing(monitor(tmp_path)) as given:
        given.restore()
        given.save(clean=False)
        facts = {family.metric.name: dict(family.samples) for family in given.families()}
    assert facts["celeryscope_collector_success"] == {("state",): 1}
    assert facts["celeryscope_sample_timestamp_seconds"] == {("state",): NOW}


def test_without_a_state_directory_nothing_is_said_of_it() -> None:
    given = monitor()
    given.restore()
    assert list(given.families()) == []


def test_one_of_several_brokers_away_is_a_warning_and_all_of_them_are_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    several = ("a=redis://a", "b=redis://:secret@b")
    with caplog.at_level(logging.WARNING):
        monitor(None, *several, away=frozenset({"b"})).probe(threading.Event())
    assert "--broker: broker b (redis://:***@b): refused; trying again until it answers" in caplog.text
    with pytest.raises(StartError) as caught:
        monitor(None, *several, away=frozenset({"a", "b"})).probe(threading.Event())
    assert sorted(caught.value.problems) == [
        "--broker: broker a (redis://a): refused",
        "--broker: broker b (redis://:***@b): refused",
    ]


def test_nobody_is_waited_for_once_we_are_told_to_stop() -> None:
    """SIGTERM while a broker does not answer: out at once, and not an error."""
    never = threading.Event()

    def probe(_config: BrokerConfig) -> None:
        never.wait()

    given = Monitor(load(MonitorSettings, options={"broker_url": ("redis://h",)}, environ={}), probe=probe)
    stop = threading.Event()
    stop.set()
    given.probe(stop)
    never.set()


def test_an_unforeseen_error_of_a_probe_is_a_line_too() -> None:
    def probe(_config: BrokerConfig) -> None:
        raise RuntimeError("redis://:secret@h is odd")

    options = {"broker_url": ("redis://h",)}
    given = Monitor(load(MonitorSettings, options=options, environ={}), probe=probe)
    with pytest.raises(StartError, match=r"redis://:\*\*\*@h is odd"):
        given.probe(threading.Event())
