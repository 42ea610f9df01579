"""What `/metrics` says: the facts of all brokers as one Prometheus or OpenMetrics page, and as a Collector."""

from __future__ import annotations

import logging
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import exposition as classic
from prometheus_client.metrics_core import Metric as ClientMetric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.registry import Collector

from .. import __version__
from ..monitor.catalog import METRICS, Metric
from ..monitor.facts import Buckets, Facts, Family, Labels
from ..monitor.garbage import held_back
from .text import Series, bound_text, header, pieces

log = logging.getLogger(__name__)

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

SUCCESS = METRICS["celeryscope_collector_success"]
DURATION = METRICS["celeryscope_collector_duration_seconds"]
BUILD_INFO = METRICS["celeryscope_build_info"]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_RESERVED = frozenset({"le", "quantile", "broker"})


class BuildInfo:
    """The facts about this installation: versions of celeryscope, Python and Celery."""

    def families(self) -> Iterable[Family]:
        """Return the build_info family."""
        try:
            celery = metadata.version("celery")
        except metadata.PackageNotFoundError:
            celery = "unknown"
        return [Family(BUILD_INFO, [((__version__, platform.python_version(), celery), 1.0)])]


@dataclass
class _Source:
    """One origin of facts: its name as a collector, the labels it adds, and its rendered series."""

    collector: str
    facts: Facts
    labels: dict[str, str]
    series: dict[str, Series] = field(default_factory=dict)
    duration: float = 0.0
    failed: bool = False
    """Whether this pass failed; `logged` is whether the log has been told."""
    logged: bool = False

    @property
    def where(self) -> str:
        """The broker, for a log line."""
        return f" of broker {self.labels['broker']}" if "broker" in self.labels else ""


@dataclass
class _Merged:
    """The samples of one metric from all sources, so that it has one HELP and TYPE."""

    metric: Metric
    parts: list[tuple[_Source, Metric, Sequence[tuple[Labels, float | Buckets]]]]


def check_prefix(prefix: str) -> str:
    """Return the metric prefix, or raise ValueError where names that start with it would be no metric names."""
    if prefix and not _NAME.match(prefix):
        raise ValueError(
            f"metric prefix {prefix!r}: only letters, digits, '_' and ':' are allowed, and no digit at the start"
        )
    return prefix


def check_static_labels(labels: Mapping[str, str], metrics: Iterable[Metric] = ()) -> dict[str, str]:
    """Return the static labels, or raise ValueError naming the first that cannot be one.

    A static label may not have the name of a label that a metric already has: one of the two values would be lost.
    """
    taken = {label: metric.name for metric in metrics for label in metric.labels}
    for label in labels:
        if not _LABEL.match(label) or label.startswith("__"):
            raise ValueError(f"static label {label!r}: only letters, digits and '_', no digit or '__' at the start")
        if label in _RESERVED:
            raise ValueError(f"static label {label!r}: the name is reserved; choose another")
        if label in taken:
            raise ValueError(f"static label {label!r}: {taken[label]} has a label of that name; choose another")
    return dict(labels)


