"""Queues on RabbitMQ: passive declare, and the management API where its URL is given (edge)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .broker import connect
from .queues import DELAYED, Problems, QueueFacts, is_delayed_level, is_noise

if TYPE_CHECKING:
    import httpx
    from kombu import Connection

logger = logging.getLogger(__name__)

TIMEOUT = 8.0
LONGEST_NAME = 255
"""Bytes; a longer one cannot be asked for, and to try costs the connection."""
COLUMNS = (
    "name,exclusive,messages_ready,messages_unacknowledged,consumers,"
    "head_message_timestamp,backing_queue_status.priority_lengths"
)


class Management:
    """RabbitMQ's management API, asked for the queues of one virtual host in one request."""

    def __init__(self, open_client: Callable[[], httpx.Client], vhost: str) -> None:
        self._open = open_client
        self._client: httpx.Client | None = None
        self._path = f"/api/queues/{quote(vhost or '/', safe='')}"

    @classmethod
    def of(cls, url: str, connection: Connection) -> Management:
        """Return the API at `url`; credentials that it lacks, and the virtual host, are the broker connection's."""
        import httpx

        address = httpx.URL(url)
        username, password = address.username, address.password
        if not username:
            username, password = connection.userid or "guest", connection.password or "guest"
        base = address.copy_with(username=None, password=None)
        return cls(
            lambda: httpx.Client(base_url=base, auth=(username, password), timeout=TIMEOUT),
            connection.virtual_host or "/",
        )

    def close(self) -> None:
        """Give up the connection; the next request makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def queues(self) -> list[Mapping[str, Any]]:
        """Return the virtual host's queues.

        Raises:
            httpx.HTTPError: no answer, or no permission.
            ValueError: the answer is not JSON.
        """
        from .answers import answer_of

        if self._client is None:
            self._client = self._open()
        reply = answer_of(self._client, "GET", self._path, seconds=2 * TIMEOUT, params={"columns": COLUMNS})
        reply.raise_for_status()
        try:
            listed = reply.json()
        except RecursionError:
            raise ValueError(f"{self._path} is nested too deeply") from None
        if not isinstance(listed, list):
            raise ValueError(f"{self._path} did not return a list")  # noqa: TRY004 - the answer is wrong, not a type of ours
        return [queue for queue in listed if isinstance(queue, dict) and isinstance(queue.get("name"), str)]


class RabbitReader:
    """Reads queues by the management API, else by passive declare over an AMQP connection of its own."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        management: Management | None = None,
        *,
        problems: Problems | None = None,
    ) -> None:
        self.problems = problems or Problems(logger.warning)
        self._open = connection
        self._management = management
        self._connection: Connection | None = None
        self._channel: Any = None
        self._api_down = False

    def close(self) -> None:
        """Give up the connections."""
        if self._management is not None:
            self._management.close()
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.release()

    def discover(self) -> Iterator[frozenset[str]]:
        """Find the virtual host's queues by the management API; nothing without it."""
        listed = self._listed()
        yield frozenset(_named(listed)) if listed is not None else frozenset()

    def read(self, queues: Sequence[str], now: float) -> dict[str, QueueFacts]:
        """Return the facts of those of `queues` that exist."""
        del now
        listed = self._listed()
        if listed is None:
            return self._declared(queues)
        known = {queue["name"]: queue for queue in listed}
        facts = {name: from_api(known[name]) for name in queues if name in known}
        delayed = [from_api(queue) for name, queue in known.items() if is_delayed_level(name)]
        if delayed:
            facts[DELAYED] = QueueFacts(scheduled=sum((fact.ready or 0) + (fact.unacked or 0) for fact in delayed))
        return facts

    def _listed(self) -> list[Mapping[str, Any]] | None:
        """Ask the API; None without one and while it fails, when passive declare still tells the most important."""
        import httpx

        if self._management is None:
            return None
        try:
            listed = self._management.queues()
        except (httpx.HTTPError, ValueError) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in {401, 403}
            self.problems.counts["permission" if refused else "unsupported"] += 1
            if not self._api_down:
                logger.warning("queues: the management API fails, falling back to passive declare: %s", error)
            self._api_down = True
            return None
        if self._api_down:
            logger.info("queues: the management API works again")
        self._api_down = False
        return listed

    def _declared(self, queues: Sequence[str]) -> dict[str, QueueFacts]:
        from amqp.exceptions import AccessRefused, NotFound, ResourceLocked

        facts: dict[str, QueueFacts] = {}
        for queue in queues:
            if len(queue.encode(errors="replace")) > LONGEST_NAME:
                self.problems.note("gone", queue, "no queue can have so long a name")
                continue
            try:
                told = self._open_channel().queue_declare(queue=queue, passive=True)
            except NotFound:
                self._reopen("gone", queue, "no such queue")
            except (AccessRefused, ResourceLocked) as error:
                self._reopen("permission", queue, str(error))
            else:
                facts[queue] = QueueFacts(ready=told.message_count, consumers=told.consumer_count)
        return facts

    def _reopen(self, why: str, queue: str, text: str) -> None:
        # The broker closes the channel on every refusal.
        self._channel = None
        self.problems.note(why, queue, text)

    def _open_channel(self) -> Any:
        if self._connection is None:
            self._connection = self._open()
            # Between two samples nobody would answer a heartbeat, and the broker would hang up.
            self._connection.heartbeat = 0
            connect(self._connection)
        if self._channel is None:
            self._channel = self._connection.channel()
        return self._channel


def _named(listed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for queue in listed:
        name = queue["name"]
        if not (is_noise(name) or is_delayed_level(name) or queue.get("exclusive") is True):
            yield name


def from_api(queue: Mapping[str, Any]) -> QueueFacts:
    """Read one queue of the management API; a field that is absent (statistics off, another queue type) is unknown."""
    status = queue.get("backing_queue_status")
    lengths = status.get("priority_lengths") if isinstance(status, dict) else None
    head = _count(queue.get("head_message_timestamp"))
    priorities = {}
    for priority, length in (lengths or {}).items() if isinstance(lengths, dict) else ():
        count = _count(length)
        if count is not None and str(priority) in _PRIORITIES:
            priorities[int(priority)] = count
    return QueueFacts(
        ready=_count(queue.get("messages_ready")),
        priorities=priorities,
        unacked=_count(queue.get("messages_unacknowledged")),
        oldest_at=float(head) if head else None,
        oldest_source="head" if head else None,
        consumers=_count(queue.get("consumers")),
    )


_PRIORITIES = frozenset(map(str, range(256)))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53 else None
