"""Events through kombu: the memory transport in process, and a real RabbitMQ with its ways to refuse and to break."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from celeryscope.monitor.broker import BrokerConfig, BrokerError, from_app
from celeryscope.monitor.sources import check
from helpers import RabbitServer, eventually
from kombu import Connection
from sourcing import Sink, Sources, an_app, names, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="sink")
def _sink() -> Sink:
    return Sink()


@pytest.fixture(name="start")
def _start(sink: Sink) -> Iterator[Sources]:
    sources = Sources(sink)
    yield sources
    sources.stop()


def test_any_kombu_transport_will_do(start: Sources, sink: Sink) -> None:
    """kombu's memory transport: no server, the same events."""
    app = an_app("memory://kombu-source", event_exchange="ev-memory")
    start(from_app(app))
    publish(app, names(100))
    eventually(lambda: len(sink.uuids) >= 100)
    assert sink.uuids == names(100)


@pytest.mark.parametrize(("accept", "expected"), [({"json", "yaml"}, ["a", "b"]), ({"json"}, [])])
def test_another_serializer_only_where_allowed(
    start: Sources, sink: Sink, accept: set[str], expected: list[str]
) -> None:
    """--accept-content yaml lets YAML events in; without it they are counted as malformed and nothing is loaded."""
    app = an_app("memory://kombu-yaml", event_exchange=f"ev-{len(accept)}", event_serializer="yaml")
    source = start(from_app(app, accept=accept))
    publish(app, ["a", "b"])
    eventually(lambda: sink.uuids or source.decoder.malformed)
    assert sink.uuids == expected
    assert source.decoder.malformed == ({} if expected else {"content-type": 1})


def queues(rabbit: RabbitServer) -> list[dict[str, Any]]:
    import json
    import urllib.request

    base = rabbit.management_url.replace("guest:guest@", "")
    request = urllib.request.Request(f"{base}/api/queues", headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q="})
    with urllib.request.urlopen(request, timeout=10) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found


@pytest.mark.system
def test_rabbitmq_events_on_an_exclusive_queue(rabbit: RabbitServer, start: Sources, sink: Sink) -> None:
    """Our queue is exclusive (RabbitMQ 4.3 refuses other transient ones), named ours, and goes when we go."""
    app = an_app(rabbit.url)
    source = start(from_app(app))
    publish(app, names(3000))
    eventually(lambda: len(sink.uuids) >= 3000)
    assert sink.uuids == names(3000)
    (queue,) = [queue for queue in queues(rabbit) if queue["name"].startswith("celeryev.celeryscope.")]
    assert queue["exclusive"]
    assert queue["auto_delete"]
    assert queue["arguments"] == {"x-expires": 60000, "x-message-ttl": 5000}
    source.stop()
    eventually(lambda: not [queue for queue in queues(rabbit) if queue["name"].startswith("celeryev.celeryscope.")])


@pytest.mark.system
def test_another_exchange_and_queue_prefix(rabbit: RabbitServer, start: Sources, sink: Sink) -> None:
    """`event_exchange` and `event_queue_prefix` are the app's."""
    app = an_app(rabbit.url, event_exchange="otherev", event_queue_prefix="otherq")
    start(from_app(app))
    publish(an_app(rabbit.url), ["not for us"])
    publish(app, ["for us"])
    eventually(lambda: sink.uuids)
    assert sink.uuids == ["for us"]
    assert [queue for queue in queues(rabbit) if queue["name"].startswith("otherq.celeryscope.")]


@pytest.mark.system
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("guest:guest", "guest:hunter2"), "wrong user name or password"),
        (("guest:guest", "nobody:hunter2"), "wrong user name or password"),
        (("//", "//nix", -1), "no such virtual host"),
        (("amqp://", "amqps://"), "is this a TLS port?"),
        (("amqp://guest:guest@", "redis://"), "does not speak Redis"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_what_rabbitmq_refuses_is_one_clear_line(rabbit: RabbitServer, change: tuple[Any, ...], part: str) -> None:
    """It names the broker, without its password."""
    url = rabbit.url + "nix" if len(change) == 3 else rabbit.url.replace(*change)
    with pytest.raises(BrokerError, match=part) as caught:
        check(BrokerConfig.from_url(url))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.system
def test_a_user_without_permission_to_declare_is_told(rabbit: RabbitServer) -> None:
    """Subscribing needs configure and write on our queue, and read on the exchange."""
    import json
    import urllib.request

    base = rabbit.management_url.replace("guest:guest@", "")
    for path, body in (
        ("users/poor", {"password": "hunter2", "tags": ""}),
        ("permissions/%2F/poor", {"configure": "^$", "write": "^$", "read": "^$"}),
    ):
        request = urllib.request.Request(
            f"{base}/api/{path}",
            method="PUT",
            data=json.dumps(body).encode(),
            headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()
    with pytest.raises(BrokerError, match="no permission") as caught:
        check(BrokerConfig.from_url(rabbit.url.replace("guest:guest", "poor:hunter2")))
    assert "hunter2" not in str(caught.value)


@pytest.mark.system
def test_rabbitmq_that_stops_and_comes_back(
    tmp_path: Path, start: Sources, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """Paused, its missing heartbeats are noticed; each outage is one line down and one up, with its length."""
    server = RabbitServer(tmp_path)
    try:
        with caplog.at_level(logging.WARNING, "celeryscope.sources"):
            source = start(server.url, echo_every=5.0)  # sooner, it would complain before the heartbeats do
            os.killpg(server.process.pid, signal.SIGSTOP)
            eventually(lambda: not source.subscribed, 60)
            os.killpg(server.process.pid, signal.SIGCONT)
            eventually(lambda: source.connected, 60)
            assert sink.states == [True, False, True]
            server.process.kill_group()
            server.process.popen.wait(10)
            eventually(lambda: not source.subscribed)
            server.start()
            eventually(lambda: source.connected, 90)
        publish(an_app(server.url), ["a"])
        eventually(lambda: sink.uuids == ["a"])
        assert source.reconnects == 2
        lines = [record.getMessage() for record in caplog.records]
        assert [("is back after" in line) for line in lines] == [False, True, False, True]
        assert float(lines[1].split()[-2]) > 10  # since the last sign of life, not since it was noticed
    finally:
        server.process.kill_group(signal.SIGCONT)
        server.stop()


@pytest.mark.system
def test_a_closed_connection_is_made_anew(rabbit: RabbitServer, start: Sources, sink: Sink) -> None:
    """An operator closes all connections: as with any cut, the source is back by itself."""
    import urllib.parse
    import urllib.request

    source = start(BrokerConfig.from_url(rabbit.url))
    base = rabbit.management_url.replace("guest:guest@", "")
    headers = {"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q="}

    def closed() -> bool:
        import json

        listing = urllib.request.Request(f"{base}/api/connections", headers=headers)
        with urllib.request.urlopen(listing, timeout=10) as response:
            found = json.load(response)
        for connection in found:
            name = urllib.parse.quote(connection["name"])
            request = urllib.request.Request(f"{base}/api/connections/{name}", method="DELETE", headers=headers)
            urllib.request.urlopen(request, timeout=10).close()
        return source.reconnects >= 1

    # The management API lists a connection some seconds after it was made, and others for a while after they ended.
    eventually(closed, 60, 0.5)
    eventually(lambda: source.connected)
    with Connection(rabbit.url) as connection:
        assert connection.connect()
    publish(an_app(rabbit.url), ["a"])
    eventually(lambda: sink.uuids == ["a"])
