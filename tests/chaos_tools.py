"""What tests of faults share: a TCP proxy that does harm, workers that know what they told, a monitor, the account."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from celery import Celery
from celeryscope.exporters.reading import Page
from celeryscope.monitor.broker import BrokerConfig, connect, event_exchange
from helpers import Process, eventually
from kombu import Connection, Producer

PIECE = 4096
QUEUED = 16
"""Pieces that the proxy holds for each direction of a line; beyond it the sender has to wait."""
HEARD = 1 << 18
"""The first bytes of each line that are kept, to see afterwards where it was cut."""


class Proxy:
    """A TCP proxy in a thread of its own; what it does to the lines that go through it may be changed at any time.

    Args:
        port: where the server is, on this machine.
        window: the most that the kernel may take off the server's hands for us, in bytes; the server then notices
            at once how slow we are. 0: as much as it likes.
    """

    def __init__(self, port: int, *, window: int = 0) -> None:
        self.target = port
        self.window = window
        self.rate: float | None = None
        self.delay = 0.0
        self.lines = 0
        self.cut_lines: list[bytes] = []
        self._cut_at: tuple[int, bytes] | None = None
        self._open: set[_Line] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(self._listen())
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def throttle(self, rate: float | None = None, delay: float = 0.0) -> None:
        """Pass `rate` bytes a second on (each line, each way), `delay` seconds after they came."""
        self.rate, self.delay = rate, delay

    def retarget(self, port: int) -> None:
        """Lead new lines to another server, and cut those there are."""
        self.target = port
        self.cut()

    def cut(self) -> None:
        """Cut all lines."""
        self._do(self._cut_all())

    def cut_after(self, count: int, said: bytes = b"PSUBSCRIBE") -> None:
        """Cut, once, a line whose client has said `said`, when the server has said `count` bytes more to it."""
        self._cut_at = (count, said)

    def hold(self, on: bool = True) -> None:
        """Let nothing through and close nothing, as a firewall that drops packets; or let it flow again."""
        self._do(self._hold(on))

    def close(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # Below: on the loop.

    async def _listen(self) -> asyncio.Server:
        self.flowing = asyncio.Event()
        self.flowing.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=PIECE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        sock = socket.socket()
        sock.setblocking(False)
        if self.window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.window)
        try:
            await self._loop.sock_connect(sock, ("127.0.0.1", self.target))
            far_reader, far_writer = await asyncio.open_connection(sock=sock, limit=PIECE)
        except OSError:
            sock.close()
            writer.transport.abort()
            return
        line = _Line(self, (reader, writer), (far_reader, far_writer))
        self.lines += 1
        self._open.add(line)
        try:
            if self._server.is_serving():
                await line.run()
        finally:
            line.cut()
            self._open.discard(line)

    def due_to_cut(self, line: _Line, size: int) -> int | None:
        """Return after how many of the next `size` bytes the line is to be cut, if it is."""
        if self._cut_at is None or self._cut_at[1] not in line.said:
            return None
        left, said = self._cut_at
        if left > size:
            self._cut_at = (left - size, said)
            return None
        self._cut_at = None
        return left

    async def _hold(self, on: bool) -> None:
        self.flowing.clear() if on else self.flowing.set()

    async def _cut_all(self) -> None:
        for line in list(self._open):
            line.cut()

    async def _close(self) -> None:
        self._server.close()
        await self._cut_all()
        self.flowing.set()
        await asyncio.gather(*self._serving)
        await asyncio.sleep(0)  # transports close in the turn after


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, near: Stream, far: Stream) -> None:
        self.proxy = proxy
        self.near, self.far = near, far
        self.said, self.heard = bytearray(), bytearray()
        for _, writer in (near, far):
            writer.transport.set_write_buffer_limits(high=0)

    def cut(self) -> None:
        for _, writer in (self.near, self.far):
            writer.transport.abort()

    async def run(self) -> None:
        pumps = [
            asyncio.ensure_future(work) for work in (self._pump(self.near, self.far), self._pump(self.far, self.near))
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, source: Stream, drain: Stream) -> None:
        """Read pieces in one task and write them in this one, so that a delay does not slow the line down."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
        reading = asyncio.ensure_future(self._read(source[0], pieces, up=drain is self.far))
        try:
            while True:
                came, piece = await pieces.get()
                if not await self._pass(came, piece, drain[1], down=drain is self.near):
                    return
        except OSError:
            return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(
        self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]], *, up: bool
    ) -> None:
        piece = b"?"
        while piece:
            with contextlib.suppress(OSError):
                piece = b""
                piece = await reader.read(PIECE)
            if up and len(self.said) < HEARD:
                self.said += piece
            await pieces.put((time.monotonic(), piece))

    async def _pass(self, came: float, piece: bytes, writer: asyncio.StreamWriter, *, down: bool) -> bool:
        """Pass a piece on; return whether the line goes on."""
        proxy = self.proxy
        if wait := max(0.0, came + proxy.delay - time.monotonic()):
            await asyncio.sleep(wait)
        await proxy.flowing.wait()
        end = proxy.due_to_cut(self, len(piece)) if down else None
        whole = piece
        piece = piece[:end]
        if down:
            self.heard += piece[: HEARD - len(self.heard)]
        writer.write(piece)
        await writer.drain()
        if end is not None:
            proxy.cut_lines.append(bytes(self.heard))
        if proxy.rate and piece:
            await asyncio.sleep(len(piece) / proxy.rate)
        return bool(whole) and end is None


