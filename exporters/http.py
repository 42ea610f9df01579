"""The HTTP server under the pages: listening, bounded clients, TLS handshakes, stopping at once."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cheroot import wsgi
from cheroot.makefile import MakeFile
from cheroot.server import HeaderReader, HTTPConnection, HTTPRequest
from cheroot.ssl import Adapter

from ..monitor.values import Address
from .pages import Check, Page, Pages
from .webconfig import WebConfig

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

THREADS = 8
REQUEST_SECONDS = 5.0
"""In which a request (and the TLS handshake before it) must have arrived, once its first byte has."""
RESPONSE_SECONDS = 30.0
"""In which a response must have been taken."""
SILENT_SECONDS = 10.0
"""How long a new connection may stay silent; it waits without a thread."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the usual scrape interval, so that a scrape over TLS does not begin with a handshake."""
OPEN_CONNECTIONS = 256
HEADER_BYTES = 16_384
BODY_BYTES = 65_536
STOP_SECONDS = 0.4
"""Grace for requests under way when the server stops."""


class ListenError(Exception):
    """The address cannot be listened on; the message is for the user, one line."""


class Server:
    """Serves metrics pages (by path), `/-/healthy`, `/-/ready` and `/`, from a few threads of its own.

    `web_config` adds TLS, client certificates, basic authentication and headers to every path.
    """

    def __init__(
        self,
        listen: Address,
        pages: Mapping[str, Page],
        *,
        health: Check | None = None,
        ready: Check | None = None,
        web_config: WebConfig | None = None,
        title: str = "celeryscope",
    ) -> None:
        checks = {name: check for name, check in (("health", health), ("ready", ready)) if check is not None}
        app: WSGIApplication = Pages(pages, title=title, **checks)
        self._listen = listen
        self._web_config = web_config
        self._app = app if web_config is None else web_config.guard(app)
        self._server: _Cheroot | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> Address:
        """Where the server listens; with the real port (port 0 is any free one) once it has started."""
        return self._listen if self._server is None else Address(*self._server.bind_addr[:2])

    @property
    def port(self) -> int:
        """The port, the real one once the server has started."""
        return self.address.port

    @property
    def url(self) -> str:
        """An address of the landing page that works on this machine."""
        host, port = self.address
        host = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "localhost"}.get(host, host)  # noqa: S104 - not bound
        tls = self._web_config is not None and self._web_config.tls
        return f"{'https' if tls else 'http'}://{Address(host, port)}"

    def start(self) -> None:
        """Listen and serve in the background.

        Raises:
            ListenError: the address cannot be listened on.
        """
        bound = _bound_socket(self._listen)
        server = _Cheroot(bound, self._app)
        if self._web_config is not None and self._web_config.tls:
            server.ssl_adapter = _Tls(self._web_config)
        # cheroot's worker threads are daemons only when a daemon thread makes them; others would outlive a crash.
        self._thread = threading.Thread(target=server.run, name="celeryscope-http", daemon=True)
        self._thread.start()
        server.prepared.wait()
        if not server.ready:
            raise ListenError(f"--listen {self._listen}: the server does not start; the log has more")
        self._server = server

    def stop(self) -> None:
        """Stop serving in less than a second, whatever the clients do; harmless when not started."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            self._listen = Address(*server.bind_addr[:2])
            server.stop()
            self._thread.join(1)

    def __enter__(self) -> Server:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _bound_socket(address: Address) -> socket.socket:
    """Return a bound, not yet listening socket; for the empty host one of both families where there is IPv6."""
    try:
        infos = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"--listen {address}: {address.host!r} is not a host name or address ({error})") from None
    # A name such as localhost: IPv4 first, since that is what people type into curl; "every address": IPv6 takes both.
    infos.sort(key=lambda info: (info[0] == socket.AF_INET6) != (address.host == ""))
    problem: OSError | None = None
    for family, kind, protocol, _, target in infos:
        try:
            return _bind(socket.socket(family, kind, protocol), target, both_families=address.host == "")
        except OSError as error:
            problem = error
    raise ListenError(f"--listen {address}: {_why(problem)}") from problem


def _bind(sock: socket.socket, target: Any, *, both_families: bool) -> socket.socket:
    try:
        if target[1]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both_families))
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock


def _why(error: OSError | None) -> str:
    if error is None:
        return "no address found"
    known = {
        errno.EADDRINUSE: "the port is in use; stop what listens there or choose another port",
        errno.EACCES: "not permitted; ports below 1024 need privileges, choose another port",
        errno.EADDRNOTAVAIL: "not an address of this machine; use 127.0.0.1 or, for every address, :PORT",
    }
    return known.get(error.errno or 0, error.strerror or str(error))


class _Headers(HeaderReader):
    """Refuses lines that others may read otherwise: continued ones, which are obsolete, and headers without a name."""

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        """Read header lines up to the empty one."""
        headers: dict[bytes, bytes] = super().__call__(_Strict(rfile), hdict)
        return headers


class _Strict:
    def __init__(self, rfile: Any) -> None:
        self._rfile = rfile

    def readline(self, *args: Any) -> bytes:
        line = bytes(self._rfile.readline(*args))
        if line[:1] in (b" ", b"\t", b":"):
            raise ValueError("Illegal header line.")
        return line


class _Request(HTTPRequest):
    """A request after which nothing is read that could be taken for another one."""

    header_reader = _Headers()

    def read_request_headers(self) -> bool:
        """Read the headers; after a request that speaks of a body, which nobody here reads, the connection ends.

        A proxy may find the end of such a request elsewhere than we do.
        """
        readable: bool = super().read_request_headers()  # type: ignore[no-untyped-call]
        if self.chunked_read or {b"Content-Length", b"Transfer-Encoding"} & set(self.inheaders):
            self.close_connection = True
        return readable


class _Connection(HTTPConnection):
    """A connection whose requests and responses have deadlines as a whole, not only between two bytes."""

    RequestHandlerClass = _Request
    server: _Cheroot

    def __init__(self, server: _Cheroot, sock: Any, _makefile: Any = None) -> None:
        self._deadline = math.inf
        self._receiving = True
        self.waited = False
        self._greeted = not isinstance(sock, ssl.SSLSocket)
        self._timed = _Timed(sock, self)
        super().__init__(server, self._timed, MakeFile)
        server.open_connections.add(self)

    def remaining(self, *, receiving: bool) -> float:
        """Return the seconds left for what is going on, or raise TimeoutError."""
        if self._receiving and not receiving:
            self._deadline = time.monotonic() + RESPONSE_SECONDS
        self._receiving = receiving
        left = min(self._deadline, self.server.cut_at) - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def communicate(self) -> bool:
        """Read one request and answer it; return whether the connection stays open."""
        self._deadline = time.monotonic() + REQUEST_SECONDS
        self._receiving = True
        if not self._greeted:
            if not self._handshake():
                return False
            self._greeted = True
        again: bool = super().communicate()  # type: ignore[no-untyped-call]
        return again

    def _handshake(self) -> bool:
        """Do the TLS handshake, here in a worker thread: in cheroot's accepting one a slow client would block all."""
        adapter = self.server.ssl_adapter
        try:
            self._timed.settimeout(self.remaining(receiving=True))
            self._timed.do_handshake()
            problem = adapter.refuses(self._timed) if adapter is not None else None
        except (OSError, ValueError) as error:  # SSLError is an OSError
            problem = str(error)
            if "HTTP_REQUEST" in problem:
                _say_https(self._timed)
        if problem:
            log.info("TLS connection from %s refused: %s", self.remote_addr, problem)
        return not problem

    def cut(self) -> None:
        """End it, whatever a thread is doing with it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._timed.inner, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, and forget it."""
        self.server.open_connections.discard(self)
        super().close()
        # What was not sent never will be: without this the writer tries once more when it is collected, and says so.
        self._timed.over = True
        self.wfile.close()


