"""Asks all workers a few cheap questions, once, with a deadline (edge)."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..broker import connect
from ..inspect import replies
from ..queues import is_noise
from .facts import Configuration, TaskOptions, Worker
from .gather_app import SETTINGS, TASK_ITEMS, options

if TYPE_CHECKING:
    from kombu import Connection

    from ..broker import BrokerConfig

MOST = 100
"""Workers that are asked for their tasks and configuration, some 20 kB each; all are asked for queues and pool."""
HELD = 2_000
"""Messages held by workers above which they are not asked to list them."""

_ITEM = re.compile(rf"({'|'.join(TASK_ITEMS)})=(.*?)(?= (?:{'|'.join(TASK_ITEMS)})=|$)")


def workers(config: BrokerConfig, timeout: float, stop: threading.Event | None = None) -> tuple[dict[str, Worker], str]:
    """Return the workers that answer within `timeout` seconds, by name; and why nobody could be asked.

    Once `stop` is set, the question under way is the last one.

    Raises:
        Exception: whatever the transport raises.
    """
    with config.connection() as connection:
        if "fanout" not in connection.transport.implements.exchange_type:
            return {}, "this transport has no remote control"
        _connect(connection)

        def ask(command: str, whom: Sequence[str], **arguments: Any) -> Mapping[str, Any]:
            if stop and stop.is_set():
                raise InterruptedError("it was broken off")
            return replies(connection, config.control_exchange, command, whom, timeout, **arguments)

        stats = ask("stats", ())
        names = sorted(stats)
        if not names:
            return {}, ""
        few = names[:MOST]
        queues = ask("active_queues", names)
        registered = ask("registered", few, taskinfoitems=list(TASK_ITEMS))
        configured = ask("conf", few, with_defaults=True)
        return {
            name: worker(name, stats[name], queues.get(name), registered.get(name), configured.get(name))
            for name in names
        }, ""


def longest_eta(config: BrokerConfig, names: Sequence[str], timeout: float, now: float) -> float:
    """Return in how many seconds the last ETA is due that these workers hold; 0 where they hold none.

    Raises:
        Exception: whatever the transport raises.
    """
    with config.connection() as connection:
        _connect(connection)
        said = replies(connection, config.control_exchange, "scheduled", names, timeout)
    etas = [eta for requests in said.values() for eta in _etas(requests)]
    return max((eta - now for eta in etas), default=0.0)


def _connect(connection: Connection) -> None:
    # The server's heartbeats would each begin the wait for an answer anew, and nobody sends ours meanwhile.
    connection.heartbeat = 0
    connect(connection)


def _etas(requests: Any) -> list[float]:
    found = []
    for request in requests if isinstance(requests, list) else ():
        try:
            eta = datetime.fromisoformat(str(request["eta"]))
        except (KeyError, TypeError, ValueError):
            continue
        found.append((eta if eta.tzinfo else eta.replace(tzinfo=timezone.utc)).timestamp())
    return found


def worker(name: str, stats: Any, queues: Any, registered: Any, configured: Any) -> Worker:
    """Return a worker from its answers; what is not of the right kind is not known."""
    tasks = _tasks(registered)
    settings = _settings(configured)
    pool = stats.get("pool") if isinstance(stats, dict) else None
    pool = pool if isinstance(pool, dict) else {}
    limits = pool.get("timeouts")
    return Worker(
        configuration=Configuration(where=f"worker {name}", settings=settings, tasks=tasks or {}) if settings else None,
        tasks=None if tasks is None else frozenset(tasks),
        queues=_consumed(queues),
        slots=pool.get("max-concurrency"),
        prefetch=stats.get("prefetch_count") if isinstance(stats, dict) else None,
        time_limits=(float(limits[0] or 0), float(limits[1] or 0))
        if isinstance(limits, list) and len(limits) == 2
        else None,
        pool=pool.get("implementation"),
    )


def _tasks(said: Any) -> dict[str, TaskOptions] | None:
    """Read lines such as "shop.pay [acks_late=True autoretry_for=(<class 'ValueError'>,)]"."""
    if not isinstance(said, list):
        return None
    found = {}
    for line in said:
        name, _, rest = str(line).partition(" [")
        found[name] = options(name, dict(_ITEM.findall(rest.removesuffix("]"))))
    return found


def _settings(said: Any) -> dict[str, Any] | None:
    if not isinstance(said, dict) or "error" in said:
        return None
    from celery.app import utils

    # A configuration in the old spelling is told in it.
    names: Mapping[str, str] = getattr(utils, "_TO_NEW_KEY", {})
    settings = {names.get(key, key): value for key, value in said.items()}
    return {key: settings.get(key) for key in SETTINGS}


def _consumed(said: Any) -> dict[str, Mapping[str, Any]] | None:
    if not isinstance(said, list):
        return None
    found: dict[str, Mapping[str, Any]] = {}
    for queue in said:
        if isinstance(queue, dict) and not is_noise(str(queue.get("name", ""))):
            arguments = dict(queue.get("queue_arguments") or {})
            if queue.get("max_priority"):
                arguments.setdefault("x-max-priority", queue["max_priority"])
            found[str(queue["name"])] = arguments
    return found
