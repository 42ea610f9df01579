"""A Slack workspace on this machine: as much of the Web API as the alerter uses, and a page of what people would see.

For the demo and for tests: it can be slow, down, limited, out of order, and it can lose the connection after it has
accepted a call. It checks Slack's limits, so that what passes here is not refused there.
"""

from __future__ import annotations

import hmac
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from cheroot import wsgi
from cheroot.server import HTTPConnection

from .inbox_page import page

TOKEN = "xoxb-local-inbox"  # noqa: S105 - of a workspace that is not there
HOOK = "/services/T0LOCAL/B0LOCAL/inbox"
BOT = "U0CELERYSCOPE"
SCOPES = "chat:write,channels:history,channels:read"
_PAGE = 100

Json = dict[str, Any]


@dataclass
class Channel:
    """A channel of the workspace."""

    id: str
    name: str
    member: bool = True
    archived: bool = False


@dataclass
class Posted:
    """A message that was accepted; `history` holds what it said before each change."""

    channel: str
    ts: str
    body: Json
    thread_ts: str | None = None
    history: list[Json] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The notification's text."""
        return str(self.body.get("text") or "")

    @property
    def everything(self) -> str:
        """All that it says, as JSON."""
        return json.dumps(self.body, ensure_ascii=False)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call. Where `accept`, the call has its effect all the same.

    `reset` breaks the connection; `seconds` passes before the answer; `error` is one of Slack's.
    """

    status: int = 200
    accept: bool = False
    reset: bool = False
    retry_after: float | None = None
    seconds: float = 0.0
    error: str = ""


DOWN = Fault(status=503)
LOST_ANSWER = Fault(accept=True, reset=True)

Script = Callable[[str], Fault | None]
"""Told each call's method, says what is to go wrong with it."""


class ApiError(Exception):
    """A call that Slack answers with ok: false."""


