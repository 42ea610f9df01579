"""Reading a `/metrics` page back: fetching it, and asking it for sums by label."""

from __future__ import annotations

import math
import ssl
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ..monitor.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

Samples = list[tuple[dict[str, str], float]]


class UnreadableError(Exception):
    """A page that cannot be had or understood; the message is one line for people."""


class Page:
    """The samples of one page, by name without the metric prefix that the monitor was given."""

    def __init__(self, text: str, prefix: str = "") -> None:
        self._samples: dict[str, Samples] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self._samples[sample.name.removeprefix(prefix)].append((sample.labels, sample.value))
        except (ValueError, IndexError) as error:
            raise UnreadableError(f"is no Prometheus text: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._samples

    def samples(self, name: str, **match: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield (labels, value) of the series that carry all of `match`; values that are no number are left out."""
        for labels, value in self._samples.get(name, ()):
            if not math.isnan(value) and all(labels.get(key) == wanted for key, wanted in match.items()):
                yield labels, value

    def total(self, name: str, **match: str) -> float:
        """Return the sum over all matching series; 0 without any."""
        return sum(value for _, value in self.samples(name, **match))

    def largest(self, name: str, **match: str) -> float | None:
        """Return the greatest value of the matching series."""
        return max((value for _, value in self.samples(name, **match)), default=None)

    def by(self, *by: str, name: str, **match: str) -> dict[str, float]:
        """Return the sums by the labels `by` (joined with /); the broker comes first where the page has several."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples(name, **match):
            key = "/".join(labels[label] for label in ("broker", *by) if labels.get(label))
            sums[key] += value
        return dict(sums)


def fetch(
    url: str,
    user: str = "",
    password: str = "",
    ca_file: Path | None = None,
    transport: httpx.BaseTransport | None = None,
) -> str:
    """Return the text of a page; a URL without a path means its /metrics.

    Raises:
        UnreadableError: with the reason in a line.
    """
    try:
        address = httpx.URL(url)
        if address.path in ("", "/"):
            address = address.copy_with(path="/metrics")
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        auth = httpx.BasicAuth(user, password) if user else None
        with httpx.Client(verify=verify, auth=auth, timeout=10, transport=transport) as client:
            answer = client.get(address, headers={"Accept": "text/plain"})
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise UnreadableError(f"cannot be read: {str(error) or type(error).__name__}") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise UnreadableError("wants a user and password: --user NAME, and the password in CELERYSCOPE_STATUS_PASSWORD")
    if answer.status_code != httpx.codes.OK:
        raise UnreadableError(f"answers {answer.status_code} {answer.reason_phrase}")
    # Names on it are others' doing, and end on somebody's terminal.
    return printable(answer.text)
