"""A bar that `make bench` holds us to: what was measured, whether that is enough, and the command for it alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

BENCH = "python tests/bench/"


class Bar(NamedTuple):
    """One row of the table; `held` is None for a figure that nothing is promised about."""

    name: str
    measured: str
    held: bool | None
    command: str


def show(bars: Iterable[Bar]) -> int:
    """Print the bars as they come; return 1 where one is not held."""
    kept = True
    for bar in bars:
        held = {True: "held", False: "NOT HELD", None: ""}[bar.held]
        print(f"{bar.name:60} {bar.measured:70} {held}", flush=True)
        kept = kept and bar.held is not False
    return 0 if kept else 1
