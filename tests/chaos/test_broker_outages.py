"""The broker restarted, paused, failed over, under load: what was started is what is reported, seen or missed."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from chaos_tools import Fleet, MonitorProcess, balanced, counts, own_count
from helpers import Process, RabbitServer, RedisServer, eventually, free_port, running, worker_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = Path(__file__).resolve().parent.parent / "apps"
RECONNECTS = "celeryscope_reconnects_total"
PROCESSED = "celery_worker_processed_total"


def own_server(folder: Path, name: str, *options: str) -> RedisServer:
    (folder / name).mkdir()
    return RedisServer(folder / name, *options)


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may stop and pause."""
    server = own_server(tmp_path, "server")
    yield server
    server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
    server.stop()


@contextlib.contextmanager
def fleet_of(monitor: MonitorProcess, url: str, **options: Any) -> Iterator[Fleet]:
    """Synthetic workers, known to the monitor."""
    fleet = Fleet(url, **options)
    fleet.start()
    try:
        eventually(lambda: monitor.ready() and monitor.knows(fleet), 60)
        yield fleet
    finally:
        fleet.stop()


def quiet(monitor: MonitorProcess, outages: int) -> None:
    """Nothing was raised, and each outage cost two lines: down, and back."""
    assert "Traceback" not in monitor.output
    lines = [line for line in monitor.output.splitlines() if " WARNING sources: " in line]
    assert len([line for line in lines if "trying again until it answers" in line]) == outages, monitor.output
    assert len([line for line in lines if " is back after " in line]) == outages, monitor.output


def test_restarted_under_load(server: RedisServer, tmp_path: Path) -> None:
    """Three restarts: what was started while nobody could tell is missed, to the task."""
    with running(MonitorProcess(tmp_path, server.url)) as monitor, fleet_of(monitor, server.url) as fleet:
        for number in range(1, 4):
            fleet.run(100)
            server.stop()
            fleet.run(20)
            server.start()
            eventually(lambda number=number: monitor.total(RECONNECTS) == number, 60)
            eventually(monitor.ready, 60)
        fleet.run(100)
        fleet.rest()
        account = balanced(monitor, counts(fleet))
        assert account.missed >= 60
        assert account.seen >= 200
        quiet(monitor, outages=3)


def test_restarted_under_load_with_real_workers(server: RedisServer, tmp_path: Path) -> None:
    """What the worker itself says that it started is what was seen of it and what is missed."""
    (tmp_path / "truth").touch()
    # The server comes back empty: there is nothing to put back into it, and kombu may end the worker by trying to.
    env = {"BROKER": server.url, "TRUTH": str(tmp_path / "truth"), "PYTHONPATH": str(APPS), "RESTORE": "no"}
    argv = worker_argv("exactly", "-c", "2", "-n", "w@again", "-Q", "default")

    def flood(name: str) -> Process:
        return Process(
            [sys.executable, "-m", "exactly", "flood", "300"], log=tmp_path / f"{name}.log", cwd=tmp_path, env=env
        )

    with (
        running(MonitorProcess(tmp_path, server.url)) as monitor,
        running(Process(argv, log=tmp_path / "worker.log", cwd=tmp_path, env=env)),
        Celery(broker=server.url, set_as_current=False) as app,
    ):
        eventually(lambda: monitor.ready() and list(monitor.page.samples(PROCESSED)), 60)
        with running(flood("first")):
            eventually(lambda: monitor.total("celery_task_started_total") > 50, 60)
            server.stop()
        server.start()  # empty: it kept nothing on disk, so tasks were lost, and only those that started count
        eventually(lambda: monitor.total(RECONNECTS) == 1 and monitor.ready(), 60)
        before = monitor.total("celery_task_started_total")
        with running(flood("second")) as producer:
            eventually(lambda: producer.popen.poll() == 0, 60)
            eventually(lambda: monitor.total("celery_task_started_total") > before, 60)
            with redis.Redis.from_url(server.url) as client:
                eventually(lambda: client.llen("default") == 0, 60)
        account = balanced(monitor, own_count(app, 300))
        assert account.seen >= 300
        quiet(monitor, outages=1)
        print(account)


@pytest.mark.system
def test_rabbitmq_restarted_under_load(tmp_path: Path) -> None:
    """The same on RabbitMQ, killed and started again."""
    server = RabbitServer(tmp_path)
    try:
        with running(MonitorProcess(tmp_path, server.url)) as monitor, fleet_of(monitor, server.url) as fleet:
            fleet.run(200)
            server.stop()
            fleet.run(20)
            server.start()
            eventually(lambda: monitor.total(RECONNECTS) == 1 and monitor.ready(), 90)
            fleet.run(200)
            fleet.rest()
            account = balanced(monitor, counts(fleet))
            assert account.missed >= 20
            assert account.seen >= 300
            quiet(monitor, outages=1)
    finally:
        server.stop()


