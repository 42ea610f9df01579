"""A bad network between monitor and broker: cut inside messages, too slow, cut off by Redis. What is lost is said."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from celeryscope.exporters.prometheus import Exposition
from celeryscope.exporters.reading import Page
from celeryscope.monitor import sources
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.catalog import METRICS
from celeryscope.monitor.events import Event, TaskEvent
from celeryscope.monitor.settings import MonitorSettings
from celeryscope.monitor.watch import BrokerWatch
from chaos_tools import HEARD, Fleet, MonitorProcess, Proxy, balanced, counts, own_count
from helpers import Process, RedisServer, eventually, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = Path(__file__).resolve().parent.parent / "apps"


@pytest.fixture(name="through")
def _through(valkey: RedisServer) -> Iterator[Proxy]:
    """A way to the broker that is the monitor's alone."""
    proxy = Proxy(valkey.port)
    yield proxy
    proxy.close()


class Watched(BrokerWatch):
    """A monitor in the test's own process, so that it need not wait as long as one outside; keeps the ids it saw."""

    def __init__(self, url: str) -> None:
        self.uuids: list[str] = []
        super().__init__(MonitorSettings(), BrokerConfig.from_url(url), METRICS)

    def feed(self, events: list[Event], now: float) -> None:
        self.uuids += [event.uuid for event in events if isinstance(event, TaskEvent)]
        super().feed(events, now)

    @property
    def page(self) -> Page:
        return Page(Exposition({"": self}, own=False).render().decode())


@pytest.mark.parametrize("cuts", [40, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)])])
def test_cut_inside_messages_at_many_offsets(
    valkey: RedisServer, through: Proxy, cuts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event that nobody sent, nothing malformed, no series of it; and the account is exact, cut by cut."""
    monkeypatch.setattr(sources, "STEADY", 0.0)  # made anew at once
    dice = random.Random(cuts)
    fleet, watch = Fleet(valkey.url, rate=300), Watched(through.url)
    watch.start()
    fleet.start()
    try:
        eventually(lambda: watch.source.connected and len(watch.page.by("worker", name=PROCESSED)) == 3, 60)
        fleet.work()
        for cut in range(1, cuts + 1):
            # Small offsets end in the first frame's head; others in the middle of base64, JSON, or of a length.
            through.cut_after(dice.choice([cut, dice.randrange(1, 8_000)]))
            eventually(lambda cut=cut: watch.source.reconnects >= cut, 30, 0.01)
        fleet.rest()
        account = balanced(watch, counts(fleet))
    finally:
        watch.stop()
        fleet.stop()
    assert set(watch.uuids) <= fleet.uuids
    assert account.missed > 0
    page = watch.page
    assert set(page.by("worker", name=PROCESSED)) == set(counts(fleet)())
    assert {labels["task"] for labels, _ in page.samples("celery_task_started_total")} <= {Fleet.TASK, "unknown"}
    assert {labels["type"] for labels, value in page.samples("celeryscope_events_total") if value} == {
        *("task-received", "task-started", "task-succeeded", "worker-online", "worker-heartbeat", "celeryscope-echo")
    }
    torn = sum(map(ends_inside, through.cut_lines))
    assert len(through.cut_lines) == cuts
    assert torn > 0.9 * cuts
    print(f"{cuts} cuts, {torn} of them inside a message: {account.seen} starts seen, {account.missed} missed")


CUT_OFF = "overcoming of output buffer limits"
"""What Redis's own log says of a client that it drops."""
PROCESSED = "celery_worker_processed_total"


def ends_inside(line: bytes) -> bool:
    """Whether all that a subscription was told ends in the middle of a message."""
    assert len(line) < HEARD
    return not line.endswith(b"}}\r\n")  # kombu's envelope, and the end of Redis's frame


@pytest.mark.parametrize("tasks", [150, pytest.param(1_500, marks=pytest.mark.soak)])
def test_slow_network(valkey: RedisServer, through: Proxy, tmp_path: Path, tasks: int) -> None:
    """At 50 kB/s and 0.1 s each way the lag is shown, the worker's count is the tasks' own, and nothing is lost."""
    through.throttle(50_000, delay=0.1)
    truth = tmp_path / "truth"
    truth.touch()
    env = {"BROKER": valkey.url, "TRUTH": str(truth), "PYTHONPATH": str(APPS)}
    argv = worker_argv("exactly", "-c", "2", "-n", "w@slow", "-Q", "default")
    producer = [sys.executable, "-m", "exactly", "flood", str(tasks)]
    with (
        running(MonitorProcess(tmp_path, through.url)) as monitor,
        running(Process(argv, log=tmp_path / "worker.log", cwd=tmp_path, env=env)),
        Celery(broker=valkey.url, set_as_current=False) as app,
    ):
        eventually(lambda: monitor.ready() and list(monitor.page.samples(PROCESSED)), 60)
        assert monitor.total("celeryscope_event_lag_seconds") > 0.15
        with running(Process(producer, log=tmp_path / "producer.log", cwd=tmp_path, env=env)):
            # More than the line carries: what is late waits in Redis.
            eventually(lambda: monitor.total("celeryscope_event_lag_seconds") > 2, 60)
            account = balanced(monitor, own_count(app, tasks), 240)
        assert (account.seen, account.missed) == (tasks, 0)
        assert truth.read_text().count("started ") == tasks
        assert monitor.total("celeryscope_reconnects_total") == 0
        eventually(lambda: 0.15 < monitor.total("celeryscope_event_lag_seconds") < 2, 60)


@pytest.mark.parametrize("overflows", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(1_800)])])
def test_cut_off_by_redis_because_it_lags(tmp_path: Path, overflows: int) -> None:
    """Redis drops a subscriber whose output buffer is full: a reconnect each time, and each start of it is missed."""
    server = RedisServer(tmp_path, "--client-output-buffer-limit", "pubsub 512kb 128kb 2")
    proxy = Proxy(server.port, window=4096)
    fleet = Fleet(server.url, rate=200, padding=6_000)
    try:
        with running(MonitorProcess(tmp_path, proxy.url)) as monitor:
            fleet.start()
            eventually(lambda: monitor.ready() and monitor.knows(fleet), 60)
            for overflow in range(1, overflows + 1):
                proxy.throttle(30_000)
                fleet.work()
                eventually(lambda n=overflow: server.process.output.count(CUT_OFF) >= n, 60)  # type: ignore[union-attr]
                fleet.rest()
                proxy.throttle()
                eventually(lambda n=overflow: monitor.total("celeryscope_reconnects_total") >= n, 60)
                eventually(monitor.ready, 60)
            account = balanced(monitor, counts(fleet), 120)
            assert account.missed > 0
            assert monitor.total("celeryscope_reconnects_total") == server.process.output.count(CUT_OFF)  # type: ignore[union-attr]
            assert "cut us off because we lagged" in monitor.output
            print(f"{overflows} overflows: {account.seen} starts seen, {account.missed} missed")
    finally:
        fleet.stop()
        proxy.close()
        server.stop()
