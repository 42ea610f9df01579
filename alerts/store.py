"""The incident store's database: its tables, its schema version, its one writer at a time, and who may share it (edge).

An SQLite file serves the alerters of one machine, PostgreSQL those of several. All changes are made inside `write()`,
which lets one writer in at a time, on SQLite by its own lock and on PostgreSQL by an advisory one: reading, deciding
and writing back are then one step, whoever else runs.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from ..monitor.masking import masked

SCHEMA_VERSION = 1
SEEN_WITHIN = 60.0
"""Seconds after its last sign of life in which an alerter counts as running."""
_WRITER_LOCK = 0x63656C6572797363  # "celerysc": the advisory lock's number

metadata = sa.MetaData()
Text, Float, Integer, BigInteger, Boolean = sa.Text, sa.Double, sa.Integer, sa.BigInteger, sa.Boolean


def _column(name: str, kind: Any, default: Any = None) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, default=default)


meta = sa.Table("celeryscope_meta", metadata, sa.Column("name", Text, primary_key=True), _column("value", Text))

alerters = sa.Table(
    "celeryscope_alerters",
    metadata,
    sa.Column("owner", Text, primary_key=True),
    _column("host", Text),
    _column("name", Text),
    _column("seen", Float),
)

batches = sa.Table(
    "celeryscope_batches", metadata, sa.Column("id", Text, primary_key=True), sa.Column("at", Float, index=True)
)

incidents = sa.Table(
    "celeryscope_incidents",
    metadata,
    sa.Column("id", Text, primary_key=True),
    # Of all incidents of one kind only the current one has the key; history has none.
    sa.Column("current_key", Text, unique=True),
    _column("key", Text),
    _column("fingerprint", Text),
    _column("environment", Text),
    sa.Column("task", Text, nullable=False, index=True),
    _column("exception", Text),
    _column("sample", Text),
    _column("count", BigInteger),
    _column("first", Float),
    _column("last", Float),
    _column("opened_at", Float),
    _column("state", Text),
    sa.Column("resolved_at", Float),
    _column("reopens", Integer, 0),
    sa.Column("last_success", Float),
    sa.Column("muted_until", Float),
    _column("held", Boolean, False),
    _column("minutes", Text, "{}"),
    sa.Column("message_id", Text, index=True),
    sa.Column("assigned_at", Float),
    # When to ask again whether it gets a message; nothing where it has one or never will.
    sa.Column("review_at", Float, index=True),
)

messages = sa.Table(
    "celeryscope_messages",
    metadata,
    sa.Column("id", Text, primary_key=True),
    _column("kind", Text),
    _column("channel", Text),
    _column("channel_id", Text, ""),
    _column("ref", Text, ""),
    _column("state", Text),
    _column("version", BigInteger, 1),
    _column("shown_version", BigInteger, 0),
    _column("posting_version", BigInteger, 0),
    _column("created_at", Float),
    sa.Column("attempt_at", Float),
    _column("not_before", Float, 0.0),
    _column("updated_at", Float, 0.0),
    _column("told_level", BigInteger, 0),
    _column("told_reopens", Integer, 0),
    _column("reply_due", Boolean, False),
    _column("body", Text, ""),
    _column("lease_owner", Text, ""),
    _column("lease_until", Float, 0.0),
)

channels = sa.Table(
    "celeryscope_channels",
    metadata,
    sa.Column("name", Text, primary_key=True),
    _column("channel_id", Text, ""),
    _column("next_call_at", Float, 0.0),
)


class StoreError(Exception):
    """The store cannot be used as it is; the text says what to do."""


class Database:
    """One connection pool to the store. `clock` gives unix time; `host` is what machine this is."""

    def __init__(self, url: str, clock: Callable[[], float], *, host: str | None = None) -> None:
        self.url = _url(url)
        self.clock = clock
        self.host = host or this_machine()
        self.owner = uuid.uuid4().hex
        self.engine = _engine(self.url)

    @property
    def one_machine(self) -> bool:
        """Whether only alerters on one machine may share it."""
        return self.url.get_backend_name() == "sqlite"

    def open(self) -> None:
        """Make or check the tables, and say that this alerter is there.

        Raises:
            StoreError: a newer schema, an alerter of another machine on an SQLite file, or no database to be had.
        """
        try:
            if self.one_machine:
                _private_file(Path(str(self.url.database)))
            with self.write() as connection:
                metadata.create_all(connection)
                self._check_version(connection)
            self.register()
        except (sa.exc.OperationalError, OSError) as error:
            raise StoreError(f"store {self.shown}: cannot be opened: {_reason(error)}") from None

    def inspect(self) -> None:
        """Check that there is a store that this version can read, without becoming one of its alerters.

        Raises:
            StoreError: there is none, or it is of another version.
        """
        if self.one_machine and not Path(str(self.url.database)).is_file():
            raise StoreError(f"store {self.shown}: there is none yet; `celeryscope alerter` makes it (see --store)")
        try:
            with self.write() as connection:
                self._check_version(connection)
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"store {self.shown}: {_reason(error)}") from None

    @property
    def shown(self) -> str:
        """The URL for people, without its passwords: there may be one among the options as well."""
        return masked(self.url.set(drivername=self.url.get_backend_name()).render_as_string(hide_password=True))

    def register(self) -> None:
        """Note that this alerter runs; call it several times a minute.

        Raises:
            StoreError: an alerter of another machine uses the same SQLite file.
        """
        now = self.clock()
        with self.write() as connection:
            connection.execute(alerters.delete().where(alerters.c.seen < now - 10 * SEEN_WITHIN))
            others = connection.execute(
                sa.select(alerters.c.name).where(alerters.c.host != self.host, alerters.c.seen > now - SEEN_WITHIN)
            ).scalars()
            other = next(iter(others), None)
            if self.one_machine and other is not None:
                raise StoreError(
                    f"store {self.shown}: an alerter on another machine ({other}) uses this file, which only alerters "
                    f"of one machine may share. Give both a PostgreSQL store, or wait {SEEN_WITHIN:g} s if this one "
                    "has just replaced that one."
                )
            self._upsert(connection, now)

    def _upsert(self, connection: Connection, now: float) -> None:
        connection.execute(alerters.delete().where(alerters.c.owner == self.owner))
        connection.execute(
            alerters.insert().values(owner=self.owner, host=self.host, name=socket.gethostname(), seen=now)
        )

    def close(self) -> None:
        """Say that this alerter is gone; never raises."""
        try:
            with self.write() as connection:
                connection.execute(alerters.delete().where(alerters.c.owner == self.owner))
        except sa.exc.SQLAlchemyError:
            pass  # its sign of life grows old all the same
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction with the store to itself; keep it short, and never call anybody inside."""
        with self.engine.connect() as connection:
            connection.execution_options(celeryscope_begin="BEGIN IMMEDIATE")
            with connection.begin():
                if not self.one_machine:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": _WRITER_LOCK})
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def _check_version(self, connection: Connection) -> None:
        found = connection.execute(sa.select(meta.c.value).where(meta.c.name == "schema")).scalar()
        if found is None:
            connection.execute(meta.insert().values(name="schema", value=str(SCHEMA_VERSION)))
        elif int(found) > SCHEMA_VERSION:
            raise StoreError(
                f"store {self.shown}: its schema is version {found}, this celeryscope knows {SCHEMA_VERSION}: "
                "run the version that made it, or a newer one"
            )


