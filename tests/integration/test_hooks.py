"""Which failures reach the outbox, path by path, from real workers of every pool (the table in docs/failures.md)."""

from __future__ import annotations

import importlib
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import outboxes
import pytest
import redis
from celery import _state, chord
from helpers import Process, RabbitServer, RedisServer, eventually, oldest_python, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = str(Path(__file__).parent)

# The paths that every pool has.
EVERYWHERE = Counter(
    {
        ("boom", "failure"): 2,
        ("no_args", "failure"): 1,
        ("unpicklable", "failure"): 1,
        ("unpicklable_result", "failure"): 1,
        ("hostile", "failure"): 1,
        ("deep", "failure"): 1,
        ("huge", "failure"): 1,
        ("chained", "failure"): 1,
        ("retried", "failure"): 1,
        ("rejects", "rejected"): 1,
        ("silent", "failure"): 1,
        ("own_request", "failure"): 1,
        ("alerting", "failure"): 1,
        ("body", "failure"): 1,
        ("nowhere", "unknown_task"): 1,
        ("fine", "invalid"): 1,
        ("fine", "undecodable"): 1,
        ("unknown", "invalid"): 1,
        ("unknown", "undecodable"): 1,
        ("fence", "failure"): 1,
    }
)
IN_CHILDREN = Counter(
    {
        ("soft", "failure"): 1,
        ("hard", "time_limit"): 1,
        ("killed", "lost"): 1,
        ("exits", "lost"): 1,
        ("lost_twice", "lost"): 1,
        ("clumsy", "failure"): 1,
        ("backend_down", "failure"): 1,
    }
)


@dataclass
class Site:
    """A broker, the app's module, and a worker of one pool."""

    server: RedisServer
    app: Any
    worker: Process
    folder: Path
    pool: str

    def raw(self, body: bytes, headers: dict[str, Any], content_type: str = "application/json") -> None:
        with self.app.app.connection_for_write() as connection:
            connection.Producer().publish(
                body,
                exchange="",
                routing_key="work",
                headers=headers,
                content_type=content_type,
                content_encoding="utf-8",
            )

    def counted(self) -> Counter[tuple[str, str]]:
        return outboxes.counts(self.server.url)


