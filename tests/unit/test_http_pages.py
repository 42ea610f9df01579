"""The pages without a socket: routes, negotiation, compression, health."""

from __future__ import annotations

import gzip

import pytest
from celeryscope.exporters.pages import Pages, Status, accepts_gzip, wants_openmetrics
from celeryscope.exporters.prometheus import OPENMETRICS, TEXT

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT_FIRST = "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5"


class Metrics:
    def __init__(self, body=b"x 1\n", error=None):
        self.body = body
        self.error = error

    def render(self, *, openmetrics=False):
        if self.error:
            raise self.error
        return self.body + (b"# EOF\n" if openmetrics else b"")


def get(app, path="/metrics", method="GET", query="", **headers):
    said = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": query}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    body = b"".join(app(environ, lambda status, headers: said.append((status, dict(headers)))))
    [(status, found)] = said
    return status, found, body


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        (TEXT_FIRST, False),
        ("application/openmetrics-text", True),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", True),
        ("application/openmetrics-text; version=2.0.0, text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
        (";;,,=;q", False),
    ],
)
def test_openmetrics_only_for_who_wants_it(accept, expected):
    assert wants_openmetrics(accept) is expected
    _, headers, body = get(Pages({"/metrics": Metrics()}), accept=accept)
    assert headers["Content-Type"] == (OPENMETRICS if expected else TEXT)
    assert body.endswith(b"# EOF\n") is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("*, gzip;q=0", False),
        ("*;q=0", False),
        ("identity", False),
        ("", False),
        ("br", False),
    ],
)
def test_gzip_only_for_who_takes_it(header, expected):
    assert accepts_gzip(header) is expected
    body = b"celery_x 1\n" * 500
    _, headers, sent = get(Pages({"/metrics": Metrics(body)}), accept_encoding=header)
    assert (headers.get("Content-Encoding") == "gzip") is expected
    assert (gzip.decompress(sent) if expected else sent) == body
    assert headers["Content-Length"] == str(len(sent))


def test_a_small_page_is_not_compressed():
    assert "Content-Encoding" not in get(Pages({"/metrics": Metrics()}), accept_encoding="gzip")[1]


def test_a_large_body_leaves_in_slices():
    body = bytes(range(256)) * 5_000
    app = Pages({"/metrics": Metrics(body)})
    slices = list(app({"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET"}, lambda *_: None))
    assert len(slices) > 1
    assert b"".join(slices) == body


def test_head_has_the_headers_and_no_body():
    app = Pages({"/metrics": Metrics(b"0123456789")})
    status, headers, body = get(app, method="HEAD")
    assert (status, headers["Content-Length"], body) == ("200 OK", "10", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_only_reading(method):
    status, headers, _ = get(Pages({"/metrics": Metrics()}), method=method)
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")


@pytest.mark.parametrize("path", ["/metric", "/metrics/", "/metrics/celery-exporter", "//", "/-/", "/favicon.ico"])
def test_what_is_not_there_is_404(path):
    assert get(Pages({"/metrics": Metrics()}), path)[0] == "404 Not Found"


def test_further_pages_stand_beside():
    app = Pages({"/metrics": Metrics(b"ours 1\n"), "/metrics/celery-exporter": Metrics(b"theirs 1\n")})
    assert get(app)[2] == b"ours 1\n"
    assert get(app, "/metrics/celery-exporter")[2] == b"theirs 1\n"


def test_the_landing_page_leads_everywhere_and_escapes():
    app = Pages({"/metrics": Metrics()}, title="<b>x</b>")
    status, headers, body = get(app, "/")
    assert (status, headers["Content-Type"]) == ("200 OK", "text/html; charset=utf-8")
    for path in (b"/metrics", b"/-/healthy", b"/-/ready"):
        assert b'<a href="' + path + b'">' in body
    assert b"<b>" not in body
    assert get(app, "")[2] == body


def test_an_error_of_ours_is_a_500_and_not_a_dead_connection(caplog):
    app = Pages({"/metrics": Metrics(error=RuntimeError("boom"))})
    status, _, body = get(app)
    assert status == "500 Internal Server Error"
    assert b"boom" not in body
    assert "boom" in caplog.text


def test_healthy_and_ready_are_ok_unless_told_otherwise():
    for path in ("/-/healthy", "/-/ready"):
        assert get(Pages({}), path)[::2] == ("200 OK", b"ok\n")
        assert get(Pages({}, health=list, ready=list), path)[::2] == ("200 OK", b"ok\n")


def test_ready_has_a_line_for_each_broker_and_one_that_is_not_makes_it_503():
    statuses = [Status("a", True, "echo 0.4 s ago"), Status("b", False, "no echo for 31 s")]
    app = Pages({}, ready=lambda: statuses)
    status, headers, body = get(app, "/-/ready")
    assert status == "503 Service Unavailable"
    assert body == b"ok a: echo 0.4 s ago\nfailed b: no echo for 31 s\n"
    assert headers["Cache-Control"] == "no-store"
    assert get(app, "/-/healthy")[0] == "200 OK"
    statuses[1] = Status("b", True)
    assert get(app, "/-/ready")[::2] == ("200 OK", b"ok a: echo 0.4 s ago\nok b\n")


def test_one_broker_can_be_asked_for():
    app = Pages({}, ready=lambda: [Status("a", True), Status("b", False, "away")])
    assert get(app, "/-/ready", query="name=a")[::2] == ("200 OK", b"ok a\n")
    assert get(app, "/-/ready", query="name=b")[::2] == ("503 Service Unavailable", b"failed b: away\n")
    assert get(app, "/-/ready", query="name=c")[0] == "404 Not Found"