def _reason(error: Exception) -> str:
    return masked(str(getattr(error, "orig", None) or error).strip().split("\n")[0])


def this_machine() -> str:
    """Return what all processes of this machine, in containers too, have in common until it restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def _url(text: str) -> URL:
    try:
        url = make_url(text)
    except sa.exc.ArgumentError:
        raise StoreError(
            f"store {masked(text)!r}: is no database URL; sqlite:////path/file.db or postgresql://…"
        ) from None
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite+pysqlite")
    raise StoreError(f"store {masked(url.render_as_string())}: must be sqlite:////path/file.db or postgresql://…")


def _private_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made here and not by SQLite, whose umask would decide; the -wal and -shm files get the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        # Kept open: whenever the last connection closes, SQLite empties and removes its log, at the price of syncs.
        engine = sa.create_engine(
            url, pool_size=4, connect_args={"timeout": 30.0, "check_same_thread": False}, hide_parameters=True
        )
        sa.event.listen(engine, "connect", _sqlite_connected)
        sa.event.listen(engine, "begin", _sqlite_begin)
        return engine
    options = {"connect_timeout": 10, "application_name": "celeryscope alerter"}
    return sa.create_engine(
        url, pool_pre_ping=True, pool_size=3, max_overflow=2, connect_args=options, hide_parameters=True
    )


def _sqlite_connected(connection: Any, _record: Any) -> None:
    # The driver begins no transaction of its own; _sqlite_begin does (SQLAlchemy's recipe for pysqlite).
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # Failures are acknowledged once they are here: a commit must outlive a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("celeryscope_begin", "BEGIN"))
