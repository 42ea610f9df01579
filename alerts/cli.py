"""The commands `celeryscope alerter` and `celeryscope incidents`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, NoReturn

import click
import msgspec

from ..monitor import logs
from ..monitor.apps import broker_configs
from ..monitor.broker import BrokerConfig, BrokerError
from ..monitor.facts import Facts
from ..monitor.masking import secrets_in
from ..monitor.options import from_options, settings_options
from ..monitor.settings import CommonSettings
from ..monitor.sources import Source
from . import queries, views
from .alerter import Alerter, Config
from .delivery import Delivery, DeliveryError
from .incidents import Incident
from .mailbox import Pace
from .policy import plan
from .routes import duration, rules
from .settings import AlerterSettings
from .slack import SlackWeb, SlackWebhook
from .store import Database, StoreError
from .successes import SuccessWatch

Serve = Callable[[AlerterSettings, Facts], AbstractContextManager[str]]
"""Serves the alerter's facts while the context lasts; gives the address."""


def config_of(settings: AlerterSettings) -> Config:
    """Return what the alerter goes by, from its settings."""
    return Config(
        default=settings.default_plan,
        rules=rules(settings.route),
        links=views.Links(settings.flower_url, settings.grafana_url, settings.runbook_url),
        limits=settings.limits,
        pace=Pace(update=settings.update_interval),
        fallback=settings.slack_fallback_channel,
        quiet=settings.quiet,
        digest_every=settings.digest_interval,
        retention=settings.retention,
    )


def delivery_of(settings: AlerterSettings, noted: Callable[[str], None]) -> Delivery:
    """Return the way to Slack that the settings name."""
    if settings.slack_webhook_url is not None:
        return SlackWebhook(settings.slack_webhook_url, noted=noted)
    assert settings.slack_token is not None, "AlerterSettings.problems() sees to it"
    return SlackWeb(settings.slack_token, base_url=settings.slack_base_url or None, noted=noted)


def make(settings: AlerterSettings, brokers: list[BrokerConfig], successes: SuccessWatch) -> Alerter:
    """Return an alerter, not yet started.

    Raises:
        StoreError: the store's URL is none.
    """
    database = Database(settings.store_url, time.time)
    return Alerter(config_of(settings), database, lambda noted: delivery_of(settings, noted), brokers, successes)


@contextmanager
def running(settings: AlerterSettings) -> Iterator[Alerter]:
    """Run an alerter, and listen to the brokers' events for what resolves incidents.

    Raises:
        StoreError, BrokerError: it cannot start.
    """
    brokers = broker_configs(settings)
    # An app may have brought URLs of its own.
    logs.hide({secret for broker in brokers for secret in secrets_in(broker.url)})
    successes = SuccessWatch()
    alerter = make(settings, brokers, successes)
    sources = [Source(broker, successes) for broker in brokers]
    alerter.start()
    try:
        for source in sources:
            source.start()
        yield alerter
    finally:
        for source in sources:
            source.stop()
        alerter.stop()


class Beside(NamedTuple):
    """An alerter within another command's process: its facts, the secrets that no log line there may hold, and
    a function that says why it has given up, if it has.
    """

    facts: Facts
    secrets: Collection[str]
    gave_up: Callable[[], str | None]


@contextmanager
def beside(options: Mapping[str, Any]) -> Iterator[Beside]:
    """Run an alerter within another command's process; `options` are that one's, of which the common ones count.

    Raises:
        click.ClickException: it cannot start.
    """
    shared = {name: value for name, value in options.items() if name in (*CommonSettings.model_fields, "config")}
    settings = from_options(AlerterSettings, shared, os.environ)
    try:
        with running(settings) as alerter:
            yield Beside(alerter.facts, settings.secrets, lambda: str(alerter.failed) if alerter.failed else None)
    except (StoreError, BrokerError) as error:
        _refuse(error)


