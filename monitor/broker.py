"""Which broker to watch and how to reach it, and one clear line where it cannot be reached."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kombu import Connection, Exchange, serialization
from kombu.exceptions import OperationalError
from kombu.serialization import registry  # type: ignore[attr-defined]

from .masking import masked

if TYPE_CHECKING:
    from celery import Celery

CONNECT_TIMEOUT = 4.0
"""Seconds until a connection attempt or a single socket operation is given up."""

_TLS_FILES = ("ca_certs", "certfile", "keyfile", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class BrokerError(ValueError):
    """The broker cannot be used; the text is one line for the user, without secrets."""


class BrokerSilentError(ConnectionError):
    """The broker was lost some time ago and only its silence tells: events are missing since the last that came."""


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """One broker and how Celery uses it. Defaults are Celery's; `url` may hold several, split by `;`.

    `accept` names the serializers that events may come in (json always; yaml, msgpack, pickle where allowed).
    Whatever may hold a secret is kept out of the repr.
    """

    url: str = field(repr=False)
    name: str = ""
    ssl: Any = field(default=None, repr=False)
    transport_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    login_method: str | None = None
    event_exchange: str = "celeryev"
    event_queue_prefix: str = "celeryev"
    event_queue_ttl: float | None = 5.0
    event_queue_expires: float | None = 60.0
    control_exchange: str = "celery"
    accept: frozenset[str] = frozenset({"json"})

    @classmethod
    def from_url(cls, url: str, **others: Any) -> BrokerConfig:
        """Return the configuration for a broker URL, with Celery's defaults for what the URL does not say."""
        return cls(url=url, **others)

    @property
    def label(self) -> str:
        """The broker as log lines and error messages name it: its name, if it has one, and its URL without secrets."""
        return f"broker {self.name} ({masked(self.url)})" if self.name else f"broker {masked(self.url)}"

    def connection(self, **transport_options: Any) -> Connection:
        """Return a kombu connection, not yet made, whose every socket operation ends within `CONNECT_TIMEOUT`.

        Raises:
            BrokerError: the URL is none, or nothing speaks its scheme.
        """
        try:
            connection = self._connection({**self.transport_options, **transport_options})
            driver = connection.transport.driver_type
        except Exception as error:
            raise BrokerError(f"{self.label}: {reason(error)}") from error
        defaults: dict[str, Any] = {}
        if driver == "redis":
            defaults = {
                "socket_timeout": CONNECT_TIMEOUT,
                "socket_connect_timeout": CONNECT_TIMEOUT,
                "socket_keepalive": True,
            }
        elif driver == "amqp":
            defaults = {"write_timeout": CONNECT_TIMEOUT, "read_timeout": 2 * CONNECT_TIMEOUT}
        connection.transport_options = {**defaults, **(connection.transport_options or {})}
        return connection

    def _connection(self, transport_options: Mapping[str, Any]) -> Connection:
        if "://" not in self.url:
            raise ValueError("has no scheme; write redis://HOST:PORT/DB or amqp://USER:PASSWORD@HOST:PORT/VHOST")
        return Connection(
            self.url,
            ssl=self.ssl or False,
            transport_options=dict(transport_options),
            login_method=self.login_method,
            connect_timeout=CONNECT_TIMEOUT,
            heartbeat=10,
        )

    def loads(self) -> dict[str, Callable[[bytes, str], object]]:
        """Return what the decoder needs for the serializers in `accept` besides JSON, by content type.

        Raises:
            BrokerError: kombu does not know one of them (msgpack and yaml need a package).
        """
        found: dict[str, Callable[[bytes, str], object]] = {}
        for name in sorted(self.accept - {"json"}):
            content_type = registry.name_to_type.get(name)
            if content_type is None:
                known = ", ".join(sorted(registry.name_to_type))
                raise BrokerError(f"accept-content {name!r} is not available here; there are: {known}")
            found[content_type] = partial(_load, content_type, frozenset({content_type}))
        return found


def _load(content_type: str, accept: frozenset[str], body: bytes, encoding: str) -> object:
    return serialization.loads(body, content_type, encoding or "utf-8", accept=accept)


