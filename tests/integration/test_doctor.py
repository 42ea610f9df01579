"""`celeryscope doctor` on real brokers, workers and beats: all that is planted is found (a healthy one: tests/e2e)."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from helpers import Process, RabbitServer, RedisServer, eventually, worker_argv

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]

APPS = Path(__file__).resolve().parent.parent / "apps"
SLOW = 240.0
"""Seconds in which all must have been seen, the doctor being called again and again, on a busy machine."""
PAGE = b"""\
celeryscope_connected 1
celery_worker_events_enabled{worker="bad@host"} 0
celery_task_runtime_seconds_bucket{task="bad.quick",queue="work",outcome="succeeded",le="60.0"} 0
celery_task_runtime_seconds_bucket{task="bad.quick",queue="work",outcome="succeeded",le="300.0"} 9
celery_task_runtime_seconds_bucket{task="bad.quick",queue="work",outcome="succeeded",le="+Inf"} 9
celery_task_runtime_seconds_sum{task="bad.quick",queue="work",outcome="succeeded"} 900
celery_task_runtime_seconds_count{task="bad.quick",queue="work",outcome="succeeded"} 9
"""
PLANTED = {
    "accept-pickle": "app bad, worker bad@host: accept_content has pickle",
    "beat-in-worker": "was started by a worker (-B)",
    "clock-skew": "bad@host by +",
    "events-off": "bad@host (it runs tasks, and no event of them came)",
    "grace-period": "bad.quick (60 s or more): longer than 45 s",
    "late-not-idempotent": "bad.flaky, bad.long, bad.mail",
    "no-dead-letter": "nothing in the app hears of failures",
    "no-time-limit": "worker bad@host: nothing ever ends bad.flaky, bad.mail, bad.quick",
    "prefetch-long-tasks": "bad@host reserves 4 messages a slot, and may run bad.quick (100 s)",
    "priority-steps": "priority 5 is used, and priority_steps are 0, 3, 6, 9",
    "queue-unconsumed": "mial holds 1 message, and no worker consumes it",
    "redis-eviction": "maxmemory-policy is allkeys-lru",
    "redis-persistence": 'appendonly is "no" and save is empty',
    "redis-pubsub-limit": "client-output-buffer-limit pubsub 1048576 524288 60",
    "reply-keys": "reply queues",
    "results-unused": "app bad: result_backend is set, and all 5 tasks ignore their results",
    "retry-storm": "autoretry_for without retry_backoff: bad.quick",
    "route-undeclared": "bad.mail → mial, which is not in task_queues",
    "several-beats": "2 beats lead bad",
    "startup-retry": "broker_connection_retry_on_startup is not set",
    "task-sent-off": "app bad, worker bad@host: task_send_sent_event is off",
    "task-unregistered": "bad@host consumes work and does not know bad.nightly",
    "timezone-disagrees": "app bad: timezone UTC, enable_utc True; worker bad@host: timezone Asia/Tokyo",
    "timezone-unset": "app bad: timezone is not set: the crontabs of nightly go by UTC",
    "visibility-timeout": "a worker holds a task with an ETA",
}


class Clinic:
    """A broker, what runs on it, and the doctor's visits."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.env = {name: "" for name in os.environ if name.startswith(("CELERY_", "CELERYSCOPE_"))}
        # A worker that accepts pickle does not start for root otherwise.
        self.env |= {"BROKER": broker, "PYTHONPATH": str(APPS), "C_FORCE_ROOT": "1", "CELERY_BROKER_URL": broker}
        self.processes: list[Process] = []

    def start(self, name: str, argv: list[str], text: str, **env: str) -> Process:
        process = Process(argv, log=self.folder / f"{name}.log", cwd=self.folder, env=self.env | env)
        self.processes.append(process)
        process.wait_for(text, 90)
        return process

    def beat(self, app: str) -> None:
        schedule = str(self.folder / "schedule-of-beat")
        self.start(
            "beat", [sys.executable, "-m", "celery", "-A", app, "beat", "-s", schedule, "-l", "INFO"], "Starting"
        )

    def doctor(self, *options: str) -> tuple[int, dict[str, Any]]:
        """Return exit code and verdict; more patience than a person has, for a busy machine."""
        argv = [sys.executable, "-m", "celeryscope", "doctor", "--json", "--answer-timeout", "6", "--listen-for", "13"]
        answer = subprocess.run(
            [*argv, *options], cwd=self.folder, env={**os.environ, **self.env}, capture_output=True, text=True
        )
        assert answer.returncode in (0, 1), answer.stderr
        return answer.returncode, json.loads(answer.stdout)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()


@contextlib.contextmanager
def clinic(folder: Path, broker: str) -> Iterator[Clinic]:
    found = Clinic(folder, broker)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module", name="page")