def alerter_command(serve: Serve) -> click.Command:
    """Make `celeryscope alerter`; `serve` shows its facts."""

    @click.command("alerter", help="Take failures from the outbox to Slack: grouped, updated, resolved.")
    @settings_options(AlerterSettings)
    @click.option("--check", is_flag=True, help="Check the settings, routes and Slack channels, and end.")
    @click.option("--task", default="", help="With --check: say where this task's failures would go, and why.")
    @click.option("--queue", default="", help="With --check --task: the queue it ran from.")
    @click.option("--exception", default="", help="With --check --task: the class of the exception.")
    @click.option("--test-message", is_flag=True, help="Post a test message to the default channel, and end.")
    def alerter(check: bool, test_message: bool, task: str, queue: str, exception: str, **options: Any) -> int:
        settings = from_options(AlerterSettings, options, os.environ)
        logs.configure(settings.log_level, settings.log_format, settings.secrets)
        if check:
            return _check(settings, task, queue, exception)
        if test_message:
            return _test_message(settings)
        return _run(settings, serve)

    # Tables have no form on a command line.
    alerter.params = [parameter for parameter in alerter.params if parameter.name != "route"]
    return alerter


def _run(settings: AlerterSettings, serve: Serve) -> int:
    try:
        with ExitStack() as stack:
            alerter = stack.enter_context(running(settings))
            address = stack.enter_context(serve(settings, alerter.facts))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: alerter.stopping.set())
            shown = ", ".join(consumer.config.label for consumer in alerter.consumers)
            logs.START.info("alerter reads %s and serves %s/metrics", shown, address)
            alerter.stopping.wait()
        if alerter.failed is not None:
            _refuse(alerter.failed)
    except (StoreError, BrokerError) as error:
        _refuse(error)
    return 0


def _check(settings: AlerterSettings, task: str, queue: str, exception: str) -> int:
    config = config_of(settings)
    if task:
        found = plan(config.rules, config.default, task=task, queue=queue, exception=exception)
        click.echo(f"{task}: {'nowhere, muted' if found.mute else found.channel} ({found.because})")
        for name in ("severity", "mention", "threshold", "quiet_hours", "runbook"):
            if getattr(found, name):
                click.echo(f"  {name.replace('_', ' ')}: {getattr(found, name)}")
    channels = {config.default.channel, *(rule.channel for rule in config.rules if rule.channel)}
    channels |= {settings.slack_fallback_channel} - {""}
    problems = delivery_of(settings, lambda _: None).check(channels)
    for problem in problems:
        click.echo(f"celeryscope: error: {problem}", err=True)
    if not problems:
        click.echo(f"ok: {len(config.rules)} routes, {len(channels)} channels")
    return 2 if problems else 0


def _test_message(settings: AlerterSettings) -> int:
    text = "A test message of celeryscope's alerter: failures of tasks will be told here."
    channel = settings.default_plan.channel
    try:
        delivery_of(settings, lambda _: None).post(channel, views.View("notice", text=text), f"test-{time.time_ns()}")
    except DeliveryError as error:
        _refuse(error)
    click.echo(f"posted to {channel}")
    return 0


def _refuse(error: Exception) -> NoReturn:
    raise _CannotError(str(error)) from None


class _CannotError(click.ClickException):
    exit_code = 2


class StoreSettings(AlerterSettings):
    """What `celeryscope incidents` needs of the alerter's settings: where the store is."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Nothing: neither a broker nor Slack is used."""
        yield from ()


def incidents_command() -> click.Group:
    """Make `celeryscope incidents` with its subcommands."""
    shared = [
        click.option("--store", default=None, metavar="URL", help="The incident store."),
        click.option("--state-dir", default=None, metavar="DIR", help="Where the store's file is."),
        click.option("--json", "as_json", is_flag=True, help="As JSON."),
    ]

    def command(group: click.Group, name: str, function: Callable[..., int]) -> None:
        for option in reversed(shared):
            function = option(function)
        group.command(name, help=function.__doc__)(function)

    def opened(store: str | None, state_dir: str | None) -> Database:
        given = {"store": store, "state_dir": state_dir}
        database = Database(from_options(StoreSettings, given, os.environ).store_url, time.time)
        database.inspect()
        return database

    group = click.Group("incidents", help="What the incident store holds: list, show, resolve, mute.")
    command(group, "list", _list_command(opened))
    command(group, "show", _show_command(opened))
    command(group, "resolve", _resolve_command(opened))
    command(group, "mute", _mute_command(opened))
    return group


