"""The `celeryscope` command: finds each subcommand when it is asked for, and words what goes wrong; decides nothing."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from . import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Entry:
    """A subcommand: where its click command is (or a function that makes it), what it needs, and its one-line help."""

    where: str
    extra: str
    help: str


COMMANDS = {
    "monitor": Entry(".cli:monitor_command", "monitor", "Take in Celery's events, sample the brokers, serve /metrics."),
    "alerter": Entry(".cli:alerter_command", "alerter", "Take failures from the outbox to Slack."),
    "incidents": Entry(".alerts.cli:incidents_command", "alerter", "What failed: list, show, resolve, mute."),
    "status": Entry(".exporters.status:status", "monitor", "One screen of workers, queues, schedules and failures."),
    "doctor": Entry(".exporters.doctor_cli:doctor", "monitor", "Check a Celery set-up against a checklist."),
    "control": Entry(".monitor.control:control", "monitor", "Revoke, limit, scale, shut down: through Flower."),
    "flower": Entry(".monitor.flower_launch:flower", "monitor", "Start Flower, closed to strangers and bounded."),
    "rules": Entry(
        ".dashboards.rules_cli:rules_command", "monitor", "Prometheus rules and an Alertmanager configuration."
    ),
    "dashboards": Entry(".dashboards.cli:dashboards_command", "dashboards", "Grafana boards: build, push."),
    "demo": Entry(".demo.command:demo", "demo", "The whole system on this machine, on a broker of its own."),
}
"""Each part adds its commands here; nothing of it is imported before the command is used."""

SETTINGS = (
    ".monitor.settings:MonitorSettings",
    ".exporters.status:StatusSettings",
    ".exporters.doctor_settings:DoctorSettings",
    ".alerts.settings:AlerterSettings",
    ".monitor.flower_settings:ControlSettings",
    ".monitor.flower_launch:LaunchSettings",
    ".dashboards.thresholds:RulesSettings",
    ".dashboards.settings:DashboardsSettings",
)
"""Every settings class: names of one command in the shared file or environment are no mistake for another."""


class LazyGroup(click.Group):
    """Knows its commands by name and help, and imports one only when it runs: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command, or say what to install for it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        with _needing(cmd_name, entry.extra):
            found = _resolve(entry.where)
            command = found if isinstance(found, click.Command) else found()
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, name the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names without importing the commands: what one of them needs may not be installed."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="celeryscope")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Monitoring and alerting for Celery.

    Settings come from celeryscope.toml, CELERYSCOPE_* variables and options; the later ones win.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return
    from .monitor.options import KNOWN

    ctx.meta[KNOWN] = known_settings


def monitor_command() -> click.Command:
    """Make `celeryscope monitor`: its options are its settings."""
    from .monitor.garbage import held_back, keep

    with held_back():  # modules are no garbage
        from .exporters.serve import serve
        from .monitor.options import from_options, settings_options
        from .monitor.settings import MonitorSettings

    @click.command("monitor", help=COMMANDS["monitor"].help)
    @settings_options(MonitorSettings)
    @click.option("--with-alerter", is_flag=True, help="Run the alerter in this process as well, with its settings.")
    def monitor(with_alerter: bool, **options: object) -> None:
        keep()  # not before it runs: somebody may only have asked for its help
        settings = from_options(MonitorSettings, options, os.environ)
        if not with_alerter:
            serve(settings)
            return
        with _needing("monitor --with-alerter", COMMANDS["alerter"].extra):
            from .alerts.cli import beside
        with beside(options) as alerter:
            serve(settings, {"alerter": alerter.facts}, alerter.secrets, {"alerter": alerter.gave_up})

    return monitor


def alerter_command() -> click.Command:
    """Make `celeryscope alerter`: its facts become a page here, since the alerter does not know the exporters."""
    from .alerts.cli import alerter_command as make
    from .exporters.http import ListenError, Server
    from .exporters.prometheus import Exposition
    from .exporters.webconfig import WebConfig, WebConfigError

    @contextmanager
    def serve(settings: Any, facts: Any) -> Iterator[str]:
        try:
            web_config = WebConfig(settings.web_config_file) if settings.web_config_file else None
            page = Exposition({}, others={"alerter": facts}, static_labels=settings.static_label)
            server = Server(settings.listen, {"/metrics": page}, web_config=web_config, title="alerter")
            server.start()
        except (ListenError, WebConfigError) as error:
            raise click.ClickException(str(error)) from None
        try:
            yield server.url
        finally:
            server.stop()

    return make(serve)


def known_settings() -> set[str]:
    """Return the names that any command's settings declare, and the tables of the file that belong to a command."""
    from .monitor.configuration import option_of

    known = {f"[{name}]" for name in COMMANDS}
    for where in SETTINGS:
        try:
            fields = _resolve(where).model_fields
        except ModuleNotFoundError:
            continue  # that part is not installed, and then neither are its settings
        known.update(fields)
        known.update(f"{name}_file" for name, info in fields.items() if option_of(info).secret)
    return known


@contextmanager
def _needing(command: str, extra: str) -> Iterator[None]:
    """Say what to install where a package of others is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("celeryscope"):
            raise
        raise click.ClickException(
            f"`celeryscope {command}` needs the package {error.name}: pip install 'celeryscope[{extra}]'"
        ) from None


def _resolve(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module, __package__), name)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code; errors are lines, never tracebacks."""
    try:
        code = cli.main(arguments, prog_name="celeryscope", standalone_mode=False)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.1 has none, and prints the help itself
            click.echo(error.format_message(), err=True)
            return 2
        for line in error.format_message().splitlines():
            click.echo(f"celeryscope: error: {line}", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0
