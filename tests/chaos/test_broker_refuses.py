"""A Redis that answers and refuses: out of memory, or read-only. Nobody is hurt, and no number is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from alerting import alerter_process, batch, entry, failure, publish, told
from celery import Celery
from celeryscope.alerts.failure import OTHER, QUEUE
from celeryscope.alerts.outbox import Outbox
from celeryscope.alerts.publisher import QueuePublisher
from celeryscope.demo.inbox import Inbox
from chaos_tools import Fleet, MonitorProcess, balanced, counts, own_count
from helpers import Process, RedisServer, eventually, running, worker_argv
from outboxes import batches, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS = Path(__file__).resolve().parent.parent / "apps"
WAITS = "failures wait, the broker does not take them"
FLOWS = "failures flow again"


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "server").mkdir()
    server = RedisServer(tmp_path / "server")
    yield server
    server.stop()


@pytest.fixture(name="client")
def _client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    inbox.start()
    yield inbox
    inbox.stop()


def fill(client: redis.Redis) -> None:
    """Let the server have no memory left: every command that could take more of it is refused."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    with pytest.raises(redis.exceptions.OutOfMemoryError, match="command not allowed"):
        client.set("more", "x")


def follow(client: redis.Redis, master: RedisServer) -> None:
    """Make the server a read-only replica."""
    client.replicaof("127.0.0.1", master.port)
    eventually(lambda: client.info("replication")["master_link_status"] == "up", 30)
    with pytest.raises(redis.exceptions.ReadOnlyError):
        client.set("more", "x")


class Gated:
    """A real worker that holds `count` tasks, each of another kind, until the gate opens; then all of them fail."""

    def __init__(self, folder: Path, server: RedisServer, count: int) -> None:
        self.count = count
        self.gate, self.truth = folder / "gate", folder / "truth"
        self.truth.touch()
        self.url = server.url
        env = {"BROKER": server.url, "GATE": str(self.gate), "TRUTH": str(self.truth), "PYTHONPATH": str(APPS)}
        env["KINDS"] = str(count)
        argv = worker_argv("gated", "-c", "2", "-n", "w@gated", "-Q", "gated")
        self.worker = Process(argv, log=folder / "worker.log", cwd=folder, env=env)

    def fill(self, monitor: MonitorProcess) -> None:
        """Send the tasks, and wait until the worker has them all."""
        self.worker.wait_for("ready.", 60)
        with Celery(broker=self.url, set_as_current=False) as app, app.connection_for_write() as connection:
            for kind in range(self.count):
                app.send_task(f"gated.task{kind}", queue="gated", connection=connection)
        eventually(lambda: monitor.total("celery_task_received_total") == self.count, 60)

    def ran(self) -> int:
        return len(self.truth.read_text().splitlines())


@pytest.mark.parametrize("kinds", [100, pytest.param(1_200, marks=pytest.mark.soak)])
def test_out_of_memory_costs_the_worker_and_the_monitor_nothing(
    server: RedisServer, client: redis.Redis, tmp_path: Path, kinds: int
) -> None:
    """Tasks fail as they would, the monitor sees each, and the outbox sends all it counted once there is room.

    It keeps 1 000 kinds and counts the rest together: a worker's memory is bounded, and no failure is lost.
    """
    gated = Gated(tmp_path, server, kinds)
    with (
        running(MonitorProcess(tmp_path, server.url)) as monitor,
        running(gated.worker),
        Celery(broker=server.url, set_as_current=False) as app,
    ):
        gated.fill(monitor)
        eventually(lambda: list(monitor.page.samples("celery_worker_processed_total")), 60)
        fill(client)
        echoes = monitor.total("celeryscope_events_total", type="celeryscope-echo")
        gated.gate.touch()
        eventually(lambda: monitor.total("celery_task_failed_total") == gated.count, 60)
        gated.worker.wait_for(WAITS)
        assert gated.ran() == gated.count
        eventually(lambda: monitor.total("celeryscope_events_total", type="celeryscope-echo") >= echoes + 2, 30)
        assert monitor.ready()
        assert monitor.total("celeryscope_reconnects_total") == 0
        assert client.llen(QUEUE) == 0
        client.config_set("maxmemory", "0")
        gated.worker.wait_for(FLOWS, 60)
        eventually(lambda: sum(found["count"] for found in entries(server.url)) == gated.count, 60)
        found = entries(server.url)
        others = [sample["count"] for sample in found if sample["sample"]["task"] == OTHER]
        # Up to a hundred were in the message that it kept trying to send, and not among the thousand.
        assert max(0, kinds - 1_100) <= sum(others) <= max(0, kinds - 1_000)
        assert sum(message["dropped"] for message in batches(server.url)) == 0
        account = balanced(monitor, own_count(app, gated.count))
        assert (account.seen, account.missed) == (gated.count, 0)
        assert gated.worker.running()
        assert gated.worker.output.count(WAITS) == 1
        for process in (monitor, gated.worker):
            assert "celeryscope/" not in tracebacks(process)


