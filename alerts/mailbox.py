"""The messages about incidents: which incident is told by which, whose turn it is, and what became of each call (edge).

A message is claimed by one alerter at a time (its lease). Before it is posted it is committed as `posting`: one found
so with its lease over may or may not be on Slack, and is looked for there before it is posted again.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from . import store
from .batches import Sample
from .incidents import OPEN, RESOLVED, Incident, level, over
from .intake import incident_from, mark_stale
from .policy import GuardLimits, Plan, place, reason_to_wait
from .store import Database

NEW, POSTING, POSTED = "new", "posting", "posted"
INCIDENT, ROLLUP, DIGEST, CHANGES, NOTICE = "incident", "rollup", "digest", "changes", "notice"
MEMBERS = 500
"""Incidents of one message that are loaded, the most failures first."""
_REVIEWED = 500
REVIEW_SECONDS = {"muted": 60.0, "threshold": 60.0, "quiet": 20.0}

Act = Literal["post", "find", "update", "reply"]


class Message(Struct):
    """One message on Slack, posted or to be posted. `shown_version` is the version that people see."""

    id: str
    kind: str
    channel: str
    channel_id: str
    ref: str
    state: str
    version: int
    shown_version: int
    posting_version: int
    created_at: float
    attempt_at: float | None
    told_level: int
    told_reopens: int
    reply_due: bool
    body: str


class Work(Struct):
    """One call to make, claimed for this alerter."""

    act: Act
    message: Message
    incidents: list[Incident]
    more: int
    """Incidents of the message that were not loaded."""
    claimed_at: float
    since: float = 0.0
    """For `find`: the earliest time at which a message of this channel that nobody is sure of was tried."""

    @property
    def count(self) -> int:
        """Failures of all loaded incidents."""
        return sum(incident.count for incident in self.incidents)

    @property
    def reopens(self) -> int:
        """How often its incidents began again."""
        return sum(incident.reopens for incident in self.incidents)


@dataclass(frozen=True)
class Pace:
    """How fast it goes, in seconds: between updates of one message and calls to one channel; how long a lease holds."""

    update: float = 30.0
    call: float = 1.0
    lease: float = 30.0
    grace: float = 10.0
    """How long after an uncertain call one may be sure that history shows its message."""


@dataclass
class Mailbox:
    """`plan` says what a sample's route is; `editable` whether messages can be changed once posted."""

    database: Database
    plan: Callable[[Sample], Plan]
    pace: Pace = field(default_factory=Pace)
    limits: GuardLimits = field(default_factory=GuardLimits)
    editable: bool = True

    def settle(self, now: float, successes: Mapping[str, float], quiet: float) -> None:
        """Resolve the open incidents whose task has succeeded since and that were quiet for `quiet` seconds."""
        table = store.incidents.c
        with self.database.write() as connection:
            for task, at in successes.items():
                older = sa.or_(table.last_success.is_(None), table.last_success < at)
                chosen = sa.and_(table.task == task, table.state == OPEN, table.current_key.is_not(None), older)
                connection.execute(store.incidents.update().where(chosen).values(last_success=at))
            hopeful = sa.and_(table.state == OPEN, table.last_success > table.last, table.last <= now - quiet)
            rows = connection.execute(sa.select(store.incidents).where(hopeful)).mappings().all()
            done = [incident for row in rows if over(incident := incident_from(row), now, quiet)]
            resolve(connection, done, now)

    def assign(self, now: float) -> None:
        """Give messages to the incidents that have none and may now be spoken of."""
        table = store.incidents.c
        due = sa.and_(table.message_id.is_(None), table.current_key.is_not(None), table.review_at <= now)
        with self.database.write() as connection:
            rows = connection.execute(sa.select(store.incidents).where(due).order_by(table.review_at).limit(_REVIEWED))
            ready: dict[str, list[Incident]] = defaultdict(list)
            for incident in map(incident_from, rows.mappings().all()):
                plan = self.plan(incident.sample)
                reason = reason_to_wait(incident, plan, now)
                if reason is None:
                    ready[plan.channel].append(incident)
                else:
                    self._postpone(connection, incident, reason, now)
            for channel, candidates in ready.items():
                self._place(connection, channel, candidates, now)

    def _postpone(self, connection: Connection, incident: Incident, reason: str, now: float) -> None:
        again = now + REVIEW_SECONDS[reason] if reason in REVIEW_SECONDS else None
        held = incident.held or reason == "quiet"
        mine = store.incidents.c.id == incident.id
        connection.execute(store.incidents.update().where(mine).values(review_at=again, held=held))

    def _place(self, connection: Connection, channel: str, candidates: Sequence[Incident], now: float) -> None:
        placing = place(candidates, self._recent(connection, channel, now), self.limits)
        for incident in placing.alone:
            self._carry(connection, [incident], add_message(connection, INCIDENT, channel, now), now)
        if placing.digest:
            self._carry(connection, placing.digest, add_message(connection, DIGEST, channel, now), now)
        if placing.rollup:
            self._roll_up(connection, placing.rollup, channel, now)

    def _recent(self, connection: Connection, channel: str, now: float) -> int:
        joined = store.incidents.join(store.messages, store.incidents.c.message_id == store.messages.c.id)
        recent = sa.and_(
            store.messages.c.channel == channel,
            store.messages.c.kind.in_((INCIDENT, ROLLUP)),
            store.incidents.c.assigned_at > now - self.limits.window,
        )
        return int(connection.execute(sa.select(sa.func.count()).select_from(joined).where(recent)).scalar_one())

    def _roll_up(self, connection: Connection, incidents: Sequence[Incident], channel: str, now: float) -> None:
        """Add them to the roll-up that this storm already has, or to a new one."""
        joined = store.incidents.join(store.messages, store.incidents.c.message_id == store.messages.c.id)
        lately = sa.and_(
            store.messages.c.channel == channel,
            store.messages.c.kind == ROLLUP,
            store.incidents.c.assigned_at > now - self.limits.window,
        )
        newest = store.messages.c.created_at
        chosen = sa.select(store.messages.c.id, newest).select_from(joined).where(lately).order_by(newest.desc())
        found = connection.execute(chosen.limit(1)).first()
        if found is not None and not self.editable:
            # It cannot be added to: the next one comes when its window is over, for all that came until then.
            ids = [incident.id for incident in incidents]
            later = store.incidents.update().where(store.incidents.c.id.in_(ids))
            connection.execute(later.values(review_at=found.created_at + self.limits.window))
            return
        message_id = add_message(connection, ROLLUP, channel, now) if found is None else found.id
        self._carry(connection, incidents, message_id, now)

    def _carry(self, connection: Connection, members: Sequence[Incident], message_id: str, now: float) -> None:
        ids = [incident.id for incident in members]
        values = {"message_id": message_id, "assigned_at": now, "review_at": None}
        connection.execute(store.incidents.update().where(store.incidents.c.id.in_(ids)).values(**values))
        mark_stale(connection, [message_id])

    def claim(self, now: float, avoid: Collection[str] = (), *, find: bool = True) -> Work | None:
        """Return the next call to make and lease its message, or None: nothing is due, or its channel had a call just
        now. Channels in `avoid` are left alone; where not `find`, nothing is looked for.
        """
        with self.database.write() as connection:
            row = connection.execute(self._due(now, avoid, find=find)).mappings().first()
            if row is None:
                return None
            message = Message(**{name: row[name] for name in Message.__struct_fields__})
            return self._lease(connection, message, now)

    def _due(self, now: float, avoid: Collection[str], *, find: bool) -> sa.Select[Any]:
        table = store.messages.c
        stale = sa.and_(table.version > table.shown_version, table.updated_at <= now - self.pace.update)
        posted = sa.and_(table.state == POSTED, sa.or_(stale, table.reply_due)) if self.editable else sa.false()
        wanted = [table.state == NEW, posted, *([table.state == POSTING] if find else [])]
        busy = sa.select(store.channels.c.name).where(store.channels.c.next_call_at > now)
        usable = sa.and_(table.channel.not_in(busy), table.channel.not_in(list(avoid)))
        free = sa.and_(table.lease_until <= now, table.not_before <= now, usable, sa.or_(*wanted))
        order = sa.case((table.state == NEW, 0), (table.state == POSTING, 1), (table.reply_due, 2), else_=3)
        return sa.select(store.messages).where(free).order_by(order, table.updated_at, table.created_at).limit(1)

    def _lease(self, connection: Connection, message: Message, now: float) -> Work:
        act: Act = "find" if message.state == POSTING else "post" if message.state == NEW else "update"
        if message.state == POSTED and message.reply_due:
            act = "reply"
        self._note_call(connection, message.channel, now)
        message.channel_id = message.channel_id or self._channel_id(connection, message.channel)
        work = Work(act, message, *members_of(connection, message.id), now)
        changes: dict[str, Any] = {"lease_owner": self.database.owner, "lease_until": now + self.pace.lease}
        if act == "post":
            message.posting_version = message.version
            # What the post itself says need not be said in its thread.
            told = {"told_level": level(work.count), "told_reopens": work.reopens}
            changes |= {"state": POSTING, "attempt_at": now, "posting_version": message.version, **told}
        elif act == "reply":
            # Told at most once: a lost reply costs less than one that is repeated.
            changes |= {"reply_due": False, "told_level": level(work.count), "told_reopens": work.reopens}
        elif act == "find":
            work.since = self._earliest(connection, message)
        _update(connection, message.id, changes)
        return work

    def _note_call(self, connection: Connection, channel: str, now: float) -> None:
        mine = store.channels.c.name == channel
        pause = {"next_call_at": now + self.pace.call}
        if not connection.execute(store.channels.update().where(mine).values(**pause)).rowcount:
            connection.execute(store.channels.insert().values(name=channel, **pause))

    def _channel_id(self, connection: Connection, channel: str) -> str:
        return str(
            connection.execute(
                sa.select(store.channels.c.channel_id).where(store.channels.c.name == channel)
            ).scalar_one()
        )

    def _earliest(self, connection: Connection, message: Message) -> float:
        same = sa.and_(store.messages.c.channel == message.channel, store.messages.c.state == POSTING)
        return float(connection.execute(sa.select(sa.func.min(store.messages.c.attempt_at)).where(same)).scalar_one())

    def posted(self, work: Work, channel_id: str, ref: str, now: float) -> None:
        """Keep where the message is; it shows what it was posted with."""
        values = {"state": POSTED, "channel_id": channel_id, "ref": ref, "updated_at": now}
        with self.database.write() as connection:
            self._done(connection, work, {**values, "shown_version": work.message.posting_version, "not_before": 0.0})
            mine = store.channels.c.name == work.message.channel
            connection.execute(store.channels.update().where(mine).values(channel_id=channel_id))

    def updated(self, work: Work, now: float, *, reply: bool = False) -> None:
        """Note what the message shows now, and whether its thread is to be told."""
        self._end(work, {"shown_version": work.message.version, "updated_at": now, "reply_due": reply})

    def told(self, work: Work) -> None:
        """Note that the thread was told, or that it is not known whether it was."""
        self._end(work, {})

    def unposted(self, work: Work, *, again_at: float = 0.0) -> None:
        """The message is certainly not there: it has to be posted (again)."""
        self._end(work, {"state": NEW, "ref": "", "attempt_at": None, "not_before": again_at})

    def released(self, work: Work, *, again_at: float = 0.0) -> None:
        """Give it back as it is, for `again_at` or later; a post then counts as uncertain."""
        self._end(work, {"not_before": again_at, **({"reply_due": True} if work.act == "reply" else {})})

    def _done(self, connection: Connection, work: Work, values: Mapping[str, Any]) -> None:
        # Whose lease ran out has lost the message to somebody who has since found out how things stand.
        table = store.messages.c
        mine = sa.and_(table.id == work.message.id, table.lease_owner == self.database.owner)
        free = {"lease_owner": "", "lease_until": 0.0}
        connection.execute(store.messages.update().where(mine).values(**values, **free))

    def _end(self, work: Work, values: Mapping[str, Any]) -> None:
        with self.database.write() as connection:
            self._done(connection, work, values)

    def collect_changes(self, now: float, every: float, compose: Callable[[list[Incident], int], str]) -> None:
        """Where messages cannot be changed: post what changed since, one message a channel, at most each `every` s."""
        table = store.messages.c
        with self.database.write() as connection:
            lately = sa.select(table.channel).where(table.kind == CHANGES, table.created_at > now - every)
            stale = sa.and_(table.state == POSTED, table.version > table.shown_version, table.updated_at <= now - every)
            found = sa.select(table.id, table.channel).where(stale, table.channel.not_in(lately)).limit(_REVIEWED)
            changed: dict[str, list[str]] = defaultdict(list)
            for message_id, channel in connection.execute(found):
                changed[channel].append(message_id)
            for channel, ids in changed.items():
                members = [members_of(connection, message_id) for message_id in ids]
                body = compose([i for incidents, _ in members for i in incidents], sum(more for _, more in members))
                add_message(connection, CHANGES, channel, now, body=body)
                shown = store.messages.update().where(table.id.in_(ids))
                connection.execute(shown.values(shown_version=table.version, updated_at=now))

    def notice(self, key: str, channel: str, body: str, now: float) -> None:
        """Post a text of our own, once for each `key`, whoever notices first."""
        with self.database.write() as connection:
            if not connection.execute(sa.select(store.messages.c.id).where(store.messages.c.id == key)).scalar():
                add_message(connection, NOTICE, channel, now, body=body, id_=key)


