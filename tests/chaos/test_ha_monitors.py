"""Two monitors, one real Prometheus with the shipped rules: one truth, whoever is restarted, and no false alarm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celeryscope.dashboards import rules
from celeryscope.dashboards.rules_cli import outputs, write
from celeryscope.dashboards.thresholds import RulesSettings, defaults
from chaos_tools import Fleet, MonitorProcess
from helpers import RedisServer, eventually, free_port
from watching import Prometheus

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

NAMES = ("one", "two")
TASKS = 400
SLOW = 90
STARTED = "celery_task_started_total"
FIRED = 'count by (alertname, scope) (count_over_time(ALERTS{{alertstate="firing"}}[{seconds}s]))'
ANOTHER_IS_UP = ("MonitorDown", "instance")
WATCHDOG = ("Watchdog", "")


def impatient() -> RulesSettings:
    """The shipped thresholds with little patience: what is wrong for five seconds fires; a starved machine does not."""
    waits = [name for name in RulesSettings.model_fields if name.endswith("_for")]
    return defaults(**dict.fromkeys(waits, "5s"), recording_interval="1s")


class Pair:
    """Both monitors, each with its state directory, address and memory of what it showed; and who scrapes them."""

    def __init__(self, folder: Path, fleet: Fleet, url: str, stack: ExitStack) -> None:
        self.folder, self.fleet, self.url, self.stack = folder, fleet, url, stack
        self.up: dict[str, MonitorProcess] = {}
        # Nobody connects from these addresses: while one is away, its port is not given to somebody's connection.
        self.addresses = {name: f"127.0.0.{2 + NAMES.index(name)}:{free_port()}" for name in NAMES}
        self.lives = 0
        self.since = 0.0
        for name in NAMES:
            self.start(name)
        write(folder, outputs(impatient()))
        built = [folder / file for file in (rules.RECORDINGS_FILE, rules.ALERTS_FILE)]
        jobs = {"celeryscope": ",".join(self.addresses.values())}
        self.prometheus = Prometheus(folder / "prometheus", jobs, built)
        stack.callback(self.prometheus.stop)

    def start(self, name: str) -> None:
        """Start it, on the address that it always has, and with the state that it left."""
        self.lives += 1
        options = ("--listen", self.addresses[name], "--state-dir", self.folder / f"state-{name}")
        paces = ("--sample-interval", "1", "--worker-timeout", "15")
        monitor = MonitorProcess(self.folder, self.url, *options, *paces, name=f"{name}-{self.lives}")
        self.stack.callback(monitor.stop)
        self.up[name] = monitor
        eventually(monitor.ready, SLOW)

    def stop(self, name: str) -> None:
        assert self.up.pop(name).stop() == 0

    def knows(self) -> bool:
        return all(monitor.knows(self.fleet) for monitor in self.up.values())

    def scraped(self) -> dict[str, float]:
        """Wait until Prometheus shows of each monitor that is up what its page shows; return that."""

        def same() -> dict[str, float]:
            shown = {self.addresses[name]: monitor.total(STARTED) for name, monitor in self.up.items()}
            found = {s["metric"]["instance"]: float(s["value"][1]) for s in self.prometheus.query(STARTED)}
            assert found == shown
            return shown

        return eventually(same, SLOW, 0.5)

    def phase(self) -> float:
        """Run some tasks; return by how much Prometheus, which knows nothing of monitors, saw their count grow."""
        before, began = self.scraped(), self.fleet.started
        then = time.time()
        self.fleet.run(TASKS, SLOW)
        self.fleet.rest()

        def heard() -> bool:  # a turn of the fleet may be under way still
            return {n - before[who] for who, n in self.scraped().items()} == {self.fleet.started - began}

        eventually(heard, SLOW, 0.5)
        really = self.fleet.started - began
        grown = self.prometheus.values(f"sum(max by (broker, task, queue) ({STARTED} - ({STARTED} @ {then})))")
        assert grown == [really]
        return grown[0]

    def fired(self) -> set[tuple[str, str]]:
        """Which alerts have fired since the first phase began."""
        found = self.prometheus.query(FIRED.format(seconds=max(1, int(time.time() - self.since))))
        return {(sample["metric"]["alertname"], sample["metric"].get("scope", "")) for sample in found}


@pytest.fixture(name="pair")
def _pair(redis_server: RedisServer, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        fleet = Fleet(redis_server.url, size=3, rate=300)
        stack.callback(fleet.stop)
        pair = Pair(tmp_path, fleet, redis_server.url, stack)
        fleet.start()
        eventually(pair.knows, SLOW)
        fleet.run(30)  # so that what is counted next is not the first of its kind
        fleet.rest()
        yield pair


def test_two_monitors_are_one_truth_through_a_rolling_restart_of_both(pair: Pair) -> None:
    """Counts are exact while either is away, recorded rates are not doubled, and only what is true fires."""
    # With so little patience, Prometheus misses everybody before its first scrape.
    pair.scraped()
    eventually(lambda: pair.prometheus.firing() == {"Watchdog"}, SLOW, 0.5)
    began, pair.since = pair.fleet.started, time.time()
    grown = pair.phase()
    eventually(lambda: WATCHDOG in pair.fired(), SLOW, 0.5)
    assert pair.fired() == {WATCHDOG}
    for name in NAMES:
        pair.stop(name)
        grown += pair.phase()
        eventually(lambda: ANOTHER_IS_UP in pair.fired(), SLOW, 0.5)
        pair.start(name)
        eventually(pair.knows, SLOW)
        grown += pair.phase()
    assert grown == pair.fleet.started - began == sum(member.told for member in pair.fleet.members) - began
    recorded = eventually(lambda: pair.prometheus.values("sum(celery:task_started:rate5m) * 300"), SLOW, 0.5)
    print(f"{grown:,.0f} tasks; 5 minutes of the recorded rate are {recorded[0]:,.0f}")
    # Once, and not twice. Each was away for one phase of five: over a time in which both were, `max` is short by that.
    assert 0.5 * grown < recorded[0] < 1.3 * grown
    # Nobody was lost or silent, nothing was missed by both: what fired is that one of two monitors was down.
    assert pair.fired() == {WATCHDOG, ANOTHER_IS_UP}
    for name in NAMES:
        pair.stop(name)
    eventually(lambda: ("MonitorDown", "all") in pair.fired(), SLOW, 0.5)
