"""The web configuration file of Prometheus' exporter-toolkit: read, checked, followed when it changes."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import yaml

from .auth import Authenticator, is_bcrypt
from .pages import plain, send
from .tls import TlsSection, WebConfigError, allowed_peer, files_of, server_context

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["WebConfig", "WebConfigError"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
"""The headers that the toolkit lets a file set, with the values that it takes (any, where none is given)."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


CHECKED_AT_ONCE = 4
"""Clients whose passwords are being checked, or wait for that. Each holds one of the server's threads: some must be
left for those that are known, or a crowd that guesses would keep them waiting."""
_SOON = ("Retry-After", "1")


class HttpSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`http_server_config`; `http2` is accepted and changes nothing, this server speaks HTTP/1.1."""

    http2: bool = True
    headers: dict[str, str] | None = None


Burst = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class RateSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`rate_limit`: one request an interval, and so many at once."""

    interval: str | int = 0
    burst: Burst = 0


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    tls_server_config: TlsSection | None = None
    http_server_config: HttpSection | None = None
    rate_limit: RateSection | None = None
    basic_auth_users: dict[str, str] | None = None


class _State(NamedTuple):
    """What the files said when they were last good."""

    users: Mapping[str, str]
    headers: list[tuple[str, str]]
    rate: tuple[float, int]
    context: ssl.SSLContext | None
    allowed_sans: tuple[str, ...]


class WebConfig:
    """The configuration at `path`, as of now: files that changed are read again for the next request or handshake.

    A change that cannot be used is logged once, and what was good before goes on; whether there is TLS at all is
    decided at the start.

    Raises:
        WebConfigError: (when constructed) the file or one that it names cannot be used; one line that names the key.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._authenticator = Authenticator()
        self._checking = threading.BoundedSemaphore(CHECKED_AT_ONCE)
        self._watched: tuple[Path, ...] = (self._path,)
        self._seen: tuple[object, ...] = ()
        self._state = self._load()
        self.tls = self._state.context is not None
        self._limiter = _Limiter(*self._state.rate, clock)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of this moment."""
        context = self._current().context
        if context is None:
            raise WebConfigError(f"{self._path}: no tls_server_config")
        return context

    def refuses(self, certificate: Mapping[str, Any] | None) -> str | None:
        """Return why a client with this (verified) certificate is not let in, or None."""
        allowed = self._state.allowed_sans
        return None if not allowed or allowed_peer(certificate, allowed) else "no name in client_allowed_sans"

    def guard(self, app: WSGIApplication) -> WSGIApplication:
        """Return the application behind the rate limit and basic authentication, with the configured headers."""

        def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            state = self._current()

            def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                return start_response(status, [*headers, *state.headers], *rest)

            if not self._limiter.allows():
                return send(plain("429 Too Many Requests", "too many requests (rate_limit)"), environ, start)
            passes = self._passes(state.users, environ.get("HTTP_AUTHORIZATION")) if state.users else True
            if passes is None:
                return send(plain("503 Service Unavailable", "busy checking passwords", _SOON), environ, start)
            if not passes:
                ask = ("WWW-Authenticate", 'Basic realm="celeryscope", charset="UTF-8"')
                return send(plain("401 Unauthorized", "unauthorized", ask), environ, start)
            return app(environ, start)

        return guarded

    def _passes(self, users: Mapping[str, str], authorization: str | None) -> bool | None:
        """Whether a client may pass; None where so many passwords are being checked that it would have to wait."""
        settled = self._authenticator.settled(users, authorization)
        if settled is not None:
            return settled
        if not self._checking.acquire(blocking=False):
            return None
        try:
            return self._authenticator.allows(users, authorization)
        finally:
            self._checking.release()

    def _current(self) -> _State:
        if self._fingerprint() == self._seen:
            return self._state
        with self._lock:
            now = self._fingerprint()
            if now == self._seen:
                return self._state
            self._seen = now
            try:
                state = self._load()
                if (state.context is not None) != self.tls:
                    raise WebConfigError(f"{self._path}: switching TLS on or off needs a restart")
            except WebConfigError as error:
                log.error("web configuration not taken over, the one before stays: %s", error)  # noqa: TRY400 - one clear line
            else:
                self._take(state)
        return self._state

    def _take(self, state: _State) -> None:
        if state.rate != self._state.rate:
            self._limiter = _Limiter(*state.rate, self._clock)
        self._state = state
        log.info("web configuration %s read again", self._path)

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple(_identity(path) for path in self._watched)

    def _load(self) -> _State:
        before = _identity(self._path)
        file = _parse(self._path)
        tls, http, rate = file.tls_server_config, file.http_server_config, file.rate_limit or RateSection()
        named = files_of(tls, self._path.parent)
        self._watched = (self._path, *named)
        # As they were before they are read: what changes meanwhile is then seen as a change.
        self._seen = (before, *map(_identity, named))
        context = server_context(tls, self._path) if tls is not None and tls != TlsSection() else None
        return _State(
            _users(file.basic_auth_users or {}, self._path),
            _headers((http.headers if http else None) or {}, self._path),
            (_interval(rate.interval, self._path), _burst(rate, self._path)),
            context,
            tuple(tls.client_allowed_sans or ()) if tls else (),
        )


