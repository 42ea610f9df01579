"""How messages are taken from the outbox: by kombu, and on Redis by a script of our own that loses none (edge).

kombu takes messages off a Redis list with BRPOP and notes them as unacknowledged in a second step: a consumer that is
killed between the two loses what it was just given (seen: one in a few kills). Here one script does both. It also
leaves the user's unacknowledged tasks alone, which kombu's consumer sweeps with its own visibility timeout.
"""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import redis
from kombu import Connection, Consumer
from kombu.message import Message

from . import failure
from .batches import LARGEST, RejectedError
from .publisher import outbox_queue

VISIBILITY = 60.0
"""Seconds after which a message that was taken and not acknowledged is given to somebody else."""
KEPT = 64 * 1024
"""Bytes of a message that is too large to read, for those who look into it."""
LINGER = 0.02
_NOT_FOUND, _PRECONDITION_FAILED = 404, 406


class Received(NamedTuple):
    """A message: its body, or (`problem`) why there is none, and what names it to the feed."""

    body: bytes
    handle: Any
    problem: RejectedError | None = None


class Feed(Protocol):
    """One connection's way to the outbox."""

    waiting: int | None
    """Messages on the broker when it was last asked; None: not known."""

    def take(self, limit: int, wait: Callable[[float], object]) -> list[Received]:
        """Return messages, after a short `wait` if there are none; they are ours until acknowledged."""
        ...

    def ack(self, received: Sequence[Received]) -> None:
        """Be done with messages."""
        ...

    def measure(self) -> None:
        """Bring `waiting` up to date."""
        ...

    def close(self) -> None:
        """Give back what was not acknowledged."""
        ...


def feed(connection: Connection, prefetch: int) -> Feed:
    """Return the feed for a broker that one is connected to; the queue is made where there is none."""
    if connection.transport.driver_type == "redis":
        return RedisFeed(connection)
    return KombuFeed(connection, prefetch)


class KombuFeed:
    """By a kombu consumer, on whatever broker."""

    def __init__(self, connection: Connection, prefetch: int) -> None:
        self.waiting: int | None = None
        self._connection = connection
        self._messages: list[Message] = []
        consumer = Consumer(
            self._declared(), [outbox_queue()], on_message=self._messages.append, auto_declare=False, no_ack=False
        )
        consumer.qos(prefetch_count=prefetch)
        consumer.consume()

    def _declared(self) -> Any:
        channel = self._connection.channel()
        try:
            outbox_queue()(channel).declare()
        except self._connection.channel_errors as problem:
            if getattr(problem, "reply_code", None) != _PRECONDITION_FAILED:
                raise
            # Another version of ours, or a policy, gave it other arguments: it will do.
            channel = self._connection.channel()
        return channel

    def take(self, limit: int, wait: Callable[[float], object]) -> list[Received]:  # noqa: ARG002 - it waits by itself
        """Wait for a message, and a moment for more."""
        self._drain(0.5)
        while self._messages and len(self._messages) < limit and self._drain(LINGER):
            pass
        taken, self._messages[:] = list(self._messages), []
        return [Received(_bytes(message.body), message) for message in taken]

    def _drain(self, timeout: float) -> bool:
        before = len(self._messages)
        try:
            self._connection.drain_events(timeout=timeout)
        except TimeoutError:
            self._connection.heartbeat_check()
        return len(self._messages) > before

    def ack(self, received: Sequence[Received]) -> None:
        """Acknowledge each."""
        for message in received:
            message.handle.ack()

    def measure(self) -> None:
        """Ask the broker for the queue's size; raises where it has expired, and then it must be made anew."""
        with self._connection.channel() as channel:
            declared: Any = outbox_queue()(channel).queue_declare(passive=True)
            self.waiting = int(declared.message_count)

    def close(self) -> None:
        """The connection's end gives back what was not acknowledged."""


