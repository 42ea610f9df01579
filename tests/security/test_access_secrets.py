"""How secrets are compared and where they are sent: in constant time, to whom they are for, over https."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import pytest
from celeryscope.alerts.delivery import DeliveryError
from celeryscope.alerts.settings import AlerterSettings
from celeryscope.alerts.slack import SlackWeb
from celeryscope.alerts.views import View
from celeryscope.dashboards import cli as dashboards_cli
from celeryscope.dashboards import push
from celeryscope.dashboards.settings import DashboardsSettings
from celeryscope.demo import inbox
from celeryscope.exporters import auth
from celeryscope.monitor import logs
from celeryscope.monitor.broker import BrokerConfig, connect, reason
from celeryscope.monitor.configuration import Settings, SettingsError, load
from celeryscope.monitor.masking import secrets_in
from click.testing import CliRunner
from flower import views as flowers_views
from helpers import ROOT
from pydantic import SecretStr

SECRET = re.compile(r"passw|secret|token|digest|authoriz|credential|signature|hashed", re.IGNORECASE)
HARMLESS = {
    "name.lower() == 'authorization'",  # the name of a header
    "answer.status_code == httpx.codes.UNAUTHORIZED",
    "bool(self.flower_user) != bool(password)",  # whether there is one
    "parts[3] != _DIGEST(payload).hexdigest().encode()",  # a checksum: against torn files, not against people
}


def comparisons(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
            yield ast.unparse(node)


@pytest.mark.repository
def test_no_secret_is_compared_by_equality() -> None:
    """`==` ends at the first byte that differs, and so tells how much of a guess was right."""
    folders = ("alerts", "dashboards", "demo", "exporters", "monitor", "deploy")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {text for path in files for text in comparisons(path) if SECRET.search(text)}
    assert found <= HARMLESS


def test_what_compares_them_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """bcrypt for our pages, hmac for the demo's Slack and in Flower; an unknown user costs the same bcrypt."""
    asked: list[bytes] = []

    def checkpw(password: bytes, hashed: bytes) -> bool:
        asked.append(hashed[:7])
        return bcrypt.checkpw(password, hashed)

    monkeypatch.setattr(auth, "bcrypt", type("Counting", (), {"checkpw": staticmethod(checkpw)}))
    users = {"known": bcrypt.hashpw(b"right", bcrypt.gensalt(5)).decode()}
    authenticator = auth.Authenticator()
    for login, passes in (("a25vd246cmlnaHQ=", True), ("a25vd246d3Jvbmc=", False), ("bm9ib2R5OnJpZ2h0", False)):
        assert authenticator.allows(users, f"Basic {login}") is passes
    assert asked == [b"$2b$05$"] * 3
    assert "hmac.compare_digest" in inspect.getsource(inbox.Inbox._perform)
    assert "hmac.compare_digest" in inspect.getsource(flowers_views)


@contextmanager
def server(answer: Any) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server on this machine; gives its address and the headers of each request."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
            answer(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def say_ok(handler: BaseHTTPRequestHandler) -> None:
    body = json.dumps({"ok": True, "channel": "C1", "ts": "1.0"}).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_slacks_token_does_not_follow_a_redirect(status: int) -> None:
    """What stands where Slack should be cannot have the token carried on to where it likes."""
    with server(say_ok) as (elsewhere, taken):

        def send_away(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", f"{elsewhere}/stolen")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with server(send_away) as (slack, asked):
            client = SlackWeb(SecretStr("xoxb-very-secret"), base_url=f"{slack}/api/", noted=lambda _: None)
            with suppress(DeliveryError):
                client.post("#general", View("notice", text="hello"), "m1")
        assert asked[0]["authorization"] == "Bearer xoxb-very-secret"
    assert "xoxb-very-secret" not in json.dumps(taken)


ALERTER = {"BROKER_URL": "redis://h", "SLACK_CHANNEL": "#x"}


def settings_of(kind: type[Settings], **variables: str) -> Settings:
    given = {f"CELERYSCOPE_{name}": value for name, value in variables.items()}
    return load(kind, options={}, environ=given, config=Path("/dev/null"))


@pytest.mark.parametrize(
    "address",
    [
        "https://slack.com/api/",
        "http://127.0.0.1:8080/api/",
        "http://localhost:8080/api/",
        "http://[::1]:8080/",
        "http://inbox:8080/api/",
        "http://slack-proxy.tools.svc.cluster.local/api/",
        "http://10.1.2.3:8080/",
        "http://100.64.1.2:8080/",
        "http://[fd00::1]:8080/",
    ],
)
def test_where_a_credential_may_be_sent(address: str) -> None:
    assert settings_of(AlerterSettings, **ALERTER, SLACK_TOKEN="xoxb-1", SLACK_BASE_URL=address)
    assert settings_of(AlerterSettings, BROKER_URL="redis://h", SLACK_WEBHOOK_URL=address)


@pytest.mark.parametrize(
    "address",
    [
        "http://slack.com/api/",
        "http://hooks.slack.com/services/T/B/x",
        "http://8.8.8.8/",
        "http://127.0.0.1.evil.example/",
        "http://[2001:4860:4860::8888]/",
        "http://0.0.0.0/",
        "https://",
        "https://user:pw@slack.com/",
        "https://slack.com\\@evil.example/",
        "https://slack.com:99999/",
        "ftp://slack.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
    ],
)
def test_where_no_credential_is_sent(address: str) -> None:
    """In clear text over the Internet; and to what is no address, or another one than it looks."""
    with pytest.raises(SettingsError, match="SLACK_BASE_URL: must"):
        settings_of(AlerterSettings, **ALERTER, SLACK_TOKEN="xoxb-1", SLACK_BASE_URL=address)
    with pytest.raises(SettingsError, match="SLACK_WEBHOOK_URL: must"):
        settings_of(AlerterSettings, BROKER_URL="redis://h", SLACK_WEBHOOK_URL=address)


@pytest.mark.parametrize("name", ["FLOWER_URL", "GRAFANA_URL", "RUNBOOK_URL"])
@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "file:///etc/passwd", "https://ops:pw@wiki.example", "https://", "https://a b/"]
)
def test_addresses_for_links_are_pages_without_passwords(name: str, address: str) -> None:
    """They go to a chat."""
    with pytest.raises(SettingsError, match=f"{name}: must"):
        settings_of(AlerterSettings, **ALERTER, SLACK_TOKEN="xoxb-1", **{name: address})


