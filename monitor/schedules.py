"""The schedule ledger: beat's events and the clock to what was due, dispatched, late, missed, doubled or finished.

Pure: time comes in with each event and each tick. Events are lossy, so that beat's counts are cumulative and taken in
idempotently: a lost event or a restart of the monitor is never a false miss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from .beats import BeatApp, Boot
from .chains import LONGEST, Bounds, Chain, Report, Tally
from .labels import OTHER
from .ledger_facts import families
from .slots import WALK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .catalog import Metric
    from .events import BeatEntry, BeatEvent
    from .facts import Family
    from .labels import Caps

Kind = Literal["received", "started", "succeeded", "failed", "retried", "revoked"]

APPS = 100
ALL_ENTRIES = 30_000
"""Of all apps together, at 1.5 kB each."""
WATCHED = 20_000
ENDS = 5_000
PAUSED_AFTER = 5.0
"""Seconds between two ticks after which nobody's silence means anything: events may wait unread."""
DEAF_AFTER = 60.0
"""Seconds between two ticks after which they may have been lost."""
STEPS = 200
"""Slots of calendars that may be walked over from one tick to the next, one by one at some 70 us: a liar among the
beats may leave us no more behind than that, whatever last run or clock he claims."""
REPORTED_WITHIN = 10.0
"""Seconds, a heartbeat's, in which a beat that comes back may still report a dispatch whose event was lost."""
FORGET_AFTER = 7 * 86_400.0
"""Seconds after which an app of which no beat was heard is forgotten, with its entries."""
FORGET_BEAT_AFTER = 3_600.0


class _Attempt(NamedTuple):
    """What is known of a beat's last attempt to dispatch an entry."""

    sent: float
    due: float | None = None
    uuid: str | None = None
    first: float | None = None
    """When this beat first tried, where it says so."""


class _Run(NamedTuple):
    """A dispatch whose end is awaited."""

    app: str
    entry: str
    due: float | None


def _confirm(app: BeatApp, horizon: float) -> None:
    """Let the entries count what was missed; where that is much, it goes on with a later word or tick."""
    for chain in app.chains.values():
        walked = chain.walked
        chain.confirm(horizon, max(0, app.steps))
        app.steps -= chain.walked - walked