def tracebacks(process: Process) -> str:
    """What a process printed in tracebacks, without those of the tasks themselves, which are raised by them."""
    return "\n".join(line for line in process.output.splitlines() if line.startswith('  File "'))


def test_the_alerter_empties_a_full_broker(
    server: RedisServer, client: redis.Redis, inbox: Inbox, tmp_path: Path
) -> None:
    """It is who makes room: out of memory, it takes what waits and what a killed one had left, and tells of it."""
    publish(server.url, [batch(entry("f1", 7, task="shop.charge")), batch(entry("f2", 5, task="shop.refund"))])
    # One message was taken by an alerter that died over a minute ago.
    lost = client.rpop(QUEUE)
    client.hset("celeryscope.unacked", "gone-1", lost)
    client.zadd("celeryscope.unacked_index", {"gone-1": 1.0})
    fill(client)
    with running(alerter_process(tmp_path, server.url, inbox)) as alerter:
        eventually(lambda: sorted(map(told, inbox.top())) == [5, 7], 60)
        eventually(lambda: client.llen(QUEUE) == client.hlen("celeryscope.unacked") == 0, 60)
        assert "Traceback" not in alerter.output
        assert "cannot be fetched" not in alerter.output


def test_a_read_only_replica_is_as_good_as_its_master(server: RedisServer, tmp_path: Path) -> None:
    """Redis passes on to replicas what is published on the master: only workers cannot be asked, and that is said."""
    (tmp_path / "replica").mkdir()
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port))
    fleet = Fleet(server.url)
    try:
        with redis.Redis.from_url(replica.url) as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up", 30)
        with running(MonitorProcess(tmp_path, replica.url)) as monitor:
            fleet.start()
            eventually(lambda: monitor.ready() and monitor.knows(fleet), 60)
            monitor.wait_for("workers cannot be asked for their queues and slots: it is a read-only replica; name its")
            fleet.run(300)
            fleet.rest()
            account = balanced(monitor, counts(fleet))
            assert account.missed == 0
            assert monitor.total("celeryscope_collector_success", collector="queues") == 1
            assert monitor.output.count(" WARNING ") == 1
    finally:
        fleet.stop()
        replica.stop()


def test_the_master_becomes_a_replica_and_a_master_again(
    server: RedisServer, client: redis.Redis, inbox: Inbox, tmp_path: Path
) -> None:
    """Monitor, alerter and the workers' outbox go on; who must write says so once, and tells all once it may."""
    (tmp_path / "other").mkdir()
    other = RedisServer(tmp_path / "other")
    app = Celery("shop", broker=server.url, set_as_current=False)
    outbox = Outbox(lambda: QueuePublisher(app), host=lambda: "w@h", finish=lambda sample: sample)
    fleet = Fleet(server.url)
    refusal = "failures cannot be fetched: it is a read-only replica; name its master"
    try:
        with (
            running(MonitorProcess(tmp_path, server.url)) as monitor,
            running(alerter_process(tmp_path, server.url, inbox)) as alerter,
        ):
            fleet.start()
            eventually(lambda: monitor.ready() and monitor.knows(fleet), 60)
            fleet.run(100)
            follow(client, other)
            client.config_resetstat()
            for number in range(500):
                outbox.add(f"f{number % 5}", time.time(), lambda n=number: failure(task=f"shop.task{n % 5}"))
            alerter.wait_for(refusal)
            fleet.run(100)
            eventually(lambda: refused(client, "lpush") >= 3, 30)
            client.replicaof("NO", "ONE")
            eventually(lambda: sorted(map(told, inbox.top())) == [100] * 5, 90)
            fleet.rest()
            account = balanced(monitor, counts(fleet))
            assert account.missed == 0
            assert monitor.total("celeryscope_reconnects_total") == 0
            assert alerter.output.count("cannot be fetched") == alerter.output.count(": back after ") == 1
            assert "Traceback" not in alerter.output + monitor.output
            # Pauses that grow, and not as fast as they can.
            assert refused(client, "lpush") < 20
            assert refused(client, "evalsha") < 20
    finally:
        fleet.stop()
        other.stop()
        app.close()


def refused(client: redis.Redis, command: str) -> int:
    """How often the server has refused a command since it was last asked to forget."""
    found = client.info("commandstats").get(f"cmdstat_{command}", {})
    return int(found.get("rejected_calls", 0)) + int(found.get("failed_calls", 0))
