"""The server with real clients: listening, bad and slow clients, stopping."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from celeryscope.exporters import http
from celeryscope.exporters.http import THREADS, ListenError, Server
from celeryscope.exporters.pages import Status
from celeryscope.monitor.values import Address
from helpers import eventually


class Metrics:
    def __init__(self, body=b"celery_x 1\n"):
        self.body = body

    def render(self, *, openmetrics=False):
        return self.body


@pytest.fixture(name="serve")
def _serve():
    with contextlib.ExitStack() as stack:
        yield lambda page=None, **options: stack.enter_context(
            Server(Address("127.0.0.1", 0), {"/metrics": page or Metrics()}, **options)
        )


@pytest.fixture(name="connect")
def _connect():
    """Connect to a server, optionally sending something; all is closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(server, data=b""):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            sock.sendall(data)
            return sock

        yield connect


def answer(sock):
    """All that the server says until it closes the connection."""
    with contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: sock.recv(65536), b""))
    return b""


def get(server, path="/metrics"):
    # verify=False: reading the system's certificates for each call would cost more than the rest of the test.
    return httpx.get(f"{server.url}{path}", timeout=20, verify=False)


def test_any_free_port_and_its_real_number(serve):
    server = serve()
    assert server.port > 0
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert get(server).text == "celery_x 1\n"


def test_every_address_means_both_families():
    with Server(Address("", 0), {"/metrics": Metrics()}) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/metrics").status_code == 200
        assert get(server).status_code == 200


def test_an_ipv6_address_or_a_clear_line_where_the_machine_has_none():
    with socket.socket(socket.AF_INET6) if socket.has_ipv6 else contextlib.nullcontext() as probe:
        there = probe is not None and probe.connect_ex(("::1", 1)) in (0, errno.ECONNREFUSED)
    server = Server(Address("::1", 0), {"/metrics": Metrics()})
    if there:
        with server:
            assert server.url == f"http://[::1]:{server.port}"
            assert get(server).status_code == 200
    else:
        with pytest.raises(ListenError, match=r"--listen \[::1\]:0: "):
            server.start()


def test_a_port_in_use_is_one_clear_line(serve):
    taken = serve().address
    with pytest.raises(ListenError) as caught:
        Server(taken, {}).start()
    assert str(caught.value) == f"--listen {taken}: the port is in use; stop what listens there or choose another port"


@pytest.mark.parametrize(
    ("host", "said"), [("192.0.2.1", "not an address of this machine"), ("no.such.host.invalid", "not a host name")]
)
def test_an_address_that_is_not_ours_is_one_clear_line(host, said):
    with pytest.raises(ListenError, match=said) as caught:
        Server(Address(host, 0), {}).start()
    assert "\n" not in str(caught.value)


def test_stopped_is_stopped_and_can_be_started_again(serve):
    server = serve()
    port = server.port
    server.stop()
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")
    server.start()
    assert server.port == port
    assert get(server).status_code == 200


def test_health_and_ready_are_served(serve):
    server = serve(ready=lambda: [Status("a", ok=False)])
    assert (get(server, "/-/ready").status_code, get(server, "/-/healthy").status_code) == (503, 200)


def test_connections_are_kept_for_the_next_scrape(serve):
    server = serve()
    with httpx.Client() as client:
        streams = set()
        for _ in range(3):
            response = client.get(f"{server.url}/metrics")
            assert "connection" not in response.headers
            streams.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(streams) == 1


def test_what_serves_stays_unsaid(serve):
    headers = get(serve()).headers
    assert headers["server"] == "celeryscope"
    assert "cheroot" not in str(headers).lower()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * http.HEADER_BYTES + b"\r\n\r\n", b"413"),
        (b"GET /" + b"a" * http.HEADER_BYTES + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"\x16\x03\x01 not http at all\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
    ],
)
def test_bad_requests_are_refused_and_the_next_client_is_served(serve, connect, request_, status):
    server = serve()
    with contextlib.suppress(ConnectionError):
        assert answer(connect(server, request_)).split(b" ")[1] == status
    assert get(server).status_code == 200


def test_a_body_is_never_taken_for_another_request(serve, connect):
    sock = connect(
        serve(), b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nGET /-/healthy HTTP/1.1\r\n\r\n"
    )
    assert answer(sock).count(b"HTTP/1.1 ") == 1