@dataclass
class Member:
    """One synthetic worker: what it has started is what its heartbeats say."""

    name: str
    pid: int
    clock: int = 0
    started: int = 0
    told: int = 0
    """Of those, starts in messages that the broker took from us. It may have taken more: an answer can get lost."""
    uuids: list[str] = field(default_factory=list)


class Fleet:
    """Synthetic workers with honest heartbeats: many times cheaper than real ones, and what they did is known.

    They start tasks whether or not the broker takes their events, as real workers do. Each event is published once at
    most. Broker operations have timeouts of 4 s; while one waits, the fleet does.

    Args:
        url: the broker, any that kombu speaks to.
        size: the number of workers.
        rate: tasks started a second, all workers together.
        beat: seconds between two heartbeats of each.
        padding: characters of arguments in each task, to make its events large.
    """

    TASK = "chaos.task"

    def __init__(
        self, url: str, *, size: int = 3, rate: float = 200.0, beat: float = 0.5, padding: int = 0, **config: Any
    ) -> None:
        self.config = BrokerConfig.from_url(url, **config)
        self.members = [Member(f"w{number}@fleet", 1000 + number) for number in range(size)]
        self.rate, self.beat, self.padding = rate, beat, padding
        self.refused = 0
        self._due = 0.0
        self._working = threading.Event()
        self._ending = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def started(self) -> int:
        return sum(member.started for member in self.members)

    @property
    def uuids(self) -> set[str]:
        return {ident for member in self.members for ident in member.uuids}

    def start(self) -> None:
        """Say `worker-online`, and go on with heartbeats."""
        self._thread.start()

    def work(self) -> None:
        """Start tasks from now on."""
        self._working.set()

    def rest(self) -> None:
        """Start none from now on; heartbeats go on."""
        self._working.clear()

    def run(self, count: int, timeout: float = 60.0) -> None:
        """Work until so many more tasks have been started."""
        goal = self.started + count
        self.work()
        eventually(lambda: self.started >= goal, timeout)

    def stop(self) -> None:
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _run(self) -> None:
        turn = 0.05
        beats = dict.fromkeys((member.name for member in self.members), 0.0)
        online = {member.name for member in self.members}
        while not self._ending.wait(turn):
            if self._working.is_set():
                self._due += self.rate * turn
                share, self._due = int(self._due), self._due % 1
                for number, member in enumerate(self.members):
                    self._tasks(member, share // len(self.members) + (number < share % len(self.members)))
            for member in self.members:
                if time.monotonic() - beats[member.name] < self.beat:
                    continue
                beats[member.name] = time.monotonic()
                kind = "online" if member.name in online else "heartbeat"
                if self._publish(f"worker.{kind}", self._heartbeat(member, kind)):
                    online.discard(member.name)
        if self._connection is not None:
            self._drop()

    def _tasks(self, member: Member, count: int) -> None:
        while count > 0:
            now = min(count, 8)
            count -= now
            events = [event for _ in range(now) for event in self._task(member)]
            member.started += now
            if self._publish("task.multi", events):
                member.told += now

    def _task(self, member: Member) -> list[dict[str, Any]]:
        ident = str(uuid.uuid4())
        member.uuids.append(ident)
        return [
            self._event(member, "task-received", uuid=ident, name=self.TASK, args="x" * self.padding, retries=0),
            self._event(member, "task-started", uuid=ident),
            self._event(member, "task-succeeded", uuid=ident, runtime=0.001, result="None"),
        ]

    def _heartbeat(self, member: Member, kind: str) -> dict[str, Any]:
        return self._event(
            member, f"worker-{kind}", freq=self.beat, active=0, processed=member.started, loadavg=[0.1, 0.1, 0.1],
            sw_ident="py-celery", sw_ver="5.7.0", sw_sys="Linux",
        )  # fmt: skip

    def _event(self, member: Member, kind: str, **fields: Any) -> dict[str, Any]:
        member.clock += 1
        head = {"hostname": member.name, "utcoffset": 0.0, "pid": member.pid, "clock": member.clock}
        return {**head, **fields, "timestamp": time.time(), "type": kind}

    def _publish(self, key: str, body: Any) -> bool:
        try:
            if self._connection is None:
                self._connection = self.config.connection()
                connect(self._connection)
            exchange = event_exchange(self.config, self._connection)
            channel = self._connection.default_channel
            Producer(channel, exchange=exchange, serializer="json", auto_declare=False).publish(
                body, routing_key=key, declare=[exchange], delivery_mode=1, retry=False
            )
        except Exception:  # whatever a transport raises: it was not taken, as far as we know
            self.refused += 1
            self._drop()
            self._ending.wait(0.1)
            return False
        return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.collect(socket_timeout=0.5)


def fetched(url: str) -> tuple[int, str]:
    """Return a page's status and text."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class MonitorProcess(Process):
    """A real `celeryscope monitor`, serving when this returns."""

    def __init__(self, folder: Path, broker: str, *options: str | Path, name: str = "monitor") -> None:
        argv = [sys.executable, "-m", "celeryscope", "monitor", "--broker", broker, "--listen", "127.0.0.1:0"]
        nobodys = dict.fromkeys((key for key in os.environ if key.startswith("CELERY")), "")
        super().__init__([*argv, *map(str, options)], log=folder / f"{name}.log", cwd=folder, env=nobodys)
        try:
            self.wait_for("serves http://")
        except BaseException:
            self.stop()
            raise
        self.url = self.output.split("serves ", 1)[1].split("/metrics", 1)[0]

    @property
    def page(self) -> Page:
        status, text = self.get("/metrics")
        assert status == 200
        return Page(text)

    def get(self, path: str) -> tuple[int, str]:
        return fetched(self.url + path)

    def ready(self) -> bool:
        return self.get("/-/ready")[0] == 200

    def total(self, name: str, **match: str) -> float:
        return self.page.total(name, **match)

    def knows(self, fleet: Fleet) -> bool:
        """Whether it has heard a count of each: what they start from now on can be accounted for."""
        page = self.page
        return all(list(page.samples("celery_worker_processed_total", worker=m.name)) for m in fleet.members)

    def cpu_seconds(self) -> float:
        """Processor time it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of memory it occupies."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Account(NamedTuple):
    """What one page says of task starts, all workers together."""

    seen: int
    missed: int
    untracked: int
    processed: dict[str, int]
    malformed: int

    @classmethod
    def of(cls, page: Page) -> Account:
        return cls(
            int(page.total("celery_task_started_total")),
            int(page.total("celery_worker_starts_missed_total")),
            int(page.total("celery_worker_starts_untracked_total")),
            {worker: int(n) for worker, n in page.by("worker", name="celery_worker_processed_total").items()},
            int(page.total("celeryscope_events_malformed_total")),
        )


class Scraped(Protocol):
    """A monitor, in a process of its own or in the test's."""

    @property
    def page(self) -> Page:
        """What a scrape says."""


def balanced(monitor: Scraped, truth: Callable[[], dict[str, int]], timeout: float = 60.0) -> Account:
    """Wait until seen + missed = really started, worker by worker and in all, and see that it stays so; return it.

    `truth` says what each worker has started, by its node name; nothing is started any more.
    """

    def equal() -> Account:
        account, started = Account.of(monitor.page), truth()
        assert account.processed == started, f"heartbeats told {account.processed} of {started}"
        total = sum(started.values())
        assert account.seen + account.missed == total, f"{account.seen} seen + {account.missed} missed of {total}"
        return account

    eventually(equal, timeout, 0.2)

    def heartbeats() -> float:
        return monitor.page.total("celeryscope_events_total", type="worker-heartbeat")

    goal = heartbeats() + 3 * len(truth())
    eventually(lambda: heartbeats() >= goal, 60, 0.2)
    account = equal()
    assert account.untracked == 0
    assert account.malformed == 0
    return account


def counts(fleet: Fleet) -> Callable[[], dict[str, int]]:
    return lambda: {member.name: member.started for member in fleet.members}


def own_count(app: Celery, least: int = 0) -> Callable[[], dict[str, int]]:
    """Ask the one real worker of `app` what it has started, task by task: not by what its heartbeats say."""

    def ask() -> dict[str, int]:
        answers = app.control.inspect(timeout=10, limit=1).stats() or {}
        started = {worker: sum(stats["total"].values()) for worker, stats in answers.items()}
        assert sum(started.values()) >= least, started
        return started

    return ask
