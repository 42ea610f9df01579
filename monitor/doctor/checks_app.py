"""What the configuration and the options of tasks say, in the app and in each worker (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .facts import Configuration, Facts, TaskOptions, Worker
from .verdict import CannotTellError, Look, Seen, configurations, everywhere, plural, some, workers_known

LONG = 10.0
"""Seconds that a run takes on average from which on a task is long."""
PREFETCH = 4
"""Celery's default worker_prefetch_multiplier."""
NO_LIMITS = ("thread", "solo", "eventlet")
"""Pools that end no task, whatever its time limit."""
VISIBILITY = {"redis": 3600.0, "sqs": 1800.0}
"""Kombu's default visibility timeouts, in seconds, of the transports that have one."""
PICKLES = frozenset({"pickle", "application/x-python-serialize"})


def startup_retry(facts: Facts) -> Iterable[Seen]:
    """`broker_connection_retry_on_startup` is neither None nor False."""

    def say(configuration: Configuration) -> Iterator[str]:
        value = configuration.settings.get("broker_connection_retry_on_startup")
        if value is None:
            yield "broker_connection_retry_on_startup is not set"
        elif not value:
            yield "broker_connection_retry_on_startup is False: a worker that finds no broker ends"

    return everywhere(facts, say)


def timezone_unset(facts: Facts) -> Iterable[Seen]:
    """`timezone` is set wherever there is a crontab, or a scheduler that keeps its entries elsewhere."""

    def say(configuration: Configuration) -> Iterator[str]:
        if configuration.get("timezone"):
            return
        crontabs = [name for name, entry in configuration.get("beat_schedule", {}).items() if _is_crontab(entry)]
        zone = "UTC" if configuration.get("enable_utc", True) else "each machine's local time"
        scheduler = str(configuration.get("beat_scheduler", "celery.beat:PersistentScheduler"))
        if crontabs:
            yield f"timezone is not set: the crontabs of {some(sorted(crontabs), 3)} go by {zone}"
        elif not scheduler.startswith("celery.beat:"):
            yield f"timezone is not set: what {scheduler} holds goes by {zone}"

    return everywhere(facts, say)


def _is_crontab(entry: Any) -> bool:
    # A worker tells schedules as texts: "<crontab: 30 3 * * * (m/h/dM/MY/d)>".
    return isinstance(entry, dict) and "crontab" in str(entry.get("schedule", ""))


def timezone_disagrees(facts: Facts) -> Iterator[Seen]:
    """App and workers have one `timezone` and one `enable_utc`."""
    known = configurations(facts)
    if len(known) < 2:
        raise CannotTellError("only one side told its configuration; there is nothing to compare")
    zones: dict[str, list[str]] = {}
    for one in known:
        utc = bool(one.get("enable_utc", True))
        zone = str(one.get("timezone") or ("UTC" if utc else "local time"))
        zones.setdefault(f"timezone {zone}, enable_utc {utc}", []).append(one.where)
    if len(zones) > 1:
        yield Seen("; ".join(f"{some(where, 3)}: {zone}" for zone, where in zones.items()))


def accept_pickle(facts: Facts) -> Iterable[Seen]:
    """No `*accept_content` and no serializer names pickle."""

    def say(configuration: Configuration) -> Iterator[str]:
        for name in ("accept_content", "result_accept_content", "task_serializer", "result_serializer"):
            value = configuration.get(name, [])
            kinds = {value} if isinstance(value, str) else set(map(str, value))
            if kinds & PICKLES:
                yield f"{name} has pickle"

    return everywhere(facts, say)


def task_sent_off(facts: Facts) -> Iterable[Seen]:
    """`task_send_sent_event` is on."""

    def say(configuration: Configuration) -> Iterator[str]:
        if not configuration.get("task_send_sent_event", False):
            yield "task_send_sent_event is off"

    return everywhere(facts, say)


