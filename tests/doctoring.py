"""A healthy Celery set-up as the doctor's facts, for tests to make one thing wrong with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celeryscope.monitor.doctor.facts import (
    Beat,
    Broker,
    Configuration,
    Door,
    Entry,
    Facts,
    Heard,
    Monitored,
    Project,
    Queue,
    Redis,
    TaskOptions,
    TaskTimes,
    Worker,
)

SETTINGS: dict[str, Any] = {
    "accept_content": ["json"],
    "beat_schedule": {"nightly": {"task": "shop.report", "schedule": "<crontab: 0 3 * * * (m/h/dM/MY/d)>"}},
    "beat_scheduler": "celery.beat:PersistentScheduler",
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"visibility_timeout": 7200},
    "enable_utc": True,
    "result_accept_content": None,
    "result_backend": "redis://",
    "result_serializer": "json",
    "task_create_missing_queues": True,
    "task_default_priority": None,
    "task_default_queue": "default",
    "task_queue_max_priority": None,
    "task_send_sent_event": True,
    "task_serializer": "json",
    "task_soft_time_limit": None,
    "task_time_limit": 600,
    "timezone": "Europe/Berlin",
    "worker_prefetch_multiplier": 1,
    "worker_send_task_events": True,
}
TASKS = {
    "shop.pay": TaskOptions(name="shop.pay", autoretry=True, backoff=True),
    "shop.report": TaskOptions(name="shop.report", acks_late=True, idempotent=True, time_limit=3600.0),
}


def configuration(where: str, **settings: Any) -> Configuration:
    return Configuration(where=where, settings={**SETTINGS, **settings}, tasks=TASKS)


PROJECT = Project(
    configuration=configuration("app shop"),
    queues={"default": {}, "reports": {}},
    routed={"shop.pay": "default", "shop.report": "reports"},
    entries=[Entry(name="nightly", task="shop.report", queue="reports", crontab=True)],
    failures_noticed=True,
)
WORKER = Worker(
    configuration=configuration("worker w1@host"),
    tasks=frozenset(TASKS),
    queues={"default": {}, "reports": {}},
    slots=4,
    prefetch=4,
    time_limits=(0.0, 600.0),
    pool="celery.concurrency.prefork:TaskPool",
)
REDIS = Redis(
    policy="noeviction",
    maxmemory=0,
    appendonly=True,
    save="",
    pubsub_limit=(33554432, 8388608, 60),
    reply_keys=2,
    held=3,
)
BROKER = Broker(
    label="broker rediss://redis.example.com:6379/0",
    transport="redis",
    hosts=["redis.example.com"],
    tls=True,
    password=True,
    redis=REDIS,
    queues={"default": Queue(ready=12), "reports": Queue(ready=0)},
    longest_eta=60.0,
)
HEARD = Heard(
    seconds=11.0,
    events=220,
    bytes=176_000,
    skews={"w1@host": -0.01},
    beats={"b1": Beat(app="shop", hostname="shop@host")},
)
MONITORED = Monitored(
    url="http://127.0.0.1:9808",
    events_on={"w1@host": True},
    beats={"shop": 1},
    skews={"w1@host": 0.02},
    tasks={"shop.pay": TaskTimes(runs=900, mean=0.2, slowest=5.0)},
)
HEALTHY = Facts(
    broker=BROKER,
    project=PROJECT,
    workers={"w1@host": WORKER},
    heard=HEARD,
    monitored=MONITORED,
    doors=[Door(what="the monitor", url="http://192.0.2.7:9808/metrics", host="192.0.2.7", public=False, open=False)],
    grace=60.0,
)
"""Everything is known, and nothing is wrong."""


def everywhere(facts: Facts = HEALTHY, **settings: Any) -> Facts:
    """The same with other settings, in the app and in its worker."""
    return only_workers(
        replace(facts, project=replace(PROJECT, configuration=configuration("app shop", **settings))), **settings
    )


def only_workers(facts: Facts = HEALTHY, **settings: Any) -> Facts:
    worker = replace(WORKER, configuration=configuration("worker w1@host", **settings))
    return replace(facts, workers={"w1@host": worker})


def with_task(**options: Any) -> Facts:
    """The same with one more task, known everywhere."""
    extra = TaskOptions(**{"name": "shop.new", **options})
    tasks = {**TASKS, extra.name: extra}
    project = replace(
        PROJECT,
        configuration=replace(PROJECT.configuration, tasks=tasks),
        routed={**PROJECT.routed, extra.name: "default"},
    )
    assert WORKER.configuration is not None
    worker = replace(WORKER, configuration=replace(WORKER.configuration, tasks=tasks), tasks=frozenset(tasks))
    return replace(HEALTHY, project=project, workers={"w1@host": worker})


def with_broker(**changes: Any) -> Facts:
    return replace(HEALTHY, broker=replace(BROKER, **changes))


def with_redis(**changes: Any) -> Facts:
    return with_broker(redis=replace(REDIS, **changes))


def with_project(**changes: Any) -> Facts:
    return replace(HEALTHY, project=replace(PROJECT, **changes))


def with_heard(**changes: Any) -> Facts:
    return replace(HEALTHY, heard=replace(HEARD, **changes))


def with_monitored(**changes: Any) -> Facts:
    return replace(HEALTHY, monitored=replace(MONITORED, **changes))


def on_rabbit(facts: Facts = HEALTHY, **arguments: Any) -> Facts:
    """The same on RabbitMQ, its queues with these arguments."""
    queues = dict.fromkeys(("default", "reports"), arguments)
    workers = {name: replace(worker, queues=queues) for name, worker in facts.workers.items()}
    broker = replace(BROKER, transport="amqp", label="broker amqps://rabbit", redis=None, longest_eta=None)
    assert facts.project is not None
    return replace(facts, broker=broker, workers=workers, project=replace(facts.project, queues=queues))
