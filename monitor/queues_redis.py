"""Queues on Redis and Valkey: reads kombu's lists, bindings and unacknowledged messages, and never writes (edge)."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .broker import BrokerConfig, connect
from .labels import UNKNOWN
from .queues import Problems, QueueFacts, is_noise
from .queues_redis_wire import BINDING, READY, UNACKED, Bindings, Options, Tail, read_held, read_tail
from .queues_unacked import UnackedIndex

logger = logging.getLogger(__name__)

QUEUES_A_TRIP = 100
TAIL = 8_192
COPY_A_SCRIPT = 8_000_000
COPY_A_SAMPLE = 32_000_000
"""Bytes of messages that the server may copy to cut off their tails: at some 300 MB/s, 0.1 s in ten."""
REST_PER_BYTE = 3.4e-7
"""Seconds until a message is copied again, per byte: the copying then costs the server 1 % of its time."""
HEAVY = 1_000_000
HOLD = 30.0
"""Seconds for which an age is kept while its message is too heavy to be looked at again."""
LOOKUPS_A_TRIP = 500
LOOKUPS_A_SAMPLE = 10_000
LOOKUP_BYTES = 1_000_000
PAGE = 5_000
TABLES = 2_000
"""Binding tables that are followed."""
SCAN_EVERY = 1_800.0

SentTimes = Callable[[str], "float | None"]
"""Task id → unix time of its latest `task-sent`, or None; called from the sampler's thread."""


class _Head(NamedTuple):
    """The oldest message of a list: its mark, when we first saw it there, and from when it has been waiting."""

    mark: str
    first_seen: float
    at: float
    source: str
    read: float


