"""Reads a Celery app: its settings, tasks, routes and schedule; calls nothing of the user's but his routers (edge)."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import translate
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.task import Task

from .facts import Configuration, Entry, Project, TaskOptions

if TYPE_CHECKING:
    from celery import Celery

SETTINGS = (
    "accept_content",
    "beat_schedule",
    "beat_scheduler",
    "broker_connection_retry_on_startup",
    "broker_transport_options",
    "enable_utc",
    "result_accept_content",
    "result_backend",
    "result_serializer",
    "task_create_missing_queues",
    "task_default_priority",
    "task_default_queue",
    "task_queue_max_priority",
    "task_send_sent_event",
    "task_serializer",
    "task_soft_time_limit",
    "task_time_limit",
    "timezone",
    "worker_prefetch_multiplier",
    "worker_send_task_events",
)
"""What the checks look at; nothing else of a configuration is kept."""

TASK_ITEMS = (
    "acks_late",
    "autoretry_for",
    "idempotent",
    "ignore_result",
    "priority",
    "retry_backoff",
    "retry_jitter",
    "soft_time_limit",
    "time_limit",
)


def project(app: Celery, name: str) -> Project:
    """Return what the app tells; `name` is what `-A` was given.

    Raises:
        Exception: whatever the user's modules raise while they are imported.
    """
    app.loader.import_default_modules()
    app.finalize()
    conf: Any = app.conf
    tasks = {key: _options(task) for key, task in app.tasks.items() if not key.startswith("celery.")}
    routed, unroutable, priorities = _routes(app, tasks)
    return Project(
        configuration=Configuration(
            where=f"app {app.main or name}", settings={key: getattr(conf, key, None) for key in SETTINGS}, tasks=tasks
        ),
        queues=declared(conf.task_queues),
        routed=routed,
        unroutable=unroutable,
        route_priorities=frozenset(priorities),
        entries=list(_entries(conf.beat_schedule)),
        failures_noticed=_failures_noticed(app),
    )


def declared(queues: Any) -> dict[str, Mapping[str, Any]]:
    """Return `task_queues` (Queue objects, or what a worker tells of them) as name → arguments."""
    if isinstance(queues, Mapping):
        return {str(name): _arguments(queue) for name, queue in queues.items()}
    found = {}
    for queue in queues or ():
        name = queue.get("name") if isinstance(queue, Mapping) else getattr(queue, "name", queue)
        found[str(name)] = _arguments(queue)
    return found


def _arguments(queue: Any) -> Mapping[str, Any]:
    of_object = getattr(queue, "queue_arguments", None)
    arguments = queue.get("queue_arguments") if isinstance(queue, Mapping) else of_object
    found: dict[str, Any] = dict(arguments or {})
    limit = queue.get("max_priority") if isinstance(queue, Mapping) else getattr(queue, "max_priority", None)
    if limit:
        found.setdefault("x-max-priority", limit)
    return found


def _options(task: Any) -> TaskOptions:
    said = {item: getattr(task, item, None) for item in TASK_ITEMS}
    documented = "idempotent" in (getattr(task, "__doc__", None) or "").lower()
    return options(task.name, {**said, "idempotent": said["idempotent"] or documented})


def options(name: str, said: Mapping[str, Any]) -> TaskOptions:
    """Return a task's options from its attributes, as objects or as the texts that a worker tells."""
    jitter = said.get("retry_jitter")
    return TaskOptions(
        name=name,
        acks_late=truth(said.get("acks_late")),
        ignore_result=truth(said.get("ignore_result")),
        time_limit=_number(said.get("time_limit")),
        soft_time_limit=_number(said.get("soft_time_limit")),
        autoretry=truth(said.get("autoretry_for")),
        backoff=truth(said.get("retry_backoff")),
        jitter=jitter is None or truth(jitter),
        idempotent=truth(said.get("idempotent")),
        priority=_priority(said.get("priority")),
    )


def truth(value: Any) -> bool:
    """Return the truth of a value, or of the text that a worker made of it."""
    return value not in ("False", "None", "0", "0.0", "()", "[]", "") if isinstance(value, str) else bool(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _priority(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _routes(app: Celery, tasks: Iterable[str]) -> tuple[dict[str, str], list[str], set[int]]:
    """Return (task or pattern → queue, what cannot be followed, priorities that routes give)."""
    conf: Any = app.conf
    routed, unroutable, priorities = dict(_static(conf.task_routes)), [], set()
    default = str(conf.task_default_queue)
    for name in tasks:
        task: Any = app.tasks[name]
        try:
            route: Any = app.amqp.router.lookup_route(name, (), {}, {}, task) or {}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a router of the user's own may raise anything, also SystemExit
            unroutable.append(f"{name} ({type(error).__name__})")
            continue
        if isinstance(route, str):
            route = {"queue": route}
        queue = getattr(task, "queue", None) or route.get("queue")
        if not queue and (route.get("routing_key") or route.get("exchange")):
            unroutable.append(f"{name} (by exchange and routing key)")
            continue
        routed[name] = str(getattr(queue, "name", queue) or default)
        if isinstance(route.get("priority"), int):
            priorities.add(route["priority"])
    # A pattern that tells no more than its tasks do is said already.
    for pattern in [name for name in routed if name not in app.tasks]:
        if _covered(pattern, routed, app.tasks):
            del routed[pattern]
    return routed, unroutable, priorities


def _static(routes: Any) -> Iterator[tuple[str, str]]:
    """Yield (task or pattern, queue) of routes that are plain data."""
    if isinstance(routes, Mapping):
        routes = [routes]
    for router in routes if isinstance(routes, (list, tuple)) else ():
        pairs: Any = router.items() if isinstance(router, Mapping) else router
        if not isinstance(pairs, Iterable) or isinstance(pairs, str):
            continue
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                continue
            pattern, route = pair
            queue = route.get("queue") if isinstance(route, Mapping) else route
            if isinstance(pattern, str) and queue:
                yield pattern, str(getattr(queue, "name", queue))


def _covered(pattern: str, routed: Mapping[str, str], tasks: Iterable[str]) -> bool:
    matches = re.compile(translate(pattern)).match
    return any(matches(name) and routed.get(name) == routed[pattern] for name in tasks)


def _entries(schedule: Any) -> Iterator[Entry]:
    for name, entry in (schedule or {}).items():
        read = (
            entry.get
            if isinstance(entry, Mapping)
            else lambda key, default=None, entry=entry: getattr(entry, key, default)
        )
        given: Any = read("options") or {}
        queue, priority = given.get("queue"), given.get("priority")
        yield Entry(
            name=str(name),
            task=str(read("task")),
            queue=str(getattr(queue, "name", queue)) if queue else None,
            crontab="crontab" in str(read("schedule")),
            priority=priority if isinstance(priority, int) else None,
        )


def _failures_noticed(app: Celery) -> bool:
    if signals.task_failure.receivers:
        return True
    if any(_is_ours(receiver) for _, receiver in signals.task_unknown.receivers or ()):
        return True
    own = (task for name, task in app.tasks.items() if not name.startswith("celery."))
    return any(type(task).on_failure is not Task.on_failure for task in own)


def _is_ours(receiver: Any) -> bool:
    # Signals hold weak references; where failures are reported, celeryscope listens to this one.
    found = receiver() if isinstance(receiver, weakref.ref) else receiver
    module = getattr(getattr(found, "__func__", found), "__module__", "") or ""
    return module.startswith(__name__.partition(".")[0])
