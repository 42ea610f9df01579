"""PostgreSQL gone for a while, stopped or hanging: failures wait on the broker, and each is counted and told once."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alerting import PostgresServer
from celeryscope.demo.inbox import Inbox
from chaos_process_tools import Scraped, Stream, alerter, stored
from helpers import Process, RedisServer, eventually, running
from ordeal import empty

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
SHORT, LONG = 10.0, pytest.param(60.0, marks=pytest.mark.soak)


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Inbox]:
    with Inbox(["general"]).serving() as inbox:
        yield inbox


class Postgres(PostgresServer):
    """One that may go and come back."""

    def start(self) -> None:
        self.process = Process(self.process.argv, log=self.folder / "again.log", cwd=Path("/"))
        self.process.wait_for("ready to accept connections", 30)

    def send_all(self, number: int) -> None:
        """Send a signal to all of its processes: those that serve connections have sessions of their own."""
        for pid in _descendants(self.process.pid):
            os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in _descendants(int(child)))]


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[Postgres]:
    # Not below pytest's folder, which every pytest that starts closes to others again: it has to be entered anew here.
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder))
        yield server
        if server.process.running():
            server.send_all(signal.SIGCONT)
        server.stop()


@pytest.fixture(name="store")
def _store(server: Postgres, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    if not server.process.running():  # a test that failed has left it so
        server.start()
    name = f"of_{abs(hash(request.node.nodeid))}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url.rpartition("/")[0] + f"/{name}"


def oldest(process: Scraped) -> float:
    return process.page().total("celeryscope_alerter_oldest_failure_seconds")


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_stopped_for_a_while(
    seconds: float, redis_server: RedisServer, server: Postgres, store: str, inbox: Inbox, tmp_path: Path
) -> None:
    """The page tells how long failures have been waiting; each line about it comes once each way."""
    stream = Stream(redis_server.url)
    with (
        stream.flowing(),
        running(alerter(tmp_path, redis_server.url, inbox, "--store", store)) as process,
    ):
        eventually(lambda: len(inbox.top()) == stream.kinds)
        server.stop()
        gone = time.monotonic()
        eventually(lambda: oldest(process) > seconds / 2, 4 * seconds)
        eventually(lambda: time.monotonic() - gone > seconds, 2 * seconds)
        assert process.get("/-/healthy")[0] == 200
        server.start()
        eventually(lambda: oldest(process) < seconds / 2, 60)
    judge(process, stream, redis_server, store, inbox, tmp_path)
    assert process.output.count("failures cannot be fetched: the incident store cannot be used") == 1
    assert process.output.count("back after") == 1


@pytest.mark.parametrize("seconds", [SHORT / 2, LONG])
def test_hanging_for_a_while(
    seconds: float, redis_server: RedisServer, server: Postgres, store: str, inbox: Inbox, tmp_path: Path
) -> None:
    """It answers nothing and closes nothing (SIGSTOP): what the alerter holds stays its own, and the rest waits."""
    stream = Stream(redis_server.url)
    arguments = (tmp_path, redis_server.url, inbox, "--store", store)
    with stream.flowing(), running(alerter(*arguments)) as process:
        eventually(lambda: len(inbox.top()) == stream.kinds)
        server.send_all(signal.SIGSTOP)
        gone = time.monotonic()
        eventually(lambda: oldest(process) > seconds / 2, 4 * seconds)
        eventually(lambda: time.monotonic() - gone > seconds, 2 * seconds)
        server.send_all(signal.SIGCONT)
        eventually(lambda: oldest(process) < seconds / 2, 60)
    judge(process, stream, redis_server, store, inbox, tmp_path)


def judge(process: Scraped, stream: Stream, broker: RedisServer, store: str, inbox: Inbox, folder: Path) -> None:
    """Let an alerter finish what is left; nothing was lost and nothing counted or told twice."""
    with running(alerter(folder, broker.url, inbox, "--store", store)) as last:
        eventually(lambda: empty(broker.url), 120)
        eventually(lambda: stream.told_once(inbox), 60)
        assert stored(store) == stream.made
        assert last.stop() == 0
    assert "Traceback" not in process.output + last.output