# Out of memory, Redis refuses RPUSH to a script that has not written before; and who else would make room? So something
# is deleted first, but no tag: where RPUSH is refused for another reason, the message must keep its place.
_BACK = """
local function back(tag)
  local message = redis.call('HGET', KEYS[2], tag)
  redis.call('HDEL', KEYS[2], '')
  if message then redis.call('RPUSH', KEYS[1], message) end
  redis.call('HDEL', KEYS[2], tag)
  redis.call('ZREM', KEYS[3], tag)
end
"""
_TAKE = (
    _BACK
    + """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[2], 'LIMIT', 0, 100)) do
  back(tag)
end
local taken = {}
for number = 1, ARGV[1] do
  local message = redis.call('RPOP', KEYS[1])
  if not message then break end
  local tag = ARGV[3] .. number
  redis.call('HSET', KEYS[2], tag, message)
  redis.call('ZADD', KEYS[3], now, tag)
  local size = #message
  if size > tonumber(ARGV[4]) then message = string.sub(message, 1, ARGV[5]) end
  taken[number] = {tag, size, message}
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[3], ARGV[6])
return {redis.call('LLEN', KEYS[1]), taken}
"""
)
_GIVE_BACK = (
    _BACK
    + """
for _, tag in ipairs(ARGV) do
  back(tag)
end
"""
)


class _Properties(msgspec.Struct):
    body_encoding: str | None = None


class _Envelope(msgspec.Struct):
    """What kombu wraps a message into on Redis."""

    body: str
    properties: _Properties = msgspec.field(default_factory=_Properties)


_envelope = msgspec.json.Decoder(_Envelope)


class RedisFeed:
    """Off the list by a script, into `celeryscope.unacked` in the same step."""

    def __init__(self, connection: Connection) -> None:
        self.waiting: int | None = None
        channel: Any = connection.channel()
        prefix = channel.global_keyprefix or ""
        # On the same server with the same TLS and sentinels, but without kombu's client, which adds the prefix to
        # some commands only.
        self._client = redis.Redis(connection_pool=channel.pool)
        names = (failure.QUEUE, "celeryscope.unacked", "celeryscope.unacked_index")
        self._keys = [prefix + name for name in names]
        self._take = self._client.register_script(_TAKE)
        self._give_back = self._client.register_script(_GIVE_BACK)
        self._ours: set[bytes] = set()

    def take(self, limit: int, wait: Callable[[float], object]) -> list[Received]:
        """Take what there is; look again a moment later if that is nothing."""
        # In kombu's envelope the body is base64.
        largest = LARGEST * 3 // 2
        arguments: list[str | int | float] = [
            limit,
            VISIBILITY,
            uuid.uuid4().hex + "-",
            largest,
            KEPT,
            failure.QUEUE_SECONDS,
        ]
        left, taken = self._take(keys=self._keys, args=arguments)
        self.waiting = left + len(taken)
        self._ours.update(tag for tag, _, _ in taken)
        if not taken:
            wait(0.5)
        return [_unwrapped(tag, size, message) for tag, size, message in taken]

    def ack(self, received: Sequence[Received]) -> None:
        """Forget them, in one step."""
        tags = [message.handle for message in received]
        with self._client.pipeline() as pipe:
            pipe.hdel(self._keys[1], *tags)
            pipe.zrem(self._keys[2], *tags)
            pipe.execute()
        self._ours.difference_update(tags)

    def measure(self) -> None:
        """Every `take` tells."""

    def close(self) -> None:
        """Give back what was not acknowledged; where that fails, it comes back by itself after `VISIBILITY`."""
        if self._ours:
            with contextlib.suppress(redis.RedisError, OSError):
                self._give_back(keys=self._keys, args=list(self._ours))


def _unwrapped(tag: bytes, size: int, message: bytes) -> Received:
    if size > len(message):
        return Received(message, tag, RejectedError("size", f"{size} bytes, at most {LARGEST} are read"))
    try:
        envelope = _envelope.decode(message)
        if envelope.properties.body_encoding == "base64":
            return Received(base64.b64decode(envelope.body, validate=True), tag)
        return Received(envelope.body.encode("utf-8", "replace"), tag)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return Received(message, tag, RejectedError("envelope", f"no message of kombu's: {str(error)[:200]}"))


def _bytes(body: Any) -> bytes:
    return body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body or b"")
