"""What a view looks like on Slack: Block Kit within Slack's limits, everything of users' made safe (pure)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .failure import OTHER
from .incidents import RESOLVED
from .mrkdwn import block, code, escaped, lasting, number, plain, safe, when
from .views import Link, Told, View

HEADER, BUTTON, URL, SECTION, FIELD = 150, 75, 3_000, 3_000, 2_000
"""Slack's limits, in characters."""
LINES = 40
"""Incidents that a roll-up or digest lists."""
_PER_SECTION = 6

COLORS = {"critical": "#d92d20", "warning": "#f79009", "info": "#2e90fa", RESOLVED: "#12b76a", "muted": "#98a2b3"}
SYMBOLS = {"critical": "🔴", "warning": "🟠", "info": "🔵", RESOLVED: "✅", "muted": "🔕"}
_RANK = ("critical", "warning", "info", "muted", RESOLVED)

KINDS = {
    "retry": "Celery will try again.",
    "lost": "Its process was killed (out of memory?).",
    "time_limit": "The hard time limit ended it.",
    "rejected": "It rejected its message.",
    "unknown_task": "No worker has code of that name: is a deploy incomplete?",
    "invalid": "Celery refused the message.",
    "undecodable": "The message's body could not be decoded.",
    "internal": "Celery's own handling of the task raised.",
}

_MENTIONS = ((re.compile(r"@?(here|channel|everyone)"), "<!{}>"), (re.compile(r"@?([UW][A-Z0-9]{6,})"), "<@{}>"),
             (re.compile(r"@?(S[A-Z0-9]{6,})"), "<!subteam^{}>"))  # fmt: skip
_READY = re.compile(r"<!(?:here|channel|everyone)>|<@[UW][A-Z0-9]+>|<!subteam\^S[A-Z0-9]+>")

Json = dict[str, Any]


def mention_of(text: str) -> str | None:
    """Return Slack's markup for calling somebody: @here, @channel, @everyone, a user's or group's id, or that markup.

    None where it is none of these: a name cannot be looked up.
    """
    text = text.strip()
    if _READY.fullmatch(text):
        return text
    for pattern, markup in _MENTIONS:
        match = pattern.fullmatch(text)
        if match:
            return markup.format(match[1])
    return None


def message(view: View) -> Json:
    """Return the text, blocks and attachments of a message."""
    if view.kind in ("incident", "test") and len(view.incidents) == 1:
        return _single(view, view.incidents[0])
    if not view.incidents:
        return {"text": view.text, "blocks": [_section(escaped(view.text, SECTION))]}
    return _several(view)


def in_words(view: View) -> Json:
    """Return the same in plain text, for when Slack refuses the blocks."""
    lines = [_line(told) for told in view.incidents[:LINES]] or [escaped(view.text, SECTION)]
    return {"text": "\n".join(lines)[:SECTION], "blocks": [], "attachments": []}


def reply(view: View) -> Json:
    """Return the answer in the thread of an incident's message."""
    told = view.incidents[0]
    again = f"Failing again, for the {_ordinal(told.reopens)} time. " if told.reopens else ""
    rate = f"{number(told.count)} since {when(told.first)}, the last one {when(told.last)}."
    return {"text": f"{_mentions(view)}{SYMBOLS[told.severity]} {again}{rate}"}


def _single(view: View, told: Told) -> Json:
    mood = _mood(told)
    fate = "Resolved: " if mood == RESOLVED else ""
    title = f"{SYMBOLS[mood]} {fate}{_task(told)}: {_short(told.exception)}"
    blocks = [_header(title)]
    mentions = _mentions(view)
    if mentions and told.state != RESOLVED:
        blocks.append(_section(f"{mentions}{told.severity}"))
    details = [_what(told), _facts(told), *_traceback(told), *_arguments(told), *_buttons(told.links), _foot(told)]
    attachment = {"color": COLORS[mood], "fallback": _fallback(told), "blocks": details}
    return {"text": _fallback(told), "blocks": blocks, "attachments": [attachment]}


def _several(view: View) -> Json:
    shown = view.incidents[:LINES]
    total = len(view.incidents) + view.more
    mood = min((_mood(told) for told in view.incidents), key=_RANK.index)
    titles = {
        "rollup": f"{total} more kinds of failure: too many for a message each",
        "digest": f"{number(total, 'incident')} during quiet hours",
        "changes": f"{number(total, 'incident')} changed",
    }
    title = f"{SYMBOLS[mood]} {titles.get(view.kind, number(total, 'incident'))}"
    blocks = [_header(title)]
    if _mentions(view) and mood != RESOLVED:
        blocks.append(_section(_mentions(view).strip()))
    lines = [_line(told) for told in shown]
    details = [_section("\n".join(part)[:SECTION]) for part in _parts(lines)]
    left = total - len(shown)
    if left > 0:
        details.append(_context(f"and {number(left, 'incident')} more: `celeryscope incidents` lists them"))
    summary = f"{title}: " + ", ".join(f"{told.task} {_short(told.exception)}" for told in shown[:5])
    text = escaped(plain(summary, 300), 600)
    attachment = {"color": COLORS[mood], "fallback": text, "blocks": details}
    return {"text": text, "blocks": blocks, "attachments": [attachment]}


