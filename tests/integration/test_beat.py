"""A real beat and a worker with an embedded one, as they come and as they go."""

from __future__ import annotations

import pytest
from beat_farm import Farm
from helpers import eventually


@pytest.fixture(scope="module", name="farm")
def _farm(valkey_server, tmp_path_factory):
    farm = Farm(valkey_server, tmp_path_factory.mktemp("beat"), 5)
    yield farm
    farm.close()


def kinds(farm: Farm, app: str) -> list[str]:
    """Return what a beat said, in order; a worker may still have something to say of it when it is gone."""
    return [event.type for event in list(farm.seen) if event.app == app and event.type != "beat-received"]


def dispatched(farm: Farm, app: str) -> float:
    """Return how often the entry `two` was dispatched."""
    return farm.value("beat_dispatched_total", app, "two") or 0


def told(farm: Farm, app: str) -> int:
    """Return up to which run of the entry `two` workers said that they received it."""
    heard = [e for e in list(farm.seen) if (e.type, e.app, e.entry) == ("beat-received", app, "two")]
    ran = {line.split(" ")[0] for line in farm.client.lrange(f"truth:{app}:two", 0, -1)}
    assert {e.hostname.partition("@")[0] for e in heard} <= {"celery"}
    return max((e.dispatched for e in heard if e.uuid in ran), default=0)


def test_beats_runs_are_followed_from_slot_to_success(farm):
    """`celery beat` and `celery worker -B` side by side: counts, headers, ends, and a goodbye."""
    beat = farm.beat("alone", "persistent")
    worker = farm.worker("-B", "-s", str(farm.folder / "embedded-schedule"), APP="embedded")
    for app in ("alone", "embedded"):
        eventually(lambda app=app: dispatched(farm, app) >= 3, 60)
        eventually(lambda app=app: farm.value("beats", app) == 1)
    beat.popen.terminate()
    assert beat.popen.wait(20) == 0
    # The worker's word comes within a second of the run, and the next run a second later.
    eventually(lambda: told(farm, "alone") == dispatched(farm, "alone"))
    eventually(lambda: told(farm, "embedded") == dispatched(farm, "embedded"), 60, 0.02)
    # A worker that is told to stop while a task runs keeps that task's events to itself (Celery closes the
    # dispatcher unflushed), so it is told between two slots: right after a run ended, nothing else on its way.
    before = farm.ended("embedded")
    eventually(lambda: farm.ended("alone") == len(farm.truth("alone", "two")) == dispatched(farm, "alone"))
    eventually(lambda: before < farm.ended("embedded") == dispatched(farm, "embedded"), interval=0.02)
    worker.popen.terminate()
    assert worker.popen.wait(30) == 0
    for app in ("alone", "embedded"):
        truth = farm.truth(app, "two")
        # Both processes are gone; what they said last may still be on its way.
        eventually(lambda app=app, truth=truth: farm.ended(app) >= len(truth))
        sent = farm.value("beat_dispatched_total", app, "two")
        assert sent == sum(e.type == "beat-dispatched" and e.app == app and e.entry == "two" for e in farm.seen)
        assert farm.value("beat_never_ran", app, "two") == 0.0
        assert farm.value("beat_entry_info", app, "two", "farm.tick", "interval", "2s") == 1.0
        assert farm.value("beat_entry_info", app, "cron", "farm.tick", "crontab", "* * * * *") == 1.0
        assert 2 <= len(truth) <= sent
        assert farm.value("beat_last_success_timestamp_seconds", app, "two") >= truth[0]
        assert farm.ended(app) == len(truth)
    eventually(lambda: kinds(farm, "alone")[-1] == "beat-offline")
    assert kinds(farm, "alone")[0] == "beat-online"
    assert farm.value("beats", "alone") == 0
    # The user's own headers came through, ours beside them.
    assert all(line.endswith(" two yes") for line in farm.client.lrange("truth:alone:two", 0, -1))
    assert "failed and was skipped" not in beat.output + worker.output
