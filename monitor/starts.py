"""Task starts missed: a worker's own count against the `task-started` events that were seen of it.

Each heartbeat carries `processed`, the number of tasks that the worker has started. Heartbeat k is judged when
heartbeat k+1 comes, by the starts stamped (by the worker's own clock) before it: what was still under way then has
arrived by now. A difference counts once two heartbeats in a row agree on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .workers import Host, WorkerWatch

EVENTS_OFF_AFTER = 3
"""So many heartbeats with growth and without any task event: the worker's events are off, nothing was lost."""


CLOCK_SET = 5.0
"""A heartbeat stamped so many seconds before the one before it: the worker's clock was set back."""


class Starts:
    """The account of one boot of a worker. Totals go on over boots; `processed` None is not known.

    `missed` are starts lost on the way, `missed_down` the part of them lost while the monitor was down. `untracked`
    are starts that the worker counted although the connection was whole: tasks with `send_events=False`. `shared`:
    several workers use the name (the last one's first event was heard at `mixed_at`), so nothing can be told.
    """

    __slots__ = (
        "base",
        "booted_at",
        "clean_at",
        "deficit",
        "events_enabled",
        "judged_at",
        "missed",
        "missed_down",
        "mixed_at",
        "processed",
        "settled",
        "shared",
        "silent_growth",
        "silent_streak",
        "untracked",
    )

    def __init__(self) -> None:
        self.processed: int | None = None
        self.base = 0
        self.deficit = 0
        self.settled = 0
        self.judged_at = 0.0
        self.clean_at = 0.0
        self.booted_at = 0.0
        self.silent_growth = 0
        self.silent_streak = 0
        self.events_enabled = True
        self.shared = False
        self.mixed_at = 0.0
        self.missed = 0
        self.missed_down = 0
        self.untracked = 0

    def begin(self, host: Host, processed: int, at: float) -> None:
        """Start the account: starts stamped up to `at` are among the `processed` and do not count."""
        self.processed = self.base = processed
        host.mark = host.base_at = at
        host.starts = host.starts_after = 0

    def heartbeat(self, host: Host, processed: int, at: float, watch: WorkerWatch, now: float) -> None:
        """Take a heartbeat's count, stamped `at`; judge the one before it."""
        if self.processed is None:
            self.begin(host, processed, at)
            self.clean_at = self.judged_at = now
            return
        self._notice_silence(host, processed - self.processed, watch)
        if not self.silent_streak:
            self._judge(host, watch, settle=False)
        host.starts += host.starts_after
        host.starts_after = 0
        # What was under way when the account began has arrived: from now on a start counts whatever its stamp says,
        # for the worker's clock may be set back.
        host.base_at = 0.0
        host.mark = at if host.mark - at > CLOCK_SET else max(host.mark, at)
        self.processed = processed
        self.judged_at = now

    def settle(self, host: Host, watch: WorkerWatch) -> None:
        """The boot is over: nothing more is under way."""
        if self.processed is not None and not self.silent_streak:
            self._judge(host, watch, settle=True)

    def _notice_silence(self, host: Host, growth: int, watch: WorkerWatch) -> None:
        if host.task_at > host.heartbeat_at:
            self.silent_streak = self.silent_growth = 0
            self.events_enabled = True
        elif growth > 0 and (self.silent_streak or host.heartbeat_at >= watch.gap_at):  # a gap is no silence
            self.silent_streak += 1
            self.silent_growth += growth
            if self.silent_streak >= EVENTS_OFF_AFTER:
                self.events_enabled = False
                self.base += self.silent_growth
                self.silent_growth = 0

    def _judge(self, host: Host, watch: WorkerWatch, *, settle: bool) -> None:
        deficit = (self.processed or 0) - self.base - host.starts
        certain = deficit if settle else min(deficit, self.deficit)
        self.deficit = deficit
        growth = certain - self.settled
        if growth > 0 and not self.shared:
            self.settled = certain
            if watch.gap_at >= self.clean_at:
                self.missed += growth
                if watch.gap_was_down:
                    self.missed_down += growth
            else:
                self.untracked += growth
        if deficit <= self.settled:
            self.clean_at = self.judged_at

    def successor(self, now: float) -> Starts:
        """Return the account of the next boot: its totals go on from here."""
        after = Starts()
        after.missed, after.missed_down, after.untracked = self.missed, self.missed_down, self.untracked
        after.booted_at = now
        after.clean_at = self.clean_at
        return after

    def restart(self) -> None:
        """Count from 0 again; the account goes on."""
        self.missed = self.missed_down = self.untracked = 0

    def dump(self) -> dict[str, Any]:
        """Return the account as builtins."""
        return {key: getattr(self, key) for key in self.__slots__}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `dump` gave."""
        for key in self.__slots__:
            setattr(self, key, state[key])