def _page() -> Iterator[str]:
    """A monitor's page that says how long tasks take."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def seen(verdict: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for finding in verdict["findings"]:
        found[finding["id"]] = "; ".join(filter(None, (found.get(finding["id"]), finding["seen"])))
    return found


def missing(verdict: Mapping[str, Any], planted: Mapping[str, str]) -> dict[str, str | None]:
    found = seen(verdict)
    return {name: found.get(name) for name, text in planted.items() if text not in found.get(name, "")}


@pytest.fixture(scope="module", name="bad")
def _bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("bad")
    limit = ("--client-output-buffer-limit", "pubsub 1mb 512kb 60")
    server = RedisServer(folder, "--maxmemory-policy", "allkeys-lru", *limit)
    try:
        with clinic(folder, server.url) as found:
            found.env["BACKEND"] = server.url
            options = ("-n", "bad@host", "-c", "1", "-Q", "work", "-B", "-s", str(folder / "schedule-of-worker"))
            found.start("worker", worker_argv("bad", *options), " ready.", BAD_WORKER="1")
            found.beat("bad")
            producer = Celery("producer", broker=server.url, set_as_current=False)
            producer.conf.task_default_priority = 5
            producer.send_task("bad.mail", queue="mial")
            producer.send_task("bad.quick", queue="work", countdown=3600)
            with redis.Redis.from_url(server.url) as client:
                for number in range(30):
                    client.rpush(f"{number}.reply.celery.pidbox", "left behind")
            yield found
    finally:
        server.stop()


def test_every_fault_that_was_planted_is_found(bad: Clinic, page: str) -> None:
    """In the app, its workers, its broker and its beats, and the exit code says so; whatever it says, it can fix."""
    options = ("-A", "bad", "--url", page, "--grace-period", "45")

    def all_found() -> bool:
        code, verdict = bad.doctor(*options)
        assert missing(verdict, PLANTED) == {}
        assert set(seen(verdict)) == set(PLANTED)
        assert [one["id"] for one in verdict["not_checked"]] == []
        assert all(finding["fix"] and finding["why"] and finding["link"] for finding in verdict["findings"])
        return code == 1

    eventually(all_found, SLOW)


def bindings(server: str) -> dict[bytes, set[bytes]]:
    with redis.Redis.from_url(server) as client:
        return {key: client.smembers(key) for key in client.keys("_kombu.binding.*")}


def test_workers_tell_most_of_it_without_the_app(bad: Clinic) -> None:
    """What only the app or a monitor knows is said to be unknown; and nothing is left behind on the broker."""
    before = bindings(bad.env["BROKER"])
    of_the_app = {"no-dead-letter", "route-undeclared", "timezone-disagrees", "timezone-unset", "task-unregistered"}
    of_the_page = {"grace-period", "prefetch-long-tasks"}
    # Beat sends the worker something to run every 30 s: whether it does so while the doctor listens is chance.
    of_chance = {"events-off"}
    wanted = {name: "" for name in PLANTED if name not in of_the_app | of_the_page | of_chance}

    def found() -> bool:
        code, verdict = bad.doctor("--broker", bad.env["BROKER"], "--url", "")
        assert set(wanted) <= set(seen(verdict))
        unknown = {one["id"] for one in verdict["not_checked"]} - of_chance
        assert unknown == {"no-dead-letter", "route-undeclared", "timezone-disagrees", "open-pages"} | of_the_page
        return code == 1

    eventually(found, SLOW)
    eventually(lambda: bindings(bad.env["BROKER"]) == before, 30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_breaks_it_off_leaves_nothing_behind(bad: Clinic, number: int) -> None:
    """Neither its subscription nor a reply queue: on Redis nobody would ever clear them away."""
    broker = bad.env["BROKER"]
    eventually(lambda: not ours(broker), 60)
    before = {key for key in bindings(broker) if b"reply" in key}
    argv = [sys.executable, "-m", "celeryscope", "doctor", "--broker", broker, "--url", "", "--listen-for", "300"]
    argv += ["--answer-timeout", "1"]
    doctor = subprocess.Popen(argv, cwd=bad.folder, env={**os.environ, **bad.env}, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: len(ours(broker)) == 1, 120)
        doctor.send_signal(number)
        _, told = doctor.communicate(timeout=120)
    finally:
        doctor.kill()
        doctor.wait(20)
    assert doctor.returncode != 0
    assert "Traceback" not in told
    assert ours(broker) == set()
    assert {key for key in bindings(broker) if b"reply" in key} == before


def ours(server: str) -> set[bytes]:
    """Return our subscriptions to events that are bound; workers have one as well."""
    return {member for member in bindings(server).get(b"_kombu.binding.celeryev", ()) if b"celeryscope" in member}


def test_a_broker_that_is_away_is_one_finding(tmp_path: Path) -> None:
    with clinic(tmp_path, "redis://:hunter2@127.0.0.1:1/0") as gone:
        code, verdict = gone.doctor("-A", "bad", "--url", "")
    assert code == 1
    assert "broker-unreachable" in seen(verdict)
    assert "hunter2" not in json.dumps(verdict)
    assert {"queue-unconsumed", "redis-eviction", "clock-skew"} <= {one["id"] for one in verdict["not_checked"]}


@contextlib.contextmanager
def busy(producer: Celery) -> Iterator[None]:
    """Give the worker something to run, again and again."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.5):
            producer.send_task("bad.quick", queue="work")

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield
    finally:
        ended.set()
        sending.join(60)


def test_on_rabbitmq(rabbit: RabbitServer, tmp_path: Path) -> None:
    """Queues tell their arguments there, and who consumes."""
    planted = {
        "no-dead-letter": "no x-dead-letter-exchange on forgotten, work",
        "priority-steps": "priority 5 is used, and forgotten, work has no x-max-priority",
        "queue-unconsumed": "mial holds 1 message",
        "events-off": "worker_send_task_events is off: bad@rabbit (it ran tasks meanwhile",
    }
    with clinic(tmp_path, rabbit.url) as bad:
        options = ("-n", "bad@rabbit", "-c", "1", "-Q", "work")
        bad.start("worker", worker_argv("bad", *options), " ready.", BAD_WORKER="1")
        producer = Celery("producer", broker=rabbit.url, set_as_current=False)
        producer.send_task("bad.mail", queue="mial")

        def all_found() -> bool:
            with busy(producer):
                code, verdict = bad.doctor("-A", "bad", "--url", "")
            assert missing(verdict, planted) == {}
            assert not {"redis-eviction", "reply-keys", "visibility-timeout"} & set(seen(verdict))
            return code == 1

        eventually(all_found, SLOW)