class RedisReader:
    """Reads queues over one connection of its own, opened when first needed."""

    def __init__(
        self,
        link: Callable[[], Link],
        options: Options | None = None,
        *,
        sent_times: SentTimes | None = None,
        problems: Problems | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problems = problems or Problems(logger.warning)
        self._open = link
        self._options = options or Options()
        self._sent_times = sent_times
        self._monotonic = monotonic
        self._link: Link | None = None
        self._eval: str | None = "EVAL_RO"
        self._bindings = Bindings()
        self._scanned = -math.inf
        self._index = UnackedIndex()
        self._heads: dict[str, _Head] = {}
        self._rest_until: dict[str, float] = {}
        self._turn = 0

    def close(self) -> None:
        """Give up the connection, and what was concluded about the rights it had."""
        link, self._link = self._link, None
        self._eval = "EVAL_RO"
        if link is not None:
            link.close()

    def discover(self) -> Iterator[frozenset[str]]:
        """Look for binding tables, rarely by SCAN, and read them; one small command a step."""
        if self._monotonic() - self._scanned >= SCAN_EVERY:
            yield from self._scan()
            self._scanned = self._monotonic()
        for exchange in list(self._bindings.tables):
            yield self._learn(exchange)

    def _scan(self) -> Iterator[frozenset[str]]:
        prefix = self._options.prefix + BINDING
        pattern = "".join(f"[{c}]" if c in "*?[" else "\\\\" if c == "\\" else c for c in prefix) + "*"
        cursor: Any = 0
        found: set[str] = set()
        while True:
            reply = self._try("SCAN", prefix, "SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            if reply is None:
                return
            cursor, keys = reply
            for key in keys:
                exchange = key.decode("utf-8", "replace").removeprefix(prefix)
                if not is_noise(exchange) and len(found) < TABLES:
                    found.add(exchange)
            yield frozenset()
            if not int(cursor):
                break
        self._bindings.tables = {exchange: self._bindings.tables.get(exchange, []) for exchange in sorted(found)}

    def _learn(self, exchange: str) -> frozenset[str]:
        key = self._options.prefix + BINDING + exchange
        members = self._try("SMEMBERS", key, "SMEMBERS", key)
        if members is None:
            return frozenset()
        return self._bindings.learn(exchange, members, self._options.sep)

    def read(self, queues: Sequence[str], now: float) -> dict[str, QueueFacts]:
        """Return the facts of `queues`, of other queues that unacknowledged messages belong to, and of `unknown`."""
        unacked = self._unacked(now) if self._options.acks else None
        facts: dict[str, QueueFacts] = {}
        left = COPY_A_SAMPLE
        batches = [queues[i : i + QUEUES_A_TRIP] for i in range(0, len(queues), QUEUES_A_TRIP)]
        # Another batch first each time, so that no queue goes unread for good where the copying is limited.
        self._turn = (self._turn + 1) % max(1, len(batches))
        for batch in batches[self._turn :] + batches[: self._turn]:
            replies = self._ready(batch, now, left)
            left -= sum(reply[1] for reply in replies.values() if isinstance(reply, list))
            for queue in batch:
                facts[queue] = self._queue(queue, replies, now)
        self._forget_heads(queues)
        return facts if unacked is None else _merged(facts, *unacked)

    def _queue(self, queue: str, replies: Mapping[str, Any], now: float) -> QueueFacts:
        priorities: dict[int, int] = {}
        heads: list[_Head | None] = []
        for step in self._options.steps:
            key = self._options.key(queue, step)
            length = self._length(key, replies.get(key))
            if length is None:
                continue
            priorities[step] = length
            if length:
                heads.append(self._head(key, replies[key], now))
            else:
                self._heads.pop(key, None)
        complete = len(priorities) == len(self._options.steps)
        known = [head for head in heads if head is not None]
        oldest = min(known, key=lambda head: head.at, default=None)
        if oldest is None or not complete:
            return QueueFacts(sum(priorities.values()) if complete else None, priorities)
        # One unread list may hold something older still: then this is a lower bound, like a watched one.
        source = oldest.source if len(known) == len(heads) else "watched"
        return QueueFacts(sum(priorities.values()), priorities, None, None, oldest.at, source)

    def _length(self, key: str, reply: Any) -> int | None:
        if isinstance(reply, int):
            return reply
        if isinstance(reply, list):
            return int(reply[0])
        text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
        self.problems.note(_why(text), key, f"its length is unknown: {text}")
        return None

    def _head(self, key: str, reply: Any, now: float) -> _Head | None:
        before = self._heads.get(key)
        if not isinstance(reply, list):
            if before is not None and now - before.read <= HOLD:
                return before
            if self._eval is not None and before is None and key in self._rest_until:
                self.problems.note("too_big", key, "its oldest message is too big to be looked at in every sample")
            return None
        _, size, data = reply
        if size > HEAVY:
            self._rest_until[key] = now + size * REST_PER_BYTE
        else:
            self._rest_until.pop(key, None)
        tail = read_tail(data)
        if tail is None:
            self.problems.note("not_json", key, "its oldest message is not one of kombu's: its age is unknown")
            self._heads.pop(key, None)
            return None
        head = self._waiting_since(tail, before, now)
        self._heads[key] = head
        return head

    def _waiting_since(self, tail: Tail, before: _Head | None, now: float) -> _Head:
        first_seen = before.first_seen if before is not None and before.mark == tail.mark else now
        event = self._sent_times(tail.uuid) if self._sent_times is not None and tail.uuid else None
        if tail.sent_at is not None and (event is None or event <= tail.sent_at + 1.0):
            at, source = tail.sent_at, "stamp"
        elif event is not None:
            # Newer than the stamp: a retry by a producer that does not stamp has copied the header of the run before.
            at, source = event, "task-sent"
        else:
            at, source = first_seen, "watched"
        return _Head(tail.mark, first_seen, max(at, tail.eta or 0.0), source, now)

    def _ready(self, queues: Sequence[str], now: float, left: int) -> dict[str, Any]:
        """Return each list's reply: a length, [length, size, tail] or an error; one round trip."""
        keys = [self._options.key(queue, step) for queue in queues for step in self._options.steps]
        wanted = "".join("1" if self._rest_until.get(key, 0.0) <= now else "0" for key in keys)
        replies = self._script("tails", READY, keys, min(left, COPY_A_SCRIPT), TAIL, wanted)
        if replies is None:
            with self._client().pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.llen(key)
                replies = pipe.execute(raise_on_error=False)
        return dict(zip(keys, replies, strict=True))

    def _forget_heads(self, queues: Sequence[str]) -> None:
        if len(self._heads) + len(self._rest_until) > 8 * len(self._options.steps) * (len(queues) + 1):
            keys = {self._options.key(queue, step) for queue in queues for step in self._options.steps}
            self._heads = {key: head for key, head in self._heads.items() if key in keys}
            self._rest_until = {key: until for key, until in self._rest_until.items() if key in keys}

    def _unacked(self, now: float) -> tuple[Counter[str], Counter[str]] | None:
        """Return unacknowledged and scheduled messages by queue; None where they cannot be known."""
        if not self._list_unacked() or not self._look_up(now):
            return None
        by_queue: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for routes, queues in zip(self._index.counts(now), by_queue, strict=True):
            for route, count in routes.items():
                if route[0] and route[0] not in self._bindings.tables and len(self._bindings.tables) < 2 * TABLES:
                    self._learn(route[0])
                queue = self._bindings.queue(route)
                if queue is None or not is_noise(queue):
                    queues[queue or UNKNOWN] += count
        if self._index.unresolved:
            by_queue[0][UNKNOWN] += len(self._index.unresolved)
        return by_queue

    def _list_unacked(self) -> bool:
        from redis.exceptions import ResponseError

        key = self._options.prefix + self._options.index
        spans = self._index.spans
        with self._client().pipeline(transaction=False) as pipe:
            for span in spans:
                pipe.zcount(key, _above(span.low), _score(span.high))
            counts = pipe.execute(raise_on_error=False)
        problem = next((count for count in counts if isinstance(count, Exception)), None)
        if problem is not None:
            self._refused(key, problem)
            return False
        try:
            self._index.update(*self._listed(key, counts))
        except ResponseError as error:
            self._refused(key, error)
            return False
        return True

    def _listed(
        self, key: str, counts: list[int]
    ) -> tuple[dict[int, list[bytes]], dict[int, list[tuple[bytes, float]]]]:
        """List the spans that changed: those that are to be cut up by score with their scores, the others without."""
        spans, narrow, wide = self._index.spans, [], {}
        for number in self._index.changed(counts):
            if counts[number] > 2 * self._index.width:
                wide[number] = self._page(key, spans[number].low, spans[number].high)
            else:
                narrow.append(number)
        with self._client().pipeline(transaction=False) as pipe:
            for number in narrow:
                pipe.zrangebyscore(key, _above(spans[number].low), _score(spans[number].high))
            return dict(zip(narrow, pipe.execute(), strict=True)), wide

    def _page(self, key: str, low: float, high: float) -> list[tuple[bytes, float]]:
        """List a wide span in pages, so that no single command holds up the server."""
        listed: dict[bytes, float] = {}
        bound, size = _above(low), PAGE
        while True:
            page = self._client().zrangebyscore(key, bound, _score(high), start=0, num=size, withscores=True)
            before = len(listed)
            listed.update(page)
            if len(page) < size:
                return sorted(listed.items(), key=lambda item: item[1])
            # The last score once more: tags of equal score may have been cut off. All equal: a bigger page.
            bound = _score(page[-1][1])
            size = size if len(listed) > before + 1 else size * 2

    def _look_up(self, now: float) -> bool:
        tags = list(self._index.unresolved)[:LOOKUPS_A_SAMPLE]
        key = self._options.prefix + self._options.unacked
        for start in range(0, len(tags), LOOKUPS_A_TRIP):
            chunk = tags[start : start + LOOKUPS_A_TRIP]
            replies = self._script("unacked", UNACKED, [key], LOOKUP_BYTES, *chunk)
            if replies is None:
                return False
            for tag, reply in zip(chunk, replies, strict=True):
                if reply == b"":
                    self.problems.note("too_big", key, "holds a message too big to be looked into: counted as unknown")
                self._index.resolve(tag, None if reply is None else read_held(reply), now)
        return True

    def _client(self) -> Any:
        if self._link is None:
            self._link = self._open()
        return self._link.client

    def _script(self, subject: str, text: str, keys: Sequence[str], *arguments: Any) -> list[Any] | None:
        """Run a script read-only where the server can; None where it is refused."""
        from redis.exceptions import NoPermissionError, ResponseError

        while self._eval is not None:
            try:
                reply: list[Any] = self._client().execute_command(self._eval, text, len(keys), *keys, *arguments)
            except NoPermissionError as error:
                if "key" in str(error):  # these keys, not scripts as such
                    self._refused(subject, error)
                    return None
                self._refused(self._eval, error)
            except ResponseError as error:
                if "unknown command" not in str(error).lower():
                    self._refused(subject, error)
                    return None
            else:
                return reply
            self._eval = "EVAL" if self._eval == "EVAL_RO" else None
        return None

    def _try(self, subject: str, key: str, *command: Any) -> Any:
        from redis.exceptions import ResponseError

        try:
            return self._client().execute_command(*command)
        except ResponseError as error:
            self._refused(f"{subject} {key}", error)
            return None

    def _refused(self, subject: str, error: Exception) -> None:
        from redis.exceptions import ConnectionError as Lost
        from redis.exceptions import TimeoutError as Late

        if isinstance(error, Lost | Late):
            raise error
        self.problems.note(_why(str(error)), subject, f"refused by the server, so what it tells is unknown: {error}")


def _why(refusal: str) -> str:
    if "WRONGTYPE" in refusal:
        return "wrong_type"
    # Within a script, Redis 7.0 words it differently from NOPERM.
    lacking = ("NOPERM", "no permissions", "can't run this command", "can't access")
    return "permission" if any(text in refusal for text in lacking) else "refused"


def _above(score: float) -> str:
    return "-inf" if score == -math.inf else f"({score!r}"


def _score(score: float) -> str:
    return "+inf" if score == math.inf else repr(score)


def _merged(facts: dict[str, QueueFacts], unacked: Counter[str], scheduled: Counter[str]) -> dict[str, QueueFacts]:
    for queue in {*facts, *unacked, *scheduled}:
        ready = facts.get(queue) or QueueFacts()
        facts[queue] = QueueFacts(
            ready.ready,
            ready.priorities,
            unacked[queue],
            scheduled[queue],
            ready.oldest_at,
            ready.oldest_source,
            ready.consumers,
        )
    return facts


class Link(NamedTuple):
    """A connection to Redis, and how to give it up."""

    client: Any
    close: Callable[[], None]


def redis_link(config: BrokerConfig) -> Link:
    """Connect as kombu would: TLS, sentinels, sockets, credential providers and several URLs included.

    Raises:
        BrokerError, redis.exceptions.RedisError, OSError: the server cannot be reached, or refuses us.
    """
    from redis import Redis

    connection = config.connection()
    connect(connection)
    channel: Any = connection.channel()
    # The connection on which kombu greeted the server, and would consume.
    channel.async_pool.disconnect()
    # kombu's own client would add the key prefix to some commands and not to others.
    return Link(Redis(connection_pool=channel.pool), connection.release)
