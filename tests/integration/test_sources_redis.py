"""Events from a real Valkey: every way kombu can be set up to publish them, and every way a connection can break."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from celeryscope.monitor import redis_source
from celeryscope.monitor.broker import BrokerConfig, BrokerError
from celeryscope.monitor.echo import EventsEnabler
from celeryscope.monitor.events import Event, TaskEvent
from celeryscope.monitor.sources import Source, check
from helpers import Process, RedisServer, eventually, worker_argv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Source]

LOGGER = "celeryscope.sources"


class Sink:
    """Keeps the uuids of task events and the types of the others."""

    def __init__(self) -> None:
        self.uuids: list[str] = []
        self.types: set[str] = set()
        self.states: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()

    def feed(self, events: list[Event], now: float) -> None:
        self.gate.wait(60)
        self.types.update(event.type for event in events)
        self.uuids += [event.uuid for event in events if isinstance(event, TaskEvent)]

    def tick(self, now: float) -> None:
        pass

    def connection(self, up: bool, now: float) -> None:
        self.states.append(up)


@pytest.fixture(name="sink")
def _sink() -> Sink:
    return Sink()


@pytest.fixture(name="start")
def _start(sink: Sink) -> Iterator[Start]:
    """Start a source and wait until its echo came back."""
    sources: list[Source] = []

    def start(config: BrokerConfig | str, *, proven: bool = True, **options: Any) -> Source:
        config = BrokerConfig.from_url(config) if isinstance(config, str) else config
        source = Source(config, sink, **{"echo_every": 0.2, **options})
        sources.append(source)
        source.start()
        if proven:
            eventually(lambda: source.connected)
        return source

    yield start
    sink.gate.set()
    for source in sources:
        source.stop()
        eventually(lambda source=source: not any(t.is_alive() for t in source._threads))


@pytest.fixture(name="own_server")
def _own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may stop and pause."""
    server = RedisServer(tmp_path, "--unixsocket", str(tmp_path / "r.sock"))
    yield server
    server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
    server.stop()


def publish(url: str, uuids: list[str], options: dict[str, Any] | None = None, **conf: Any) -> None:
    """Send task events as a worker does: Celery's own dispatcher, in batches on task.multi."""
    app = Celery(broker=url, set_as_current=False)
    app.conf.update(broker_transport_options=options or {}, **conf)
    with app.connection_for_write() as connection, app.events.Dispatcher(connection, buffer_group={"task"}) as sender:
        for uuid in uuids:
            sender.send("task-started", uuid=uuid)
        sender.flush()


def names(count: int, start: int = 0) -> list[str]:
    return [f"id-{number}" for number in range(start, start + count)]


@pytest.mark.parametrize("db", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_keyprefix": "team:"},
        {"global_keyprefix": "te[a]m*?\\:"},
        {"fanout_prefix": False},
        {"fanout_prefix": "/mine."},
        {"fanout_prefix": "/{db}.x."},
        {"fanout_patterns": False},
        {"fanout_patterns": False, "fanout_prefix": False, "global_keyprefix": "p-"},
    ],
    ids=repr,
)
def test_every_way_to_name_the_channels(
    valkey: RedisServer, start: Start, sink: Sink, options: dict[str, Any], db: int
) -> None:
    """What Celery publishes with the same transport options arrives, once, in order; nothing stays in the database."""
    url = valkey.url.replace("/0", f"/{db}")
    start(BrokerConfig.from_url(url, transport_options=options))
    publish(url, names(30), options)
    eventually(lambda: len(sink.uuids) >= 30)
    assert sink.uuids == names(30)
    with redis.Redis.from_url(url) as client:
        assert client.keys() == []


def test_another_event_exchange(valkey: RedisServer, start: Start, sink: Sink) -> None:
    """`event_exchange` is part of the channel's name."""
    start(BrokerConfig.from_url(valkey.url, event_exchange="others"))
    publish(valkey.url, ["not for us"])
    publish(valkey.url, ["for us"], event_exchange="others")
    eventually(lambda: sink.uuids)
    assert sink.uuids == ["for us"]