Opened = Callable[[str | None, str | None], Database]


def _list_command(opened: Opened) -> Callable[..., int]:
    @click.option(
        "--state", type=click.Choice(["open", "resolved"]), multiple=True, help="Only those; may be repeated."
    )
    @click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
    def run(store: str | None, state_dir: str | None, as_json: bool, state: tuple[str, ...], limit: int) -> int:
        """List incidents, the latest failure first."""
        with _refusing():
            found = queries.incidents(opened(store, state_dir), states=state, limit=limit)
        _print_json([_plain(incident) for incident in found]) if as_json else _print_table(found)
        return 0

    return run


def _show_command(opened: Opened) -> Callable[..., int]:
    @click.argument("incident")
    def run(store: str | None, state_dir: str | None, as_json: bool, incident: str) -> int:
        """Show one incident, named by the start of its id."""
        with _refusing():
            found, message = queries.incident(opened(store, state_dir), incident)
        shown = {key: message.get(key) for key in ("kind", "channel", "channel_id", "ref", "state") if message}
        _print_json({**_plain(found), "message": shown}) if as_json else _print_one(found, shown)
        return 0

    return run


def _resolve_command(opened: Opened) -> Callable[..., int]:
    @click.argument("incident")
    def run(store: str | None, state_dir: str | None, as_json: bool, incident: str) -> int:
        """Mark an incident as resolved; the same failure reopens it."""
        with _refusing():
            found = queries.resolve_by_hand(opened(store, state_dir), incident, time.time())
        _print_json(_plain(found)) if as_json else click.echo(f"{found.id}: {found.state}")
        return 0

    return run


def _mute_command(opened: Opened) -> Callable[..., int]:
    @click.argument("incident")
    @click.option("--for", "length", default=None, metavar="TIME", help="How long, such as 2h; required to mute.")
    @click.option("--off", is_flag=True, help="Let it speak again.")
    def run(
        store: str | None, state_dir: str | None, *, as_json: bool, incident: str, length: str | None, off: bool
    ) -> int:
        """Keep an incident silent for a while."""
        if (length is None) == (not off):
            raise click.UsageError("give --for TIME (such as --for 2h), or --off")
        try:
            until = None if length is None else time.time() + duration(length)
        except ValueError as error:
            raise click.UsageError(f"--for: {error}, not {length!r}") from None
        with _refusing():
            found = queries.mute(opened(store, state_dir), incident, until)
        said = "speaks again" if until is None else f"muted until {_clock(until)}"
        _print_json(_plain(found)) if as_json else click.echo(f"{found.id}: {said}")
        return 0

    return run


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (StoreError, queries.NoSuchIncidentError) as error:
        _refuse(error)


def _plain(incident: Incident) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(incident)
    return {key: value for key, value in values.items() if key not in ("minutes", "key")}


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _print_table(found: list[Incident]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("id", "state", "task", "exception", "count", "first", "last", box=None, header_style="bold")
    for one in found:
        cells = (one.id, one.state, one.task, one.exception, f"{one.count:,}", _clock(one.first), _clock(one.last))
        # As texts: an exception's name is no markup.
        table.add_row(*(Text(cell) for cell in cells))
    Console(soft_wrap=True).print(table if found else "no incidents")


def _print_one(found: Incident, message: dict[str, Any]) -> None:
    where = f"{message['channel']} ({message['state']})" if message else "no message"
    lines = {
        "incident": found.id,
        "state": found.state + (f", muted until {_clock(found.muted_until)}" if found.muted_until else ""),
        "task": found.task,
        "exception": f"{found.exception}: {found.sample.message}",
        "count": f"{found.count:,}, from {_clock(found.first)} to {_clock(found.last)}",
        "environment": found.environment,
        "told in": where,
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':13}{value}")
    if found.sample.traceback:
        click.echo("\n" + found.sample.traceback)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