def _parts(lines: Sequence[str]) -> list[Sequence[str]]:
    return [lines[start : start + _PER_SECTION] for start in range(0, len(lines), _PER_SECTION)]


def _line(told: Told) -> str:
    mood = _mood(told)
    name = f"*{safe(_task(told), 120)}*"
    fate = "resolved" if told.state == RESOLVED else "muted" if told.muted_until else f"last {when(told.last)}"
    url = next((_markup_url(link.url) for link in told.links if len(_markup_url(link.url)) <= 120), None)
    where = f" · {safe(told.environment, 40)}" if told.environment else ""
    flower = f" · <{url}|{escaped(told.links[0].text, BUTTON)}>" if url else ""
    return f"{SYMBOLS[mood]} {name} {code(_short(told.exception), 80)}: {number(told.count)}, {fate}{where}{flower}"


def _what(told: Told) -> Json:
    frame = f" in {code(told.sample.frame, 200)}" if told.sample.frame else ""
    text = f"*{safe(told.exception, 250)}*{frame}"
    if told.sample.message.strip():
        text += "\n" + block(told.sample.message, 1_500)
    return _section(text)


def _facts(told: Told) -> Json:
    sample = told.sample
    facts = [
        ("Failures", f"{told.count:,}"),
        ("First", when(told.first)),
        ("Last", when(told.last)),
        ("Queue", code(sample.queue or "", 200) if sample.queue else ""),
        ("Worker", code(sample.worker or "", 200) if sample.worker else ""),
        ("Environment", safe(told.environment, 100)),
        ("Release", safe(sample.release or "", 100)),
        ("Retries", _retries(told)),
    ]
    fields = [_markdown(f"*{name}*\n{value}"[:FIELD]) for name, value in facts if value]
    return {"type": "section", "fields": fields}


def _retries(told: Told) -> str:
    sample = told.sample
    if sample.gave_up:
        return f"{sample.retries}, then gave up"
    if not sample.retries:
        return ""
    return f"{sample.retries}" + (f" of {sample.max_retries}" if sample.max_retries is not None else "")


def _traceback(told: Told) -> list[Json]:
    text = told.sample.traceback or ""
    lines = "\n".join(text.rstrip().splitlines()[-14:])
    return [_section(block(lines, 2_000, end=True))] if lines else []


def _arguments(told: Told) -> list[Json]:
    given = {**told.sample.args, **told.sample.kwargs}
    if not given:
        return []
    return [_section(block("\n".join(f"{name} = {value}" for name, value in list(given.items())[:20]), 1_500))]


def _buttons(links: Sequence[Link]) -> list[Json]:
    buttons = [
        {
            "type": "button",
            "text": {"type": "plain_text", "text": plain(link.text, BUTTON), "emoji": False},
            "url": link.url,
            "action_id": f"link-{number}",
        }
        for number, link in enumerate(links)
        if len(link.url) <= URL
    ]
    return [{"type": "actions", "elements": buttons}] if buttons else []


def _foot(told: Told) -> Json:
    notes = [KINDS[told.sample.kind]] if told.sample.kind in KINDS else []
    if told.sample.requeued:
        notes.append("The broker delivers it again: it may loop.")
    if told.state == RESOLVED and told.resolved_at is not None:
        notes.append(f"Resolved {when(told.resolved_at)}, {lasting(told.resolved_at - told.first)} after it began.")
    if told.muted_until is not None:
        notes.append(f"Muted until {when(told.muted_until)}.")
    if told.reopens:
        notes.append(f"Reopened {number(told.reopens, 'time')}.")
    notes.append(f"incident {told.id}")
    return _context(" ".join(notes))


def _mood(told: Told) -> str:
    if told.state == RESOLVED:
        return RESOLVED
    return "muted" if told.muted_until is not None else told.severity


def _task(told: Told) -> str:
    return "other tasks" if told.task == OTHER else told.task


def _short(exception: str) -> str:
    return "several kinds" if exception == OTHER else exception.rpartition(".")[2] or exception


def _fallback(told: Told) -> str:
    state = "resolved" if told.state == RESOLVED else told.severity
    message = plain(told.sample.message, 200)
    said = f": {message}" if message else ""
    text = f"[{state}] {_task(told)} failed: {_short(told.exception)}{said} ({number(told.count)})"
    return escaped(plain(text, 500), 1_000)


def _mentions(view: View) -> str:
    found = [mention_of(word) for word in (view.mention or "").split()]
    return "".join(f"{markup} " for markup in found if markup)


def _markup_url(url: str) -> str:
    return url.replace("&", "&amp;").replace("<", "%3C").replace(">", "%3E").replace("|", "%7C")


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _header(title: str) -> Json:
    # Slack reads no markup in plain text; with these nobody need rely on it.
    text = plain(title, HEADER).replace("<", "‹").replace(">", "›")
    return {"type": "header", "text": {"type": "plain_text", "text": text, "emoji": False}}


def _section(text: str) -> Json:
    return {"type": "section", "text": _markdown(text)}


def _context(text: str) -> Json:
    return {"type": "context", "elements": [_markdown(text)]}


def _markdown(text: str) -> Json:
    # Verbatim: Slack turns no name or address within users' text into a mention or a link of its own.
    return {"type": "mrkdwn", "text": text, "verbatim": True}
