"""What the doctor knows of a Celery set-up when it begins to judge (pure data; None is "not known")."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

INTERNAL = (".internal", ".local", ".svc")
"""Ends of names that no public name server knows: clouds', mDNS and …svc.cluster.local, Kubernetes' own."""

FLOWER_METRICS = "Flower's /metrics"
"""What the door is called that Flower leaves open whatever password it has."""


def is_local(host: str) -> bool:
    """Tell whether a host of a URL is this machine itself, whatever it may be called elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")  # 127.0.0.1.example.com is none of ours


def is_internal(host: str) -> bool:
    """Tell whether a name is known inside one network alone: of containers, of a cluster. An address is no name."""
    name = host.rstrip(".").lower()
    return ":" not in name and ("." not in name or name.endswith(INTERNAL))


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The options of one task that count here; times are in seconds."""

    name: str
    acks_late: bool = False
    ignore_result: bool = False
    time_limit: float | None = None
    soft_time_limit: float | None = None
    autoretry: bool = False
    backoff: bool = False
    jitter: bool = True
    idempotent: bool = False
    priority: int | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Settings and tasks as one side has them: the app that `-A` named, or a worker that was asked."""

    where: str
    settings: Mapping[str, Any] = field(repr=False)
    tasks: Mapping[str, TaskOptions] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting; `default` too where it is None."""
        value = self.settings.get(name)
        return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of the beat schedule in the configuration."""

    name: str
    task: str
    queue: str | None = None
    crontab: bool = False
    priority: int | None = None


@dataclass(frozen=True, kw_only=True)
class Project:
    """What only the app itself can tell, beyond its configuration."""

    configuration: Configuration
    queues: Mapping[str, Mapping[str, Any]]
    """Declared in `task_queues`: name → queue arguments; empty where nothing is declared."""
    routed: Mapping[str, str]
    """Task (or the pattern of a route) → queue, as `task_routes` and the tasks themselves have it."""
    unroutable: Sequence[str] = ()
    """Routes that are functions, or failed: where they lead is not known."""
    route_priorities: frozenset[int] = frozenset()
    entries: Sequence[Entry] = ()
    failures_noticed: bool = False
    """Whether something of the app's hears of failures: celeryscope's reports, `task_failure`, an own `on_failure`."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker that answered; a part is None where that question was not answered."""

    configuration: Configuration | None
    tasks: frozenset[str] | None
    queues: Mapping[str, Mapping[str, Any]] | None
    """Consumed: name → queue arguments."""
    slots: int | None = None
    prefetch: int | None = None
    time_limits: tuple[float, float] | None = None
    """Of the pool, soft and hard, by configuration or command line; 0 is none, None a pool that has none."""
    pool: str | None = None


@dataclass(frozen=True, kw_only=True)
class Redis:
    """What a Redis or Valkey says of itself."""

    policy: str | None = None
    maxmemory: int | None = None
    appendonly: bool | None = None
    save: str | None = None
    pubsub_limit: tuple[int, int, int] | None = None
    """Bytes hard, bytes soft, seconds soft; 0 is no limit."""
    reply_keys: int | None = None
    """Reply queues of `inspect` and the like that lie about."""
    unsearched: str = ""
    """Why they could not be counted."""
    held: int | None = None
    """Messages delivered and not acknowledged."""
    refused: str = ""
    """Why CONFIG could not be read."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue on the broker; `consumers` where the broker tells."""

    ready: int
    consumers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Broker:
    """The broker, as far as it let itself be looked at."""

    label: str
    transport: str
    hosts: Sequence[str]
    tls: bool
    password: bool
    error: str = ""
    """Why it cannot be reached; then nothing else is known."""
    redis: Redis | None = None
    queues: Mapping[str, Queue] = field(default_factory=dict)
    overlooked: str = ""
    """Why there may be queues that are not in `queues` although they hold messages."""
    longest_eta: float | None = None
    """Seconds until the last of the ETAs that workers hold; 0 where they hold none."""
    eta_unknown: str = ""

    @property
    def remote(self) -> Sequence[str]:
        """The hosts that are not this machine."""
        return [host for host in self.hosts if not is_local(host)]

    @property
    def internal(self) -> bool:
        """Whether all other hosts have names that only a network of its own knows, such as Compose's."""
        return all(map(is_internal, self.remote))


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A beat whose probe was heard; both times are of the listener's clock."""

    app: str
    hostname: str
    leader: bool | None = None
    embedded: bool = False
    online: float = -math.inf
    """When it came online, if it did so meanwhile."""
    last: float = 0.0
    """When it was last heard."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What came by while listening for `seconds`."""

    seconds: float = 0.0
    events: int = 0
    bytes: int = 0
    """On the wire, roughly."""
    skews: Mapping[str, float] = field(default_factory=dict)
    """Worker → its clock minus ours, from its least delayed heartbeat."""
    task_events_of: frozenset[str] = frozenset()
    """Workers whose task events came."""
    ran: frozenset[str] = frozenset()
    """Workers whose own count of starts grew from one heartbeat to the next."""
    beats: Mapping[str, Beat] = field(default_factory=dict)
    """By boot."""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskTimes:
    """How long the runs of a task took, in seconds; `slowest` is certain, the true one may be longer."""

    runs: float
    mean: float
    slowest: float


@dataclass(frozen=True, kw_only=True)
class Monitored:
    """What a running monitor's page says; `error` where there is none."""

    url: str = ""
    error: str = ""
    events_on: Mapping[str, bool] = field(default_factory=dict)
    beats: Mapping[str, int] = field(default_factory=dict)
    skews: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, TaskTimes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Door:
    """A page that was asked for without credentials."""

    what: str
    url: str
    host: str
    public: bool
    """Whether the host is an address of the open Internet."""
    open: bool | None
    """None where it could not be reached."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything, at one moment."""

    broker: Broker
    project: Project | None = None
    workers: Mapping[str, Worker] = field(default_factory=dict)
    workers_error: str = ""
    heard: Heard = field(default_factory=Heard)
    monitored: Monitored = field(default_factory=Monitored)
    doors: Sequence[Door] = ()
    grace: float | None = None
    """Seconds that a worker gets to end, where somebody said."""

    @property
    def configurations(self) -> Sequence[Configuration]:
        """The app's, and that of each worker which told."""
        own = [self.project.configuration] if self.project else []
        return own + [worker.configuration for worker in self.workers.values() if worker.configuration]
