"""What broker, routes and workers say of queues and of what runs from them (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from .facts import Configuration, Facts
from .registry import Severity
from .verdict import CannotTellError, Look, Seen, configurations, everywhere, plural, some, workers_known

PRIORITY_STEPS = (0, 3, 6, 9)
"""Kombu's default on Redis."""
REPLY_KEYS = 20
"""Reply queues that lie about before it is a finding: at once there is one for each question under way."""


def broker_reached(facts: Facts) -> None:
    """Hold that the broker answers.

    Raises:
        CannotTellError: it does not.
    """
    if facts.broker.error:
        raise CannotTellError("the broker cannot be reached")


def broker_unreachable(facts: Facts) -> Iterator[Seen]:
    """The broker answers."""
    if facts.broker.error:
        yield Seen(f"{facts.broker.label}: {facts.broker.error}")


def no_workers(facts: Facts) -> Iterator[Seen]:
    """At least one worker answers."""
    broker_reached(facts)
    if facts.workers_error:
        raise CannotTellError(facts.workers_error)
    if facts.workers:
        return
    if facts.heard.skews:
        text = f"{some(sorted(facts.heard.skews))} send heartbeats, and nobody answers"
        yield Seen(text, fix="set worker_enable_remote_control to True again, or give them longer: --answer-timeout")
    else:
        yield Seen("nobody answered a question to all workers, and no heartbeat came")


def queue_unconsumed(facts: Facts) -> Iterator[Seen]:
    """Whatever tasks are sent to, is declared, or holds messages has a worker that consumes it."""
    broker_reached(facts)
    workers_known(facts)
    silent = [name for name, worker in facts.workers.items() if worker.queues is None]
    consumed = {name for worker in facts.workers.values() for name in worker.queues or ()}
    consumed |= {name for name, queue in facts.broker.queues.items() if queue.consumers}
    wanted = {name for name, queue in facts.broker.queues.items() if queue.ready}
    if facts.project:
        wanted |= {*facts.project.queues, *facts.project.routed.values()}
        wanted |= {entry.queue for entry in facts.project.entries if entry.queue}
    missing = sorted(wanted - consumed)
    if missing and silent:
        raise CannotTellError(f"{some(silent)} did not tell what it consumes; nobody else consumes {some(missing)}")
    for name in missing:
        held = facts.broker.queues[name].ready if name in facts.broker.queues else 0
        text = f"{name} holds {plural(held, 'message')}" if held else f"{name} is empty so far"
        fix = f"celery -A proj worker -Q {name}, or send its tasks to {some(sorted(consumed), 3)}"
        yield Seen(f"{text}, and no worker consumes it", fix=fix, severity=None if held else Severity.WARNING)
    if facts.broker.overlooked and not missing:
        raise CannotTellError(f"{facts.broker.overlooked}: a queue that nobody consumes may be among the rest")
    if facts.project is None and facts.broker.transport != "redis" and not missing:
        raise CannotTellError("this broker does not list its queues, and the app was not given (-A)")


def route_undeclared(facts: Facts) -> Iterator[Seen]:
    """Where queues are declared, routes lead to these."""
    project = facts.project
    if project is None:
        raise CannotTellError("only the app shows its routes: give it with -A")
    astray: dict[str, list[str]] = {}
    for task, queue in project.routed.items():
        if project.queues and queue not in project.queues:
            astray.setdefault(queue, []).append(task)
    missing_made = project.configuration.get("task_create_missing_queues", True)
    for queue, tasks in sorted(astray.items()):
        yield Seen(
            f"{some(sorted(tasks), 3)} → {queue}, which is not in task_queues",
            fix=f'add Queue("{queue}") to app.conf.task_queues, or correct the route',
            severity=None if missing_made else Severity.ERROR,
        )
    if project.unroutable and not astray:
        raise CannotTellError(f"where these lead cannot be read: {some(project.unroutable, 3)}")


def task_unregistered(facts: Facts) -> Iterator[Seen]:
    """Each worker knows the tasks that come through its queues: the app's, the schedule's, its neighbours'."""
    broker_reached(facts)
    workers_known(facts)
    told = {
        name: (worker.tasks, worker.queues)
        for name, worker in facts.workers.items()
        if worker.tasks is not None and worker.queues is not None
    }
    if not told:
        raise CannotTellError("no worker told its tasks and queues")
    unknown: dict[tuple[str, str], list[str]] = {}
    for task, queue in sorted(_sent(facts)):
        for name, (tasks, queues) in told.items():
            if queue in queues and task not in tasks:
                unknown.setdefault((name, queue), []).append(task)
    for (name, queue), missing in unknown.items():
        yield Seen(f"{name} consumes {queue} and does not know {some(missing, 5)}")


