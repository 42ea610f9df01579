"""Routes as people write them, in `celeryscope.toml`: read, checked, and every mistake named with its remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .policy import QuietHours, Rule, Severity, Threshold
from .slack_blocks import mention_of

UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
LONGEST_WINDOW = 86_400.0
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\w*\s*")
_QUIET = re.compile(r"(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)(?:\s+(\S+))?")
_CHANNEL = re.compile(r"#?[\w.-]{1,80}")


def duration(raw: object) -> float:
    """Read a length of time such as "90 s", "10 min", "2h" or "1 d"; a bare number is seconds."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool) and raw > 0:
        return float(raw)
    match = _DURATION.fullmatch(str(raw)) or re.fullmatch(r"\s*(\d+(?:\.\d+)?)(\s*)", str(raw))
    if match is None or float(match[1]) <= 0:
        raise ValueError("must be a length of time such as 90s, 10min, 2h or 1d")
    return float(match[1]) * UNITS.get(match[2], 1.0)


def _threshold(raw: object) -> Threshold:
    count, _, window = str(raw).partition(" in ")
    if not count.strip().isdigit() or int(count) < 1 or not window:
        raise ValueError('must be a count and a time, such as "5 in 10min"')
    seconds = duration(window)
    if seconds > LONGEST_WINDOW:
        raise ValueError("must not look back more than a day")
    return Threshold(int(count), seconds)


def _quiet_hours(raw: object) -> QuietHours:
    match = _QUIET.fullmatch(str(raw).strip())
    if match is None or int(match[1]) > 24 or int(match[3]) > 24 or int(match[2]) > 59 or int(match[4]) > 59:
        raise ValueError('must be a time of day and a time zone, such as "22:00-07:00 Europe/Paris"')
    start, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if start == end:
        raise ValueError("must not begin when they end; `mute = true` is always quiet")
    name = match[5] or "UTC"
    try:
        return QuietHours(start % 1440, end, ZoneInfo(name))
    except (OSError, ValueError, KeyError):
        raise ValueError(f"has no known time zone {name!r}; names are like Europe/Paris") from None


def _patterns(raw: object) -> tuple[str, ...]:
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise ValueError('must be a glob such as "shop.*", or a list of them')
    return tuple(texts)


def channel(raw: object) -> str:
    """Read a channel's name or id."""
    text = str(raw).strip()
    if not _CHANNEL.fullmatch(text):
        raise ValueError("must be a channel such as #payments, or its id such as C0123456789")
    return text


def _mention(raw: object) -> str:
    texts = [raw] if isinstance(raw, str) else raw
    found = [mention_of(str(text)) for text in texts] if isinstance(texts, (list, tuple)) else [None]
    if not found or None in found:
        raise ValueError("must be @here, @channel, or a user's or group's id (U… or S…: in Slack's profile menu)")
    return " ".join(str(item) for item in found)


Globs = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
Channel = Annotated[str, BeforeValidator(channel)]


class Route(BaseModel):
    """One `[[routes]]` table. Of `task`, `queue` and `exception`, all that are given must match; the first route that
    matches counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str = ""
    task: Globs = ()
    queue: Globs = ()
    exception: Globs = ()
    channel: Channel | None = None
    mention: Annotated[str | None, BeforeValidator(_mention)] = None
    severity: Severity | None = None
    mute: bool | None = None
    threshold: Annotated[Threshold | None, BeforeValidator(_threshold)] = None
    quiet_hours: Annotated[QuietHours | None, BeforeValidator(_quiet_hours)] = None
    notify_retries: bool | None = None
    runbook: Annotated[str | None, Field(max_length=2_000)] = None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, table: Any) -> Any:
        unknown = sorted(set(table) - set(cls.model_fields)) if isinstance(table, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(cls.model_fields)}"
            raise ValueError(f"has no key {unknown[0]!r}; {hint}")
        return table

    def rule(self, number: int) -> Rule:
        """Return it as the policy takes it; a route without a name is called by its number."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Route.model_fields}
        return Rule(**{**values, "name": self.name or f"#{number}"})


def rules(routes: Sequence[Route]) -> tuple[Rule, ...]:
    """Return the routes as rules, numbered from 1."""
    return tuple(route.rule(number) for number, route in enumerate(routes, 1))


def contradictions(found: Sequence[Rule]) -> list[str]:
    """Return a line for each route that can never be reached because one above takes all that it matches."""
    problems = []
    names = [rule.name for rule in found]
    problems += [f"two routes are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    for number, later in enumerate(found):
        above = next((earlier for earlier in found[:number] if earlier.covers(later)), None)
        if above is None:
            continue
        same = (above.task, above.queue, above.exception) == (later.task, later.queue, later.exception)
        how = (
            "match the same failures" if same else f"contradict: {above.name!r} takes everything {later.name!r} matches"
        )
        problems.append(
            f"routes {above.name!r} and {later.name!r} {how}, and the first match counts; "
            f"put {later.name!r} above {above.name!r}, or merge them"
        )
    return problems
