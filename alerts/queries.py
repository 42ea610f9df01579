"""What people ask the incident store and tell it by hand, and what it forgets (edge)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import store
from .incidents import OPEN, RESOLVED, Incident
from .intake import incident_from, mark_stale
from .mailbox import POSTED, resolve
from .store import Database

BATCH_IDS_KEPT = 8 * 86_400.0
"""Longer than a message may wait in the outbox: a batch cannot come again after that."""
STATES = (OPEN, RESOLVED, "muted", "waiting")


class NoSuchIncidentError(Exception):
    """No incident has that id, or several begin with it."""


def incidents(database: Database, *, states: Sequence[str] = (), limit: int = 100) -> list[Incident]:
    """Return incidents, the latest failure first."""
    chosen = sa.select(store.incidents).order_by(store.incidents.c.last.desc()).limit(limit)
    if states:
        chosen = chosen.where(store.incidents.c.state.in_(list(states)))
    with database.read() as connection:
        return [incident_from(row) for row in connection.execute(chosen).mappings()]


def incident(database: Database, start: str) -> tuple[Incident, dict[str, Any]]:
    """Return the incident whose id begins with `start`, and the message that tells of it (empty where none does).

    Raises:
        NoSuchIncidentError: there is none, or more than one.
    """
    with database.read() as connection:
        found = _one(connection, start)
        chosen = sa.select(store.messages).where(store.messages.c.id == found.message_id)
        row = connection.execute(chosen).mappings().first()
    return found, dict(row) if row else {}


def resolve_by_hand(database: Database, start: str, now: float) -> Incident:
    """Mark an incident as resolved; the same failure reopens it."""
    with database.write() as connection:
        found = _one(connection, start)
        if found.state == OPEN:
            resolve(connection, [found], now)
        return _one(connection, found.id)


def mute(database: Database, start: str, until: float | None) -> Incident:
    """Keep an incident silent until then (unix time), or let it speak again (None)."""
    with database.write() as connection:
        found = _one(connection, start)
        waiting = {} if found.message_id else {"review_at": 0.0}
        mine = store.incidents.c.id == found.id
        connection.execute(store.incidents.update().where(mine).values(muted_until=until, **waiting))
        mark_stale(connection, [found.message_id] if found.message_id else [])
        return _one(connection, found.id)


def open_tasks(database: Database) -> set[str]:
    """Return the tasks that have open incidents."""
    with database.read() as connection:
        chosen = sa.select(store.incidents.c.task).where(store.incidents.c.state == OPEN).distinct()
        return set(connection.execute(chosen).scalars())


def states(database: Database, now: float) -> dict[str, int]:
    """Return how many incidents are open, resolved, muted by hand, and waiting to be told on Slack."""
    table = store.incidents.c
    joined = store.incidents.join(store.messages, table.message_id == store.messages.c.id)
    with database.read() as connection:
        counted = sa.select(table.state, sa.func.count()).group_by(table.state)
        found = dict.fromkeys(STATES, 0) | dict(tuple(row) for row in connection.execute(counted))
        muted = sa.select(sa.func.count()).where(table.muted_until > now)
        waiting = sa.select(sa.func.count()).select_from(joined).where(store.messages.c.state != POSTED)
        found["muted"] = connection.execute(muted).scalar_one()
        found["waiting"] = connection.execute(waiting).scalar_one()
    return found


def prune(database: Database, now: float, retention: float) -> None:
    """Forget incidents that ended before `retention` seconds, messages nobody refers to, and old batches' ids."""
    table = store.incidents.c
    old = now - retention
    with database.write() as connection:
        connection.execute(store.batches.delete().where(store.batches.c.at < now - BATCH_IDS_KEPT))
        connection.execute(store.incidents.delete().where(table.state == RESOLVED, table.resolved_at < old))
        # One that never succeeds again (its task was deleted) is not kept for ever either.
        connection.execute(store.incidents.delete().where(table.last < now - 4 * retention))
        told = sa.select(table.message_id).where(table.message_id.is_not(None))
        lost = sa.and_(store.messages.c.created_at < old, store.messages.c.id.not_in(told))
        connection.execute(store.messages.delete().where(lost))


def _one(connection: Connection, start: str) -> Incident:
    chosen = sa.select(store.incidents).where(store.incidents.c.id.startswith(start, autoescape=True)).limit(2)
    rows = connection.execute(chosen).mappings().all()
    if len(rows) != 1:
        problem = "no incident has the id" if not rows else "several incidents' ids begin with"
        raise NoSuchIncidentError(f"{problem} {start!r}; `celeryscope incidents list` shows them")
    return incident_from(rows[0])