def _sent(facts: Facts) -> set[tuple[str, str]]:
    """Return (task, queue) of all that may be sent, builtins left out."""
    pairs: set[tuple[str, str]] = set()
    project = facts.project
    if project:
        default = str(project.configuration.get("task_default_queue", "celery"))
        tasks = project.configuration.tasks
        pairs |= {(task, project.routed[task]) for task in tasks if task in project.routed}
        for entry in project.entries:
            # What the app itself does not know goes by the routes of whoever does.
            elsewhere = default if entry.task not in tasks else ""
            matching = (queue for pattern, queue in project.routed.items() if fnmatchcase(entry.task, pattern))
            pairs.add((entry.task, entry.queue or next(matching, elsewhere)))
    else:
        # Neighbours on one queue get one another's tasks.
        for worker in facts.workers.values():
            pairs |= {(task, queue) for task in worker.tasks or () for queue in worker.queues or ()}
    return {(task, queue) for task, queue in pairs if not task.startswith("celery.")}


def priority_steps(facts: Facts) -> Iterable[Seen]:
    """The priorities in use are ones that the broker tells apart."""
    extra: frozenset[int] = frozenset()
    if facts.project:
        own = {entry.priority for entry in facts.project.entries if entry.priority is not None}
        extra = facts.project.route_priorities | own

    def say(configuration: Configuration) -> Iterator[str]:
        used = {task.priority for task in configuration.tasks.values() if task.priority is not None}
        default = configuration.get("task_default_priority")
        used |= {default} if isinstance(default, int) else set()
        used |= extra if facts.project and configuration is facts.project.configuration else set()
        if used:
            yield from _confused(facts, configuration, used)

    return everywhere(facts, say)


def _confused(facts: Facts, configuration: Configuration, used: set[int]) -> Iterator[str]:
    if facts.broker.transport == "redis":
        steps = configuration.get("broker_transport_options", {}).get("priority_steps") or PRIORITY_STEPS
        lost = sorted(used - set(steps))
        if lost:
            yield f"priority {some(map(str, lost))} is used, and priority_steps are {some(map(str, steps), 10)}"
    elif facts.broker.transport == "amqp" and not configuration.get("task_queue_max_priority"):
        plain = sorted(name for name, arguments in _queues(facts).items() if "x-max-priority" not in arguments)
        if plain:
            yield f"priority {some(map(str, sorted(used)))} is used, and {some(plain, 5)} has no x-max-priority"


def _queues(facts: Facts) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = dict(facts.project.queues) if facts.project else {}
    for worker in facts.workers.values():
        found.update(worker.queues or {})
    return found


def reply_keys(facts: Facts) -> Iterator[Seen]:
    """Few reply queues lie about in Redis."""
    broker_reached(facts)
    if facts.broker.transport != "redis":
        return
    if facts.broker.redis is None or facts.broker.redis.reply_keys is None:
        raise CannotTellError(facts.broker.redis.unsearched if facts.broker.redis else "Redis did not tell")
    if facts.broker.redis.reply_keys > REPLY_KEYS:
        yield Seen(f"{plural(facts.broker.redis.reply_keys, 'reply queue')} (*.reply.celery.pidbox)")


def no_dead_letter(facts: Facts) -> Iterator[Seen]:
    """Queues have a dead-letter exchange, or something of the app's keeps failures."""
    if facts.project and facts.project.failures_noticed:
        return
    if facts.broker.transport != "amqp":
        if facts.project is None:
            raise CannotTellError("only the app shows who hears of failures: give it with -A")
        yield Seen("nothing in the app hears of failures, and this broker has no dead letters")
        return
    configurations(facts)
    plain = sorted(name for name, arguments in _queues(facts).items() if "x-dead-letter-exchange" not in arguments)
    if plain:
        yield Seen(f"no x-dead-letter-exchange on {some(plain, 5)} (a policy on the server would not show here)")


LOOKS: dict[str, Look] = {
    "broker-unreachable": broker_unreachable,
    "no-workers": no_workers,
    "queue-unconsumed": queue_unconsumed,
    "route-undeclared": route_undeclared,
    "task-unregistered": task_unregistered,
    "priority-steps": priority_steps,
    "reply-keys": reply_keys,
    "no-dead-letter": no_dead_letter,
}