class Inbox:
    """The workspace. Everything may be read and changed while it serves; `lock` keeps a reader's view whole."""

    def __init__(self, channels: Sequence[Channel | str] = ("general",), *, token: str = TOKEN) -> None:
        self.lock = threading.RLock()
        self.token = token
        self.scopes = SCOPES
        self.channels = [c if isinstance(c, Channel) else Channel(f"C0LOCAL{n:04d}", c) for n, c in enumerate(channels)]
        self.messages: list[Posted] = []
        self.script: Script = lambda _method: None
        self.per_second: float | None = None
        """Accepted calls a second, for all of the workspace; more are answered with 429."""
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Calls that had no effect, by status or error."""
        self._free_at = 0.0
        self._last_ts = 0.0
        self._server: wsgi.Server | None = None

    @property
    def url(self) -> str:
        """The address of the page."""
        assert self._server is not None, "not started"
        host, port = self._server.bind_addr[:2]
        return f"http://{host}:{port}"

    @property
    def api_url(self) -> str:
        """What CELERYSCOPE_SLACK_BASE_URL must be."""
        return f"{self.url}/api/"

    @property
    def hook_url(self) -> str:
        """The address of the incoming webhook, which posts to the first channel."""
        return self.url + HOOK

    def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve in the background; port 0 is any free one."""
        server = wsgi.Server((host, port), self, numthreads=8, request_queue_size=64)
        server.gateway = _Gateway
        server.ConnectionClass = _Connection
        server.prepare()
        self._server = server
        threading.Thread(target=server.serve, name="inbox", daemon=True).start()

    def stop(self) -> None:
        """Stop serving; the messages stay."""
        if self._server is not None:
            self._server.stop()

    @contextmanager
    def serving(self) -> Iterator[Inbox]:
        """Serve while the context lasts."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def top(self, channel: str | None = None) -> list[Posted]:
        """Return the messages that are no replies, of one channel (by name) or all."""
        with self.lock:
            chosen = None if channel is None else self._channel(channel).id
            return [m for m in self.messages if m.thread_ts is None and chosen in (None, m.channel)]

    def replies(self, message: Posted) -> list[Posted]:
        """Return what was answered in a message's thread."""
        with self.lock:
            return [m for m in self.messages if m.thread_ts == message.ts and m.channel == message.channel]

    def __call__(self, environ: Json, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request (WSGI)."""
        path = str(environ.get("PATH_INFO", "/"))
        if path.startswith("/api/"):
            return self._answer(environ, start_response, path.removeprefix("/api/"))
        if path == HOOK:
            return self._answer(environ, start_response, "webhook")
        with self.lock:
            body = page(self.channels, self.messages, str(environ.get("QUERY_STRING", ""))).encode()
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"),
        ]
        start_response("200 OK", headers)
        return [body]

    def _answer(self, environ: Json, start_response: Callable[..., Any], method: str) -> Iterable[bytes]:
        arguments = _arguments(environ)
        fault = self._fault(method)
        if fault.seconds:
            time.sleep(fault.seconds)
        result: Json = {"ok": False, "error": fault.error or f"http_{fault.status}"}
        if fault.accept or (fault.status == 200 and not fault.reset and not fault.error):
            result = self._perform(environ, method, arguments)
        else:
            with self.lock:
                self.refused[fault.error or str(fault.status)] += 1
        if fault.reset:
            _reset(environ["inbox.socket"])
        headers = [("Content-Type", "application/json; charset=utf-8"), ("X-OAuth-Scopes", self.scopes)]
        if fault.retry_after is not None:
            headers.append(("Retry-After", f"{fault.retry_after:g}"))
        start_response(f"{fault.status} {_REASONS.get(fault.status, 'Answer')}", headers)
        if fault.status >= 500:
            return [b"<html>upstream error</html>"]
        return [b"ok" if method == "webhook" and result["ok"] else json.dumps(result).encode()]

    def _fault(self, method: str) -> Fault:
        with self.lock:
            scripted = self.script(method)
            if scripted is not None:
                return scripted
            now = time.monotonic()
            if self.per_second is not None:
                if now < self._free_at:
                    return Fault(status=429, retry_after=max(0.05, round(self._free_at - now, 2)), error="ratelimited")
                self._free_at = now + 1 / self.per_second
        return Fault()

    def _perform(self, environ: Json, method: str, arguments: Json) -> Json:
        with self.lock:
            try:
                if method == "webhook":
                    result = self._post({**arguments, "channel": self.channels[0].id})
                else:
                    given = str(environ.get("HTTP_AUTHORIZATION"))
                    if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                        raise ApiError("invalid_auth")
                    handler = _METHODS.get(method)
                    if handler is None:
                        raise ApiError("unknown_method")
                    result = handler(self, arguments)
            except ApiError as error:
                self.refused[str(error)] += 1
                return {"ok": False, "error": str(error)}
            self.accepted[method] += 1
            return {"ok": True, **result}

    def _channel(self, name: str) -> Channel:
        wanted = str(name).lstrip("#")
        found = next((c for c in self.channels if wanted in (c.id, c.name)), None)
        if found is None:
            raise ApiError("channel_not_found")
        return found

    def _post(self, arguments: Json) -> Json:
        channel = self._channel(arguments.get("channel", ""))
        if channel.archived:
            raise ApiError("is_archived")
        if not channel.member:
            raise ApiError("not_in_channel")
        check_limits(arguments)
        thread = arguments.get("thread_ts")
        self._last_ts = max(time.time(), self._last_ts + 0.000_001)
        message = Posted(channel.id, f"{self._last_ts:.6f}", dict(arguments), thread)
        self.messages.append(message)
        return {"channel": channel.id, "ts": message.ts, "message": {"text": message.text}}

    def _update(self, arguments: Json) -> Json:
        channel_id = str(arguments.get("channel", ""))
        if not channel_id.startswith("C"):
            raise ApiError("channel_not_found")
        message = next((m for m in self.messages if (m.channel, m.ts) == (channel_id, arguments.get("ts"))), None)
        if message is None:
            raise ApiError("message_not_found")
        check_limits(arguments)
        message.history.append(message.body)
        message.body = {**message.body, **arguments}
        return {"channel": channel_id, "ts": message.ts, "text": message.text}

    def _read_history(self, arguments: Json) -> Json:
        if "channels:history" not in self.scopes:
            raise ApiError("missing_scope")
        channel = self._channel(arguments.get("channel", ""))
        oldest = float(arguments.get("oldest") or 0)
        first = int(arguments.get("cursor") or 0)
        size = min(int(arguments.get("limit") or _PAGE), _PAGE)
        found = [m for m in self.messages if m.channel == channel.id and m.thread_ts is None and float(m.ts) >= oldest]
        found.sort(key=lambda m: m.ts, reverse=True)
        more = first + size < len(found)
        with_metadata = str(arguments.get("include_all_metadata")).lower() in ("1", "true")
        messages = [
            {
                "type": "message",
                "ts": m.ts,
                "text": m.text,
                **({"metadata": m.body.get("metadata") or {}} if with_metadata else {}),
            }
            for m in found[first : first + size]
        ]
        cursor = str(first + size) if more else ""
        return {"messages": messages, "has_more": more, "response_metadata": {"next_cursor": cursor}}

    def _list(self, _arguments: Json) -> Json:
        if "channels:read" not in self.scopes:
            raise ApiError("missing_scope")
        return {"channels": [_shown(c) for c in self.channels], "response_metadata": {"next_cursor": ""}}

    def _info(self, arguments: Json) -> Json:
        return {"channel": _shown(self._channel(arguments.get("channel", "")))}

    def _who(self, _arguments: Json) -> Json:
        return {"url": "https://local.invalid/", "team": "Local inbox", "user": "celeryscope", "user_id": BOT}


_METHODS: dict[str, Callable[[Inbox, Json], Json]] = {
    "auth.test": Inbox._who,  # noqa: SLF001 - its own
    "chat.postMessage": Inbox._post,  # noqa: SLF001
    "chat.update": Inbox._update,  # noqa: SLF001
    "conversations.history": Inbox._read_history,  # noqa: SLF001
    "conversations.info": Inbox._info,  # noqa: SLF001
    "conversations.list": Inbox._list,  # noqa: SLF001
}
_REASONS = {200: "OK", 429: "Too Many Requests", 503: "Service Unavailable"}


def _shown(channel: Channel) -> Json:
    return {"id": channel.id, "name": channel.name, "is_member": channel.member, "is_archived": channel.archived}


def check_limits(arguments: Mapping[str, Any]) -> None:
    """Refuse what Slack would refuse.

    Raises:
        ApiError: invalid_blocks, msg_too_long, no_text or too_many_attachments.
    """
    attachments = arguments.get("attachments") or []
    blocks = arguments.get("blocks") or []
    if len(str(arguments.get("text") or "")) > 40_000:
        raise ApiError("msg_too_long")
    if not (arguments.get("text") or blocks or attachments):
        raise ApiError("no_text")
    if len(attachments) > 100:
        raise ApiError("too_many_attachments")
    for group in (blocks, *(attachment.get("blocks") or [] for attachment in attachments)):
        if len(group) > 50 or not all(_valid(block) for block in group):
            raise ApiError("invalid_blocks")


def _valid(block: Mapping[str, Any]) -> bool:
    kind = block.get("type")
    if kind == "header":
        return _text_within(block.get("text"), 150, "plain_text")
    if kind == "section":
        fields = block.get("fields") or []
        if "text" not in block and not fields:
            return False
        fits = "text" not in block or _text_within(block["text"], 3_000)
        return fits and len(fields) <= 10 and all(_text_within(entry, 2_000) for entry in fields)
    if kind == "context":
        return 0 < len(block["elements"]) <= 10 and all(_text_within(element, 2_000) for element in block["elements"])
    if kind == "actions":
        buttons = block["elements"]
        fits = all(_text_within(b["text"], 75, "plain_text") and len(b.get("url", "")) <= 3_000 for b in buttons)
        return 0 < len(buttons) <= 25 and fits and len({b.get("action_id") for b in buttons}) == len(buttons)
    return kind == "divider"


def _text_within(text: Any, longest: int, kind: str | None = None) -> bool:
    if not isinstance(text, Mapping) or not 0 < len(str(text.get("text", ""))) <= longest:
        return False
    return kind in (None, text.get("type")) and text.get("type") in ("plain_text", "mrkdwn")


def _arguments(environ: Mapping[str, Any]) -> Json:
    raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if "json" in str(environ.get("CONTENT_TYPE", "")):
        found = json.loads(raw or b"{}")
        return found if isinstance(found, dict) else {}
    return {name: texts[-1] for name, texts in parse_qs(raw.decode()).items()}


def _reset(connection: socket.socket) -> None:
    # Linger 0 and a half-close: the client gets no answer, whatever is still written.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> Json:  # type: ignore[override] # the stubs say None
        environ: Json = super().get_environ()  # type: ignore[no-untyped-call]
        environ["inbox.socket"] = self.req.conn.socket
        return environ


class _Connection(HTTPConnection):
    def close(self) -> None:
        super().close()
        # With the answer that a reset connection did not take: Python 3.13 complains when the writer is collected.
        with suppress(OSError):
            self.wfile.close()
