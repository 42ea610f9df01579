"""The present state of tasks and workers as metric families: copied under the pipeline's lock, built outside of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .facts import Family
from .labels import UNKNOWN
from .queues import slot_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .catalog import Metric
    from .facts import Buckets, Labels
    from .queues import Topology
    from .rows import Row
    from .runs import Run
    from .tasks import TaskTable
    from .workers import WorkerWatch

Samples = list[tuple["Labels", "float | Buckets"]]

ROW_GAUGES = (
    "celery_tasks_waiting",
    "celery_task_oldest_waiting_seconds",
    "celery_tasks_running",
    "celery_task_oldest_running_seconds",
    "celery_tasks_orphaned",
    "celery_task_oldest_orphan_seconds",
)


def family(catalog: Mapping[str, Metric], name: str, samples: Sequence[tuple[Labels, float | Buckets]]) -> Family:
    """Return the family of a catalogue metric."""
    return Family(catalog[name], samples)


# --- tasks ------------------------------------------------------------------------------------------------------------

Table = list[tuple["Labels", "tuple[float, ...]"]]


def copy_table(tasks: TaskTable, now: float) -> Table:
    """Return for each row the values of `ROW_GAUGES`."""
    running: dict[Row, list[float]] = {}
    for host in tasks.workers.hosts.values():
        for run in host.running:
            _add(running, run, now - run.since)
    orphaned: dict[Row, list[float]] = {}
    for run in tasks.orphans:
        _add(orphaned, run, now - (run.started_at if 0 < run.started_at <= now else run.since))
    none = [0, 0.0]
    table: Table = []
    for row in tasks.rows.all():
        waiting = row.waiting
        oldest = max(0.0, now - min(waiting)) if waiting else 0.0
        table.append((row.labels, (sum(waiting.values()), oldest, *running.get(row, none), *orphaned.get(row, none))))
    return table


def _add(found: dict[Row, list[float]], run: Run, age: float) -> None:
    entry = found.get(run.row)
    if entry is None:
        found[run.row] = [1, max(0.0, age)]
    else:
        entry[0] += 1
        entry[1] = max(entry[1], age)


def task_families(catalog: Mapping[str, Metric], table: Table) -> Iterable[Family]:
    """Turn the copied table into families."""
    for i, name in enumerate(ROW_GAUGES):
        yield family(catalog, name, [(labels, values[i]) for labels, values in table])


# --- workers ----------------------------------------------------------------------------------------------------------


class HostFacts(NamedTuple):
    """A copy of what is exposed of a worker; None is not known and not exposed."""

    name: str
    up: bool
    lost: bool
    active: int
    reserved: int
    load: float | None
    events_enabled: bool
    wedged: bool
    processed: int | None
    missed: int
    missed_down: int
    untracked: int
    heartbeat_at: float
    skew: float | None
    info: tuple[str, str]


def copy_hosts(workers: WorkerWatch) -> list[HostFacts]:
    """Return what is exposed of each worker."""
    return [
        HostFacts(
            host.name,
            host.up,
            host.lost,
            (len(host.running) if host.active is None else host.active) if host.up else 0,
            max(0, host.reserved) if host.up else 0,
            host.load,
            host.trust.events_enabled,
            host.wedged,
            None if host.trust.shared or host.untold else host.trust.processed,
            host.trust.missed,
            host.trust.missed_down,
            host.trust.untracked,
            host.heartbeat_at,
            host.clock_skew(),
            host.info,
        )
        for host in workers.hosts.values()
    ]


def worker_families(
    catalog: Mapping[str, Metric], hosts: list[HostFacts], topology: Topology | None, queues: Iterable[str] = ()
) -> Iterable[Family]:
    """Turn the copied workers into families; pool and slots come from the topology, where one is known."""
    concurrency = topology.concurrency if topology is not None else {}
    pools = topology.pool if topology is not None else {}

    def each(name: str, values: Iterable[tuple[HostFacts, float | None]]) -> Family:
        return family(catalog, name, [((host.name,), value) for host, value in values if value is not None])

    # Counts that nothing but heartbeats can tell are unknown, and not 0, without them.
    told = [host for host in hosts if host.processed is not None]
    yield each("celery_worker_up", ((h, h.up) for h in hosts))
    yield each("celery_worker_lost", ((h, h.lost) for h in hosts))
    yield each("celery_worker_active_tasks", ((h, h.active) for h in hosts))
    yield each("celery_worker_reserved_tasks", ((h, h.reserved) for h in hosts))
    yield each("celery_worker_concurrency", ((h, concurrency.get(h.name)) for h in hosts))
    yield each("celery_worker_load1", ((h, h.load) for h in hosts if h.up))
    yield each("celery_worker_events_enabled", ((h, h.events_enabled) for h in hosts))
    yield each("celery_worker_wedged", ((h, h.wedged) for h in hosts))
    yield each("celery_worker_processed_total", ((h, h.processed) for h in told))
    yield each("celery_worker_starts_missed_total", ((h, h.missed) for h in told))
    yield each("celery_worker_starts_missed_down_total", ((h, h.missed_down) for h in told))
    yield each("celery_worker_starts_untracked_total", ((h, h.untracked) for h in told))
    yield each("celery_worker_last_heartbeat_timestamp_seconds", ((h, h.heartbeat_at or None) for h in hosts))
    yield each("celery_worker_clock_skew_seconds", ((h, h.skew) for h in hosts))
    yield family(
        catalog, "celery_worker_info", [((h.name, *h.info, pools.get(h.name, UNKNOWN)), 1) for h in hosts if h.up]
    )
    yield family(catalog, "celery_workers", _states(hosts))
    if topology is not None:
        yield from slot_families(topology, {h.name: h.active for h in hosts if h.up}, queues)


def _states(hosts: list[HostFacts]) -> Samples:
    lost = sum(host.lost for host in hosts)
    online = sum(host.up for host in hosts)
    return [(("online",), online), (("offline",), len(hosts) - online - lost), (("lost",), lost)]
