"""Every setting of `celeryscope alerter` and `celeryscope incidents`, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from ..monitor import values
from ..monitor.configuration import Option
from ..monitor.settings import CommonSettings
from ..monitor.values import Address
from . import routes
from .policy import GuardLimits, Plan
from .routes import Route

STORE_FILE = "incidents.db"
DEFAULT_STATE_DIR = Path("celeryscope-state")

Duration = Annotated[float, Option("TIME", parse=routes.duration)]


def _secret(raw: object) -> SecretStr:
    text = str(raw).strip()
    if not text or any(character.isspace() for character in text):
        raise ValueError("must be one word")
    return SecretStr(text)


def _hook(raw: object) -> SecretStr:
    secret = _secret(raw)
    values.confidential_address(secret.get_secret_value())
    return secret


def _route_tables(raw: object) -> Any:
    if not isinstance(raw, list):
        raise ValueError("are tables of celeryscope.toml: [[routes]]")  # noqa: TRY004 - the reader's contract
    return raw


Url = Annotated[str, Option("URL"), AfterValidator(values.web_address)]
ApiUrl = Annotated[str, Option("URL"), AfterValidator(values.confidential_address)]


class AlerterSettings(CommonSettings):
    """All that the alerter is told."""

    section: ClassVar[str] = "alerter"

    listen: Annotated[Address, Option("HOST:PORT", parse=values.address)] = Field(
        default=Address("127.0.0.1", 9809),
        description="Where to serve the alerter's own /metrics; :9809 means all addresses.",
    )
    store: Annotated[SecretStr | None, Option("URL", parse=_secret, secret=True)] = Field(
        default=None,
        description="The incident store: sqlite:////path/file.db for alerters on one machine, postgresql://… for "
        f"several. Default: {STORE_FILE} in the state directory (./{DEFAULT_STATE_DIR} where none is named).",
    )
    slack_token: Annotated[SecretStr | None, Option("TOKEN", parse=_secret, secret=True)] = Field(
        default=None, description="The Slack app's bot token (xoxb-…)."
    )
    slack_webhook_url: Annotated[SecretStr | None, Option("URL", parse=_hook, secret=True)] = Field(
        default=None, description="An incoming webhook, where there is no bot token: digests instead of updates."
    )
    slack_channel: Annotated[str, Option("CHANNEL", parse=routes.channel)] = Field(
        default="", description="The channel for all that no route sends elsewhere: #name or its id."
    )
    slack_fallback_channel: Annotated[str, Option("CHANNEL", parse=routes.channel)] = Field(
        default="",
        description="Where to complain of a channel that cannot be posted to. Default: the channel of --slack-channel.",
    )
    slack_base_url: ApiUrl = Field(default="", description="Another address of Slack's Web API, for tests and proxies.")
    flower_url: Url = Field(default="", description="Flower's address, for links.")
    grafana_url: Url = Field(default="", description="Grafana's address, for links.")
    runbook_url: Url = Field(default="", description="Where runbooks given by a bare name are.")
    route: Annotated[tuple[Route, ...], Option("", flag="--route", parse=_route_tables, table="routes")] = Field(
        default=(), description="Which failures go where: [[routes]] tables of celeryscope.toml, see docs/slack.md."
    )
    notify_retries: Annotated[bool, Option()] = Field(
        default=False, description="Also tell of failures that will be retried, where workers report them."
    )
    quiet: Duration = Field(
        default=600, description="So long without a failure, and a success since, and an incident is resolved."
    )
    update_interval: Duration = Field(default=30, description="Least time between two updates of one message.")
    digest_interval: Duration = Field(
        default=600, description="With a webhook: least time between two messages about what changed."
    )
    guard_incidents: Annotated[int, Option("COUNT"), Field(ge=1)] = Field(
        default=10, description="So many new incidents in a channel within --guard-window get their own message."
    )
    guard_window: Duration = Field(default=300, description="See --guard-incidents.")
    retention: Duration = Field(
        default=2_592_000, description="Resolved incidents are forgotten after so long (30 days)."
    )

    @property
    def store_url(self) -> str:
        """The store's URL, which may hold a password."""
        if self.store is not None:
            return self.store.get_secret_value()
        folder = (self.state_dir or DEFAULT_STATE_DIR).absolute()
        return f"sqlite:///{folder / STORE_FILE}"

    @property
    def default_plan(self) -> Plan:
        """What becomes of failures that no route matches."""
        return Plan(channel=self.slack_channel or "webhook", notify_retries=self.notify_retries)

    @property
    def limits(self) -> GuardLimits:
        """The channel guard's limits."""
        return GuardLimits(self.guard_incidents, self.guard_window)

    @property
    def secrets(self) -> set[str]:
        """What no log line may hold; of a webhook the whole address, its path and the end of it, which is the key."""
        if self.slack_webhook_url is None:
            return super().secrets
        url = self.slack_webhook_url.get_secret_value()
        path = urlsplit(url).path
        return super().secrets | ({url, path, path.rpartition("/")[2]} - {""})

    def problems(self) -> Iterator[tuple[str, str]]:
        """Say which settings do not go together."""
        yield from super().problems()
        if self.slack_token and self.slack_webhook_url:
            yield "slack_webhook_url", "give a bot token or a webhook, not both"
        if not self.slack_token and not self.slack_webhook_url:
            yield "slack_token", "no way to Slack is given; set CELERYSCOPE_SLACK_TOKEN (or …_SLACK_WEBHOOK_URL)"
        if self.slack_token and not self.slack_channel:
            yield (
                "slack_channel",
                "no channel is named for failures that no route matches; set CELERYSCOPE_SLACK_CHANNEL",
            )
        for problem in routes.contradictions(routes.rules(self.route)):
            yield "route", problem
