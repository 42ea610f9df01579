"""A stranger gets nothing from Flower: every address that it serves is tried, not a list that somebody remembered."""

from __future__ import annotations

import base64
import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from flower.urls import handlers
from flowers import LOGIN, flower
from helpers import RedisServer

OPEN = {"/metrics", "/healthcheck", "/static/(.*)", "/login/?", "/logout$", ".*"}
"""What Flower answers to everybody: docs/flower.md says so. The last one is its 404."""
READ, WRITE = ("GET", "HEAD"), ("POST", "PUT", "DELETE", "PATCH")
NO_SUCH_METHOD = 405


def patterns() -> list[str]:
    return [str(entry.regex.pattern if hasattr(entry, "regex") else entry[0]) for entry in handlers]


def address(pattern: str) -> str:
    """Return a path that the pattern takes."""
    return re.sub(r"\((\.[+*])\)", "x", pattern).rstrip("$").replace("/?", "")


@pytest.fixture(name="url", scope="module")
def _url(valkey_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with flower(tmp_path_factory.mktemp("flower"), valkey_server.url) as (url, _):
        yield url


def test_every_address_refuses_strangers_and_wrong_passwords(url: str) -> None:
    """Pages and API, reading and ordering; with no password, a wrong one, and half a one."""
    strangers = [None, (LOGIN[0], "wrong"), (LOGIN[0], ""), ("", LOGIN[1]), (LOGIN[0], LOGIN[1][:-1])]
    closed = [pattern for pattern in patterns() if pattern not in OPEN]
    assert sum(pattern.startswith("/api/") for pattern in closed) >= 20
    let_in = []
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for pattern in closed:
            for method in (*READ, *WRITE):
                for who in strangers if method in ("GET", "POST") else strangers[:1]:
                    answer = client.request(method, address(pattern), auth=who)
                    if answer.status_code not in (401, 403, NO_SUCH_METHOD):
                        let_in.append((method, pattern, who, answer.status_code))
    assert let_in == []


def test_what_is_open_takes_no_orders_and_tells_no_arguments(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for pattern in OPEN - {".*", "/static/(.*)"}:
            assert client.post(address(pattern)).status_code in (403, 404, NO_SUCH_METHOD), pattern
        assert LOGIN[1] not in client.get("/metrics").text


@pytest.mark.parametrize("scheme", ["Bearer", "Digest", "basic", "Basic  ", ""])
def test_headers_that_only_look_like_a_login_are_none(url: str, scheme: str) -> None:
    """Broken base64, no colon, another scheme: refused, and not an error of Flower's."""
    for text in ("", "%%%", base64.b64encode(b"ops").decode(), base64.b64encode(b"\xff:\xff").decode(), "x" * 9_000):
        answer = httpx.post(f"{url}/api/worker/shutdown/x", headers={"Authorization": f"{scheme} {text}".strip()},
                            trust_env=False, timeout=30)  # fmt: skip
        assert answer.status_code == 401


def test_there_is_no_way_in_by_websocket(url: str) -> None:
    parts = urlsplit(url)
    for path in ("/", "/update-workers", "/api/task/events/task-sent/", "/api/workers"):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
        connection.request("GET", path, headers=headers)
        assert connection.getresponse().status in (401, 404)
        connection.close()


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Origin": "null"}]
)
def test_another_sites_page_cannot_use_the_password_that_a_browser_has(url: str, headers: dict[str, str]) -> None:
    """A browser sends the password by itself, also where another site's page makes it post."""
    answer = httpx.post(f"{url}/api/worker/shutdown/x", headers=headers, auth=LOGIN, trust_env=False, timeout=30)
    assert answer.status_code == 403
    allowed = httpx.post(f"{url}/api/worker/shutdown/x", auth=LOGIN, trust_env=False, timeout=30)
    assert allowed.status_code == 404


def test_a_stranger_cannot_have_it_started_open(tmp_path: Path, valkey_server: RedisServer) -> None:
    """Without credentials it serves this machine alone, and even there its API takes no orders."""
    with flower(tmp_path / "open", valkey_server.url, login=False) as (url, _):
        for pattern in patterns():
            if pattern.startswith("/api/"):
                assert httpx.post(url + address(pattern), trust_env=False, timeout=30).status_code in (401, 405)
