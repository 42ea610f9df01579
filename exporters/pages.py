"""The pages that are served: routes, content negotiation, health; a WSGI application that knows no socket."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import parse_qs

from .. import __version__
from .prometheus import OPENMETRICS, TEXT

try:
    from isal import isal_zlib as zlib

    GZIP_LEVEL = 1
except ImportError:  # there are no wheels of it for every machine
    import zlib  # type: ignore[no-redef]

    GZIP_LEVEL = 4
"""Level 1 of isal compresses a metrics page in 0.4 ms a megabyte, as small as zlib's level 4 does in 3.6 ms (measured);
zlib's level 1 takes two thirds of that and leaves a tenth more, level 6 takes twice as long."""

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

WORTH_COMPRESSING = 1_000
"""Bytes; a smaller body fits into one packet anyway."""

SLICE = 1 << 18
"""Bytes handed to the socket at once: the server copies what it has not yet sent."""

_HTML = "text/html; charset=utf-8"
_PLAIN = "text/plain; charset=utf-8"


class Page(Protocol):
    """A metrics page."""

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Return the page in the text format 0.0.4, or in OpenMetrics 1.0."""
        ...


class Status(NamedTuple):
    """How one part (a broker, the outbox) is doing; `detail` is for people."""

    name: str
    ok: bool
    detail: str = ""

    def __str__(self) -> str:
        said = f"{'ok' if self.ok else 'failed'} {self.name}".rstrip()
        return f"{said}: {self.detail}" if self.detail else said


Check = Callable[[], Iterable[Status]]


class Response(NamedTuple):
    """What a request is answered with."""

    status: str
    body: bytes
    headers: list[tuple[str, str]]


def plain(status: str, text: str, *headers: tuple[str, str]) -> Response:
    """Return a response of one or several lines of text."""
    return Response(status, f"{text}\n".encode(), [("Content-Type", _PLAIN), ("Cache-Control", "no-store"), *headers])


def _always_ok() -> Iterable[Status]:
    return (Status("", ok=True),)


class Pages:
    """The WSGI application: metrics pages by path, `/-/healthy`, `/-/ready` and a landing page.

    `health` says whether the process should live (a supervisor restarts it otherwise), `ready` whether it sees what it
    is to see. Each gives one line a part; one that is not ok makes the answer a 503. `?name=NAME` asks for one part.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        *,
        health: Check = _always_ok,
        ready: Check = _always_ok,
        title: str = "celeryscope",
    ) -> None:
        self._pages = dict(pages)
        self._checks: dict[str, Check] = {"/-/healthy": health, "/-/ready": ready}
        self._landing = _landing(title, [*self._pages, *self._checks])

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; an error of ours is logged and answered with 500."""
        try:
            response = self.respond(environ)
        except Exception:
            log.exception("error while answering %s", environ.get("PATH_INFO"))
            response = plain("500 Internal Server Error", "internal error; the log has it")
        return send(response, environ, start_response)

    def respond(self, environ: WSGIEnvironment) -> Response:
        """Return the answer to a request."""
        path = environ.get("PATH_INFO") or "/"
        if path != "/" and path not in self._pages and path not in self._checks:
            return plain("404 Not Found", "not found; see / for what there is")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return plain("405 Method Not Allowed", "only GET and HEAD", ("Allow", "GET, HEAD"))
        if path in self._pages:
            return _metrics(self._pages[path], environ)
        if path in self._checks:
            return _checked(self._checks[path](), parse_qs(environ.get("QUERY_STRING", "")).get("name", []))
        return Response("200 OK", self._landing, [("Content-Type", _HTML)])


def send(response: Response, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Start the response and return its body in slices; nothing but the headers for HEAD."""
    headers = [*response.headers, ("Content-Length", str(len(response.body)))]
    start_response(response.status, headers)
    return () if environ["REQUEST_METHOD"] == "HEAD" else _sliced(response.body)


def _sliced(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), SLICE):
        yield body[start : start + SLICE]


def _metrics(page: Page, environ: WSGIEnvironment) -> Response:
    openmetrics = wants_openmetrics(environ.get("HTTP_ACCEPT", ""))
    body = page.render(openmetrics=openmetrics)
    headers = [("Content-Type", OPENMETRICS if openmetrics else TEXT), ("Vary", "Accept, Accept-Encoding")]
    if len(body) >= WORTH_COMPRESSING and accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
        body = _gzip(body)
        headers.append(("Content-Encoding", "gzip"))
    return Response("200 OK", body, headers)


def _gzip(body: bytes) -> bytes:
    # gzip.compress would do, but on Python 3.10 it is slower and puts the time into every page.
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return compressor.compress(body) + compressor.flush()


def _checked(statuses: Iterable[Status], names: list[str]) -> Response:
    chosen = [status for status in statuses if not names or status.name in names]
    if names and not chosen:
        return plain("404 Not Found", f"there is no {names[0]!r}")
    text = "\n".join(map(str, chosen)) or "ok"
    return plain("200 OK" if all(s.ok for s in chosen) else "503 Service Unavailable", text)


def _preferences(header: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the alternatives of an Accept or Accept-Encoding header: value, parameters, quality 0 to 1."""
    for alternative in header.split(","):
        value, *rest = (part.strip() for part in alternative.split(";"))
        parameters = {k.strip().lower(): v.strip().strip('"') for k, _, v in (part.partition("=") for part in rest)}
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        if value:
            yield value.lower(), parameters, quality


def wants_openmetrics(accept: str) -> bool:
    """Whether the client named OpenMetrics in a version that we write and does not like plain text better.

    Anything else, also an Accept header that names neither, gets the text format 0.0.4, as from any exporter.
    """
    openmetrics = text = 0.0
    for value, parameters, quality in _preferences(accept):
        version = parameters.get("version")
        if value == "application/openmetrics-text" and version in (None, "0.0.1", "1.0.0"):
            openmetrics = max(openmetrics, quality)
        elif value == "text/plain" and version in (None, "0.0.4", "1.0.0"):
            text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip may be used; an explicit `gzip` outranks `*`."""
    qualities = {value: quality for value, _, quality in _preferences(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _landing(title: str, paths: Iterable[str]) -> bytes:
    links = "\n".join(f'<li><a href="{html.escape(path)}">{html.escape(path)}</a></li>' for path in paths)
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{name}</title></head>\n'
        f"<body>\n<h1>{name}</h1>\n<p>Version {html.escape(__version__)}</p>\n<ul>\n{links}\n</ul>\n</body>\n</html>\n"
    ).encode()
