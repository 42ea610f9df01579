"""Slack: messages delivered by the Web API or an incoming webhook (edge, and the only user of slack_sdk).

The token and the webhook's URL are secrets: slack_sdk gets a logger that writes nothing, and no error of ours quotes
one of its own.
"""

from __future__ import annotations

import http.client
import logging
import math
import re
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import Request

from pydantic import SecretStr
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.webhook import WebhookClient

from . import slack_blocks
from .delivery import (
    DeliveryError,
    GoneError,
    MisconfiguredError,
    Place,
    RateLimitedError,
    RefusedError,
    UncertainError,
    UnreachableError,
)
from .views import View

TIMEOUT = 10
"""Seconds for one call; shorter than a lease."""
EVENT_TYPE = "celeryscope_message"
EARLIER = 120.0
"""Seconds that Slack's clock may be behind ours."""
_PAGE = 200
_PAGES = 50
_CHANNEL_ID = re.compile(r"[CGD][A-Z0-9]{6,}")

_INVITE = "invite the app: /invite @<its name> in that channel"
REMEDIES = {
    "invalid_auth": "the token is wrong; take the Bot User OAuth Token (xoxb-…) of the app's OAuth & Permissions page",
    "not_authed": "no token was given",
    "token_revoked": "the token was revoked; install the app again and use the new token",
    "token_expired": "the token has expired; install the app again and use the new token",
    "account_inactive": "the app was removed from the workspace; install it again",
    "missing_scope": "the token lacks a scope; add chat:write, channels:history, channels:read and reinstall the app",
    "channel_not_found": f"no such channel, or a private one without the app; mind the spelling, or {_INVITE}",
    "not_in_channel": _INVITE,
    "is_archived": "the channel is archived; name another one",
    "restricted_action": "a workspace setting forbids posting there; ask an administrator",
    "no_service": "the webhook does not exist any more; make a new one",
    "invalid_token": "the webhook's URL is wrong; copy it again",
    "action_prohibited": "an administrator forbids this webhook",
    "channel_is_archived": "the webhook's channel is archived; make a webhook for another one",
}
_ONE_CHANNEL = {"channel_not_found", "not_in_channel", "is_archived", "restricted_action", "channel_is_archived"}
_GONE = {"message_not_found", "cant_update_message", "edit_window_closed"}
_OURS = {"invalid_blocks", "invalid_attachments", "invalid_blocks_format", "msg_too_long", "msg_blocks_too_long",
         "invalid_payload", "no_text", "too_many_attachments"}  # fmt: skip
