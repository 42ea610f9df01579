"""Collects workers' replies to a question, so that no reply ends, prolongs or crowds out the others (edge)."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from kombu import Consumer, pidbox

if TYPE_CHECKING:
    from kombu.message import Message

LARGEST = 4 << 20
"""Bytes of a reply; a worker's longest, its configuration with all defaults, is some 20 kB."""
LARGEST_TOGETHER = 64 << 20
MOST = 5_000
"""Workers whose replies are kept."""
LONGEST = 15.0
"""Seconds after which nobody is waited for, however often another reply comes meanwhile."""


class Mailbox(pidbox.Mailbox):
    """Kombu's mailbox with a collection of its own, which returns a table by worker; `asked` are those that may reply.

    Kombu's raises for all where one reply cannot be decoded (a pickle), waits for as long as anything comes, and counts
    replies and not workers.
    """

    asked: Collection[str] = ()

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace, type="fanout", accept=["json"])

    def _collect(  # type: ignore[override]
        self, ticket: str, limit: int | None = None, timeout: float = 1.0, **others: Any
    ) -> Any:
        connection: Any = self.connection
        channel = others.get("channel") or connection.default_channel
        queue, found = self.reply_queue, _Found(ticket, frozenset(self.asked))
        consumer = Consumer(
            channel, [queue], on_message=found.take, on_decode_error=_ignore, accept=self.accept, no_ack=True
        )
        latest = time.monotonic() + LONGEST + timeout
        try:
            with consumer:
                while (limit is None or len(found.replies) < limit) and time.monotonic() < latest:
                    connection.drain_events(timeout=timeout)
        except TimeoutError:
            pass
        finally:
            channel.after_reply_message_received(queue.name)
        return found.replies


class _Found:
    """The replies to one question: of each worker the first, where it was asked."""

    def __init__(self, ticket: str, asked: Collection[str]) -> None:
        self.replies: dict[str, Any] = {}
        self._ticket = ticket
        self._asked = asked
        self._left = LARGEST_TOGETHER

    def take(self, message: Message) -> None:
        """Take in a message, whatever it is."""
        try:
            size = len(message.body or "")
            if size > min(LARGEST, self._left) or message.headers.get("ticket", self._ticket) != self._ticket:
                return
            self._left -= size
            reply = message.decode()
        except Exception:  # noqa: BLE001 - a serializer may raise anything on hostile bytes
            return
        for worker, said in reply.items() if isinstance(reply, dict) else ():
            if len(self.replies) < MOST and (not self._asked or worker in self._asked):
                self.replies.setdefault(worker, said)


def _ignore(message: Message, error: Exception) -> None:
    """Leave out a message that kombu cannot read."""
