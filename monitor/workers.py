"""The worker watch: who is up, lost or gone, what each worker says of itself, and which of its starts were missed.

Pure: time comes in with each event and with `tick`. A worker is its full node name; each boot of it is a `Host` of its
own, so that runs of an earlier boot are never taken for runs of the present one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .labels import LONGEST, OTHER
from .starts import Starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .events import WorkerEvent
    from .labels import Caps
    from .runs import Run

logger = logging.getLogger(__name__)

STRAGGLERS = 5.0
"""Seconds after a goodbye in which what the worker had in its buffer may still come: it says goodbye first."""
SKEW_WINDOW = 60.0
"""Seconds over which the least delayed heartbeat is looked for."""


class Host:
    """One boot of a worker, as far as it was seen. Arrival times are by the monitor's clock."""

    __slots__ = (
        "active",
        "active_at",
        "base_at",
        "clock",
        "down_at",
        "excess",
        "first_at",
        "heartbeat_at",
        "info",
        "load",
        "lost",
        "mark",
        "moved_at",
        "name",
        "pid",
        "pid_before",
        "reserved",
        "running",
        "skew",
        "skew_before",
        "skew_since",
        "starts",
        "starts_after",
        "task_at",
        "trust",
        "untold",
        "up",
        "wedged",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.lost = False
        self.down_at = 0.0
        self.first_at = 0.0
        self.moved_at = 0.0
        self.heartbeat_at = 0.0
        self.task_at = 0.0
        self.pid = 0
        self.pid_before = 0
        self.clock = 0
        self.active: int | None = None
        self.active_at = 0.0
        self.excess = 0
        self.load: float | None = None
        self.info: tuple[str, str] = ("unknown", "unknown")
        self.running: dict[Run, None] = {}
        self.reserved = 0
        self.skew: float | None = None
        self.skew_before: float | None = None
        self.skew_since = 0.0
        self.wedged = False
        # Touched for every task-started, hence here and not in `trust`, which explains them.
        self.mark = 0.0
        self.base_at = 0.0
        self.starts = 0
        self.starts_after = 0
        self.trust = Starts()
        # What it has started so far is as of a save before a crash: less than what was shown of it then.
        self.untold = False

    @property
    def heard_at(self) -> float:
        """When it was last heard, in whatever way."""
        return max(self.heartbeat_at, self.task_at)

    def clock_skew(self) -> float | None:
        """Return the worker's clock minus the monitor's, in seconds, from its least delayed heartbeats."""
        known = [s for s in (self.skew, self.skew_before) if s is not None]
        return max(known) if known else None


class WorkerWatch:
    """Keeps the hosts; `handlers` take worker events.

    Args:
        caps: the label caps; over the cap of `worker` the longest dead are dropped, then `__other__` is used.
        timeout: seconds of silence after which a worker is lost; also how long it may take no task, with messages
            waiting and slots free, until it counts as wedged, and how long after its goodbye it may finish its runs.
        forget: seconds after which a worker that is gone is forgotten, long enough for every alert to fire.
    """

    def __init__(self, caps: Caps, *, timeout: float = 60.0, forget: float = 3_600.0) -> None:
        self.caps = caps
        self.timeout = timeout
        self.forget = forget
        self.hosts: dict[str, Host] = {}
        self.on_gone: Callable[[Host, float], None] = lambda *_: None
        self.on_back: Callable[[Host], None] = lambda *_: None
        self.on_forgotten: Callable[[str], None] = lambda *_: None
        self.silently_over: Callable[[Host, float, int], int] = lambda *_: 0
        self.end_silently: Callable[[Host, float, int], None] = lambda *_: None
        self.holds_tasks: Callable[[Host, float], bool] = lambda *_: False
        self.gap_at = 0.0
        self.gap_was_down = False
        self._resumed_at = 0.0
        self._none_dead = False

    def handlers(self) -> dict[str, Callable[[WorkerEvent, float], None]]:
        """Return what takes each type of event: a function of the event and the time of its receipt."""
        return {
            "worker-online": self.online,
            "worker-heartbeat": self.heartbeat,
            "worker-offline": self.offline,
        }

    def host(self, name: str) -> Host:
        """Return the present boot of a worker, admitting a new one."""
        found = self.hosts.get(name)
        if found is None:
            if len(self.hosts) >= self.caps.limits["worker"]:
                self._forget_oldest()
            admitted = self.caps.admit("worker", name)
            found = self.hosts.get(admitted)
            if found is None:
                found = self.hosts[admitted] = Host(admitted)
                # Many workers in one: none of their counts and process ids mean anything together.
                found.trust.shared = admitted == OTHER
        return found

    def absent(self, name: str | None) -> Host | None:
        """Return the boot on which a run of the state file was orphaned, without raising the dead."""
        if name is None:
            return None
        found = self.hosts.get(name)
        if found is None or found.up:
            found = Host(name)
            found.up = False
        return found

    def gap(self, now: float, *, down: bool = False) -> None:
        """Note that events may have been lost: reconnected, lagging, or (`down`) the monitor itself was not there."""
        self.gap_at, self.gap_was_down = now, down
        self._resumed_at = now

    # --- events -----------------------------------------------------------------------------------------------------

    def online(self, e: WorkerEvent, now: float) -> None:
        """A worker has started, or has connected to its broker again."""
        host = self.host(e.hostname)
        # Celery says `worker-online` after every reconnect, too. A Lamport clock never goes back in one process.
        if host.pid and not host.trust.shared and ((e.pid or 0) != host.pid or (e.clock or 0) < host.clock):
            host = self._reboot(host, e.pid or 0, now)
        self._heard(host, e, now)

    def heartbeat(self, e: WorkerEvent, now: float) -> None:
        """A worker says that it is alive, how many tasks it runs and how many it has started."""
        host = self.host(e.hostname)
        if host.pid and e.pid and e.pid != host.pid:
            host = self.other_pid(host, e.pid, now)
        trust = host.trust
        fewer = e.processed is not None and trust.processed is not None and e.processed < trust.processed
        # Two workers of one name take turns; once there is one left, it is a worker like any other again.
        alone = host.name != OTHER and now - trust.mixed_at > self.timeout
        if alone if trust.shared else fewer:
            host = self._reboot(host, e.pid or 0, now)
        self._heard(host, e, now)

    def offline(self, e: WorkerEvent, now: float) -> None:
        """A worker says goodbye; in a warm shutdown it still finishes what it runs."""
        host = self.host(e.hostname)
        self._heard(host, e, now)
        host.up, host.lost, host.down_at = False, False, now

    def other_pid(self, host: Host, pid: int, now: float) -> Host:
        """Return the host for an event of another process under the same name: a restart, or a name used twice."""
        if pid == host.pid_before and now - host.trust.booted_at < self.timeout:
            if not host.trust.shared:
                logger.warning(
                    "two workers use the node name %s: their numbers cannot be told apart; "
                    "start each with its own -n name@%%h",
                    host.name,
                )
            host.trust.shared = True
        if not host.trust.shared:
            return self._reboot(host, pid, now)
        host.trust.mixed_at = now
        return host

    def _heard(self, host: Host, e: WorkerEvent, now: float) -> None:
        host.pid = e.pid or host.pid
        host.clock = max(host.clock, e.clock or 0)
        offset = e.timestamp - now
        if now - host.skew_since > SKEW_WINDOW:
            host.skew_before, host.skew, host.skew_since = host.skew, offset, now
        elif host.skew is None or offset > host.skew:
            host.skew = offset
        host.first_at = host.first_at or now
        if e.processed is not None and host.trust.processed is not None and e.processed > host.trust.processed:
            host.moved_at = now
        if e.active is not None:
            self._reconcile(host, max(0, e.active), e.timestamp)
        if e.loadavg:
            host.load = e.loadavg[0]
        if e.sw_ver:
            host.info = (e.sw_ver[:LONGEST], (e.sw_sys or "unknown")[:LONGEST])
        if e.processed is not None:
            host.untold = False
            host.trust.heartbeat(host, e.processed, e.timestamp, self, now)
        host.heartbeat_at = now

    def _reconcile(self, host: Host, active: int, at: float) -> None:
        """End runs that the worker does not know any more, once two heartbeats in a row leave no room for them.

        The heartbeat before this one is judged: end events that were under way then have arrived by now.
        """
        if host.active is not None and not host.trust.shared:
            over = self.silently_over(host, host.active_at, host.active)
            certain = min(over, host.excess)
            host.excess = over - certain
            if certain:
                self.end_silently(host, host.active_at, certain)
        host.active, host.active_at = active, at

    def _reboot(self, old: Host, pid: int, now: float) -> Host:
        """Open a new boot of a worker and close the old one."""
        old.trust.settle(old, self)
        old.up = False
        self.on_gone(old, now)
        host = Host(old.name)
        host.pid, host.pid_before = pid, old.pid
        host.heartbeat_at = old.heartbeat_at
        host.trust = old.trust.successor(now)
        if pid != old.pid:
            host.trust.begin(host, 0, 0.0)
        self.hosts[old.name] = host
        return host

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float, *, connected: bool = True) -> None:
        """Judge silence. While the monitor itself hears nothing at all, nobody is declared lost."""
        self._none_dead = False
        if not connected:
            self._resumed_at = now
        forgotten = []
        for host in self.hosts.values():
            if host.up:
                if now - max(host.heard_at, self._resumed_at) > self.timeout:
                    # Without heartbeats an idle worker and a dead one are the same: it is not claimed to be lost.
                    host.up, host.lost, host.down_at = False, host.heartbeat_at > 0, now
                    self.on_gone(host, now)
                continue
            if not host.lost and now - host.down_at > STRAGGLERS:
                host.trust.settle(host, self)
            if self._is_back(host):
                host.up, host.lost = True, False
                self.on_back(host)
            elif now - host.down_at > self.forget:
                forgotten.append(host.name)
            elif host.running and now - host.down_at > self.timeout:
                self.on_gone(host, now)
        for name in forgotten:
            self._forget(name, now)

    @staticmethod
    def _is_back(host: Host) -> bool:
        # The tasks that a worker finishes after its goodbye end with an event; only a heartbeat says that it is back.
        silent = host.lost or not host.heartbeat_at
        return (host.heard_at if silent else host.heartbeat_at) > host.down_at

    def judge_wedged(self, waiting: Mapping[str, bool], slots: Mapping[str, int], now: float) -> None:
        """Find wedged workers. `waiting`: worker → do its queues hold messages; `slots`: worker → pool size."""
        for name, host in self.hosts.items():
            last = max(host.task_at, host.moved_at, host.first_at, self._resumed_at)
            alive = host.up and host.heartbeat_at > host.task_at and now - host.heartbeat_at < self.timeout
            free = host.active is not None and host.active < slots.get(name, 1)
            idle = now - last > self.timeout and alive and free and host.trust.events_enabled
            # One that holds tasks back (rate limits) fetches no more of them: that is as it should be.
            host.wedged = idle and waiting.get(name, False) and not self.holds_tasks(host, now)

    def _forget(self, name: str, now: float) -> None:
        self.on_gone(self.hosts.pop(name), now)
        self.caps.forget("worker", name)
        self.on_forgotten(name)

    def _forget_oldest(self) -> None:
        if self._none_dead:
            return  # looked for since the last tick: a flood of names must not cost 0.3 ms each
        dead = min(
            (h for h in self.hosts.values() if not h.up and h.name != OTHER), key=lambda h: h.down_at, default=None
        )
        self._none_dead = dead is None
        if dead is not None:
            self._forget(dead.name, dead.down_at)

    # --- state ------------------------------------------------------------------------------------------------------

    def dump(self) -> list[Any]:
        """Return the workers as builtins, for the state file."""
        return [
            {
                **{key: getattr(host, key) for key in _SAVED},
                "info": list(host.info),
                "trust": host.trust.dump(),
            }
            for host in self.hosts.values()
        ]

    def load(self, state: list[Any], now: float, *, crashed: bool = False) -> None:
        """Take back what `dump` gave; starts that are missed from now on were missed while the monitor was down.

        Where the monitor had `crashed`, counts begin at 0, and a worker has none before it has told its own again.
        """
        for saved in state:
            host = self.host(saved["name"])
            if host.name == OTHER:
                continue  # the cap has been lowered
            for key in _SAVED:
                setattr(host, key, saved[key])
            host.info = tuple(saved["info"])
            host.trust.load(saved["trust"])
            host.untold = crashed
            if crashed:
                host.trust.restart()
        self.gap(now, down=True)

    def up(self) -> Iterator[Host]:
        """Yield the workers that are up."""
        return (host for host in self.hosts.values() if host.up)


_SAVED = (
    *("name", "up", "lost", "down_at", "heartbeat_at", "task_at", "pid", "clock", "active", "load"),
    *("active_at", "mark", "base_at", "starts", "starts_after"),
)