_TRANSIENT = {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"}
_HISTORY_UNKNOWN = {
    "missing_scope",
    "not_allowed_token_type",
    "channel_not_found",
    "not_in_channel",
    "method_deprecated",
}


def _silent() -> logging.Logger:
    # In no hierarchy: slack_sdk writes URLs (of webhooks: the credential) and bodies at DEBUG, and asks `level` only.
    logger = logging.Logger("slack_sdk", logging.CRITICAL + 1)  # noqa: LOG001
    logger.addHandler(logging.NullHandler())
    return logger


class _Client(WebClient):
    """Slack's client; where an answer sends it elsewhere, the token does not go along."""

    def _perform_urllib_http_request_internal(self, url: str, req: Request) -> dict[str, Any]:
        # urllib follows redirects, also to another host, and takes all headers there but those that are marked so.
        for name in [name for name in req.headers if name.lower() == "authorization"]:
            req.add_unredirected_header(name, req.headers.pop(name))
        return super()._perform_urllib_http_request_internal(url, req)


class SlackWeb:
    """Slack's Web API with a bot token. `noted` is told the status of every call, for the metrics."""

    editable = True

    def __init__(
        self, token: SecretStr, *, base_url: str | None = None, noted: Callable[[str], None], timeout: int = TIMEOUT
    ) -> None:
        self._client = _Client(
            token.get_secret_value(),
            base_url=base_url or WebClient.BASE_URL,
            timeout=timeout,
            logger=_silent(),
            # Its own handlers would post again after a reset, and sleep through a 429 in this thread.
            retry_handlers=[],
        )
        self._noted = noted
        self._ids: dict[str, str] = {}
        self._progress: dict[str, tuple[float, str, dict[str, Place]]] = {}

    def __repr__(self) -> str:
        return f"SlackWeb({self._client.base_url!r})"

    def post(self, channel: str, view: View, message_id: str) -> Place:
        """Post a message with metadata that names it."""
        data = self._say("chat.postMessage", view, {"channel": channel, **_marked(message_id), **_QUIET})
        channel_id, ref = _ident(data.get("channel")), _ident(data.get("ts"))
        if channel_id is None or ref is None:
            raise UncertainError("strange_answer", "what answers does not say where the message is: is that Slack?")
        return Place(channel_id, ref)

    def update(self, place: Place, view: View, message_id: str) -> None:
        """Replace what a message says."""
        self._say("chat.update", view, {"channel": place.channel_id, "ts": place.ref, **_marked(message_id)})

    def reply(self, place: Place, view: View) -> None:
        """Answer in a message's thread."""
        body = {"channel": place.channel_id, "thread_ts": place.ref, **_QUIET, **slack_blocks.reply(view)}
        self._call("chat.postMessage", body)

    def find(self, channel: str, channel_id: str, since: float) -> Mapping[str, Place] | None:
        """Read the channel's history since then; a reading that was cut short by a rate limit is taken up again."""
        try:
            found_id = channel_id or self._channel_id(channel)
            if found_id is None:
                return None
            return self._history(found_id, since)
        except MisconfiguredError as error:
            if error.status in _HISTORY_UNKNOWN:
                return None
            raise

    def _history(self, channel_id: str, since: float) -> Mapping[str, Place]:
        begun, cursor, found = self._progress.pop(channel_id, (since, "", {}))
        if begun > since:
            begun, cursor, found = since, "", {}
        for _ in range(_PAGES):
            query = {"channel": channel_id, "oldest": f"{begun - EARLIER:.6f}", "limit": _PAGE, "cursor": cursor}
            try:
                data = self._call("conversations.history", {**query, "include_all_metadata": True}, form=True)
            except RateLimitedError:
                self._progress[channel_id] = (begun, cursor, found)
                raise
            for message in _tables(data.get("messages")):
                message_id, ref = _marked_id(message), _ident(message.get("ts"))
                if message_id and ref:
                    found[message_id] = Place(channel_id, ref)
            cursor = _cursor(data)
            if not cursor:
                break
        return found

    def _channel_id(self, channel: str) -> str | None:
        if _CHANNEL_ID.fullmatch(channel):
            return channel
        if channel.lstrip("#") not in self._ids:
            self._ids = {name: str(info.get("id")) for name, info in self._channels().items()}
        return self._ids.get(channel.lstrip("#"))

    def _channels(self) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        cursor = ""
        for _ in range(_PAGES):
            query = {"types": "public_channel,private_channel", "limit": 1000, "cursor": cursor}
            data = self._call("conversations.list", query, form=True)
            found.update({str(info.get("name")): info for info in _tables(data.get("channels"))})
            cursor = _cursor(data)
            if not cursor:
                break
        return found

    def check(self, channels: Collection[str]) -> list[str]:
        """Try the token, its scopes and whether each channel exists and has the app in it."""
        try:
            self._call("auth.test", {}, form=True)
        except DeliveryError as error:
            return [f"Slack token: {error}"]
        try:
            known = self._channels()
        except DeliveryError as error:
            return [f"Slack: channels cannot be checked: {error}"]
        by_id = {str(info.get("id")): info for info in known.values()}
        problems = []
        for channel in sorted(channels):
            info = by_id.get(channel) or known.get(channel.lstrip("#"))
            status = _channel_status(info)
            if status:
                problems.append(f"Slack channel {channel}: {status}: {REMEDIES[status]}")
        return problems

    def _say(self, method: str, view: View, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._call(method, {**body, **slack_blocks.message(view)})
        except RefusedError:
            return self._call(method, {**body, **slack_blocks.in_words(view)})

    def _call(self, method: str, body: dict[str, Any], *, form: bool = False) -> dict[str, Any]:
        try:
            answer = self._client.api_call(method, params=body) if form else self._client.api_call(method, json=body)
            self._noted("ok")
            return dict(answer.data) if isinstance(answer.data, dict) else {}
        except SlackApiError as error:
            status, headers, data = error.response.status_code, error.response.headers, error.response.data
            code = str(data.get("error", "")) if isinstance(data, dict) else ""
            failure = _failure(status, headers, code if status < 500 and len(code) < 60 else "")
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            failure = _unheard(error)
        except (
            AttributeError,
            TypeError,
            ValueError,
            RecursionError,
        ):  # slack_sdk's, over what is none of Slack's JSON
            failure = UncertainError("strange_answer", "what answers does not speak like Slack")
        # Outside of the handlers: slack_sdk's errors carry the request with its token.
        self._noted(failure.status)
        raise failure


class SlackWebhook:
    """An incoming webhook: it can post to its one channel and do nothing else."""

    editable = False

    def __init__(self, url: SecretStr, *, noted: Callable[[str], None], timeout: int = TIMEOUT) -> None:
        self._client = WebhookClient(url.get_secret_value(), timeout=timeout, logger=_silent(), retry_handlers=[])
        self._noted = noted

    def __repr__(self) -> str:
        return "SlackWebhook(…)"

    def post(self, channel: str, view: View, message_id: str) -> Place:  # noqa: ARG002
        """Post a message; where it went nobody says."""
        try:
            self._send(slack_blocks.message(view))
        except RefusedError:
            self._send(slack_blocks.in_words(view))
        return Place("", "")

    def update(self, place: Place, view: View, message_id: str) -> None:  # noqa: ARG002
        """Cannot be done."""
        raise GoneError("not_editable")

    def reply(self, place: Place, view: View) -> None:  # noqa: ARG002
        """Cannot be done."""
        raise GoneError("not_editable")

    def find(self, channel: str, channel_id: str, since: float) -> None:  # noqa: ARG002
        """Cannot be known."""
        return

    def check(self, channels: Collection[str]) -> list[str]:
        """Say what a webhook cannot do: trying it would post."""
        if len(channels) > 1:
            names = ", ".join(sorted(channels))
            return [f"Slack webhook: posts to its one channel, whatever routes say ({names}); a bot token can do more"]
        return []

    def _send(self, body: Mapping[str, Any]) -> None:
        try:
            answer = self._client.send_dict({**body, "unfurl_links": False, "unfurl_media": False})
            if answer.status_code == 200:
                self._noted("ok")
                return
            failure = _failure(answer.status_code, answer.headers, answer.body.strip()[:60])
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            failure = _unheard(error)
        self._noted(failure.status)
        raise failure


_QUIET = {"unfurl_links": False, "unfurl_media": False, "link_names": False, "parse": "none"}


def _marked(message_id: str) -> dict[str, Any]:
    return {"metadata": {"event_type": EVENT_TYPE, "event_payload": {"id": message_id}}}


def _marked_id(message: Mapping[str, Any]) -> str | None:
    metadata = _table(message.get("metadata"))
    if metadata.get("event_type") != EVENT_TYPE:
        return None
    return _ident(_table(metadata.get("event_payload")).get("id"))


def _ident(said: object) -> str | None:
    return said if isinstance(said, str) and said.isascii() and said.isprintable() and 0 < len(said) < 256 else None


def _table(said: object) -> Mapping[str, Any]:
    return said if isinstance(said, Mapping) else {}


def _tables(said: object) -> list[Mapping[str, Any]]:
    return [item for item in said if isinstance(item, Mapping)] if isinstance(said, list) else []


def _cursor(data: Mapping[str, Any]) -> str:
    cursor = _table(data.get("response_metadata")).get("next_cursor")
    return cursor if isinstance(cursor, str) else ""


def _channel_status(info: Mapping[str, Any] | None) -> str | None:
    if info is None:
        return "channel_not_found"
    if info.get("is_archived"):
        return "is_archived"
    return None if info.get("is_member") else "not_in_channel"


def _failure(status: int, headers: Mapping[str, Any], code: str) -> DeliveryError:
    """Return what an answer that is not "ok" means."""
    if status == 429 or code in ("ratelimited", "rate_limited"):
        return RateLimitedError(_retry_after(headers))
    if status >= 500 or code in _TRANSIENT:
        return UncertainError(code or f"http_{status}")
    if code in _OURS:
        return RefusedError(code)
    if code in _GONE:
        return GoneError(code)
    code = code if re.fullmatch(r"[a-z_]+", code) else f"http_{status}"
    known = "see the errors of chat.postMessage in Slack's documentation, and whether the address is Slack's"
    return MisconfiguredError(code, REMEDIES.get(code, known), one_channel=code in _ONE_CHANNEL)


def _retry_after(headers: Mapping[str, Any]) -> float:
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "1")
    try:
        seconds = float(value)
        return min(max(seconds, 0.1), 3600.0) if math.isfinite(seconds) else 3600.0
    except (TypeError, ValueError):
        return 1.0


def _unheard(error: BaseException) -> UncertainError | UnreachableError:
    """Return whether a broken call may have been heard: where no connection was made it was not."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)):
        return UnreachableError("unreachable", f"Slack cannot be reached: {type(reason).__name__}")
    name = "timeout" if isinstance(reason, TimeoutError) else "connection"
    return UncertainError(name, f"the connection to Slack broke: {type(reason).__name__}")
