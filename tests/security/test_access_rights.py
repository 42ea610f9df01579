"""Workers, beat and producers with `install(app)` live with few rights on the broker: those in docs/security.md."""

from __future__ import annotations

import json
import re
import shlex
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from celeryscope.alerts.failure import QUEUE
from helpers import ROOT, Process, RabbitServer, RedisServer, eventually, running, worker_argv

pytestmark = [pytest.mark.system, pytest.mark.repository]

PAGE = ROOT / "docs" / "security.md"
USER = "shop"
INTRODUCTIONS = {"client|setinfo", "hello"}
"""With these redis-py introduces itself; being refused them does not matter."""


def documented(start: str) -> str:
    (line,) = re.findall(rf"^{start} .*$", PAGE.read_text(), re.MULTILINE)
    return str(line)


@contextmanager
def worker(folder: Path, broker: str, results: str = "") -> Iterator[Process]:
    """A real worker with a beat in it, which also is what sends: a producer has no more rights."""
    env = {"BROKER": broker, "PYTHONPATH": str(ROOT / "tests" / "apps"), **({"RESULTS": results} if results else {})}
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        env[name] = ""
    argv = worker_argv("rights_app", "-P", "threads", "-c", "2", "-B", "-s", str(folder / "schedule"), "-E")
    with running(Process(argv, log=folder / "worker.log", cwd=folder, env=env)) as process:
        process.wait_for(" ready.", 60)
        process.wait_for("succeeded in", 60)
        yield process


def send(folder: Path, broker: str, task: str) -> None:
    """Send a task as a producer of the same app does."""
    code = f"from rights_app import app; app.send_task({task!r}, ignore_result=True)"
    env = {"BROKER": broker, "PYTHONPATH": str(ROOT / "tests" / "apps")}
    producer = Process([worker_argv("x")[0], "-c", code], log=folder / "producer.log", cwd=folder, env=env)
    assert producer.popen.wait(60) == 0, producer.output


@contextmanager
def redis_user(server: RedisServer, line: str) -> Iterator[tuple[str, redis.Redis]]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.execute_command(*line.split())
        client.acl_log_reset()
        try:
            yield server.url.replace("redis://", f"redis://{USER}:secret@"), client
        finally:
            client.acl_deluser(USER)


def refused(client: redis.Redis) -> set[str]:
    return {entry["object"] for entry in client.acl_log() if entry["reason"] in {"command", "key", "channel"}}


def check_redis(server: RedisServer, folder: Path) -> None:
    with redis_user(server, documented(f"ACL SETUSER {USER}")) as (url, client), client.pubsub() as heard:
        heard.psubscribe("/0.celeryev/*")
        with worker(folder, url, url):
            send(folder, url, "rights_app.fails")
            eventually(lambda: client.llen(QUEUE) == 1, 30)
            kinds = set()

            def beat_is_heard() -> bool:
                message = heard.get_message(timeout=0.1)
                if message and message["type"] == "pmessage":
                    kinds.add(message["channel"].decode().rpartition("/")[2])
                return {"beat.heartbeat", "task.multi"} <= kinds or {"beat.heartbeat", "task.failed"} <= kinds

            eventually(beat_is_heard, 30, 0.0)
        assert refused(client) <= INTRODUCTIONS
        assert client.exists("celeryscope.failures") == 1


def test_on_valkey(valkey: RedisServer, tmp_path: Path) -> None:
    check_redis(valkey, tmp_path)


def test_on_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    check_redis(redis_server, tmp_path)


def test_without_a_right_on_the_outbox_tasks_run_and_failures_are_not_told(valkey: RedisServer, tmp_path: Path) -> None:
    """It costs the alerts and nothing of the user's."""
    line = documented(f"ACL SETUSER {USER}").replace("~celeryscope.failures* ", "")
    with redis_user(valkey, line) as (url, client), worker(tmp_path, url, url) as process:
        send(tmp_path, url, "rights_app.fails")
        process.wait_for("ValueError: no", 60)
        eventually(lambda: "celeryscope" in " ".join(refused(client)), 30)
        before = process.output.count("succeeded in")
        eventually(lambda: process.output.count("succeeded in") > before + 1, 60)
        assert client.exists(QUEUE) == 0


def test_on_rabbitmq(rabbit: RabbitServer, tmp_path: Path) -> None:
    line = documented(f"rabbitmqctl set_permissions -p / {USER}")
    configure, write, read = shlex.split(line)[-3:]
    vhost = urllib.parse.quote("/", safe="")
    with httpx.Client(base_url=rabbit.management_url, trust_env=False) as api:
        api.delete(f"/api/queues/{vhost}/{QUEUE}")  # other tests on this broker fail tasks, too
        api.put(f"/api/users/{USER}", json={"password": "secret", "tags": ""}).raise_for_status()
        rights = {"configure": configure, "write": write, "read": read}
        api.put(f"/api/permissions/{vhost}/{USER}", json=rights).raise_for_status()
        try:
            url = rabbit.url.replace("guest:guest", f"{USER}:secret")
            with worker(tmp_path, url) as process:
                send(tmp_path, url, "rights_app.fails")

                def outbox() -> int:
                    return int(json.loads(api.get(f"/api/queues/{vhost}/{QUEUE}").text).get("messages") or 0)

                eventually(lambda: outbox() == 1, 60, 0.5)
                assert "ACCESS_REFUSED" not in process.output
        finally:
            api.delete(f"/api/users/{USER}")
            api.delete(f"/api/queues/{vhost}/{QUEUE}")
