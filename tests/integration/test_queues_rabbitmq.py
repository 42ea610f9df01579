"""Queues on a real RabbitMQ: what passive declare tells, and what the management API adds (make integration)."""

from __future__ import annotations

import logging
import re
import time
import urllib.parse
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from celery import Celery
from celeryscope.monitor import stamp
from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.queues import QueueFacts
from celeryscope.monitor.queues_sampler import QueueSampler, open_sampler
from helpers import ROOT, Process, RabbitServer, eventually, running, worker_argv
from kombu import Exchange, Queue

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WORKER_APP = """
import time
from celery import Celery
from kombu import Queue
app = Celery("queue_app", broker={url!r})
app.conf.update(worker_prefetch_multiplier=4, task_acks_late=True, broker_connection_retry_on_startup=True,
    task_queues=[Queue({queue!r})], worker_enable_prefetch_count_reduction=False)

@app.task(name="sleep")
def sleep(seconds):
    time.sleep(seconds)
"""


@contextmanager
def producer(url: str, *queues: Queue):
    app = Celery("producer", broker=url, set_as_current=False)
    app.conf.task_queues = queues
    stamp.connect(app)
    try:
        yield app
    finally:
        app.close()


@contextmanager
def sampling(url: str, **options):
    sampler = open_sampler(BrokerConfig.from_url(url), **options)
    try:
        yield sampler
    finally:
        sampler.close()


def sampled(sampler: QueueSampler, queue: str) -> QueueFacts:
    for _ in sampler.discover(time.time()):
        pass
    sampler.sample(time.time())
    assert sampler._last.success
    return sampler.snapshot.queues.get(queue, QueueFacts())


def reason_count(sampler: QueueSampler, reason: str) -> int:
    return sampler._reader.problems.counts[reason]


def test_passive_declare_tells_ready_and_consumers_and_survives_missing_queues(rabbit: RabbitServer, caplog):
    """A missing queue closes the channel: the ones after it are still read, and it is logged once."""
    caplog.set_level(logging.WARNING)
    names = ["gone-first", "passive", "gone-last"]
    with (
        producer(rabbit.url, Queue("passive")) as app,
        sampling(rabbit.url, queues=names, inspect=False) as sampler,
        app.producer_pool.acquire(block=True) as channel,
    ):
        for _ in range(1_500):
            app.send_task("sleep", (0,), queue="passive", producer=channel)
        eventually(lambda: sampled(sampler, "passive") == QueueFacts(ready=1_500, consumers=0))
        assert set(sampler.snapshot.queues) == {"passive"}
        assert reason_count(sampler, "gone") >= 2
        assert sum("gone-first" in record.getMessage() for record in caplog.records) == 1


def test_management_api_tells_priorities_age_and_unacked_also_after_a_kill(rabbit: RabbitServer, tmp_path: Path):
    queue = Queue("managed", queue_arguments={"x-max-priority": 9})
    before = int(time.time())
    with (
        producer(rabbit.url, queue) as app,
        sampling(rabbit.url, management_url=rabbit.management_url, inspect=False) as sampler,
    ):
        with app.producer_pool.acquire(block=True) as channel:
            for number in range(2_000):
                app.send_task("sleep", (600,), queue="managed", priority=(0, 3, 6, 9)[number % 4], producer=channel)
        published = time.time()

        def ready() -> bool:
            facts = sampled(sampler, "managed")
            return facts.ready == 2_000 and facts.oldest_at is not None and facts.priorities.get(9) == 500

        eventually(ready, 60)
        facts = sampled(sampler, "managed")
        assert {p: n for p, n in facts.priorities.items() if n} == {0: 500, 3: 500, 6: 500, 9: 500}
        assert facts.oldest_source == "head"
        assert before <= facts.oldest_at <= published
        assert (facts.unacked, facts.scheduled, facts.consumers) == (0, None, 0)
        source = WORKER_APP.format(url=rabbit.url, queue="managed").replace(
            "Queue('managed')", 'Queue("managed", queue_arguments={"x-max-priority": 9})'
        )
        (tmp_path / "queue_app.py").write_text(source)
        argv = worker_argv("queue_app", "--pool", "solo", "-Q", "managed")
        with running(Process(argv, log=tmp_path / "worker.log", cwd=tmp_path)) as process:
            process.wait_for("ready.", 60)
            eventually(lambda: (sampled(sampler, "managed").unacked or 0) > 0, 60)
            assert sampled(sampler, "managed").consumers == 1
            assert sampled(sampler, "managed").ready + sampled(sampler, "managed").unacked == 2_000
            process.kill_group()
        eventually(lambda: sampled(sampler, "managed") and sampled(sampler, "managed").unacked == 0, 60)
        assert sampled(sampler, "managed").ready == 2_000