def events_off(facts: Facts) -> Iterator[Seen]:
    """Each worker is set to send task events, was heard to, or the monitor says that it does."""
    if not facts.workers:
        yield from _events_by_configuration(facts)
        return
    silent, unknown = [], []
    for name, worker in facts.workers.items():
        if name in facts.heard.task_events_of or facts.monitored.events_on.get(name):
            continue
        if facts.monitored.events_on.get(name) is False:
            silent.append(f"{name} (it runs tasks, and no event of them came)")
        elif worker.configuration and worker.configuration.get("worker_send_task_events", False):
            continue
        elif name in facts.heard.ran:
            silent.append(f"{name} (it ran tasks meanwhile, and no event of them came)")
        else:
            unknown.append(name)
    if silent:
        yield Seen(f"worker_send_task_events is off: {some(silent)}")
    elif unknown:
        # The option -E is not in the configuration that a worker tells.
        raise CannotTellError(
            f"{some(unknown)} ran nothing meanwhile, and only its runs show whether it was started with -E: look while "
            "it is busy, or ask a monitor (--url)"
        )


def _events_by_configuration(facts: Facts) -> Iterator[Seen]:
    configured = configurations(facts)[0]
    if not facts.heard.task_events_of and not configured.get("worker_send_task_events", False):
        yield Seen(f"{configured.where}: worker_send_task_events is off; only workers started with -E send any")


def results_unused(facts: Facts) -> Iterable[Seen]:
    """A result backend has at least one task that stores something."""

    def say(configuration: Configuration) -> Iterator[str]:
        backend = str(configuration.get("result_backend", ""))
        if not backend or backend.startswith("disabled"):
            return
        own = [task for task in configuration.tasks.values() if not task.name.startswith("celery.")]
        if own and all(task.ignore_result for task in own):
            yield f"result_backend is set, and all {plural(len(own), 'task')} ignore their results"

    return everywhere(facts, say)


def no_time_limit(facts: Facts) -> Iterator[Seen]:
    """Every task has a time limit of its own, or the pool has one, by configuration or command line."""
    sides: list[tuple[Configuration, Worker | None]] = [
        (worker.configuration, worker) for worker in facts.workers.values() if worker.configuration
    ]
    # What a worker does is what counts; the app alone does not know of --time-limit.
    if not sides:
        sides = [(configuration, None) for configuration in configurations(facts)]
    found: dict[str, list[str]] = {}
    for configuration, worker in sides:
        pool = _powerless(worker)
        if not pool and _limited(configuration, worker):
            continue
        bare = sorted(task.name for task in configuration.tasks.values() if pool or _unlimited(task))
        if bare:
            because = f", since the {pool} pool knows no time limits" if pool else ""
            found.setdefault(some(bare, 5) + because, []).append(configuration.where)
    for names, where in found.items():
        yield Seen(f"{some(where, 3)}: nothing ever ends {names}")


def _powerless(worker: Worker | None) -> str:
    """Return the worker's pool if it ends no task."""
    pool = (worker.pool or "").partition(":")[0].rpartition(".")[2] if worker else ""
    return pool if pool in NO_LIMITS else ""


def _limited(configuration: Configuration, worker: Worker | None) -> bool:
    set_for_all = configuration.get("task_time_limit") or configuration.get("task_soft_time_limit")
    return bool(set_for_all or (worker and worker.time_limits and any(worker.time_limits)))


def _unlimited(task: TaskOptions) -> bool:
    return not (task.time_limit or task.soft_time_limit or task.name.startswith("celery."))


def late_not_idempotent(facts: Facts) -> Iterable[Seen]:
    """Whatever is acknowledged late says that it may run twice."""
    # The docstrings count too, and only the app has them: what it says of a task holds for its workers.
    safe = {task.name for one in facts.configurations for task in one.tasks.values() if task.idempotent}

    def say(configuration: Configuration) -> Iterator[str]:
        risky = sorted(
            task.name
            for task in configuration.tasks.values()
            if task.acks_late and task.name not in safe and not task.name.startswith("celery.")
        )
        if risky:
            yield f"acks_late without a word on idempotence: {some(risky, 5)}"

    return everywhere(facts, say)