@pytest.mark.parametrize("address", ["javascript:alert(1)", "file:///x", "https://", "http://g:x/", "grafana:3000"])
def test_grafana_is_a_web_address(address: str) -> None:
    with pytest.raises(SettingsError, match="GRAFANA_URL: must"):
        settings_of(DashboardsSettings, GRAFANA_URL=address)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqp", "sentinel"])
@pytest.mark.parametrize("password", ["c4n4ry/more", "c4n4ry#more", "c4n4ry?more", "a:c4n4ry/", "c4n4ry[more"])
def test_a_password_that_breaks_its_url_is_not_quoted_by_whoever_cannot_read_it(scheme: str, password: str) -> None:
    """A slash ends the host: what is left of the password is then taken for the port, and named in the complaint."""
    config = BrokerConfig.from_url(f"{scheme}://user:{password}@127.0.0.1:1/0")
    said = config.label + repr(config)
    try:
        with config.connection() as connection:
            connect(connection)
    except Exception as error:
        said += reason(error)
    assert "c4n4ry" not in said
    with suppress(SettingsError):
        said = str(settings_of(AlerterSettings, BROKER_URL=config.url, SLACK_TOKEN="xoxb-1"))
    assert "c4n4ry" not in said


def test_a_token_that_would_go_over_the_network_in_clear_text_earns_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for address, warned in (
        ("http://grafana.example.com", True),
        ("http://admin:hunter2@127.0.0.1.evil.example", True),
        ("https://grafana.example.com", False),
        ("http://grafana:3000", False),
        ("http://admin:hunter2@localhost:3000/grafana", False),
    ):
        dashboards_cli._warn_of_clear_text(address)
        said = capsys.readouterr().err
        assert ("warning: --grafana-url" in said) is warned, address
        assert "hunter2" not in said


@pytest.mark.parametrize(
    ("address", "token", "warned"),
    [
        ("http://grafana.example.com", "glsa_1", True),
        ("http://admin:hunter2@grafana.example.com", "", True),
        ("http://grafana.example.com", "", False),
    ],
)
def test_who_pushes_boards_is_warned_of_any_credential(
    monkeypatch: pytest.MonkeyPatch, address: str, token: str, warned: bool
) -> None:
    """A token, or a user and password in the address; where there is neither, there is nothing to warn of."""

    def unreachable(*_: object) -> None:
        raise push.PushError("nobody there")

    monkeypatch.setattr(push, "connected", unreachable)
    given = {"CELERYSCOPE_GRAFANA_URL": address, **({"CELERYSCOPE_GRAFANA_TOKEN": token} if token else {})}
    result = CliRunner().invoke(dashboards_cli.dashboards_command, ["push"], env=given)
    assert "nobody there" in result.output
    assert ("warning: --grafana-url" in result.output) is warned
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("redis://:pa'ss\"word@h/0", "pa'ss\"word"),
        ("redis://u:pa%2Fss%20word@h/0", "pa/ss word"),
        ("amqp://u:a@b'c@h//", "a@b'c"),
        ("http://h/?x=1&api_key=sesame-1", "sesame-1"),
        ("sqs://h?aws_secret_access_key=sesame-2", "sesame-2"),
        ("postgresql://u@h/d?sslpassword=sesame-3", "sesame-3"),
        ("azure://h?sig=sesame-4", "sesame-4"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_of_a_url_is_hidden_however_it_is_spelled(url: str, secret: str, form: Any) -> None:
    """As it is, in a repr, in JSON within JSON, percent-encoded; in text lines and in JSON lines."""
    formatter = (logs.TextFormatter if form == "text" else logs.JsonFormatter)(secrets_in(url))
    for text in (secret, repr(secret), json.dumps({"p": secret}), repr([repr(secret)]), quote(secret, safe=""), url):
        record = logging.makeLogRecord({"name": "kombu", "levelname": "DEBUG", "msg": "sent %s", "args": (text,)})
        line = formatter.format(record)
        for spelled in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]):
            assert spelled not in line
