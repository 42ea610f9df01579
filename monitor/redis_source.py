"""Events from Redis and Valkey: kombu and redis-py connect, then pub/sub frames are read straight from the socket."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis

from .broker import CONNECT_TIMEOUT, BrokerConfig, BrokerSilentError, connect

if TYPE_CHECKING:
    from .events import Decoder, Event

BUFFER = 16 << 20
"""Bytes kept for decoding before the socket is left unread; Redis then buffers as much again before it cuts us off."""
READ = 256 << 10
SLICE = 16 << 10  # hiredis moves what is left of its buffer with every kilobyte it parses: 64 kB cost twice as much
FILL = 4 << 20
BATCH = 256
"""Events taken at once (give or take a slice), so that whoever reads the table meanwhile waits little."""
LOOK = 0.005
"""Seconds between two looks at the socket while there is work: each look lets go of the interpreter's lock, and where a
scrape is being rendered it takes as long to get it back."""
IDLE = 0.25
PING_AFTER = 5.0
SILENCE = 20.0
"""Seconds without a byte, not even an answer to PING, after which the connection counts as dead."""

_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_GLOB = re.compile(r"([\\*?\[\]])")


class RedisSubscription:
    """A subscription to all events of one broker, made on construction.

    `take` is to be called again and again by one thread. What it reads beyond what it can decode in time is kept, up to
    `BUFFER`, so that a burst waits here rather than in Redis, which cuts off a subscriber that lags by 32 MB.

    Raises:
        BrokerError: the URL or the TLS files are wrong.
        OSError, redis.RedisError, kombu.exceptions.OperationalError: no connection, or the subscription was refused.
    """

    def __init__(
        self, config: BrokerConfig, decoder: Decoder, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._decoder = decoder
        self._monotonic = monotonic
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._offset = 0
        self._frame = 0
        self._look_at = 0.0
        self._closed = False
        self._reader = hiredis.Reader()
        self._early: list[Event] = []
        self._link, self.patterns = _connected(config)
        self._decode = decoder.redis if len(self.patterns) == 1 else _once(decoder.redis)
        self._sock: socket.socket = self._link._sock  # noqa: SLF001 - redis-py has no public way to its socket
        self._tls = isinstance(self._sock, ssl.SSLSocket)
        try:
            self._subscribe()
        except BaseException:
            self.close()
            raise
        self._heard = self._pinged = monotonic()
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._sock.setblocking(False)

    def take(self) -> list[Event]:
        """Return about `BATCH` events, or none after up to `IDLE` seconds; raise OSError when the broker is gone."""
        if self._early:
            early, self._early = self._early, []
            return early
        if not self._chunks or self._monotonic() >= self._look_at:
            self._fill()
        if self._chunks:
            return self._work()
        if self._closed:
            raise ConnectionError("the broker closed the connection: it ended, or cut us off because we lagged")
        self._poll.poll(IDLE * 1000)
        self._keep_alive()
        return []

    def close(self) -> None:
        """Close the connection."""
        self._link.disconnect()

    def _subscribe(self) -> None:
        self._sock.settimeout(CONNECT_TIMEOUT)
        self._link.send_command("PSUBSCRIBE", *self.patterns, check_health=False)
        missing = len(self.patterns)
        while missing:
            chunk = self._sock.recv(READ)
            if not chunk:
                raise ConnectionError("the broker closed the connection while subscribing")
            self._reader.feed(chunk)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, list) and reply[0] == b"psubscribe":
                    missing -= 1
                else:
                    self._take_reply(reply, self._early)

    def _fill(self) -> None:
        """Move what lies in the socket into our buffer, without waiting."""
        got = 0
        while got < FILL and self._size < BUFFER and not self._closed:
            try:
                chunk = self._sock.recv(READ)
            except _WAIT:
                break
            except OSError:
                if not self._chunks:
                    raise
                self._closed = True  # decode first what it had sent
                break
            if not chunk:
                self._closed = True
                break
            self._chunks.append(chunk)
            self._size += len(chunk)
            got += len(chunk)
            if len(chunk) < READ and not self._tls:  # a TLS read ends with its record
                break
        now = self._monotonic()
        self._look_at = now + LOOK
        if got:
            self._heard = now

    def _work(self) -> list[Event]:
        """Decode a batch."""
        events: list[Event] = []
        while self._chunks and len(events) < BATCH:
            chunk = self._chunks[0]
            self._feed(chunk, events)
            if self._offset >= len(chunk):
                self._chunks.popleft()
                self._size -= len(chunk)
                self._offset = 0
        return events

    def _feed(self, chunk: bytes, events: list[Event]) -> None:
        """Parse one slice of `chunk` and add its events."""
        size = min(SLICE, len(chunk) - self._offset)
        self._reader.feed(chunk, self._offset, size)
        self._offset += size
        self._frame += size
        gets, decode = self._reader.gets, self._decode
        while (reply := gets()) is not False:
            self._frame = 0
            try:
                kind, _, channel, payload = reply
            except (TypeError, ValueError):
                self._take_reply(reply, events)
                continue
            if kind == b"pmessage":  # and not the four letters of PONG
                events += decode(channel, payload)
        if self._frame > BUFFER:
            self._decoder.malformed["size"] += 1
            raise ConnectionError(f"a message of more than {BUFFER >> 20} MB")

    def _take_reply(self, reply: object, events: list[Event]) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise PermissionError(str(reply)) if str(reply).startswith("NOPERM") else ConnectionError(str(reply))
        if isinstance(reply, list) and reply[0] == b"pmessage":
            events += self._decode(reply[2], reply[3])

    def _keep_alive(self) -> None:
        """PING a silent broker, and give up one that does not even answer that: paused, or gone without a word."""
        now = self._monotonic()
        if now - self._heard > SILENCE:
            raise BrokerSilentError(f"nothing heard for {SILENCE:.0f} s, not even an answer to PING")
        if now - max(self._heard, self._pinged) > PING_AFTER:
            self._pinged = now
            with contextlib.suppress(*_WAIT):
                self._sock.send(b"PING\r\n")


def _connected(config: BrokerConfig) -> tuple[Any, list[str]]:
    """Return a redis-py connection, logged in and in the right database, and the patterns to subscribe to."""
    with config.connection() as connection:
        connect(connection)
        channel: Any = connection.channel()
        patterns = [_escaped(channel.global_keyprefix + topic) for topic in _topics(channel, config.event_exchange)]
        link = channel.pool.make_connection()
    link.connect()
    return link, patterns


def _topics(channel: Any, exchange: str) -> list[str]:
    """Ask kombu's channel where fanout messages go: fanout_prefix, fanout_patterns and compatibility topics."""
    if hasattr(channel, "_get_publish_topics"):  # kombu 5.7
        return list(channel._get_publish_topics(exchange, "*"))  # noqa: SLF001 - the only place that knows
    return [channel._get_publish_topic(exchange, "*")]  # noqa: SLF001


def _escaped(topic: str) -> str:
    """Take a topic's special characters literally, except for a final `/*`."""
    head, star = (topic[:-1], "*") if topic.endswith("/*") else (topic, "")
    return _GLOB.sub(r"\\\1", head) + star


def _once(decode: Callable[[bytes, bytes], list[Event]]) -> Callable[[bytes, bytes], list[Event]]:
    """Decode each payload once: with `sentinel_fanout_compat` every message comes on two channels."""
    seen: dict[int, None] = {}

    def decode_once(channel: bytes, payload: bytes) -> list[Event]:
        mark = hash(payload)
        if mark in seen:
            return []
        seen[mark] = None
        if len(seen) > 1000:
            del seen[next(iter(seen))]
        return decode(channel, payload)

    return decode_once
