"""The inbox as a page: Slack's messages as people would see them, all of it escaped (pure)."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from .inbox import Channel, Posted

STYLE = """
:root { color-scheme: light; --ink:#1d1c1d; --soft:#616061; --line:#e8e8e8; --side:#3f0e40; --link:#1264a3 }
* { box-sizing: border-box }
body { margin:0; font:15px/1.47 Lato,"Helvetica Neue",Arial,sans-serif; color:var(--ink); display:flex;
  min-height:100vh }
nav { width:240px; flex:none; background:var(--side); color:#cfc3cf; padding:18px 0; position:sticky; top:0;
  height:100vh }
nav h1 { font-size:17px; color:#fff; margin:0 18px 4px } nav p { margin:0 18px 18px; font-size:12px }
nav a { display:flex; justify-content:space-between; color:inherit; text-decoration:none; padding:4px 18px }
nav a.on { background:#1164a3; color:#fff } nav a b { font-size:12px; font-weight:600; opacity:.8 }
main { flex:1; min-width:0 } main > header { padding:14px 24px; border-bottom:1px solid var(--line); font-weight:800;
  font-size:18px; position:sticky; top:0; background:#fff }
.day { text-align:center; color:var(--soft); font-size:13px; margin:14px 0 2px }
article { display:flex; gap:10px; padding:10px 24px } article:hover { background:#f8f8f8 }
.face { width:38px; height:38px; border-radius:6px; background:#37814a; color:#fff; display:grid; place-items:center;
  font-weight:700; flex:none } .body { min-width:0; flex:1; max-width:860px }
.who { font-weight:800 } .app { background:#ddd; border-radius:3px; font-size:10px; padding:1px 4px; color:var(--soft) }
time { color:var(--soft); font-size:12px; margin-left:4px } .edited { color:var(--soft); font-size:12px }
h2 { font-size:18px; margin:2px 0 4px; overflow-wrap:anywhere } .section { margin:4px 0; overflow-wrap:anywhere }
.attachment { border-left:4px solid var(--bar); border-radius:4px; padding:2px 0 2px 14px; margin:6px 0 }
.fields { display:grid; grid-template-columns:repeat(auto-fill,minmax(190px,1fr)); gap:6px 18px; margin:8px 0 }
pre { background:#f6f6f6; border:1px solid var(--line); border-radius:4px; padding:8px; margin:4px 0;
  white-space:pre-wrap;  overflow-wrap:anywhere; font:12px/1.5 Menlo,Consolas,monospace }
code { background:#f6f6f6; border:1px solid var(--line); border-radius:3px; padding:1px 4px; color:#c01343;
  font:12px Menlo,Consolas,monospace }
.actions { display:flex; flex-wrap:wrap; gap:8px; margin:8px 0 } .actions a { border:1px solid #bbb; border-radius:4px;
  padding:4px 12px; font-size:13px; font-weight:700; color:var(--ink); text-decoration:none }
.context { color:var(--soft); font-size:12px } a { color:var(--link) }
.ping { background:#fff5cc; color:#1264a3; border-radius:3px; padding:0 2px; font-weight:600 }
.thread { border-left:2px solid var(--line); margin:6px 0 0 4px; padding-left:12px; font-size:14px }
.thread b { color:var(--link); font-size:13px } .empty { padding:40px 24px; color:var(--soft) }
"""


def page(channels: Sequence[Channel], messages: Sequence[Posted], query: str = "") -> str:
    """Return the page of the channel that the query names (`channel=ID`), or else of the last one with a message."""
    asked = parse_qs(query).get("channel", [""])[-1]
    latest = messages[-1].channel if messages else ""
    known = {channel.id: channel for channel in channels}
    current = known.get(asked) or known.get(latest) or channels[0]
    tops = [message for message in messages if message.thread_ts is None]
    counts = {channel.id: sum(message.channel == channel.id for message in tops) for channel in channels}
    side = "".join(
        f'<a class="{"on" if channel is current else ""}" href="?channel={escape(channel.id)}">'
        f"<span># {escape(channel.name)}</span><b>{counts[channel.id] or ''}</b></a>"
        for channel in channels
    )
    shown = [message for message in tops if message.channel == current.id]
    body = "".join(_message(message, messages) for message in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Slack inbox</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="5"><style>{STYLE}</style></head><body><nav><h1>Slack inbox</h1>'
        f"<p>local: nothing leaves this machine</p>{side}</nav><main><header># {escape(current.name)}</header>"
        f"{body or '<p class=empty>No messages yet.</p>'}</main></body></html>"
    )


def _message(message: Posted, everything: Sequence[Posted]) -> str:
    replies = [m for m in everything if m.thread_ts == message.ts and m.channel == message.channel]
    thread = "".join(f"<div>{_mrkdwn(reply.text)} {_time(reply.ts)}</div>" for reply in replies)
    if thread:
        count = "1 reply" if len(replies) == 1 else f"{len(replies)} replies"
        thread = f'<div class="thread"><b>{count}</b>{thread}</div>'
    edited = ' <span class="edited">(edited)</span>' if message.history else ""
    return (
        '<article><div class="face">cs</div><div class="body"><span class="who">celeryscope</span> '
        f'<span class="app">APP</span>{_time(message.ts)}{edited}{_content(message.body)}{thread}</div></article>'
    )


def _content(body: Mapping[str, Any]) -> str:
    blocks = body.get("blocks") or []
    attachments = body.get("attachments") or []
    text = "" if blocks else f'<div class="section">{_mrkdwn(str(body.get("text") or ""))}</div>'
    return text + "".join(_block(block) for block in blocks) + "".join(map(_attachment, attachments))


def _attachment(attachment: Mapping[str, Any]) -> str:
    """Return an attachment: of blocks, or in the older form that Alertmanager sends."""
    parts = [_block(block) for block in attachment.get("blocks") or []]
    if title := escape(str(attachment.get("title") or "")):
        parts.append(f"<h2>{title}</h2>")
    if text := str(attachment.get("text") or ""):
        parts.append(f'<div class="section">{_mrkdwn(text)}</div>')
    buttons = "".join(
        f'<a href="{_href(str(action.get("url", "")))}" rel="noreferrer">{escape(str(action.get("text", "")))}</a>'
        for action in attachment.get("actions") or []
    )
    if buttons:
        parts.append(f'<div class="actions">{buttons}</div>')
    return f'<div class="attachment" style="--bar:{_color(attachment.get("color"))}">{"".join(parts)}</div>'


def _block(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "header":
        return f"<h2>{escape(str(block['text']['text']))}</h2>"
    if kind == "actions":
        buttons = "".join(
            f'<a href="{_href(str(button.get("url", "")))}" rel="noreferrer">{escape(str(button["text"]["text"]))}</a>'
            for button in block["elements"]
        )
        return f'<div class="actions">{buttons}</div>'
    if kind == "context":
        return f'<div class="context">{" ".join(_text(element) for element in block["elements"])}</div>'
    fields = "".join(f"<div>{_text(entry)}</div>" for entry in block.get("fields") or [])
    text = f'<div class="section">{_text(block["text"])}</div>' if "text" in block else ""
    return text + (f'<div class="fields">{fields}</div>' if fields else "")


def _text(text: Mapping[str, Any]) -> str:
    content = str(text.get("text", ""))
    return _mrkdwn(content) if text.get("type") == "mrkdwn" else escape(content)


_TOKENS = re.compile(
    r"```(?P<pre>.*?)```|`(?P<code>[^`\n]+)`|<(?P<tag>[^<>]+)>|\*(?P<bold>[^*\n]+)\*|(?P<newline>\n)", re.DOTALL
)


def _mrkdwn(text: str) -> str:
    found: list[str] = []
    end = 0
    for match in _TOKENS.finditer(text):
        found.append(_letters(text[end : match.start()]))
        found.append(_token(match))
        end = match.end()
    return "".join(found) + _letters(text[end:])


def _token(match: re.Match[str]) -> str:
    if match["pre"] is not None:
        return f"<pre>{_letters(match['pre'])}</pre>"
    if match["code"] is not None:
        return f"<code>{_letters(match['code'])}</code>"
    if match["bold"] is not None:
        return f"<strong>{_mrkdwn(match['bold'])}</strong>"
    return "<br>" if match["newline"] else _tag(match["tag"])


def _tag(tag: str) -> str:
    target, _, label = tag.partition("|")
    if target.startswith("!date^"):
        at = float(target.split("^")[1])
        return f'<span title="{escape(label)}">{_local(at, "%d %b %H:%M:%S")}</span>'
    if target.startswith(("!", "@")):
        name = label or target.removeprefix("!subteam^").lstrip("!@")
        return f'<span class="ping">@{escape(name)}</span>'
    return f'<a href="{_href(_unescaped(target))}" rel="noreferrer">{_letters(label or target)}</a>'


def _letters(text: str) -> str:
    return escape(_unescaped(text))


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _href(url: str) -> str:
    return escape(url) if url.startswith(("http://", "https://")) else "#"


def _color(color: object) -> str:
    return str(color) if re.fullmatch(r"#[0-9a-fA-F]{6}", str(color)) else "#dddddd"


def _time(ts: str) -> str:
    return f"<time>{_local(float(ts), '%H:%M')}</time>"


def _local(at: float, form: str) -> str:
    return dt.datetime.fromtimestamp(at, dt.timezone.utc).astimezone().strftime(form)