def test_another_database_is_not_heard(valkey: RedisServer, start: Start, sink: Sink) -> None:
    """The pattern is the one database's, although pub/sub itself knows none."""
    start(valkey.url)
    publish(valkey.url.replace("/0", "/5"), ["elsewhere"])
    publish(valkey.url, ["here"])
    eventually(lambda: sink.uuids)
    assert sink.uuids == ["here"]


def test_over_a_unix_socket(own_server: RedisServer, start: Start, sink: Sink) -> None:
    """redis+socket:// is resolved by kombu, with its database in the query."""
    start(f"redis+socket://{own_server.folder}/r.sock?virtual_host=2")
    publish(own_server.url.replace("/0", "/2"), ["a"])
    eventually(lambda: sink.uuids == ["a"])


def test_through_sentinel(own_server: RedisServer, start: Start, sink: Sink, tmp_path: Path) -> None:
    """sentinel:// with its master_name, as in the app's transport options."""
    folder = tmp_path / "sentinel"
    folder.mkdir()
    conf = folder / "sentinel.conf"
    conf.write_text(f"sentinel monitor main 127.0.0.1 {own_server.port} 1\n")
    sentinel = RedisServer.__new__(RedisServer)
    sentinel.folder, sentinel.options, sentinel.binary = folder, (), own_server.binary
    port = _sentinel_port(sentinel, conf)
    try:
        options = {"master_name": "main"}
        start(BrokerConfig.from_url(f"sentinel://127.0.0.1:{port}/4", transport_options=options))
        publish(own_server.url.replace("/0", "/4"), ["a"])
        eventually(lambda: sink.uuids == ["a"])
        with pytest.raises(BrokerError, match="nobody"):
            check(BrokerConfig.from_url(f"sentinel://127.0.0.1:{port}", transport_options={"master_name": "nobody"}))
    finally:
        sentinel.stop()


def _sentinel_port(sentinel: RedisServer, conf: Path) -> int:
    from helpers import free_port

    for _ in range(5):
        port = free_port()
        sentinel.process = Process(
            [sentinel.binary, conf, "--sentinel", "--port", str(port), "--bind", "127.0.0.1"],
            log=sentinel.folder / f"sentinel-{port}.log",
        )
        with contextlib.suppress(RuntimeError):
            sentinel.process.wait_for("monitor master main", 10)
            return port
    raise AssertionError("no sentinel")


@pytest.fixture(name="users")
def _users(valkey: RedisServer) -> Iterator[Callable[..., str]]:
    """Make a user with the ACL rules given; return the URL to log in as that user."""
    made: list[str] = []

    def user(*rules: str) -> str:
        name = f"user{len(made)}"
        made.append(name)
        with redis.Redis.from_url(valkey.url) as client:
            client.execute_command("ACL", "SETUSER", name, "reset", "on", ">hunter2", *rules)
        return valkey.url.replace("redis://", f"redis://{name}:hunter2@")

    yield user
    with redis.Redis.from_url(valkey.url) as client:
        for name in made:
            client.execute_command("ACL", "DELUSER", name)


def test_with_least_privileges(valkey: RedisServer, start: Start, sink: Sink, users: Callable[..., str]) -> None:
    """This is the ACL line for events in the documentation: no key, one channel pattern, a handful of commands."""
    url = users("resetchannels", "&/0.celeryev/*", "+psubscribe", "+publish", "+ping", "+select", "+client|setinfo")
    check(BrokerConfig.from_url(url))
    start(url)
    publish(valkey.url, ["a"])
    eventually(lambda: sink.uuids == ["a"])


def test_a_channel_that_may_not_be_read_is_an_error(users: Callable[..., str]) -> None:
    """A subscription that Redis refuses must not look like silence."""
    url = users("resetchannels", "&other*", "+@all")
    with pytest.raises(BrokerError, match="lacks a permission: NOPERM") as caught:
        check(BrokerConfig.from_url(url))
    assert "hunter2" not in str(caught.value)


