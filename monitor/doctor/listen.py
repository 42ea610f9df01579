"""Listens to a cluster's events for some seconds: who speaks, whose clock is off, how much it is (edge)."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..broker import reason
from ..kombu_source import KombuSubscription
from .facts import Beat, Heard

if TYPE_CHECKING:
    from ..broker import BrokerConfig
    from ..events import Event

ENVELOPE = 350
"""Bytes that kombu's envelope adds to an event on Redis, beside base64's third."""


class Ear:
    """Stands in a subscription's decoder's place and keeps the little that is asked of the events."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.events = self.bytes = 0
        self.skews: dict[str, float] = {}
        self.task_events_of: set[str] = set()
        self.ran: set[str] = set()
        self.beats: dict[str, Beat] = {}
        self._processed: dict[str, int] = {}
        self._grown: set[str] = set()
        self._online: dict[str, float] = {}

    def decode(self, routing_key: str, body: Any, content_type: str = "", encoding: str = "") -> list[Event]:
        """Take a message in; nothing of it is passed on."""
        del content_type, encoding
        raw = body if isinstance(body, (bytes, str)) else bytes(body)
        self.bytes += len(raw) * 4 // 3 + ENVELOPE
        kind = routing_key.partition(".")[0]
        if kind in ("worker", "beat", "task"):
            for event in self._events(raw):
                self.events += 1
                self._take(event, str(event.get("type", "")))
        else:
            self.events += 1
        return []

    @staticmethod
    def _events(raw: bytes | str) -> list[dict[str, Any]]:
        try:
            found = json.loads(raw)
        except ValueError:
            return []  # another serializer, which the monitor can be told to accept
        return [event for event in (found if isinstance(found, list) else [found]) if isinstance(event, dict)]

    def _take(self, event: dict[str, Any], kind: str) -> None:
        host, sent = str(event.get("hostname", "")), event.get("timestamp")
        if kind == "worker-heartbeat" and isinstance(sent, (int, float)):
            # The least delayed one is nearest to the truth.
            self.skews[host] = max(self.skews.get(host, -float("inf")), sent - self._clock())
            self._count(host, event.get("processed"))
        elif kind.startswith("beat-"):
            self._beat(event, kind, host)
        elif kind.startswith("task-") and kind != "task-sent":
            self.task_events_of.add(host)

    def _count(self, host: str, processed: object) -> None:
        # Events go out in batches: those of the runs that a heartbeat counts are here before the next one at last.
        if host in self._grown:
            self.ran.add(host)
        if isinstance(processed, int):
            if processed > self._processed.get(host, processed):
                self._grown.add(host)
            self._processed[host] = processed

    def _beat(self, event: dict[str, Any], kind: str, host: str) -> None:
        boot = str(event.get("boot"))
        if kind == "beat-online":
            self._online.setdefault(boot, self._clock())
        elif kind == "beat-offline":
            self.beats.pop(boot, None)
        elif kind == "beat-heartbeat":
            self.beats[boot] = Beat(
                app=str(event.get("app", "unknown")),
                hostname=host,
                leader=event.get("leader"),
                embedded=bool(event.get("embedded")),
                online=self._online.get(boot, -math.inf),
                last=self._clock(),
            )


def listen(
    config: BrokerConfig,
    seconds: float,
    clock: Callable[[], float] = time.time,
    stop: threading.Event | None = None,
) -> Heard:
    """Return what came by in `seconds`; a broker without events, or one that breaks, is an `error` in it.

    Once `stop` is set it ends, and leaves nothing behind on the broker.
    """
    ear = Ear(clock)
    since = time.monotonic()
    error = ""
    try:
        with config.connection() as probe:
            if "fanout" not in probe.transport.implements.exchange_type:
                return Heard(error="this transport has no events")
        _attend(config, ear, since + seconds, stop or threading.Event())
    except Exception as failure:  # noqa: BLE001 - whatever a transport raises: the report says so
        error = f"listening to events failed: {reason(failure)}"
    return Heard(
        seconds=time.monotonic() - since,
        events=ear.events,
        bytes=ear.bytes,
        skews=ear.skews,
        task_events_of=frozenset(ear.task_events_of),
        ran=frozenset(ear.ran),
        beats=ear.beats,
        error=error,
    )


def _attend(config: BrokerConfig, ear: Ear, until: float, stop: threading.Event) -> None:
    subscription = KombuSubscription(config, ear)  # type: ignore[arg-type] # it asks for `decode` alone
    try:
        while time.monotonic() < until and not stop.is_set():
            subscription.take()
    finally:
        subscription.close()
