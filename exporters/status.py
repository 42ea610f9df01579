"""`celeryscope status`: a `/metrics` page as tables for people or JSON for scripts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import click
from pydantic import Field, SecretStr
from rich.console import Console

from ..monitor.configuration import Option, Settings
from ..monitor.masking import masked
from ..monitor.options import from_options, settings_options
from ..monitor.values import readable_file
from .reading import Page, UnreadableError, fetch
from .report import OVERDUE, Report, report
from .status_screen import render
from .watch import Watched, keys, lines, watch

HELP = f"""One screen of workers, queues, schedules, failing and other tasks, and how far to trust the numbers.

Exit code, with --watch that of the last screen: 0 when nothing is wrong; 2 when the page cannot be read, so that
nobody knows; 1 when something is wrong: the monitor does not hear a broker or lags, a collector fails, a worker is
lost or wedged, none is online, runs lost their worker, a queue holds messages and has no consumer, an app has no beat
or several, an entry is overdue by more than {OVERDUE:g} s. Failing tasks are shown and not judged.
"""


class StatusSettings(Settings):
    """What `celeryscope status` is told."""

    section: ClassVar[str] = "status"

    status_url: Annotated[str, Option("URL", flag="--url")] = Field(
        default="http://127.0.0.1:9808",
        repr=False,  # it may hold a password
        description="The monitor to read; without a path its /metrics.",
    )
    status_user: Annotated[str, Option("NAME", flag="--user")] = Field(
        default="", description="User for basic auth; the password comes from CELERYSCOPE_STATUS_PASSWORD."
    )
    status_password: Annotated[SecretStr, Option("PASSWORD", flag="--password", secret=True)] = Field(
        default=SecretStr(""), description="Password for basic auth."
    )
    status_ca_file: Annotated[Path | None, Option("FILE", flag="--ca-file", parse=readable_file)] = Field(
        default=None, description="Certificates to trust for https, as PEM."
    )
    metric_prefix: Annotated[str, Option("PREFIX")] = Field(
        default="", description="The --metric-prefix that the monitor was given."
    )


class CannotReadError(click.ClickException):
    """The page cannot be read; exit code 2."""

    exit_code = 2


@click.command("status", help=HELP)
@settings_options(StatusSettings)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object; with --watch, one a line.")
@click.option("--limit", default=15, show_default=True, type=click.IntRange(1), help="Rows of each table at most.")
@click.option("--watch", "live", is_flag=True, help="Keep the screen live until q or Ctrl-C.")
@click.pass_context
def status(ctx: click.Context, /, *, as_json: bool, limit: int, live: bool, **options: object) -> None:
    """Read the page, show it, and exit by what it says."""
    settings = from_options(StatusSettings, options, os.environ)
    if live:
        ctx.exit(_watch(settings, limit, as_json=as_json))
    try:
        result = read(settings, time.time())
    except UnreadableError as error:
        raise CannotReadError(f"--url: {masked(settings.status_url)} {error}") from None
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        Console(highlight=False).print(render(result, limit))
    ctx.exit(1 if result.problems else 0)


def read(settings: StatusSettings, now: float) -> Report:
    """Fetch the page and judge it.

    Raises:
        UnreadableError: the page cannot be had, or is not a monitor's.
    """
    password = settings.status_password.get_secret_value()
    text = fetch(settings.status_url, settings.status_user, password, settings.status_ca_file)
    page = Page(text, settings.metric_prefix)
    if "celeryscope_connected" not in page:
        raise UnreadableError("is not a monitor's page: it has no celeryscope_connected (or another --metric-prefix)")
    return report(page, now)


def _watch(settings: StatusSettings, limit: int, *, as_json: bool) -> int:
    watched = Watched(masked(settings.status_url), lambda now: read(settings, now))
    with keys() as ended:
        if as_json:
            return lines(watched, lambda now: click.echo(json.dumps(_data(now))), ended)
        return watch(watched, Console(highlight=False), limit, ended)


def _data(watched: Watched) -> dict[str, Any]:
    """Return the moment for a script: its time, and the report or why there is none."""
    at: dict[str, Any] = {"at": watched.tried_at}
    if watched.error or watched.report is None:
        return {**at, "error": watched.error}
    return {**at, **asdict(watched.report)}
