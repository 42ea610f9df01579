"""Which beats are alive, which of them lead, and how their clocks stand to the monitor's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .chains import LONGEST, Bounds, Chain, Tally

if TYPE_CHECKING:
    from .events import BeatEvent

SILENT = 25.0
"""Seconds without a word after which a beat counts as gone: two and a half of its heartbeats."""
MARGIN = 1.0
"""Messages of a beat that was killed may still be under way for so long after its successor came online."""
WINDOW = 300.0
BOOTS = 20
ENTRIES = 10_000
LISTED_AGAIN = 3
"""A heartbeat repeats what changed in the last three: that many in a row may be lost."""


class Skew:
    """The monitor's clock minus another one, in seconds: the least delay seen in the last five to ten minutes."""

    def __init__(self) -> None:
        self._now = self._before = math.inf
        self._turned = -math.inf

    def see(self, sent: float, received: float) -> None:
        """Take in when something was sent, by the other clock, and received, by ours."""
        if received - self._turned >= WINDOW:
            self._before, self._now, self._turned = self._now, math.inf, received
        self._now = min(self._now, received - sent)

    @property
    def seconds(self) -> float:
        """The estimate; 0 before the first event."""
        least = min(self._now, self._before)
        return least if math.isfinite(least) else 0.0


class Testimony(NamedTuple):
    """What a worker said of a dispatch that it received: times by the clock of the beat that made it."""

    sent: float
    due: float | None
    uuid: str | None
    first: float | None
    tally: Tally
    """What that beat will have counted with it."""