def resolve(connection: Connection, incidents: Sequence[Incident], now: float) -> None:
    """Mark incidents as resolved, and their messages as stale."""
    ids = [incident.id for incident in incidents]
    values = {"state": RESOLVED, "resolved_at": now}
    connection.execute(store.incidents.update().where(store.incidents.c.id.in_(ids)).values(**values))
    mark_stale(connection, [incident.message_id for incident in incidents if incident.message_id])


def add_message(
    connection: Connection, kind: str, channel: str, now: float, *, body: str = "", id_: str | None = None
) -> str:
    """Make a message that is to be posted; return its id."""
    message_id = id_ or secrets.token_hex(8)
    row = {"id": message_id, "kind": kind, "channel": channel, "state": NEW, "created_at": now, "body": body}
    connection.execute(store.messages.insert().values(**row))
    return message_id


def members_of(connection: Connection, message_id: str) -> tuple[list[Incident], int]:
    """Return the incidents a message tells of, at most 500, and how many more there are."""
    table = store.incidents.c
    chosen = sa.select(store.incidents).where(table.message_id == message_id)
    rows = connection.execute(chosen.order_by(table.count.desc(), table.id).limit(MEMBERS)).mappings().all()
    total = len(rows)
    if total == MEMBERS:
        counted = sa.select(sa.func.count()).where(table.message_id == message_id)
        total = connection.execute(counted).scalar_one()
    return [incident_from(row) for row in rows], total - len(rows)


def _update(connection: Connection, message_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(store.messages.update().where(store.messages.c.id == message_id).values(**values))
