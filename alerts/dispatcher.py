"""The loop that takes claimed messages to Slack, one call at a time, and leaves the workspace alone on trouble (edge).

Whatever a call does, the message goes back into the mailbox in a state from which any alerter can go on.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import views
from .delivery import (
    Delivery,
    DeliveryError,
    GoneError,
    MisconfiguredError,
    Place,
    RateLimitedError,
    RefusedError,
    UncertainError,
    UnreachableError,
)
from .incidents import OPEN, level
from .mailbox import INCIDENT, Mailbox, Work
from .policy import backoff
from .views import Composer, View

logger = logging.getLogger("celeryscope.alerter")

BROKEN_CHANNEL = 60.0
"""Seconds until a channel that refused us, or a workspace that refused our token, is tried again."""
REFUSED = 600.0
"""Seconds until a message that is not taken as it stands is tried again: it may say something else by then."""
NOTICE_EVERY = 6 * 3_600.0
_LATE = 0.5
"""The part of a lease after which a call is not begun any more."""


@dataclass
class Pauses:
    """Until when (unix time) who is to be left alone."""

    workspace: float = 0.0
    history: float = 0.0
    channels: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    """Calls that failed in a row, through no fault of a channel."""
    down_since: float | None = None

    def broken(self, now: float) -> list[str]:
        """Return the channels to leave alone."""
        return [channel for channel, until in self.channels.items() if until > now]


@dataclass
class Dispatcher:
    """Works off the mailbox. `requests` counts calls by status (the delivery notes them)."""

    mailbox: Mailbox
    delivery: Delivery
    composer: Composer
    clock: Callable[[], float]
    fallback: str = ""
    rng: random.Random = field(default_factory=random.Random)
    pauses: Pauses = field(default_factory=Pauses)
    requests: Counter[str] = field(default_factory=Counter)
    _found: dict[str, tuple[float, float, Mapping[str, Place]]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def step(self) -> bool:
        """Make one call if one is due; return whether one was made."""
        now = self.clock()
        if now < self.pauses.workspace:
            return False
        work = self.mailbox.claim(now, self.pauses.broken(now), find=now >= self.pauses.history)
        if work is None:
            return False
        self._handle(work)
        return True

    def _handle(self, work: Work) -> None:
        try:
            getattr(self, f"_{work.act}")(work)
        except RateLimitedError as error:
            self._limited(work, error)
        except GoneError:
            self._gone(work)
        except RefusedError as error:
            self._refused(work, error)
        except MisconfiguredError as error:
            self._misconfigured(work, error)
        except UnreachableError as error:
            self._give_back(work, self._trouble(error), certain=True)
        except UncertainError as error:
            self._give_back(work, self._trouble(error), certain=False)
        else:
            self._fine(work)

    def _post(self, work: Work) -> None:
        if self.clock() - work.claimed_at > _LATE * self.mailbox.pace.lease:
            # This process was asleep: somebody else may be about to post it.
            self.mailbox.unposted(work)
            return
        place = self.delivery.post(work.message.channel, self._view(work), work.message.id)
        self.mailbox.posted(work, place.channel_id, place.ref, self.clock())

    def _update(self, work: Work) -> None:
        place = Place(work.message.channel_id, work.message.ref)
        self.delivery.update(place, self._view(work), work.message.id)
        self.mailbox.updated(work, self.clock(), reply=self._worth_a_reply(work))

    def _reply(self, work: Work) -> None:
        self.delivery.reply(Place(work.message.channel_id, work.message.ref), self._view(work))
        self.mailbox.told(work)

    def _find(self, work: Work) -> None:
        found = self._look(work)
        if found is None and "find" not in self._warned and self.delivery.editable:
            self._warned.add("find")
            logger.warning(
                "Slack's history cannot be read (scope channels:history, groups:history): after a call that broke, a "
                "message may be posted twice"
            )
        place = (found or {}).get(work.message.id)
        if place is None:
            self.mailbox.unposted(work)
        else:
            self.mailbox.posted(work, place.channel_id, place.ref, self.clock())

    def _look(self, work: Work) -> Mapping[str, Place] | None:
        """Read the channel's history, once for all of its uncertain messages."""
        channel, now = work.message.channel, self.clock()
        since, read_at, found = self._found.get(channel, (0.0, 0.0, {}))
        attempted = work.message.attempt_at or 0.0
        # What was found is there; that something is not there only a later look can tell.
        if work.message.id in found or (since <= attempted and read_at >= attempted + self.mailbox.pace.grace):
            return found
        fresh = self.delivery.find(channel, work.message.channel_id, work.since)
        if fresh is not None:
            self._found[channel] = (work.since, now, fresh)
        return fresh

    def _view(self, work: Work) -> View:
        if work.message.body:
            return views.decoded(work.message.body)
        return self.composer.view(work.message.kind, work.incidents, work.more, self.clock())

    def _worth_a_reply(self, work: Work) -> bool:
        if work.message.kind != INCIDENT or not work.incidents:
            return False
        incident, now = work.incidents[0], self.clock()
        plan = self.composer.plan(incident.sample)
        silent = plan.mute or incident.muted(now) or (plan.quiet_hours is not None and plan.quiet_hours.cover(now))
        if silent or incident.state != OPEN:
            return False
        return level(incident.count) > work.message.told_level or incident.reopens > work.message.told_reopens

    def _fine(self, work: Work) -> None:
        self.pauses.failures = 0
        if self.pauses.down_since is not None:
            logger.warning("Slack is back after %.0f s", self.clock() - self.pauses.down_since)
            self.pauses.down_since = None
        if self.pauses.channels.pop(work.message.channel, None) is not None:
            logger.warning("Slack channel %s can be posted to again", work.message.channel)

    def _limited(self, work: Work, error: RateLimitedError) -> None:
        until = self.clock() + error.seconds
        if work.act == "find":
            # Slack limits each method by itself, and history most: posting goes on.
            self.pauses.history = until
        else:
            self.pauses.workspace = until
        self._give_back(work, until, certain=True)

    def _trouble(self, error: DeliveryError) -> float:
        self.pauses.failures += 1
        now = self.clock()
        self.pauses.workspace = now + backoff(self.pauses.failures, self.rng)
        if self.pauses.down_since is None:
            self.pauses.down_since = now
            logger.warning("Slack: %s; incidents wait in the store", error)
        return self.pauses.workspace

    def _gone(self, work: Work) -> None:
        self._fine(work)
        if any(incident.state == OPEN for incident in work.incidents):
            self.mailbox.unposted(work)
        else:
            self.mailbox.updated(work, self.clock())

    def _refused(self, work: Work, error: RefusedError) -> None:
        logger.error("Slack channel %s: a message is not taken: %s. It waits.", work.message.channel, error)
        self._give_back(work, self.clock() + REFUSED, certain=True)

    def _misconfigured(self, work: Work, error: MisconfiguredError) -> None:
        now, channel = self.clock(), work.message.channel
        if error.one_channel:
            if channel not in self.pauses.channels:
                logger.error("Slack channel %s: %s. Its incidents wait.", channel, error)
                self._complain(channel, error, now)
            self.pauses.channels[channel] = now + BROKEN_CHANNEL
        else:
            if self.pauses.down_since is None:
                self.pauses.down_since = now
                logger.error("Slack: %s. Incidents wait.", error)
            self.pauses.workspace = now + BROKEN_CHANNEL
        self._give_back(work, now + BROKEN_CHANNEL, certain=True)

    def _complain(self, channel: str, error: MisconfiguredError, now: float) -> None:
        if not self.fallback or self.fallback == channel:
            return
        text = f"celeryscope cannot post to {channel}: {error}. Its incidents wait until that works."
        key = f"notice {channel} {error.status} {int(now // NOTICE_EVERY)}"
        self.mailbox.notice(key, self.fallback, views.encoded(View("notice", text=text)), now)

    def _give_back(self, work: Work, again_at: float, *, certain: bool) -> None:
        if work.act == "post" and certain:
            self.mailbox.unposted(work, again_at=again_at)
            return
        if work.act == "post":
            again_at = max(again_at, self.clock() + self.mailbox.pace.grace)
        if work.act == "reply" and not certain:
            # It may be there; the count is in the message anyway.
            self.mailbox.told(work)
            return
        self.mailbox.released(work, again_at=again_at)