class Boot:
    """One beat process from its start to its end; times of hearing are by the monitor's clock."""

    def __init__(self, name: str, label: str, heard: float) -> None:
        self.name = name
        self.label = label
        self.first_heard = self.last_heard = heard
        self.skew = Skew()
        self.offline = False
        self.leader: bool | None = None
        self.entries: int | None = None
        self.last_tick: float | None = None
        self.dropped = 0
        self.tallies: dict[str, Tally] = {}
        self.seq: int | None = None
        self.synced = False
        """True where no dispatch can have happened that we do not know of, up to the last heartbeat."""
        self.confirmed: float | None = None
        self.listed: set[str] | None = None
        self.hides = False
        self._listing: tuple[int, set[int], set[str]] = (-1, set(), set())
        self.testimony: dict[str, Testimony] = {}
        """Per entry the latest of its dispatches that a worker received, where its own report is not here yet."""
        self.ran: dict[str, int] = {}
        """Per entry how many attempts this beat calls failed although a worker received them, and was believed."""

    def hear(self, e: BeatEvent, now: float) -> None:
        """Take over what every event of a beat says about it."""
        self.last_heard = max(now, self.last_heard)
        self.skew.see(e.timestamp, now)
        if e.leader is not None or e.type == "beat-online":
            self.leader = e.leader
        elif self.leader is False and e.type in {"beat-dispatched", "beat-dispatch-failed"}:
            self.leader = True  # whoever dispatches has the lock: the heartbeat that says so may be lost
        if isinstance(e.entries, int):
            self.entries = e.entries
        if e.last_tick is not None:
            self.last_tick = max(e.last_tick, self.last_tick or 0.0)
        self.dropped = max(e.dropped, self.dropped)
        self.offline = self.offline or e.type == "beat-offline"

    def follow(self, e: BeatEvent) -> None:
        """Take in a heartbeat's number, which tells whether its list of changes joins on to what we know."""
        if e.seq is None:
            return
        known = 0 if self.seq is None else self.seq
        in_reach = e.seq - known <= LISTED_AGAIN and (self.synced or self.seq is None)
        self.synced = (in_reach or e.full) and e.complete
        self.seq = max(e.seq, known)
        if self.synced and e.asof is not None:
            self.confirmed = max(e.asof, self.confirmed or 0.0)

    def list(self, e: BeatEvent, names: set[str]) -> bool:
        """Take in one part of a listing; tell whether it was the last missing one."""
        number, parts, known = self._listing
        if number != e.listing:
            number, parts, known = e.listing, set(), set()
        parts.add(e.part)
        known |= names
        self._listing = (number, parts, known)
        if len(parts) < e.parts:
            return False
        self.listed, self.hides = known, e.hides
        if e.seq is not None and not self.synced:
            self.synced, self.seq = True, max(e.seq, self.seq or 0)
        return True

    def testify(self, e: BeatEvent) -> None:
        """Keep what a worker said of a dispatch that this beat itself has not reported (yet)."""
        name, tally = e.entry or "", Tally(e.dispatched, e.failed, e.skipped)
        known, kept = self.tallies.get(name, Tally()).attempts, self.testimony.get(name)
        if kept is not None:
            known = max(known, kept.tally.attempts)
        if e.sent is not None and tally.attempts > known and (kept is not None or len(self.testimony) < ENTRIES):
            self.testimony[name] = Testimony(e.sent, e.due, e.uuid, e.first, tally)

    def count(self, entry: str, said: Tally) -> tuple[Tally | None, Tally]:
        """Take in what it has counted for an entry; return what was known before, None for nothing, and what is now.

        A publish may raise although the broker has taken the message. Where a worker's word of that run came first and
        was believed, it stays dispatched: the same attempt is not counted as failed as well.
        """
        known, ran = self.tallies.get(entry), self.ran.get(entry, 0)
        before = known or Tally()
        said = said._replace(dispatched=said.dispatched + ran, failed=said.failed - ran)
        more = before.dispatched - said.dispatched
        if more > 0 and said.attempts >= before.attempts:
            self.ran[entry] = ran + more
            said = said._replace(dispatched=said.dispatched + more, failed=said.failed - more)
        now = self.tallies[entry] = Tally(*map(max, before, said))
        return known, now

    def forget(self, entry: str) -> None:
        """Forget an entry that is gone."""
        self.tallies.pop(entry, None)
        self.testimony.pop(entry, None)
        self.ran.pop(entry, None)

    def alive(self, now: float, hearing_since: float) -> bool:
        """Tell whether it said something lately; while the monitor is deaf nobody dies."""
        return not self.offline and now - max(self.last_heard, hearing_since) <= SILENT

    def leads(self) -> bool:
        """Tell whether it dispatches: every beat does, unless it says that it waits for another one's lock."""
        return self.leader is not False

    def beside(self, other: Boot) -> bool:
        """Tell whether the two ran side by side: each was heard after the other came online."""
        return self.last_heard > other.first_heard + MARGIN and other.last_heard > self.first_heard + MARGIN

    def dump(self) -> dict[str, Any]:
        """Return what must survive a restart of the monitor."""
        return {
            "label": self.label, "first": self.first_heard, "last": self.last_heard, "leader": self.leader,
            "offline": self.offline, "dropped": self.dropped, "tallies": self.tallies, "entries": self.entries,
            "last_tick": self.last_tick, "skew": self.skew.seconds, "seq": self.seq, "synced": self.synced,
            "testimony": self.testimony, "ran": self.ran,
        }  # fmt: skip

    @classmethod
    def load(cls, name: str, state: dict[str, Any]) -> Boot:
        """Return the boot that was dumped."""
        boot = cls(name, state["label"], state["first"])
        boot.last_heard, boot.leader, boot.offline = state["last"], state["leader"], state["offline"]
        boot.dropped, boot.entries, boot.last_tick = state["dropped"], state["entries"], state["last_tick"]
        boot.seq, boot.synced = state["seq"], state["synced"]
        boot.tallies = {entry: Tally(*tally) for entry, tally in state["tallies"].items()}
        for entry, (sent, due, uuid, first, tally) in state.get("testimony", {}).items():
            boot.testimony[entry] = Testimony(sent, due, uuid, first, Tally(*tally))
        boot.ran = state.get("ran", {})
        boot.skew.see(boot.last_heard - state["skew"], boot.last_heard)
        return boot


