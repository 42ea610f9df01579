"""`celeryscope status`: a `/metrics` page as tables for people or JSON for scripts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

import click
from pydantic import Field, SecretStr
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..monitor.configuration import Option, Settings
from ..monitor.masking import masked
from ..monitor.options import from_options, settings_options
from ..monitor.values import readable_file
from .reading import Page, UnreadableError, fetch
from .report import OVERDUE, Report, report

WATCH_EVERY = 2.0
BAD = {"lost", "missed", "late", "failing"}
"""States that are shown in red."""
WORDS = "runs"
"""The one column of words."""

HELP = f"""One screen of workers, queues, schedules, tasks by failure rate, and how far to trust them.

Exit code: 0 when nothing is wrong; 2 when the page cannot be read; 1 when something is wrong: the monitor does not
hear a broker or lags, a collector fails, a worker is lost or wedged, none is online, runs lost their worker, a queue
holds messages and has no consumer, an app has no beat or several, an entry is overdue by more than {OVERDUE:g} s.
Failing tasks are shown and not judged.
"""


class StatusSettings(Settings):
    """What `celeryscope status` is told."""

    section: ClassVar[str] = "status"

    status_url: Annotated[str, Option("URL", flag="--url")] = Field(
        default="http://127.0.0.1:9808", description="The monitor to read; without a path its /metrics."
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
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--limit", default=15, show_default=True, type=click.IntRange(1), help="Rows of each table at most.")
@click.option("--watch", is_flag=True, help="Keep the screen live until Ctrl-C.")
@click.pass_context
def status(ctx: click.Context, /, *, as_json: bool, limit: int, watch: bool, **options: object) -> None:
    """Read the page, show it, and exit by what it says."""
    settings = from_options(StatusSettings, options, os.environ)
    if watch:
        _watch(settings, limit)
        return
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
        UnreadableError: the page cannot be had.
    """
    password = settings.status_password.get_secret_value()
    text = fetch(settings.status_url, settings.status_user, password, settings.status_ca_file)
    return report(Page(text, settings.metric_prefix), now)


def _watch(settings: StatusSettings, limit: int) -> None:
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
        while True:
            try:
                content: RenderableType = render(read(settings, time.time()), limit)
            except UnreadableError as error:
                content = Text(f"{masked(settings.status_url)} {error}", style="bold red")
            live.update(content, refresh=True)
            time.sleep(WATCH_EVERY)


def render(result: Report, limit: int) -> RenderableType:
    """Return the whole screen; parts without any row are left out."""
    parts: list[RenderableType] = [_verdict(result)]
    for title, columns, rows in (_workers(result), _queues(result), _schedules(result), _tasks(result)):
        if rows:
            parts.append(_table(title, columns, rows, limit))
    parts.append(_trust(result))
    return Group(*parts)


def _verdict(result: Report) -> Text:
    if not result.problems:
        return Text("✓ nothing is wrong", style="bold green")
    return Text("\n").join(Text(f"✗ {problem}", style="bold red") for problem in result.problems)


Part = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def _workers(result: Report) -> Part:
    columns = ("state", "busy", "processed", "missed", "heard")
    rows: list[tuple[str, ...]] = [
        (
            row.worker,
            row.state,
            _of(row.active, row.slots),
            _count(row.processed),
            _count(row.missed),
            _age(row.heartbeat_age),
        )
        for row in result.workers
    ]
    return "worker", columns, rows


def _queues(result: Report) -> Part:
    columns = ("ready", "unacked", "scheduled", "oldest", "consumers", "busy")
    rows: list[tuple[str, ...]] = [
        (
            row.queue,
            _count(row.ready),
            _count(row.unacked),
            _count(row.scheduled),
            _age(row.oldest),
            _count(row.consumers),
            _of(row.busy, row.slots),
        )
        for row in result.queues
    ]
    return "queue", columns, rows


def _schedules(result: Report) -> Part:
    columns = ("state", WORDS, "last", "next", "late", "missed", "doubled")
    rows: list[tuple[str, ...]] = [
        (
            row.entry,
            row.state,
            row.schedule,
            _age(-row.last if row.last is not None else None),
            _age(row.next),
            _age(row.overdue or row.lateness),
            _count(row.missed),
            _count(row.duplicate),
        )
        for row in result.schedules
    ]
    return "schedule", columns, rows


def _tasks(result: Report) -> Part:
    columns = ("done", "failed", "rate", "retried", "revoked", "mean", "running", "waiting")
    rows: list[tuple[str, ...]] = [
        (
            row.task,
            _count(row.finished),
            _count(row.failed),
            "" if row.failure_rate is None else f"{row.failure_rate:.1%}",
            _count(row.retried),
            _count(row.revoked),
            _age(row.mean_runtime),
            _count(row.running),
            _count(row.waiting),
        )
        for row in result.tasks
    ]
    return "task", columns, rows


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], limit: int) -> Table:
    # The name gives way where the screen is narrow, on more lines; numbers are never cut.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(title, overflow="fold", min_width=12)
    for name in columns:
        words = name == WORDS
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in rows[:limit]:
        style = "red" if row[1] in BAD else None
        table.add_row(*(Text(cell) for cell in row), style=style)
    if len(rows) > limit:
        table.add_row(Text(f"… and {len(rows) - limit} more", style="dim"))
    table.caption = " "
    return table


def _trust(result: Report) -> Text:
    trust = result.trust
    facts: Iterable[tuple[str, str]] = (
        ("connected", "yes" if trust.connected else "NO"),
        ("event lag", _age(trust.lag) or "unknown"),
        ("starts missed", f"{_count(trust.starts_missed)} of {_count(trust.starts)}"),
        ("task-sent seen", "unknown" if trust.sent_coverage is None else f"{trust.sent_coverage:.0%}"),
        ("malformed", _count(trust.malformed)),
        ("evicted", _count(trust.evicted)),
        ("over label caps", _count(trust.overflow)),
    )
    return Text("trust   ", style="bold") + Text(
        " · ".join(f"{name} {value}" for name, value in facts), style="not bold"
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}".replace(",", " ")


def _of(part: float, whole: float) -> str:
    return f"{part:.0f}/{whole:.0f}" if whole else f"{part:.0f}"


_UNITS: tuple[tuple[float, str, Callable[[float], str]], ...] = (
    (1, "ms", lambda seconds: f"{seconds * 1000:.0f}"),
    (100, "s", lambda seconds: f"{seconds:.3g}"),
    (6000, "min", lambda seconds: f"{seconds / 60:.3g}"),
    (360_000, "h", lambda seconds: f"{seconds / 3600:.3g}"),
)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for limit, unit, text in _UNITS:
        if abs(seconds) < limit:
            return f"{text(seconds)} {unit}"
    return f"{seconds / 86_400:.3g} d"