def load_app(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the app afresh: each server needs its own, and Celery keeps the broker it was made with."""
    monkeypatch.setenv("BROKER", url)
    monkeypatch.syspath_prepend(HERE)
    # Else its tasks would be tasks of every app that is made in this process from then on.
    monkeypatch.setattr("celery._state._on_app_finalizers", set(_state._on_app_finalizers))
    sys.modules.pop("failing_app", None)
    module = importlib.import_module("failing_app")
    # Nobody waits for results here; one that is let go after its server has ended would look for that server for 20 s.
    module.app.backend.result_consumer.consume_from = lambda *_: None
    return module


def start_worker(
    server: RedisServer | RabbitServer, folder: Path, *options: str, python: str = sys.executable, **env: str
) -> Process:
    quiet = ("--without-mingle", "--without-gossip", "--without-heartbeat", "-n", f"{folder.name}@test")
    return Process(
        worker_argv("failing_app", "-Q", "work", *quiet, *options, python=python),
        log=folder / "worker.log",
        cwd=folder,
        env={"BROKER": server.url, "PYTHONPATH": HERE, "PYTHONUNBUFFERED": "1", **env},
    )


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def publish_everywhere(site: Site) -> None:
    """Publish every path that all pools have, and some that are no failures."""
    app = site.app
    app.fine.delay()
    app.boom.delay(17, card="4111111111111111")
    app.app.send_task("failing_app.no_args", args=[1, 2])
    for task in ("unpicklable", "unpicklable_result", "hostile", "deep", "huge", "chained", "retried", "rejects"):
        getattr(app, task).delay()
    for task in ("ignores", "expected", "silent", "own_request", "alerting"):
        getattr(app, task).delay()
    app.requeues.delay(str(site.folder / "requeued"))
    app.fine.apply_async(expires=-10)
    app.boom.apply_async((18, "4222"), link_error=app.bad_errback.s())
    chord([app.fine.s()], app.body.s()).delay()
    app.app.send_task("failing_app.nowhere", queue="work")
    site.raw(b'{"task": tru', {})
    site.raw(b'{"no": "task"}', {})
    site.raw(b"[[], {}, {}]", {"task": "failing_app.fine", "id": "forbidden"}, "application/x-yaml")
    site.raw(b"\xff\xfe", {"task": "failing_app.fine", "id": "garbled"})


def publish_in_children(site: Site) -> None:
    """Publish what needs a process that can be killed."""
    app = site.app
    for task in ("soft", "hard", "killed", "exits", "clumsy", "backend_down"):
        getattr(app, task).delay()
    app.lost_twice.delay(str(site.folder / "lost"))
    started = site.folder / "sleeps"
    sleeping = app.sleeps.delay(str(started))
    eventually(started.exists, 60)
    sleeping.revoke(terminate=True, signal="SIGKILL")


def expect(site: Site, wanted: Counter[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Wait until the outbox holds `wanted` and nothing else, and does so after one more failure; return samples."""
    site.app.fence.delay(1)

    def complete() -> bool:
        assert site.counted() == wanted
        return True

    eventually(complete, 90, 0.2)
    site.app.fence.delay(2)
    wanted = wanted + Counter({("fence", "failure"): 1})
    eventually(complete, 30, 0.2)
    return outboxes.samples(site.server.url)


def check_samples(samples: dict[str, dict[str, Any]]) -> None:
    boom = samples["boom"]
    assert boom["exception"] == "failing_app.CardError"
    assert boom["message"] == "card declined for order 17, password=***"
    assert boom["frame"] == "failing_app:boom"
    assert boom["traceback"].endswith("failing_app.CardError: card declined for order 17, password=***")
    assert (boom["args"], boom.get("kwargs")) == ({"order": "17"}, None)
    assert (boom["queue"], boom["environment"], boom["release"]) == ("work", "test", "1.2.3")
    assert boom["settings"] == {"channel": "#payments", "severity": "critical"}
    assert boom["worker"].endswith("@test")
    assert 0 < boom["times"]["started"] <= boom["times"]["failed"]
    assert (boom["retries"], boom["gave_up"]) == (0, False)
    if samples["retried"]["kind"] == "failure":
        assert (samples["retried"]["retries"], samples["retried"]["gave_up"]) == (2, True)
    assert (samples["unpicklable"]["exception"], samples["unpicklable"]["frame"]) == (
        "Stubborn",
        "failing_app:unpicklable",
    )
    assert samples["chained"]["exception"] == "failing_app.CardError"
    assert samples["deep"]["frame"] == "failing_app:deep"
    assert "frame" not in samples["no_args"]
    assert samples["huge"]["message"].startswith("xxx")
    assert "str() failed" in samples["hostile"]["message"] or "unprintable" in samples["hostile"]["message"]
    assert samples["nowhere"]["exception"] == "celery.exceptions.NotRegistered"


def check_in_children(samples: dict[str, dict[str, Any]]) -> None:
    assert samples["lost_twice"]["requeued"] is True
    assert "requeued" not in samples["killed"]
    assert samples["hard"]["message"] == "the hard time limit of 1 s was exceeded"
    assert samples["backend_down"]["frame"].startswith("failing_app:")


def prefork(server: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    app = load_app(server.url, monkeypatch)
    with running(start_worker(server, folder, "-P", "prefork", "-c", "2", python=python)) as worker:
        worker.wait_for("ready.", 60)
        site = Site(server, app, worker, folder, "prefork")
        publish_everywhere(site)
        publish_in_children(site)
        samples = expect(site, EVERYWHERE + IN_CHILDREN)
        check_samples(samples)
        check_in_children(samples)
        assert "celeryscope has no setting 'colour'" in worker.output
        assert "OWN-REQUEST failing_app.own_request" in worker.output
        assert app.boom.AsyncResult(samples["boom"]["uuid"]).state == "FAILURE"
        # MemoryError ends a worker: what it had to say leaves all the same.
        app.memory.delay()
        eventually(lambda: not worker.running(), 60)
        assert site.counted()["memory", "failure"] == 1


def test_prefork(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path of the prefork pool is reported exactly as often as the table says."""
    prefork(server, tmp_path, monkeypatch, sys.executable)


@pytest.mark.system
def test_prefork_of_the_oldest_celery(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with Celery 5.4, whose signals differ."""
    prefork(server, tmp_path, monkeypatch, oldest_python())


def test_threads(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread pool, Celery's own failures come as `internal`: there is no child to hide them."""
    app = load_app(server.url, monkeypatch)
    with running(start_worker(server, tmp_path, "-P", "threads", "-c", "2", REPORT_THROWS="1")) as worker:
        worker.wait_for("ready.", 60)
        site = Site(server, app, worker, tmp_path, "threads")
        publish_everywhere(site)
        app.clumsy.delay()
        app.backend_down.delay()
        internal = {("clumsy", "internal"): 1, ("backend_down", "internal"): 1, ("expected", "failure"): 1}
        check_samples(expect(site, EVERYWHERE + Counter(internal)))


def test_solo(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the solo pool, too; retries are reported where that is asked for."""
    app = load_app(server.url, monkeypatch)
    with running(start_worker(server, tmp_path, "-P", "solo", REPORT_RETRIES="1")) as worker:
        worker.wait_for("ready.", 60)
        site = Site(server, app, worker, tmp_path, "solo")
        publish_everywhere(site)
        check_samples(expect(site, EVERYWHERE + Counter({("retried", "retry"): 2})))
        retry = next(e["sample"] for e in outboxes.entries(server.url) if e["sample"]["kind"] == "retry")
        assert (retry["exception"], retry["frame"]) == ("failing_app.CardError", "failing_app:retried")


def test_gevent(server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gevent's patches the outbox's thread is a greenlet; a hard limit is told by `on_timeout` alone."""
    app = load_app(server.url, monkeypatch)
    with running(start_worker(server, tmp_path, "-P", "gevent", "-c", "20")) as worker:
        worker.wait_for("ready.", 60)
        site = Site(server, app, worker, tmp_path, "gevent")
        publish_everywhere(site)
        app.hard.delay()
        check_samples(expect(site, EVERYWHERE + Counter({("hard", "time_limit"): 1})))


def test_a_broker_that_hangs_holds_nobody_up(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks fail as ever, children are recycled and the worker ends, while its broker says nothing."""
    folder = tmp_path / "away"
    folder.mkdir()
    away = RedisServer(folder)
    assert away.process is not None
    away.process.send(signal.SIGSTOP)
    app = load_app(server.url, monkeypatch)
    options = ("-P", "prefork", "-c", "2", "--max-tasks-per-child", "1")
    with running(start_worker(server, tmp_path, *options, OUTBOX=away.url)) as worker:
        worker.wait_for("ready.", 60)
        results = [app.boom.delay(number, "4111") for number in range(2)]
        eventually(lambda: [r.state for r in results] == ["FAILURE"] * 2, 60, 0.2)
        worker.send(signal.SIGTERM)
        eventually(lambda: not worker.running(), 60)
        assert worker.popen.returncode == 0
    away.process.kill_group()  # a stopped process does not hear a polite signal
    away.stop()


def test_an_outage_of_the_broker_loses_no_failure(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails while the outbox's broker is down is counted, and told when it is back."""
    folder = tmp_path / "away"
    folder.mkdir()
    away = RedisServer(folder)
    away.stop()
    app = load_app(server.url, monkeypatch)
    with running(start_worker(server, tmp_path, "-P", "threads", "-c", "2", OUTBOX=away.url)) as worker:
        worker.wait_for("ready.", 60)
        results = [app.boom.delay(number, "4111") for number in range(50)]
        eventually(lambda: all(r.state == "FAILURE" for r in results), 60, 0.2)
        away.start()

        def told() -> bool:
            try:
                return outboxes.counts(away.url)["boom", "failure"] == 50
            except redis.ConnectionError:  # not up yet
                return False

        eventually(told, 60, 0.2)
    away.stop()


@pytest.mark.system
def test_rabbitmq(rabbit: RabbitServer, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AMQP, too, where queue and exchange have names of their own and messages are confirmed."""
    monkeypatch.setenv("BACKEND", server.url)
    app = load_app(rabbit.url, monkeypatch)
    with running(start_worker(rabbit, tmp_path, "-P", "prefork", "-c", "2", BACKEND=server.url)) as worker:
        worker.wait_for("ready.", 60)
        app.boom.delay(17, "4111")
        for task in ("hard", "rejects", "ignores", "killed", "fine"):
            getattr(app, task).delay()
        app.lost_twice.delay(str(tmp_path / "lost"))
        app.app.send_task("failing_app.nowhere", queue="work")
        found: dict[str, dict[str, Any]] = {}

        def complete() -> bool:
            for entry in outboxes.fetched(app.app):
                found[entry["sample"]["task"].rpartition(".")[2]] = entry
            return set(found) == {"boom", "hard", "rejects", "killed", "lost_twice", "nowhere"}

        eventually(complete, 60, 0.2)
        assert {entry["count"] for entry in found.values()} == {1}
        assert {entry["sample"]["queue"] for entry in found.values()} == {"work"}
        assert found["lost_twice"]["sample"]["requeued"] is True
