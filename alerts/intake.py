"""Batches into the incident store: counted once, in whole transactions, messages about them marked as stale (edge)."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import store
from .batches import Batch, Sample, redacted, sample_from, sample_text
from .incidents import Incident, Tally, absorb, tallies
from .policy import Plan
from .store import Database

NOTIFIED, GROUPED, MUTED, DUPLICATE, REJECTED = "notified", "grouped", "muted", "duplicate", "rejected"
RESULTS = (NOTIFIED, GROUPED, MUTED, DUPLICATE, REJECTED)
_CHUNK = 400
_REFUSALS = (sa.exc.DataError, sa.exc.IntegrityError, UnicodeError, OverflowError)


@dataclass
class Intake:
    """Takes batches in; `plan` says what a sample's route is. `results` counts failures by their fate."""

    database: Database
    plan: Callable[[Sample], Plan]
    results: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(RESULTS, 0)))

    def take(self, batches: Sequence[Batch], now: float) -> list[Batch]:
        """Absorb `batches`; return those that the database refuses for what is in them.

        Raises:
            sqlalchemy.exc.OperationalError: the database cannot be used now; nothing was counted.
        """
        try:
            self.absorb(batches, now)
        except _REFUSALS:
            if len(batches) == 1:
                return list(batches)
            return [refused for batch in batches for refused in self.take([batch], now)]
        return []

    def absorb(self, batches: Sequence[Batch], now: float) -> None:
        """Count all failures of `batches` in one transaction; a batch that was counted before is left out.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: nothing was counted.
        """
        results: Counter[str] = Counter()
        with self.database.write() as connection:
            fresh = self._fresh(connection, batches, now, results)
            wanted = self._without_unwanted_retries(fresh, results)
            found = tallies(wanted, now)
            known = load_current(connection, list(found))
            for key, tally in found.items():
                self._count(connection, known.get(key), tally, now, results)
            touched = [incident.message_id for incident in known.values() if incident.message_id]
            mark_stale(connection, touched)
        self.results.update(results)

    def _fresh(
        self, connection: Connection, batches: Sequence[Batch], now: float, results: Counter[str]
    ) -> list[Batch]:
        ids = {batch.id for batch in batches}
        seen = set(connection.execute(sa.select(store.batches.c.id).where(store.batches.c.id.in_(ids))).scalars())
        fresh: list[Batch] = []
        for batch in batches:
            if batch.id in seen:
                results[DUPLICATE] += batch.failures
                continue
            seen.add(batch.id)
            fresh.append(batch)
        if fresh:
            connection.execute(store.batches.insert(), [{"id": batch.id, "at": now} for batch in fresh])
        return fresh

    def _without_unwanted_retries(self, batches: Sequence[Batch], results: Counter[str]) -> Sequence[Batch]:
        for batch in batches:
            wanted = []
            for entry in batch.entries:
                if entry.sample.retry and not self.plan(entry.sample).notify_retries:
                    results[MUTED] += entry.count
                else:
                    wanted.append(entry)
            batch.entries = wanted
        return batches

    def _count(
        self, connection: Connection, known: Incident | None, tally: Tally, now: float, results: Counter[str]
    ) -> None:
        new_id = secrets.token_hex(6)
        incident = absorb(known, tally, now, new_id)
        if incident.id != new_id:
            connection.execute(
                store.incidents.update()
                .where(store.incidents.c.id == incident.id)
                .values(**_changed(incident), **_review(incident))
            )
        else:
            if known is not None:  # the old one becomes history
                old = store.incidents.c.id == known.id
                connection.execute(store.incidents.update().where(old).values(current_key=None, review_at=None))
            connection.execute(store.incidents.insert().values(**_row(incident), review_at=0.0))
        muted = incident.muted(now) or self.plan(incident.sample).mute
        _tell(results, tally.count, muted=muted, new=incident.id == new_id)


def _tell(results: Counter[str], count: int, *, muted: bool, new: bool) -> None:
    if muted:
        results[MUTED] += count
        return
    results[NOTIFIED] += int(new)
    results[GROUPED] += count - int(new)


def mark_stale(connection: Connection, message_ids: Sequence[str]) -> None:
    """Note that messages no longer show what is known."""
    ids = sorted(set(message_ids))
    for start in range(0, len(ids), _CHUNK):
        chosen = store.messages.c.id.in_(ids[start : start + _CHUNK])
        connection.execute(store.messages.update().where(chosen).values(version=store.messages.c.version + 1))


def load_current(connection: Connection, keys: Sequence[str]) -> dict[str, Incident]:
    """Return the current incidents with these keys."""
    found: dict[str, Incident] = {}
    for start in range(0, len(keys), _CHUNK):
        chosen = store.incidents.c.current_key.in_(keys[start : start + _CHUNK])
        for row in connection.execute(sa.select(store.incidents).where(chosen)).mappings():
            found[row["current_key"]] = incident_from(row)
    return found


def incident_from(row: Any) -> Incident:
    """Return a row of the table as an incident."""
    values = {name: row[name] for name in Incident.__struct_fields__ if name not in ("sample", "minutes")}
    minutes = msgspec.json.decode(row["minutes"], type=dict[int, int])
    return Incident(**values, sample=sample_from(row["sample"]), minutes=minutes)


def _changed(incident: Incident) -> dict[str, Any]:
    return {
        "sample": sample_text(redacted(incident.sample)),
        "minutes": msgspec.json.encode(incident.minutes).decode(),
        **{name: getattr(incident, name) for name in ("count", "first", "last", "state", "resolved_at", "reopens")},
    }


def _row(incident: Incident) -> dict[str, Any]:
    kept = ("id", "key", "fingerprint", "environment", "task", "exception", "opened_at", "held", "message_id")
    return {**{name: getattr(incident, name) for name in kept}, "current_key": incident.key, **_changed(incident)}


def _review(incident: Incident) -> dict[str, Any]:
    return {} if incident.message_id else {"review_at": 0.0}