@pytest.mark.parametrize("seconds", [0.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_paused_under_load(server: RedisServer, tmp_path: Path, seconds: float) -> None:
    """A broker that says nothing and closes nothing: not ready, not connected, no storm of attempts, then back."""
    with running(MonitorProcess(tmp_path, server.url)) as monitor, fleet_of(monitor, server.url) as fleet:
        fleet.run(100)
        server.process.send(signal.SIGSTOP)  # type: ignore[union-attr]
        stopped = time.monotonic()
        eventually(lambda: monitor.get("/-/ready")[0] == 503, 60)
        assert monitor.total("celeryscope_connected") == 0
        assert monitor.get("/-/healthy")[0] == 200
        eventually(lambda: time.monotonic() - stopped > seconds, 60)
        server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
        eventually(monitor.ready, 60)
        assert monitor.total("celeryscope_connected") == 1
        fleet.run(100)
        fleet.rest()
        account = balanced(monitor, counts(fleet))
        assert account.missed > 0
        # A pause that ends before 20 s of silence need not be an outage; one of 30 s is.
        assert int(seconds > 20) <= monitor.total(RECONNECTS) <= 1
        quiet(monitor, outages=int(monitor.total(RECONNECTS)))
        with redis.Redis.from_url(server.url) as client:
            assert client.info()["total_connections_received"] < 60
        print(f"paused for {seconds or time.monotonic() - stopped:.0f} s: {account}")


def test_failed_over_to_the_next_address(server: RedisServer, tmp_path: Path) -> None:
    """redis://a;redis://b: with a gone all go to b; nothing says that b is another server but what is missed."""
    other = own_server(tmp_path, "other")
    urls = f"{server.url};{other.url}"
    try:
        with running(MonitorProcess(tmp_path, urls)) as monitor, fleet_of(monitor, urls) as fleet:
            fleet.run(100)
            seen = monitor.total("celery_task_started_total")
            server.stop()
            fleet.run(20)
            eventually(lambda: monitor.total(RECONNECTS) == 1 and monitor.ready(), 60)
            fleet.run(100)
            eventually(lambda: monitor.total("celery_task_started_total") > seen, 60)
            fleet.rest()
            account = balanced(monitor, counts(fleet))
            assert account.seen >= 100
            quiet(monitor, outages=1)
            print(account)
    finally:
        other.stop()


PROJECT = """
from celery import Celery
app = Celery("proj", broker={url!r})
app.conf.broker_transport_options = {options!r}
"""


@contextlib.contextmanager
def sentinel_of(master: RedisServer, folder: Path) -> Iterator[int]:
    """A sentinel that watches `master` and decides alone; its port."""
    folder.mkdir()
    settings = ("down-after-milliseconds main 3000", "failover-timeout main 3000", "parallel-syncs main 1")
    for _ in range(5):
        port = free_port()
        conf = folder / f"sentinel-{port}.conf"
        lines = [f"sentinel monitor main 127.0.0.1 {master.port} 1", *(f"sentinel {line}" for line in settings)]
        conf.write_text("\n".join(lines))
        argv = [master.binary, conf, "--sentinel", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        process = Process(argv, log=folder / f"sentinel-{port}.log")
        try:
            process.wait_for("monitor master main", 10)
        except RuntimeError:  # somebody else took the port
            continue
        with running(process):
            yield port
        return
    raise AssertionError("no sentinel")


@pytest.mark.parametrize("back", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_failed_over_by_sentinel(server: RedisServer, tmp_path: Path, back: bool) -> None:
    """The master is killed, its replica takes over at another address; then (`back`) it is turned round by hand."""
    replica = own_server(tmp_path, "replica", "--replicaof", "127.0.0.1", str(server.port))
    options = {"master_name": "main"}
    try:
        with sentinel_of(server, tmp_path / "sentinel") as port:
            url = f"sentinel://127.0.0.1:{port}/0"
            (tmp_path / "proj.py").write_text(PROJECT.format(url=url, options=options))
            sentinel = redis.Redis(port=port, decode_responses=True)

            def master() -> int:
                return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])

            eventually(lambda: "slave" in str(sentinel.execute_command("SENTINEL", "REPLICAS", "main")), 30)
            with (
                running(MonitorProcess(tmp_path, url, "-A", "proj")) as monitor,
                fleet_of(monitor, url, transport_options=options) as fleet,
            ):
                fleet.run(100)
                server.stop()
                eventually(lambda: master() == replica.port, 60)
                eventually(lambda: monitor.total(RECONNECTS) >= 1 and monitor.ready(), 60)
                fleet.run(100)
                if back:
                    server.start()
                    eventually(lambda: turned_round(sentinel), 60)
                    eventually(lambda: master() == server.port, 60)
                    eventually(lambda: monitor.total(RECONNECTS) >= 2 and monitor.ready(), 60)
                    fleet.run(100)
                fleet.rest()
                account = balanced(monitor, counts(fleet))
                assert account.missed > 0
                assert "Traceback" not in monitor.output
                print(account, int(monitor.total(RECONNECTS)), "reconnects")
            sentinel.close()
    finally:
        replica.stop()


def turned_round(sentinel: redis.Redis) -> bool:
    """Whether the sentinel agrees to change the master; it does once it has seen the old one as a good replica."""
    try:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "main"))
    except redis.ResponseError:
        return False
