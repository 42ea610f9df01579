"""The few rights on the broker that docs/security.md gives the alerter are enough for all it does."""

from __future__ import annotations

import re
import shlex
import urllib.parse
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
from alerting import alerter_process, batch, entry, publish, task_of
from celeryscope.alerts.failure import QUEUE
from celeryscope.alerts.feeds import RedisFeed
from celeryscope.demo.inbox import Inbox
from helpers import ROOT, eventually, running
from kombu import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import RabbitServer, RedisServer

pytestmark = [pytest.mark.system, pytest.mark.repository]

USER = "celeryscope-alerter"
PAGE = ROOT / "docs" / "security.md"


@contextmanager
def redis_user(server: RedisServer) -> Iterator[str]:
    (line,) = re.findall(rf"^ACL SETUSER {USER} .*$", PAGE.read_text(), re.MULTILINE)
    client = redis.Redis.from_url(server.url)
    client.flushall()
    client.execute_command(*line.split())
    client.acl_log_reset()
    try:
        yield server.url.replace("redis://", f"redis://{USER}:secret@")
    finally:
        client.acl_deluser(USER)
        client.close()


def abandon(client: redis.Redis) -> None:
    """Leave the oldest message as an alerter does that is killed while it holds it, long ago."""
    client.hset("celeryscope.unacked", "tag", client.rpop(QUEUE))
    client.zadd("celeryscope.unacked_index", {"tag": 0})


def check(server: RedisServer, folder: Path) -> None:
    """It takes failures, sets aside what it cannot read, gives back what a dead one held, and is refused nothing."""
    with redis_user(server) as url, redis.Redis.from_url(server.url) as client, Inbox(["general"]).serving() as inbox:
        publish(server.url, [batch(entry("lost", task="shop.held_by_a_dead_one"))])
        abandon(client)
        publish(server.url, [batch(entry("here", task="shop.fails")), b"not JSON"])
        with running(alerter_process(folder, url, inbox)):
            eventually(lambda: {"shop.fails", "shop.held_by_a_dead_one"} <= {task_of(m) for m in inbox.top()}, 90, 0.2)
            eventually(lambda: client.llen("celeryscope.failures.rejected") == 1, 30)
            eventually(lambda: client.hlen("celeryscope.unacked") == client.llen(QUEUE) == 0, 30)
        refused = {e["object"] for e in client.acl_log() if e["reason"] in {"command", "key", "channel"}}
        assert refused <= {"client|setinfo", "hello"}


def test_on_valkey(valkey: RedisServer, tmp_path: Path):
    check(valkey, tmp_path)


def test_on_redis(redis_server: RedisServer, tmp_path: Path):
    check(redis_server, tmp_path)


def test_without_the_right_to_give_back_nothing_loses_its_place(valkey: RedisServer):
    """What was taken and cannot be given back waits where a later alerter, with that right, finds it."""
    with redis_user(valkey) as url, redis.Redis.from_url(valkey.url) as client:
        client.acl_setuser(USER, enabled=True, commands=["-rpush"])
        publish(valkey.url, [batch(entry("here", task="shop.fails"))])
        with Connection(url) as connection:
            reader = RedisFeed(connection)
            assert len(reader.take(1, lambda _: None)) == 1
            reader.close()
        assert client.acl_log()[0]["object"] == "rpush"
        assert client.hkeys("celeryscope.unacked") == client.zrange("celeryscope.unacked_index", 0, -1) != []


def test_on_rabbitmq(rabbit: RabbitServer, tmp_path: Path):
    (line,) = re.findall(rf"^rabbitmqctl set_permissions -p / {USER} (.*)$", PAGE.read_text(), re.MULTILINE)
    configure, write, read = shlex.split(line)
    vhost = urllib.parse.quote("/", safe="")
    with httpx.Client(base_url=rabbit.management_url, trust_env=False) as api:

        def put(path: str, body: dict[str, str]) -> None:
            api.put(path, json=body).raise_for_status()

        rejected = f"/api/queues/{vhost}/celeryscope.failures.rejected"
        api.delete(rejected)  # other tests on this broker set aside, too
        put(f"/api/users/{USER}", {"password": "secret", "tags": ""})
        put(f"/api/permissions/{vhost}/{USER}", {"configure": configure, "write": write, "read": read})
        try:
            with Inbox(["general"]).serving() as inbox:
                publish(rabbit.url, [batch(entry("here", task="shop.fails")), b"not JSON"])
                url = rabbit.url.replace("guest:guest", f"{USER}:secret")
                with running(alerter_process(tmp_path, url, inbox)) as alerter:
                    eventually(lambda: "shop.fails" in {task_of(m) for m in inbox.top()}, 90, 0.2)
                    eventually(lambda: "was set aside" in alerter.output, 60)
                    assert "permission" not in alerter.output
                    eventually(lambda: api.get(rejected).json().get("messages") == 1, 60, 0.5)
        finally:
            api.delete(f"/api/users/{USER}")
