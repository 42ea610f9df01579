"""Events from a real Valkey: every way kombu can be set up to publish them, and every way a connection can break."""

from __future__ import annotations

import contextlib
import logging
import signal
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import redis
import trustme
from celery import Celery
from celeryscope.monitor.broker import BrokerConfig, BrokerError
from celeryscope.monitor.echo import EventsEnabler
from celeryscope.monitor.sources import check
from helpers import Process, RedisServer, eventually, free_port, system_command, worker_argv
from sourcing import Sink, Sources, an_app, names, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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
    valkey: RedisServer, start: Sources, sink: Sink, options: dict[str, Any], db: int
) -> None:
    """What Celery publishes with the same transport options arrives, once, in order; nothing stays in the database."""
    url = valkey.url.replace("/0", f"/{db}")
    start(BrokerConfig.from_url(url, transport_options=options))
    publish(an_app(url, broker_transport_options=options), names(30))
    eventually(lambda: len(sink.uuids) >= 30)
    assert sink.uuids == names(30)
    with redis.Redis.from_url(url) as client:
        assert client.keys() == []


def test_another_event_exchange(valkey: RedisServer, start: Sources, sink: Sink) -> None:
    """`event_exchange` is part of the channel's name."""
    start(BrokerConfig.from_url(valkey.url, event_exchange="others"))
    publish(valkey.url, ["not for us"])
    publish(an_app(valkey.url, event_exchange="others"), ["for us"])
    eventually(lambda: sink.uuids)
    assert sink.uuids == ["for us"]


def test_another_database_is_not_heard(valkey: RedisServer, start: Sources, sink: Sink) -> None:
    """The pattern is the one database's, although pub/sub itself knows none."""
    start(valkey.url)
    publish(valkey.url.replace("/0", "/5"), ["elsewhere"])
    publish(valkey.url, ["here"])
    eventually(lambda: sink.uuids)
    assert sink.uuids == ["here"]


def test_over_a_unix_socket(own_server: RedisServer, start: Sources, sink: Sink) -> None:
    """redis+socket:// is resolved by kombu, with its database in the query."""
    start(f"redis+socket://{own_server.folder}/r.sock?virtual_host=2")
    publish(own_server.url.replace("/0", "/2"), ["a"])
    eventually(lambda: sink.uuids == ["a"])


def test_through_sentinel(own_server: RedisServer, start: Sources, sink: Sink, tmp_path: Path) -> None:
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


def test_with_least_privileges(valkey: RedisServer, start: Sources, sink: Sink, users: Callable[..., str]) -> None:
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
    start: Sources, sink: Sink, users: Callable[..., str], valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Events still come, and are counted; the monitor does not call itself connected."""
    url = users("allchannels", "+@all", "-publish")
    with caplog.at_level(logging.WARNING):
        source = start(url, proven=False)
        eventually(lambda: source.subscribed)  # what is published before that nobody hears
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
    with pytest.raises(BrokerError, match=r"no answer (within 5 s|in time)"):
        check(BrokerConfig.from_url(own_server.url))


@pytest.mark.system
def test_over_tls(tmp_path: Path, start: Sources, sink: Sink) -> None:
    """rediss:// with a CA and a client certificate, a burst included; a CA of others is named as what is wrong."""
    ca, others = trustme.CA(), trustme.CA()
    cert = ca.issue_cert("127.0.0.1", "localhost")
    paths = {name: str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem", "others.pem")}
    ca.cert_pem.write_to_path(paths["ca.pem"])
    others.cert_pem.write_to_path(paths["others.pem"])
    cert.cert_chain_pems[0].write_to_path(paths["cert.pem"])
    cert.private_key_pem.write_to_path(paths["key.pem"])
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", paths["cert.pem"], "--tls-key-file", paths["key.pem"]]
    server = RedisServer(
        tmp_path, *options, "--tls-ca-cert-file", paths["ca.pem"], binary=system_command("redis-server")
    )
    try:
        tls = {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_ca_certs": paths["ca.pem"],
            "ssl_certfile": paths["cert.pem"],
            "ssl_keyfile": paths["key.pem"],
        }
        url = f"rediss://127.0.0.1:{port}/2"
        start(BrokerConfig.from_url(url, ssl=tls))
        publish(server.url.replace("/0", "/2"), names(5000))
        eventually(lambda: len(sink.uuids) >= 5000)
        assert sink.uuids == names(5000)
        with pytest.raises(BrokerError, match="certificate is not trusted"):
            check(BrokerConfig.from_url(url, ssl={**tls, "ssl_ca_certs": paths["others.pem"]}))
        with pytest.raises(BrokerError, match="is TLS on, or off"):
            check(BrokerConfig.from_url(server.url.replace("redis://", "rediss://"), ssl=tls))
    finally:
        server.stop()


APP = """
from celery import Celery
app = Celery("proj", broker={url!r})
app.conf.broker_connection_retry_on_startup = True

@app.task
def add(x, y):
    return x + y
"""


def test_a_real_worker_is_switched_on_and_heard(
    own_server: RedisServer, start: Sources, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