def test_quorum_queues_and_delayed_delivery(rabbit: RabbitServer):
    """ETA tasks for a quorum queue lie in the broker's own delay queues: they are scheduled, and under one name."""
    from kombu.transport.native_delayed_delivery import (
        bind_queue_to_native_delayed_delivery_exchange,
        declare_native_delayed_delivery_exchanges_and_queues,
    )

    queue = Queue("quorum", Exchange("quorum", type="topic"), "quorum", queue_arguments={"x-queue-type": "quorum"})
    with (
        producer(rabbit.url, queue) as app,
        sampling(rabbit.url, management_url=rabbit.management_url, inspect=False) as sampler,
    ):
        with app.connection_for_write() as connection:
            declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
            bound = queue.bind(connection)
            bound.declare()
            bind_queue_to_native_delayed_delivery_exchange(connection, bound)
        app.conf.task_default_exchange_type = "topic"
        for _ in range(7):
            app.send_task("sleep", (0,), queue="quorum")
        for _ in range(5):
            app.send_task("sleep", (0,), queue="quorum", eta=datetime.now(timezone.utc) + timedelta(hours=1))
        eventually(lambda: sampled(sampler, "celery_delayed").scheduled == 5, 60)
        eventually(lambda: sampled(sampler, "quorum").ready == 7, 60)
        assert sampled(sampler, "quorum").consumers == 0
        assert not [name for name in sampler.snapshot.queues if name.startswith("celery_delayed_")]


def test_broken_management_api_falls_back_to_passive_declare(rabbit: RabbitServer, caplog):
    caplog.set_level(logging.INFO)
    url = rabbit.management_url.replace("guest:guest", "guest:wrong")
    with (
        producer(rabbit.url, Queue("fallback")) as app,
        sampling(rabbit.url, management_url=url, queues=["fallback"], inspect=False) as sampler,
    ):
        app.send_task("sleep", (0,), queue="fallback")
        eventually(lambda: sampled(sampler, "fallback").ready == 1)
        assert sampler.snapshot.queues["fallback"].unacked is None
        assert reason_count(sampler, "permission") >= 1
        said = [record.getMessage() for record in caplog.records if "falling back" in record.getMessage()]
        assert len(said) == 1
        assert "wrong" not in said[0]


def documented_permissions() -> list[str]:
    """The three patterns of the `rabbitmqctl set_permissions` line in docs/brokers.md."""
    line = re.search(r"rabbitmqctl set_permissions -p \S+ celeryscope (.*)", (ROOT / "docs/brokers.md").read_text())
    return re.findall(r"'([^']*)'", line[1])


def test_documented_permissions_suffice(rabbit: RabbitServer, tmp_path: Path):
    """A user with just the rights that docs/brokers.md names samples, discovers and asks workers."""
    configure, write, read = documented_permissions()
    user = "celeryscope"
    with httpx.Client(base_url=rabbit.management_url, timeout=20) as api:
        api.put(f"/api/users/{user}", json={"password": "secret", "tags": "monitoring"}).raise_for_status()
        api.put(
            f"/api/permissions/{urllib.parse.quote('/', safe='')}/{user}",
            json={"configure": configure, "write": write, "read": read},
        ).raise_for_status()
    (tmp_path / "queue_app.py").write_text(WORKER_APP.format(url=rabbit.url, queue="allowed"))
    argv = worker_argv("queue_app", "--pool", "solo", "-Q", "allowed", "-n", "allowed@%h")
    management = rabbit.management_url.replace("guest:guest", f"{user}:secret")
    url = rabbit.url.replace("guest:guest", f"{user}:secret")
    with (
        running(Process(argv, log=tmp_path / "worker.log", cwd=tmp_path)) as process,
        sampling(url, queues=["allowed"]) as passive,
        sampling(url, management_url=management) as managed,
    ):
        process.wait_for("ready.", 60)
        passive.inspect(time.time())
        assert {frozenset({"allowed"})} == set(passive.topology.queues.values())
        eventually(lambda: sampled(passive, "allowed") == QueueFacts(ready=0, consumers=1))
        eventually(lambda: sampled(managed, "allowed").unacked == 0, 60)
        assert reason_count(managed, "permission") == 0