class Ledger:
    """Follows every entry of every app's schedule, over all beats that dispatch it.

    Args:
        catalog: the metrics, with their buckets.
        caps: admits entry and task names as label values.

    The caller hands over the events of `handlers()`, calls `tick` at least every few seconds, and `run_event` for the
    task events of runs whose uuid is in `watched`, and the receipt of tasks whose name is in `tasks`: a quick run may
    end before its dispatch is reported, and the report may be lost.
    """

    kinds: ClassVar[tuple[Kind, ...]] = get_args(Kind)
    """The task events that `run_event` takes."""

    def __init__(self, catalog: Mapping[str, Metric], caps: Caps) -> None:
        self.catalog = catalog
        self.caps = caps
        self.apps: dict[str, BeatApp] = {}
        self.watched: dict[str, _Run | None] = {}
        self.tasks: set[str] = set()
        self.dropped = 0
        """Reports that beats had to drop, of beats that are forgotten."""
        self.now = 0.0
        self.hearing_since = 0.0
        self._ticked: float | None = None
        self._maybe: dict[str, None] = {}
        """Runs in `watched` of which only the name of their task speaks for beat, oldest first."""
        self._ends: dict[str, tuple[Kind, float] | None] = {}
        """Runs that ended lately: how, where a beat may still say that it sent them; None where that is counted."""
        self._bounds = Bounds(
            *(catalog[f"celery_beat_{name}_seconds"].buckets for name in ("lateness", "interval", "end_to_end"))
        )

    def handlers(self) -> dict[str, Callable[[BeatEvent, float], None]]:
        """Return what takes each type of event: a function of the event and the time of its receipt."""
        return {
            "beat-online": self.presence,
            "beat-offline": self.presence,
            "beat-heartbeat": self.heartbeat,
            "beat-schedule": self.listing,
            "beat-dispatched": self.attempt,
            "beat-dispatch-failed": self.attempt,
            "beat-received": self.testimony,
        }

    # --- what beat says -------------------------------------------------------------------------------------------

    def presence(self, e: BeatEvent, now: float) -> None:
        """Note that a beat has come or gone."""
        self._hear(e, now)

    def _hear(self, e: BeatEvent, now: float) -> tuple[BeatApp, Boot] | None:
        self.now = max(now, self.now)
        if self._ticked is not None and now - self._ticked > PAUSED_AFTER:
            self.tick(now)
        app = self.apps.get(e.app)
        if app is None:
            if len(self.apps) >= APPS:
                return None
            app = self.apps[e.app] = BeatApp(e.app)
            app.steps = WALK // len(self.apps)
        before = app.boots.get(app.led_by)
        boot = app.boot(e, now)
        if before is not None and app.led_by != before.name:
            self._believe(app, before, list(before.testimony))
        return app, boot

    def heartbeat(self, e: BeatEvent, now: float) -> None:
        """Correct what was lost by beat's totals, and count what it confirms not to have dispatched."""
        heard = self._hear(e, now)
        if heard is None:
            return
        app, boot = heard
        skips, uuids, firsts = e.skips or {}, e.uuids or {}, e.firsts or {}
        for entry, (dispatched, failed, last) in (e.totals or {}).items():
            tally = Tally(dispatched, failed, skips.get(entry, 0))
            attempt = _Attempt(last or e.timestamp, None, uuids.get(entry), firsts.get(entry))
            self._reported(app, boot, entry, tally, attempt)
        boot.follow(e)
        leaders = app.leaders(now, self.hearing_since)
        confirmed = [b.confirmed for b in leaders if b.synced and b.confirmed is not None]
        if leaders and len(confirmed) == len(leaders):
            _confirm(app, min(confirmed))

    def listing(self, e: BeatEvent, now: float) -> None:
        """Take in one part of a beat's schedule; with the last part, drop the entries that are gone."""
        heard = self._hear(e, now)
        if heard is None or not heard[1].leads() or not isinstance(e.entries, list):
            return
        app, boot = heard
        for item in e.entries:
            self._listed(app, boot, item, now)
        if boot.list(e, {item.entry for item in e.entries}):
            self._prune(app, now)

    def _listed(self, app: BeatApp, boot: Boot, item: BeatEntry, now: float) -> None:
        chain = self._chain(app, item.entry, now - boot.skew.seconds)
        if chain is None:
            return
        if item.enabled and not chain.enabled:
            chain.forgive(now - boot.skew.seconds)
        chain.enabled = item.enabled
        chain.describe(item, item.next_due, now - boot.skew.seconds)
        self.tasks.add(chain.task)
        tally = Tally(item.dispatched, item.failed, item.skipped)
        if item.last_dispatch is not None:
            if tally.attempts:
                self._reported(app, boot, item.entry, tally, _Attempt(item.last_dispatch, first=item.first))
            else:
                chain.remember(item.last_dispatch)

    def attempt(self, e: BeatEvent, now: float) -> None:
        """Take in one dispatch, successful or not."""
        heard = self._hear(e, now)
        if heard is None or e.entry is None:
            return
        app, boot = heard
        sent = e.sent or e.timestamp
        chain = self._chain(app, e.entry, sent)
        if chain is None:
            return
        tally = Tally(e.dispatched, e.failed, e.skipped)
        new = tally.attempts > boot.tallies.get(e.entry, Tally()).attempts
        if new:
            chain.describe(e, None, sent)
            self.tasks.add(chain.task)
        self._reported(app, boot, e.entry, tally, _Attempt(sent, e.due, e.uuid, e.first))
        if new:
            chain.describe(e, e.next_due, sent)

    def testimony(self, e: BeatEvent, now: float) -> None:
        """Take in what a worker says of a run that beat has sent: it counts where beat itself never reports it."""
        del now
        app = self.apps.get(e.app)
        boot = app.boots.get(e.boot) if app is not None else None
        if app is None or boot is None or e.entry not in app.chains:
            return
        boot.testify(e)
        if boot.name != app.led_by:
            self._believe(app, boot, [e.entry])

    def _believe(self, app: BeatApp, boot: Boot, names: Iterable[str], before: float = math.inf) -> None:
        """Count what workers received of a beat that will not tell any more; not where its slot was judged already."""
        for name in names:
            said, chain = boot.testimony.get(name), app.chains.get(name)
            if said is None or said.sent >= before:
                continue
            del boot.testimony[name]
            told = boot.tallies.get(name, Tally()).attempts >= said.tally.attempts
            if chain is not None and not told and chain.awaits(said.sent):
                self._reported(app, boot, name, said.tally, _Attempt(said.sent, said.due, said.uuid, said.first))

    def _chain(self, app: BeatApp, entry: str, since: float) -> Chain | None:
        chain = app.chains.get(entry)
        if chain is None and sum(len(other.chains) for other in self.apps.values()) < ALL_ENTRIES:
            chain = app.chain(entry, since, self._bounds)
        if chain is None:
            self.caps.overflow["entry"] += 1
        elif entry not in app.labels:
            app.labels[entry] = self.caps.admit("entry", entry)
        return chain

    def _reported(self, app: BeatApp, boot: Boot, entry: str, tally: Tally, last: _Attempt) -> None:
        chain = self._chain(app, entry, last.sent)
        if chain is None:
            return
        for earlier in list(app.boots.values()):
            if earlier is not boot and earlier.testimony:
                self._believe(app, earlier, [entry], before=last.sent)
        known, merged = boot.count(entry, tally)
        before = known or Tally()
        due = last.due
        if merged != before:
            other = app.boots.get(chain.anchor_boot)
            peers = other is not None and other is not boot and boot.beside(other)
            younger = other is not None and boot.first_heard > other.first_heard
            report = Report(
                boot.name, before, known is None, merged, last.sent, due, last.first, peers, younger, max(1, app.steps)
            )
            walked = chain.walked
            due = chain.report(report)
            app.steps -= chain.walked - walked
        new = merged != before or last.due is not None
        if last.uuid is not None and tally.dispatched and new and self.watched.get(last.uuid) is None:
            self._watch(last.uuid, _Run(app.name, entry, due))

    # --- what became of the runs ----------------------------------------------------------------------------------

    def _watch(self, uuid: str, run: _Run) -> None:
        if uuid in self._ends:
            end, self._ends[uuid] = self._ends[uuid], None
            if end is not None:
                self._ended(run, *end)
            return
        self.watched.pop(uuid, None)
        self.watched[uuid[:LONGEST]] = run
        if len(self.watched) > WATCHED:
            del self.watched[next(iter(self.watched))]

    def run_event(self, kind: Kind, uuid: str, task: str, at: float, now: float) -> None:
        """Take in a task event, at its worker's time `at`, of a run in `watched` or of a task in `tasks`."""
        del now
        if kind == "received":
            if uuid not in self.watched and task in self.tasks:
                self.watched[uuid] = self._maybe[uuid] = None
                self._forget_oldest()
        elif kind not in {"started", "retried"}:
            run = self.watched.pop(uuid, None)
            if run is not None:
                self._ended(run, kind, at)
            if run is not None or self._ends.get(uuid, self) is not None:
                self._ends[uuid] = (kind, at) if run is None else None
            self._maybe.pop(uuid, None)
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        if len(self._ends) > ENDS:
            del self._ends[next(iter(self._ends))]
        if len(self._maybe) > ENDS:
            oldest = next(iter(self._maybe))
            del self._maybe[oldest]
            if self.watched.get(oldest, self) is None:
                del self.watched[oldest]

    def _ended(self, run: _Run, kind: Kind, at: float) -> None:
        app = self.apps.get(run.app)
        chain = app.chains.get(run.entry) if app is not None else None
        if chain is not None and kind != "revoked":
            chain.ended(at, run.due, succeeded=kind == "succeeded")

    # --- what the clock says --------------------------------------------------------------------------------------

    def tick(self, now: float, hearing: bool = True) -> None:
        """Let time pass; `hearing` tells whether events reach the monitor: while it is deaf, nothing is judged."""
        pause = math.inf if self._ticked is None else now - self._ticked
        self._ticked = now
        self.now = now
        if pause > PAUSED_AFTER or not hearing:
            self.hearing_since = now
        if pause > DEAF_AFTER or not hearing:
            for app in self.apps.values():
                app.unsure = app.unsure or not app.dead
        if not hearing:
            return
        for app in list(self.apps.values()):
            app.steps = min(WALK // len(self.apps), app.steps + max(1, STEPS // len(self.apps)))
            self._judge(app, now)

    def _judge(self, app: BeatApp, now: float) -> None:
        last, was_dead = app.latest(), app.dead
        app.dead = not app.leaders(now, self.hearing_since)
        heard = max((boot.last_heard for boot in app.boots.values()), default=now)
        if now - heard > FORGET_AFTER:
            self._forget(app, list(app.chains))
            self.dropped += app.dropped
            del self.apps[app.name]
            return
        if app.dead and last is not None:
            app.forgive(last, self.hearing_since)
            if not was_dead:
                app.doubt(last)
            self._believe(app, last, list(last.testimony))
            moment = now - last.skew.seconds - REPORTED_WITHIN
            _confirm(app, moment)
        for boot in list(app.boots.values()):
            if boot is not last and now - boot.last_heard > FORGET_BEAT_AFTER:
                app.forget_boot(boot)

    def _prune(self, app: BeatApp, now: float) -> None:
        leaders = app.leaders(now, self.hearing_since)
        if any(boot.listed is None for boot in leaders):
            return
        kept: set[str] = set().union(*(boot.listed or () for boot in leaders))
        hides = any(boot.hides for boot in leaders)
        moment = now - leaders[-1].skew.seconds if leaders else now
        gone = [name for name, c in app.chains.items() if name not in kept and not (hides and c.hidden(moment))]
        if gone and leaders:
            self._forget(app, gone)

    def _forget(self, app: BeatApp, names: list[str]) -> None:
        for name in names:
            del app.chains[name]
            label = app.labels.pop(name, OTHER)
            if label != OTHER:
                self.caps.forget("entry", label)
            for boot in app.boots.values():
                boot.forget(name)
        self.tasks = {chain.task for a in self.apps.values() for chain in a.chains.values()}

    # --- what is handed over --------------------------------------------------------------------------------------

    def families(self) -> list[Family]:
        """Return all metrics of the group beat, and what the probes had to drop, as of the last tick or event."""
        return list(families(self))

    def dump(self) -> dict[str, Any]:
        """Return what must survive a restart of the monitor, as plain data."""
        return {
            "bounds": [list(bounds) for bounds in self._bounds],
            "dropped": self.dropped,
            "watched": {uuid: run for uuid, run in self.watched.items() if run is not None},
            "apps": {name: app.dump() for name, app in self.apps.items()},
        }

    def load(self, state: dict[str, Any], *, crashed: bool = False) -> None:
        """Take over what `dump` returned; what does not fit is left out and the rest kept.

        Where the monitor had `crashed`, more was told after it: all counts are of what comes after the dump then.
        """
        same = state.get("bounds") == [list(bounds) for bounds in self._bounds]
        self.dropped = 0 if crashed else state.get("dropped", 0)
        self.watched = {uuid: _Run(*run) for uuid, run in state.get("watched", {}).items()}
        for name, kept in state.get("apps", {}).items():
            app = self.apps[name] = BeatApp(name)
            app.load(kept, crashed=crashed)
            for entry, saved in kept["chains"].items():
                chain = self._chain(app, entry, 0.0)
                if chain is not None:
                    chain.load(saved, histograms=same and not crashed, counts=not crashed)
                    self.tasks.add(chain.task)