def test_an_echo_that_may_not_be_published_is_said_once(
    start: Start, sink: Sink, users: Callable[..., str], valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Events still come, and are counted; the monitor does not call itself connected."""
    url = users("allchannels", "+@all", "-publish")
    with caplog.at_level(logging.WARNING):
        source = start(url, proven=False)
        publish(valkey.url, ["a"])
        eventually(lambda: sink.uuids == ["a"])
        eventually(lambda: caplog.records)
        assert source.publish_failure
    assert source.subscribed
    assert not source.connected
    (record,) = caplog.records
    assert "cannot publish the monitor's own event" in record.getMessage()
    assert "no permissions to run the 'publish' command" in record.getMessage()


@pytest.mark.parametrize("credentials", ["", ":wrong@", "nobody:hunter2@"])
def test_wrong_credentials_are_named(tmp_path: Path, credentials: str) -> None:
    """None at all, a wrong password, an unknown user: one line that says so."""
    server = RedisServer(tmp_path, "--requirepass", "right")
    try:
        check(BrokerConfig.from_url(server.url.replace("redis://", "redis://:right@")))
        with pytest.raises(BrokerError, match="wrong user name or password"):
            check(BrokerConfig.from_url(server.url.replace("redis://", f"redis://{credentials}")))
    finally:
        server.stop()


def test_a_database_that_does_not_exist_is_named(valkey: RedisServer) -> None:
    """Redis has 16 unless told otherwise."""
    with pytest.raises(BrokerError, match="index is out of range"):
        check(BrokerConfig.from_url(valkey.url.replace("/0", "/4711")))


def test_a_server_that_does_not_answer_is_named(own_server: RedisServer) -> None:
    """A paused server accepts connections and says nothing: the check ends all the same."""
    own_server.process.send(signal.SIGSTOP)  # type: ignore[union-attr]
    with pytest.raises(BrokerError, match="no answer within 5 s"):
        check(BrokerConfig.from_url(own_server.url))


def test_a_killed_connection_is_made_anew(
    valkey: RedisServer, start: Start, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """CLIENT KILL in the middle of a stream: one outage down, one up, one reconnect, and events go on."""
    source = start(valkey.url)
    with caplog.at_level(logging.WARNING), redis.Redis.from_url(valkey.url) as client:
        publish(valkey.url, names(500))
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        eventually(lambda: source.reconnects == 1)
        publish(valkey.url, names(500, 500))
        eventually(lambda: sink.uuids[-1:] == ["id-999"])
    assert sink.uuids[-500:] == names(500, 500)
    assert len(set(sink.uuids)) == len(sink.uuids)
    assert sink.states == [True, False, True]
    assert len([record for record in caplog.records if record.name == LOGGER]) == 2


def test_a_restarted_server_is_found_again(own_server: RedisServer, start: Start, sink: Sink) -> None:
    """The source waits for it, and the echo proves the new subscription."""
    source = start(own_server.url)
    own_server.stop()
    eventually(lambda: not source.subscribed)
    own_server.start()
    eventually(lambda: source.connected, 60)
    publish(own_server.url, ["a"])
    eventually(lambda: sink.uuids == ["a"])


def test_a_source_may_start_before_its_broker(own_server: RedisServer, start: Start, sink: Sink) -> None:
    """Of several brokers one may be away at the start."""
    own_server.stop()
    source = start(own_server.url, proven=False)
    eventually(lambda: sink.states == [False])
    own_server.start()
    eventually(lambda: source.connected, 60)
    assert source.reconnects == 0


def test_a_short_pause_of_the_server_loses_nothing(own_server: RedisServer, start: Start, sink: Sink) -> None:
    """A server stopped for seconds (a snapshot, a migration) is waited for: same connection, no outage."""
    source = start(own_server.url)
    publish(own_server.url, ["before"])
    eventually(lambda: sink.uuids)
    own_server.process.send(signal.SIGSTOP)  # type: ignore[union-attr]
    began = time.time()
    eventually(lambda: time.time() - began > 2)
    own_server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
    publish(own_server.url, ["after"])
    eventually(lambda: sink.uuids == ["before", "after"])
    eventually(lambda: source.connected)
    assert sink.states == [True]


def test_a_dead_peer_is_noticed(
    own_server: RedisServer, start: Start, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte and no answer to PING: TCP alone would never tell."""
    monkeypatch.setattr(redis_source, "SILENCE", 2.0)
    monkeypatch.setattr(redis_source, "PING_AFTER", 0.2)
    source = start(own_server.url, echo_every=3600)
    began = time.time()
    eventually(lambda: time.time() - began > 3)
    assert sink.states == [True]  # PING is answered
    own_server.process.send(signal.SIGSTOP)  # type: ignore[union-attr]
    eventually(lambda: not source.subscribed)
    own_server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
    eventually(lambda: source.subscribed, 60)
    assert sink.states == [True, False, True]


class Proxy:
    """A TCP proxy that passes the server's bytes on in odd pieces, and cuts the line after `cut` of them, once."""

    def __init__(self, port: int, piece: int, cut: int) -> None:
        self.target, self.piece, self.cut = port, piece, cut
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, drain: socket.socket, cutting: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(self.piece if cutting else 65536):
                drain.sendall(data)
                passed += len(data)
                if cutting and self.cut and passed > self.cut:
                    self.cut = 0
                    break
        for sock in (source, drain):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_a_connection_cut_inside_a_frame(valkey: RedisServer, start: Start, sink: Sink) -> None:
    """What was whole before the cut counts, the torn rest is dropped, and the next connection starts clean."""
    proxy = Proxy(valkey.port, piece=37, cut=20_011)
    try:
        source = start(f"redis://127.0.0.1:{proxy.port}/0")
        publish(valkey.url, names(400))
        eventually(lambda: source.reconnects == 1)
        eventually(lambda: source.connected)
        publish(valkey.url, ["last"])
        eventually(lambda: sink.uuids[-1:] == ["last"])
        before = sink.uuids[:-1]
        assert before == names(len(before))
        assert 0 < len(before) < 400
        assert not source.decoder.malformed
    finally:
        proxy.close()


def test_a_slow_sink_does_not_grow_the_buffer(
    valkey: RedisServer, start: Start, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full buffer leaves the socket unread, so that the rest waits in Redis; nothing is lost."""
    monkeypatch.setattr(redis_source, "BUFFER", 128 << 10)
    monkeypatch.setattr(redis_source, "READ", 16 << 10)
    monkeypatch.setattr(redis_source, "WORK", 0.0)  # one slice a turn: slower than the socket
    sizes: list[int] = []

    class Watched(redis_source.RedisSubscription):
        def take(self, deliver: redis_source.Deliver) -> None:
            super().take(deliver)
            sizes.append(self._size)

    start(valkey.url, subscribe=Watched)
    sink.gate.clear()
    publish(valkey.url, names(20_000))
    sink.gate.set()
    eventually(lambda: len(sink.uuids) == 20_000)
    assert sink.uuids == names(20_000)
    assert (100 << 10) < max(sizes) <= (128 << 10) + (16 << 10)
    assert sink.states == [True]


APP = """
from celery import Celery
app = Celery("proj", broker={url!r})
app.conf.broker_connection_retry_on_startup = True

@app.task
def add(x, y):
    return x + y
"""


def test_a_real_worker_is_switched_on_and_heard(
    own_server: RedisServer, start: Start, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--enable-events reaches a worker that came later and was started without -E, although it says worker-online
    before it listens to broadcasts; no reply key is left behind."""
    monkeypatch.setattr(EventsEnabler, "at_most", 2.0)
    source = start(own_server.url, enable_events=True)
    (tmp_path / "proj.py").write_text(APP.format(url=own_server.url))
    worker = Process(
        worker_argv("proj", "--pool", "solo", "--without-mingle"), log=tmp_path / "worker.log", cwd=tmp_path
    )
    try:
        eventually(lambda: "worker-online" in sink.types, 60)
        app = Celery(broker=own_server.url, set_as_current=False)
        eventually(lambda: bool(app.send_task("proj.add", (1, 2)).id) and "task-succeeded" in sink.types, 60, 0.5)
        eventually(lambda: "worker-heartbeat" in sink.types)
    finally:
        worker.stop()
    eventually(lambda: "worker-offline" in sink.types)
    assert {"task-received", "task-started"} <= sink.types
    assert not source.decoder.malformed
    assert source.decoder.other == 0
    with redis.Redis.from_url(own_server.url, decode_responses=True) as client:
        assert client.keys("*reply*") == []
