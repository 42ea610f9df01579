"""What a broker configuration resolves to, and the one line that says why a broker cannot be used."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from celeryscope.monitor.broker import BrokerConfig, BrokerError, connect, from_app, reason
from celeryscope.monitor.sources import check
from helpers import free_port
from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from pathlib import Path


def message(config: BrokerConfig) -> str:
    with pytest.raises(BrokerError) as caught:
        check(config)
    text = str(caught.value)
    assert "\n" not in text
    assert "hunter2" not in text
    return text


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("localhost", "has no scheme"),
        ("foo://host", "No such transport: foo; usual schemes are redis"),
        ("redis://:hunter2@127.0.0.1:{port}/0", "redis://:***@127.0.0.1:{port}/0: Error 111"),
        ("redis://:hunter2@127.0.0.1:{port}/0;redis://127.0.0.1:{port}/1", "Connection refused"),
        (
            "amqp://user:hunter2@127.0.0.1:{port}//",
            "amqp://user:***@127.0.0.1:{port}//: [Errno 111] Connection refused",
        ),
        ("redis://nosuchhost.invalid/0", "nosuchhost.invalid:6379. "),
        ("redis://127.0.0.1:{port}/abc", "Database is int"),
        ("redis://127.0.0.1:port/0", "Port could not be cast"),
        ("redis+socket:///nowhere/redis.sock", "/nowhere/redis.sock. No such file"),
        ("sentinel://127.0.0.1:{port}", "transport option master_name"),
    ],
)
def test_a_broker_that_cannot_be_used_is_one_clear_line(url: str, part: str) -> None:
    """It names the broker with its password masked, and the reason; there is no traceback and no second line."""
    port = free_port()
    text = message(BrokerConfig.from_url(url.format(port=port)))
    assert text.startswith("broker ")
    assert text.count("broker ") == 1
    assert part.format(port=port) in text


def test_a_tls_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The TLS libraries only say that some file is missing."""
    missing = tmp_path / "ca.pem"
    config = BrokerConfig.from_url("rediss://127.0.0.1:1/0", ssl={"ssl_ca_certs": str(missing)}, name="main")
    text = message(config)
    assert text.startswith("broker main (rediss://127.0.0.1:1/0): ")
    assert f"ssl_ca_certs={missing} cannot be read" in text


def test_a_transport_without_its_package_is_told_so() -> None:
    """A missing module is a thing to install, not a traceback."""
    assert "package that is not installed (No module named 'boto')" in reason(ImportError("No module named 'boto'"))


def test_an_unknown_serializer_is_refused_at_the_start() -> None:
    """msgpack and yaml need a package of their own."""
    config = BrokerConfig.from_url("memory://", accept=frozenset({"json", "nix"}))
    assert "accept-content 'nix' is not available" in message(config)


def test_only_the_accepted_serializers_are_loaded() -> None:
    """JSON needs nothing; pickle is there only where it was asked for."""
    assert BrokerConfig.from_url("memory://").loads() == {}
    loads = BrokerConfig.from_url("memory://", accept=frozenset({"json", "pickle"})).loads()
    assert list(loads) == ["application/x-python-serialize"]


def test_the_repr_holds_no_secret() -> None:
    """It may end up in a log."""
    config = BrokerConfig.from_url(
        "redis://:hunter2@h/0", transport_options={"sentinel_kwargs": {"password": "hunter2"}}, ssl={"key": "hunter2"}
    )
    assert "hunter2" not in repr(config)
    assert "hunter2" not in config.label
    assert dataclasses.replace(config, name="eu").label == "broker eu (redis://:***@h/0)"


def test_everything_is_taken_from_an_app() -> None:
    """Broker, TLS, transport options, exchanges and event queue settings; a URL given as well replaces the app's."""
    app = Celery(set_as_current=False)
    app.conf.update(
        broker_url=["redis://a/1", "redis://b/1"],
        broker_use_ssl={"ssl_cert_reqs": "none"},
        broker_transport_options={"global_keyprefix": "team:"},
        event_exchange="myev",
        event_queue_prefix="myq",
        event_queue_ttl=2.0,
        event_queue_expires=9.0,
        control_exchange="myctl",
    )
    config = from_app(app, name="main", accept=["yaml"])
    assert config == BrokerConfig(
        url="redis://a/1;redis://b/1",
        name="main",
        ssl={"ssl_cert_reqs": "none"},
        transport_options={"global_keyprefix": "team:"},
        event_exchange="myev",
        event_queue_prefix="myq",
        event_queue_ttl=2.0,
        event_queue_expires=9.0,
        control_exchange="myctl",
        accept=frozenset({"json", "yaml"}),
    )
    assert from_app(app, url="memory://").url == "memory://"
    assert from_app(Celery(set_as_current=False)).url.startswith("amqp://")


def test_the_users_transport_options_win_over_our_timeouts() -> None:
    """Ours only fill in what is not set: kombu itself would wait for ever."""
    ours = BrokerConfig.from_url("redis://h/0").connection().transport_options
    assert ours["socket_timeout"] == ours["socket_connect_timeout"] == 4.0
    theirs = BrokerConfig.from_url("redis://h/0", transport_options={"socket_timeout": 60}).connection()
    assert theirs.transport_options["socket_timeout"] == 60
    assert "read_timeout" in BrokerConfig.from_url("amqp://h").connection().transport_options


def test_a_broker_in_memory_needs_nothing() -> None:
    """kombu's memory transport connects without a server."""
    connection = BrokerConfig.from_url("memory://").connection()
    connect(connection)
    assert connection.connected
    connection.release()


class ReadOnlyError(Exception):
    """As redis-py's."""


class OutOfMemoryError(Exception):
    """As redis-py's."""


@pytest.mark.parametrize(
    ("error", "part"),
    [(ReadOnlyError, "name its master, or the sentinels, in the URL"), (OutOfMemoryError, "raise its maxmemory")],
)
def test_a_server_that_takes_no_writes_is_told_with_what_to_do(error: type[Exception], part: str) -> None:
    """Redis's own words are for those who run it; whoever set the URL learns what to change."""
    wrapped = OperationalError("it failed")
    wrapped.__cause__ = error("You can't write against a read only replica.")
    assert part in reason(wrapped)
    assert "You can't write" in reason(wrapped)
