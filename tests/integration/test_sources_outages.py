"""Every way a connection to a real Valkey can break: what is lost is said, and the source is back by itself."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis
from celeryscope.monitor import redis_source
from helpers import RedisServer, eventually
from sourcing import Sink, Sources, names, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celeryscope.monitor.events import Event

LOGGER = "celeryscope.sources"


@pytest.fixture(name="sink")
def _sink() -> Sink:
    return Sink()


@pytest.fixture(name="start")
def _start(sink: Sink) -> Iterator[Sources]:
    sources = Sources(sink)
    yield sources
    sources.stop()


@pytest.fixture(name="own_server")
def _own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may stop and pause."""
    server = RedisServer(tmp_path, "--unixsocket", str(tmp_path / "r.sock"))
    yield server
    server.process.send(signal.SIGCONT)  # type: ignore[union-attr]
    server.stop()


def test_a_killed_connection_is_made_anew(
    valkey: RedisServer, start: Sources, sink: Sink, caplog: pytest.LogCaptureFixture
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


def test_a_restarted_server_is_found_again(own_server: RedisServer, start: Sources, sink: Sink) -> None:
    """The source waits for it, and the echo proves the new subscription."""
    source = start(own_server.url)
    own_server.stop()
    eventually(lambda: not source.subscribed)
    own_server.start()
    eventually(lambda: source.connected, 60)
    publish(own_server.url, ["a"])
    eventually(lambda: sink.uuids == ["a"])


def test_a_source_may_start_before_its_broker(own_server: RedisServer, start: Sources, sink: Sink) -> None:
    """Of several brokers one may be away at the start."""
    own_server.stop()
    source = start(own_server.url, proven=False)
    eventually(lambda: sink.states == [False])
    own_server.start()
    eventually(lambda: source.connected, 60)
    assert source.reconnects == 0


def test_a_short_pause_of_the_server_loses_nothing(own_server: RedisServer, start: Sources, sink: Sink) -> None:
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
    own_server: RedisServer, start: Sources, sink: Sink, monkeypatch: pytest.MonkeyPatch
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


def test_a_connection_cut_inside_a_frame(valkey: RedisServer, start: Sources, sink: Sink) -> None:
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
    valkey: RedisServer, start: Sources, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full buffer leaves the socket unread, so that the rest waits in Redis; nothing is lost."""
    monkeypatch.setattr(redis_source, "BUFFER", 128 << 10)
    monkeypatch.setattr(redis_source, "READ", 16 << 10)
    monkeypatch.setattr(redis_source, "LOOK", 0.0)
    monkeypatch.setattr(redis_source, "BATCH", 1)  # one slice between two looks: slower than the socket
    sizes: list[int] = []

    class Watched(redis_source.RedisSubscription):
        def take(self) -> list[Event]:
            events = super().take()
            sizes.append(self._size)
            return events

    start(valkey.url, subscribe=Watched)
    sink.gate.clear()
    publish(valkey.url, names(20_000))
    sink.gate.set()
    eventually(lambda: len(sink.uuids) == 20_000)
    assert sink.uuids == names(20_000)
    assert (100 << 10) < max(sizes) <= (128 << 10) + (16 << 10)
    assert sink.states == [True]


def test_a_message_beyond_all_measure_is_not_kept(
    valkey: RedisServer, start: Sources, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame larger than the buffer costs the connection and is counted; the next one goes on."""
    monkeypatch.setattr(redis_source, "BUFFER", 1 << 20)
    source = start(valkey.url)
    with redis.Redis.from_url(valkey.url) as client:
        client.publish("/0.celeryev/task.multi", b"x" * (6 << 20))
    eventually(lambda: source.reconnects == 1)
    eventually(lambda: source.connected)
    publish(valkey.url, ["a"])
    eventually(lambda: sink.uuids == ["a"])
    assert source.decoder.malformed == {"size": 1}
