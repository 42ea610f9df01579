"""Where events come from: a thread that keeps a subscription to one broker alive and feeds a sink with its events."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from .broker import BrokerConfig, BrokerError, BrokerSilentError, reason
from .echo import Echo, EventsEnabler
from .events import Decoder, EchoEvent, Event
from .guard import Guard
from .kombu_source import KombuSubscription
from .redis_source import RedisSubscription
from .silence import Silence

logger = logging.getLogger("celeryscope.sources")

TICK_EVERY = 0.25
BACKOFF_CAP = 15.0
STEADY = 5.0
"""A subscription that breaks sooner than this many seconds after it was made is not made anew at once."""
CONNECTED_FOR = 15.0
"""Seconds that an echo proves the subscription for."""
ECHOES_LOST = 4
"""Echoes that were published and did not come back, after which the subscription is made anew if it is silent, too."""
ECHOES_LATE = 60
"""The same where events do come: they may be late, and a new subscription would lose all that is on its way."""
SILENT_AFTER = 60.0
FEED = 500
"""Most events in one `feed`, so that whoever waits for the sink's lock does not wait long."""


class Sink(Protocol):
    """What takes the events. Calls come from several threads, never two `feed`s at once; `now` is unix time."""

    def feed(self, events: list[Event], now: float) -> None:
        """Take a batch of a few hundred events at most, in the order of arrival."""

    def tick(self, now: float) -> None:
        """Do what is due: called every `TICK_EVERY` seconds, also while the broker is away."""

    def connection(self, up: bool, now: float) -> None:
        """Take note that events come (again), or that from now on events may be missed."""


class Subscription(Protocol):
    """One subscription to a broker's events."""

    def take(self) -> list[Event]:
        """Return what came, none after a short wait if nothing did; raise when the subscription is broken."""

    def close(self) -> None:
        """Give it up."""


def subscribe(config: BrokerConfig, decoder: Decoder) -> Subscription:
    """Subscribe to a broker's events: the fast path for Redis and Valkey, kombu for all others.

    Raises:
        Exception: whatever the transport raises; `broker.reason` explains it.
    """
    if config.connection().transport.driver_type == "redis":
        return RedisSubscription(config, decoder)
    return KombuSubscription(config, decoder)


def check(config: BrokerConfig, deadline: float = 5.0) -> None:
    """Connect and subscribe once, to tell at the start what is wrong with the configuration.

    Raises:
        BrokerError: it failed, or took longer than `deadline` seconds; one line that names the broker and the reason.
    """
    config.loads()
    failure: list[BaseException] = []

    def attempt() -> None:
        try:
            subscribe(config, Decoder()).close()
        except BaseException as error:  # noqa: BLE001 - carried over to the caller
            failure.append(error)

    thread = threading.Thread(target=attempt, name="celeryscope-check", daemon=True)
    thread.start()
    thread.join(deadline)
    if thread.is_alive():
        raise BrokerError(f"{config.label}: no answer within {deadline:g} s; check host, port and firewall")
    if failure:
        text = reason(failure[0])
        raise BrokerError(text if text.startswith(config.label) else f"{config.label}: {text}") from failure[0]


