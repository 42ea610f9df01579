"""A backlog of gigabytes: how much waits and since when is known, and asking costs the server nothing to speak of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celeryscope.monitor import stamp
from celeryscope.monitor.queues_redis import REST_PER_BYTE
from chaos_load_tools import MEGABYTE
from chaos_tools import MonitorProcess
from helpers import RedisServer, eventually, running, system_command

pytestmark = pytest.mark.system

QUEUE = "backlog"
SINCE = 3_600.0
"""Seconds for which the oldest message has been waiting."""
OURS = ("eval_ro", "scan", "smembers", "zcount", "zrangebyscore")
"""What the sampler asks the server; what its script calls is in the script's own time."""
HUGE = 25_000_000
REST = HUGE * REST_PER_BYTE


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of its own: what is in it is a lot, and all that it does is ours."""
    server = RedisServer(tmp_path, binary=system_command("redis-server"))
    yield server
    server.stop()


def a_message(server: RedisServer) -> dict[str, Any]:
    """Publish a task as an app does, and take it off again: what kombu makes of it."""
    with Celery("producer", broker=server.url, set_as_current=False) as app, redis.Redis.from_url(server.url) as client:
        stamp.connect(app)
        app.send_task("work", queue=QUEUE)
        message: dict[str, Any] = json.loads(client.lpop(QUEUE))
    assert stamp.HEADER in message["headers"]
    return message


def fill(server: RedisServer, count: int, size: int) -> float:
    """Leave `count` messages of `size` bytes in the queue, the first one an hour old; return its time."""
    message, began = a_message(server), time.time()
    oldest = round(began - SINCE, 3)
    message["body"] += "A" * max(0, size - len(json.dumps(message)))
    with redis.Redis.from_url(server.url) as client:
        for start in range(0, count, max(1, 4_000_000 // size)):
            some = []
            for number in range(start, min(count, start + max(1, 4_000_000 // size))):
                message["headers"] |= {"id": f"id-{number}", stamp.HEADER: began if number else oldest}
                message["properties"]["delivery_tag"] = f"tag-{number}"
                some.append(json.dumps(message))
            client.lpush(QUEUE, *some)
        assert client.llen(QUEUE) == count
    return oldest


def spent(client: redis.Redis) -> tuple[float, int]:
    """Return the server's seconds in the sampler's commands, and how often it looked at a message, since the reset."""
    stats = client.info("commandstats")
    seconds = sum(row["usec"] for name, row in stats.items() if name.split("_", 1)[1] in OURS) / 1e6
    return seconds, stats.get("cmdstat_lindex", {"calls": 0})["calls"]


def sampled(monitor: MonitorProcess) -> float:
    return monitor.total("celeryscope_sample_timestamp_seconds", collector="queues")


def pass_by(monitor: MonitorProcess, samples: int) -> None:
    """Wait until so many samples were taken."""
    for _ in range(samples):
        last = sampled(monitor)
        eventually(lambda last=last: sampled(monitor) > last, 60, 0.2)


def measure(server: RedisServer, folder: Path, count: int, size: int, samples: int) -> tuple[int, float]:
    """Hold the facts about a backlog against the truth; return how often it was looked into, in which time."""
    with (
        redis.Redis.from_url(server.url) as client,
        running(MonitorProcess(folder, server.url, "--queue", QUEUE, "--sample-interval", "1")) as monitor,
    ):
        eventually(lambda: monitor.ready() and sampled(monitor), 60)
        before = monitor.memory()
        oldest = fill(server, count, size)
        eventually(lambda: monitor.total("celery_queue_messages", queue=QUEUE, state="ready") == count, 60, 0.2)
        pass_by(monitor, 1)
        client.config_resetstat()
        client.slowlog_reset()
        began, sent = time.monotonic(), client.info("stats")["total_net_output_bytes"]
        pass_by(monitor, samples)
        (seconds, looks), elapsed = spent(client), time.monotonic() - began
        sent = client.info("stats")["total_net_output_bytes"] - sent
        slow = [entry["duration"] / 1e3 for entry in client.slowlog_get()]
        page, now = monitor.page, time.time()
        growth, used = monitor.memory() - before, client.info("memory")["used_memory"]
    assert page.total("celery_queue_messages", queue=QUEUE, state="ready") == count
    age = page.total("celery_queue_oldest_message_age_seconds", queue=QUEUE)
    assert age == pytest.approx(now - oldest, abs=60)  # and none of the younger ones'
    print(
        f"{count:,} messages of {size:,} bytes, {used / MEGABYTE:,.0f} MB in Redis: {samples} samples in "
        f"{elapsed:.1f} s cost the server {seconds * 1e3:.1f} ms ({seconds / elapsed:.2%}) and {sent:,} bytes; {looks} "
        f"looks at a message, {len(slow)} commands in SLOWLOG, the longest {max(slow, default=0):.0f} ms; the "
        f"monitor's memory grew by {growth / MEGABYTE:.1f} MB"
    )
    assert sent < 1_000_000
    assert growth < 32 * MEGABYTE
    return looks, elapsed


LONG = pytest.mark.soak


@pytest.mark.parametrize(("count", "samples"), [(100_000, 3), pytest.param(1_000_000, 30, marks=LONG)])
def test_many_messages_are_counted_and_one_of_them_is_looked_at(
    server: RedisServer, tmp_path: Path, count: int, samples: int
) -> None:
    """Of a backlog of messages of 1 kB, 100 MB or 1 GB, each sample reads the oldest one's end."""
    looks, elapsed = measure(server, tmp_path, count, 1_000, samples)
    assert looks <= elapsed + 2


@pytest.mark.parametrize(("count", "samples"), [(4, 3), pytest.param(40, 30, marks=LONG)])
def test_few_huge_messages_are_not_read_in_every_sample(
    server: RedisServer, tmp_path: Path, count: int, samples: int
) -> None:
    """Messages of 25 MB, 100 MB or 1 GB of them: the server has to copy one whole, and rests in between."""
    looks, elapsed = measure(server, tmp_path, count, HUGE, samples)
    assert looks <= elapsed / REST + 1
