"""`celeryscope dashboards`: writes the boards, says that they are out of date, or puts them into a Grafana."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..monitor.flower import without_userinfo
from ..monitor.options import from_options, settings_options
from ..monitor.values import confidential_address
from .rules_cli import output_options, settled
from .settings import BuildSettings, DashboardsSettings

DEFAULT_OUT = Path("celeryscope-dashboards")


@click.group("dashboards")
def dashboards_command() -> None:
    """Grafana boards: write them as files, or put them into a Grafana."""


@dashboards_command.command("build")
@output_options(DEFAULT_OUT)
@click.option(
    "--sketches", type=click.Path(path_type=Path, file_okay=False), help="A folder for a drawing of each board (SVG)."
)
@settings_options(BuildSettings)
@click.pass_context
def build(context: click.Context, /, out: Path, sketches: Path | None, check: bool, **options: object) -> None:
    """Write boards/<uid>.json for provisioning and import, and kubernetes/ for Grafana's sidecar."""
    from . import boards, generate

    made = boards.all_boards(from_options(BuildSettings, options, os.environ).flower_url)
    different = settled(out, generate.files(made), "--out", check=check)
    if sketches is not None:
        different |= settled(sketches, generate.sketches(made), "--sketches", check=check)
    if check and different:
        context.exit(1)


@dashboards_command.command("push")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would become of each board.")
@settings_options(DashboardsSettings)
def push(dry_run: bool, **options: object) -> None:
    """Put the boards into a folder of a Grafana, over those that have their uids."""
    from . import push as pushing
    from .board import rendered
    from .boards import all_boards

    settings = from_options(DashboardsSettings, options, os.environ)
    if not settings.grafana_url:
        raise click.ClickException("--grafana-url: say which Grafana (or set CELERYSCOPE_GRAFANA_URL)")
    token = settings.grafana_token.get_secret_value() if settings.grafana_token else ""
    if token or without_userinfo(settings.grafana_url) != settings.grafana_url:
        _warn_of_clear_text(settings.grafana_url)
    models = [rendered(board) for board in all_boards(settings.flower_url)]
    try:
        with pushing.connected(settings.grafana_url, token) as grafana:
            pushing.push(grafana, models, settings.grafana_folder, dry_run=dry_run, tell=click.echo)
    except pushing.PushError as error:
        raise click.ClickException(str(error)) from None


def _warn_of_clear_text(url: str) -> None:
    try:
        confidential_address(without_userinfo(url))
    except ValueError as error:
        click.echo(f"celeryscope: warning: --grafana-url: {error}", err=True)
