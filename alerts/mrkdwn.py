"""Users' text made safe for Slack's markup, and numbers and times in words (pure)."""

from __future__ import annotations

import datetime as dt

from .batches import tidy
from .redaction import Redactor

_redactor = Redactor()
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str, longest: int) -> str:
    """Return `text` with Slack's three special characters escaped, in at most `longest` characters, entities whole.

    After this, `<!channel>` and `<@U123>` are letters and ping nobody. Backticks are kept from closing a code span.
    """
    size = 0
    kept: list[str] = []
    for character in text.replace("`", "ˋ"):
        piece = _ESCAPES.get(character, character)
        if size + len(piece) > longest - 1:
            return "".join(kept) + "…"
        size += len(piece)
        kept.append(piece)
    return "".join(kept)


def safe(text: str, longest: int) -> str:
    """Return users' text redacted (again: the worker did it first), without control characters, and escaped."""
    # Cut before the patterns see it: their cost grows with the text.
    return escaped(_redactor.text(tidy(text[: 4 * longest])), longest)


def plain(text: str, longest: int) -> str:
    """Return users' text for a place without markup, where `<` and `&` are letters already."""
    text = " ".join(_redactor.text(tidy(text[: 4 * longest])).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def code(text: str, longest: int) -> str:
    """Return one line of users' text as a code span."""
    line = " ".join(safe(text, longest - 2).split())
    return f"`{line}`" if line else "–"


def block(text: str, longest: int, *, end: bool = False) -> str:
    """Return users' text as a code block; of what is too long the start is shown, or the `end`."""
    room = longest - 6
    text = text.strip("\n")
    if end:
        # An escaped character takes up to five.
        text = tidy(text)[-room:]
        while len(escaped(text, 6 * room + 1)) > room:
            text = text[max(1, len(text) // 10) :]
    return f"```{safe(text, room)}```"


def when(at: float) -> str:
    """Return a time as Slack shows it in the reader's own time zone, with UTC for where it cannot."""
    utc = dt.datetime.fromtimestamp(at, dt.timezone.utc)
    return f"<!date^{int(at)}^{{date_short_pretty}} {{time_secs}}|{utc:%Y-%m-%d %H:%M:%S} UTC>"


def lasting(seconds: float) -> str:
    """Return a length of time in words, rounded to what matters."""
    seconds = max(0, round(seconds))
    for size, name, smaller, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{seconds} s"


def number(count: int, noun: str = "failure") -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