class BeatApp:
    """The beats and the entries of one Celery app."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boots: dict[str, Boot] = {}
        self.chains: dict[str, Chain] = {}
        self.labels: dict[str, str] = {}
        self.dead = True
        self.unsure = False
        """True where the monitor was deaf meanwhile: another beat may have led, and gone, unheard."""
        self.led_by = ""
        """The leading beat heard last."""
        self.steps = 0
        """Slots of calendars that may be walked over one by one before the next tick."""
        self._dropped = 0

    def boot(self, e: BeatEvent, now: float) -> Boot:
        """Return the beat that sent the event, in the state after it."""
        boot = self.boots.get(e.boot)
        if boot is None:
            host = e.hostname.rpartition("@")[2]
            boot = self.boots[e.boot] = Boot(e.boot, f"{self.name}@{host}", now)
            if len(self.boots) > BOOTS:
                self.forget_boot(min(self.boots.values(), key=lambda b: b.last_heard))
        boot.hear(e, now)
        if boot.leads():
            if boot.name == self.led_by:
                self.unsure = False  # the very process we knew: its counts tell all that happened meanwhile
            self.forgive(boot, now)
            before = self.boots.get(self.led_by, boot)
            if before is not boot:
                self.doubt(before)
            self.led_by = boot.name
        return boot

    def forget_boot(self, boot: Boot) -> None:
        """Forget a beat that is gone; what it dropped stays counted."""
        self._dropped += boot.dropped
        del self.boots[boot.name]

    @property
    def dropped(self) -> int:
        """Reports that its beats had to drop, since the monitor counts them."""
        return self._dropped + sum(boot.dropped for boot in self.boots.values())

    def forgive(self, boot: Boot, moment: float) -> None:
        """Where it is unsure who led, judge nothing that was due before `moment`."""
        if self.unsure:
            for chain in self.chains.values():
                chain.forgive(moment - boot.skew.seconds)
            self.unsure = False

    def doubt(self, boot: Boot) -> None:
        """Where not all that a beat did is known, and it will not tell any more, judge nothing that was due by then."""
        if not boot.synced:
            for chain in self.chains.values():
                chain.forgive(boot.last_heard - boot.skew.seconds)

    def leaders(self, now: float, hearing_since: float) -> list[Boot]:
        """Return the beats that dispatch now; of beats that followed one another only the last."""
        alive = [b for b in self.boots.values() if b.leads() and b.alive(now, hearing_since)]
        if not alive:
            return []
        newest = max(alive, key=lambda b: b.first_heard)
        return [b for b in alive if b is newest or b.beside(newest)]

    def latest(self) -> Boot | None:
        """Return the leading beat that was heard last."""
        return max((b for b in self.boots.values() if b.leads()), key=lambda b: b.last_heard, default=None)

    def dump(self) -> dict[str, Any]:
        """Return what must survive a restart of the monitor, as plain data."""
        return {
            "dead": self.dead,
            "led_by": self.led_by,
            "dropped": self._dropped,
            "boots": {boot.name: boot.dump() for boot in self.boots.values()},
            "chains": {entry: chain.dump() for entry, chain in self.chains.items()},
        }

    def load(self, state: dict[str, Any], *, crashed: bool) -> None:
        """Take back all that was dumped but the chains, which are the ledger's to admit; counts are 0 after a crash."""
        self.dead, self.led_by = state["dead"], state["led_by"]
        self.unsure = not self.dead
        self.boots = {boot: Boot.load(boot, saved) for boot, saved in state["boots"].items()}
        # Each beat goes on with its own count: less what it was at the save, it begins at 0.
        self._dropped = -self.dropped if crashed else state.get("dropped", 0)

    def chain(self, name: str, now: float, bounds: Bounds) -> Chain | None:
        """Return the entry's chain, made where it is new; None where there are too many."""
        chain = self.chains.get(name)
        if chain is None and len(self.chains) < ENTRIES and len(name) <= LONGEST:
            chain = self.chains[name] = Chain(now, bounds)
        return chain
