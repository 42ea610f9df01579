"""Our HTTP server before people who mean harm: what they send is one answered request, or one that is refused."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import httpx
import pytest
from celeryscope.exporters import auth
from celeryscope.exporters.http import OPEN_CONNECTIONS, THREADS, Server
from celeryscope.exporters.webconfig import CHECKED_AT_ONCE, WebConfig
from celeryscope.monitor.values import Address
from helpers import eventually

PAGE = b"celery_x 1\n"
PASSED_BY = b"GET /-/healthy HTTP/1.1\r\nHost: h\r\n\r\n"
"""What somebody would slip in behind a request: a proxy in front has not seen it as one."""


class Metrics:
    def render(self, *, openmetrics: bool = False) -> bytes:
        return PAGE


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Server]:
    with Server(Address("127.0.0.1", 0), {"/metrics": Metrics()}) as server:
        yield server


def said(server: Server, data: bytes) -> bytes:
    """All that the server says to these bytes, after which the client sends nothing more."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            return b"".join(iter(lambda: sock.recv(65536), b""))
    return b""


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3}) ", answer)]


def alive(server: Server) -> bool:
    return httpx.get(f"{server.url}/metrics", trust_env=False, timeout=30).content == PAGE


@pytest.mark.parametrize(
    "head",
    [
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 0x0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length : 40\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: h\r\n Content-Length: 40\r\n\r\n",
    ],
)
def test_no_second_request_is_slipped_in(server: Server, head: bytes) -> None:
    """Where the end of a request can be read in two ways, nothing after it is answered on that connection."""
    answer = said(server, head + PASSED_BY)
    assert len(statuses(answer)) <= 1, answer
    assert b"\nok\n" not in answer
    assert alive(server)


@pytest.mark.parametrize(
    "target",
    [
        b"/../../../../etc/passwd",
        b"/metrics/../../etc/passwd",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/..%2f..%2fetc%2fpasswd",
        b"/metrics%00",
        b"/metrics/",
        b"//metrics",
        b"/./metrics",
        b"/METRICS",
        b"/metrics;x",
        b"file:///etc/passwd",
        b"http://evil.example/etc/passwd",
        b"*",
        b"evil.example:443",
    ],
)
def test_only_the_paths_that_there_are(server: Server, target: bytes) -> None:
    answer = said(server, b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert statuses(answer)
    assert statuses(answer)[0] in (301, 400, 404), answer
    assert b"root:" not in answer
    assert PAGE not in answer


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X"]
)
def test_only_reading(server: Server, method: bytes) -> None:
    """And nothing of a request comes back, as TRACE would have it."""
    answer = said(server, method + b" /metrics HTTP/1.1\r\nHost: h\r\nCookie: sesame\r\nConnection: close\r\n\r\n")
    assert statuses(answer)[0] in (400, 405), answer
    assert b"sesame" not in answer
    assert PAGE not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET /metrics HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: h\r\n" + b"Accept: " + b"a," * 30_000 + b"\r\n\r\n",
        b"GET /metrics?" + b"&" * 100_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\0" * 100_000,
        b"\r\n" * 50_000,
        b"GET",
        b"GET /metrics HTTP/1.1\r\nHost: h\r\nNo colon\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /-/ready?name=%0d%0aSet-Cookie:%20x=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    ],
)
def test_what_is_no_proper_request_costs_its_own_connection_alone(server: Server, data: bytes) -> None:
    answer = said(server, data)
    assert all(400 <= status < 500 for status in statuses(answer)), answer[:300]
    assert b"\nSet-Cookie" not in answer
    assert b"Traceback" not in answer
    assert alive(server)


def test_names_that_are_asked_for_come_back_as_plain_text(server: Server) -> None:
    answer = httpx.get(
        f"{server.url}/-/ready", params={"name": "<script>alert(1)</script>"}, trust_env=False, timeout=30
    )
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.fixture(name="closed")
def _closed(tmp_path: Path) -> Iterator[Server]:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  scraper: {hashed}\n")
    config = WebConfig(tmp_path / "web.yml")
    with Server(Address("127.0.0.1", 0), {"/metrics": Metrics()}, web_config=config) as server:
        yield server


def test_with_a_password_nothing_at_all_is_open(closed: Server) -> None:
    """Neither the landing page nor health, nor whether a path exists."""
    for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/nothing", "/metrics/celery-exporter"):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            answer = httpx.request(method, closed.url + path, trust_env=False, timeout=30)
            assert answer.status_code == 401, (method, path)
            assert PAGE not in answer.content
    assert httpx.get(f"{closed.url}/metrics", auth=("scraper", "right"), trust_env=False).content == PAGE


def together(count: int, call: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_a_crowd_that_guesses_does_not_keep_out_who_knows(closed: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """While more clients guess than there are threads, and no guess ends, whoever has the password is served."""
    with httpx.Client(auth=("scraper", "right"), trust_env=False, timeout=60) as client:
        assert client.get(f"{closed.url}/metrics").content == PAGE
        never = threading.Event()
        refused: list[int] = []

        def checkpw(_password: bytes, _hashed: bytes) -> bool:
            return not never.wait(60)

        def guess(number: int) -> None:
            url = f"{closed.url}/metrics"
            refused.append(httpx.get(url, auth=("scraper", f"{number}"), trust_env=False, timeout=90).status_code)

        monkeypatch.setattr(auth, "bcrypt", type("Stuck", (), {"checkpw": staticmethod(checkpw)}))
        crowd = threading.Thread(target=together, args=(3 * THREADS, guess))
        crowd.start()
        try:
            eventually(lambda: len(refused) == 3 * THREADS - CHECKED_AT_ONCE)
            assert client.get(f"{closed.url}/metrics").content == PAGE
        finally:
            never.set()
            crowd.join(90)
    assert refused.count(503) == 3 * THREADS - CHECKED_AT_ONCE
    assert refused.count(401) == CHECKED_AT_ONCE


def test_a_crowd_of_connections_does_not_cost_a_client_that_is_there(server: Server) -> None:
    """A scraper keeps its connection: it is served while others take every place that is left."""
    with httpx.Client(trust_env=False, timeout=60) as client, contextlib.ExitStack() as stack:
        assert client.get(f"{server.url}/metrics").content == PAGE
        for _ in range(OPEN_CONNECTIONS + 20):
            with contextlib.suppress(ConnectionError):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
        assert client.get(f"{server.url}/metrics").content == PAGE
