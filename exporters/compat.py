"""The page of `--compat celery-exporter`: a broker's facts under the names of danihodovic/celery-exporter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from ..monitor.compat import CompatCounts, compat_metrics, host_of
from ..monitor.facts import Buckets, Facts, Family, Labels
from .prometheus import Exposition

PATH = "/metrics/celery-exporter"

_Samples = Sequence[tuple[Labels, float | Buckets]]
_QUEUE_GAUGES = {
    "active_consumer_count": "celery_queue_consumers",
    "active_worker_count": "celery_queue_consumers",
    "active_process_count": "celery_queue_slots",
}


class CompatFacts:
    """One broker's counts per host, joined by the gauges that can be told from its facts.

    `lock` is the one under which `counts` is fed; it is not held while `facts` is asked.
    """

    def __init__(
        self, facts: Facts, counts: CompatCounts, *, lock: AbstractContextManager[object] | None = None
    ) -> None:
        self._facts = facts
        self._counts = counts
        self._lock = lock if lock is not None else nullcontext()

    def families(self) -> Iterable[Family]:
        """Return all families of that exporter."""
        with self._lock:
            counted = list(self._counts.families())
        yield from counted
        metrics = self._counts.metrics
        ours: dict[str, _Samples] = {metric.name: samples for metric, samples in self._facts.families()}
        yield Family(metrics["worker_up"], _hosts_up(ours))
        yield Family(metrics["worker_tasks_active"], _hosts_active(ours))
        ready = [
            ((labels[0],), value) for labels, value in ours.get("celery_queue_messages", ()) if labels[1] == "ready"
        ]
        yield Family(metrics["queue_length"], ready)
        for theirs, name in _QUEUE_GAUGES.items():
            yield Family(metrics[theirs], ours.get(name, ()))


def compat_exposition(
    brokers: Mapping[str, CompatFacts], *, static_labels: Mapping[str, str] | None = None
) -> Exposition:
    """Return the page for the brokers, by name as in `Exposition`; it holds nothing else, as that exporter's does.

    Raises:
        ValueError: a static label has the name of one of that exporter's labels.
    """
    return Exposition(brokers, static_labels=static_labels, own=False, metrics=compat_metrics().values())


def _by_worker(samples: _Samples) -> dict[str, float]:
    return {labels[0]: value for labels, value in samples if not isinstance(value, list)}


def _hosts_up(ours: Mapping[str, _Samples]) -> list[tuple[Labels, float]]:
    """Tell of each host whether its workers are up: 0 where one of them is lost, or none is up.

    A worker that said goodbye does not make its host look down while another one runs there.
    """
    up, lost = _by_worker(ours.get("celery_worker_up", ())), _by_worker(ours.get("celery_worker_lost", ()))
    hosts: dict[str, list[str]] = defaultdict(list)
    for worker in up:
        hosts[host_of(worker)].append(worker)
    return [
        ((host,), float(any(up[w] for w in workers) and not any(lost.get(w) for w in workers)))
        for host, workers in hosts.items()
    ]


def _hosts_active(ours: Mapping[str, _Samples]) -> list[tuple[Labels, float]]:
    active: dict[str, float] = defaultdict(float)
    for worker, value in _by_worker(ours.get("celery_worker_active_tasks", ())).items():
        active[host_of(worker)] += value
    return [((host,), value) for host, value in active.items()]