class Source:
    """Feeds `sink` with the events of one broker from `start` to `stop`, over all outages between.

    Args:
        config: the broker.
        sink: what takes the events.
        clock: unix time, passed to the sink and written into the echo.
        enable_events: tell the workers to send events, and go on telling them.
        echo_every: seconds between two echoes of our own.
        silent_after: seconds without events of workers or tasks until one warning says what may be wrong.
    """

    def __init__(
        self,
        config: BrokerConfig,
        sink: Sink,
        *,
        clock: Callable[[], float] = time.time,
        enable_events: bool = False,
        echo_every: float = 5.0,
        silent_after: float = SILENT_AFTER,
        subscribe: Callable[[BrokerConfig, Decoder], Subscription] = subscribe,
    ) -> None:
        self.config = config
        self.boot = uuid.uuid4().hex
        self.decoder = Decoder(config.loads(), boot=self.boot)
        self.reconnects = 0
        self.echo_lag: float | None = None
        self.last_echo: float | None = None
        self._sink = sink
        self._clock = clock
        self._subscribe = subscribe
        self._silence = Silence(silent_after)
        self._echo = Echo(config, self.boot, clock, echo_every)
        self._enabler = EventsEnabler(config) if enable_events else None
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="celeryscope-events", daemon=True),
            threading.Thread(target=self._tick, name="celeryscope-tick", daemon=True),
        ]
        self._up = False
        self._was_up = False
        self._down_since: float | None = None
        self._up_since = time.monotonic()
        self._echo_heard: float | None = None
        self._echo_seen: EchoEvent | None = None
        self._echo_lost = False
        self._events_at = -math.inf

    @property
    def subscribed(self) -> bool:
        """True while a subscription stands, whether or not it was proven by an echo."""
        return self._up

    @property
    def connected(self) -> bool:
        """True while our own echo comes back: the one proof that events reach us."""
        heard = self._echo_heard
        return self._up and heard is not None and time.monotonic() - heard < CONNECTED_FOR

    @property
    def lag(self) -> float | None:
        """Seconds that our own echo took; of one that is still under way, those since it was published, if more."""
        since = self._echo.unanswered_since
        if since is None or not self._up:
            return self.echo_lag
        return max(self._clock() - since, self.echo_lag or 0.0)

    @property
    def publish_failure(self) -> str | None:
        """Why our own echo cannot be published; None while it can."""
        return self._echo.failing

    def start(self) -> None:
        """Start the threads; it does not wait for the connection."""
        for thread in self._threads:
            thread.start()
        self._echo.start()
        if self._enabler:
            self._enabler.start()

    def stop(self, timeout: float = 0.9) -> None:
        """Stop within `timeout` seconds; a thread that is inside a connection attempt is left to end by itself."""
        self._stopping.set()
        self._echo.stop()
        if self._enabler:
            self._enabler.stop()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._echo.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                subscription = self._retrying()(self._subscribe, self.config, self.decoder)
            except Exception as error:  # noqa: BLE001 - retried until we stop, so this is the stop
                logger.debug("stopped while connecting: %s", reason(error))
                return
            since = time.monotonic()
            try:
                if not self._stopping.is_set():
                    self._came_up()
                    self._listen(subscription)
            finally:
                self._close(subscription)
            if time.monotonic() - since < STEADY:
                self._stopping.wait(random.uniform(0.5, 1.5))

    def _listen(self, subscription: Subscription) -> None:
        """Feed the sink until the subscription breaks or we stop."""
        self._events_at = -math.inf
        while not self._stopping.is_set():
            try:
                events = subscription.take()
                if not events:  # and only then: our echo may lie behind what we have not worked off yet
                    self._check_echo()
            except Exception as error:  # noqa: BLE001 - whatever ends a subscription, the answer is a new one
                self._went_down(error)
                return
            if events:
                self._events_at = time.monotonic()
                self._deliver(events)

    def _retrying(self) -> Retrying:
        return Retrying(
            wait=wait_random_exponential(multiplier=0.5, max=BACKOFF_CAP),
            retry=retry_if_exception_type(Exception),
            stop=stop_when_event_set(self._stopping),
            sleep=sleep_using_event(self._stopping),
            before_sleep=self._attempt_failed,
            reraise=True,
        )

    def _attempt_failed(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._went_down(error or ConnectionError("no connection"))

    def _close(self, subscription: Subscription) -> None:
        try:
            subscription.close()
        except Exception:
            logger.debug("closing a broken subscription failed", exc_info=True)

    def _came_up(self) -> None:
        self._echo.answered()
        self._echo.poke()
        if self._enabler:
            self._enabler.poke()
        if not self._echo_lost:
            self._resume()

    def _resume(self) -> None:
        now = time.monotonic()
        self._up, self._up_since = True, now
        if self._was_up:
            self.reconnects += 1
        self._was_up = True
        if self._down_since is not None:
            logger.warning("%s is back after %.1f s", self.config.label, now - self._down_since)
            self._down_since = None
        self._notify(up=True)

    def _went_down(self, error: BaseException) -> None:
        """Log the start of an outage once; whatever else fails until it ends belongs to it."""
        if self._down_since is not None:
            logger.debug("%s is still away: %s", self.config.label, reason(error))
            return
        self._up = False
        now = time.monotonic()
        self._down_since = max(self._up_since, self._echo_heard or 0.0) if isinstance(error, BrokerSilentError) else now
        text = reason(error)
        prefix = "" if text.startswith(self.config.label) else f"{self.config.label}: "
        logger.warning("%s%s; trying again until it answers", prefix, text)
        self._notify(up=False)

    def _notify(self, *, up: bool) -> None:
        with Guard("the monitor's note of the connection"):
            self._sink.connection(up, self._clock())

    def _deliver(self, events: list[Event]) -> None:
        now = self._clock()
        for first in range(0, len(events), FEED):
            with Guard("the monitor's processing of events"):
                self._sink.feed(events[first : first + FEED] if len(events) > FEED else events, now)
        echo = self.decoder.echo
        if echo is not self._echo_seen and echo is not None:
            self._echo_seen = echo
            self._echo_came(echo, now)
        if not self._silence.over:
            self._silence.hear(events)
        if self._enabler and any(event.type == "worker-online" for event in events):
            self._enabler.poke()

    def _echo_came(self, echo: EchoEvent, now: float) -> None:
        self.last_echo = now
        self.echo_lag = now - echo.timestamp
        self._echo_heard = time.monotonic()
        self._echo.answered()
        if self._echo_lost:
            self._echo_lost = False
            self._resume()

    def _check_echo(self) -> None:
        """Make the subscription anew where what we publish does not come back; log that as an outage, once."""
        silent = time.monotonic() - self._events_at > ECHOES_LOST * self._echo.every
        if self._echo.unanswered >= (ECHOES_LOST if silent else ECHOES_LATE):
            self._echo_lost = True
            raise BrokerSilentError(
                f"the monitor's own events do not come back: published on exchange {self.config.event_exchange!r}, "
                "not received (a proxy, or database and key prefix that differ between the two?)"
            )

    def _tick(self) -> None:
        while not self._stopping.wait(TICK_EVERY):
            with Guard("the monitor's timed work"):
                self._sink.tick(self._clock())
            if self._up:
                self._warn(self._silence.warning(time.monotonic() - self._up_since))
                self._warn(self._echo.complaint())
                self._warn(self._enabler.complaint() if self._enabler else None)

    def _warn(self, text: str | None) -> None:
        if text:
            logger.warning("%s: %s", self.config.label, text)
