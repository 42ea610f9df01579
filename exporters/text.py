"""Metric families as exposition text, fast: what did not change since the last scrape keeps its rendered line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import utils

from ..monitor.catalog import Metric
from ..monitor.facts import Buckets, Labels

LINES_PER_PIECE = 1_000
"""How many lines are joined by one C call, which holds the GIL: about 100 kB, well under a millisecond."""

bound_text: Callable[[float], str] = utils.floatToGoString
"""A number as prometheus_client writes it; the value of `le`."""


def number(value: float) -> str:
    """Return the value as prometheus_client writes it (its `floatToGoString`), quickly for what is common."""
    if -1e6 < value < 1e6:
        return f"{value}.0" if type(value) is int else repr(float(value))  # Python writes whole ones in half the time
    return bound_text(value)


def escape(value: str) -> str:
    """Return a label value as it stands between quotes; what UTF-8 cannot carry becomes a question mark."""
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode("utf-8")
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def header(metric: Metric, name: str, *, openmetrics: bool) -> str:
    """Return the HELP and TYPE (and, in OpenMetrics, UNIT) lines of a metric exposed as `name`."""
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    if not openmetrics:
        return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"
    if metric.kind == "counter":
        name = name.removesuffix("_total")
    text = text.replace('"', r"\"")
    unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n{unit}"


class Series:
    """The sample lines of one metric from one source; remembers each series' last value with its text.

    `constant` are labels that every series gets (static labels, the broker); `name` is the exposed name.
    """

    def __init__(self, metric: Metric, name: str, constant: Mapping[str, str]) -> None:
        self.metric = metric
        self._name = name
        self._bounds = [bound_text(bound) for bound in (*metric.buckets, float("inf"))]
        # Labels come in the order of their names, as prometheus_client has them.
        pairs = {**dict.fromkeys(metric.labels, "%s"), **{k: escape(v).replace("%", "%%") for k, v in constant.items()}}
        texts = [f'{label}="{value}"' for label, value in sorted(pairs.items())]
        self._order = [metric.labels.index(label) for label in sorted(metric.labels)]
        self._inside = "{" + ",".join(texts) + "} " if texts else " "
        before = [text for label, text in zip(sorted(pairs), texts, strict=True) if label < "le"]
        self._bucket = (
            name + "_bucket{" + ",".join([*before, 'le="']),
            ",".join(['"', *texts[len(before) :]]) + "} ",
        )
        self._before = sum(label < "le" for label in metric.labels)
        self._numbers: dict[Labels, tuple[float, int, str]] = {}
        self._histograms: dict[Labels, tuple[Buckets, _Histogram, str]] = {}

    def lines(self, samples: Sequence[tuple[Labels, float | Buckets]]) -> list[str]:
        """Return the text of the samples, one string a series.

        Raises:
            ValueError: a sample does not fit the metric (number of labels, number of buckets).
        """
        rendered = self._histogram_lines(samples) if self.metric.kind == "histogram" else self._number_lines(samples)
        self._forget(samples)
        return rendered

    def _number_lines(self, samples: Iterable[tuple[Labels, float | Buckets]]) -> list[str]:
        known = self._numbers
        head = self._name + self._inside
        out: list[str] = []
        for labels, value in samples:
            entry = known.get(labels)
            if entry is None:
                start = head % self._values(labels)
            elif entry[0] == value:  # NaN never is, and is rendered anew
                out.append(entry[2])
                continue
            else:
                start = entry[2][: entry[1]]
            if isinstance(value, list):
                raise _unfit(self._name, labels, "a number", value)
            line = f"{start}{number(value)}\n"
            known[labels] = (value, len(start), line)
            out.append(line)
        return out

    def _histogram_lines(self, samples: Iterable[tuple[Labels, float | Buckets]]) -> list[str]:
        known = self._histograms
        out: list[str] = []
        for labels, value in samples:
            entry = known.get(labels)
            if entry is not None and entry[0] == value:
                out.append(entry[2])
                continue
            if not isinstance(value, list) or len(value) != len(self._bounds) + 1:
                raise _unfit(self._name, labels, f"{len(self._bounds)} buckets and a sum", value)
            parts = entry[1] if entry is not None else self._histogram(labels)
            text = parts.text(self._bounds, value)
            # A copy: the list may be the one that its owner goes on counting in.
            known[labels] = (value.copy(), parts, text)
            out.append(text)
        return out

    def _histogram(self, labels: Labels) -> _Histogram:
        values = self._values(labels)
        inside = self._inside % values
        return _Histogram(
            self._bucket[0] % values[: self._before],
            self._bucket[1] % values[self._before :],
            f"{self._name}_count{inside}",
            f"{self._name}_sum{inside}",
        )

    def _values(self, labels: Labels) -> tuple[str, ...]:
        if len(labels) != len(self._order):
            raise _unfit(self._name, labels, f"{len(self._order)} label values", labels)
        return tuple(escape(labels[i]) for i in self._order)

    def _forget(self, samples: Sequence[tuple[Labels, float | Buckets]]) -> None:
        """Drop what is remembered of series that are gone."""
        if len(samples) < len(self._numbers) or len(samples) < len(self._histograms):
            current = {labels for labels, _ in samples}
            self._numbers = {k: v for k, v in self._numbers.items() if k in current}
            self._histograms = {k: v for k, v in self._histograms.items() if k in current}

    @property
    def remembered(self) -> int:
        """How many series' texts are held."""
        return len(self._numbers) + len(self._histograms)


class _Histogram(NamedTuple):
    """The constant parts of one histogram series' lines: around a bucket's `le`, and up to its count and sum."""

    before: str
    after: str
    counted: str
    total: str

    def text(self, bounds: Sequence[str], value: Buckets) -> str:
        before, after = self.before, self.after
        below = list(accumulate(value[:-1]))  # the sum stands behind the last bucket
        counted = below[-1]
        if type(counted) is int and counted < 1_000_000:  # then all of them are
            lines = [f"{before}{bound}{after}{count}.0\n" for bound, count in zip(bounds, below, strict=True)]
        else:
            lines = [f"{before}{bound}{after}{number(count)}\n" for bound, count in zip(bounds, below, strict=True)]
        lines.append(f"{self.counted}{number(counted)}\n{self.total}{number(value[-1])}\n")
        return "".join(lines)


def _unfit(name: str, labels: Labels, needed: str, got: object) -> ValueError:
    return ValueError(f"{name}{labels}: needs {needed}, got {got!r}")


def pieces(lines: Sequence[str]) -> Iterable[bytes]:
    """Join the lines to pieces of bounded size."""
    for start in range(0, len(lines), LINES_PER_PIECE):
        yield "".join(lines[start : start + LINES_PER_PIECE]).encode("utf-8")
