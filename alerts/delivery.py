"""How the alerter reaches people: the protocol that Slack implements (and e-mail could), and how it may fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from .views import View


class Place(NamedTuple):
    """Where a message is: the channel's lasting id, and what names the message there."""

    channel_id: str
    ref: str


class DeliveryError(Exception):
    """A call that did not do its work; `status` is a short word for the metrics."""

    def __init__(self, status: str, text: str = "") -> None:
        super().__init__(text or status)
        self.status = status


class RateLimitedError(DeliveryError):
    """Too many calls; certainly not accepted. Leave the service alone for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("rate_limited", f"rate limited for {seconds:g} s")
        self.seconds = seconds


class UnreachableError(DeliveryError):
    """Nobody heard the call: certainly not accepted."""


class UncertainError(DeliveryError):
    """The call may or may not have been accepted: a timeout, a reset, a server's error."""


class MisconfiguredError(DeliveryError):
    """Only people can mend it: `remedy` says how. It concerns one channel, or everything where not `one_channel`."""

    def __init__(self, status: str, remedy: str, *, one_channel: bool) -> None:
        super().__init__(status, f"{status}: {remedy}")
        self.remedy = remedy
        self.one_channel = one_channel


class RefusedError(DeliveryError):
    """What this one message says is not taken, for the reason `code`; others may be."""

    def __init__(self, code: str) -> None:
        super().__init__("refused", f"{code}: what it says is refused, in plain words too")


class GoneError(DeliveryError):
    """The message cannot be changed any more: somebody deleted it, or it has to be posted afresh."""


class Delivery(Protocol):
    """One way to reach people. Every call may raise a DeliveryError and takes at most a few seconds."""

    @property
    def editable(self) -> bool:
        """Whether messages can be changed, replied to and found once they are posted."""
        ...

    def post(self, channel: str, view: View, message_id: str) -> Place:
        """Post a message that carries `message_id` where people do not see it."""
        ...

    def update(self, place: Place, view: View, message_id: str) -> None:
        """Make a message say something else."""
        ...

    def reply(self, place: Place, view: View) -> None:
        """Answer below a message."""
        ...

    def find(self, channel: str, channel_id: str, since: float) -> Mapping[str, Place] | None:
        """Return the messages posted since unix time `since` by their `message_id`, or None: that cannot be known."""
        ...

    def check(self, channels: Collection[str]) -> list[str]:
        """Try the credentials and the channels; return a line for each problem."""
        ...
