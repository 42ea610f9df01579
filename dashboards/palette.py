"""Colours that colour-blind people can tell apart, and what Grafana is told of them: thresholds and value mappings.

The colours are Okabe and Ito's. No meaning rests on colour alone: states have words, series have names and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
ORANGE = "#E69F00"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#8E8E8E"

GOOD, WARN, BAD, QUIET = GREEN, ORANGE, VERMILION, GREY

OUTCOMES = {
    "succeeded": GREEN,
    "failed": VERMILION,
    "retried": ORANGE,
    "rejected": PURPLE,
    "revoked": GREY,
    "cancelled": YELLOW,
    "ended without an event": SKY,
}
QUANTILES = {"p50": SKY, "p95": ORANGE, "p99": VERMILION}


@dataclass(frozen=True)
class Steps:
    """Thresholds: the colour of small values, and (from this value on, this colour), ascending."""

    base: str = GOOD
    above: tuple[tuple[float, str], ...] = ()

    def to_json_data(self) -> list[dict[str, Any]]:
        """Return Grafana's steps; the first has no lower bound, which is written null."""
        return [{"color": self.base, "value": None}, *({"color": color, "value": value} for value, color in self.above)]


def worse(*, warn: float | None = None, bad: float | None = None) -> Steps:
    """Return thresholds for a number that is good when small."""
    return Steps(GOOD, tuple((value, color) for value, color in ((warn, WARN), (bad, BAD)) if value is not None))


def at_least(good: float, *, else_: str = BAD) -> Steps:
    """Return thresholds for a number that is good from a value on."""
    return Steps(else_, ((good, GOOD),))


NEVER = [{"type": "value", "options": {"Infinity": {"text": "NEVER", "color": BAD, "index": 0}}}]
"""The value mapping of a time that has no end."""
PLAIN = Steps(BLUE)
"""No value is better than another."""


def words(meaning: Mapping[int, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return value mappings: value to (word, colour)."""
    return [
        {
            "type": "value",
            "options": {
                str(value): {"text": text, "color": color, "index": index}
                for index, (value, (text, color)) in enumerate(meaning.items())
            },
        }
    ]
