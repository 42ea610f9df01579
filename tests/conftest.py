"""Fixtures that every test may use."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from celeryscope.monitor.guard import Guard
from helpers import RabbitServer, RedisServer, system_command
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The same examples every time and no stopwatch: a run on a loaded machine fails for a reason or not at all.
# `--hypothesis-profile=thorough` looks for new ones.
settings.register_profile(
    "everyday", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1_000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("everyday")


def pytest_configure() -> None:
    """Let children end by SIGINT: a shell that starts the tests in the background has all of them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files under tests/golden anew")


@pytest.fixture(autouse=True)
def _guard_reraises(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that the guard would hide in production fails the suite, unless the test is about the guard."""
    monkeypatch.setattr(Guard, "reraise", "guard_swallows" not in request.keywords)


@pytest.fixture(autouse=True)
def _receivers_raise(request: pytest.FixtureRequest) -> Iterator[None]:
    """An error in a receiver of Celery's signals fails the test: Celery only logs it, whatever the guard does."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("celery.utils.dispatch.signal")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if records and "guard_swallows" not in request.keywords:
        formatter = logging.Formatter()
        pytest.fail("\n".join(formatter.format(record) for record in records), pytrace=False)


@pytest.fixture(autouse=True)
def _engines_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test opens of the incident store is closed after it, whatever it was about."""
    store = sys.modules.get("celeryscope.alerts.store")
    engines: list[Any] = []
    if store is not None:
        make = store._engine
        monkeypatch.setattr(store, "_engine", lambda url: engines.append(make(url)) or engines[-1])
    yield
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="session", name="valkey_server")
def _valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture(name="valkey")
def _valkey(valkey_server: RedisServer) -> RedisServer:
    """The embedded Valkey, emptied."""
    import redis

    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server


@pytest.fixture(scope="session", name="debian_redis")
def _debian_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=system_command("redis-server"))
    yield server
    server.stop()


@pytest.fixture(name="redis_server")
def _redis_server(debian_redis: RedisServer) -> RedisServer:
    """Debian's Redis (make integration), emptied."""
    import redis

    with redis.Redis.from_url(debian_redis.url) as client:
        client.flushall()
    return debian_redis


@pytest.fixture(scope="session", name="rabbit_server")
def _rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"), management=True)
    yield server
    server.stop()


@pytest.fixture(name="rabbit")
def _rabbit(rabbit_server: RabbitServer) -> RabbitServer:
    """A RabbitMQ with its management API (make integration), without a queue."""
    import httpx

    with httpx.Client(base_url=rabbit_server.management_url, trust_env=False, timeout=30) as api:
        for queue in api.get("/api/queues/%2F", params={"columns": "name"}).raise_for_status().json():
            api.delete(f"/api/queues/%2F/{quote(queue['name'], safe='')}")
    return rabbit_server
