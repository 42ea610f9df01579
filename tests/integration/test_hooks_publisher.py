"""The failures' queue on real brokers: one message comes out as it went in, and the queue stays within its caps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from celeryscope.alerts import failure, publisher
from celeryscope.alerts.outbox import UnsupportedError
from celeryscope.alerts.publisher import QueuePublisher, outbox_queue
from helpers import free_port

if TYPE_CHECKING:
    from helpers import RabbitServer, RedisServer


def app_on(url: str, **transport_options: Any) -> Celery:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.broker_transport_options = transport_options
    return app


def fetch(app: Celery) -> tuple[bytes, dict[str, Any], str]:
    """Take one message as the alerter does."""
    with app.connection_for_read() as connection:
        message = outbox_queue()(connection.default_channel).get(accept=["json"])
        assert message is not None
        message.ack()
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        return body, message.properties, message.content_type


def test_redis(valkey: RedisServer) -> None:
    """A message arrives unchanged, and the list expires in a week."""
    app = app_on(valkey.url)
    sender = QueuePublisher(app)
    assert sender.publish('{"v":1,"é":2}'.encode(), "abc") == 0
    with redis.Redis.from_url(valkey.url) as client:
        assert 0 < client.ttl(failure.QUEUE) <= failure.QUEUE_SECONDS
    body, properties, kind = fetch(app)
    assert (body, properties["message_id"], kind) == ('{"v":1,"é":2}'.encode(), "abc", "application/json")
    sender.close()


def test_redis_with_a_key_prefix(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's `global_keyprefix` holds for the queue, its expiry and its cap."""
    monkeypatch.setattr(failure, "QUEUE_MESSAGES", 3)
    sender = QueuePublisher(app_on(valkey.url, global_keyprefix="site:"))
    dropped = sum(sender.publish(b"{}", str(number)) for number in range(5))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.keys() == [b"site:" + failure.QUEUE.encode()]
        assert client.llen("site:" + failure.QUEUE) == 3
        assert client.ttl("site:" + failure.QUEUE) > 0
    assert dropped == 2
    sender.close()


def test_redis_drops_the_oldest(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "QUEUE_MESSAGES", 2)
    app = app_on(valkey.url)
    sender = QueuePublisher(app)
    assert [sender.publish(b"{}", str(number)) for number in range(4)] == [0, 0, 1, 1]
    assert [fetch(app)[1]["message_id"] for _ in range(2)] == ["2", "3"]
    sender.close()


@pytest.mark.parametrize("prefix", ["", "site:"])
def test_an_old_redis_drops_the_oldest_too(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """RPOP takes a count from Redis 6.2 on; before, the list would grow for as long as nobody reads it."""
    rpop = redis.Redis.rpop

    def one_at_a_time(client: redis.Redis, name: str, count: int | None = None) -> Any:
        if count is not None:
            raise redis.ResponseError("wrong number of arguments for 'rpop' command")
        return rpop(client, name)

    monkeypatch.setattr(redis.Redis, "rpop", one_at_a_time)
    monkeypatch.setattr(failure, "QUEUE_MESSAGES", 5)
    sender = QueuePublisher(app_on(valkey.url, global_keyprefix=prefix))
    assert sum(sender.publish(b"{}", str(number)) for number in range(5)) == 0
    monkeypatch.setattr(failure, "QUEUE_MESSAGES", 2)
    assert [sender.publish(b"{}", str(number)) for number in range(5, 7)] == [4, 1]
    with redis.Redis.from_url(valkey.url) as client:
        assert client.llen(prefix + failure.QUEUE) == 2
    sender.close()


def test_redis_is_capped_in_bytes(valkey: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large messages are dropped as well as many small ones."""
    monkeypatch.setattr(failure, "QUEUE_BYTES", 100_000)
    monkeypatch.setattr(publisher, "MEASURE_EVERY", 2)
    sender = QueuePublisher(app_on(valkey.url))
    dropped = sum(sender.publish(b'"' + b"x" * 20_000 + b'"', str(number)) for number in range(31))
    with redis.Redis.from_url(valkey.url) as client:
        kept = client.llen(failure.QUEUE)
    assert 1 <= kept < 10
    assert kept + dropped == 31
    sender.close()


def test_a_user_who_may_not_measure_still_sends(valkey: RedisServer) -> None:
    """Access rules that forbid MEMORY and EXPIRE cost the caps, never a message or a copy of it."""
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "&*", "+@all", "-memory", "-expire")
        sender = QueuePublisher(app_on(valkey.url.replace("redis://", "redis://narrow:pw@")))
        assert sender.publish(b"{}", "abc") == 0
        assert client.llen(failure.QUEUE) == 1
        sender.close()
        client.execute_command("ACL", "DELUSER", "narrow")


def test_a_lost_connection_is_an_error_and_the_next_one_works(valkey: RedisServer) -> None:
    """The outbox retries; the publisher only has to say that it failed, and to start anew after `close`."""
    sender = QueuePublisher(app_on(valkey.url))
    sender.publish(b"{}", "1")
    sender.close()
    sender.publish(b"{}", "2")
    with redis.Redis.from_url(valkey.url) as client:
        assert client.llen(failure.QUEUE) == 2
    sender.close()


def test_a_refused_broker_raises() -> None:
    sender = QueuePublisher(app_on(f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(Exception, match="refused"):
        sender.publish(b"{}", "1")
    sender.close()


def test_the_memory_transport() -> None:
    """Any kombu transport will do."""
    app = app_on("memory://")
    sender = QueuePublisher(app)
    sender.publish(b'{"v":1}', "abc")
    assert fetch(app)[0] == b'{"v":1}'
    sender.close()


@pytest.mark.system
def test_rabbitmq(rabbit: RabbitServer) -> None:
    """Durable, confirmed, and declared alike by both sides."""
    app = app_on(rabbit.url)
    sender = QueuePublisher(app)
    sender.publish(b'{"v":1}', "abc")
    sender._declare()  # as every hour
    sender.publish(b'{"v":2}', "def")
    body, properties, _ = fetch(app)
    assert (body, properties["message_id"], properties["delivery_mode"]) == (b'{"v":1}', "abc", 2)
    assert fetch(app)[0] == b'{"v":2}'
    sender.close()


@pytest.mark.system
def test_rabbitmq_with_a_queue_declared_otherwise(rabbit: RabbitServer) -> None:
    """Another version's queue, or an administrator's, is used as it is."""
    app = app_on(rabbit.url)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_delete(failure.QUEUE)
        channel.queue_declare(failure.QUEUE, durable=True, auto_delete=False)
        sender = QueuePublisher(app)
        sender.publish(b'{"v":1}', "abc")
        message = channel.basic_get(failure.QUEUE, no_ack=True)
        assert message.body in (b'{"v":1}', '{"v":1}')
        channel.queue_delete(failure.QUEUE)
        sender.close()


def test_sqs_without_our_queue_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where queues cannot be made, reporting is off, and the reason names the setting."""
    app = app_on("memory://", predefined_queues={"celery": {"url": "https://sqs.example/1/celery"}})
    monkeypatch.setattr("kombu.transport.memory.Transport.driver_type", "sqs")
    with pytest.raises(UnsupportedError, match="predefined_queues"):
        QueuePublisher(app)
