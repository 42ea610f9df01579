"""What a sample costs: 500 queues, 1 000 workers and 100 000 unacknowledged messages on an embedded Valkey.

    python tests/bench/queues.py

Prints CPU milliseconds a sample on the monitor's side and on the server's, for a quiet and for a busy broker, next to
what listing everything (HGETALL of the unacknowledged messages, as naive samplers do) costs on the same machine.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from celeryscope.monitor.broker import BrokerConfig
from celeryscope.monitor.queues import Topology, slot_families
from celeryscope.monitor.queues_sampler import open_sampler
from helpers import RedisServer

QUEUES, UNACKED, WORKERS, SAMPLES = 500, 100_000, 1_000, 10
SEP = "\x06\x16"


def message(queue: str, number: int, eta: str | None = None) -> dict:
    headers = {"lang": "py", "task": "app.tasks.work", "id": f"id-{number}", "shadow": None, "eta": eta}
    headers |= {"retries": 0, "argsrepr": "(1, 2, 3)" * 10, "kwargsrepr": "{}", "celeryscope-sent-at": time.time()}
    properties = {"delivery_tag": f"tag-{number:036}", "delivery_info": {"exchange": "", "routing_key": queue}}
    return {
        "body": "x" * 300,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }


def fill(client: redis.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(QUEUES):
        queue = f"queue-{number}"
        pipe.sadd(f"_kombu.binding.{queue}", SEP.join((queue, "", queue)))
        for priority in (0, 3, 6, 9):
            for copy in range(3):
                key = f"{queue}{SEP}{priority}" if priority else queue
                pipe.lpush(key, json.dumps(message(queue, number * 100 + priority * 10 + copy)))
    pipe.execute()
    deliver(client, range(UNACKED))


def deliver(client: redis.Redis, numbers) -> None:
    pipe = client.pipeline(transaction=False)
    for count, number in enumerate(numbers):
        queue = f"queue-{number % QUEUES}"
        tag = f"tag-{number:036}"
        pipe.zadd("unacked_index", {tag: time.time()})
        pipe.hset("unacked", tag, json.dumps([message(queue, number), "", queue]))
        if count % 1000 == 999:
            pipe.execute()
    pipe.execute()


def server_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    return info["used_cpu_user"] + info["used_cpu_sys"]


def measured(client: redis.Redis, what, before=lambda: None, repeat: int = SAMPLES) -> tuple[float, float, float]:
    ours = theirs = calls = 0.0
    for _ in range(repeat):
        before()
        server, commands, start = (
            server_cpu(client),
            client.info("stats")["total_commands_processed"],
            time.thread_time(),
        )
        what()
        ours += time.thread_time() - start
        theirs += server_cpu(client) - server
        calls += client.info("stats")["total_commands_processed"] - commands - 2
    return ours / repeat * 1000, theirs / repeat * 1000, calls / repeat


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            run(server)
        finally:
            server.stop()


def measured_quiet() -> float:
    """The milliseconds of the monitor's processor time that a sample takes where nothing happens between two."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            client = redis.Redis.from_url(server.url)
            fill(client)
            sampler = sampler_of(server)
            sampler.sample(time.time())
            while sampler._reader._index.unresolved:
                sampler.sample(time.time())
            quiet = measured(client, lambda: sampler.sample(time.time()))
            sampler.close()
            return quiet[0]
        finally:
            server.stop()


def sampler_of(server: RedisServer):
    sampler = open_sampler(BrokerConfig.from_url(server.url), inspect=False)
    sampler.know(f"queue-{number}" for number in range(QUEUES))
    return sampler


def run(server: RedisServer) -> None:
    client = redis.Redis.from_url(server.url)
    fill(client)
    sampler = sampler_of(server)

    def sample() -> None:
        sampler.sample(time.time())

    first = measured(client, sample, repeat=1)
    while sampler._reader._index.unresolved:
        sample()
    assert sum(f.unacked or 0 for f in sampler.snapshot.queues.values()) == UNACKED, "counted wrong"
    quiet = measured(client, sample)
    numbers = iter(range(UNACKED, 10 * UNACKED))
    alive = list(range(UNACKED))

    def churn(count: int, anywhere: bool) -> None:
        """`count` messages, the oldest or any, are acknowledged, and as many are delivered."""
        if anywhere:
            random.shuffle(alive)
        gone, alive[:] = alive[:count], alive[count:]
        pipe = client.pipeline(transaction=False)
        for number in gone:
            pipe.zrem("unacked_index", f"tag-{number:036}")
            pipe.hdel("unacked", f"tag-{number:036}")
        pipe.execute()
        fresh = [next(numbers) for _ in range(count)]
        deliver(client, fresh)
        alive.extend(fresh)

    fifo = measured(client, sample, lambda: churn(1_000, False))
    assert sum(f.unacked or 0 for f in sampler.snapshot.queues.values()) == UNACKED, "counted wrong"
    busy = measured(client, sample, lambda: churn(1_000, True))
    for _ in range(5):
        sample()
    assert sum(f.unacked or 0 for f in sampler.snapshot.queues.values()) == UNACKED, "counted wrong"
    naive = measured(client, lambda: [json.loads(v) for v in client.hgetall("unacked").values()], repeat=2)
    topology = Topology(
        1.0,
        {f"w{n}@host": frozenset((f"queue-{n % QUEUES}", f"queue-{(n + 1) % QUEUES}")) for n in range(WORKERS)},
        {f"w{n}@host": 8 for n in range(WORKERS)},
    )
    active = {f"w{n}@host": n % 9 for n in range(WORKERS)}
    start = time.thread_time()
    list(slot_families(topology, active))
    sampler.families(time.time())
    rendering = (time.thread_time() - start) * 1000
    print(f"{'':34}{'monitor':>12}{'server':>12}{'commands':>12}")
    for name, figures in (
        ("first sample (10 000 looked up)", first),
        ("quiet", quiet),
        ("1 000 oldest acked, 1 000 new", fifo),
        ("1 000 of any age acked, 1 000 new", busy),
        ("naive: HGETALL unacked", naive),
    ):
        print(f"{name:34}{figures[0]:>9.1f} ms{figures[1]:>9.1f} ms{figures[2]:>12.0f}")
    print(f"families of {QUEUES} queues and {WORKERS} workers: {rendering:.1f} ms")
    sampler.close()


if __name__ == "__main__":
    main()