class _Limiter:
    """A token bucket; an interval of 0 lets everything pass."""

    def __init__(self, interval: float, burst: int, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._last = clock()

    def allows(self) -> bool:
        if not self._interval:
            return True
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._last) / self._interval)
            self._last = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: no path at all
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice: the first value, a user's password perhaps, would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(path: Path) -> _File:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise WebConfigError(f"--web.config.file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WebConfigError(f"--web.config.file: {path} is not UTF-8 text") from None
    except RecursionError:
        raise WebConfigError(f"{path}: not YAML: nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # PyYAML's own, over what says to be a date, a number or a truth value and is none.
        raise WebConfigError(f"{path}: holds a date, a number or a truth value that is none") from None
    except yaml.YAMLError as error:
        # Not str(error): it quotes the file, and the file holds secrets.
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise WebConfigError(f"{path}: not YAML{place}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    try:
        return msgspec.convert(content or {}, _File)
    except msgspec.ValidationError as error:
        raise WebConfigError(f"{path}: {_readable(error)}") from None


def _readable(error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint with the key in front: `tls_server_config: unknown key 'certfile'`."""
    text, _, where = str(error).partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    text = f"unknown key {unknown.group(1)!r}" if unknown else text
    return f"{where}: {text}" if where else text


def _users(users: dict[str, str], path: Path) -> dict[str, str]:
    for user, hashed in users.items():
        if not is_bcrypt(hashed):
            raise WebConfigError(
                f"{path}: basic_auth_users: the password of {user!r} is not a bcrypt hash; "
                "make one with: htpasswd -nBC 10 '' | tr -d ':\\n'"
            )
        if ":" in user:
            raise WebConfigError(f"{path}: basic_auth_users: {user!r}: a user name cannot hold a colon")
    return users


def _headers(headers: dict[str, str], path: Path) -> list[tuple[str, str]]:
    for name, value in headers.items():
        where = f"{path}: http_server_config.headers"
        if name not in _HEADERS:
            raise WebConfigError(f"{where}: {name!r} cannot be set; only {', '.join(_HEADERS)}")
        if value and _HEADERS[name] and value not in _HEADERS[name]:
            raise WebConfigError(f"{where}.{name}: {value!r} is none of {', '.join(_HEADERS[name])}")
        if not value.isprintable() or not value.isascii():
            raise WebConfigError(f"{where}.{name}: only printable ASCII")
    return [(name, value) for name, value in headers.items() if value]


def _interval(value: str | int, path: Path) -> float:
    text = str(value)
    parts = _DURATION.findall(text)
    if text == "0":
        return 0.0
    if "".join(number + unit for number, unit in parts) != text:
        raise WebConfigError(f"{path}: rate_limit.interval: {text!r} is not a duration such as 1s or 100ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _burst(rate: RateSection, path: Path) -> int:
    if str(rate.interval) != "0" and rate.burst < 1:
        raise WebConfigError(f"{path}: rate_limit.burst: must be at least 1, or no request would pass")
    return rate.burst