class _Timed:
    """A socket whose every operation gets what is left of its connection's deadline."""

    def __init__(self, inner: Any, connection: _Connection) -> None:
        self.inner = inner
        self.over = False
        self._connection = connection

    def recv_into(self, *args: Any) -> int:
        self.inner.settimeout(self._connection.remaining(receiving=True))
        return int(self.inner.recv_into(*args))

    def send(self, data: bytes) -> int:
        if self.over:
            return len(data)
        self.inner.settimeout(self._connection.remaining(receiving=False))
        return int(self.inner.send(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _say_https(sock: _Timed) -> None:
    body = b"This port speaks HTTPS.\n"
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with contextlib.suppress(OSError):
        socket.socket.send(sock.inner, head % len(body) + body)  # past the TLS layer


class _Tls(Adapter):
    """Wraps connections without the handshake, with the certificate of this moment."""

    def __init__(self, config: WebConfig) -> None:
        self._config = config

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        context = self._config.context()
        return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), {}

    def refuses(self, sock: Any) -> str | None:
        """Return why the peer's certificate does not do."""
        return self._config.refuses(sock.getpeercert())

    def get_environ(self) -> dict[str, str]:
        return {}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return MakeFile(sock, mode, bufsize)


class _Cheroot(wsgi.Server):
    """cheroot's server on a socket of ours, with bounded clients and a bounded stop."""

    ConnectionClass = _Connection
    max_request_header_size = HEADER_BYTES
    max_request_body_size = BODY_BYTES
    keep_alive_conn_limit = 64
    expiration_interval = 0.2
    ssl_adapter: _Tls | None

    def __init__(self, bound: socket.socket, app: WSGIApplication) -> None:
        super().__init__(
            bound.getsockname()[:2],
            app,
            numthreads=THREADS,
            max=THREADS,
            server_name="celeryscope",
            request_queue_size=128,
            timeout=KEEP_ALIVE_SECONDS,
            shutdown_timeout=1,
            accepted_queue_size=OPEN_CONNECTIONS,
            # The accepting thread waits here; more than so many connections are not let in anyway.
            accepted_queue_timeout=1,
        )
        self._bound = bound
        self.prepared = threading.Event()
        self.open_connections: set[_Connection] = set()
        self.cut_at = math.inf

    def bind(self, *_: Any, **__: Any) -> socket.socket:
        """Take the socket that is bound already: there the errors have one clear line."""
        self.socket = self._bound
        return self._bound

    def run(self) -> None:
        """Serve until stopped."""
        try:
            self.prepare()
        except Exception:  # no more threads, no more descriptors
            log.exception("the server does not start")
            self._bound.close()
            return
        finally:
            self.prepared.set()
        self.serve()

    def process_conn(self, conn: _Connection) -> None:
        """Give a connection with something to read to a thread; a new one waits for its first byte without one."""
        if conn.waited:
            super().process_conn(conn)
            return
        conn.waited = True
        if len(self.open_connections) > OPEN_CONNECTIONS:
            conn.close()
            return
        self.put_conn(conn)
        conn.last_used = time.time() - (KEEP_ALIVE_SECONDS - SILENT_SECONDS)

    def stop(self) -> None:
        """Stop: requests under way get `STOP_SECONDS`, then their connections are cut."""
        self.cut_at = time.monotonic() + STOP_SECONDS
        cutter = threading.Timer(STOP_SECONDS, self._cut)
        cutter.daemon = True
        cutter.start()
        super().stop()
        cutter.cancel()
        self._cut()
        # cheroot registers itself there and never leaves.
        getattr(logging, "statistics", {}).pop(f"Cheroot HTTPServer {id(self)}", None)

    def _cut(self) -> None:
        for connection in list(self.open_connections):
            connection.cut()

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log what cheroot has to say: clients that go away are no news."""
        log.log(level if level >= logging.WARNING else logging.DEBUG, "%s", msg, exc_info=traceback)
