"""Label values: how long they may be, how many there may be, and what stands for the rest."""

from __future__ import annotations

from collections import Counter

UNKNOWN = "unknown"
OTHER = "__other__"
LONGEST = 200

DEFAULT_CAPS = {"task": 2_000, "queue": 500, "worker": 2_000, "entry": 2_000, "exception": 200}


class Caps:
    """Admits at most so many values of each label, the rest become `__other__` and are counted in `overflow`."""

    def __init__(self, limits: dict[str, int] | None = None) -> None:
        self.limits = {**DEFAULT_CAPS, **(limits or {})}
        self.overflow: Counter[str] = Counter(dict.fromkeys(self.limits, 0))
        self._known: dict[str, dict[str, str]] = {label: {} for label in self.limits}

    def admit(self, label: str, value: str) -> str:
        """Return the value to use: itself (cut to 200 characters), or `__other__` when the label is full."""
        known = self._known[label]
        admitted = known.get(value[:LONGEST])
        if admitted is not None:
            return admitted
        if len(known) >= self.limits[label]:
            self.overflow[label] += 1
            return OTHER
        # A copy cut from a longer string would keep nothing alive, but the key must be the cut one.
        value = value[:LONGEST]
        known[value] = value
        return value

    def forget(self, label: str, value: str) -> None:
        """Make room again for a value whose series are gone."""
        self._known[label].pop(value, None)