def visibility_timeout(facts: Facts) -> Iterator[Seen]:
    """The timeout outlasts the ETAs that workers hold, and what late-acknowledged tasks may take."""
    transport = facts.broker.transport
    usual = VISIBILITY.get(transport)
    if usual is None:
        return
    found: dict[tuple[str, float], list[str]] = {}
    for one in configurations(facts):
        timeout = _seconds(one.get("broker_transport_options", {}).get("visibility_timeout")) or usual
        for what, seconds in _waits(facts, one):
            if seconds > timeout:
                found.setdefault(
                    (f"{what} ({seconds:.0f} s), visibility_timeout is {timeout:.0f} s", seconds), []
                ).append(one.where)
    for (text, seconds), where in found.items():
        fix = f'app.conf.broker_transport_options = {{"visibility_timeout": {int(seconds * 1.5)}}}, in every process'
        yield Seen(f"{some(where, 3)}: {text}", fix=fix)
    if not found and facts.broker.longest_eta is None:
        raise CannotTellError(facts.broker.eta_unknown or "the ETAs that workers hold are not known")


def _waits(facts: Facts, one: Configuration) -> Iterator[tuple[str, float]]:
    """Yield what keeps a message unacknowledged, and how long, in seconds."""
    if facts.broker.longest_eta:
        yield "a worker holds a task with an ETA", facts.broker.longest_eta
    for task in one.tasks.values():
        if not task.acks_late or task.name.startswith("celery."):
            continue
        limit = task.time_limit or one.get("task_time_limit") or task.soft_time_limit or one.get("task_soft_time_limit")
        if limit:
            yield f"{task.name} is acknowledged late and may run up to its time limit", float(limit)
        times = facts.monitored.tasks.get(task.name)
        if times:
            yield f"{task.name} is acknowledged late and has taken as long", times.slowest


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def prefetch_long_tasks(facts: Facts) -> Iterator[Seen]:
    """No worker that runs long tasks reserves several messages for each slot."""
    workers_known(facts)
    greedy = {
        name: multiplier
        for name, worker in facts.workers.items()
        if worker.configuration
        and (multiplier := int(worker.configuration.get("worker_prefetch_multiplier", PREFETCH))) != 1
    }
    if not greedy:
        return
    if facts.monitored.error or not facts.monitored.url:
        raise CannotTellError("how long tasks take only a monitor's page tells (--url), and there is none")
    for name, multiplier in greedy.items():
        known = facts.workers[name].tasks or frozenset()
        long = [
            f"{task} ({times.mean:.0f} s)"
            for task, times in sorted(facts.monitored.tasks.items())
            if times.mean >= LONG and task in known
        ]
        if long:
            reserved = "as many messages as there are" if multiplier == 0 else f"{multiplier} messages a slot"
            yield Seen(f"{name} reserves {reserved}, and may run {some(long, 4)} on average")


def retry_storm(facts: Facts) -> Iterable[Seen]:
    """Whatever retries by itself does so with backoff and jitter."""

    def say(configuration: Configuration) -> Iterator[str]:
        retrying = [task for task in configuration.tasks.values() if task.autoretry]
        constant = sorted(task.name for task in retrying if not task.backoff)
        in_step = sorted(task.name for task in retrying if task.backoff and not task.jitter)
        if constant:
            yield f"autoretry_for without retry_backoff: {some(constant, 5)}"
        if in_step:
            yield f"retry_backoff with retry_jitter off: {some(in_step, 5)}"

    return everywhere(facts, say)


LOOKS: dict[str, Look] = {
    "startup-retry": startup_retry,
    "timezone-unset": timezone_unset,
    "timezone-disagrees": timezone_disagrees,
    "accept-pickle": accept_pickle,
    "events-off": events_off,
    "task-sent-off": task_sent_off,
    "results-unused": results_unused,
    "no-time-limit": no_time_limit,
    "late-not-idempotent": late_not_idempotent,
    "visibility-timeout": visibility_timeout,
    "prefetch-long-tasks": prefetch_long_tasks,
    "retry-storm": retry_storm,
}