def from_app(app: Celery, *, url: str | None = None, name: str = "", accept: Iterable[str] = ()) -> BrokerConfig:
    """Return the broker configuration of a Celery app; `url` replaces the app's, `accept` adds serializers."""
    conf = app.conf
    configured = url or conf.broker_read_url or conf.broker_url or "amqp://guest:guest@localhost:5672//"
    return BrokerConfig(
        url=configured if isinstance(configured, str) else ";".join(configured),
        name=name,
        ssl=conf.broker_use_ssl,
        transport_options=dict(conf.broker_transport_options or {}),
        login_method=conf.broker_login_method,
        event_exchange=conf.event_exchange,
        event_queue_prefix=conf.event_queue_prefix,
        event_queue_ttl=conf.event_queue_ttl,
        event_queue_expires=conf.event_queue_expires,
        control_exchange=conf.control_exchange,
        accept=frozenset({"json", *accept}),
    )


def event_exchange(config: BrokerConfig, connection: Connection) -> Exchange:
    """Return the exchange that events go through: what `celery.events.get_exchange` says, without importing Celery."""
    fanout = connection.transport.driver_type in {"redis", "gcpubsub"}
    return Exchange(config.event_exchange, type="fanout" if fanout else "topic")


def connect(connection: Connection) -> None:
    """Make the connection, trying each of several URLs once, without the pauses that kombu would make.

    Raises:
        BrokerError: a TLS file cannot be read.
        Exception: whatever the transport raises; `reason` explains it.
    """
    _check_tls_files(connection)
    others = max(0, len(connection.alt) - 1)
    connection.ensure_connection(max_retries=others, interval_start=0, interval_step=0, interval_max=0)


def _check_tls_files(connection: Connection) -> None:
    """Name the unreadable file: the TLS libraries only say that some file is missing."""
    if not isinstance(connection.ssl, Mapping):
        return
    for key in _TLS_FILES:
        path = connection.ssl.get(key)
        if isinstance(path, str | os.PathLike) and not os.access(Path(path), os.R_OK):
            raise BrokerError(f"the TLS file {key}={os.fspath(path)} cannot be read; check its path and permissions")


def reason(error: BaseException) -> str:
    """Return in one line why a broker cannot be used, and where it helps what to do; never with a password."""
    chain = list(_causes(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    # kombu's OperationalError only repeats what it wraps.
    first = next((cause for cause in chain if not isinstance(cause, OperationalError)), error)
    text = masked(" ".join(str(first).split()))[:300]
    for found in (_refused(names, text), _unwilling(names, text), _tls(chain, text), _url_fault(first, text)):
        if found:
            return found
    if isinstance(first, TimeoutError) or "TimeoutError" in type(first).__name__:
        return f"no answer in time ({text or 'timeout'}); is it alive, and is TLS on, or off, on both sides?"
    return text or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what caused it: TLS errors hide behind redis-py's, and those behind kombu's."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _refused(names: set[str], text: str) -> str | None:
    if "NoPermissionError" in names or text.startswith("NOPERM"):
        return f"the user lacks a permission: {text}; see the ACL line in the documentation"
    if {"AuthenticationError", "AuthenticationWrongNumberOfArgsError"} & names or "WRONGPASS" in text:
        return f"wrong user name or password ({text})"
    if "AccessRefused" in names:
        return f"wrong user name or password, or no permission ({text})"
    if "NotAllowed" in names:
        return f"no such virtual host, or the user may not use it ({text})"
    return None


def _unwilling(names: set[str], text: str) -> str | None:
    if "ReadOnlyError" in names:
        return f"it is a read-only replica; name its master, or the sentinels, in the URL ({text})"
    if "OutOfMemoryError" in names:
        return f"it is out of memory; raise its maxmemory or make room ({text})"
    return None


def _tls(chain: list[BaseException], text: str) -> str | None:
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain) or "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the server's certificate is not trusted; name its CA in the TLS options ({text})"
    if any(isinstance(cause, ssl.SSLError) for cause in chain) or "[SSL" in text:
        return f"the TLS handshake failed; is this a TLS port? ({text})"
    return None


def _url_fault(error: BaseException, text: str) -> str | None:
    if isinstance(error, KeyError) and "No such transport" in text:
        return f"{error.args[0]}; usual schemes are redis, rediss, sentinel, amqp and amqps"
    if text.startswith("Port could not be cast"):
        # Not all of its words: it quotes what it takes for the port, which is a part of the password.
        return "Port could not be cast to a number; in a password write / as %2F, : as %3A and @ as %40"
    if "Protocol error" in text:
        return f"what answers there does not speak Redis ({text})"
    if isinstance(error, ImportError):
        return f"its transport needs a package that is not installed ({text})"
    if "master_name" in text:
        return "sentinel:// needs the transport option master_name; take the options from your app with -A"
    return None