def test_silent_connections_take_no_thread(serve, connect, monkeypatch):
    monkeypatch.setattr(http, "REQUEST_SECONDS", 100)
    server = serve()
    for _ in range(THREADS * 4):
        connect(server)
    assert get(server).status_code == 200


def test_requests_that_never_end_are_ended(serve, connect, monkeypatch):
    """Slowloris: more such clients than threads hold the server up for the deadline at most."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)
    server = serve()
    slow = [connect(server, b"GET /metrics HTTP/1.1\r\nX-Slow: ") for _ in range(THREADS * 2)]
    assert get(server).status_code == 200
    assert b" 408 " in answer(slow[0])


def test_a_trickle_does_not_extend_the_deadline(serve, connect, monkeypatch):
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)
    server = serve()
    sock = connect(server, b"GET /metrics HTTP/1.1\r\n")

    def ended():
        try:
            sock.sendall(b"X: y\r\n")  # each is in time for a timeout between two reads, not for the whole
        except ConnectionError:
            return True
        return bool(select.select([sock], [], [], 0)[0])

    eventually(ended)


def test_responses_that_nobody_takes_are_given_up(serve, connect, monkeypatch):
    monkeypatch.setattr(http, "RESPONSE_SECONDS", 0.5)
    page = Metrics(b"celery_x 1\n" * 2_000_000)
    server = serve(page)
    for _ in range(THREADS * 2):
        connect(server, b"GET /metrics HTTP/1.1\r\n\r\n")
    page.body = b"celery_x 1\n"
    assert get(server).status_code == 200


def test_more_connections_than_are_let_in_are_closed_and_room_comes_back(serve, connect, monkeypatch):
    monkeypatch.setattr(http, "OPEN_CONNECTIONS", 10)
    server = serve()
    crowd = [connect(server) for _ in range(30)]
    for sock in crowd:
        sock.settimeout(5)
    assert crowd[-1].recv(1) == b""
    for sock in crowd:
        sock.close()

    def served():
        with contextlib.suppress(httpx.TransportError):
            return get(server).status_code == 200
        return False

    eventually(served)


def test_stopping_waits_for_no_client(serve, connect, monkeypatch):
    """Half a request, a response that is not taken, an idle connection: none of them keeps the server."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 100)
    monkeypatch.setattr(http, "RESPONSE_SECONDS", 100)
    before = set(threading.enumerate())
    server = serve(Metrics(b"celery_x 1\n" * 2_000_000))
    socks = [connect(server), connect(server, b"GET /met"), connect(server, b"GET /metrics HTTP/1.1\r\n\r\n")]
    assert socks[2].recv(1)
    started = time.monotonic()
    server.stop()
    # 1 s is promised (measured: 0.4); a loaded test machine gets more, a wait for a client would take 100.
    assert time.monotonic() - started < 10
    eventually(lambda: not [t for t in threading.enumerate() if t not in before])
    for sock in socks[:2]:
        assert answer(sock)[:8] in (b"", b"HTTP/1.1")


def test_a_request_under_way_is_still_answered(serve):
    entered, finish = threading.Event(), threading.Event()

    class Slow:
        def render(self, *, openmetrics=False):
            entered.set()
            finish.wait(20)
            return b"celery_x 1\n"

    server = serve(Slow())
    answers = []
    client = threading.Thread(target=lambda: answers.append(get(server).text))
    client.start()
    assert entered.wait(20)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    finish.set()
    client.join(20)
    stopper.join(20)
    assert answers == ["celery_x 1\n"]


def test_many_clients_at_once(serve):
    server = serve(Metrics(b"celery_x 1\n" * 10_000))
    answers = []
    clients = [
        threading.Thread(target=lambda: answers.extend(len(get(server).content) for _ in range(5))) for _ in range(20)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert answers == [110_000] * 100


def test_no_thread_outlives_a_main_thread_that_ended_without_stopping():
    code = (
        "from celeryscope.exporters.http import Server; from celeryscope.monitor.values import Address;"
        "Server(Address('127.0.0.1', 0), {}).start(); raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


def test_a_server_that_cannot_have_its_threads_says_so(monkeypatch, caplog):
    def no_more(_self, _amount):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("cheroot.workers.threadpool.ThreadPool.grow", no_more)
    server = Server(Address("127.0.0.1", 0), {})
    with pytest.raises(ListenError, match="the server does not start"):
        server.start()
    assert "can't start new thread" in caplog.text
    server.stop()