class Exposition:
    """Renders facts; a scrape copies and formats what is in memory and never does I/O.

    `facts` are the brokers' by name; under the name '' stands a single broker, whose series have no `broker` label.
    `others` are facts of anything else (the alerter), by collector name; they get no `broker` label either.
    `prefix` is put in front of every name of ours; `static_labels` are added to every series, process metrics included.
    A source that raises costs its own samples only, and `celeryscope_collector_success` says 0 for it.

    Raises:
        ValueError: the prefix or a static label cannot be used.
    """

    def __init__(
        self,
        facts: Mapping[str, Facts],
        *,
        others: Mapping[str, Facts] | None = None,
        prefix: str | None = None,
        static_labels: Mapping[str, str] | None = None,
        own: bool = True,
        metrics: Iterable[Metric] = METRICS.values(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Without `own`, what is about this process (collector, build, process, Python metrics) is left out.

        `metrics` are those that may be rendered, to tell whether a static label has a name of theirs.
        """
        self.prefix = check_prefix(prefix or "")
        self.static_labels = check_static_labels(static_labels or {}, metrics)
        self._own = own
        self._clock = clock
        self._lock = threading.Lock()
        rest: dict[str, Facts] = {**(others or {}), **({"build": BuildInfo()} if own else {})}
        self._sources = [
            _Source("facts", source, {**self.static_labels, **({"broker": broker} if broker else {})})
            for broker, source in facts.items()
        ] + [_Source(name, source, dict(self.static_labels)) for name, source in rest.items()]
        self._runtime = _runtime_registry(self.static_labels) if own else None

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Return the page in the text format 0.0.4, or in OpenMetrics 1.0."""
        # Two scrapes at once would share the remembered lines. And what a scrape makes is gone at its end or stays for
        # long: the garbage collector would find nothing, and take a third of the time (measured, 100 000 series).
        with self._lock, held_back():
            chunks = list(self._chunks(openmetrics=openmetrics))
        return b"".join(chunks)

    def families(self) -> Iterator[ClientMetric]:
        """Yield the facts as prometheus_client's metric families (without process and Python metrics)."""
        merged, told = self._gather()
        for family in merged:
            yield _client_metric(family, self.prefix)
        for family in self._report(told):
            yield _client_metric(family, self.prefix)

    def _chunks(self, *, openmetrics: bool) -> Iterator[bytes]:
        merged, told = self._gather()
        for family in merged:
            yield from self._family_chunks(family, openmetrics=openmetrics)
        for family in self._report(told):
            yield from self._family_chunks(family, openmetrics=openmetrics)
        if self._runtime is not None:
            yield _generate(self._runtime, openmetrics=openmetrics)
        if openmetrics:
            yield b"# EOF\n"

    def _family_chunks(self, family: _Merged, *, openmetrics: bool) -> Iterator[bytes]:
        name = self.prefix + family.metric.name
        yield header(family.metric, name, openmetrics=openmetrics).encode()
        for source, metric, samples in family.parts:
            series = source.series.get(metric.name)
            if series is None or series.metric is not metric:
                series = source.series[metric.name] = Series(metric, name, source.labels)
            try:
                lines = series.lines(samples)
            except Exception as error:  # noqa: BLE001 - one bad family must not cost the page
                self._failed(source, error)
                continue
            yield from pieces(lines)

    def _gather(self) -> tuple[list[_Merged], dict[str, _Merged]]:
        """Return all families, and apart from them those in which sources tell how their own collectors fare."""
        merged: dict[str, _Merged] = {}
        for source in self._sources:
            started = self._clock()
            source.failed = False
            try:
                families = list(source.facts.families())
            except Exception as error:  # noqa: BLE001 - whatever it is, the other sources are still served
                self._failed(source, error)
                families = []
            source.duration = self._clock() - started
            _merge(merged, source, families)
        told = {name: merged.pop(name) for name in (SUCCESS.name, DURATION.name) if name in merged}
        return list(merged.values()), told

    def _report(self, report: dict[str, _Merged]) -> list[_Merged]:
        """Add how the sources fared; called after all else is rendered, since rendering may fail as well."""
        for source in self._sources if self._own else ():
            if source.logged and not source.failed:
                source.logged = False
                log.warning("collector %s%s works again", source.collector, source.where)
            labels = (source.collector,)
            _merge(report, source, [Family(SUCCESS, [(labels, 0.0 if source.failed else 1.0)])])
            _merge(report, source, [Family(DURATION, [(labels, source.duration)])])
        return list(report.values())

    @staticmethod
    def _failed(source: _Source, error: Exception) -> None:
        source.failed = True
        if not source.logged:
            source.logged = True
            log.error("collector %s%s failed, its metrics are missing", source.collector, source.where, exc_info=error)


class CeleryscopeCollector(Collector):
    """The same facts for somebody else's registry: `registry.register(CeleryscopeCollector(exposition))`."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def collect(self) -> Iterator[ClientMetric]:
        """Yield the families of the exposition, at this moment."""
        return self._exposition.families()

    def describe(self) -> list[ClientMetric]:
        """Return nothing: registering must not collect."""
        return []


class _Labelled(Collector):
    """Another collector's families with labels added to every sample."""

    def __init__(self, inner: Collector, labels: Mapping[str, str]) -> None:
        self._inner = inner
        self._labels = labels

    def collect(self) -> Iterator[ClientMetric]:
        for metric in self._inner.collect():
            metric.samples = [s._replace(labels={**s.labels, **self._labels}) for s in metric.samples]
            yield metric

    def describe(self) -> list[ClientMetric]:
        return []


def _merge(merged: dict[str, _Merged], source: _Source, families: Iterable[Family]) -> None:
    for metric, samples in families:
        merged.setdefault(metric.name, _Merged(metric, [])).parts.append((source, metric, samples))


def _runtime_registry(labels: Mapping[str, str]) -> CollectorRegistry:
    """Return a registry of this process's metrics: CPU, memory, descriptors, garbage collection, Python version."""
    inner = CollectorRegistry()
    ProcessCollector(registry=inner)
    PlatformCollector(registry=inner)
    GCCollector(registry=inner)
    outer = CollectorRegistry()
    outer.register(_Labelled(inner, labels))
    return outer


def _generate(registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    encode: Callable[[Collector], bytes] = openmetrics_exposition.generate_latest
    return encode(registry).removesuffix(b"# EOF\n") if openmetrics else classic.generate_latest(registry)


def _client_metric(family: _Merged, prefix: str) -> ClientMetric:
    metric = family.metric
    name = prefix + metric.name.removesuffix("_total") if metric.kind == "counter" else prefix + metric.name
    result = ClientMetric(name, metric.help, metric.kind, metric.unit)
    for source, own, samples in family.parts:
        for labels, value in samples:
            pairs = {**dict(zip(own.labels, labels, strict=True)), **source.labels}
            if isinstance(value, list):
                _add_histogram(result, name, pairs, own.buckets, value)
            else:
                result.add_sample(prefix + own.name, pairs, value)
    return result


def _add_histogram(
    result: ClientMetric, name: str, pairs: dict[str, str], bounds: Sequence[float], value: Buckets
) -> None:
    total = 0.0
    for bound, count in zip((*bounds, float("inf")), value[:-1], strict=True):
        total += count
        result.add_sample(f"{name}_bucket", {**pairs, "le": bound_text(bound)}, total)
    result.add_sample(f"{name}_count", pairs, total)
    result.add_sample(f"{name}_sum", pairs, value[-1])
